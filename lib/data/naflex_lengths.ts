/**
 * Sequence lengths of NaFlex training (SigLIP 2 §2.4.2): one for every batch, drawn uniformly, so that each length sees
 * as many examples. A batch of the longest can be trained on in halves.
 */
import { ConfigError } from '../errors.js';
import { takeSamples } from './batch.js';
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
  const rows = [...batch.keys.keys()];
  return [takeSamples(batch, rows.slice(0, middle)), takeSamples(batch, rows.slice(middle))];
}
