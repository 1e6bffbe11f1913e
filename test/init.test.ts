import { afterAll, expect, test } from '@jest/globals';
import type { Init } from '../lib/ops/init.js';
import { initialize } from '../lib/ops/init.js';
import { empty, liveCount } from '../lib/tensor.js';

afterAll(() => expect(liveCount()).toBe(0));

async function draw(init: Init, n: number, seed = 1, stream = 0): Promise<Float32Array> {
  const t = empty([n]);
  initialize(t, init, seed, stream);
  const data = (await t.read()) as Float32Array;
  t.dispose();
  return data;
}

/** Standard normal distribution function by the series of erf around zero (fine for |x| < 5). */
function phi(x: number): number {
  let term = x,
    sum = x;
  for (let k = 1; k < 120; k++) {
    term *= (x * x) / (2 * k + 1);
    sum += term;
  }
  return 0.5 + (sum * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
}

/** Largest distance between the empirical and the exact distribution (Kolmogorov–Smirnov), times √n. */
function distance(sample: Float32Array, cdf: (x: number) => number): number {
  const sorted = Float64Array.from(sample).sort();
  let worst = 0;
  sorted.forEach((x, i) => {
    worst = Math.max(worst, Math.abs(cdf(x) - (i + 0.5) / sorted.length));
  });
  return worst * Math.sqrt(sorted.length);
}

const N = 20000;
test('normal: the exact distribution', async () => {
  expect(distance(await draw({ kind: 'normal', std: 0.3 }, N), (x) => phi(x / 0.3))).toBeLessThan(
    1.63,
  ); // 1 % level
});
test('lecunNormal: truncated at two deviations, variance 1 / fanIn', async () => {
  const x = await draw({ kind: 'lecunNormal', fanIn: 100 }, N);
  const s = 0.1 / 0.87962566103423978,
    tail = phi(-2);
  expect(distance(x, (v) => (phi(v / s) - tail) / (1 - 2 * tail))).toBeLessThan(1.63);
  expect(Math.max(...x.map(Math.abs))).toBeLessThanOrEqual(2 * s * 1.000001);
  expect(x.reduce((sum, v) => sum + v * v, 0) / N).toBeCloseTo(0.01, 3);
});
test('xavierUniform: flat between its bounds', async () => {
  const bound = Math.sqrt(6 / 30);
  expect(
    distance(
      await draw({ kind: 'xavierUniform', fanIn: 10, fanOut: 20 }, N),
      (x) => (x / bound + 1) / 2,
    ),
  ).toBeLessThan(1.63);
});
test('constants', async () => {
  expect(Array.from(await draw({ kind: 'ones' }, 3))).toEqual([1, 1, 1]);
  expect(Array.from(await draw({ kind: 'zeros' }, 2))).toEqual([0, 0]);
  expect(Array.from(await draw({ kind: 'constant', value: -10 }, 1))).toEqual([-10]);
});
test('an element depends on seed, stream and index alone', async () => {
  const init: Init = { kind: 'normal', std: 1 };
  const long = await draw(init, 5001),
    short = await draw(init, 7);
  expect(Array.from(long.subarray(0, 7))).toEqual(Array.from(short));
  expect(Array.from(await draw(init, 7, 2))).not.toEqual(Array.from(short));
  expect(Array.from(await draw(init, 7, 1, 1))).not.toEqual(Array.from(short));
});
test('Philox4x32-10 gives the published words', async () => {
  // Counter 0, key 0 → 6627e8d5 e169c58d bc57ac4c 9b00dbd8 (the known-answer file of Random123).
  const x = await draw({ kind: 'xavierUniform', fanIn: 3, fanOut: 3 }, 4, 0, 0); // bound 1
  const words = [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8];
  words.forEach((w, i) => expect(x[i]).toBeCloseTo((2 * (w + 0.5)) / 2 ** 32 - 1, 6));
});
