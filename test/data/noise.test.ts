/** Swapped captions. */
import { afterAll, expect, test } from '@jest/globals';
import { swapCaptions } from '../../lib/data/noise.js';
import type { Sample } from '../../lib/data/sample.js';
import { liveCount } from '../../lib/tensor.js';

afterAll(() => expect(liveCount()).toBe(0));

const samples = (n: number, classes: number): Sample[] =>
  Array.from({ length: n }, (_, index) => ({
    index,
    key: `${index}`,
    image: { path: `${index}.png`, offset: 0, size: -1 },
    language: 'en',
    captions: { path: `${index}.txt`, offset: 0, size: -1, format: 'txt' },
    ...(classes ? { class: index % classes } : {}),
  }));
const captionsOf = (s: Sample): number => Number(s.captions.path.replace('.txt', ''));

test.each([
  [1000, 0, 0.4],
  [500, 7, 0.4],
  [30, 2, 1],
  [10, 5, 0],
])('%i samples of %i classes, %f swapped', (n, classes, share) => {
  const noisy = samples(n, classes),
    swapped = swapCaptions(noisy, share, 3);
  expect(swapped.reduce((a, b) => a + b, 0)).toBe(Math.round(share * n));
  expect(noisy.map(captionsOf).sort((a, b) => a - b)).toEqual(
    Array.from({ length: n }, (_, i) => i),
  );
  noisy.forEach((s, i) => {
    expect(captionsOf(s) !== i).toBe(swapped[i] === 1);
    if (swapped[i] && classes) expect(captionsOf(s) % classes).not.toBe(s.class);
    expect(s.image.path).toBe(`${i}.png`);
  });
  const again = samples(n, classes),
    other = samples(n, classes);
  expect(swapCaptions(again, share, 3)).toEqual(swapped);
  expect(again).toEqual(noisy);
  if (share > 0 && share < 1) expect(swapCaptions(other, share, 4)).not.toEqual(swapped);
});

test('captions of one class cannot be wrong', () => {
  expect(() => swapCaptions(samples(6, 1), 0.5, 1)).toThrow('too few classes');
  expect(() => swapCaptions(samples(6, 0), 1.5, 1)).toThrow('must be in [0, 1] but is 1.5');
});
