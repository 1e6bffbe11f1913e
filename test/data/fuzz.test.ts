import { afterAll, expect, test } from '@jest/globals';
import { liveCount } from '../../lib/tensor.js';
import { fuzzImages } from './fuzz.js';

afterAll(() => expect(liveCount()).toBe(0));

test('damaged images are decoded or refused with an error of ours', async () => {
  const result = await fuzzImages(400, 1);
  expect(result.failures).toEqual([]);
  const refused = Object.values(result.refused).reduce((a, b) => a + b, 0);
  expect(refused + result.opened).toBe(400);
  expect(refused).toBeGreaterThan(100);
  expect(result.opened).toBeGreaterThan(20);
  expect(result.growth).toBeLessThan(500e6);
}, 120_000);
