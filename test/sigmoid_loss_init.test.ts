/** The sigmoid loss at initialisation against its closed form, the sums of chunks, and memory that is never B×B. */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { sigmoidLoss, sigmoidLossBlock } from '../lib/ops/sigmoid_loss.js';
import { backward, noGrad, requireGrad } from '../lib/tape.js';
import {
  liveCount,
  memory,
  resetPeak,
  scope,
  synchronize,
  type Tensor,
  tensor,
  zeros,
} from '../lib/tensor.js';
import { normal } from './harness.js';
import { softplus } from './ops/sigmoid_loss.js';

let logScale: Tensor, bias: Tensor;
beforeAll(() => {
  logScale = tensor(Float32Array.of(Math.log(10)), [1]);
  bias = tensor(Float32Array.of(-10), [1]);
});
afterAll(() => {
  logScale.dispose();
  bias.dispose();
  expect(liveCount()).toBe(0);
});

/** Unit rows inside the first (part 0) or the second half (part 1) of D: every x_i·y_j is exactly 0. */
function half(B: number, D: number, part: 0 | 1): Tensor {
  const data = new Float32Array(B * D);
  for (let i = 0; i < B; i++) data[i * D + (part * D) / 2 + (i % (D / 2))] = 1;
  return tensor(data, [B, D]);
}

test.each([
  [256, 10.012],
  [4096, 10.186],
  [16384, 10.744],
  [32768, 11.488],
])(
  'n = %i: the loss is %f',
  async (n, recipe) => {
    const loss = scope(() =>
      noGrad(() => sigmoidLoss(half(n, 8, 0), half(n, 8, 1), logScale, bias)),
    );
    const got = await loss.item(),
      want = softplus(10) + (n - 1) * softplus(-10);
    loss.dispose();
    expect(Math.abs(got / want - 1)).toBeLessThanOrEqual(1e-6);
    expect(got.toFixed(3)).toBe(recipe.toFixed(3));
  },
  60_000,
);

test('d bias at n = 32768 is (n − 1)·σ(−10) − σ(10)', async () => {
  const n = 32768;
  const dbias = scope(() => {
    const out = zeros([1]);
    sigmoidLossBlock({
      x: half(n, 8, 0),
      y: half(n, 8, 1),
      logScale,
      bias,
      row0: 0,
      col0: 0,
      globalBatch: n,
      loss: zeros([1]),
      dx: null,
      dy: null,
      dlogScale: null,
      dbias: out,
    });
    return out;
  });
  const sigma = (v: number): number => 1 / (1 + Math.exp(-v));
  expect(await dbias.item()).toBeCloseTo((n - 1) * sigma(-10) - sigma(10), 6);
  dbias.dispose();
}, 60_000);

test('chunks of columns give what the whole batch gives', async () => {
  const B = 300,
    D = 20;
  const run = async (chunk: number): Promise<number[]> => {
    const out = scope(() => {
      const x = requireGrad(tensor(normal(B * D, 1, 0.2), [B, D])),
        y = requireGrad(tensor(normal(B * D, 2, 0.2), [B, D]));
      const loss = sigmoidLoss(x, y, logScale, bias, { chunk });
      const grads = backward([[loss, 0.5]]);
      return [loss, grads.get(x)!, grads.get(y)!];
    });
    const all = [];
    for (const t of out) {
      all.push(...Array.from(await t.read()));
      t.dispose();
    }
    return all;
  };
  const whole = await run(B);
  for (const chunk of [1, 77, 150, 299]) {
    const parts = await run(chunk);
    const scale = Math.max(...whole.slice(1).map(Math.abs));
    expect(Math.abs(parts[0]! / whole[0]! - 1)).toBeLessThan(1e-6);
    expect(Math.max(...whole.slice(1).map((v, i) => Math.abs(v - parts[i + 1]!)))).toBeLessThan(
      2e-6 * scale,
    );
  }
});

/** Bytes beyond inputs and their gradients that loss and gradients take at their peak. */
async function extraBytes(B: number, D: number): Promise<number> {
  const before = memory().live;
  const { made } = scope(() => {
    const x = requireGrad(tensor(normal(B * D, 1, 0.03), [B, D])),
      y = requireGrad(tensor(normal(B * D, 2, 0.03), [B, D]));
    resetPeak();
    const grads = backward(sigmoidLoss(x, y, logScale, bias));
    return { made: [x, y, grads.get(x)!, grads.get(y)!] };
  });
  await synchronize();
  const peak = memory().peak - before + memory().scratchPeak;
  const needed = made.reduce((sum, t) => sum + t.bytes, 0);
  for (const t of made) t.dispose();
  return peak - needed;
}

test('B = 16384, D = 64 adds a few MiB to inputs and gradients, where B×B would be 1 GiB', async () => {
  expect(await extraBytes(16384, 64)).toBeLessThanOrEqual(16 * 2 ** 20);
}, 60_000);
