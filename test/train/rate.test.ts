/** Examples a second, from the times at which steps ended. */
import { expect, test } from '@jest/globals';
import { Rate } from '../../lib/train/rate.js';

test('two steps that end together at a checkpoint do not look ten times as fast', () => {
  const rate = new Rate(0), seen: number[] = [];
  // Data come every 100 ms, a step takes 10: it is found ended when the next one is on its way, at a checkpoint at once.
  let now = 0;
  for (let step = 1; step <= 40; step++) {
    if (step % 10 === 0) now += 10;
    else if (step % 10 === 1 && step > 1) now += 190;
    else now += 100;
    seen.push(rate.add(64, now));
    if (step % 10 === 0) {
      rate.pause(5000);  // the checkpoint is written
      now += 5000;
    }
  }
  for (const r of seen) expect(Math.abs(r / 640 - 1)).toBeLessThan(0.12);
});

test('a speed that changes is seen within ten steps, and no time at all is no division by zero', () => {
  const rate = new Rate(0);
  for (let i = 1; i <= 20; i++) rate.add(10, 100 * i);
  for (let i = 1; i <= 9; i++) rate.add(10, 2000 + 10 * i);
  expect(rate.add(10, 2100)).toBeCloseTo(1000, 6);
  expect(Number.isFinite(new Rate(5).add(1, 5))).toBe(true);
});
