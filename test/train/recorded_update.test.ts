/** `graph: true`: the bits of an ordinary run, in one and several captions an image; and runs that cannot have it. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { DeviceError } from '../../lib/errors.js';
import { type DeviceName, liveCount } from '../../lib/tensor.js';
import { checkTrainConfig, type TrainConfigInput } from '../../lib/train/config.js';
import { type StepMetrics, Trainer } from '../../lib/train/trainer.js';
import { colouredImages } from './run.js';

const device = (process.env['SIGLIP2_TEST_DEVICE'] ?? 'cpu') as DeviceName;
const records = device !== 'cpu';
const folder = mkdtempSync(join(tmpdir(), 'siglip2-graph-'));
const images = join(folder, 'images');

beforeAll(() => colouredImages(images, 12));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

interface Run {
  metrics: StepMetrics[];
  weights: Buffer;
  notes: string[];
  recorded: boolean;
}

async function run(
  out: string,
  more: Partial<TrainConfigInput>,
  prepare?: (trainer: Trainer) => void,
): Promise<Run> {
  const notes: string[] = [];
  const trainer = await Trainer.open(
    checkTrainConfig({
      out: join(folder, out),
      seed: 5,
      dtype: 'f32',
      device,
      model: { variant: 'test' },
      batch: 4,
      total: 5,
      data: { source: { type: 'folder', path: images }, trimVocabulary: true, workers: 0 },
      optimizer: { warmup: 2, ema: 0.9 },
      ...more,
    }),
    { note: (message) => notes.push(message) },
  );
  const metrics: StepMetrics[] = [];
  try {
    prepare?.(trainer);
    for await (const m of trainer.run()) metrics.push(m);
    const weights = readFileSync(join(await trainer.save(), 'model_ema.safetensors'));
    return { metrics, weights, notes, recorded: trainer.recording?.recorded ?? false };
  } finally {
    await trainer.close();
  }
}

const numbers = (r: Run): number[][] =>
  r.metrics.map((m) => [m.loss, m.losses['sigmoid']!, m.lr, m.scale, m.bias, m.gradNorm]);
const reasons = (r: Run): string[] => r.notes.filter((n) => n.startsWith('graph:'));

test('losses and weights are those of a run without, to the bit', async () => {
  const ordinary = await run('ordinary', {}),
    replayed = await run('replayed', { graph: true });
  expect(numbers(replayed)).toEqual(numbers(ordinary));
  expect(replayed.weights.equals(ordinary.weights)).toBe(true);
  expect(new Set(ordinary.metrics.map((m) => m.loss)).size).toBe(5);
  expect(replayed.recorded).toBe(records);
  expect(reasons(replayed)).toEqual(
    records ? [] : ['graph: the CPU device records nothing; steps are enqueued op by op'],
  );
}, 300_000);

// The device's own reasons come first on a CPU.
(records ? test : test.skip)(
  'a run whose steps vary says why it goes on without',
  async () => {
    const model = { variant: 'test', decoder: {} },
      objectives = { caption: {} };
    const without = await run('caption', { model, objectives, total: 2 });
    const asked = await run('caption-graph', { model, objectives, total: 2, graph: true });
    expect(reasons(asked)).toEqual([
      'graph: the captioning losses draw other masks for every batch; steps are enqueued op by op',
    ]);
    expect(numbers(asked)).toEqual(numbers(without));
  },
  300_000,
);

(records ? test : test.skip)(
  'a step that turns out not to be recordable is done in the ordinary way',
  async () => {
    const ordinary = await run('plain', {});
    let calls = 0;
    const refused = await run('refused', { graph: true }, (trainer) => {
      const apply = trainer.optimizer.apply.bind(trainer.optimizer);
      trainer.optimizer.apply = () => {
        if (++calls === 2) throw new DeviceError('this cannot be recorded');
        apply();
      };
    });
    expect(reasons(refused)).toEqual([
      'graph: this cannot be recorded; steps are enqueued op by op',
    ]);
    expect(numbers(refused)).toEqual(numbers(ordinary));
    expect(refused.recorded).toBe(false);
  },
  300_000,
);
