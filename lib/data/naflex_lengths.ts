/**
 * Sequence lengths of NaFlex training (SigLIP 2 §2.4.2): one for every batch, drawn uniformly, so that each length sees
 * as many examples. A batch of the longest can be trained on in halves.
 */
import { ConfigError } from '../errors.js';
import { Random, Stream } from '../random.js';
import type { Batch } from './batch.js';
import { batchPart } from './batch.js';

/** What the loader makes of images for a NaFlex model. */
export interface NaflexTargets {
  /** Side of a patch, pixels. */
  patch: number;
  /** Most patches of an image; one of these for each batch. */
  lengths: readonly number[];
}

/** The paper's lengths. */
export const NAFLEX_LENGTHS: readonly number[] = [128, 256, 576, 784, 1024];

/** Most patches of an image that a model of these lengths is used with: 256 as released ones, if it has learnt that many. */
export function patchBudget({ lengths }: Pick<NaflexTargets, 'lengths'>): number {
  return Math.min(256, Math.max(...lengths));
}

/** Throws ConfigError unless there are lengths and all are positive integers. */
export function checkNaflexTargets({ lengths }: NaflexTargets): void {
  if (lengths.length === 0 || !lengths.every((n) => Number.isSafeInteger(n) && n > 0))
    throw new ConfigError(
      `naflex.lengths must be a list of positive integers but is ${JSON.stringify(lengths)}`,
    );
}

/** The length of a batch: a pure function of seed and number of the batch. */
export function naflexLength(seed: number, index: number, { lengths }: NaflexTargets): number {
  return new Random(seed, Stream.naflexLength, index).pick(lengths);
}

/**
 * What a step trains on at once: its whole batch, or the first and the second half of one whose images have the most
 * patches of all lengths, where the config says so. The first half has the odd image.
 */
export function naflexUpdates(
  batch: Batch,
  { lengths, halveLongest }: { lengths: readonly number[]; halveLongest: boolean },
): Batch[] {
  const { size, naflex } = batch,
    middle = Math.ceil(size / 2);
  if (!halveLongest || lengths.length < 2 || size < 2 || naflex?.length !== Math.max(...lengths))
    return [batch];
  return [batchPart(batch, 0, middle), batchPart(batch, middle, size)];
}
