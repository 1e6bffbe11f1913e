/** The processors against what they promise to equal: PIL (Debian's python3-pil), and PyTorch's interpolation. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import { decodeInput } from '../../lib/data/input.js';
import { processorOf, resizeTo, type Processor } from '../../lib/data/processor.js';
import { Resizer } from '../../lib/data/resizer.js';
import { load } from '../../lib/encoder.js';
import { convertCheckpoint } from '../../lib/io/convert.js';
import { readProcessor } from '../../lib/io/processor.js';
import { modelConfig } from '../../lib/model/config.js';
import { modelFiles } from '../../lib/model/files.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { resizeImage, resizeImageAsync } from '../../lib/native.js';
import { liveCount } from '../../lib/tensor.js';
import { temporaryFolder } from '../encoder_support.js';
import { outputOf } from '../child.js';
import { errorOf } from './support.js';

const python = '/usr/bin/python3';
const has = (module: string): boolean => spawnSync(python, ['-c', `import ${module}`]).status === 0;
const pil = has('PIL.Image') && has('numpy'), torch = has('torch');
if (!pil) console.warn('skipped: no Python with Pillow and NumPy (install python3-pil python3-numpy)');
if (!torch) console.warn('skipped: no Python with PyTorch (install python3-torch)');
afterAll(() => expect(liveCount()).toBe(0));

const pilTest = pil ? test : test.skip, torchTest = torch ? test : test.skip;

/** A checkpoint's folder with a vocabulary of this size. */
async function folderOf(vocab: number): Promise<string> {
  const folder = join(temporaryFolder(), 'model');
  using model = new Siglip2Model(modelConfig('test', { vocab }));
  mkdirSync(folder);
  await modelFiles(folder, model, { vocab: null, tokenizer: null, lowercase: 'ascii', ema: null });
  return folder;
}

/**
 * Makes 64 files of every kind and, with PIL alone, what the `hf` processor makes of them at SIZE by both filters:
 * EXIF orientation, convert("RGB"), resize. 16-bit grey is shifted to 8 bits, which PIL's own conversion clips instead.
 */
const MAKE = `
import json, sys
import numpy as np
from PIL import Image, ImageOps
folder, size = sys.argv[1], int(sys.argv[2])
rng = np.random.RandomState(7)
def noise(h, w, c):
    base = rng.randint(0, 256, (max(1, h // 9), max(1, w // 7), c)).astype(np.uint8)
    big = np.kron(base, np.ones((9, 7, 1), np.uint8))
    big = np.pad(big, ((0, max(0, h - big.shape[0])), (0, max(0, w - big.shape[1])), (0, 0)), mode='edge')[:h, :w]
    return (big.astype(int) * 3 // 4 + rng.randint(0, 64, (h, w, c))).astype(np.uint8)
sizes = [(1, 1), (1, 7), (5, 1), (2, 3), (31, 33), (64, 64), (63, 65), (64, 200), (300, 64), (427, 640), (37, 911), (1500, 20)]
cases = []
def add(name, image, **options):
    path = folder + '/' + name
    image.save(path, **options)
    cases.append(name)
for i, (h, w) in enumerate(sizes):
    add('rgb%d.png' % i, Image.fromarray(noise(h, w, 3)))
    add('grey%d.png' % i, Image.fromarray(noise(h, w, 1)[:, :, 0]))
for i, (h, w) in enumerate(sizes[3:10]):
    add('alpha%d.png' % i, Image.fromarray(noise(h, w, 4), 'RGBA'))
    add('greyalpha%d.png' % i, Image.fromarray(noise(h, w, 2), 'LA'))
    add('jpeg%d.jpg' % i, Image.fromarray(noise(h, w, 3)), quality=80 + i)
for i, (h, w) in enumerate([(20, 31), (70, 45)]):
    add('cmyk%d.jpg' % i, Image.fromarray(noise(h, w, 4), 'CMYK'), quality=90)
    add('greyjpeg%d.jpg' % i, Image.fromarray(noise(h, w, 1)[:, :, 0]), quality=90)
    add('palette%d.png' % i, Image.fromarray(noise(h, w, 3)).quantize(64))
    add('webp%d.webp' % i, Image.fromarray(noise(h, w, 3)), lossless=True)
    add('bit%d.png' % i, Image.fromarray(noise(h, w, 1)[:, :, 0]).convert('1'))
    deep = Image.fromarray(rng.randint(0, 65536, (h, w)).astype(np.uint16))
    add('deep%d.png' % i, deep)
for orientation in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = orientation
    add('exif%d.jpg' % orientation, Image.fromarray(noise(48, 30 + orientation, 3)), exif=exif, quality=92)
add('animated.gif', Image.fromarray(noise(40, 50, 1)[:, :, 0]), save_all=True, append_images=[Image.fromarray(noise(40, 50, 1)[:, :, 0])])
for name in cases:
    image = ImageOps.exif_transpose(Image.open(folder + '/' + name))
    if image.mode.startswith('I'):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    image = image.convert('RGB')
    for filter, tag in ((Image.BILINEAR, 'bilinear'), (Image.BICUBIC, 'bicubic')):
        np.asarray(image.resize((size, size), filter)).tofile(folder + '/' + name + '.' + tag)
json.dump(cases, open(folder + '/cases.json', 'w'))
`;

pilTest('hf equals PIL on images of every kind, by both filters', async () => {
  const folder = temporaryFolder(), size = 64;
  execFileSync(python, ['-c', MAKE, folder, String(size)]);
  const cases = JSON.parse(readFileSync(join(folder, 'cases.json'), 'utf8')) as string[];
  expect(cases.length).toBeGreaterThanOrEqual(60);
  const differ: string[] = [];
  for (const name of cases)
    for (const resample of ['bilinear', 'bicubic'] as const) {
      const image = await decodeInput(join(folder, name));
      const got = await resizeTo(image, size, size, { name: 'hf', resample }), want = readFileSync(join(folder, `${name}.${resample}`));
      let most = got.length === want.length ? 0 : 999;
      got.forEach((v, i) => { most = Math.max(most, Math.abs(v - want[i]!)); });
      if (most > 0) differ.push(`${name} ${resample}: ${most}`);
    }
  expect(differ).toEqual([]);
}, 120_000);

torchTest('aa-f32 and big_vision equal the interpolation of PyTorch with and without antialiasing', async () => {
  const folder = temporaryFolder(), size = 48;
  const sizes = [[1, 1], [31, 90], [48, 48], [200, 97], [427, 640]] as const;
  const images = sizes.map(([height, width], k) => ({
    data: Uint8Array.from({ length: height * width * 3 }, (_, i) => (i * 2654435761 + k * 40503) >>> 11 & 255), height, width, channels: 3 as const,
  }));
  images.forEach((p, i) => writeFileSync(join(folder, `${i}.raw`), p.data));
  execFileSync(python, ['-c', `
import sys, numpy as np, torch
folder, size = sys.argv[1], int(sys.argv[2])
for i, (h, w) in enumerate(${JSON.stringify(sizes)}):
    x = torch.from_numpy(np.fromfile('%s/%d.raw' % (folder, i), np.uint8).reshape(1, h, w, 3)).permute(0, 3, 1, 2).double()
    for antialias in (True, False):
        y = torch.nn.functional.interpolate(x, (size, size), mode='bilinear', align_corners=False, antialias=antialias)
        y[0].permute(1, 2, 0).numpy().tofile('%s/%d.%s' % (folder, i, antialias))
`, folder, String(size)]);
  const read = (name: string): Float64Array => {
    const bytes = readFileSync(join(folder, name));
    return new Float64Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  };
  for (const [i, image] of images.entries()) {
    const exact = read(`${i}.True`), plain = read(`${i}.False`);
    const f32 = await resizeTo(image, size, size, { name: 'aa-f32', resample: 'bilinear' });
    f32.forEach((v, k) => expect(Math.abs(v - exact[k]!)).toBeLessThan(2e-3));
    const tf = await resizeTo(image, size, size, { name: 'big_vision', resample: 'bilinear' });
    // Truncated; f32 may fall on the other side of a whole number than f64 does.
    tf.forEach((v, k) => expect(v === Math.floor(plain[k]! + 1e-3) || v === Math.floor(plain[k]! - 1e-3)).toBe(true));
  }
});

test('resizing on the thread pool gives the bits of the synchronous call, many at a time', async () => {
  const data = Uint8Array.from({ length: 90 * 70 * 3 }, (_, i) => (i * 31) & 255);
  const want = resizeImage(data, 90, 70, 3, 33, 44);
  const all = await Promise.all(Array.from({ length: 40 }, () => resizeImageAsync(data, 90, 70, 3, 33, 44, 'pil-bilinear')));
  for (const got of all) expect(got).toEqual(want);
  expect((await errorOf(() => resizeImageAsync(data, 90, 71, 3, 33, 44, 'f32'))).message).toContain('do not fit');
});

test('a resizer gives what resizeTo gives, in buffers that go round; it frees decoded pixels and never the caller\'s', async () => {
  const pixels = Uint8Array.from({ length: 90 * 70 * 3 }, (_, i) => (i * 31) & 255), raw = { data: pixels, width: 70, height: 90 };
  const png = await sharp(pixels, { raw: { ...raw, channels: 3 } }).png().toBuffer();
  for (const processor of [processorOf(2), processorOf(2, 'aa-f32')]) {
    const resizer = new Resizer(33, 44, processor), decoded = await decodeInput(png);
    const want = await resizeTo(decoded, 33, 44, processor), first = await resizer.resize(decoded);
    expect(first).toEqual(want);
    expect(decoded.data).toHaveLength(0);
    const second = await resizer.resize(await decodeInput({ ...raw, channels: 3 }));
    expect(second).toEqual(want);
    expect(second).not.toBe(first);
    expect(pixels).toHaveLength(90 * 70 * 3);
    resizer.recycle(first);
    expect(await resizer.resize(await decodeInput(png))).toBe(first);
  }
  // What has the size already is handed on as it is, and is not taken for one of the resizer's own buffers afterwards.
  const same = new Resizer(90, 70, processorOf(2)), image = await decodeInput({ ...raw, channels: 3 });
  const given = await same.resize(image);
  expect(given).toBe(image.data);
  same.recycle(given);
  expect(await same.resize(await decodeInput(png))).not.toBe(given);
  expect(pixels[1]).toBe(31);
});

test('every instruction set gives the same bytes', () => {
  const code = `
    import { createHash } from 'node:crypto';
    import { resizeImageAsync } from 'lib/native.js';
    const hash = createHash('sha256');
    for (const [h, w, c, oh, ow] of [[1, 1, 3, 4, 5], [31, 200, 3, 30, 1], [40, 500, 3, 9, 2], [97, 83, 3, 97, 40],
      [97, 83, 3, 33, 83], [300, 211, 4, 64, 65], [64, 64, 1, 31, 90], [500, 700, 3, 22, 43], [90, 60, 3, 201, 170], [20, 3000, 3, 5, 64]])
      for (const method of ['pil-bilinear', 'pil-bicubic']) {
        const value = (i) => method === 'pil-bicubic' ? (i * 2654435761 >>> 15 & 1) * 255 : i * 2654435761 >>> 11;
        const data = Uint8Array.from({ length: h * w * c }, (_, i) => value(i));
        hash.update(await resizeImageAsync(data, h, w, c, oh, ow, method));
      }
    console.log(hash.digest('hex'));`;
  const usual = outputOf(code, {});
  expect(usual).toMatch(/^[0-9a-f]{64}\n$/);
  expect(outputOf(code, { SIGLIP2_ISA: 'avx2' })).toBe(usual);
});

test('a folder, an .npz and a hub id each give the processor of their checkpoint', async () => {
  const cache = temporaryFolder(), repo = join(cache, 'models--owner--name'), commit = join(repo, 'snapshots', 'abc');
  const npz = async (vocab: number): Promise<Processor> => {
    const file = join(temporaryFolder(), 'model.npz');
    await convertCheckpoint(await folderOf(vocab), file, { format: 'npz' });
    using model = await load(file);
    return model.processor;
  };
  // Nothing in an .npz says so, but 32,000 pieces are SigLIP 1's vocabulary.
  expect(await npz(9)).toEqual({ name: 'hf', resample: 'bilinear' });
  expect(await npz(32000)).toEqual({ name: 'hf', resample: 'bicubic' });
  const folder = await folderOf(9), file = join(folder, 'preprocessor_config.json');
  writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')) as object, resample: 3 }));
  mkdirSync(join(repo, 'refs'), { recursive: true });
  mkdirSync(join(repo, 'snapshots'));
  writeFileSync(join(repo, 'refs', 'main'), 'abc');
  renameSync(folder, commit);
  const before = process.env['HF_HUB_CACHE'];
  process.env['HF_HUB_CACHE'] = cache;
  try {
    for (const source of [commit, 'owner/name']) {
      using model = await load(source);
      expect(model.processor).toEqual({ name: 'hf', resample: 'bicubic' });
    }
  } finally {
    if (before === undefined) delete process.env['HF_HUB_CACHE'];
    else process.env['HF_HUB_CACHE'] = before;
  }
});

test('a folder names its filter, and other statistics are refused', async () => {
  const folder = temporaryFolder(), file = join(folder, 'preprocessor_config.json'), config = modelConfig('B/16');
  mkdirSync(folder, { recursive: true });
  const of = async (json: object | string): Promise<Processor> => {
    writeFileSync(file, typeof json === 'string' ? json : JSON.stringify(json));
    return processorOf((await readProcessor(folder, config)).resample);
  };
  expect(processorOf((await readProcessor(folder, config)).resample)).toEqual({ name: 'hf', resample: 'bilinear' });
  expect(await of({ resample: 3 })).toEqual({ name: 'hf', resample: 'bicubic' });
  expect(await of({ resample: 2, image_mean: [0.5, 0.5, 0.5], rescale_factor: 0.00392156862745098 })).toEqual({ name: 'hf', resample: 'bilinear' });
  for (const bad of [{ image_mean: [0.48, 0.45, 0.4] }, { do_resize: false }, { resample: 1 }, '{']) expect((await errorOf(() => of(bad))).code).toBe('ERR_CHECKPOINT');
  expect(processorOf(3, 'big_vision')).toEqual({ name: 'big_vision', resample: 'bilinear' });
  expect((await errorOf(() => processorOf(2, 'clip' as 'hf'))).code).toBe('ERR_CONFIG');
});
