/** Augmented views: each transform against PIL, and the keys that make them reproducible. */
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import type { RawImage } from '../../lib/image/image.js';
import {
  brightness,
  contrast,
  gaussianBlur,
  greyscale,
  hue,
  saturation,
  solarise,
} from '../../lib/image/photometric.js';
import {
  checkViews,
  makeView,
  makeViews,
  patchesOf,
  randomMask,
  type ViewTargets,
  viewsConfig,
} from '../../lib/image/views.js';
import { resizeImage } from '../../lib/native.js';
import { Random, Stream } from '../../lib/random.js';
import { generator } from '../harness.js';
import { answer } from '../oracle.js';
import { errorOf, withFolder } from './support.js';

/** What torchvision does to a PIL image, one transform at a time. */
const PEER = `
import hashlib, json, sys
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

def turn_hue(image, x):
    h, s, v = image.convert("HSV").split()
    h = Image.fromarray((np.asarray(h).astype(int) + int(x * 255)).astype(np.uint8), "L")
    return Image.merge("HSV", (h, s, v)).convert("RGB")

transforms = {
    "brightness": lambda i, x: ImageEnhance.Brightness(i).enhance(x),
    "contrast": lambda i, x: ImageEnhance.Contrast(i).enhance(x),
    "saturation": lambda i, x: ImageEnhance.Color(i).enhance(x),
    "hue": turn_hue,
    "greyscale": lambda i, x: i.convert("L").convert("RGB"),
    "solarise": lambda i, x: ImageOps.solarize(i),
    "blur": lambda i, x: i.filter(ImageFilter.GaussianBlur(radius=x)),
}
folder = sys.argv[1]
jobs = json.load(open(folder + "/jobs.json"))
pixels = np.fromfile(folder + "/in.bin", np.uint8)
at = 0
for job in jobs:
    n = job["height"] * job["width"] * 3
    image = Image.fromarray(pixels[at:at + n].reshape(job["height"], job["width"], 3))
    print(hashlib.sha256(np.asarray(transforms[job["name"]](image, job["x"])).tobytes()).hexdigest())
    at += n
`;

const transforms: Record<
  string,
  (rgb: Uint8Array, height: number, width: number, x: number) => void
> = {
  brightness: (rgb, _h, _w, x) => brightness(rgb, x),
  contrast: (rgb, _h, _w, x) => contrast(rgb, x),
  saturation: (rgb, _h, _w, x) => saturation(rgb, x),
  hue: (rgb, _h, _w, x) => hue(rgb, x),
  greyscale: (rgb) => greyscale(rgb),
  solarise: (rgb) => solarise(rgb),
  blur: (rgb, h, w, x) => gaussianBlur(rgb, h, w, x),
};

/** Noise on a slope, so that every colour and every difference of neighbours occurs. */
function picture(height: number, width: number, seed: number, channels: 3 | 4 = 3): RawImage {
  const r = generator(seed);
  const data = Uint8Array.from({ length: height * width * channels }, (_, i) =>
    Math.min(
      255,
      Math.max(
        0,
        128 +
          90 * Math.sin(i / (width * channels) / 7 + (i % channels)) +
          120 * r() * (i % 5 ? 1 : 0.2),
      ),
    ),
  );
  return { data, height, width, channels };
}

test('every transform equals PIL bit for bit', async () => {
  const jobs: { name: string; height: number; width: number; x: number; pixels: Uint8Array }[] = [];
  const sizes = [
    [1, 1],
    [1, 7],
    [5, 3],
    [40, 64],
    [96, 96],
    [33, 2],
  ] as const;
  const values: Record<string, number[]> = {
    brightness: [0, 0.6, 0.987, 1, 1.33, 1.4],
    contrast: [0, 0.6, 0.93, 1, 1.4],
    saturation: [0, 0.8, 1, 1.17, 1.2],
    hue: [-0.5, -0.1, -0.03, 0, 0.0431, 0.1, 0.5],
    greyscale: [0],
    solarise: [0],
    blur: [0.1, 0.35, 0.8, 1, 1.23, 2, 5.5],
  };
  for (const [name, xs] of Object.entries(values))
    for (const x of xs)
      for (const [height, width] of sizes)
        jobs.push({ name, height, width, x, pixels: picture(height, width, jobs.length + 1).data });
  await withFolder((folder) => {
    writeFileSync(
      join(folder, 'jobs.json'),
      JSON.stringify(jobs.map(({ pixels: _, ...job }) => job)),
    );
    writeFileSync(join(folder, 'in.bin'), Buffer.concat(jobs.map((j) => j.pixels)));
    const theirs = answer('photometric', { args: ['-c', PEER, folder] })
      .trim()
      .split('\n');
    expect(theirs.length).toBe(jobs.length);
    const wrong = jobs
      .filter(({ name, height, width, x, pixels }, i) => {
        const ours = pixels.slice();
        transforms[name]!(ours, height, width, x);
        return createHash('sha256').update(ours).digest('hex') !== theirs[i];
      })
      .map(({ name, height, width, x }) => `${name}(${x}) of ${height}×${width}`);
    expect(wrong).toEqual([]);
  });
});

function targets(config: ReturnType<typeof viewsConfig>): ViewTargets {
  const square = (s: number): Uint8Array => new Uint8Array(s * s * 3);
  return {
    global: square(config.global.size),
    mask: new Uint8Array(patchesOf(config)),
    locals: Array.from({ length: config.locals }, () => square(config.local.size)),
  };
}
function views(
  image: RawImage,
  config: ReturnType<typeof viewsConfig>,
  key = { seed: 1, epoch: 2, sample: 3 },
): ViewTargets {
  const out = targets(config);
  makeViews(image, config, key, resizeImage, out);
  return out;
}

describe('views', () => {
  const config = viewsConfig(64, 8),
    image = picture(80, 100, 4);

  test('depend on seed, epoch and sample alone, and differ from each other', () => {
    const a = views(image, config);
    expect(views(image, config)).toEqual(a);
    for (const key of [
      { seed: 9, epoch: 2, sample: 3 },
      { seed: 1, epoch: 9, sample: 3 },
      { seed: 1, epoch: 2, sample: 9 },
    ]) {
      const b = views(image, config, key);
      expect(Buffer.from(b.global).equals(a.global)).toBe(false);
      expect(Buffer.from(b.mask).equals(a.mask)).toBe(false);
    }
    const distinct = new Set(a.locals.map((v) => Buffer.from(v).toString('base64')));
    expect(distinct.size).toBe(8);
  });

  test('the first views stay the same when there are more of them', () => {
    const few = views(image, viewsConfig(64, 8, { locals: 2 })),
      many = views(image, config);
    expect(few.locals).toEqual(many.locals.slice(0, 2));
    expect(few.global).toEqual(many.global);
  });

  test("with every change off a view is the resized part: for the whole image, PIL's resize", () => {
    const off = {
      flip: 0,
      colour: 0,
      greyscale: 0,
      blur: 0,
      solarise: 0,
      scale: [1, 1] as [number, number],
      ratio: [1.25, 1.25] as [number, number],
    };
    const { global } = viewsConfig(64, 8, { global: off });
    expect(makeView(image, global, new Random(1), resizeImage)).toEqual(
      resizeImage(image.data, 80, 100, 3, 64, 64),
    );
  });

  test('the area and the shape of the parts are as asked', () => {
    const seen: number[] = [];
    const spy = (
      _d: Uint8Array,
      h: number,
      w: number,
      _c: number,
      oh: number,
      ow: number,
    ): Uint8Array => {
      seen.push((h * w) / (200 * 300));
      expect(w / h).toBeGreaterThan(0.72);
      expect(w / h).toBeLessThan(1.38);
      return new Uint8Array(oh * ow * 3);
    };
    const large = picture(200, 300, 5);
    for (let i = 0; i < 300; i++) makeView(large, config.local, new Random(i), spy);
    expect(Math.min(...seen)).toBeGreaterThan(0.045);
    expect(Math.max(...seen)).toBeLessThan(0.41);
    expect(seen.reduce((a, b) => a + b) / seen.length).toBeCloseTo(0.225, 1);
  });

  test('an image of one pixel, an extreme aspect ratio, transparency', () => {
    for (const odd of [picture(1, 1, 1), picture(1, 900, 2), picture(700, 2, 3)])
      views(odd, config);
    const clear: RawImage = {
      data: new Uint8Array(20 * 20 * 4),
      height: 20,
      width: 20,
      channels: 4,
    };
    const plain = viewsConfig(64, 8, { global: { colour: 0 } });
    expect(new Set(views(clear, plain).global)).toEqual(new Set([255]));
  });

  test('exactly half of the patches are masked, all equally often', () => {
    const counts = new Float64Array(16);
    for (let i = 0; i < 2000; i++) {
      const mask = randomMask(16, 0.5, new Random(1, Stream.mask, i));
      expect(mask.reduce((a, b) => a + b)).toBe(8);
      mask.forEach((m, p) => {
        counts[p]! += m;
      });
    }
    // Five standard deviations of 2,000 throws of a coin.
    for (const c of counts) expect(Math.abs(c - 1000)).toBeLessThan(112);
  });

  test("the recipe's sizes, and settings that make no sense", async () => {
    const b16 = viewsConfig(256, 16);
    expect([b16.global.size, b16.local.size, b16.locals, patchesOf(b16)]).toEqual([
      256, 96, 8, 256,
    ]);
    expect(viewsConfig(224, 14).local.size % 14).toBe(0);
    for (const [change, words] of [
      [{ locals: 0 }, /locals must be an integer in \[1, 64\] but is 0/],
      [{ masked: 1 }, /masked must be a share in \(0, 1\)/],
      [{ global: { hue: 0.7 } }, /global.hue must be a number in \[0, 0.5\] but is 0.7/],
      [
        { local: { scale: [0.5, 0.2] as [number, number] } },
        /local.scale must be \[low, high\] within \[0.001, 1\] but is \[0.5,0.2\]/,
      ],
    ] as const)
      expect((await errorOf(() => viewsConfig(64, 8, change as never))).message).toMatch(words);
    expect(checkViews(config)).toBe(config);
  });
});
