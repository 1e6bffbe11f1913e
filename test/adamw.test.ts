/** AdamW over an arena: twenty steps against float64, and the same bits for any number of threads. */
import { afterAll, expect, test } from '@jest/globals';
import { adamwStep, sumOfSquares } from '../lib/ops/adamw.js';
import { empty, liveCount, synchronize, type Tensor, tensor, zeros } from '../lib/tensor.js';
import { outputWithThreads } from './child.js';
import { fromBf16, nmse, normal, toBf16 } from './harness.js';

afterAll(() => expect(liveCount()).toBe(0));

const { fround, sqrt } = Math;
// As the kernel receives them: f32.
const lr = fround(3e-3),
  beta1 = fround(0.9),
  beta2 = fround(0.95),
  eps = fround(1e-8),
  decay = fround(2e-3),
  emaDecay = fround(0.97);

interface Segment {
  end: number;
  decays: boolean;
  lrScale: number;
}
interface Result {
  param: Float32Array;
  m: Float32Array;
  v: Float32Array;
  ema: Float32Array;
  copy: Uint16Array;
  norms: number[];
}

/** Gradients of step t, other ones at every step. */
const gradient = (N: number, t: number): Float32Array => normal(N, 100 + t, 0.5 + 0.1 * (t % 5));

async function run(
  N: number,
  segments: readonly Segment[],
  steps: number,
  clip: number,
): Promise<Result> {
  const param = tensor(normal(N, 1), [N]),
    ema = tensor(normal(N, 1), [N]),
    m = zeros([N]),
    v = zeros([N]);
  const copy = empty([N], 'bf16'),
    grad = empty([N]),
    norm2 = empty([1]);
  const table = tensor(Int32Array.from(segments.flatMap((s) => [s.end, s.decays ? 1 : 0])), [
    segments.length,
    2,
  ]);
  const lrScale = tensor(
    Float32Array.from(segments, (s) => s.lrScale),
    [segments.length],
  );
  const norms: number[] = [];
  for (let step = 1; step <= steps; step++) {
    grad.write(gradient(N, step));
    sumOfSquares(norm2, grad);
    adamwStep({
      param,
      m,
      v,
      ema,
      copy,
      grad,
      norm2,
      segments: table,
      lrScale,
      step,
      lr,
      beta1,
      beta2,
      eps,
      decay,
      clip,
      emaDecay,
    });
    norms.push(await norm2.item());
  }
  const result = {
    param: await param.read(),
    m: await m.read(),
    v: await v.read(),
    ema: await ema.read(),
    copy: await copy.read(),
    norms,
  } as Result;
  for (const t of [param, ema, m, v, copy, grad, norm2, table, lrScale]) t.dispose();
  return result;
}

function reference(N: number, segments: readonly Segment[], steps: number, clip: number) {
  const param = Float64Array.from(normal(N, 1)),
    ema = param.slice(),
    m = new Float64Array(N),
    v = new Float64Array(N);
  const norms: number[] = [];
  for (let step = 1; step <= steps; step++) {
    const grad = gradient(N, step);
    let norm2 = 0;
    for (const g of grad) norm2 += g * g;
    norms.push(norm2);
    const factor = sqrt(norm2) > clip ? clip / sqrt(norm2) : 1,
      c1 = 1 - beta1 ** step,
      c2 = 1 - beta2 ** step;
    for (let i = 0, s = 0; i < N; i++) {
      while (i >= segments[s]!.end) s++;
      const g = grad[i]! * factor,
        own = segments[s]!;
      m[i] = beta1 * m[i]! + (1 - beta1) * g;
      v[i] = beta2 * v[i]! + (1 - beta2) * g * g;
      const theta = param[i]!;
      param[i] =
        theta -
        (lr * own.lrScale * (m[i]! / c1)) / (sqrt(v[i]! / c2) + eps) -
        (own.decays ? decay * theta : 0);
      ema[i]! += (1 - emaDecay) * (param[i]! - ema[i]!);
    }
  }
  return { param, ema, m, v, norms };
}

const SEGMENTS: Segment[] = [
  { end: 1, decays: true, lrScale: 1 },
  { end: 700, decays: false, lrScale: 1 },
  { end: 701, decays: true, lrScale: 8 },
  { end: 70_000, decays: true, lrScale: 1 },
  { end: 140_003, decays: false, lrScale: 20 },
  { end: 140_111, decays: false, lrScale: 0 },
];
const N = SEGMENTS.at(-1)!.end;

test.each([
  ['clipped', 1],
  ['not clipped', 1e9],
  ['clipped in some steps', 170],
])(
  '20 steps, gradients %s',
  async (_, clip) => {
    const got = await run(N, SEGMENTS, 20, clip),
      want = reference(N, SEGMENTS, 20, clip);
    for (const name of ['param', 'ema', 'm', 'v', 'norms'] as const)
      expect([name, nmse(got[name], want[name]) < 1e-12]).toEqual([name, true]);
    // Segment by segment, so that a large one cannot hide a wrong small one.
    const before = Float64Array.from(normal(N, 1));
    let begin = 0;
    for (const { end } of SEGMENTS) {
      const moved = (p: ArrayLike<number>) =>
        Float64Array.from({ length: end - begin }, (_, i) => p[begin + i]! - before[begin + i]!);
      expect([end, nmse(moved(got.param), moved(want.param)) < 1e-9]).toEqual([end, true]);
      begin = end;
    }
    // The copy is the new weight, rounded to nearest even.
    expect(got.copy.every((w, i) => fromBf16(w) === fromBf16(toBf16(got.param[i]!)))).toBe(true);
  },
  30_000,
);

test('a segment table that does not cover the arena, or a step 0, is an error', async () => {
  const one = tensor(Float32Array.of(1), [1]),
    two = zeros([2]),
    short = tensor(Int32Array.of(1, 1), [1, 2]),
    full = tensor(Int32Array.of(2, 1), [1, 2]);
  const step = async (segments: Tensor, count: number): Promise<void> => {
    adamwStep({
      param: two,
      m: two,
      v: two,
      ema: null,
      copy: null,
      grad: two,
      norm2: one,
      segments,
      lrScale: one,
      step: count,
      lr,
      beta1,
      beta2,
      eps,
      decay,
      clip: 1,
      emaDecay,
    });
    await synchronize();
  };
  await expect(step(short, 1)).rejects.toThrow(
    'adamw_step: the segments end at 1 but there are 2 weights',
  );
  await expect(step(full, 0)).rejects.toThrow('adamw_step: steps count from 1 but this is step 0');
  await step(full, 1);
  for (const t of [one, two, short, full]) t.dispose();
});

test('1, 2 and 3 threads give the same bits', () => {
  const source = `
    import { createHash } from 'node:crypto';
    import { adamwStep, sumOfSquares } from 'lib/ops/adamw.js';
    import { initialize } from 'lib/ops/init.js';
    import { empty, tensor, zeros } from 'lib/tensor.js';
    const N = 300007, hash = createHash('sha256');
    const drawn = (stream) => { const t = empty([N]); initialize(t, { kind: 'normal', std: 1 }, 3, stream); return t; };
    const all = { param: drawn(0), ema: drawn(1), m: zeros([N]), v: zeros([N]), copy: empty([N], 'bf16'), norm2: empty([1]) };
    const segments = tensor(Int32Array.of(100003, 1, 200001, 0, N, 1), [3, 2]), lrScale = tensor(Float32Array.of(1, 7, 1), [3]);
    for (let step = 1; step <= 3; step++) {
      const grad = drawn(10 + step);
      sumOfSquares(all.norm2, grad);
      adamwStep({ ...all, grad, segments, lrScale, step, lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 1e-4, clip: 1, emaDecay: 0.99 });
    }
    for (const t of Object.values(all)) hash.update(await t.read());
    console.log(hash.digest('hex'));`;
  const bits = [1, 2, 3].map((n) => outputWithThreads(n, source));
  expect(bits[0]).toMatch(/^[0-9a-f]{64}/);
  expect(new Set(bits).size).toBe(1);
}, 30_000);
