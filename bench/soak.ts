/**
 * Training for a long time in one process: resident memory after the warm-up and at the end, live bytes, and how long
 * the event loop was kept waiting. Trains the quickstart's model on its data set, building that when it is not there.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { buildEmojiDataset } from '../lib/data/datasets/emoji.js';
import { liveCount, memory } from '../lib/tensor.js';
import { applySets, checkTrainConfig } from '../lib/train/config.js';
import { presets } from '../lib/train/presets.js';
import { Trainer } from '../lib/train/trainer.js';
import { circumstances, save } from './measure.js';

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      steps: { type: 'string', default: '2000' },
      warmup: { type: 'string', default: '300' },
      json: { type: 'string' },
    },
  });
  const warmup = Number(values.warmup),
    steps = Number(values.steps) + warmup;
  const out = mkdtempSync(join(tmpdir(), 'siglip2-soak-'));
  const config = checkTrainConfig({
    ...(applySets(presets['quickstart'], [`total=${steps}`, 'checkpointEvery=0']) as object),
    out,
  });
  if (config.data.source.type === 'emoji') {
    await buildEmojiDataset(config.data.source.path, {
      ...(config.data.maxClasses === undefined ? {} : { maxClasses: config.data.maxClasses }),
      ...(config.data.sequences === undefined ? {} : { sequences: config.data.sequences }),
    });
  }
  const before = liveCount();
  const trainer = await Trainer.open(config);
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const resident: number[] = [],
    live: number[] = [];
  for await (const { step } of trainer.run()) {
    if (step === warmup) delay.enable();
    if (step >= warmup && (step - warmup) % 100 === 0) {
      resident.push(process.memoryUsage.rss());
      live.push(memory('cpu').live);
    }
  }
  delay.disable();
  await trainer.close();
  rmSync(out, { recursive: true, force: true });
  const first = resident[0]!,
    last = resident.at(-1)!,
    p99 = delay.percentile(99) / 1e6;
  const mib = (n: number): string => `${(n / 2 ** 20).toFixed(1)} MiB`;
  console.log(`${config.model.variant}, ${values.steps} steps after ${warmup} of warm-up`);
  console.log(
    `  resident memory   ${mib(first)} → ${mib(last)}   ${(100 * (last / first - 1)).toFixed(2)} % (most ${mib(Math.max(...resident))})`,
  );
  console.log(
    `  live tensors      ${mib(live[0]!)} → ${mib(live.at(-1)!)}   ${liveCount() - before} left after close`,
  );
  console.log(
    `  event-loop delay  p99 ${p99.toFixed(1)} ms, most ${(delay.max / 1e6).toFixed(1)} ms`,
  );
  save(values.json, {
    ...circumstances('cpu'),
    what: 'soak',
    steps,
    resident,
    live,
    leftAfterClose: liveCount() - before,
    delayP99Ms: p99,
  });
}
