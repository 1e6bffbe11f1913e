/** The processors against what they promise to equal: PyTorch's interpolation, and PIL's resize (pillow.test.ts has its decoding). */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import { convertCheckpoint } from '../../lib/checkpoints/convert.js';
import { modelFiles } from '../../lib/checkpoints/load.js';
import { readProcessor } from '../../lib/checkpoints/processor_config.js';
import { load } from '../../lib/encoder/encoder.js';
import { decodeInput } from '../../lib/image/input.js';
import { type Processor, processorOf, resizeTo } from '../../lib/image/processor.js';
import { Resizer } from '../../lib/image/resizer.js';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { resizeImage, resizeImageAsync } from '../../lib/native.js';
import { liveCount } from '../../lib/tensor.js';
import { outputOf } from '../child.js';
import { temporaryFolder } from '../encoder_support.js';
import { answer } from '../oracle.js';
import { errorOf } from './support.js';

afterAll(() => expect(liveCount()).toBe(0));

/** A checkpoint's folder with a vocabulary of this size. */
async function folderOf(vocab: number): Promise<string> {
  const folder = join(temporaryFolder(), 'model');
  using model = new Siglip2Model(modelConfig('test', { vocab }));
  mkdirSync(folder);
  await modelFiles(folder, model, { vocab: null, tokenizer: null, lowercase: 'ascii', ema: null });
  return folder;
}

test('aa-f32 and big_vision equal the interpolation of PyTorch with and without antialiasing', async () => {
  const folder = temporaryFolder(),
    size = 24;
  const sizes = [
    [1, 1],
    [31, 90],
    [24, 24],
    [200, 97],
    [427, 640],
  ] as const;
  const images = sizes.map(([height, width], k) => ({
    data: Uint8Array.from(
      { length: height * width * 3 },
      (_, i) => ((i * 2654435761 + k * 40503) >>> 11) & 255,
    ),
    height,
    width,
    channels: 3 as const,
  }));
  images.forEach((p, i) => writeFileSync(join(folder, `${i}.raw`), p.data));
  answer('interpolation', {
    writes: sizes.flatMap((_, i) => ['True', 'False'].map((kind) => join(folder, `${i}.${kind}`))),
    args: [
      '-c',
      `
import sys, numpy as np, torch
folder, size = sys.argv[1], int(sys.argv[2])
for i, (h, w) in enumerate(${JSON.stringify(sizes)}):
    x = torch.from_numpy(np.fromfile('%s/%d.raw' % (folder, i), np.uint8).reshape(1, h, w, 3)).permute(0, 3, 1, 2).double()
    for antialias in (True, False):
        y = torch.nn.functional.interpolate(x, (size, size), mode='bilinear', align_corners=False, antialias=antialias)
        y[0].permute(1, 2, 0).numpy().tofile('%s/%d.%s' % (folder, i, antialias))
`,
      folder,
      String(size),
    ],
  });
  const read = (name: string): Float64Array => {
    const bytes = readFileSync(join(folder, name));
    return new Float64Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  };
  for (const [i, image] of images.entries()) {
    const exact = read(`${i}.True`),
      plain = read(`${i}.False`);
    const f32 = await resizeTo(image, size, size, { name: 'aa-f32', resample: 'bilinear' });
    f32.forEach((v, k) => expect(Math.abs(v - exact[k]!)).toBeLessThan(2e-3));
    const tf = await resizeTo(image, size, size, { name: 'big_vision', resample: 'bilinear' });
    // Truncated; f32 may fall on the other side of a whole number than f64 does.
    tf.forEach((v, k) =>
      expect(v === Math.floor(plain[k]! + 1e-3) || v === Math.floor(plain[k]! - 1e-3)).toBe(true),
    );
  }
});

test('resizing on the thread pool gives the bits of the synchronous call, many at a time', async () => {
  const data = Uint8Array.from({ length: 90 * 70 * 3 }, (_, i) => (i * 31) & 255);
  const want = resizeImage(data, 90, 70, 3, 33, 44);
  const all = await Promise.all(
    Array.from({ length: 40 }, () => resizeImageAsync(data, 90, 70, 3, 33, 44, 'pil-bilinear')),
  );
  for (const got of all) expect(got).toEqual(want);
  expect((await errorOf(() => resizeImageAsync(data, 90, 71, 3, 33, 44, 'f32'))).message).toContain(
    'do not fit',
  );
});

test("a resizer gives what resizeTo gives, in buffers that go round; it frees decoded pixels and never the caller's", async () => {
  const pixels = Uint8Array.from({ length: 90 * 70 * 3 }, (_, i) => (i * 31) & 255),
    raw = { data: pixels, width: 70, height: 90 };
  const png = await sharp(pixels, { raw: { ...raw, channels: 3 } })
    .png()
    .toBuffer();
  for (const processor of [processorOf(2), processorOf(2, 'aa-f32')]) {
    const resizer = new Resizer(33, 44, processor),
      decoded = await decodeInput(png);
    const want = await resizeTo(decoded, 33, 44, processor),
      first = await resizer.resize(decoded);
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
  const same = new Resizer(90, 70, processorOf(2)),
    image = await decodeInput({ ...raw, channels: 3 });
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
  const cache = temporaryFolder(),
    repo = join(cache, 'models--owner--name'),
    commit = join(repo, 'snapshots', 'abc');
  const npz = async (vocab: number): Promise<Processor> => {
    const file = join(temporaryFolder(), 'model.npz');
    await convertCheckpoint(await folderOf(vocab), file, { format: 'npz' });
    using model = await load(file);
    return model.processor;
  };
  // Nothing in an .npz says so, but 32,000 pieces are SigLIP 1's vocabulary.
  expect(await npz(9)).toEqual({ name: 'hf', resample: 'bilinear' });
  expect(await npz(32000)).toEqual({ name: 'hf', resample: 'bicubic' });
  const folder = await folderOf(9),
    file = join(folder, 'preprocessor_config.json');
  writeFileSync(
    file,
    JSON.stringify({ ...(JSON.parse(readFileSync(file, 'utf8')) as object), resample: 3 }),
  );
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
  const folder = temporaryFolder(),
    file = join(folder, 'preprocessor_config.json'),
    config = modelConfig('B/16');
  mkdirSync(folder, { recursive: true });
  const of = async (json: object | string): Promise<Processor> => {
    writeFileSync(file, typeof json === 'string' ? json : JSON.stringify(json));
    return processorOf((await readProcessor(folder, config)).resample);
  };
  expect(processorOf((await readProcessor(folder, config)).resample)).toEqual({
    name: 'hf',
    resample: 'bilinear',
  });
  expect(await of({ resample: 3 })).toEqual({ name: 'hf', resample: 'bicubic' });
  expect(
    await of({ resample: 2, image_mean: [0.5, 0.5, 0.5], rescale_factor: 0.00392156862745098 }),
  ).toEqual({ name: 'hf', resample: 'bilinear' });
  for (const bad of [{ image_mean: [0.48, 0.45, 0.4] }, { do_resize: false }, { resample: 1 }, '{'])
    expect((await errorOf(() => of(bad))).code).toBe('ERR_CHECKPOINT');
  expect(processorOf(3, 'big_vision')).toEqual({ name: 'big_vision', resample: 'bilinear' });
  expect((await errorOf(() => processorOf(2, 'clip' as 'hf'))).code).toBe('ERR_CONFIG');
});
