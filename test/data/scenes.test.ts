/** Scenes: boxes equal masks, captions say what is there, studios stay apart, the same seed gives the same bytes. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import type { Batch } from '../../lib/data/batch.js';
import { emojiLanguages } from '../../lib/data/datasets/emoji.js';
import { type Artwork, composeScene } from '../../lib/data/datasets/scene_compose.js';
import {
  listText,
  relationText,
  templateLanguages,
} from '../../lib/data/datasets/scene_templates.js';
import {
  buildScenes,
  type SceneManifest,
  type SceneOptions,
} from '../../lib/data/datasets/scenes.js';
import { DataLoader } from '../../lib/data/loader.js';
import { describeSample, readCaptions } from '../../lib/data/sample.js';
import type { SampleSource } from '../../lib/data/sample_source.js';
import { openSource } from '../../lib/data/source.js';
import { decodeImage } from '../../lib/image/image.js';
import { FileReader } from '../../lib/io/reader.js';
import { Random } from '../../lib/random.js';
import { liveCount } from '../../lib/tensor.js';
import { formatBox, parseRegions } from '../../lib/text/regions.js';
import { loadTokenizer, lowerCase } from '../../lib/text/tokenizer.js';
import { checkTrainConfig } from '../../lib/train/config.js';
import { trimmedVocabulary } from '../../lib/train/vocabulary.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-scenes-'));
const options: SceneOptions = {
  scenes: { train: 14, val: 0, test: 6 },
  classes: 25,
  size: 96,
  scenesPerShard: 8,
  seed: 3,
  languages: ['en', 'de', 'ja', 'te'],
};
let manifest: SceneManifest, train: SampleSource, held: SampleSource;

beforeAll(async () => {
  manifest = await buildScenes(join(folder, 'a'), options);
  train = await openSource({ type: 'webdataset', tars: join(folder, 'a', 'train-*.tar') });
  held = await openSource({ type: 'webdataset', tars: join(folder, 'a', 'test-*.tar') });
}, 120000);
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

interface Meta {
  width: number;
  height: number;
  objects: { class: number; studio: string; box: number[] }[];
}

test('shards, counts and held-out studios', () => {
  expect([train.length, held.length, train.skips.total]).toEqual([14, 6, 0]);
  expect(manifest.splits.map(({ split, shards }) => [split, shards.map((s) => s.scenes)])).toEqual([
    ['train', [8, 6]],
    ['test', [6]],
  ]);
  const [a, b] = manifest.splits;
  expect(a!.studios.some((s) => b!.studios.includes(s))).toBe(false);
  expect(manifest.licences.length).toBeGreaterThan(3);
});

test('every box is the bounds of its pixels in the mask; regions name the objects', async () => {
  const reader = new FileReader();
  const classes = JSON.parse(readFileSync(join(folder, 'a', 'classes.json'), 'utf8')) as {
    id: number;
    names: Record<string, string>;
  }[];
  const aspects = new Set<string>();
  for (const sample of [...train.samples, ...held.samples]) {
    const { captions, meta } = readCaptions(reader, sample);
    const { width, height, objects } = meta as unknown as Meta;
    const image = await decodeImage(reader.read(sample.image), sample.key),
      mask = await decodeImage(reader.read(sample.mask!), sample.key);
    expect([image.width, image.height, mask.width, mask.height]).toEqual([
      width,
      height,
      width,
      height,
    ]);
    aspects.add((width / height).toFixed(1));
    objects.forEach(({ box }, i) => {
      let [x0, y0, x1, y1] = [width, height, 0, 0];
      for (let p = 0; p < width * height; p++) {
        if (mask.data[p * mask.channels] !== i + 1) continue;
        [x0, y0, x1, y1] = [
          Math.min(x0, p % width),
          Math.min(y0, Math.floor(p / width)),
          Math.max(x1, (p % width) + 1),
          Math.max(y1, Math.floor(p / width) + 1),
        ];
      }
      [x0 / width, y0 / height, x1 / width, y1 / height].forEach((v, k) =>
        expect(v).toBeCloseTo(box[k]!, 9),
      );
    });
    expect(new Set(objects.map((o) => o.class)).size).toBe(objects.length);
    const regions = parseRegions(meta, describeSample(sample)),
      english = regions.filter((r) => r.lang === 'en');
    expect(english.map((r) => r.phrase)).toEqual(objects.map((o) => classes[o.class]!.names['en']));
    expect(regions.length).toBe(2 * objects.length);
    const list = captions.filter((c) => c.lang === 'en').at(-1)!.text;
    for (const { phrase } of english) expect(list).toContain(phrase);
  }
  reader.close();
  expect(aspects.size).toBeGreaterThan(2);
});

test('a relation is true of the boxes', () => {
  const reader = new FileReader();
  let checked = 0;
  for (const sample of train.samples) {
    const { captions, meta } = readCaptions(reader, sample);
    const english = captions.filter((c) => c.lang === 'en');
    if (english.length < 2) continue;
    const boxOf = new Map(parseRegions(meta, '').map((r) => [r.phrase, r.box]));
    const said = /^(.*) (to the left of|to the right of|above|below) (.*)$/.exec(english[0]!.text)!;
    const a = boxOf.get(said[1]!)!,
      b = boxOf.get(said[3]!)!;
    const true_ = {
      'to the left of': a[2] <= b[0],
      'to the right of': a[0] >= b[2],
      above: a[3] <= b[1],
      below: a[1] >= b[3],
    };
    expect(true_[said[2] as keyof typeof true_]).toBe(true);
    checked++;
  }
  reader.close();
  expect(checked).toBeGreaterThan(3);
});

test("a loader makes the decoder's sequences, the same with and without a worker", async () => {
  const batches = async (workers: number): Promise<Batch[]> => {
    const loader = new DataLoader(train, {
      batchSize: 7,
      seed: 1,
      size: 32,
      workers,
      captions: { pick: ['en', 'de'] },
      tokenizer: { length: 16 },
      decoder: { length: 56 },
    });
    const out = [await loader.next(), await loader.next(), await loader.next()];
    await loader.close();
    return out;
  };
  const own = await batches(0),
    theirs = await batches(1),
    tokenizer = await loadTokenizer();
  expect(theirs.map((b) => b.sequences)).toEqual(own.map((b) => b.sequences));
  const reader = new FileReader();
  for (const batch of own) {
    const [aref, gcap, cap] = batch.sequences!;
    for (let i = 0; i < batch.size; i++) {
      const regions = parseRegions(readCaptions(reader, train.at(batch.samples[i]!)).meta, '');
      const said = regions.map(({ phrase, box }) => [
        `aref: ${lowerCase(phrase, 'unicode')} : ${formatBox(box)}`,
        `gcap: ${formatBox(box)} : ${lowerCase(phrase, 'unicode')}`,
      ]);
      expect(said.map((s) => s[0])).toContain(await tokenizer.decode(aref![i]!.ids));
      expect(said.map((s) => s[1])).toContain(await tokenizer.decode(gcap![i]!.ids));
      expect(await tokenizer.decode(cap![i]!.ids)).toBe(
        `cap: ${lowerCase(batch.texts[i]!, 'unicode')}`,
      );
    }
  }
  reader.close();
  expect(
    () =>
      new DataLoader(train, {
        batchSize: 1,
        seed: 1,
        size: 32,
        transforms: [{ name: 'flip' }, { name: 'resize' }],
        decoder: { length: 40 },
      }),
  ).toThrow(/boxes do not follow the transform "flip"/);
}, 120000);

test('a trimmed vocabulary has every token of the captions and the sequences', async () => {
  const config = checkTrainConfig({
    out: 'none',
    model: { variant: 'test', decoder: {} },
    batch: 7,
    total: { steps: 1 },
    data: {
      source: { type: 'webdataset', tars: join(folder, 'a', 'train-*.tar') },
      captions: { pick: ['any'] },
      trimVocabulary: true,
    },
  });
  const vocab = await trimmedVocabulary(train, { captions: config.data.captions, decoder: true });
  const loader = new DataLoader(train, {
    batchSize: 14,
    seed: 1,
    size: 32,
    workers: 0,
    tokenizer: { length: 64, vocab },
    decoder: { length: 64 },
  });
  for (let epoch = 0; epoch < 3; epoch++) {
    const { ids, sequences } = await loader.next();
    expect(ids.includes(3)).toBe(false);
    for (const s of sequences!.flat()) expect(s!.ids.includes(3)).toBe(false);
  }
  await loader.close();
}, 120000);

test('the same seed gives the same shards, another does not', async () => {
  const again = { ...options, scenes: { train: 8, val: 0, test: 0 } };
  await buildScenes(join(folder, 'b'), again);
  await buildScenes(join(folder, 'c'), { ...again, seed: 4 });
  const bytes = (name: string): Buffer => readFileSync(join(folder, name, 'train-000.tar'));
  expect(bytes('b').equals(bytes('a'))).toBe(true);
  expect(bytes('c').equals(bytes('a'))).toBe(false);
}, 120000);

describe('composition', () => {
  const artwork = (alpha: number): Artwork => ({
    class: 0,
    studio: 's',
    image: { width: 4, height: 4, channels: 4, data: new Uint8Array(64).fill(alpha) },
  });
  test('many objects: all that are listed are in the mask, numbered without a gap', () => {
    for (let i = 0; i < 20; i++) {
      const { mask, objects } = composeScene(
        Array.from({ length: 12 }, () => artwork(255)),
        64,
        new Random(5, i),
      );
      expect([...new Set(mask)].filter((v) => v > 0).sort((a, b) => a - b)).toEqual(
        objects.map((_, k) => k + 1),
      );
    }
  });
  test('what cannot be seen is no object', () =>
    expect(composeScene([artwork(60)], 64, new Random(1)).objects).toEqual([]));
});

test('templates: both directions, in dozens of languages; names lists elsewhere', () => {
  expect(templateLanguages.length).toBeGreaterThanOrEqual(8);
  for (const language of templateLanguages) {
    expect(emojiLanguages).toContain(language);
    const all = (['left', 'right', 'above', 'below'] as const).map(
      (r) => relationText(language, r, 'AAA', 'B$&B')!,
    );
    expect(new Set(all).size).toBe(4);
    for (const text of all) expect(text).toMatch(/AAA.*B\$&B|B\$&B.*AAA/u);
  }
  expect(relationText('te', 'left', 'a', 'b')).toBeUndefined();
  expect(listText('ja', ['a', 'b'])).toBe('a、b');
});

test('options out of range', async () => {
  await expect(buildScenes(join(folder, 'd'), { size: 3 })).rejects.toThrow(
    /scenes\.size: expected an integer in \[48, 2048\]/,
  );
  await expect(buildScenes(join(folder, 'd'), { scenes: { train: -1 } })).rejects.toThrow(
    /scenes\.train/,
  );
  await expect(buildScenes(join(folder, 'd'), { languages: ['de'] })).rejects.toThrow(/"en"/);
  await expect(buildScenes(join(folder, 'd'), { scale: [0.8, 0.4] })).rejects.toThrow(
    /scenes\.scale: expected two shares .* but got 0\.8, 0\.4/,
  );
  await expect(
    buildScenes(join(folder, 'd'), {
      studios: [{ name: 'noto', split: 'train' }],
      scenes: { train: 0, val: 1, test: 0 },
      languages: ['en'],
    }),
  ).rejects.toThrow(/no studio of the split "val"/);
});
