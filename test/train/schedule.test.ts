import { expect, test } from '@jest/globals';
import { ConfigError } from '../../lib/errors.js';
import type { Schedule } from '../../lib/optim/schedule.js';
import { checkSchedule, scheduleMultiplier } from '../../lib/optim/schedule.js';

// SigLIP 2: 40e9 examples in batches of 32,768, 20,000 steps of warm-up, peak learning rate 1e-3.
const SIGLIP2: Schedule = { kind: 'cosine', total: 1_220_703, warmup: 20_000 };

test.each([
  [80, 9.86e-5],
  [90, 2.53e-5],
  [95, 6.36e-6],
  [99, 2.55e-7],
])('the learning rate of SigLIP 2 after %d %% of the run is %d', (percent, rate) => {
  const value = 1e-3 * scheduleMultiplier(SIGLIP2, (SIGLIP2.total * percent) / 100);
  expect(value.toPrecision(3)).toBe(rate.toPrecision(3));
});

test('warm-up, peak and end', () => {
  expect(scheduleMultiplier(SIGLIP2, 0)).toBe(0);
  expect(scheduleMultiplier(SIGLIP2, 10_000)).toBe(0.5);
  expect(scheduleMultiplier(SIGLIP2, 20_000)).toBe(1);
  expect(scheduleMultiplier(SIGLIP2, SIGLIP2.total)).toBe(0);
  expect(scheduleMultiplier(SIGLIP2, 2 * SIGLIP2.total)).toBe(0);
  expect(scheduleMultiplier({ kind: 'cosine', total: 10, warmup: 0 }, 0)).toBe(1);
  expect(scheduleMultiplier({ kind: 'cosine', total: 10, warmup: 0 }, 5)).toBeCloseTo(0.5, 12);
  expect(scheduleMultiplier({ kind: 'cosine', total: 10, warmup: 10 }, 9)).toBe(0.9);
  expect(scheduleMultiplier({ kind: 'constant', total: 10, warmup: 4 }, 2)).toBe(0.5);
  expect(scheduleMultiplier({ kind: 'constant', total: 10, warmup: 4 }, 9)).toBe(1);
});

test('a schedule that cannot be followed is a ConfigError', () => {
  expect(checkSchedule(SIGLIP2)).toBe(SIGLIP2);
  for (const [change, message] of [
    [
      { warmup: 2e6 },
      /warm-up must be between 0 and the 1220703 steps of the run \(total\) but is 2000000; give fewer steps/,
    ],
    [{ warmup: -1 }, /warm-up/],
    [{ warmup: NaN }, /warm-up/],
    [{ total: 0 }, /at least one step but has 0/],
    [{ total: Infinity }, /at least one step/],
    [{ kind: 'linear' as 'cosine' }, /"cosine" or "constant" but got "linear"/],
  ] as const) {
    const check = (): unknown => checkSchedule({ ...SIGLIP2, ...change });
    expect(check).toThrow(ConfigError);
    expect(check).toThrow(message);
  }
});
