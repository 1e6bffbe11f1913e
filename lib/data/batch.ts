/** Parts of a batch. */
import type { Batch } from './loader.js';
import type { SizedNaflexBatch } from './naflex_lengths.js';

/**
 * The batch of some samples of a batch, in the order given, every field of it but the views, which are left out.
 * @param rows positions in the batch
 */
export function takeSamples(batch: Batch, rows: ArrayLike<number>): Batch {
  const { views: _, ...rest } = batch, { size: B, sequences, classes, resized, naflex } = rest;
  const captions = batch.texts.length / B;
  const pick = <T>(list: readonly T[]): T[] => Array.from(rows, (i) => list[i]!);
  const ofCaptions = Array.from({ length: captions }, (_, c) => Array.from(rows, (i) => c * B + i)).flat();
  const bytes = (images: Uint8Array): Uint8Array => blocks(images, images.length / B, rows);
  return {
    ...rest, size: rows.length, images: bytes(batch.images),
    ids: blocks(batch.ids, batch.ids.length / (captions * B), ofCaptions),
    keys: pick(batch.keys), samples: blocks(batch.samples, 1, rows),
    langs: ofCaptions.map((i) => batch.langs[i]!), texts: ofCaptions.map((i) => batch.texts[i]!),
    ...(sequences ? { sequences: sequences.map(pick) } : {}),
    ...(classes ? { classes: blocks(classes, 1, rows) } : {}),
    ...(resized ? { resized: resized.map(bytes) } : {}),
    ...(naflex ? { naflex: takeImages(naflex, rows) } : {}),
  };
}

/** Blocks of `width` neighbouring values. */
function blocks<T extends Uint8Array | Int32Array>(values: T, width: number, rows: ArrayLike<number>): T {
  const out = new (values.constructor as new (n: number) => T)(rows.length * width);
  Array.from(rows, (from, to) => out.set(values.subarray(from * width, (from + 1) * width), to * width));
  return out;
}

function takeImages({ patches, offsets, shapes, length }: SizedNaflexBatch, rows: ArrayLike<number>): SizedNaflexBatch {
  const width = patches.length / offsets.at(-1)!, ends = new Int32Array(rows.length + 1);
  Array.from(rows, (from, to) => { ends[to + 1] = ends[to]! + offsets[from + 1]! - offsets[from]!; });
  const some = new Uint8Array(ends.at(-1)! * width);
  Array.from(rows, (from, to) =>
    some.set(patches.subarray(offsets[from]! * width, offsets[from + 1]! * width), ends[to]! * width));
  return { length, patches: some, offsets: ends, shapes: blocks(shapes, 2, rows) };
}
