/** Kinds of image input, how many are decoded at once, and a machine that lacks something, which is no bad image. */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import { type Encoder, load } from '../../lib/encoder/encoder.js';
import { DataError, IoError, Siglip2Error } from '../../lib/errors.js';
import { exhausted, isBadFile, wantError } from '../../lib/fs/exhausted.js';
import { fileError } from '../../lib/fs/files.js';
import { decodeInput, type ImageInput, useDecoded } from '../../lib/image/input.js';
import { Lanes, poolThreads } from '../../lib/image/lanes.js';
import { liveCount, synchronize } from '../../lib/tensor.js';
import { outputOf } from '../child.js';
import { smallCheckpoint, temporaryFolder } from '../encoder_support.js';
import { errorOf, picture } from './support.js';

let folder: string, model: Encoder, jpeg: string;
beforeAll(async () => {
  folder = await smallCheckpoint();
  model = await load(folder);
  jpeg = join(temporaryFolder(), 'large.jpg');
  const photo = await sharp({
    create: { width: 4000, height: 3000, channels: 3, background: '#a06030' },
  })
    .jpeg()
    .toBuffer();
  writeFileSync(jpeg, photo);
});
afterAll(async () => {
  model.dispose();
  await synchronize();
  expect(liveCount()).toBe(0);
});

test('encoded bytes in any holder decode to the same pixels', async () => {
  const png = await picture(3, 37),
    buffer = png.buffer.slice(png.byteOffset, png.byteOffset + png.length) as ArrayBuffer;
  const shared = new SharedArrayBuffer(png.length),
    want = await decodeInput(png);
  new Uint8Array(shared).set(png);
  const holders: ImageInput[] = [
    new Uint8Array(buffer),
    buffer,
    shared,
    new Uint8Array(shared),
    new Blob([buffer]),
    new File([new Uint8Array(buffer)], 'a.png'),
    new Response(buffer),
    { bytes: buffer, name: 'a' },
    { bytes: new Blob([buffer]), name: 'a' },
    { bytes: shared, name: 'a' },
  ];
  for (const holder of holders) expect((await decodeInput(holder)).data).toEqual(want.data);
});

test('raw pixels in shared memory or as a canvas gives them, with and without the number of channels', async () => {
  for (const channels of [1, 3, 4] as const) {
    const own = Uint8Array.from({ length: 16 * 12 * channels }, (_, i) => i * 7),
      shared = new Uint8Array(new SharedArrayBuffer(own.length));
    shared.set(own);
    const want = (await model.encodeImages({ data: own, width: 16, height: 12, channels })).data;
    for (const data of [own, shared, new Uint8ClampedArray(own)])
      for (const raw of [
        { data, width: 16, height: 12, channels },
        { data, width: 16, height: 12 },
      ])
        expect((await model.encodeImages(raw)).data).toEqual(want);
  }
});

test.each<[string, unknown, RegExp]>([
  ['floats', new Float32Array(12), /but is Float32Array; give raw pixels as/],
  [
    'raw floats',
    { data: new Float32Array(12), width: 2, height: 2, channels: 3 },
    /values from 0 to 255 but is Float32Array/,
  ],
  [
    'raw signed bytes',
    { data: new Int8Array(12), width: 2, height: 2, channels: 3 },
    /but is Int8Array/,
  ],
  [
    'two channels',
    { data: new Uint8Array(8), width: 2, height: 2 },
    /channels \(1, 3 or 4\) bytes but holds 8/,
  ],
  ['an answer that is an error', new Response('gone', { status: 404 }), /the server answered 404/],
  ['an answer without an image', new Response('<html>'), /cannot decode|is a web page/],
  ['an array', [1, 2], /a Response or raw pixels but is an array/],
  ['nothing', null, /raw pixels but is null/],
  ['a view of words', new DataView(new ArrayBuffer(4)), /but is DataView/],
])('%s as an image: a sentence', async (_, input, words) => {
  const error = await errorOf(() => decodeInput(input as ImageInput));
  expect([error.code, error.message]).toEqual(['ERR_DATA', expect.stringMatching(words)]);
});

test('a body that was read already is named', async () => {
  const used = new Response(new Uint8Array(await picture(1, 9)));
  await used.arrayBuffer();
  expect((await errorOf(() => decodeInput(used))).code).toBe('ERR_DATA');
});

test('every row of a stream owns its memory', async () => {
  const images = [1, 2, 3].map((i) => ({
    data: new Uint8Array(300).fill(60 * i),
    width: 10,
    height: 10,
  }));
  for (const output of ['f32', 'f16', 'int8'] as const) {
    const want = await model.encodeImages(images, { output });
    let i = 0;
    for await (const row of model.streamImages(images, { output })) {
      expect([row.byteOffset, row.byteLength]).toEqual([0, row.buffer.byteLength]);
      expect(structuredClone(row, { transfer: [row.buffer as ArrayBuffer] })).toEqual(
        want.row(i++).slice(),
      );
    }
    expect(i).toBe(3);
    for await (const row of model.streamTexts(['a', 'b'], { output })) {
      expect(row.buffer.byteLength).toBe(row.byteLength);
      structuredClone(row, { transfer: [row.buffer as ArrayBuffer] });
    }
  }
});

test('lanes let so many in, in order, and errors free them', async () => {
  const lanes = new Lanes(3),
    order: number[] = [];
  let inside = 0,
    most = 0;
  const work = (i: number) =>
    lanes.run(async () => {
      most = Math.max(most, ++inside);
      order.push(i);
      await new Promise((resolve) => setTimeout(resolve, i % 3));
      inside--;
      if (i % 4 === 0) throw new Error(`${i}`);
      return i;
    });
  const results = await Promise.allSettled(Array.from({ length: 40 }, (_, i) => work(i)));
  expect([most, inside, results.filter(({ status }) => status === 'rejected').length]).toEqual([
    3, 0, 10,
  ]);
  expect(order).toEqual(Array.from({ length: 40 }, (_, i) => i));
  expect(['', '0', '-3', 'x', '1', '16', '5000'].map(poolThreads)).toEqual([
    1, 1, 1, 1, 1, 16, 1024,
  ]);
});

test('no more images are decoded at once than the pool has threads', async () => {
  let inside = 0,
    most = 0;
  await Promise.all(
    Array.from({ length: 30 }, () =>
      useDecoded(jpeg, {}, async (image) => {
        most = Math.max(most, ++inside);
        await new Promise((resolve) => setTimeout(resolve, 5));
        inside--;
        return image.width;
      }),
    ),
  );
  expect(most).toBeLessThanOrEqual(poolThreads());
  expect(most).toBeGreaterThan(1);
});

/** Runs code with a model and what `onBadImage` was told, after `before`; what it printed. */
const encoded = (before: string, images: string): string =>
  outputOf(
    `
  import { execFileSync } from 'node:child_process';
  import { openSync, readFileSync } from 'node:fs';
  import { load } from 'lib/encoder/encoder.js';
  const model = await load(${JSON.stringify(folder)}), bad = [];
  const onBadImage = (e) => bad.push(e.message);
  await model.encodeImages({ data: new Uint8Array(300), width: 10, height: 10, channels: 3 });
  ${before}
  await model.encodeImages(${images}, { batchSize: 16, onBadImage }).then(
    () => console.log('settled', bad.length), (e) => console.log(e.code, bad.length, e.message));
  process.exit(0);`,
    {},
  );

test('want of descriptors or memory rejects by its name; a missing file beside it is a bad image', () => {
  const list = `Array(40).fill(${JSON.stringify(jpeg)})`;
  expect(encoded('', `['/nowhere.jpg', ...${list}]`)).toBe('settled 1\n');
  expect(
    encoded(`await import('sharp'); try { for (;;) openSync('/dev/null'); } catch {}`, list),
  ).toMatch(/^ERR_IO 0 .*\(EMFILE\)/);
}, 60_000);

const hasLimit = (() => {
  try {
    execFileSync('prlimit', ['--version']);
    return true;
  } catch {
    return false;
  }
})();
(hasLimit ? test : test.skip)(
  'too little memory for an image is ERR_MEMORY',
  async () => {
    const limit = `
    await model.encodeImages(${JSON.stringify(jpeg)});
    const used = 1024 * Number(/VmSize:\\s+(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
    execFileSync('prlimit', ['--pid', String(process.pid), '--as=' + (used + 15e7)]);`; // less than the image's 243 MB, enough for what aborts when it gets none
    const wide = join(temporaryFolder(), 'wide.png');
    await sharp({ create: { width: 9000, height: 9000, channels: 3, background: '#a06030' } })
      .png()
      .toFile(wide);
    expect(encoded(limit, JSON.stringify(wide))).toMatch(/^ERR_MEMORY 0 /);
  },
  60_000,
);

test('whose fault an error is', () => {
  const system = (code: string) => Object.assign(new Error(code), { code });
  for (const code of ['EMFILE', 'ENFILE', 'ENOMEM', 'EIO', 'ENOSPC'])
    for (const error of [
      fileError(system(code), 'read', 'a.jpg'),
      new DataError('x', { cause: new TypeError('fetch failed', { cause: system(code) }) }),
      new DataError('x', { cause: new AggregateError([system('ECONNREFUSED'), system(code)]) }),
    ])
      expect([isBadFile(error), (exhausted(error) as { code?: string }).code]).toEqual([
        false,
        code,
      ]);
  for (const code of ['ENOENT', 'EACCES', 'EISDIR', 'ENAMETOOLONG'])
    expect(isBadFile(fileError(system(code), 'read', 'a.jpg'))).toBe(true);
  const said = (message: string) => {
    const error = wantError('a.jpg', new Error(message));
    return error && [error.code, isBadFile(error), error instanceof Siglip2Error];
  };
  for (const words of [
    'vips_image_write_to_memory: out of memory -- size == 68MB',
    'Array buffer allocation failed',
  ])
    expect(said(words)).toEqual(['ERR_MEMORY', false, true]);
  for (const words of [
    'glib: Error creating thread: Resource temporarily unavailable',
    'wbuffer: write failed\nunix error: No space left on device',
  ])
    expect(said(words)).toEqual(['ERR_IO', false, true]);
  // What damaged files make decoders say while there is memory.
  for (const words of [
    'gifload: bad image dimensions\ngifload_buffer: Out of memory',
    'tiff2vips: Failed to allocate memory for to read TIFF directory',
    'heif: Memory allocation error: Security limit exceeded',
    'Input image exceeds pixel limit',
    'VipsJpeg: premature end of JPEG image',
  ])
    expect(said(words)).toBeUndefined();
  expect(isBadFile(new IoError('no code'))).toBe(true);
  expect(isBadFile(new TypeError('a bug'))).toBe(false);
});
