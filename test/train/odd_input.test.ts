/** Samples and checkpoints that are strange but possible, through the whole of training: defined, and named when refused. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import { openSource } from '../../lib/data/source.js';
import { openSafetensors, type TensorEntry, writeSafetensors } from '../../lib/io/safetensors.js';
import { TarWriter } from '../../lib/io/tar_writer.js';
import { modelConfig } from '../../lib/model/config.js';
import { liveCount } from '../../lib/tensor.js';
import { decoderSequences } from '../../lib/text/sequences.js';
import { loadTokenizer, UNK } from '../../lib/text/tokenizer.js';
import { listCheckpoints } from '../../lib/train/checkpoint.js';
import {
  checkTrainConfig,
  type TrainConfig,
  type TrainConfigInput,
} from '../../lib/train/config.js';
import { type StepMetrics, Trainer } from '../../lib/train/trainer.js';
import { trimmedVocabulary } from '../../lib/train/vocabulary.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-odd-'));
const tar = join(folder, 'odd.tar');

/** Key, width, height, metadata. */
const SAMPLES: [key: string, width: number, height: number, meta: object][] = [
  [
    'usual',
    40,
    30,
    { caption: 'a thing', regions: [{ box: [0.1, 0.1, 0.6, 0.7], phrase: 'thing' }] },
  ],
  [
    'outside',
    40,
    30,
    {
      caption: 'boxes beside the image',
      regions: [
        { box: [1.2, 1.1, 1.6, 1.7], phrase: 'gone' },
        { box: [-0.5, -0.5, 0.4, 0.4], phrase: 'partly there' },
      ],
    },
  ],
  [
    'all-outside',
    40,
    30,
    {
      caption: 'nothing but boxes beside the image',
      regions: [{ box: [-3, -3, -2, -2], phrase: 'gone' }],
    },
  ],
  [
    'empty-phrase',
    40,
    30,
    { caption: 'a region without words', regions: [{ box: [0, 0, 1, 1], phrase: ' ' }] },
  ],
  [
    'long',
    40,
    30,
    {
      caption: 'word '.repeat(2000),
      regions: [{ box: [0, 0, 1, 1], phrase: 'word '.repeat(2000) }],
    },
  ],
  ['pixel', 1, 1, { caption: 'one pixel', regions: [{ box: [0, 0, 1, 1], phrase: 'pixel' }] }],
  [
    'wide',
    2000,
    1,
    { caption: 'a line', regions: [{ box: [0.5, 0, 1, 1], phrase: 'half a line' }] },
  ],
  ['tall', 1, 2000, { caption: 'a column', regions: [] }],
  ['empty', 40, 30, { caption: '  ' }],
];

beforeAll(async () => {
  const writer = new TarWriter(tar);
  for (const [key, width, height, meta] of SAMPLES) {
    writer.add(
      `${key}.png`,
      await sharp({ create: { width, height, channels: 3, background: '#3a7' } })
        .png()
        .toBuffer(),
    );
    writer.add(`${key}.json`, JSON.stringify(meta));
  }
  writer.finish();
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

const DISTILL = {
  views: { locals: 2 },
  head: { hidden: 16, bottleneck: 8, prototypes: 12, patchPrototypes: 10 },
};

function config(out: string, changes: Partial<TrainConfigInput> = {}): TrainConfig {
  return checkTrainConfig({
    out: join(folder, out),
    seed: 3,
    dtype: 'f32',
    device: 'cpu',
    model: { variant: 'test', decoder: { length: 40 } },
    data: { source: { type: 'webdataset', tars: tar }, trimVocabulary: true, workers: 0 },
    batch: 8,
    total: 3,
    checkpointEvery: 2,
    optimizer: { warmup: 1, ema: 0.9 },
    objectives: { caption: {}, distill: DISTILL },
    ...changes,
  });
}

async function run(
  c: TrainConfig,
  resume = false,
): Promise<{ metrics: StepMetrics[]; skips: string }> {
  const trainer = await Trainer.open(c, { resume });
  const metrics: StepMetrics[] = [];
  try {
    for await (const m of trainer.run()) metrics.push(m);
    await trainer.save();
    return { metrics, skips: trainer.loader.skips.summary() };
  } finally {
    await trainer.close();
  }
}

test.each([
  ['all objectives', {}],
  [
    'NaFlex',
    {
      model: { variant: 'test', decoder: { length: 40 }, naflex: true },
      objectives: { caption: {} },
      naflex: { lengths: [16] },
    },
  ],
])(
  'every odd sample in every batch, %s: finite losses, and only the blank caption is left out',
  async (name, changes) => {
    const { metrics, skips } = await run(config(name, changes));
    expect(metrics).toHaveLength(3);
    for (const m of metrics)
      for (const loss of Object.values(m.losses)) expect(Number.isFinite(loss)).toBe(true);
    expect(skips).toMatch(/caption/);
    expect(skips).toContain('empty');
  },
  240000,
);

/** Rewrites a checkpoint's training state without some of its tensors. */
async function without(checkpoint: string, names: readonly string[]): Promise<void> {
  const file = join(checkpoint, 'training_state.safetensors'),
    reader = await openSafetensors(file),
    kept: TensorEntry[] = [];
  for (const [name, { shape }] of reader.tensors)
    if (!names.includes(name))
      kept.push({ name, dtype: 'F32', shape, data: await reader.readFloat32(name) });
  await reader.close();
  await writeSafetensors(file, kept);
}

test.each([
  ['no centres', ['image_centre', 'patch_centre'], /teacher/],
  ['no average', ['ema'], /"ema" has no values/],
])(
  'a checkpoint without its teacher (%s) is refused, resumed or continued by another stage',
  async (name, missing, resumed) => {
    const c = config(name);
    await run(c);
    const checkpoint = listCheckpoints(c.out).at(-1)!;
    expect(readFileSync(join(checkpoint, 'training_state.safetensors')).includes(missing[0]!)).toBe(
      true,
    );
    await without(checkpoint, missing);
    await expect(Trainer.open({ ...c, total: 6 }, { resume: true })).rejects.toThrow(resumed);
    await expect(
      Trainer.open({ ...c, out: join(folder, `${name} next`), start: checkpoint }),
    ).rejects.toThrow(/self-distillation heads but no teacher/);
    // Without self-distillation nobody misses it.
    const plain = config(`${name} plain`, { objectives: { caption: {} }, start: checkpoint });
    expect((await run(plain)).metrics).toHaveLength(3);
  },
  240000,
);

test('a config that was not checked is checked, and a factor for no parameter is refused', async () => {
  const { data, ...rest } = config('unchecked');
  await expect(
    Trainer.open({ ...rest, data: { ...data, trimVocabularly: true } } as never),
  ).rejects.toThrow('did you mean "trimVocabulary"?');
  await expect(Trainer.open(undefined as never)).rejects.toThrow('config: the config is missing');
  const wrong = config('scaled', {
    optimizer: { warmup: 1, ema: 0.9, lrScale: { token_embeding: 10 } },
  });
  await expect(Trainer.open(wrong)).rejects.toThrow(
    'no parameter\'s name contains "token_embeding"',
  );
  expect(() => modelConfig(undefined as never)).toThrow('needs the name of a variant');
});

test('a trimmed vocabulary has the tokens of captions with line breaks and gaps as the decoder reads them', async () => {
  const file = join(folder, 'gaps.tar'),
    text = 'a zebra,\n\ngrazing   beside\tgiraffes',
    writer = new TarWriter(file);
  writer.add(
    '0.png',
    await sharp({ create: { width: 8, height: 8, channels: 3, background: '#3a7' } })
      .png()
      .toBuffer(),
  );
  writer.add(
    '0.json',
    JSON.stringify({ caption: text, regions: [{ box: [0, 0, 1, 1], phrase: text }] }),
  );
  writer.finish();
  const source = await openSource({ type: 'webdataset', tars: file });
  const vocab = await trimmedVocabulary(source, { decoder: true }),
    tokenizer = await loadTokenizer({ vocab });
  const sequences = await decoderSequences(
    tokenizer,
    [
      { task: 'cap', text },
      { task: 'aref', text, box: [0, 0, 1, 1] },
    ],
    64,
  );
  for (const s of sequences) expect([...s!.ids]).not.toContain(UNK);
  expect([...(await tokenizer.encodeBatch([text]))]).not.toContain(UNK);
});
