/** Augmented views for self-distillation: samples and views a second on one core, and the share of each transform. */
import { parseArgs } from 'node:util';
import type { RawImage } from '../lib/image/image.js';
import { gaussianBlur, hue } from '../lib/image/photometric.js';
import { emptyViews, makeViews, viewsConfig, viewTargets } from '../lib/image/views.js';
import { resizeImage } from '../lib/native.js';
import { circumstances, save } from './measure.js';

/** Milliseconds of this process's own time for one call of `run`: other programs on the machine don't count. */
function cost(run: (i: number) => void, times: number): number {
  for (let i = 0; i < 5; i++) run(i);
  const before = process.cpuUsage();
  for (let i = 0; i < times; i++) run(i);
  const used = process.cpuUsage(before);
  return (used.user + used.system) / 1000 / times;
}

export function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      size: { type: 'string', default: '256' },
      patch: { type: 'string', default: '16' },
      json: { type: 'string' },
    },
  });
  const config = viewsConfig(Number(values.size), Number(values.patch)),
    S = config.global.size;
  const image: RawImage = {
    height: 427,
    width: 640,
    channels: 3,
    data: Uint8Array.from(
      { length: 427 * 640 * 3 },
      (_, i) => 128 + 90 * Math.sin(i / 1900) + 30 * Math.sin(i * 1.7),
    ),
  };
  const targets = viewTargets(emptyViews(config, 1), 0, config);
  const perSample = cost(
    (sample) => makeViews(image, config, { seed: 1, epoch: 0, sample }, resizeImage, targets),
    100,
  );
  const square = image.data.slice(0, S * S * 3);
  const blur = cost(() => gaussianBlur(square, S, S, 1.2), 20);
  const turn = cost((i) => hue(square, i % 2 ? 0.05 : -0.05), 20);
  const views = config.locals + 1;
  console.log(
    `${image.width}×${image.height} pixels to 1 × ${S} and ${config.locals} × ${config.local.size}: ` +
      `${perSample.toFixed(1)} ms, ${(1000 / perSample).toFixed(0)} samples/s or ${((1000 * views) / perSample).toFixed(0)} views/s per core`,
  );
  console.log(
    `of which, for one view of ${S}: blur ${blur.toFixed(1)} ms, hue ${turn.toFixed(1)} ms`,
  );
  save(values.json, {
    ...circumstances('cpu'),
    bench: 'views',
    size: S,
    local: config.local.size,
    locals: config.locals,
    msPerSample: perSample,
    viewsPerSecond: (1000 * views) / perSample,
  });
  return Promise.resolve();
}
