/** How many steps fit into a span of time on this machine, by a short trial whose weights are thrown away. */
import { rmSync } from 'node:fs';
import type { TrainConfig } from './config.js';
import { Trainer } from './trainer.js';

/** The trial's first part fills caches and lets the device choose its kernels; the second is timed. */
const WARM_SECONDS = 4, TIMED_SECONDS = 4;

/**
 * Runs the config for about eight seconds and returns the steps that it would do in `seconds`, rounded to hundreds
 * (at least 100). Nothing of the trial stays.
 */
export async function stepsIn(seconds: number, config: TrainConfig): Promise<number> {
  const out = `${config.out}.trial`;
  rmSync(out, { recursive: true, force: true });
  const trainer = await Trainer.open({ ...config, out, total: 1e6, optimizer: { ...config.optimizer, warmup: 0 } });
  try {
    const start = performance.now();
    let from: { step: number; time: number } | undefined;
    for await (const { step } of trainer.run()) {
      const time = performance.now();
      if (!from && time - start > WARM_SECONDS * 1000) from = { step, time };
      if (from && time - from.time > TIMED_SECONDS * 1000)
        return Math.max(100, Math.round((step - from.step) / (time - from.time) * seconds * 10) * 100);
    }
    return trainer.totalSteps;
  } finally {
    await trainer.close();
    rmSync(out, { recursive: true, force: true });
  }
}
