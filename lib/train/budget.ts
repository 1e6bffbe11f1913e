/** How many steps fit into a span of time on this machine, by a short trial whose weights are thrown away. */
import { rmSync } from 'node:fs';
import type { TrainConfig } from './config.js';
import { Trainer } from './trainer.js';

/** The timed part comes when every sample has been decoded once, but begins within so many seconds. */
const MOST_WARM_SECONDS = 30;
const TIMED_SECONDS = 8;

/**
 * Runs the config for some seconds, until its data are in memory and eight more, and returns the steps that it would do
 * in `seconds`, rounded to hundreds (at least 100). Nothing of the trial stays.
 */
export async function stepsIn(seconds: number, config: TrainConfig): Promise<number> {
  const out = `${config.out}.trial`;
  rmSync(out, { recursive: true, force: true });
  const trainer = await Trainer.open({
    ...config,
    out,
    total: 1e6,
    optimizer: { ...config.optimizer, warmup: 0 },
  });
  const epoch = trainer.loader.batchesPerEpoch;
  try {
    const start = performance.now();
    let from: { step: number; time: number } | undefined;
    for await (const { step } of trainer.run()) {
      const time = performance.now();
      if (!from) {
        if (step > 2 * epoch || time - start > MOST_WARM_SECONDS * 1000) from = { step, time };
      } else if (time - from.time > TIMED_SECONDS * 1000) {
        return Math.max(
          100,
          Math.round(((step - from.step) / (time - from.time)) * seconds * 10) * 100,
        );
      }
    }
    return trainer.totalSteps;
  } finally {
    await trainer.close();
    rmSync(out, { recursive: true, force: true });
  }
}
