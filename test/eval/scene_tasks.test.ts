/** Tasks on scenes, on pictures whose right answers are known beforehand. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import type { LoadedModel } from '../../lib/checkpoints/load.js';
import { referringProbe } from '../../lib/eval/referring.js';
import { evaluateScenes } from '../../lib/eval/scene_tasks.js';
import { readScenes } from '../../lib/eval/scenes.js';
import { segmentationProbe } from '../../lib/eval/segmentation.js';
import { captionRetrieval } from '../../lib/inference/retrieval.js';
import { TarWriter } from '../../lib/io/tar_writer.js';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { liveCount } from '../../lib/tensor.js';
import { sequenceVocabulary } from '../../lib/text/sequences.js';
import { collectIds, loadTokenizer } from '../../lib/text/tokenizer.js';
import { VocabMap } from '../../lib/text/vocab.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-scene-tasks-'));
const RED = [0, 0, 0.5, 0.5] as const,
  BLUE = [0.5, 0.5, 1, 1] as const;

/** 64 × 32 px: a red thing in the top left quarter and a blue one in the bottom right, on a grey that varies. */
async function scene(split: string, i: number, writer: TarWriter): Promise<void> {
  const pixels = new Uint8Array(64 * 32 * 3).fill(60 + 10 * (i % 12)),
    mask = new Uint8Array(64 * 32);
  for (let y = 0; y < 16; y++)
    for (let x = 0; x < 32; x++)
      for (const [object, at] of [
        [1, y * 64 + x],
        [2, (y + 16) * 64 + x + 32],
      ] as const) {
        pixels.set(object === 1 ? [250, 20, 20] : [20, 20, 250], at * 3);
        mask[at] = object;
      }
  const said = (box: readonly number[], en: string, de: string): object[] => [
    { box, score: 1, phrase: en, lang: 'en' },
    { box, score: 1, phrase: de, lang: 'de' },
  ];
  writer.add(
    `${split}-${i}.png`,
    await sharp(pixels, { raw: { width: 64, height: 32, channels: 3 } })
      .png()
      .toBuffer(),
  );
  writer.add(
    `${split}-${i}.json`,
    JSON.stringify({
      captions: { en: [`red and blue ${i % 3}`], de: ['rot und blau'] },
      regions: [...said(RED, 'red', 'rot'), ...said(BLUE, 'blue', 'blau')],
      objects: [
        { class: 1, box: RED },
        { class: 0, box: BLUE },
      ],
    }),
  );
  writer.add(
    `${split}-${i}.mask.png`,
    await sharp(mask, { raw: { width: 64, height: 32, channels: 1 } })
      .toColourspace('b-w')
      .png()
      .toBuffer(),
  );
}

beforeAll(async () => {
  const splits = [];
  for (const [split, n] of [
    ['train', 24],
    ['test', 6],
  ] as const) {
    const writer = new TarWriter(join(folder, `${split}.tar`));
    for (let i = 0; i < n; i++) await scene(split, i, writer);
    writer.finish();
    splits.push({ split, shards: [{ file: `${split}.tar` }] });
  }
  writeFileSync(join(folder, 'manifest.json'), JSON.stringify({ splits }));
  writeFileSync(join(folder, 'classes.json'), JSON.stringify([{ id: 0 }, { id: 1 }]));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

async function untrained(): Promise<LoadedModel> {
  const texts = [...sequenceVocabulary(), ' red', ' blue', ' rot', ' blau', 'red and blue 0 1 2'];
  const vocab = VocabMap.fromIds(await collectIds(await loadTokenizer({}), new Set(texts)));
  const model = new Siglip2Model(
    modelConfig('test', { vocab: vocab.size, decoder: { length: 32 } }),
  );
  model.initialize(1);
  return {
    model,
    vocab,
    tokenizer: undefined,
    lowercase: 'ascii',
    processor: { resample: 2, generation: 2 } as LoadedModel['processor'],
  };
}

test('scenes become square with labels by class, captions and regions of one language', async () => {
  const set = await readScenes(folder, { size: 32, split: 'test' });
  expect(set).toMatchObject({
    size: 32,
    labelCount: 3,
    captions: [0, 1, 2, 0, 1, 2].map((n) => `red and blue ${n}`),
  });
  expect(set.regions[0]).toEqual([
    { box: [...RED], score: 1, phrase: 'red', lang: 'en' },
    { box: [...BLUE], score: 1, phrase: 'blue', lang: 'en' },
  ]);
  const want = Int32Array.from({ length: 32 * 32 }, (_, p) =>
    p % 32 < 16 && p < 512 ? 2 : p % 32 >= 16 && p >= 512 ? 1 : 0,
  );
  expect(set.labels.subarray(0, 1024)).toEqual(want);
  expect(Array.from(set.images.subarray(0, 3))).toEqual([250, 20, 20]);
  expect(
    (await readScenes(folder, { size: 16, split: 'train', language: 'de', most: 5 })).captions,
  ).toEqual(Array(5).fill('rot und blau'));
  await expect(readScenes(folder, { size: 32, split: 'val' })).rejects.toThrow(
    /has no split "val"/,
  );
});

test('segmentation: tokens that tell the colour give the exact masks', async () => {
  const { model } = await untrained();
  try {
    const [train, testSet] = await Promise.all(
      ['train', 'test'].map((split) => readScenes(folder, { size: 32, split: split as 'train' })),
    );
    const scores = await segmentationProbe(model, train!, testSet!, { epochs: 100 });
    // Half is background, a quarter each class: one label right everywhere it is, half of the union.
    expect(scores.chance).toBeCloseTo(0.5 / 3, 10);
    // The tokens are of 4 × 4 patches, whose scores are blended at the edges.
    expect(scores.miou).toBeGreaterThan(0.8);
    expect(scores.objectIou).toBeGreaterThan(0.8);
    expect(scores.accuracy).toBeGreaterThan(0.85);
    await expect(segmentationProbe(model, train!, { ...testSet!, labelCount: 9 })).rejects.toThrow(
      /test must have 3 labels/,
    );
  } finally {
    model.dispose();
  }
}, 240000);

test('referring: a fresh decoder on the frozen encoder learns where the named thing is', async () => {
  const loaded = await untrained(),
    { model } = loaded;
  try {
    const before = await model.params.values.read(),
      testSet = await readScenes(folder, { size: 32 });
    const scores = await referringProbe(loaded, folder, testSet, {
      steps: 300,
      batch: 12,
      lr: 5e-3,
    });
    expect(scores).toMatchObject({ queries: 12, constant: 0 });
    expect(scores.accuracy).toBe(1);
    expect(scores.meanIou).toBeGreaterThan(0.95);
    expect(await model.params.values.read()).toEqual(before);
    const all = await evaluateScenes(loaded, folder, ['retrieval', 'referring']);
    expect(all['referring']).toMatchObject({ queries: 12, accuracy: 0 });
    expect(all['retrieval']).toMatchObject({ chance: 1 / 3 });
    await expect(evaluateScenes(loaded, folder, ['refering'])).rejects.toThrow(
      /no task is called "refering"/,
    );
  } finally {
    model.dispose();
  }
  const without = { ...loaded, model: new Siglip2Model(modelConfig('test')) };
  await expect(
    referringProbe(without, folder, await readScenes(folder, { size: 32 })),
  ).rejects.toThrow(/has no decoder.*set model\.decoder/);
  without.model.dispose();
}, 240000);

test('retrieval counts captions, not images', async () => {
  const unit = (...angles: number[]): Float32Array =>
    Float32Array.from(angles.flatMap((a) => [Math.cos(a), Math.sin(a)]));
  const captions = ['a', 'a', 'b', 'c'];
  const perfect = await captionRetrieval(unit(0, 0.1, 2, 4), unit(0.05, 0.05, 2, 4), captions, 2);
  expect(perfect).toEqual({ t2i_r1: 1, i2t_r1: 1, chance: (4 + 1 + 1) / 16 });
  // The image of c lies where the text of b is, and the other way round.
  expect(
    await captionRetrieval(unit(0, 0.1, 4, 2), unit(0.05, 0.05, 2, 4), captions, 2),
  ).toMatchObject({ t2i_r1: 0.5, i2t_r1: 0.5 });
});
