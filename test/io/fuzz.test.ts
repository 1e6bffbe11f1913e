import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { liveCount } from '../../lib/tensor.js';
import { fuzzCheckpoints } from './fuzz.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-fuzz-'));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

test('damaged checkpoints open or are refused with an error of ours', async () => {
  const result = await fuzzCheckpoints(folder, 500, 1);
  expect(result.failures).toEqual([]);
  const refused = Object.values(result.refused).reduce((a, b) => a + b, 0);
  expect(refused + result.opened).toBe(500);
  expect(refused).toBeGreaterThan(100);
  expect(result.growth).toBeLessThan(500e6);
});
