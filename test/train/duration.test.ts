import { expect, test } from '@jest/globals';
import { ConfigError } from '../../lib/errors.js';
import type { Duration } from '../../lib/optim/duration.js';
import { toSteps } from '../../lib/optim/duration.js';

const CONTEXT = { name: 'warmup', batch: 64, examples: 6400, total: 2000 };

test.each<[Duration, number]>([
  [500, 500],
  [0, 0],
  ['500', 500],
  ['1_000', 1000],
  ['1e3 steps', 1000],
  ['1 step', 1],
  [{ steps: 12 }, 12],
  [{ examples: 64000 }, 1000],
  ['64000 examples', 1000],
  ['96 examples', 2],
  [{ examples: 1 }, 1],
  [{ examples: 0 }, 0],
  [{ epochs: 2 }, 200],
  ['0.5 epochs', 50],
  ['1 Epoch', 100],
  ['10%', 200],
  ['2.5 %', 50],
  ['0%', 0],
  ['100%', 2000],
  ['0.0001%', 1],
])('%j is %d steps', (duration, steps) => {
  expect(toSteps(duration, CONTEXT)).toBe(steps);
});

test.each<[unknown, RegExp]>([
  ['ten', /warmup: "ten" is no duration; accepted are a number of steps, "500 steps"/],
  ['', /is no duration/],
  ['-5%', /is no duration/],
  ['5 minutes', /is no duration/],
  ['1e999', /is no duration/],
  [-1, /warmup: -1 is no duration/],
  [NaN, /is no duration/],
  [Infinity, /is no duration/],
  [null, /null is no duration/],
  [undefined, /nothing is no duration/],
  [{}, /is no duration/],
  [{ hours: 1 }, /\{"hours":1\} is no duration/],
  [{ steps: 1, epochs: 1 }, /is no duration/],
  [{ steps: '1' }, /is no duration/],
  [[5], /is no duration/],
  [1e300, /too many steps/],
])('%j is a ConfigError', (duration, message) => {
  const convert = (): unknown => toSteps(duration as Duration, CONTEXT);
  expect(convert).toThrow(ConfigError);
  expect(convert).toThrow(message);
});

test('epochs need a known size, percent a known run', () => {
  expect(() => toSteps('1 epoch', { name: 'total', batch: 8 })).toThrow(
    /total: the data set has no known size/,
  );
  expect(() => toSteps('10%', { name: 'total', batch: 8 })).toThrow(
    /total: is the length of the run itself/,
  );
  expect(toSteps('80 examples', { name: 'total', batch: 8 })).toBe(10);
});
