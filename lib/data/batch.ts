/** Parts of a batch: the samples that selection chooses, the halves of a NaFlex batch that is too long, micro-batches. */

import type { NaflexBatch } from '../image/naflex.js';
import type { ViewBatch } from '../image/views.js';
import type { DecoderSequence } from '../text/sequences.js';
import type { Drawn } from './mixture.js';

/** A packed batch and the length that was drawn for it. */
export type SizedNaflexBatch = NaflexBatch & { length: number };

/** The content of a batch. */
export interface BuiltBatch {
  images: Uint8Array;
  ids: Int32Array;
  /** How many of the captions are longer than a row of `ids`. */
  cut?: number;
  keys: string[];
  langs: string[];
  texts: string[];
  samples: Int32Array;
  classes?: Int32Array;
  /** Where the loader was asked for views. */
  views?: ViewBatch;
  sequences?: (DecoderSequence | null)[][];
  /** The images at every other side asked for, (B, s, s, 3) each. */
  resized?: Uint8Array[];
  /** Where the loader was asked for NaFlex images; `images` is empty then. */
  naflex?: SizedNaflexBatch;
}

/** One batch. B images, C captions per image, L ids per caption. */
export interface Batch extends BuiltBatch {
  /** (B, S, S, 3) sRGB bytes. */
  images: Uint8Array;
  /**
   * (C*B, L): the first B rows are each image's first caption, the next B rows its second. Empty
   * without tokenizer.
   */
  ids: Int32Array;
  /** B. */
  size: number;
  /** (B) names of the samples. */
  keys: string[];
  /** (C*B) language of each caption. */
  langs: string[];
  /** (C*B) the captions. */
  texts: string[];
  /** (B) positions in the collection. */
  samples: Int32Array;
  /** (B) class ids, -1 for none; where the collection has classes. */
  classes?: Int32Array;
  /**
   * Sequences for the caption decoder, where asked for: aref, gcap and cap (of the first caption),
   * B of each; null where a sample has no region. Goes to `captionBatch`.
   */
  sequences?: (DecoderSequence | null)[][];
  /**
   * To train on the last `count` images at another side: all images at that side, (B, side, side, 3).
   * The loader never sets it.
   */
  coarse?: { count: number; side: number; images: Uint8Array };
  /** Number of the batch since the start of training, from 0. */
  index: number;
  /** Epoch, from 0. */
  epoch: number;
  /** Milliseconds `next` had to wait for it. */
  waitMs: number;
  /** Of a mixture: what was drawn since the start of training, this batch included. */
  drawn?: Drawn;
}

/** How some of the B samples of a batch are taken out of its fields. */
interface Taking {
  size: number;
  /** Of `sets` sets of B rows, one set after the other: these samples' rows of each set. */
  rows<T extends Uint8Array | Int32Array>(data: T, sets?: number): T;
  list<T>(list: readonly T[], sets?: number): T[];
  naflex(images: SizedNaflexBatch): SizedNaflexBatch;
}

/**
 * The batch of some samples of a batch, in the order given.
 * @param rows positions in the batch
 */
export function takeSamples(batch: Batch, rows: ArrayLike<number>): Batch {
  const B = batch.size,
    positions = Array.from(rows);
  const inSets = (sets: number): number[] =>
    Array.from({ length: sets }, (_, s) => positions.map((i) => s * B + i)).flat();
  return take(batch, {
    size: positions.length,
    rows: (data, sets = 1) => blocks(data, data.length / (B * sets), inSets(sets)),
    list: (list, sets = 1) => inSets(sets).map((i) => list[i]!),
    naflex({ patches, offsets, shapes, length }) {
      const width = patches.length / offsets.at(-1)!,
        ends = new Int32Array(positions.length + 1);
      positions.forEach((from, to) => {
        ends[to + 1] = ends[to]! + offsets[from + 1]! - offsets[from]!;
      });
      const some = new Uint8Array(ends.at(-1)! * width);
      positions.forEach((from, to) =>
        some.set(
          patches.subarray(offsets[from]! * width, offsets[from + 1]! * width),
          ends[to]! * width,
        ),
      );
      return { length, patches: some, offsets: ends, shapes: blocks(shapes, 2, positions) };
    },
  });
}

/** Samples `from` up to but not including `to` of a batch as a batch of its own; it shares memory where it can. */
export function batchPart(batch: Batch, from: number, to: number): Batch {
  const { size: B, coarse } = batch;
  if (from === 0 && to === B) return batch;
  const taking: Taking = {
    size: to - from,
    rows<T extends Uint8Array | Int32Array>(data: T, sets = 1): T {
      const row = data.length / (B * sets),
        size = (to - from) * row;
      const run = (set: number): T =>
        data.subarray((set * B + from) * row, (set * B + to) * row) as T;
      if (sets === 1) return run(0);
      const part = new (data.constructor as new (length: number) => T)(sets * size);
      for (let set = 0; set < sets; set++) part.set(run(set), set * size);
      return part;
    },
    list: (list, sets = 1) =>
      Array.from({ length: sets }, (_, s) => list.slice(s * B + from, s * B + to)).flat(),
    naflex({ patches, offsets, shapes, length }) {
      const width = patches.length / offsets.at(-1)!,
        start = offsets[from]!;
      return {
        length,
        patches: patches.subarray(start * width, offsets[to]! * width),
        offsets: offsets.slice(from, to + 1).map((o) => o - start),
        shapes: shapes.slice(2 * from, 2 * to),
      };
    },
  };
  // The last images of a batch are the coarse ones.
  const count = coarse && Math.max(0, Math.min(to - from, to - B + coarse.count));
  return {
    ...take(batch, taking),
    ...(coarse ? { coarse: { ...coarse, count: count!, images: taking.rows(coarse.images) } } : {}),
  };
}

/** Every field of a batch but `coarse`, which goes by position. */
function take({ coarse: _, ...batch }: Batch, some: Taking): Batch {
  const { naflex, views, sequences, classes, resized } = batch,
    captions = batch.texts.length / batch.size;
  return {
    ...batch,
    size: some.size,
    images: some.rows(batch.images),
    ids: some.rows(batch.ids, captions),
    keys: some.list(batch.keys),
    samples: some.rows(batch.samples),
    langs: some.list(batch.langs, captions),
    texts: some.list(batch.texts, captions),
    ...(naflex ? { naflex: some.naflex(naflex) } : {}),
    ...(views ? { views: takeViews(views, batch.size, some) } : {}),
    ...(sequences ? { sequences: sequences.map((set) => some.list(set)) } : {}),
    ...(classes ? { classes: some.rows(classes) } : {}),
    ...(resized ? { resized: resized.map((images) => some.rows(images)) } : {}),
  };
}

function takeViews(views: ViewBatch, B: number, some: Taking): ViewBatch {
  const { globalViews, localViews, masks, localSize: s } = views;
  return {
    ...views,
    globalViews: some.rows(globalViews),
    masks: some.rows(masks),
    localViews: some.rows(localViews, localViews.length / (B * s * s * 3)),
  };
}

/** Blocks of `width` neighbouring values. */
function blocks<T extends Uint8Array | Int32Array>(
  values: T,
  width: number,
  rows: readonly number[],
): T {
  const out = new (values.constructor as new (n: number) => T)(rows.length * width);
  rows.forEach((from, to) =>
    out.set(values.subarray(from * width, (from + 1) * width), to * width),
  );
  return out;
}
