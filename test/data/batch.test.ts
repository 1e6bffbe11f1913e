/** Batches of some samples of a batch. */
import { expect, test } from '@jest/globals';
import type { Batch } from '../../lib/data/batch.js';
import { batchPart, takeSamples } from '../../lib/data/batch.js';
import { liveCount } from '../../lib/tensor.js';

const batch = {
  size: 3,
  index: 7,
  epoch: 1,
  waitMs: 0,
  images: Uint8Array.of(0, 1, 10, 11, 20, 21),
  ids: Int32Array.of(0, 1, 2, 100, 101, 102),
  keys: ['a', 'b', 'c'],
  langs: ['en', 'en', 'en', 'de', 'fr', 'el'],
  texts: ['a1', 'b1', 'c1', 'a2', 'b2', 'c2'],
  samples: Int32Array.of(5, 6, 7),
  classes: Int32Array.of(1, 2, 3),
  sequences: [[null, null, null]],
  resized: [Uint8Array.of(8, 9, 10)],
  naflex: {
    length: 4,
    patches: Uint8Array.of(1, 2, 2, 3, 3, 3),
    offsets: Int32Array.of(0, 1, 3, 6),
    shapes: Int32Array.of(1, 1, 1, 2, 1, 3),
  },
  // A global view of 1 px and two local ones, channel by channel.
  views: {
    globalViews: Uint8Array.of(1, 1, 1, 2, 2, 2, 3, 3, 3),
    masks: Uint8Array.of(0, 1, 0),
    globalSize: 1,
    localSize: 1,
    localViews: Uint8Array.of(4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 9),
  },
} satisfies Batch;

test('chosen samples, in their order, with everything that belongs to them', () => {
  expect(takeSamples(batch, [2, 0])).toEqual({
    size: 2,
    index: 7,
    epoch: 1,
    waitMs: 0,
    images: Uint8Array.of(20, 21, 0, 1),
    ids: Int32Array.of(2, 0, 102, 100),
    keys: ['c', 'a'],
    langs: ['en', 'en', 'el', 'de'],
    texts: ['c1', 'a1', 'c2', 'a2'],
    samples: Int32Array.of(7, 5),
    classes: Int32Array.of(3, 1),
    sequences: [[null, null]],
    resized: [Uint8Array.of(10, 8)],
    naflex: {
      length: 4,
      patches: Uint8Array.of(3, 3, 3, 1),
      offsets: Int32Array.of(0, 3, 4),
      shapes: Int32Array.of(1, 3, 1, 1),
    },
    views: {
      globalViews: Uint8Array.of(3, 3, 3, 1, 1, 1),
      masks: Uint8Array.of(0, 0),
      globalSize: 1,
      localSize: 1,
      localViews: Uint8Array.of(6, 6, 6, 4, 4, 4, 9, 9, 9, 7, 7, 7),
    },
  });
});

test.each([
  [0, 1],
  [1, 3],
  [2, 3],
  [0, 3],
])('samples %i to %i are those samples', (from, to) => {
  expect(batchPart(batch, from, to)).toEqual(takeSamples(batch, [0, 1, 2].slice(from, to)));
});

test.each([
  [0, 1, 0],
  [1, 3, 1],
  [0, 2, 0],
  [2, 3, 1],
])('of samples %i to %i, %i are coarse where the last one of the batch is', (from, to, count) => {
  const part = batchPart(
    { ...batch, coarse: { count: 1, side: 1, images: Uint8Array.of(1, 1, 1, 2, 2, 2, 3, 3, 3) } },
    from,
    to,
  );
  expect(part.coarse).toEqual({
    count,
    side: 1,
    images: Uint8Array.from([1, 2, 3].slice(from, to).flatMap((v) => [v, v, v])),
  });
  expect(liveCount()).toBe(0);
});
