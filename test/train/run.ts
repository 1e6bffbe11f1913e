/** What tests of training share: a small folder of images, and a run to its end or to a step. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import sharp from 'sharp';
import { checkTrainConfig, type TrainConfigInput } from '../../lib/train/config.js';
import { type StepMetrics, Trainer } from '../../lib/train/trainer.js';

/** Makes a folder of n images of one colour each, captioned with its numbers. */
export async function colouredImages(folder: string, n: number): Promise<void> {
  mkdirSync(folder);
  for (let i = 0; i < n; i++) {
    const colour = { r: (i * 53) % 256, g: (i * 97) % 256, b: (i * 31) % 256 };
    await sharp({ create: { width: 20 + i, height: 30, channels: 3, background: colour } })
      .png()
      .toFile(join(folder, `${i}.png`));
    writeFileSync(join(folder, `${i}.txt`), `colour ${colour.r} ${colour.g} ${colour.b}`);
  }
}

/** Trains until the end or `stopAt` and saves; the folder is the checkpoint's. */
export async function runTraining(
  input: TrainConfigInput,
  options: { resume?: boolean; stopAt?: number } = {},
): Promise<{ metrics: StepMetrics[]; folder: string }> {
  const stop = new AbortController();
  const trainer = await Trainer.open(checkTrainConfig(input), options);
  const metrics: StepMetrics[] = [];
  try {
    for await (const m of trainer.run(stop.signal)) {
      metrics.push(m);
      if (m.step === options.stopAt) stop.abort();
    }
    return { metrics, folder: await trainer.save() };
  } finally {
    await trainer.close();
  }
}
