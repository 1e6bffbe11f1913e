/** The NaFlex tower: packed against PyTorch padded and masked, against image by image, and against our own padding. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { encodePadded } from '../../bench/naflex.js';
import { script } from '../../bench/peers/pytorch/peer.js';
import { loadModel, modelFiles } from '../../lib/checkpoints/load.js';
import { ConfigError, ShapeError } from '../../lib/errors.js';
import { type NaflexBatch, naflexGrid, naflexImage, packNaflex } from '../../lib/image/naflex.js';
import { embedNaflex } from '../../lib/inference/embed.js';
import { openSafetensors, writeSafetensors } from '../../lib/io/safetensors.js';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { backward } from '../../lib/tape.js';
import { liveCount, scope, type Tensor, tensor } from '../../lib/tensor.js';
import { generator, normal } from '../harness.js';
import { answer } from '../oracle.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-naflex-'));
const path = (name: string): string => join(folder, name);
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

const P = 4;
const config = modelConfig('test', {
  naflex: true,
  vocab: 31,
  vision: { patch: P, imageSize: 16 * P },
});
const D = config.vision.width,
  K = P * P * 3;

/** Images of these sizes with some structure, at most `tokens` patches each. */
function batchOf(sizes: [number, number, number][]): NaflexBatch {
  return packNaflex(
    sizes.map(([height, width, tokens], s) => {
      const r = generator(20 + s);
      const data = Uint8Array.from(
        { length: height * width * 3 },
        (_, i) => 127.5 * (1 + 0.6 * Math.sin(i / (7 + s)) + 0.4 * r()),
      );
      return naflexImage({ data, height, width, channels: 3 }, P, tokens);
    }),
  );
}
// Wide, tall and nearly square; one with more patches along a side than the grid of positions has.
const MIXED = batchOf([
  [30, 90, 40],
  [200, 40, 64],
  [60, 50, 21],
]);
const S = MIXED.offsets.length - 1,
  T = MIXED.offsets[S]!;
const lengths = Array.from({ length: S }, (_, s) => MIXED.offsets[s + 1]! - MIXED.offsets[s]!);
const M = Math.max(...lengths);

/** (T, width) rows of a packed batch, to (S, M, width) with zeros behind each image's. */
function pad<A extends Uint8Array | Float32Array>(rows: A, width: number): A {
  const out = new (rows.constructor as new (n: number) => A)(S * M * width);
  for (let s = 0; s < S; s++)
    out.set(
      rows.subarray(MIXED.offsets[s]! * width, MIXED.offsets[s + 1]! * width) as never,
      s * M * width,
    );
  return out;
}
function rmse(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let error = 0,
    norm = 0;
  for (let i = 0; i < b.length; i++) {
    error += (a[i]! - b[i]!) ** 2;
    norm += b[i]! ** 2;
  }
  return a.length === b.length ? Math.sqrt(error / norm) : NaN;
}

/** Asks naflex.py for something, of which it writes one file. */
function run(what: string, ...args: string[]): void {
  answer(`naflex-${what}`, {
    args: [script('naflex.py'), what, ...args],
    writes: [args[args.indexOf('--out') + 1]!],
  });
}

const cotangent = normal(S * config.embed, 5),
  tokenCotangent = normal(T * D, 6, 0.1);

/** Embeddings and tokens of the mixed batch; gradients of Σ embedding·cotangent + Σ token·tokenCotangent. */
async function pass(model: Siglip2Model): Promise<{ image: Float32Array; tokens: Float32Array }> {
  model.params.zeroGrad();
  const kept = scope(() => {
    const image = model.encodeNaflex(MIXED),
      { tokens } = model.naflexTokens(MIXED);
    backward([
      [image, tensor(cotangent, image.shape)],
      [tokens, tensor(tokenCotangent, tokens.shape)],
    ]);
    return { image, tokens };
  });
  const out = {
    image: (await kept.image.read()) as Float32Array,
    tokens: (await kept.tokens.read()) as Float32Array,
  };
  kept.image.dispose();
  kept.tokens.dispose();
  return out;
}

test('embeddings, tokens and all gradients as in PyTorch', async () => {
  using model = new Siglip2Model(config, { train: true });
  model.initialize(8);
  const { image, tokens } = await pass(model);
  writeFileSync(path('model.json'), JSON.stringify(config));
  await writeSafetensors(
    path('model.safetensors'),
    [...(await model.params.read())].map(([name, t]) => ({ name, dtype: 'F32' as const, ...t })),
  );
  await writeSafetensors(path('batch.safetensors'), [
    { name: 'patches', dtype: 'U8', shape: [S, M, K], data: pad(MIXED.patches, K) },
    { name: 'shapes', dtype: 'I32', shape: [S, 2], data: MIXED.shapes },
    { name: 'cotangent', dtype: 'F32', shape: [S, D], data: cotangent },
    { name: 'token_cotangent', dtype: 'F32', shape: [S, M, D], data: pad(tokenCotangent, D) },
  ]);
  run(
    'grads',
    '--config',
    path('model.json'),
    '--weights',
    path('model.safetensors'),
    '--batch',
    path('batch.safetensors'),
    '--out',
    path('grads.safetensors'),
  );
  const reader = await openSafetensors(path('grads.safetensors'));
  const errors = new Map([['image', rmse(image, await reader.readFloat32('out.image'))]]);
  const theirs = await reader.readFloat32('out.tokens');
  errors.set(
    'tokens',
    rmse(
      tokens,
      lengths.flatMap((n, s) => [...theirs.subarray(s * M * D, (s * M + n) * D)]),
    ),
  );
  for (const [name, { data }] of await model.params.read(model.params.grads!)) {
    if (!name.startsWith('vision_model.')) continue;
    const want = await reader.readFloat32(name);
    // A key bias shifts every logit of a row alike, so its gradient is zero but for rounding.
    if (/k_proj\.bias$/.test(name)) expect(Math.max(...want.map(Math.abs))).toBeLessThan(1e-12);
    else errors.set(name, rmse(data, want));
  }
  await reader.close();
  expect(errors.size).toBeGreaterThan(40);
  // Gradients of biases are sums over all tokens that nearly cancel; PyTorch in f32 is 5e-6 from its own f64 there.
  expect([...errors].filter(([name, e]) => !(e < (/\.bias$/.test(name) ? 2e-5 : 1e-5)))).toEqual(
    [],
  );
}, 120000);

test('checkpointing changes nothing', async () => {
  using plain = new Siglip2Model(config, { train: true });
  using model = new Siglip2Model(config, { train: true, checkpoint: true });
  plain.initialize(8);
  model.initialize(8);
  expect(await pass(model)).toEqual(await pass(plain));
  expect(await model.params.grads!.read()).toEqual(await plain.params.grads!.read());
});

test('grids and patches as with Pillow', async () => {
  const r = generator(3),
    pick = (n: number): number => Math.floor(((r() + 1) / 2) * n);
  const sizes = Array.from(
    { length: 10000 },
    (_, i) =>
      [
        1 + pick(i % 5 ? 3000 : 4),
        1 + pick(i % 3 ? 3000 : 30000),
        [14, 16, 32][i % 3]!,
        [64, 128, 256, 576, 784, 1024][pick(6)]!,
      ] as const,
  );
  await writeSafetensors(path('sizes.safetensors'), [
    {
      name: 'sizes',
      dtype: 'I64',
      shape: [sizes.length, 4],
      data: BigInt64Array.from(sizes.flat(), BigInt),
    },
  ]);
  run('grids', '--batch', path('sizes.safetensors'), '--out', path('grids.safetensors'));
  const images = (
    [
      [37, 91],
      [1, 1],
      [1, 700],
      [333, 20],
    ] as const
  ).map(([height, width], i) => ({
    name: `image${i}`,
    height,
    width,
    data: Uint8Array.from({ length: height * width * 3 }, () => pick(256)),
  }));
  await writeSafetensors(
    path('images.safetensors'),
    images.map(({ name, height, width, data }) => ({
      name,
      dtype: 'U8' as const,
      shape: [height, width, 3],
      data,
    })),
  );
  run(
    'patches',
    '--batch',
    path('images.safetensors'),
    '--patch',
    '8',
    '--tokens',
    '50',
    '--out',
    path('patches.safetensors'),
  );

  const grids = await openSafetensors(path('grids.safetensors'));
  const theirs = new BigInt64Array((await grids.read('grids')).slice().buffer);
  const wrong = sizes.filter(
    ([h, w, p, m], i) => naflexGrid(h, w, p, m).join() !== `${theirs[2 * i]},${theirs[2 * i + 1]}`,
  );
  expect(wrong).toEqual([]);
  await grids.close();
  const reader = await openSafetensors(path('patches.safetensors'));
  for (const { name, height, width, data } of images) {
    const ours = naflexImage({ data, height, width, channels: 3 }, 8, 50);
    expect(Buffer.from(await reader.read(name)).equals(Buffer.from(ours.patches))).toBe(true);
  }
  await reader.close();
}, 120000);

/** Embeddings by `encode`, and the gradients of Σ embedding·cotangent. */
async function gradients(
  model: Siglip2Model,
  encode: () => Tensor,
  weights = cotangent,
): Promise<{ image: Float32Array; grads: Float32Array }> {
  model.params.zeroGrad();
  const image = scope(() => {
    const y = encode();
    backward([[y, tensor(weights, y.shape)]]);
    return y;
  });
  const out = {
    image: (await image.read()) as Float32Array,
    grads: (await model.params.grads!.read()) as Float32Array,
  };
  image.dispose();
  return out;
}

test('a packed batch equals its images one by one, and the padded batch', async () => {
  using model = new Siglip2Model(config, { train: true });
  model.initialize(9);
  const packed = await gradients(model, () => model.encodeNaflex(MIXED));
  const padded = await gradients(model, () => encodePadded(model, MIXED));
  expect(rmse(padded.image, packed.image)).toBeLessThan(1e-6);
  expect(rmse(padded.grads, packed.grads)).toBeLessThan(1e-5);
  const sum = new Float64Array(packed.grads.length);
  for (let s = 0; s < S; s++) {
    const one: NaflexBatch = {
      patches: MIXED.patches.subarray(MIXED.offsets[s]! * K, MIXED.offsets[s + 1]! * K),
      offsets: Int32Array.of(0, lengths[s]!),
      shapes: MIXED.shapes.slice(2 * s, 2 * s + 2),
    };
    const { image, grads } = await gradients(
      model,
      () => model.encodeNaflex(one),
      cotangent.subarray(s * D, (s + 1) * D),
    );
    expect(rmse(image, packed.image.subarray(s * D, (s + 1) * D))).toBeLessThan(1e-6);
    grads.forEach((g, i) => {
      sum[i]! += g;
    });
  }
  expect(rmse(packed.grads, sum)).toBeLessThan(1e-5);
});

test('bf16 activations follow f32', async () => {
  using wide = new Siglip2Model(config, { train: true });
  using narrow = new Siglip2Model(config, { train: true, dtype: 'bf16' });
  wide.initialize(9);
  narrow.initialize(9);
  const a = await gradients(wide, () => wide.encodeNaflex(MIXED));
  const b = await gradients(narrow, () => narrow.encodeNaflex(MIXED));
  expect(rmse(b.image, a.image)).toBeLessThan(0.02);
  expect(rmse(b.grads, a.grads)).toBeLessThan(0.05);
});

test('an image with the grid of the positions is a fixed-resolution image', async () => {
  using model = new Siglip2Model(config);
  model.initialize(2);
  const side = 16 * P,
    r = generator(4);
  const data = Uint8Array.from({ length: side * side * 3 }, () => (r() + 1) * 127.99);
  const batch = packNaflex([naflexImage({ data, height: side, width: side, channels: 3 }, P, 256)]);
  expect([...batch.shapes]).toEqual([16, 16]);
  const out = scope(() => {
    const pixels = tensor(data, [1, side, side, 3]);
    return [
      model.encodeNaflex(batch),
      model.encodeImages(pixels),
      model.naflexTokens(batch).tokens,
      model.imageTokens(pixels),
    ];
  });
  const [a, b, c, d] = await Promise.all(out.map((t) => t.read()));
  expect(rmse(a!, b!)).toBeLessThan(1e-6);
  expect(rmse(c!, d!)).toBeLessThan(1e-6);
  expect(out.map((t) => t.shape)).toEqual([
    [1, D],
    [1, D],
    [256, D],
    [1, 256, D],
  ]);
  for (const t of out) t.dispose();
});

test('an image of one pixel and one of extreme shape are encoded', async () => {
  using model = new Siglip2Model(config);
  model.initialize(2);
  const out = scope(() =>
    model.encodeNaflex(
      batchOf([
        [1, 1, 64],
        [1, 5000, 300],
        [5000, 1, 300],
        [2, 2, 1],
      ]),
    ),
  );
  const values = (await out.read()) as Float32Array;
  out.dispose();
  for (let s = 0; s < 4; s++)
    expect(Math.hypot(...values.subarray(s * D, (s + 1) * D))).toBeCloseTo(1, 5);
});

test('embedding in batches by tokens, and tokens pooled apart, change nothing', async () => {
  using model = new Siglip2Model(config);
  model.initialize(2);
  const images = [
    [30, 90, 40],
    [200, 40, 64],
    [60, 50, 21],
    [5, 5, 9],
  ].map(([height, width, tokens], s) => {
    const r = generator(30 + s),
      data = Uint8Array.from({ length: height! * width! * 3 }, () => (r() + 1) * 127.99);
    return naflexImage({ data, height: height!, width: width!, channels: 3 }, P, tokens!);
  });
  const together = await embedNaflex(model, images);
  const [apart, alone] = [
    await embedNaflex(model, images, 70),
    await embedNaflex(model, images, 1),
  ];
  expect(together.length).toBe(4 * D);
  expect(rmse(apart, together)).toBeLessThan(1e-6);
  expect(rmse(alone, together)).toBeLessThan(1e-6);
  expect(await embedNaflex(model, [])).toEqual(new Float32Array(0));
  const pooled = scope(() => {
    const { tokens, packed } = model.naflexTokens(packNaflex(images));
    return model.poolTokens(tokens, { packed });
  });
  expect(rmse((await pooled.read()) as Float32Array, together)).toBeLessThan(1e-6);
  pooled.dispose();
});

test('a NaFlex checkpoint is written and read', async () => {
  using model = new Siglip2Model(config);
  model.initialize(6);
  await mkdir(path('checkpoint'));
  await modelFiles(path('checkpoint'), model, {
    vocab: null,
    tokenizer: null,
    lowercase: 'ascii',
    ema: null,
  });
  const { model: again } = await loadModel(path('checkpoint'));
  expect(again.config).toEqual(config);
  const [a, b] = scope(() => [model.encodeNaflex(MIXED), again.encodeNaflex(MIXED)] as const);
  expect(await b.read()).toEqual(await a.read());
  for (const t of [a, b, again]) t.dispose();
});

test('a fixed model and a batch that does not fit are refused', () => {
  using fixed = new Siglip2Model(modelConfig('test', { vocab: 31 }));
  expect(() => fixed.encodeNaflex(MIXED)).toThrow(ConfigError);
  expect(() => fixed.naflexTokens(MIXED)).toThrow(
    /test has a fixed resolution; use a NaFlex model/,
  );
  using model = new Siglip2Model(config);
  const encode = (change: Partial<NaflexBatch>) => () =>
    scope(() => model.encodeNaflex({ ...MIXED, ...change }));
  expect(encode({ patches: MIXED.patches.subarray(1) })).toThrow(ShapeError);
  expect(
    encode({ offsets: Int32Array.of(0), shapes: new Int32Array(0), patches: new Uint8Array(0) }),
  ).toThrow(/at least one image/);
  expect(encode({ shapes: MIXED.shapes.map((n) => -n) })).toThrow(ShapeError);
});
