/** Swapped captions, and batches of some samples of a batch. */
import { expect, test } from '@jest/globals';
import { takeSamples } from '../../lib/data/batch.js';
import type { Batch } from '../../lib/data/loader.js';
import { swapCaptions } from '../../lib/data/noise.js';
import type { Sample } from '../../lib/data/source.js';
import { liveCount } from '../../lib/tensor.js';

const samples = (n: number, classes: number): Sample[] => Array.from({ length: n }, (_, index) => ({
  index, key: `${index}`, image: { path: `${index}.png`, offset: 0, size: -1 }, language: 'en',
  captions: { path: `${index}.txt`, offset: 0, size: -1, format: 'txt' }, ...(classes ? { class: index % classes } : {}) }));
const captionsOf = (s: Sample): number => Number(s.captions.path.replace('.txt', ''));

test.each([[1000, 0, 0.4], [500, 7, 0.4], [30, 2, 1], [10, 5, 0]])('%i samples of %i classes, %f swapped', (n, classes, share) => {
  const noisy = samples(n, classes), swapped = swapCaptions(noisy, share, 3);
  expect(swapped.reduce((a, b) => a + b, 0)).toBe(Math.round(share * n));
  expect(noisy.map(captionsOf).sort((a, b) => a - b)).toEqual(Array.from({ length: n }, (_, i) => i));
  noisy.forEach((s, i) => {
    expect(captionsOf(s) !== i).toBe(swapped[i] === 1);
    if (swapped[i] && classes) expect(captionsOf(s) % classes).not.toBe(s.class);
    expect(s.image.path).toBe(`${i}.png`);
  });
  const again = samples(n, classes), other = samples(n, classes);
  expect(swapCaptions(again, share, 3)).toEqual(swapped);
  expect(again).toEqual(noisy);
  if (share > 0 && share < 1) expect(swapCaptions(other, share, 4)).not.toEqual(swapped);
});

test('captions of one class cannot be wrong', () => {
  expect(() => swapCaptions(samples(6, 1), 0.5, 1)).toThrow('too few classes');
  expect(() => swapCaptions(samples(6, 0), 1.5, 1)).toThrow('must be in [0, 1] but is 1.5');
});

test('some samples of a batch, with everything that belongs to them', () => {
  const batch = {
    size: 3, index: 7, epoch: 1, waitMs: 0, images: Uint8Array.of(0, 1, 10, 11, 20, 21), ids: Int32Array.of(0, 1, 2, 100, 101, 102),
    keys: ['a', 'b', 'c'], langs: ['en', 'en', 'en', 'de', 'fr', 'el'], texts: ['a1', 'b1', 'c1', 'a2', 'b2', 'c2'],
    samples: Int32Array.of(5, 6, 7), classes: Int32Array.of(1, 2, 3), sequences: [[null, null, null]], resized: [Uint8Array.of(8, 9, 10)],
    naflex: { length: 4, patches: Uint8Array.of(1, 2, 2, 3, 3, 3), offsets: Int32Array.of(0, 1, 3, 6), shapes: Int32Array.of(1, 1, 1, 2, 1, 3) },
  } satisfies Batch;
  expect(takeSamples(batch, [2, 0])).toEqual({
    size: 2, index: 7, epoch: 1, waitMs: 0, images: Uint8Array.of(20, 21, 0, 1), ids: Int32Array.of(2, 0, 102, 100),
    keys: ['c', 'a'], langs: ['en', 'en', 'el', 'de'], texts: ['c1', 'a1', 'c2', 'a2'],
    samples: Int32Array.of(7, 5), classes: Int32Array.of(3, 1), sequences: [[null, null]], resized: [Uint8Array.of(10, 8)],
    naflex: { length: 4, patches: Uint8Array.of(3, 3, 3, 1), offsets: Int32Array.of(0, 3, 4), shapes: Int32Array.of(1, 3, 1, 1) },
  });
  expect(liveCount()).toBe(0);
});
