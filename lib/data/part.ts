/** Parts of a batch: the halves of a NaFlex batch that is too long, the micro-batches of gradient caching. */
import type { Batch } from './loader.js';
import type { NaflexBatch } from './naflex.js';
import type { ViewBatch } from './views.js';

/** Images `from` up to but not including `to` of a batch, with all that belongs to them, as a batch of its own. */
export function batchPart(batch: Batch, from: number, to: number): Batch {
  const { size: B, images, ids, naflex, views, sequences, classes, resized, coarse } = batch;
  if (from === 0 && to === B) return batch;
  const captions = batch.texts.length / B;
  const rows = <T>(list: readonly T[]): T[] =>
    Array.from({ length: captions }, (_, c) => list.slice(c * B + from, c * B + to)).flat();
  return {
    ...batch, size: to - from, images: rowsOf(images, B, from, to), ids: rowsOf(ids, B, from, to, captions),
    keys: batch.keys.slice(from, to), samples: batch.samples.slice(from, to),
    langs: rows(batch.langs), texts: rows(batch.texts),
    ...(naflex ? { naflex: { ...naflexPart(naflex, from, to), length: naflex.length } } : {}),
    ...(views ? { views: viewsPart(views, B, from, to) } : {}),
    ...(sequences ? { sequences: sequences.map((set) => set.slice(from, to)) } : {}),
    ...(classes ? { classes: classes.slice(from, to) } : {}),
    ...(resized ? { resized: resized.map((all) => rowsOf(all, B, from, to)) } : {}),
    // The last images of a batch are the coarse ones.
    ...(coarse ? { coarse: {
      ...coarse, count: Math.max(0, Math.min(to - from, to - B + coarse.count)), images: rowsOf(coarse.images, B, from, to),
    } } : {}),
  };
}

/** Rows `from` to `to` of each of `sets` sets of B rows, one set after the other; shares memory where that is one run. */
function rowsOf<T extends Uint8Array | Int32Array>(data: T, B: number, from: number, to: number, sets = 1): T {
  const row = data.length / (B * sets), size = (to - from) * row;
  const run = (set: number): T => data.subarray((set * B + from) * row, (set * B + to) * row) as T;
  if (sets === 1) return run(0);
  const part = new (data.constructor as new (length: number) => T)(sets * size);
  for (let set = 0; set < sets; set++) part.set(run(set), set * size);
  return part;
}

function naflexPart({ patches, offsets, shapes }: NaflexBatch, from: number, to: number): NaflexBatch {
  const width = patches.length / offsets.at(-1)!, start = offsets[from]!;
  return {
    patches: patches.subarray(start * width, offsets[to]! * width),
    offsets: offsets.slice(from, to + 1).map((o) => o - start), shapes: shapes.slice(2 * from, 2 * to),
  };
}

function viewsPart(views: ViewBatch, B: number, from: number, to: number): ViewBatch {
  const { globalViews, localViews, masks, globalSize: S, localSize: s } = views;
  const locals = localViews.length / (B * s * s * 3);
  return {
    globalViews: rowsOf(globalViews, B, from, to), localViews: rowsOf(localViews, B, from, to, locals),
    masks: rowsOf(masks, B, from, to), globalSize: S, localSize: s,
  };
}
