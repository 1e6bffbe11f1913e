/** siglip2/kernels: the ops over typed arrays, in both precisions, and through the package's own export. */
import { afterAll, expect, test } from '@jest/globals';
import * as kernels from 'siglip2/kernels';
import { liveCount } from '../lib/tensor.js';
import { errorOf } from './data/support.js';
import { normal } from './harness.js';

afterAll(() => expect(liveCount()).toBe(0));
const array = (seed: number, ...shape: number[]): kernels.NdArray => ({
  data: normal(
    shape.reduce((a, b) => a * b, 1),
    seed,
    0.4,
  ),
  shape,
});
const near = (a: ArrayLike<number>, b: ArrayLike<number>, most: number): void => {
  expect(a.length).toBe(b.length);
  for (let i = 0; i < b.length; i++) expect(Math.abs(a[i]! - b[i]!)).toBeLessThan(most);
};

test('the printed examples', async () => {
  const y = await kernels.layerNorm({ data: Float32Array.of(1, 2, 3, 6), shape: [1, 4] });
  expect([y.shape, [...y.data].map((v) => Math.round(v * 100) / 100 + 0)]).toEqual([
    [1, 4],
    [-1.07, -0.53, 0, 1.6],
  ]);
  const x = { data: Float32Array.of(1, 0, 0, 1), shape: [2, 2] };
  expect((await kernels.sigmoidLoss(x, x)).loss.toFixed(4)).toBe('0.6932');
});

test('linear, attention and patch embedding against plain loops', async () => {
  const x = array(1, 2, 3, 5),
    w = array(2, 4, 5),
    bias = array(3, 4);
  const want = Float64Array.from({ length: 24 }, (_, i) => {
    let s = bias.data[i % 4]!;
    for (let k = 0; k < 5; k++) s += x.data[Math.floor(i / 4) * 5 + k]! * w.data[(i % 4) * 5 + k]!;
    return s;
  });
  const y = await kernels.linear(x, w, { bias });
  expect(y.shape).toEqual([2, 3, 4]);
  near(y.data, want, 1e-5);
  near((await kernels.linear(x, w, { bias, dtype: 'bf16' })).data, want, 0.03);

  // One key only: attention gives back its value.
  const qkv = array(4, 2, 1, 12);
  near(
    (await kernels.attention(qkv, { heads: 2 })).data,
    [...qkv.data.slice(8, 12), ...qkv.data.slice(20, 24)],
    1e-6,
  );
  const kv = array(5, 2, 3, 8);
  near(
    (
      await kernels.crossAttention(array(6, 1, 1, 4), kv, {
        heads: 1,
        keyLengths: Int32Array.of(1, 0),
      })
    ).data,
    [...kv.data.slice(4, 8), 0, 0, 0, 0],
    1e-6,
  );

  const images = { data: Uint8Array.of(0, 255, 51, 102, 204, 0), shape: [2, 1, 1, 3] };
  const patches = await kernels.patchEmbed(
    images,
    { data: Float32Array.of(1, 0, 0), shape: [1, 3, 1, 1] },
    { patch: 1 },
  );
  near(patches.data, [-1, -0.2], 1e-6);
});

test('rows, tokens and pixels', async () => {
  near(
    (await kernels.l2Normalize({ data: Float32Array.of(3, 4, 0, -2), shape: [2, 2] })).data,
    [0.6, 0.8, 0, -1],
    1e-6,
  );
  const tokens = await kernels.embedding(
    { data: Int32Array.of(1, 0), shape: [1, 2] },
    { data: Float32Array.of(1, 2), shape: [2, 1] },
    { data: Float32Array.of(10, 20), shape: [2, 1] },
  );
  expect([tokens.shape, [...tokens.data]]).toEqual([
    [2, 1],
    [12, 21],
  ]);
  const small = await kernels.resizeBilinear(
    { data: Uint8Array.of(10, 20, 30, 40), shape: [1, 2, 2, 1] },
    [1, 1],
  );
  expect([small.data.constructor.name, small.data[0]]).toEqual(['Uint8Array', 25]);
});

test('sigmoid loss: gradients against differences, in f32 and bf16', async () => {
  const x = await kernels.l2Normalize(array(7, 5, 8)),
    y = await kernels.l2Normalize(array(8, 5, 8));
  const at = (logScale: number, bias: number) => kernels.sigmoidLoss(x, y, { logScale, bias });
  const middle = await at(1.5, -2),
    h = 1e-2;
  expect(
    Math.abs(
      ((await at(1.5 + h, -2)).loss - (await at(1.5 - h, -2)).loss) / (2 * h) - middle.dlogScale,
    ),
  ).toBeLessThan(1e-3);
  expect(
    Math.abs(
      ((await at(1.5, -2 + h)).loss - (await at(1.5, -2 - h)).loss) / (2 * h) - middle.dbias,
    ),
  ).toBeLessThan(1e-3);
  expect([middle.dx.shape, middle.dy.shape]).toEqual([
    [5, 8],
    [5, 8],
  ]);
  const half = await kernels.sigmoidLoss(x, y, { logScale: 1.5, bias: -2, dtype: 'bf16' });
  expect(Math.abs(half.loss - middle.loss)).toBeLessThan(0.02);
  near(half.dx.data, middle.dx.data, 0.02);
});

test('wrong shapes are errors', async () => {
  expect(
    (await errorOf(() => kernels.layerNorm({ data: new Float32Array(3), shape: [2, 2] }))).code,
  ).toBe('ERR_SHAPE');
  expect((await errorOf(() => kernels.linear(array(1, 2, 3), array(1, 2, 4)))).code).toBe(
    'ERR_SHAPE',
  );
});

test('arguments of the wrong kind reject with one sentence', async () => {
  const x = array(1, 2, 4),
    qkv = array(2, 1, 3, 12);
  const wrong: [call: () => Promise<unknown>, code: string, says: string][] = [
    [() => kernels.layerNorm(undefined as never), 'ERR_SHAPE', 'x must be { data, shape }'],
    [
      () => kernels.layerNorm({ data: [1, 2], shape: [2] } as never),
      'ERR_SHAPE',
      'x must be { data, shape }, Float32Array',
    ],
    [
      () => kernels.layerNorm({ data: new Float32Array(4), shape: [-2, -2] }),
      'ERR_SHAPE',
      'whole numbers but is [-2, -2]',
    ],
    [
      () => kernels.l2Normalize(x, { dype: 'bf16' } as never),
      'ERR_CONFIG',
      'unknown option "dype"',
    ],
    [
      () => kernels.l2Normalize(x, { dtype: 'f16' } as never),
      'ERR_CONFIG',
      'dtype must be f32 or bf16 but is "f16"',
    ],
    [() => kernels.attention(qkv, undefined as never), 'ERR_CONFIG', '{ heads: … }'],
    [
      () => kernels.attention(qkv, { heads: 0 }),
      'ERR_CONFIG',
      'heads must be a positive integer but is 0',
    ],
    [() => kernels.linear(x, undefined as never), 'ERR_SHAPE', 'weight must be { data, shape }'],
    [
      () => kernels.embedding(x as never, x, x),
      'ERR_SHAPE',
      'ids must be { data, shape }, Int32Array',
    ],
    [
      () =>
        kernels.patchEmbed(
          { data: new Uint8Array(12), shape: [1, 2, 2, 3] },
          array(3, 4, 3, 4, 4),
          { patch: 4 },
        ),
      'ERR_SHAPE',
      'no patch of 4',
    ],
    [() => kernels.resizeBilinear(x, 3 as never), 'ERR_CONFIG', 'size must be [height, width]'],
    [
      () => kernels.resizeBilinear(array(1, 1, 2, 2, 3), [2] as never),
      'ERR_SHAPE',
      'the size must be two positive integers but is 2',
    ],
    [
      () => kernels.resizeBilinear(array(1, 1, 0, 2, 3), [2, 2]),
      'ERR_SHAPE',
      'x must have pixels but is [1, 0, 2, 3]',
    ],
    [
      () => kernels.layerNorm(array(1, 3, 0)),
      'ERR_SHAPE',
      'layerNorm: x must have values along its last axis but is [3, 0]',
    ],
    [
      () => kernels.l2Normalize(array(1, 0)),
      'ERR_SHAPE',
      'l2Normalize: x must have values along its last axis but is [0]',
    ],
    [
      () => kernels.linear(array(1, 2, 0), array(1, 4, 0)),
      'ERR_SHAPE',
      'linear: x must have values along its last axis but is [2, 0]',
    ],
    [
      () => kernels.sigmoidLoss(array(1, 0, 3), array(1, 0, 3)),
      'ERR_SHAPE',
      'x must have rows and columns but is [0, 3]',
    ],
    [
      () => kernels.attention(qkv, { heads: 2, keyLengths: Int32Array.of(4) }),
      'ERR_SHAPE',
      'keyLengths must be in [0, 3] but one is 4',
    ],
    [
      () =>
        kernels.crossAttention(array(1, 1, 2, 4), array(1, 1, 3, 8), {
          heads: 2,
          keyLengths: Int32Array.of(-1),
        }),
      'ERR_SHAPE',
      'must be in [0, 3] but one is -1',
    ],
    [() => kernels.sigmoidLoss(x, x, { bias: '1' } as never), 'ERR_CONFIG', 'must be numbers'],
  ];
  for (const [call, code, says] of wrong) {
    const error = await call().then(
      () => undefined,
      (e: Error & { code: string }) => e,
    ); // a rejection, not a throw
    expect(error).toMatchObject({ code, message: expect.stringContaining(says) });
  }
});
