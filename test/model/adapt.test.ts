/** Position and patch-kernel resizing against PyTorch, numpy and the properties that define them. */
import { afterAll, expect, test } from '@jest/globals';
import { CheckpointError, ConfigError } from '../../lib/errors.js';
import { naflexImage, packNaflex } from '../../lib/image/naflex.js';
import {
  adaptModel,
  adaptTensors,
  convolutionKernel,
  flatKernel,
  type Matrix,
  piResize,
  pseudoInverse,
  resizeMatrix,
  resizePositions,
} from '../../lib/model/adapt.js';
import { type ModelConfig, type ModelOverrides, modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { liveCount, scope, type Tensor, tensor } from '../../lib/tensor.js';
import { generator, normal } from '../harness.js';
import { answer } from '../oracle.js';

afterAll(() => expect(liveCount()).toBe(0));

/** Runs Python with a JSON value as `x`; what it puts into `y` comes back. */
function askPython<T>(name: string, x: unknown, code: string): T {
  const program = [
    'import json, sys',
    'import numpy as np, torch',
    'import torch.nn.functional as F',
    'x = json.load(sys.stdin)',
    code,
    'print(json.dumps(y))',
  ].join('\n');
  return JSON.parse(
    answer(`adapt-${name}`, { args: ['-c', program], input: JSON.stringify(x) }),
  ) as T;
}
const largest = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let most = a.length === b.length ? 0 : NaN;
  for (let i = 0; i < b.length; i++) most = Math.max(most, Math.abs(a[i]! - b[i]!));
  return most;
};

function times(a: Matrix, b: Matrix): Matrix {
  const data = new Float64Array(a.rows * b.columns);
  for (let i = 0; i < a.rows; i++)
    for (let j = 0; j < b.columns; j++)
      for (let k = 0; k < a.columns; k++)
        data[i * b.columns + j]! += a.data[i * a.columns + k]! * b.data[k * b.columns + j]!;
  return { rows: a.rows, columns: b.columns, data };
}
const transposed = (a: Matrix): Matrix => ({
  rows: a.columns,
  columns: a.rows,
  data: Float64Array.from(
    a.data,
    (_, i) => a.data[(i % a.rows) * a.columns + Math.floor(i / a.rows)]!,
  ),
});

test('pseudo-inverses satisfy the Penrose conditions', () => {
  const wrong: object[] = [];
  for (let from = 1; from <= 20; from++)
    for (const to of [1, 2, 7, 14, 16, 17, 32]) {
      const a = resizeMatrix(from, to, 'linear'),
        p = pseudoInverse(a),
        ap = times(a, p),
        pa = times(p, a);
      const error = Math.max(
        largest(times(ap, a).data, a.data),
        largest(times(pa, p).data, p.data),
        largest(transposed(ap).data, ap.data),
        largest(transposed(pa).data, pa.data),
      );
      if (!(error < 1e-12)) wrong.push({ from, to, error });
    }
  expect(wrong).toEqual([]);
});

/** Bilinear resize of one patch with half-pixel centres, edges repeated, no antialiasing. */
function bilinear(x: ArrayLike<number>, from: number, to: number): Float64Array {
  const y = new Float64Array(to * to),
    clamp = (v: number): number => Math.min(from - 1, Math.max(0, v));
  const place = (i: number): [number, number, number] => {
    const c = ((i + 0.5) * from) / to - 0.5,
      low = Math.floor(c);
    return [clamp(low), clamp(low + 1), c - low];
  };
  for (let i = 0; i < to; i++)
    for (let j = 0; j < to; j++) {
      const [a, b, u] = place(i),
        [c, d, v] = place(j);
      const line = (row: number): number => (1 - v) * x[row * from + c]! + v * x[row * from + d]!;
      y[i * to + j] = (1 - u) * line(a) + u * line(b);
    }
  return y;
}
const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
};

test.each([
  [16, 32],
  [14, 16],
  [16, 16],
  [7, 20],
])('kernel %d→%d on the enlarged patch is what it was', (from, to) => {
  const planes = 6,
    kernels = normal(planes * from * from, 1),
    resized = piResize(kernels, from, to);
  for (let n = 0; n < planes; n++) {
    const patch = normal(from * from, 50 + n);
    const before = dot(patch, kernels.subarray(n * from * from, (n + 1) * from * from));
    const after = dot(bilinear(patch, from, to), resized.subarray(n * to * to, (n + 1) * to * to));
    expect(Math.abs(after - before)).toBeLessThan(1e-6 * from);
  }
});

test.each([
  [16, 14],
  [16, 5],
])('kernel %d→%d is the least-squares solution', (from, to) => {
  const kernel = normal(from * from, 2),
    resized = piResize(kernel, from, to);
  // Bᵀ·ŵ, then B·(Bᵀ·ŵ − w) = 0: the residual is orthogonal to all that Bᵀ can reach.
  const unit = (i: number): Float64Array =>
    bilinear(
      Float64Array.from({ length: from * from }, (_, k) => Number(k === i)),
      from,
      to,
    );
  const residual = Float64Array.from(kernel, (w, i) => dot(unit(i), resized) - w);
  expect(Math.max(...bilinear(residual, from, to).map(Math.abs))).toBeLessThan(1e-6);
  expect(Math.max(...residual.map(Math.abs))).toBeGreaterThan(1e-3);
});

test("kernels are numpy's least-squares solutions, positions are resized as in PyTorch", () => {
  const kernels = (
    [
      [16, 14],
      [16, 32],
    ] as const
  ).map(([from, to], i) => ({ from, to, w: [...normal(2 * from * from, 3 + i)] }));
  const grids = (
    [
      [16, 16, 24, 24],
      [16, 16, 7, 27],
      [5, 9, 3, 1],
    ] as const
  ).flatMap(([h, w, oh, ow]) =>
    (['antialias', 'linear', 'corners'] as const).map((filter) => ({
      h,
      w,
      oh,
      ow,
      filter,
      p: [...normal(h * w * 3, 4)],
    })),
  );
  const theirs = askPython<{ kernels: number[][]; grids: number[][] }>(
    'resizes',
    { kernels, grids },
    `
def kernel(w, n, m):
    unit = torch.eye(n * n, dtype=torch.float64).view(-1, 1, n, n)
    enlarge = F.interpolate(unit, (m, m), mode='bilinear', align_corners=False).flatten(1).numpy()
    return np.linalg.lstsq(enlarge, np.array(w).reshape(2, -1).T, rcond=None)[0].T.ravel().tolist()
def positions(g):
    grid = torch.tensor(g['p'], dtype=torch.float64).view(1, g['h'], g['w'], 3).permute(0, 3, 1, 2)
    out = F.interpolate(grid, (g['oh'], g['ow']), mode='bilinear', align_corners=g['filter'] == 'corners',
                        antialias=g['filter'] == 'antialias')
    return out.permute(0, 2, 3, 1).flatten().tolist()
y = {'kernels': [kernel(k['w'], k['from'], k['to']) for k in x['kernels']], 'grids': [positions(g) for g in x['grids']]}`,
  );
  kernels.forEach(({ from, to, w }, i) =>
    expect(largest(piResize(Float32Array.from(w), from, to), theirs.kernels[i]!)).toBeLessThan(
      2e-6,
    ),
  );
  grids.forEach(({ h, w, oh, ow, filter, p }, i) =>
    expect(
      largest(resizePositions(Float32Array.from(p), [h, w], [oh, ow], filter), theirs.grids[i]!),
    ).toBeLessThan(1e-6),
  );
}, 120000);

test('the default is antialiased, and corners keep the corners', () => {
  const D = 2,
    positions = normal(16 * D, 5);
  expect(resizePositions(positions, [4, 4], [2, 2])).toEqual(
    resizePositions(positions, [4, 4], [2, 2], 'antialias'),
  );
  expect(resizePositions(positions, [4, 4], [4, 4])).toEqual(positions);
  const corners = resizePositions(positions, [4, 4], [7, 7], 'corners');
  for (const [from, to] of [
    [0, 0],
    [3, 6],
    [12, 42],
    [15, 48],
  ] as const)
    expect(corners.subarray(to * D, (to + 1) * D)).toEqual(
      positions.subarray(from * D, (from + 1) * D),
    );
});

test('flat kernels and back', () => {
  const P = 3,
    kernel = normal(2 * 3 * P * P, 6),
    flat = flatKernel(kernel, P);
  for (let d = 0; d < 2; d++)
    for (let c = 0; c < 3; c++)
      for (let i = 0; i < P * P; i++)
        expect(flat[d * 27 + i * 3 + c]).toBe(kernel[d * 27 + c * 9 + i]);
  expect(convolutionKernel(flat, P)).toEqual(kernel);
});

const make = (patch: number, imageSize: number, more: ModelOverrides = {}): ModelConfig =>
  modelConfig('test', { vocab: 13, ...more, vision: { patch, imageSize } });
function fresh(patch: number, imageSize: number, more: ModelOverrides = {}): Siglip2Model {
  const model = new Siglip2Model(make(patch, imageSize, more));
  model.initialize(7);
  return model;
}
const noise = (side: number): Uint8Array => {
  const r = generator(8);
  return Uint8Array.from({ length: side * side * 3 }, () => (r() + 1) * 127.99);
};
async function values(encode: () => Tensor): Promise<Float32Array> {
  const y = scope(encode),
    out = (await y.read()) as Float32Array;
  y.dispose();
  return out;
}

test('a fixed-resolution model as NaFlex, and back bit for bit', async () => {
  using fixed = fresh(4, 64);
  using naflex = await adaptModel(fixed, make(4, 64, { naflex: true }));
  const data = noise(64),
    batch = packNaflex([naflexImage({ data, height: 64, width: 64, channels: 3 }, 4, 256)]);
  const a = await values(() => fixed.encodeImages(tensor(data, [1, 64, 64, 3])));
  const b = await values(() => naflex.encodeNaflex(batch));
  expect(largest(a, b)).toBeLessThan(1e-6);
  using back = await adaptModel(naflex, fixed.config);
  expect(await back.params.read()).toEqual(await fixed.params.read());
});

test('a NaFlex model fixed to a larger grid gives the same embedding', async () => {
  using naflex = fresh(4, 64, { naflex: true });
  using fixed = await adaptModel(naflex, make(4, 96));
  const data = noise(96),
    batch = packNaflex([naflexImage({ data, height: 96, width: 96, channels: 3 }, 4, 576)]);
  expect([...batch.shapes]).toEqual([24, 24]);
  const a = await values(() => fixed.encodeImages(tensor(data, [1, 96, 96, 3])));
  const b = await values(() => naflex.encodeNaflex(batch));
  expect(largest(a, b)).toBeLessThan(1e-6);
});

test('patch 16 becomes 32: the same tokens for patches that were enlarged', async () => {
  using small = fresh(16, 32);
  using large = await adaptModel(small, make(32, 64));
  // Multiples of 16 stay integers when a patch is enlarged: its weights are sixteenths.
  const pixels = noise(32).map((v) => Math.floor(v / 16) * 16),
    enlarged = new Uint8Array(64 * 64 * 3);
  for (let patch = 0; patch < 4; patch++)
    for (let c = 0; c < 3; c++) {
      const row = Math.floor(patch / 2),
        column = patch % 2;
      const from = Array.from(
        { length: 256 },
        (_, i) => pixels[((row * 16 + Math.floor(i / 16)) * 32 + column * 16 + (i % 16)) * 3 + c]!,
      );
      bilinear(from, 16, 32).forEach((v, i) => {
        expect(Number.isInteger(v)).toBe(true);
        enlarged[((row * 32 + Math.floor(i / 32)) * 64 + column * 32 + (i % 32)) * 3 + c] = v;
      });
    }
  const a = await values(() => small.imageTokens(tensor(pixels, [1, 32, 32, 3])));
  const b = await values(() => large.imageTokens(tensor(enlarged, [1, 64, 64, 3])));
  expect(largest(a, b)).toBeLessThan(2e-5);
});

test('patch 16 at 64 px becomes patch 14 at 84 px, flat or not', async () => {
  using model = fresh(16, 64);
  using fixed = await adaptModel(model, make(14, 84));
  using naflex = await adaptModel(model, make(14, 84, { naflex: true }));
  const data = noise(84),
    batch = packNaflex([naflexImage({ data, height: 84, width: 84, channels: 3 }, 14, 36)]);
  const a = await values(() => fixed.encodeImages(tensor(data, [1, 84, 84, 3])));
  const b = await values(() => naflex.encodeNaflex(batch));
  expect(largest(a, b)).toBeLessThan(1e-6);
  const name = 'vision_model.encoder.layers.1.mlp.fc1.weight';
  expect((await fixed.params.read()).get(name)).toEqual((await model.params.read()).get(name));
});

test('what cannot be adapted is refused', async () => {
  using model = fresh(4, 32);
  const tensors = await model.params.read(),
    { config } = model;
  expect(() => adaptTensors(tensors, config, modelConfig('micro', { vocab: 13 }))).toThrow(
    ConfigError,
  );
  expect(() => adaptTensors(tensors, config, make(4, 32, { vocab: 14 }))).toThrow(
    /text.vocab must stay 13 but is to be 14/,
  );
  expect(() => adaptTensors(tensors, make(4, 64), make(4, 32))).toThrow(CheckpointError);
  const without = new Map(tensors);
  without.delete('vision_model.embeddings.patch_embedding.weight');
  expect(() => adaptTensors(without, config, make(8, 32))).toThrow(
    /patch_embedding.weight" must be \[32, 3, 4, 4\] but is missing/,
  );
  const more = new Map(tensors).set('decoder.weight', { shape: [1], data: Float32Array.of(3) });
  expect(adaptTensors(more, config, make(8, 32)).get('decoder.weight')?.data).toEqual(
    Float32Array.of(3),
  );
});
