/** Scoring a collection: what the tables say, and that neither a kill nor a division of the work changes a byte. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import { pairLosses, type ScoreOptions, scoreCollection } from '../../lib/curation/score.js';
import { openUnit, SCORE_COLUMNS } from '../../lib/curation/score_table.js';
import { scoreUnits } from '../../lib/curation/score_units.js';
import { type Encoder, load } from '../../lib/encoder/encoder.js';
import { type Columns, writeTable } from '../../lib/io/parquet.js';
import { TarWriter } from '../../lib/io/tar_writer.js';
import { Random } from '../../lib/random.js';
import { liveCount } from '../../lib/tensor.js';
import { errorOf, makeTar, picture } from '../data/support.js';
import { smallCheckpoint, temporaryFolder, WORDS } from '../encoder_support.js';

const main = fileURLToPath(new URL('../../lib/cli/main.js', import.meta.url));
const folder = temporaryFolder(),
  at = (...parts: string[]): string => join(folder, ...parts);
const tars = Array.from({ length: 5 }, (_, i) => at(`part-${i}.tar`));
let model: string, learner: Encoder, reference: Encoder;

beforeAll(async () => {
  model = await smallCheckpoint();
  learner = await load(model);
  reference = await load(await smallCheckpoint({ initLogitBias: -4 }));
  for (const [t, tar] of tars.entries()) {
    const writer = new TarWriter(tar);
    for (let i = 0; i < 30 + t; i++) {
      writer.add(`${t}-${i}.png`, await picture(100 * t + i, 40));
      writer.add(
        `${t}-${i}.json`,
        JSON.stringify({ captions: { en: WORDS[(t + i) % 3], de: WORDS[3] } }),
      );
    }
    writer.finish();
  }
});
afterAll(() => {
  learner.dispose();
  reference.dispose();
  expect(liveCount()).toBe(0);
});

async function score(specs: string[], out: string, options: Partial<ScoreOptions> = {}) {
  return scoreCollection(await scoreUnits(specs), at(out), { learner, ...options });
}

/** All rows of a unit, and its notes. */
async function rowsOf(
  out: string,
  unit: string,
): Promise<{ rows: Columns; n: number; skipped: readonly { reason: string; example: string }[] }> {
  const table = await openUnit(at(out), unit);
  return {
    rows: await table.read(Object.keys(SCORE_COLUMNS)),
    n: table.rows,
    skipped: table.notes.skipped,
  };
}

/** Digest of every file of a folder, hidden ones included; but a draft of score.json may be another process's. */
function digests(out: string): Record<string, string> {
  const names = readdirSync(at(out))
    .filter((name) => !name.startsWith('.score.json'))
    .sort();
  return Object.fromEntries(
    names.map((name) => [
      name,
      createHash('sha256')
        .update(readFileSync(at(out, name)))
        .digest('hex'),
    ]),
  );
}

/** The shares of the docstring in double precision. */
function expectedLosses(
  t: number,
  b: number,
  images: Float32Array,
  texts: Float32Array,
  n: number,
  block: number,
): number[] {
  const E = images.length / n,
    groups = Math.ceil(n / block),
    out: number[] = [];
  const softplus = (x: number): number => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
  const z = (i: number, j: number): number =>
    t *
      Array.from({ length: E }, (_, d) => images[i * E + d]! * texts[j * E + d]!).reduce(
        (a, c) => a + c,
      ) +
    b;
  for (let g = 0; g < groups; g++) {
    const from = Math.floor((g * n) / groups),
      to = Math.floor(((g + 1) * n) / groups);
    for (let i = from; i < to; i++) {
      let sum = 0;
      for (let j = from; j < to; j++)
        if (j !== i) sum += (softplus(z(i, j)) + softplus(z(j, i))) / 2;
      out.push(softplus(-z(i, i)) + (to - from > 1 ? ((block - 1) * sum) / (to - from - 1) : 0));
    }
  }
  return out;
}

test('a table says what the encoder says, and learnability is the difference of two losses', async () => {
  const { rows: count } = await score([tars[1]!], 'one', { reference, block: 12 });
  const { rows, n, skipped } = await rowsOf('one', 'part-1.tar');
  expect([count, n, skipped]).toEqual([31, 31, []]);
  const pictures = await Promise.all(Array.from({ length: n }, (_, i) => picture(100 + i, 40))),
    captions = Array.from(rows['caption'] as string[]);
  expect(captions.slice(0, 3)).toEqual([WORDS[1], WORDS[2], WORDS[0]]);
  const embed = async (e: Encoder) =>
    [
      (await e.encodeImages(pictures)).data as Float32Array,
      (await e.encodeTexts(captions)).data as Float32Array,
    ] as const;
  const [images, texts] = await embed(learner),
    [otherImages, otherTexts] = await embed(reference),
    E = learner.dim;
  const losses = expectedLosses(learner.scale, learner.bias, images, texts, n, 12);
  const others = expectedLosses(reference.scale, reference.bias, otherImages, otherTexts, n, 12);
  for (let i = 0; i < n; i++) {
    let cosine = 0;
    for (let d = 0; d < E; d++) cosine += images[i * E + d]! * texts[i * E + d]!;
    expect(rows['cosine']![i]).toBe(Math.fround(cosine));
    expect(rows['probability']![i]).toBeCloseTo(
      1 / (1 + Math.exp(-(learner.scale * cosine + learner.bias))),
      6,
    );
    expect(rows['loss']![i]).toBeCloseTo(losses[i]!, 3);
    expect(rows['learnability']![i]).toBeCloseTo(losses[i]! - others[i]!, 3);
    expect([rows['key']![i], rows['shard']![i], rows['width']![i], rows['height']![i]]).toEqual([
      `1-${i}`,
      'part-1.tar',
      40,
      40,
    ]);
    expect([rows['language']![i], rows['caption_length']![i], rows['flags']![i]]).toEqual([
      'en',
      captions[i]!.length,
      'small-image',
    ]);
    expect(rows['sha256']![i]).toBe(createHash('sha256').update(pictures[i]!).digest('hex'));
  }
});

test('a NaFlex model scores with whole images', async () => {
  using flexible = await load(await smallCheckpoint({ naflex: true }), { maxPatches: 24 });
  await scoreCollection(await scoreUnits([tars[2]!]), at('flexible'), { learner: flexible });
  const { rows, n } = await rowsOf('flexible', 'part-2.tar'),
    pictures = await Promise.all(Array.from({ length: n }, (_, i) => picture(200 + i, 40)));
  const { cosine } = await flexible.similarity(
    await flexible.encodeImages(pictures),
    await flexible.encodeTexts(Array.from(rows['caption'] as string[])),
  );
  for (let i = 0; i < n; i++) expect(rows['cosine']![i]).toBeCloseTo(cosine[i * n + i]!, 5);
});

test('the shares of a whole block add up to its sigmoid loss', async () => {
  const texts = (await learner.encodeTexts(WORDS)).data as Float32Array,
    images = (await learner.encodeImages(await Promise.all(WORDS.map((_, i) => picture(i)))))
      .data as Float32Array;
  const shares = await pairLosses(learner, images, texts, WORDS.length, WORDS.length);
  const { logits } = await learner.similarity(
    await learner.encodeImages(await Promise.all(WORDS.map((_, i) => picture(i)))),
    await learner.encodeTexts(WORDS),
  );
  let whole = 0;
  logits.forEach((z, at) => {
    whole += Math.log1p(Math.exp(at % (WORDS.length + 1) === 0 ? -z : z));
  });
  expect(shares.reduce((a, b) => a + b)).toBeCloseTo(whole, 3);
});

test('the caption of a language, or any', async () => {
  await score([tars[0]!], 'de', { pick: 'de' });
  const { rows } = await rowsOf('de', 'part-0.tar');
  expect([new Set(Array.from(rows['language']!)), rows['caption']![4]]).toEqual([
    new Set(['de']),
    WORDS[3],
  ]);
  await score([tars[0]!], 'any', { pick: 'any' });
  expect(new Set(Array.from((await rowsOf('any', 'part-0.tar')).rows['language']!))).toEqual(
    new Set(['en', 'de']),
  );
});

/** Runs the command and kills it, with no chance to clean up, some milliseconds after it has finished `tables` units. */
async function killedAfter(
  args: string[],
  out: string,
  tables: number,
  milliseconds: number,
): Promise<number | null> {
  const child = spawn(process.execPath, [main, ...args], {
    stdio: 'ignore',
    env: { ...process.env, NODE_OPTIONS: '' },
  });
  const ended = new Promise<number | null>((done) => child.on('exit', (status) => done(status)));
  const count = (): number => {
    try {
      return readdirSync(at(out)).filter((f) => /^part.*parquet$/.test(f)).length;
    } catch {
      return -1;
    }
  };
  while (child.exitCode === null && count() < tables) await sleep(1);
  await sleep(milliseconds);
  child.kill('SIGKILL');
  return ended;
}

test('killed at random moments and run again: the same bytes; so do two processes with half of the work each', async () => {
  await score(tars, 'whole');
  const want = digests('whole'),
    random = new Random(11, 3);
  const args = ['score', '--model', model, ...tars, '--out', at('killed')];
  for (const tables of [0, 2, 4]) await killedAfter(args, 'killed', tables, random.below(40));
  writeFileSync(at('killed', '.part-4.tar.parquet.tmp-1-0'), 'half a tab');
  writeFileSync(at('killed', 'part-4.tar.safetensors'), 'of a unit without a table');
  rmSync(at('killed', 'part-4.tar.parquet'), { force: true });
  const again = await score(tars, 'killed');
  expect([again.rows, again.units, again.resumed >= 4]).toEqual([160, 5, true]);
  expect(digests('killed')).toEqual(want);

  const halves = await Promise.all([
    score(tars, 'halves', { index: 0, count: 2 }),
    score(tars, 'halves', { index: 1, count: 2 }),
  ]);
  expect(halves.map((h) => [h.units, h.rows])).toEqual([
    [3, 96],
    [2, 64],
  ]);
  expect(digests('halves')).toEqual(want);
}, 300_000);

test('bad input is counted by reason, listed, and fatal only above the limit', async () => {
  const bad = (...parts: string[]): string => at('bad', ...parts);
  mkdirSync(bad('pictures'), { recursive: true });
  await makeTar(bad('cut.tar'), 20);
  truncateSync(bad('cut.tar'), 15_000);
  await makeTar(bad('broken.tar'), 8, 8, (i, members) => {
    if (i === 2) members.png = Buffer.from('no picture');
    if (i === 3) members.json = JSON.stringify({ caption: '1234 ★ 56 !' });
    if (i === 4) members.json = JSON.stringify({ captions: { zxx: 'hmm' } });
  });
  await writeTable(bad('columns.parquet'), { url: 'string', size: 'int' }, [
    { url: ['a'], size: [1] },
  ]);
  writeFileSync(bad('no.parquet'), 'this is not parquet');
  for (let i = 0; i < 3; i++) writeFileSync(bad('pictures', `${i}.png`), await picture(i, 240));
  await writeTable(bad('list.parquet'), { image: 'string', text: 'string', lang: 'string' }, [
    {
      image: ['pictures/0.png', 'pictures/9.png', 'pictures/1.png'],
      text: ['a red apple', 'is missing', 'Katze'],
      lang: ['en', 'en', 'de'],
    },
  ]);
  writeFileSync(bad('pictures', '0.txt'), 'a photo of a cat');
  writeFileSync(bad('pictures', '1.txt'), '!');
  for (const [name, says] of [
    ['columns.parquet', 'the columns are url, size'],
    ['no.parquet', 'is not a readable parquet file'],
  ] as const)
    expect((await errorOf(() => score([bad(name)], 'unreadable'))).message).toContain(says);
  const specs = ['cut.tar', 'broken.tar', 'list.parquet', 'pictures'].map((name) => bad(name));
  // How much a tar without its end has lost nobody knows, so that is an error until somebody says that it is none.
  expect((await errorOf(() => score(specs, 'unsaid'))).message).toMatch(
    /cut.tar: truncated at byte 15000.*set maxSkips/,
  );

  const { rows, skips } = await score(specs, 'scored', { maxSkips: 12 });
  const cut = await rowsOf('scored', 'cut.tar'),
    list = await rowsOf('scored', 'list.parquet.00000');
  expect(cut.n).toBeGreaterThan(2);
  expect(cut.skipped.map((s) => s.reason)).toContain('the tar is damaged');
  expect(cut.skipped.find((s) => s.reason === 'the tar is damaged')!.example).toContain(
    'cut.tar: truncated at byte 15000',
  );
  expect([
    Array.from(list.rows['key']!),
    Array.from(list.rows['language']!),
    Array.from(list.rows['flags']!),
  ]).toEqual([
    ['pictures/0.png', 'pictures/1.png'],
    ['en', 'de'],
    ['', 'short-caption'],
  ]);
  expect(rows).toBe(cut.n + 5 + 2 + 1);
  const counts = Object.fromEntries(
    [...skips.byReason].map(([reason, { count }]) => [reason, count]),
  );
  expect(counts).toMatchObject({
    'the tar is damaged': 1,
    'the image cannot be decoded': 1,
    'the caption is in no language': 3,
    'the image is missing': 1,
    'no caption': expect.any(Number),
  });
  expect(skips.byReason.get('the image cannot be decoded')!.examples).toEqual([
    `${bad('broken.tar')}:sample-0002`,
  ]);

  const error = await errorOf(() => score(specs, 'limited', { maxSkips: 3 }));
  expect([error.code, error.message.includes('maxSkips = 3')]).toEqual(['ERR_DATA', true]);
  await score(specs, 'limited', { maxSkips: 12 });
  expect(digests('limited')).toEqual(digests('scored'));
});

test('a folder of scores takes one model and one way of scoring', async () => {
  const code = async (run: () => unknown): Promise<string | undefined> => (await errorOf(run)).code;
  await score([tars[0]!], 'claimed');
  expect(
    await code(() =>
      scoreUnits([tars[0]!]).then((units) =>
        scoreCollection(units, at('claimed'), { learner: reference }),
      ),
    ),
  ).toBe('ERR_CONFIG');
  expect(
    (await errorOf(() => score([tars[0]!], 'claimed', { block: 7, pick: 'any' }))).message,
  ).toContain(
    'claimed has scores that were made otherwise (score.json): --pick was first but is any; --block was 256 but is 7; choose',
  );
  expect(await code(() => score([tars[0]!], 'claimed', { index: 2, count: 2 }))).toBe('ERR_CONFIG');
  expect(await code(() => scoreUnits([at('none.tar')]))).toBe('ERR_DATA');
  expect(await code(() => scoreUnits([model, `${model}/`]))).toBe('ERR_CONFIG');
  await sharp(await picture(1)).toFile(at('alone.png'));
  expect(await code(() => scoreUnits([at('alone.png')]))).toBe('ERR_DATA');
  expect((await score(tars.slice(0, 2), 'claimed')).resumed).toBe(1);
});
