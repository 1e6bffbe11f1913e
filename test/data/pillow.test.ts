/** Decoding and resizing of files of every kind, against Pillow's own results. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from '@jest/globals';
import { decodeImage, onWhite, withAlpha } from '../../lib/image/image.js';
import { resizeTo } from '../../lib/image/processor.js';
import { packageRoot, resizeImageAsync } from '../../lib/native.js';
import { answer } from '../oracle.js';

interface Golden {
  name: string;
  /** Base64. */
  file: string;
  width: number;
  height: number;
  drop: string;
  white: string;
  bilinear: string;
  bicubic: string;
}
const goldens = answer('pillow', { args: [join(packageRoot(), 'test', 'data', 'pillow.py')] })
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line) as Golden);
const sha = (data: Uint8Array | Float32Array): string =>
  createHash('sha256').update(data).digest('hex');

test('files of every kind have the pixels that Pillow gives them, without alpha and on white', async () => {
  expect(goldens.length).toBeGreaterThan(250);
  const differ: string[] = [];
  for (const { name, file, width, height, ...want } of goldens)
    for (const alpha of ['drop', 'white'] as const) {
      const image = await decodeImage(Buffer.from(file, 'base64'), name, { alpha }).catch(
        (e: unknown) => e as Error,
      );
      if (image instanceof Error) differ.push(`${name}: ${image.message}`);
      else if (image.width !== width || image.height !== height)
        differ.push(`${name}: ${image.width}×${image.height} and not ${width}×${height}`);
      else if (sha(image.data) !== want[alpha]) differ.push(`${name}: other pixels, ${alpha}`);
    }
  expect(differ).toEqual([]);
}, 60_000);

test('resized as by Pillow 12, by both filters', async () => {
  const differ: string[] = [];
  for (const { name, file, ...want } of goldens)
    for (const resample of ['bilinear', 'bicubic'] as const) {
      const image = await decodeImage(Buffer.from(file, 'base64'), name, { alpha: 'drop' });
      if (sha(await resizeTo(image, 24, 24, { name: 'hf', resample })) !== want[resample])
        differ.push(`${name} ${resample}`);
    }
  expect(differ).toEqual([]);
}, 60_000);

test('white is what transformers 5.24 lays images on, in its rounding', () => {
  const rgba = [
    [10, 200, 30, 0],
    [10, 200, 30, 255],
    [250, 1, 2, 128],
    [0, 0, 0, 1],
    [255, 255, 255, 7],
    [90, 91, 92, 254],
  ];
  expect([...withAlpha(Uint8Array.from(rgba.flat()), 6, 4, 'white')]).toEqual(
    [
      [255, 255, 255],
      [10, 200, 30],
      [252, 128, 128],
      [254, 254, 254],
      [255, 255, 255],
      [91, 92, 93],
    ].flat(),
  );
  expect([
    ...withAlpha(Uint8Array.of(10, 0, 10, 255, 250, 128, 0, 1, 255, 7, 90, 254), 6, 2, 'white'),
  ]).toEqual([255, 10, 252, 254, 255, 91].flatMap((v) => [v, v, v]));
  expect([onWhite(0, 0), onWhite(7, 255)]).toEqual([255, 7]);
});

test('tall images are resized horizontally first, as by Pillow up to 12', async () => {
  // Image.resize of Pillow 12.3.0, which makes an exception of its own for images a hundred times as tall as wide; pixel (x, y), channel c is (7x² + 13y + 3xy + 59c) mod 256.
  const { cases } = JSON.parse(
    readFileSync(join(packageRoot(), 'test', 'goldens', 'resize_pillow12.json'), 'utf8'),
  ) as { cases: { w: number; h: number; W: number; H: number; resample: number; out: number[] }[] };
  for (const { w, h, W, H, resample, out } of cases.filter((c) => c.h <= 99 * c.w)) {
    const data = Uint8Array.from({ length: w * h * 3 }, (_, i) => {
      const c = i % 3,
        x = Math.floor(i / 3) % w,
        y = Math.floor(i / 3 / w);
      return (7 * x * x + 13 * y + 3 * x * y + 59 * c) % 256;
    });
    expect([
      w,
      h,
      W,
      H,
      ...(await resizeImageAsync(
        data,
        h,
        w,
        3,
        H,
        W,
        resample === 3 ? 'pil-bicubic' : 'pil-bilinear',
      )),
    ]).toEqual([w, h, W, H, ...out]);
  }
});
