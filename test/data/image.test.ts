import { expect, test } from '@jest/globals';
import sharp from 'sharp';
import { applyTransforms, checkTransforms, type ImageTransform } from '../../lib/image/augment.js';
import { decodeImage, div255, premultiply } from '../../lib/image/image.js';
import { resizeImage } from '../../lib/native.js';
import { Random } from '../../lib/random.js';
import { pilResize } from './pil_resize.js';
import { errorOf, picture } from './support.js';

const red = { create: { width: 6, height: 4, channels: 3 as const, background: '#ff0000' } };

test('every format and colour space becomes 8-bit RGB or RGBA', async () => {
  const grey = Buffer.from([0, 128, 255, 64]);
  const deep = Buffer.alloc(2 * 2 * 3 * 2, 0xff);
  const cases: [string, Buffer, number[], number][] = [
    ['png', await sharp(red).png().toBuffer(), [255, 0, 0], 0],
    ['webp', await sharp(red).webp({ lossless: true }).toBuffer(), [255, 0, 0], 0],
    ['gif', await sharp(red).gif().toBuffer(), [255, 0, 0], 2],
    ['jpeg', await sharp(red).jpeg({ quality: 100 }).toBuffer(), [255, 0, 0], 4],
    ['avif', await sharp(red).avif({ lossless: true }).toBuffer(), [255, 0, 0], 4],
    [
      'grey',
      await sharp(grey, { raw: { width: 2, height: 2, channels: 1 } })
        .toColourspace('b-w')
        .png()
        .toBuffer(),
      [0, 0, 0],
      0,
    ],
    [
      '16 bit',
      await sharp(deep, { raw: { width: 2, height: 2, channels: 3 } })
        .toColourspace('rgb16')
        .png()
        .toBuffer(),
      [255, 255, 255],
      0,
    ],
    [
      'cmyk',
      await sharp(red).toColourspace('cmyk').jpeg({ quality: 100 }).toBuffer(),
      [255, 0, 0],
      60,
    ],
  ];
  for (const [name, bytes, expected, tolerance] of cases) {
    const image = await decodeImage(bytes, name);
    expect([name, image.channels, image.data.length]).toEqual([
      name,
      3,
      image.width * image.height * 3,
    ]);
    expected.forEach((value, c) => {
      expect(Math.abs((image.data[c] as number) - value)).toBeLessThanOrEqual(tolerance);
    });
  }
});

test('transparency: kept, on white, or dropped', async () => {
  const data = Buffer.from([200, 100, 0, 0, 200, 100, 0, 255]);
  const png = await sharp(data, { raw: { width: 2, height: 1, channels: 4 } })
    .png()
    .toBuffer();
  expect([...(await decodeImage(png, 'a', { alpha: 'white' })).data]).toEqual([
    255, 255, 255, 200, 100, 0,
  ]);
  expect([...(await decodeImage(png, 'a', { alpha: 'drop' })).data]).toEqual([
    200, 100, 0, 200, 100, 0,
  ]);
  expect([...(await decodeImage(png, 'a', { alpha: 'keep' })).data]).toEqual([...data]);
});

test('EXIF orientation is applied', async () => {
  const data = Buffer.from([255, 0, 0, 0, 0, 255]);
  const turned = await sharp(data, { raw: { width: 2, height: 1, channels: 3 } })
    .withMetadata({ orientation: 6 })
    .png()
    .toBuffer();
  const image = await decodeImage(turned, 'turned');
  expect([image.height, image.width]).toEqual([2, 1]);
});

test('corrupt, truncated and oversized images are errors that name the file', async () => {
  const noise = Buffer.from(Array.from({ length: 64 * 64 * 3 }, (_, i) => (i * 7919) & 255));
  const jpeg = await sharp(noise, { raw: { width: 64, height: 64, channels: 3 } })
    .jpeg()
    .toBuffer();
  const png = await sharp(noise, { raw: { width: 64, height: 64, channels: 3 } })
    .png()
    .toBuffer();
  const bad = [
    Buffer.alloc(0),
    Buffer.from('not an image'),
    jpeg.subarray(0, jpeg.length / 2),
    png.subarray(0, png.length / 2),
  ];
  for (const bytes of bad) {
    const error = await errorOf(() => decodeImage(bytes, 'shard.tar:key'));
    expect(error.code).toBe('ERR_DATA');
    expect(error.message).toContain('shard.tar:key');
  }
  expect((await errorOf(() => decodeImage(png, 'big', { maxPixels: 1000 }))).code).toBe('ERR_DATA');
});

test('the resize in use equals the reference of PIL', () => {
  const random = new Random(3);
  for (const [h, w, c, oh, ow] of [
    [96, 96, 4, 37, 37],
    [7, 31, 3, 64, 64],
    [50, 20, 3, 50, 9],
    [1, 1, 4, 5, 3],
    [33, 40, 3, 33, 40],
  ]) {
    const [height, width, channels, outHeight, outWidth] = [h, w, c, oh, ow] as [
      number,
      number,
      number,
      number,
      number,
    ];
    const src = Uint8Array.from({ length: height * width * channels }, () => random.below(256));
    expect([...resizeImage(src, height, width, channels, outHeight, outWidth)]).toEqual([
      ...pilResize(src, height, width, channels, outHeight, outWidth),
    ]);
  }
});

test('division by 255 is exact and premultiplying keeps colour under alpha', () => {
  for (let x = 0; x <= 65025; x++) if (div255(x) !== Math.round(x / 255)) throw new Error(`${x}`);
  expect([...premultiply(Uint8Array.from([200, 100, 50, 128, 9, 9, 9, 0, 1, 2, 3, 255]))]).toEqual([
    100, 50, 25, 128, 0, 0, 0, 0, 1, 2, 3, 255,
  ]);
});

test('augmentation depends on its keys alone and stays in range', async () => {
  const image = await decodeImage(await picture(5, 40), 'a', { alpha: 'keep' });
  premultiply(image.data);
  const before = [...image.data];
  const lists: ImageTransform[][] = [
    [{ name: 'resize' }],
    [
      { name: 'flip' },
      { name: 'random-resized-crop', scale: [0.2, 1] },
      { name: 'colour', brightness: 0.4, contrast: 0.4, saturation: 0.4 },
    ],
    [{ name: 'place', scale: [0.3, 1], rotate: 20, white: 0.2 }, { name: 'flip' }],
    [{ name: 'place', backgrounds: ['checker'] }],
    [{ name: 'place', backgrounds: ['gradient', 'noise'] }],
  ];
  for (const transforms of lists) {
    checkTransforms(transforms);
    const run = (...keys: number[]): number[] => {
      const out = new Uint8Array(32 * 32 * 3);
      applyTransforms(image, transforms, 32, new Random(...keys), resizeImage, out);
      return [...out];
    };
    expect(run(1, 2, 3)).toEqual(run(1, 2, 3));
    if (transforms.length > 1 || transforms[0]?.name === 'place')
      expect(run(1, 2, 3)).not.toEqual(run(1, 2, 4));
  }
  expect([...image.data]).toEqual(before);
});

test('artwork placed at full scale on a plain background covers it where it is opaque', () => {
  const art = new Uint8Array(8 * 8 * 4);
  for (let i = 0; i < 64; i++) art.set(i < 32 ? [10, 20, 30, 255] : [0, 0, 0, 0], i * 4);
  const out = new Uint8Array(8 * 8 * 3);
  applyTransforms(
    { data: art, height: 8, width: 8, channels: 4 },
    [{ name: 'place', scale: [1, 1], backgrounds: ['plain'] }],
    8,
    new Random(1),
    resizeImage,
    out,
  );
  expect([...out.subarray(0, 3)]).toEqual([10, 20, 30]);
  expect(
    new Set(
      Array.from({ length: 32 }, (_, i) => [...out.subarray((32 + i) * 3, (33 + i) * 3)].join()),
    ).size,
  ).toBe(1);
});

test('wrong transforms are config errors', async () => {
  const wrong: unknown[] = [
    [],
    [{ name: 'resize' }, { name: 'place' }],
    [{ name: 'rezise' }],
    [{ name: 'place', scale: [0.9, 0.1] }],
    [{ name: 'place', backgrounds: ['stripes'] }],
    [{ name: 'flip', probability: 2 }],
    [{ name: 'place', scales: [0, 1] }],
    [{ name: 'colour' }, { name: 'resize' }],
  ];
  for (const list of wrong) {
    const error = await errorOf(() => checkTransforms(list as ImageTransform[]));
    expect(error.code).toBe('ERR_CONFIG');
    expect(error.message).toContain('image.transforms');
  }
});

test('random numbers: unrelated streams, no bias, exact shuffles', () => {
  const random = new Random(1, 2);
  const counts = new Array<number>(7).fill(0);
  let mean = 0;
  for (let i = 0; i < 70000; i++) {
    const k = random.below(7);
    counts[k] = (counts[k] as number) + 1;
    mean += random.uniform() / 70000;
  }
  for (const count of counts) expect(Math.abs(count - 10000)).toBeLessThan(400);
  expect(Math.abs(mean - 0.5)).toBeLessThan(0.005);
  const first = new Set<number>();
  for (let i = 0; i < 2000; i++) first.add(new Random(5, 3, i).uint32());
  expect(first.size).toBe(2000);
  expect(new Random(2 ** 40).uint32()).not.toBe(new Random(2 ** 41).uint32());
  expect(new Random(0, 1).uint32()).not.toBe(new Random(1, 0).uint32());
});

test('the short way for PNGs lays transparency on white as sharp does', async () => {
  const png = await picture(9, 40);
  const { data } = await decodeImage(png, 'a');
  const expected = await sharp(png).flatten({ background: '#ffffff' }).raw().toBuffer();
  for (let i = 0; i < data.length; i++) {
    if (Math.abs((data[i] as number) - (expected[i] as number)) > 1)
      throw new Error(`value ${i} differs`);
  }
});
