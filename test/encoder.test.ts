/** The encoder: inputs, outputs, order, back-pressure, abort, repeatability. Values against the plain model calls. */

import { writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import { loadModel } from '../lib/checkpoints/load.js';
import { tokenizerOf } from '../lib/checkpoints/tokenizer.js';
import { type Encoder, load } from '../lib/encoder/encoder.js';
import { meanRows } from '../lib/encoder/scores.js';
import type { ImageInput } from '../lib/image/input.js';
import { naflexImage, packNaflex } from '../lib/image/naflex.js';
import { embedImages, embedTexts } from '../lib/inference/embed.js';
import { resizeImage } from '../lib/native.js';
import { noGrad } from '../lib/tape.js';
import { liveCount, scope, synchronize } from '../lib/tensor.js';
import { outputWithThreads } from './child.js';
import { errorOf, picture } from './data/support.js';
import { smallCheckpoint, temporaryFolder, WORDS } from './encoder_support.js';

let folder: string, model: Encoder;
/** oneDNN was held to a smaller instruction set, as these tests are also run: it then refuses bf16. */
const restricted =
  process.env['DNNL_MAX_CPU_ISA'] !== undefined || process.env['ONEDNN_MAX_CPU_ISA'] !== undefined;
const pixels = (i: number, width = 40, height = 24) => ({
  data: Uint8Array.from(
    { length: width * height * 3 },
    (_, k) => (k * 31 + i * 97 + (k >> 5)) & 255,
  ),
  width,
  height,
  channels: 3 as const,
});

beforeAll(async () => {
  folder = await smallCheckpoint();
  model = await load(folder);
});
afterAll(async () => {
  model.dispose();
  await synchronize();
  expect(liveCount()).toBe(0);
});

test('embeddings are those of the model on the resized pixels and the padded ids', async () => {
  const images = [0, 1, 2].map((i) => pixels(i));
  const got = await model.encodeImages(images),
    texts = await model.encodeTexts(WORDS);
  const plain = await loadModel(folder),
    S = model.imageSize!;
  const all = Uint8Array.from(
    images.flatMap((p) => [...resizeImage(p.data, p.height, p.width, 3, S, S)]),
  );
  const want = await embedImages(plain.model, all, 3),
    wantTexts = await embedTexts(
      plain.model,
      await (await tokenizerOf(plain)).encodeBatch(WORDS),
      WORDS.length,
    );
  plain.model.dispose();
  got.data.forEach((v, i) => expect(Math.abs(v - want[i]!)).toBeLessThan(1e-6));
  texts.data.forEach((v, i) => expect(Math.abs(v - wantTexts[i]!)).toBeLessThan(1e-6));
  expect([got.rows, got.dim, texts.rows]).toEqual([3, model.dim, WORDS.length]);
  expect(Math.hypot(...got.row(1))).toBeCloseTo(1, 6);
});

test('a path, a file URL, an http URL, a Buffer and raw pixels give the same bits', async () => {
  const png = await picture(3, 37),
    at = join(temporaryFolder(), 'a picture.png');
  writeFileSync(at, png);
  const { data, info } = await sharp(png).ensureAlpha().raw().toBuffer({ resolveWithObject: true });
  const server = createServer((q, r) =>
    q.url === '/a.png' ? r.end(png) : r.writeHead(404).end(),
  ).listen(0);
  try {
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const rows = await model.encodeImages([
      at,
      pathToFileURL(at),
      `${url}/a.png`,
      new URL(`${url}/a.png`),
      png,
      { data, width: info.width, height: info.height, channels: 4 },
    ]);
    for (let i = 1; i < 6; i++) expect(rows.row(i)).toEqual(rows.row(0));
    const missing = await errorOf(() => model.encodeImages([png, `${url}/b.png`]));
    expect([missing.code, missing.message.includes('404')]).toEqual(['ERR_DATA', true]);
  } finally {
    server.close();
  }
  for (const bad of [
    join(folder, 'nothing.jpg'),
    Buffer.from('no image'),
    { data: new Uint8Array(5), width: 2, height: 2, channels: 3 as const },
  ])
    expect((await errorOf(() => model.encodeImages(bad))).code).toBe('ERR_DATA');
});

test('the same input gives the same bits in any batch, and with any number of threads', async () => {
  const images = Array.from({ length: 19 }, (_, i) => pixels(i)),
    texts = [...WORDS, ...WORDS, 'ein Hund'];
  for (const dtype of restricted ? (['f32'] as const) : (['f32', 'bf16'] as const)) {
    using other = await load(folder, { dtype });
    const whole = await other.encodeImages(images),
      wholeTexts = await other.encodeTexts(texts);
    for (const batchSize of [1, 3, 19]) {
      expect((await other.encodeImages(images, { batchSize })).data).toEqual(whole.data);
      expect((await other.encodeTexts(texts, { batchSize })).data).toEqual(wholeTexts.data);
    }
    expect((await other.encodeImages(images[7]!)).data).toEqual(whole.row(7));
  }
  const code = `
    import { createHash } from 'node:crypto';
    import { load } from 'lib/encoder/encoder.js';
    const model = await load(${JSON.stringify(folder)}), hash = createHash('sha256');
    const data = Uint8Array.from({ length: 2880 }, (_, k) => (k * 31 + (k >> 5)) & 255);
    hash.update((await model.encodeImages(Array(5).fill({ data, width: 40, height: 24, channels: 3 }))).data);
    hash.update((await model.encodeTexts(${JSON.stringify(WORDS)})).data);
    console.log(hash.digest('hex'));
    process.exit(0);`;
  expect(outputWithThreads(3, code)).toBe(outputWithThreads(1, code));
});

test('products are batch-invariant at the sizes of the released models', () => {
  const code = `
    import { createHash } from 'node:crypto';
    import { linear } from 'lib/ops/linear.js';
    import { noGrad } from 'lib/tape.js';
    import { batchInvariant, scope, tensor } from 'lib/tensor.js';
    const hash = createHash('sha256');
    let x = 1;
    const random = () => { x ^= x << 13; x >>>= 0; x ^= x >>> 17; x ^= x << 5; x >>>= 0; return x / 2 ** 31 - 1; };
    for (const half of ${JSON.stringify(restricted ? [false] : [false, true])}) for (const [N, K] of [[96, 32], [768, 768], [520, 4304]]) {
      const most = 600, convert = (n) => { const a = Float32Array.from({ length: n }, random); return half ? new Uint16Array(a.buffer).filter((_, i) => i % 2) : a; };
      const rows = convert(most * K), weight = convert(N * K);
      const run = async (from, M) => {
        const y = scope(() => noGrad(() => batchInvariant('cpu', () => linear(tensor(rows.slice(from * K, (from + M) * K), [M, K]), tensor(weight, [N, K]), null))));
        const data = await y.read();
        y.dispose();
        return data;
      };
      const whole = await run(0, most);
      hash.update(whole);
      if (!half) for (const [m, n] of [[0, 0], [301, 17], [599, N - 1]]) {
        let sum = 0;
        for (let k = 0; k < K; k++) sum += rows[m * K + k] * weight[n * K + k];
        if (!(Math.abs(whole[m * N + n] - sum) < 1e-6 * K)) console.log('element', m, n, 'of', N, K, 'is', whole[m * N + n], 'not', sum);
      }
      for (const [from, M] of [[0, 1], [5, 7], [100, 15], [3, 16], [9, 20], [40, 25], [250, 257], [88, 512]])
        if (!Buffer.from((await run(from, M)).buffer).equals(Buffer.from(whole.slice(from * N, (from + M) * N).buffer))) console.log('rows', from, M, 'of', N, K, half, 'differ');
    }
    console.log(hash.digest('hex'));
    process.exit(0);`;
  const one = outputWithThreads(1, code);
  expect(one).toMatch(/^[0-9a-f]{64}\n$/);
  expect(outputWithThreads(2, code)).toBe(one);
});

test('f16 and int8 rows, text for pgvector', async () => {
  const images = [pixels(1), pixels(2)];
  const f32: Float32Array = (await model.encodeImages(images)).data;
  const f16 = await model.encodeImages(images, { output: 'f16' }),
    int8 = await model.encodeImages(images, { output: 'int8' });
  expect([f16.data.constructor.name, int8.data.constructor.name]).toEqual([
    'Uint16Array',
    'Int8Array',
  ]);
  f16
    .toFloat32()
    .forEach((v, i) =>
      expect(Math.abs(v - f32[i]!)).toBeLessThanOrEqual(2 ** -11 * Math.abs(f32[i]!) + 2 ** -25),
    );
  int8
    .toFloat32()
    .forEach((v, i) =>
      expect(Math.abs(v - f32[i]!)).toBeLessThanOrEqual(
        int8.scales![i < model.dim ? 0 : 1]! * 0.501,
      ),
    );
  expect(Math.max(...int8.row(0).map(Math.abs))).toBe(127);
  expect(JSON.parse((await model.encodeImages(images)).toText(1))).toEqual([
    ...f32.subarray(model.dim),
  ]);
  const rows = [];
  for await (const row of model.streamImages(images, { output: 'int8' })) rows.push(row);
  expect(rows).toEqual([int8.row(0), int8.row(1)]);
});

test('streams keep order, hold back their source, and close it when the consumer stops', async () => {
  let taken = 0,
    given = 0,
    closed = false,
    most = 0;
  async function* source() {
    try {
      for (let i = 0; i < 60; i++) {
        taken++;
        if (i % 7 === 0) await new Promise((r) => setTimeout(r, 1));
        yield pixels(i);
      }
    } finally {
      closed = true;
    }
  }
  const want = await model.encodeImages(Array.from({ length: 30 }, (_, i) => pixels(i)));
  const progress: number[] = [];
  for await (const row of model.streamImages(source(), {
    batchSize: 3,
    onProgress: (done, total) => {
      expect(total).toBeUndefined();
      progress.push(done);
    },
  })) {
    most = Math.max(most, taken - given);
    expect(row).toEqual(want.row(given));
    if (++given === 30) break;
  }
  // Two batches ahead, one running, one being given out.
  expect(most).toBeLessThanOrEqual(12 + 1);
  expect([closed, progress.slice(0, 3)]).toEqual([true, [3, 6, 9]]);
  const error = await errorOf(async () => {
    for await (const row of model.streamTexts(['a cat', 7 as unknown as string])) void row;
  });
  expect(error.code).toBe('ERR_DATA');
});

test('an abort rejects at once, during load and while encoding, and the model stays usable', async () => {
  const before = await model.encodeImages(pixels(4));
  const controller = new AbortController();
  const many = Array<ImageInput>(20000).fill(pixels(0, 200, 200));
  const running = model.encodeImages(many, { signal: controller.signal });
  await new Promise((r) => setTimeout(r, 30));
  controller.abort(new Error('enough'));
  await expect(running).rejects.toThrow('enough');
  await expect(model.encodeTexts('a cat', { signal: controller.signal })).rejects.toThrow('enough');
  expect((await model.encodeImages(pixels(4))).data).toEqual(before.data);
  const loading = new AbortController(),
    opening = load(folder, { signal: loading.signal });
  loading.abort(new Error('no more'));
  await expect(opening).rejects.toThrow('no more');
  const kept = new AbortController();
  using other = await load(folder, { signal: kept.signal });
  kept.abort();
  expect((await other.encodeImages(pixels(4))).data).toEqual(before.data);
});

test('similarity and zero-shot: cosine, logit and sigmoid probability', async () => {
  const images = [pixels(1), pixels(2)],
    labels = ['cat', 'dog', 'Apple'];
  const templates = ['a photo of {label}', '{label}'];
  const ranked = await model.zeroShot(images, labels, { templates });
  const texts = await model.encodeTexts(
    labels.flatMap((l) => templates.map((t) => t.replace('{label}', l))),
  );
  const mean = meanRows(texts.toFloat32(), model.dim, 2),
    rows = (await model.encodeImages(images)).toFloat32();
  for (const [i, list] of ranked.entries()) {
    expect(list.map((l) => l.index).sort()).toEqual([0, 1, 2]);
    for (const { label, index, cosine, logit, probability } of list) {
      let dot = 0;
      for (let d = 0; d < model.dim; d++)
        dot += rows[i * model.dim + d]! * mean[index * model.dim + d]!;
      expect(label).toBe(labels[index]);
      expect(cosine).toBeCloseTo(dot, 5);
      expect(logit).toBeCloseTo(10 * dot - 2, 4);
      expect(probability).toBeCloseTo(1 / (1 + Math.exp(-logit)), 6);
    }
    expect(list[0]!.probability).toBeGreaterThanOrEqual(list[2]!.probability);
  }
  expect(
    (await errorOf(() => model.zeroShot(images, labels, { language: 'xx' }))).message,
  ).toContain('en');
  expect((await model.zeroShot(images[0]!, ['猫'], { language: 'ja-JP' }))[0]!.length).toBe(1);
});

test('dense features lie on the grid of patches', async () => {
  const features = await model.tokens([pixels(1), pixels(2), pixels(1)], { batchSize: 2 });
  expect(features.map(({ data, rows, columns, dim }) => [rows, columns, dim, data.length])).toEqual(
    Array(3).fill([4, 4, 32, 16 * 32]),
  );
  expect(features[0]!.data).toEqual(features[2]!.data);
  expect(features[0]!.data).not.toEqual(features[1]!.data);
  using half = await load(folder, { dtype: 'bf16' });
  const [rough] = await half.tokens(pixels(1));
  rough!.data.forEach((v, i) => expect(Math.abs(v - features[0]!.data[i]!)).toBeLessThan(0.1));
});

test('NaFlex: aspect ratios are kept, and the bits do not depend on the batch', async () => {
  using flexible = await load(await smallCheckpoint({ naflex: true }), { maxPatches: 24 });
  const images = [
    pixels(1, 60, 20),
    pixels(2, 9, 90),
    pixels(3, 40, 40),
    pixels(4, 1, 1),
    pixels(5, 200, 33),
  ];
  const whole = await flexible.encodeImages(images);
  for (const batchSize of [1, 2])
    expect((await flexible.encodeImages(images, { batchSize })).data).toEqual(whole.data);
  const batch = packNaflex(images.map((image) => naflexImage(image, 8, 24)));
  using plain = (await loadModel(flexible.source)).model;
  const rows = scope(() => noGrad(() => plain.encodeNaflex(batch)));
  const want = await rows.read();
  rows.dispose();
  whole.data.forEach((v, i) => expect(Math.abs(v - want[i]!)).toBeLessThan(1e-6));
  const features = await flexible.tokens(images);
  features.forEach(({ rows, columns, dim, data }, i) =>
    expect([rows, columns, data.length]).toEqual([
      batch.shapes[2 * i],
      batch.shapes[2 * i + 1],
      rows * columns * dim,
    ]),
  );
  const bad: number[] = [];
  const some = await flexible.encodeImages([images[0]!, Buffer.from('no'), images[2]!], {
    onBadImage: (_, i) => bad.push(i),
  });
  expect([some.row(0), some.row(2), bad, some.row(1).every(Number.isNaN)]).toEqual([
    whole.row(0),
    whole.row(2),
    [1],
    true,
  ]);
  expect((await errorOf(() => load(folder, { maxPatches: 9 }))).code).toBe('ERR_CONFIG');
  expect((await errorOf(() => load(flexible.source, { processor: 'aa-f32' }))).code).toBe(
    'ERR_CONFIG',
  );
});

test('f32 pixels: equal to uint8 where nothing is resized, and close elsewhere', async () => {
  using exact = await load(folder, { processor: 'aa-f32' });
  const S = model.imageSize!,
    same = pixels(3, S, S),
    larger = pixels(3, 50, 61);
  expect((await exact.encodeImages(same)).data).toEqual((await model.encodeImages(same)).data);
  const [a, b] = [await exact.encodeImages(larger), await model.encodeImages(larger)];
  expect(a.data).not.toEqual(b.data);
  a.data.forEach((v, i) => expect(Math.abs(v - b.data[i]!)).toBeLessThan(0.02));
});

test('misuse is an error that says what to do', async () => {
  const option = (o: object) => errorOf(() => model.encodeTexts('a', o));
  expect((await option({ attentionMask: [1] })).message).toContain('no mask to pass');
  expect((await option({ batchsize: 3 })).message).toContain('batchSize');
  expect((await option({ batchSize: 0 })).code).toBe('ERR_CONFIG');
  expect((await option({ output: 'f64' })).code).toBe('ERR_CONFIG');
  expect((await errorOf(() => load(folder, { dtype: 'f16' as 'f32' }))).code).toBe('ERR_CONFIG');
  expect((await errorOf(() => load(join(folder, 'nowhere')))).code).toBe('ERR_CHECKPOINT');
  const gone = await load(folder);
  gone.dispose();
  gone.dispose();
  expect((await errorOf(() => gone.encodeTexts('a'))).code).toBe('ERR_DISPOSED');
  expect((await model.encodeImages([])).rows).toBe(0);
});

test('arguments of the wrong kind are an error of this package that says what to pass', async () => {
  const image = pixels(0),
    rows = await model.encodeImages(image),
    png = await picture(1);
  using narrow = await load(folder, { maxPixels: 100 });
  const wrong: [call: () => unknown, code: string, says: string][] = [
    [() => load(undefined as never), 'ERR_CHECKPOINT', 'but this is undefined'],
    [() => load(''), 'ERR_CHECKPOINT', 'an empty one'],
    [() => load(folder, null as never), 'ERR_CONFIG', 'options must be an object'],
    [() => load(folder, 'cpu' as never), 'ERR_CONFIG', 'options must be an object'],
    [
      () => load(folder, { alpha: 'x' as never }),
      'ERR_CONFIG',
      'alpha must be drop or white but is "x"',
    ],
    [
      () => load(folder, { lowercase: 'x' as never }),
      'ERR_CONFIG',
      'lowercase must be ascii, unicode or none',
    ],
    [() => load(folder, { maxPixels: -1 }), 'ERR_CONFIG', 'maxPixels must be a positive integer'],
    [
      () => load(folder, { maxPatches: 'x' as never }),
      'ERR_CONFIG',
      'maxPatches must be an integer',
    ],
    [() => load(folder, { signal: 3 as never }), 'ERR_CONFIG', 'signal must be an AbortSignal'],
    [() => model.encodeImages(new Float32Array(12) as never), 'ERR_DATA', 'but is Float32Array'],
    [
      () => model.encodeImages('file://elsewhere/x.png'),
      'ERR_DATA',
      'names no file of this machine',
    ],
    [() => model.encodeImages(''), 'ERR_DATA', 'an empty path'],
    [() => narrow.encodeImages(png), 'ERR_DATA', 'pixel limit of 100; raise maxPixels'],
    [
      () => model.encodeImages(image, { language: 'de' } as never),
      'ERR_CONFIG',
      'unknown option "language"',
    ],
    [
      () => model.encodeImages(image, { onBadImage: true } as never),
      'ERR_CONFIG',
      'onBadImage must be a function',
    ],
    [
      () => model.encodeTexts(3 as never),
      'ERR_CONFIG',
      'texts must be an array of strings but are number',
    ],
    [() => model.encodeTexts(['a', 3] as never), 'ERR_CONFIG', 'number 1 is number'],
    [
      () => model.streamImages('cat.jpg').next(),
      'ERR_CONFIG',
      'source must be an array, an iterable',
    ],
    [() => model.streamTexts(undefined as never).next(), 'ERR_CONFIG', 'but is undefined'],
    [() => model.similarity(rows, rows.data as never), 'ERR_CONFIG', 'one is Float32Array'],
    [
      () => model.zeroShot(image, 'cat' as never),
      'ERR_CONFIG',
      'labels must be an array of strings',
    ],
    [
      () => model.zeroShot(image, [null] as never),
      'ERR_CONFIG',
      'labels must be strings but number 0 is null',
    ],
    [
      () => model.zeroShot(image, ['a'], { templates: 'x' } as never),
      'ERR_CONFIG',
      'templates must be an array',
    ],
    [
      () => model.zeroShot(image, ['a'], { language: 3 } as never),
      'ERR_CONFIG',
      'language must be a tag',
    ],
    [
      () => model.zeroShot(image, ['a'], { language: 'constructor' }),
      'ERR_CONFIG',
      'no prompt templates for language "constructor"',
    ],
    [
      () => model.zeroShot(image, ['a'], { mask: 3 } as never),
      'ERR_CONFIG',
      'zeroShot: unknown option "mask"',
    ],
    [
      () => model.locate(image, undefined as never),
      'ERR_CONFIG',
      'phrases must be an array of strings',
    ],
    [() => rows.toText(1), 'ERR_CONFIG', 'row must be in [0, 1) but is 1'],
    [() => rows.slice(0, 2), 'ERR_CONFIG', 'slice: from and to must lie in [0, 1]'],
  ];
  for (const [call, code, says] of wrong)
    expect(await errorOf(call)).toMatchObject({ code, message: expect.stringContaining(says) });
});
