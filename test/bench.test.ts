/** What the benchmarks say of a few samples. */
import { expect, test } from '@jest/globals';
import { timing } from '../bench/measure.js';

test('a percentile is given from twenty samples on; below, their number and the largest', () => {
  expect(timing([3, 1, 2, 5, 4])).toEqual({ median: 3, max: 5, n: 5 });
  expect(timing(Array.from({ length: 21 }, (_, i) => i))).toEqual({
    median: 10,
    max: 20,
    n: 21,
    p95: 19,
  });
});
