/** From tables of scores to a data set: merging, duplicates, leakage, the report, filters, and training on what is left. */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import { nearPairs } from '../../lib/curation/duplicates.js';
import { chooseRows, writeKeys, writeTars } from '../../lib/curation/filter.js';
import { mergeScores } from '../../lib/curation/merge.js';
import { scoreCollection } from '../../lib/curation/score.js';
import { writeScoreReport } from '../../lib/curation/score_examples.js';
import { SCORE_COLUMNS } from '../../lib/curation/score_table.js';
import { scoreUnits } from '../../lib/curation/score_units.js';
import { DataLoader } from '../../lib/data/loader.js';
import { readCaptions } from '../../lib/data/sample.js';
import { openSource } from '../../lib/data/source.js';
import type { SourceSpec } from '../../lib/data/spec.js';
import { type Encoder, load } from '../../lib/encoder/encoder.js';
import { f16ToF32, f32ToF16 } from '../../lib/io/half.js';
import { type Columns, openTable, writeTable } from '../../lib/io/parquet.js';
import { FileReader } from '../../lib/io/reader.js';
import { TarWriter } from '../../lib/io/tar_writer.js';
import { Random } from '../../lib/random.js';
import { liveCount } from '../../lib/tensor.js';
import { checkTrainConfig } from '../../lib/train/config.js';
import { errorOf, picture } from '../data/support.js';
import { smallCheckpoint, temporaryFolder, WORDS } from '../encoder_support.js';

const folder = temporaryFolder(),
  at = (...parts: string[]): string => join(folder, ...parts);
const tars = [at('a.tar'), at('b.tar')],
  scored = at('scored'),
  HOSTILE = 'a <b>"cat"</b> & more';
let learner: Encoder, table: Columns, rows: number;

/** A picture that is not like the others, to an untrained model too. */
const patterned = (i: number): Promise<Buffer> => {
  const random = new Random(i, 77),
    data = Buffer.alloc(48 * 48 * 3);
  for (let p = 0; p < data.length; p++) data[p] = random.below(256);
  return sharp(data, { raw: { width: 48, height: 48, channels: 3 } })
    .blur(0.3 + (i % 7) / 2)
    .png()
    .toBuffer();
};

beforeAll(async () => {
  learner = await load(await smallCheckpoint());
  const same = await patterned(3),
    other = await sharp(same).png({ compressionLevel: 0 }).toBuffer();
  for (const [t, tar] of tars.entries()) {
    const writer = new TarWriter(tar);
    for (let i = 0; i < 20; i++) {
      const twin =
        t === 1 && i === 5 ? same : t === 1 && i === 6 ? other : await patterned(20 * t + i);
      writer.add(`${t}/${i}.png`, twin);
      writer.add(
        `${t}/${i}.json`,
        JSON.stringify({
          lang: i % 4 === 0 ? 'de' : 'en',
          caption: i === 7 ? HOSTILE : WORDS[i % WORDS.length],
        }),
      );
      writer.add(`${t}/${i}.cls`, String(i));
    }
    writer.finish();
  }
  await scoreCollection(await scoreUnits(tars), scored, { learner });
  await mergeScores(scored, { near: 0.99999 });
  const merged = await openTable(join(scored, 'scores.parquet'));
  [table, rows] = [await merged.read(Object.keys(SCORE_COLUMNS)), merged.rows];
});
afterAll(() => {
  learner.dispose();
  expect(liveCount()).toBe(0);
});

test('the search for near pairs finds what all pairs in double precision give, across blocks', async () => {
  const n = 2300,
    dim = 4,
    random = new Random(5),
    data = Float32Array.from({ length: n * dim }, () => random.uniform() - 0.5);
  for (let i = 0; i < n; i++) {
    const row = data.subarray(i * dim, (i + 1) * dim),
      norm = Math.hypot(...row);
    for (let d = 0; d < dim; d++) row[d]! /= norm;
  }
  const half = { data: f32ToF16(data), dim },
    x = f16ToF32(half.data),
    found = new Set<string>();
  const lengths = Array.from({ length: n }, (_, i) =>
    Math.hypot(...x.subarray(i * dim, (i + 1) * dim)),
  );
  await nearPairs(half, null, { threshold: 0.985 }, (i, j) => found.add(`${i},${j}`));
  const some = { data: half.data.slice(0, 30 * dim), dim },
    across = new Set<string>();
  await nearPairs(half, some, { threshold: 0.985 }, (i, j) => across.add(`${i},${j}`));
  let count = 0;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      let cosine = 0;
      for (let d = 0; d < dim; d++) cosine += x[i * dim + d]! * x[j * dim + d]!;
      cosine /= lengths[i]! * lengths[j]!;
      if (Math.abs(cosine - 0.985) < 1e-6) continue;
      if (j > i && cosine > 0.985) count++;
      if (j > i && found.has(`${i},${j}`) !== cosine > 0.985)
        throw new Error(`pair ${i}, ${j} of cosine ${cosine}`);
      if (j < 30 && across.has(`${i},${j}`) !== cosine > 0.985)
        throw new Error(`pair ${i}, ${j} across of cosine ${cosine}`);
    }
  }
  expect(count).toBeGreaterThan(100);
});

test('merging: order, duplicates by hash and by looks, the same bytes again', async () => {
  expect([rows, table['key']![0], table['key']![20]]).toEqual([40, '0/0', '1/0']);
  const marked = Array.from(table['duplicate']!, (d, i) => [i, d, table['flags']![i]]).filter(
    ([, d]) => d !== null,
  );
  expect(marked).toEqual([
    [3, 3, 'small-image'],
    [25, 3, 'small-image,exact-duplicate'],
    [26, 3, 'small-image,near-duplicate'],
  ]);
  const before = readFileSync(join(scored, 'scores.parquet'));
  const { flags } = await mergeScores(scored, { near: 0.99999 });
  expect([
    readFileSync(join(scored, 'scores.parquet')).equals(before),
    flags.get('exact-duplicate'),
    flags.get('near-duplicate'),
  ]).toEqual([true, 1, 1]);
});

test('the merged table says what made it, and that duplicates are whole numbers or nothing', async () => {
  const { metadata } = await openTable(join(scored, 'scores.parquet'));
  expect(JSON.parse(metadata.get('siglip2')!)).toMatchObject({
    by: expect.stringMatching(/^siglip2 \d/) as never,
    learner: { source: learner.source, dim: learner.dim },
    reference: null,
    pick: 'first',
    near: 0.99999,
    leakage: false,
  });
  expect(JSON.parse(metadata.get('pandas')!)).toMatchObject({
    columns: [{ name: 'duplicate', numpy_type: 'Int32' }],
  });
});

test('merging needs all tables, or partial', async () => {
  renameSync(join(scored, 'b.tar.parquet'), at('aside'));
  try {
    const error = await errorOf(() => mergeScores(scored));
    expect([error.code, error.message.includes('b.tar')]).toEqual(['ERR_DATA', true]);
    const { rows: some, missing } = await mergeScores(scored, { partial: true });
    expect([some, missing]).toEqual([20, ['b.tar']]);
  } finally {
    renameSync(at('aside'), join(scored, 'b.tar.parquet'));
    await mergeScores(scored, { near: 0.99999 });
  }
  expect((await errorOf(() => mergeScores(folder))).code).toBe('ERR_DATA');
});

test('leakage: images of an evaluation set are found by hash and by looks', async () => {
  const images = [
    await sharp(await patterned(11))
      .png({ compressionLevel: 1 })
      .toBuffer(),
    await patterned(900),
    await patterned(31),
  ].map((bytes, i) => ({ name: `eval-${i}`, open: () => ({ bytes }) }));
  const { leaks, flags } = await mergeScores(scored, {
    near: 0.99999,
    leakage: { images, learner },
  });
  expect(leaks.map(({ shard, key, image }) => [shard, key, image])).toEqual([
    ['a.tar', '0/11', 'eval-0'],
    ['b.tar', '1/11', 'eval-2'],
  ]);
  expect([
    flags.get('leaked'),
    leaks[1]!.cosine,
    readFileSync(join(scored, 'leaks.jsonl'), 'utf8').split('\n').length,
  ]).toEqual([2, 1, 3]);
  expect((await chooseRows(scored, { where: ['flags!~leaked'] })).kept).toHaveLength(38);
  using stranger = await load(await smallCheckpoint({ initLogitBias: -3 }));
  expect(
    (await errorOf(() => mergeScores(scored, { leakage: { images, learner: stranger } }))).code,
  ).toBe('ERR_CONFIG');
  const damaged = [{ name: 'eval/bad.png', open: () => ({ bytes: Buffer.from('no image') }) }];
  expect(
    (await errorOf(() => mergeScores(scored, { leakage: { images: damaged, learner } }))).message,
  ).toContain('eval/bad.png: cannot decode');
  await mergeScores(scored, { near: 0.99999 });
  expect(existsSync(join(scored, 'leaks.jsonl'))).toBe(false);
});

test('the report is one self-contained file with pictures, and escapes what comes from data', async () => {
  const html = readFileSync(
    await writeScoreReport(scored, await mergeScores(scored, { near: 0.99999 })),
    'utf8',
  );
  expect(html).not.toMatch(/<script|<link|@import|url\(|\son[a-z]+=/i);
  expect(html).not.toMatch(/src="(?!data:image\/webp;base64,)/i);
  expect(html.match(/data:image\/webp/g)!.length).toBeGreaterThan(80);
  expect(html).not.toContain(HOSTILE);
  expect(html).toContain('a &lt;b&gt;&quot;cat&quot;&lt;/b&gt; &amp; more');
  for (const text of ['Percentile 50', 'German', 'exact-duplicate', 'Histogram of cosine'])
    expect(html).toContain(text);
  expect(html).not.toContain('Pictures by learnability'); // there is no reference
  for (const tag of ['section', 'article', 'table', 'ol', 'details', 'figure', 'div'])
    expect([tag, html.match(new RegExp(`<${tag}[ >]`, 'g'))?.length]).toEqual([
      tag,
      html.match(new RegExp(`</${tag}>`, 'g'))?.length,
    ]);
});

test('filters: conditions, percentiles and top, by language', async () => {
  const all = Array.from({ length: rows }, (_, i) => i),
    cosine = table['cosine'] as number[],
    language = table['language'] as string[];
  const keys = (list: number[]): string[] => list.map((i) => table['key']![i] as string);
  const chosen = async (options: Parameters<typeof chooseRows>[1]): Promise<string[]> =>
    (await chooseRows(scored, options)).kept.map(({ key }) => key);
  const middle = cosine.slice().sort((a, b) => a - b)[20]!;
  expect(await chosen({ where: [`cosine>=${middle}`] })).toEqual(
    keys(all.filter((i) => cosine[i]! >= middle)),
  );
  expect(await chosen({ where: [`cosine < ${middle}`, 'language = de'] })).toEqual(
    keys(all.filter((i) => cosine[i]! < middle && language[i] === 'de')),
  );
  expect(await chosen({ where: ['caption~photo'] })).toEqual(
    keys(all.filter((i) => String(table['caption']![i]).includes('photo'))),
  );
  expect(await chosen({ unique: true })).toEqual(keys(all.filter((i) => i !== 25 && i !== 26)));
  expect(await chosen({ unique: true, where: ['shard=b.tar'] })).toEqual(
    keys(all.filter((i) => i >= 20 && i !== 26)),
  );
  const top = (list: number[], by: ArrayLike<unknown>, k: number): number[] =>
    list
      .slice()
      .sort((a, b) => Number(by[b]) - Number(by[a]) || a - b)
      .slice(0, k);
  expect(await chosen({ top: 7, by: 'loss' })).toEqual(
    keys(top(all, table['loss']!, 7).sort((a, b) => a - b)),
  );
  expect(await chosen({ percentile: 30 })).toEqual(
    keys(top(all, cosine, 40 - Math.ceil(0.3 * 39)).sort((a, b) => a - b)),
  );
  const each = ['de', 'en']
    .flatMap((tag) =>
      top(
        all.filter((i) => language[i] === tag),
        cosine,
        3,
      ),
    )
    .sort((a, b) => a - b);
  expect(await chosen({ top: 3, perLanguage: true })).toEqual(keys(each));
  expect(await chosen({ top: 3, by: 'learnability' })).toEqual([]);
  // Rows 25 and 26 have two flags each, all the others are small.
  expect(await chosen({ where: ['flags=exact-duplicate'] })).toEqual(keys([25]));
  expect(await chosen({ where: ['flags != exact-duplicate', 'flags!=near-duplicate'] })).toEqual(
    keys(all.filter((i) => i !== 25 && i !== 26)),
  );
  expect(await chosen({ where: ['flags='] })).toEqual([]);
  expect(await chosen({ where: ['flags!='] })).toHaveLength(rows);
  for (const bad of [
    { where: ['cosin>1'] },
    { where: ['cosine>x'] },
    { where: ['cosine'] },
    { where: ['flags~leakd'] },
    { where: ['flags=leakd'] },
    { where: ['flags>=leaked'] },
    { where: ['flags=small-image,leaked'] },
    { where: ['width~1'] },
    { by: 'caption', top: 1 },
    { top: 0 },
    { percentile: 101 },
  ])
    expect([bad, (await errorOf(() => chooseRows(scored, bad))).code]).toEqual([bad, 'ERR_CONFIG']);
  expect((await errorOf(() => chooseRows(folder, {}))).code).toBe('ERR_DATA');
});

/** Keys that a loader draws in two epochs. */
async function drawn(spec: SourceSpec): Promise<Set<string>> {
  const { data } = checkTrainConfig({
    out: at('run'),
    model: { variant: 'test' },
    data: { source: spec },
    batch: 4,
    total: 10,
  });
  const source = await openSource(data.source as SourceSpec),
    keys = new Set<string>();
  const loader = new DataLoader(source, {
    batchSize: 4,
    seed: 1,
    size: 16,
    workers: 0,
    tokenizer: null,
  });
  try {
    for (let b = 0; b < 2 * Math.floor(source.length / 4); b++)
      for (const key of (await loader.next()).keys) keys.add(key);
  } finally {
    await loader.close();
  }
  return keys;
}

test('a key list is trained on directly: tars, a folder, manifests of both kinds', async () => {
  const chosen = await chooseRows(scored, { top: 12 });
  await writeKeys(at('keys.txt'), chosen);
  expect((await errorOf(() => writeKeys(at('keys.parquet'), chosen))).code).toBe('ERR_CONFIG');
  expect(await drawn({ type: 'webdataset', tars, keys: at('keys.txt') })).toEqual(
    new Set(chosen.kept.map(({ key }) => key)),
  );

  mkdirSync(at('pictures', 'deep'), { recursive: true });
  const names = Array.from({ length: 12 }, (_, i) => (i % 2 ? `deep/${i}.png` : `${i}.png`));
  for (const [i, name] of names.entries()) {
    writeFileSync(at('pictures', name), await picture(i, 32));
    writeFileSync(at('pictures', name.replace('.png', '.txt')), WORDS[i % WORDS.length]!);
  }
  writeFileSync(
    at('list.jsonl'),
    names
      .map(
        (name, i) =>
          `${JSON.stringify({ image: `pictures/${name}`, caption: WORDS[i % WORDS.length], lang: 'fr' })}\n`,
      )
      .join(''),
  );
  await writeTable(at('list.parquet'), { image: 'string', caption: 'string', language: 'string' }, [
    {
      image: names.map((name) => `pictures/${name}`),
      caption: names.map((_, i) => WORDS[i % WORDS.length]!),
      language: names.map(() => 'fr'),
    },
  ]);
  const specs = {
    pictures: { type: 'folder', path: at('pictures') },
    'list.jsonl': { type: 'manifest', path: at('list.jsonl') },
    'list.parquet': { type: 'manifest', path: at('list.parquet') },
  } as const;
  for (const [name, spec] of Object.entries(specs)) {
    const out = at(`scored-${name}`),
      tarred = at(`tars-${name}`);
    await scoreCollection(await scoreUnits([spec.path]), out, { learner });
    await mergeScores(out);
    const some = await chooseRows(out, { top: 8 });
    await writeKeys(at('some.txt'), some);
    expect(some.kept[0]!.shard).toBe(name);
    expect(await drawn({ ...spec, keys: at('some.txt') })).toEqual(
      new Set(some.kept.map(({ key }) => key)),
    );
    expect(await writeTars(out, tarred, some)).toBe(8);
    const fresh = await openSource({ type: 'webdataset', tars: join(tarred, `${name}.00000.tar`) });
    expect(fresh.samples.map((s) => `${s.key}.png`)).toEqual(some.kept.map(({ key }) => key));
    expect([...fresh.languages.keys()]).toEqual([name === 'pictures' ? 'en' : 'fr']);
  }
  writeFileSync(at('others.txt'), 'a.tar\tnone\n');
  const error = await errorOf(() =>
    openSource({ type: 'webdataset', tars, keys: at('others.txt') }),
  );
  expect([error.code, error.message.includes('none of the 1 keys')]).toEqual(['ERR_DATA', true]);
});

test('files of one stem become samples of their own in new tars', async () => {
  mkdirSync(at('stems'));
  const names = ['x.jpg', 'x.png', 'a.b.png', 'a_b.png'];
  for (const [i, name] of names.entries()) {
    writeFileSync(at('stems', name), await picture(i, 32));
    writeFileSync(at('stems', name.replace(/\.\w+$/, '.txt')), WORDS[0]!);
  }
  await scoreCollection(await scoreUnits([at('stems')]), at('stems-scored'), { learner });
  await mergeScores(at('stems-scored'));
  expect(
    await writeTars(at('stems-scored'), at('stems-tars'), await chooseRows(at('stems-scored'), {})),
  ).toBe(4);
  const fresh = await openSource({ type: 'webdataset', tars: at('stems-tars', 'stems.00000.tar') });
  expect([fresh.length, fresh.skips.total]).toEqual([4, 0]);
  const reader = new FileReader(),
    bytes = (s: (typeof fresh.samples)[number]): string => reader.read(s.image).toString('latin1');
  expect(new Set(fresh.samples.map(bytes))).toEqual(
    new Set(names.map((name) => readFileSync(at('stems', name), 'latin1'))),
  );
  reader.close();
});

test('new tars have all members of the chosen samples, byte for byte', async () => {
  const chosen = await chooseRows(scored, { where: ['language=de'] });
  expect(await writeTars(scored, at('new'), chosen)).toBe(10);
  expect([existsSync(at('new', 'a.tar')), existsSync(at('new', 'b.tar'))]).toEqual([true, true]);
  const old = await openSource({ type: 'webdataset', tars }),
    fresh = await openSource({
      type: 'webdataset',
      tars: [at('new', 'a.tar'), at('new', 'b.tar')],
    });
  const reader = new FileReader(),
    byKey = new Map(old.samples.map((s) => [s.key, s]));
  for (const sample of fresh.samples) {
    expect(reader.read(sample.image).equals(reader.read(byKey.get(sample.key)!.image))).toBe(true);
    expect(readCaptions(reader, sample)).toEqual(readCaptions(reader, byKey.get(sample.key)!));
  }
  reader.close();
  expect(fresh.samples.map((s) => s.key)).toEqual(chosen.kept.map(({ key }) => key));
  expect(readFileSync(at('new', 'a.tar'), 'latin1')).toContain('0/4.cls');
  copyFileSync(at('b.tar'), at('kept.tar'));
  await makeSmaller();
  expect((await errorOf(() => writeTars(scored, at('newer'), chosen))).code).toBe('ERR_DATA');
  copyFileSync(at('kept.tar'), at('b.tar'));
});

/** b.tar without its samples. */
async function makeSmaller(): Promise<void> {
  const writer = new TarWriter(at('b.tar'));
  writer.add('1/1.png', await patterned(1));
  writer.finish();
}
