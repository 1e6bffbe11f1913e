/**
 * Sequence lengths of NaFlex training (SigLIP 2 §2.4.2): one for every batch, drawn uniformly, so that each length sees
 * as many examples. A batch of the longest can be trained on in halves.
 */
import { ConfigError } from '../errors.js';
import type { Batch } from './loader.js';
import type { NaflexBatch } from './naflex.js';
import { Random, Stream } from './random.js';

/** What the loader makes of images for a NaFlex model. */
export interface NaflexTargets {
  /** Side of a patch, pixels. */
  patch: number;
  /** Most patches of an image; one of these for each batch. */
  lengths: readonly number[];
}

/** A packed batch and the length that was drawn for it. */
export type SizedNaflexBatch = NaflexBatch & { length: number };

/** The paper's lengths. */
export const NAFLEX_LENGTHS: readonly number[] = [128, 256, 576, 784, 1024];

/** Throws ConfigError unless there are lengths and all are positive integers. */
export function checkNaflexTargets({ lengths }: NaflexTargets): void {
  if (lengths.length === 0 || !lengths.every((n) => Number.isSafeInteger(n) && n > 0))
    throw new ConfigError(`naflex.lengths must be a list of positive integers but is ${JSON.stringify(lengths)}`);
}

/** The length of a batch: a pure function of seed and number of the batch. */
export function naflexLength(seed: number, index: number, { lengths }: NaflexTargets): number {
  return new Random(seed, Stream.naflexLength, index).pick(lengths);
}

/** The first and the second half of a NaFlex batch of at least two images; the first has the odd one. */
export function naflexHalves(batch: Batch): [Batch, Batch] {
  const middle = Math.ceil(batch.size / 2);
  return [part(batch, 0, middle), part(batch, middle, batch.size)];
}

/** Images `from` up to but not including `to` of a NaFlex batch. */
function part(batch: Batch, from: number, to: number): Batch {
  const { size: B, ids, naflex, sequences, classes } = batch, { patches, offsets, shapes, length } = naflex!;
  const captions = batch.texts.length / B, L = ids.length / (B * captions), width = patches.length / offsets[B]!;
  const rows = <T>(list: readonly T[]): T[] =>
    Array.from({ length: captions }, (_, c) => list.slice(c * B + from, c * B + to)).flat();
  const someIds = new Int32Array(captions * (to - from) * L);
  for (let c = 0; c < captions; c++)
    someIds.set(ids.subarray((c * B + from) * L, (c * B + to) * L), c * (to - from) * L);
  return {
    ...batch, size: to - from, ids: someIds, keys: batch.keys.slice(from, to), samples: batch.samples.slice(from, to),
    langs: rows(batch.langs), texts: rows(batch.texts),
    naflex: {
      length, patches: patches.subarray(offsets[from]! * width, offsets[to]! * width),
      offsets: offsets.slice(from, to + 1).map((o) => o - offsets[from]!), shapes: shapes.slice(2 * from, 2 * to),
    },
    ...(sequences ? { sequences: sequences.map((set) => set.slice(from, to)) } : {}),
    ...(classes ? { classes: classes.slice(from, to) } : {}),
  };
}
