/** Online selection in training: the same choice as offline, resume to the bit, less noise among trained pairs, bad configs. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import { loadModel } from '../../lib/checkpoints/load.js';
import { DataLoader } from '../../lib/data/loader.js';
import { openSource } from '../../lib/data/source.js';
import { resizeImage } from '../../lib/native.js';
import { noGrad } from '../../lib/tape.js';
import { liveCount, scope, tensor } from '../../lib/tensor.js';
import { stateOf } from '../../lib/train/checkpoint.js';
import { checkTrainConfig, type TrainConfigInput } from '../../lib/train/config.js';
import { selectBatch } from '../../lib/train/selection/select.js';
import type { StepMetrics } from '../../lib/train/trainer.js';
import { runTraining } from './run.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-selection-'));
const images = join(folder, 'images');
const COLOURS = 32,
  SHADES = 3;
const tokenizer = join(folder, 'tokenizer.json');
let reference = '';

/** Colours in three shades, told by their number; and a tokenizer that knows these words, which is loaded at once. */
beforeAll(async () => {
  mkdirSync(images);
  const words = [
    '<pad>',
    '<eos>',
    '<bos>',
    '<unk>',
    'colour',
    ...Array.from({ length: COLOURS }, (_, c) => `number${c}`),
  ];
  writeFileSync(
    tokenizer,
    JSON.stringify({
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: [],
      normalizer: null,
      pre_tokenizer: { type: 'Whitespace' },
      post_processor: null,
      decoder: null,
      model: {
        type: 'WordLevel',
        unk_token: '<unk>',
        vocab: Object.fromEntries(words.map((w, id) => [w, id])),
      },
    }),
  );
  for (let i = 0; i < COLOURS * SHADES; i++) {
    const c = i % COLOURS,
      shade = 25 * Math.floor(i / COLOURS);
    const [r, g, b] = [c & 3, (c >> 2) & 3, c >> 4].map(
      (x, k) => (k === 2 ? 160 : 65) * x + shade,
    ) as [number, number, number];
    await sharp({ create: { width: 40, height: 32, channels: 3, background: { r, g, b } } })
      .png()
      .toFile(join(images, `${i}.png`));
    writeFileSync(
      join(images, `${i}.json`),
      JSON.stringify({ captions: { en: `colour number${c}` }, class: c }),
    );
  }
  reference = (await runTraining(config('reference', { total: 250, optimizer: { lr: 3e-3 } })))
    .folder;
}, 600000); // seconds on an idle machine
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

function config(out: string, more: Partial<TrainConfigInput> = {}): TrainConfigInput {
  return {
    out: join(folder, out),
    seed: 5,
    dtype: 'f32',
    device: 'cpu',
    batch: 12,
    total: 12,
    checkpointEvery: 0,
    model: { variant: 'test', initLogitScale: Math.log(5), initLogitBias: -3 },
    data: {
      source: { type: 'folder', path: images },
      tokenizer,
      trimVocabulary: true,
      uniqueClasses: true,
      workers: 0,
    },
    optimizer: { lr: 1e-3, warmup: 2 },
    ...more,
  };
}
const selecting = (
  more: Partial<NonNullable<TrainConfigInput['selection']>> = {},
): { selection: NonNullable<TrainConfigInput['selection']> } => ({
  selection: { ratio: 0.5, chunks: 4, reference, log: true, ...more },
});

interface Line {
  step: number;
  chosen: string[];
  rejected: string[];
}
const lines = (out: string): Line[] =>
  readFileSync(join(folder, out, 'selection.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((l) => JSON.parse(l) as Line);

test('training chooses what selectBatch chooses offline from the same weights', async () => {
  const input = config('offline', selecting());
  const first = await runTraining(input, { stopAt: 3 }),
    { step, loader: position } = stateOf(first.folder);
  await runTraining(input, { resume: true, stopAt: step + 1 });
  const [learner, teacher] = [await loadModel(first.folder), await loadModel(reference)];
  const { size, texts: L } = {
    size: learner.model.config.vision.imageSize,
    texts: learner.model.config.text.length,
  };
  const loader = new DataLoader(await openSource({ type: 'folder', path: images }), {
    batchSize: 24,
    seed: 5,
    size,
    uniqueBy: 'class',
    workers: 0,
    tokenizer: { path: tokenizer, length: L, vocab: learner.vocab! },
  });
  loader.restore(position as never);
  const batch = await loader.next();
  const embed = ({ model }: typeof learner) => ({
    ...scope(() =>
      noGrad(() => ({
        x: model.encodeImages(tensor(batch.images, [24, size, size, 3])),
        y: model.encodeTexts(tensor(batch.ids, [24, L])),
      })),
    ),
    logScale: model.logitScale,
    bias: model.logitBias,
  });
  const [own, frozen] = [embed(learner), embed(teacher)];
  const chosen = [
    ...(await selectBatch(own, frozen, {
      filterRatio: 0.5,
      chunks: 4,
      gain: 1,
      score: 'learnability',
      seed: 5,
      step: batch.index,
    })),
  ].sort((a, b) => a - b);
  const line = lines('offline').find((l) => l.step === step + 1)!;
  expect(line.chosen).toEqual(chosen.map((i) => batch.keys[i]));
  expect([...line.chosen, ...line.rejected].sort()).toEqual([...batch.keys].sort());
  await loader.close();
  for (const t of [own.x, own.y, frozen.x, frozen.y, learner.model, teacher.model]) t.dispose();
}, 60000);

const ways: [string, TrainConfigInput['selection'] & object][] = [
  ['the reference itself', { ratio: 0.5, chunks: 4 }],
  [
    'cached, scored at a lower resolution',
    { ratio: 0.75, chunks: 3, referenceCache: true, resolution: 16 },
  ],
  ['without a reference', { ratio: 0.5, chunks: 2, score: 'learner' }],
  ['without the learner', { ratio: 0.5, chunks: 2, score: 'easy-reference' }],
];
test.each(ways)(
  'resumes to the bit: %s',
  async (name, selection) => {
    const more = selecting({
      ...selection,
      ...(selection.score === 'learner' ? { reference: undefined } : {}),
    });
    const batch = 8,
      whole = await runTraining(config(`whole ${name}`, { batch, ...more }));
    const first = await runTraining(config(`parts ${name}`, { batch, ...more }), { stopAt: 5 });
    const second = await runTraining(config(`parts ${name}`, { batch, ...more }), { resume: true });
    const told = (m: StepMetrics[]): unknown[] => m.map(({ loss, selection: s }) => [loss, s]);
    expect(told([...first.metrics, ...second.metrics])).toEqual(told(whole.metrics));
    const weights = (dir: string): Buffer => readFileSync(join(dir, 'model.safetensors'));
    expect(weights(second.folder).equals(weights(whole.folder))).toBe(true);
    expect(lines(`parts ${name}`)).toEqual(lines(`whole ${name}`));
    for (const { selection: s } of whole.metrics) {
      expect(s!.share).toBeCloseTo(1 - selection.ratio, 6);
      expect(Number.isFinite(s!.chosen) && Number.isFinite(s!.rejected)).toBe(true);
    }
    const last = JSON.parse(
      readFileSync(join(folder, `whole ${name}`, 'metrics.jsonl'), 'utf8')
        .trim()
        .split('\n')
        .at(-1)!,
    ) as Record<string, unknown>;
    expect(last['selection/chosen']).toBe(whole.metrics.at(-1)!.selection!.chosen);
  },
  60000,
);

test('micro-batches train on the same images at the same two sizes', async () => {
  const more = { batch: 8, total: 3, ...selecting({ ratio: 0.5, chunks: 4, resolution: 16 }) };
  const whole = await runTraining(config('coarse', more)),
    parts = await runTraining(config('coarse parts', { ...more, microBatch: 3 }));
  expect(lines('coarse parts')).toEqual(lines('coarse'));
  whole.metrics.forEach((m, i) => {
    expect(parts.metrics[i]!.loss / m.loss).toBeCloseTo(1, 5);
    expect(parts.metrics[i]!.gradNorm / m.gradNorm).toBeCloseTo(1, 4);
  });
}, 60000);

test('without random transforms a cache chooses what the reference chooses', async () => {
  await runTraining(
    config('cached', { batch: 8, ...selecting({ ratio: 0.5, chunks: 4, referenceCache: true }) }),
  );
  expect(lines('cached')).toEqual(lines('whole the reference itself'));
}, 60000);

test('a reference sees images at its own size', async () => {
  const model = { variant: 'test', imageSize: 48, initLogitScale: Math.log(5), initLogitBias: -3 };
  const other = (await runTraining(config('larger', { model, total: 2 }))).folder;
  const { metrics } = await runTraining(
    config('smaller', { total: 3, ...selecting({ reference: other, resolution: 16 }) }),
  );
  for (const m of metrics) expect(Number.isFinite(m.loss)).toBe(true);
  const loader = new DataLoader(await openSource({ type: 'folder', path: images }), {
    batchSize: 2,
    seed: 1,
    size: 32,
    sizes: [48, 16],
    workers: 1,
    tokenizer: null,
  });
  const batch = await loader.next();
  await loader.close();
  [48, 16].forEach((side, k) =>
    expect(batch.resized![k]!.subarray(side * side * 3)).toEqual(
      resizeImage(batch.images.subarray(32 * 32 * 3), 32, 32, 3, side, side),
    ),
  );
}, 60000);

test('with a NaFlex model, packed images are embedded and chosen', async () => {
  const model = { variant: 'test', naflex: true },
    naflex = { lengths: [8, 16] };
  const teacher = (await runTraining(config('naflex-reference', { model, naflex, total: 4 })))
    .folder;
  const { metrics } = await runTraining(
    config('naflex', { model, naflex, total: 6, ...selecting({ reference: teacher }) }),
  );
  for (const m of metrics) expect(Number.isFinite(m.loss)).toBe(true);
}, 60000);

test('swapped captions are trained on less than they come', async () => {
  const base = config('noisy', { total: 120, ...selecting(), optimizer: { lr: 3e-3, warmup: 2 } });
  const { metrics } = await runTraining({
    ...base,
    data: { ...base.data, noise: { swapped: 0.4 } },
  });
  const mean = (of: 'loaded' | 'trained'): number =>
    metrics.slice(20).reduce((sum, m) => sum + m.noise![of], 0) / (metrics.length - 20);
  console.info(
    `swapped captions: ${mean('loaded').toFixed(3)} of the samples loaded, ${mean('trained').toFixed(3)} of those trained on`,
  );
  expect(mean('loaded')).toBeCloseTo(0.4, 1);
  expect(mean('trained')).toBeLessThan(0.25);
}, 600000); // seconds on an idle machine

test('a cache of another reference, of other samples or cut short is refused, naming the file', async () => {
  const file = join(folder, 'cache.safetensors');
  const cached = (out: string, more: Partial<TrainConfigInput>): Promise<unknown> =>
    runTraining(config(out, { total: 2, ...more }));
  await cached('cache-1', selecting({ referenceCache: file }));
  await cached('cache-2', selecting({ referenceCache: file }));
  const other = (await runTraining(config('other-reference', { total: 2 }))).folder;
  await expect(
    cached('cache-3', selecting({ referenceCache: file, reference: other })),
  ).rejects.toThrow(/cache\.safetensors: was made with another reference/);
  const { data } = config('x');
  await expect(
    cached('cache-4', {
      ...selecting({ referenceCache: file }),
      data: { ...data, captions: { pick: ['de'], languages: ['de'] } },
    }),
  ).rejects.toMatchObject({ code: 'ERR_CHECKPOINT' });
  truncateSync(file, 5000);
  await expect(cached('cache-5', selecting({ referenceCache: file }))).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT',
    message: expect.stringContaining(file) as never,
  });
}, 60000);

test('what cannot work is refused in one sentence', async () => {
  const refused = async (more: Partial<TrainConfigInput>, text: RegExp): Promise<void> => {
    await expect(
      (async () => runTraining(checkTrainConfig(config('refused', more)) as never))(),
    ).rejects.toThrow(text);
  };
  await refused(
    { selection: { ratio: 0.5 } },
    /selection\.reference is "?missing"?: the score learnability needs/,
  );
  await refused(selecting({ score: 'learner' }), /the score learner has no reference/);
  await refused(selecting({ ratio: 1 }), /selection\.ratio is 1/);
  await refused(selecting({ ratio: 0.01 }), /drops no sample of a batch of 12/);
  await refused(selecting({ ratio: 0.9 }), /a super-batch of 120 is more than the 96 samples/);
  await refused(selecting({ chunks: 13 }), /selection\.chunks must be at most the batch of 12/);
  await refused(selecting({ reference: join(folder, 'nowhere') }), /nowhere: does not exist/);
  await refused(
    { ...selecting({ resolution: 16 }), model: { variant: 'test', naflex: true } },
    /selection\.resolution is for models of fixed/,
  );
  await refused(
    { ...selecting(), model: { variant: 'test', naflex: true }, naflex: { lengths: [8] } },
    /must be a NaFlex model with the same patch/,
  );
  await refused(
    {
      ...selecting({ resolution: 16 }),
      model: { variant: 'test', decoder: { length: 40 } },
      objectives: { caption: {} },
    },
    /selection\.coarse must be 0/,
  );
  await refused(
    {
      ...selecting(),
      optimizer: { ema: 0.9 },
      objectives: {
        distill: { head: { hidden: 8, bottleneck: 8, prototypes: 8, patchPrototypes: 8 } },
      },
    },
    /use one of the two/,
  );
  await refused(
    { data: { ...config('x').data, noise: { swapped: 2 } } },
    /data\.noise\.swapped is 2/,
  );
}, 60000);
