/**
 * The LocCa objective (SigLIP 2 §2.2): captioning, referring expression and grounded captioning as next-token
 * prediction by one decoder, as in big_vision's trainers/proj/cappa: per example the mean cross-entropy over the
 * tokens that are scored, then the sum over the examples divided by the batch size.
 */
import { check } from '../check.js';
import { decoderStates } from '../model/decoder.js';
import type { Siglip2Model } from '../model/siglip2.js';
import type { Packed } from '../ops/attention.js';
import { linearCrossEntropy } from '../ops/linear_cross_entropy.js';
import type { Random } from '../random.js';
import { type Tensor, tensor } from '../tensor.js';
import type { DecoderSequence } from '../text/sequences.js';

/** Sequences of several tasks about the same images, ready for the decoder. */
export interface CaptionBatch {
  /** S, one per task. */
  sets: number;
  /** B. */
  batch: number;
  /** L. */
  length: number;
  /** (S·B, L) what the decoder reads: shifted right behind 0, or all mask tokens. */
  ids: Int32Array;
  /** (S·B·L) what it is to say; −1 where nothing is scored. */
  targets: Int32Array;
  /** (S·B·L) task weight / scored tokens of the example. */
  weights: Float32Array;
  /** The first so many sequences are causal, the others in parallel prediction. */
  causal: number;
}

export interface CaptionBatchOptions {
  /** Tokens of a sequence, decoder.length. */
  length: number;
  /** Row of the mask token, text.vocab. */
  mask: number;
  /** How many examples of the last set, at its end, are in parallel prediction; see `parallelCount`. */
  parallel?: number;
  /** A factor for each set; all 1. */
  weights?: readonly number[];
}

/**
 * How many of B examples are in parallel prediction, each with probability p independently. Which ones does not matter
 * in a shuffled batch, so they are the last ones: the attention of each kind is then one call.
 */
export function parallelCount(B: number, p: number, random: Random): number {
  let n = 0;
  for (let i = 0; i < B; i++) if (random.uniform() < p) n++;
  return n;
}

/**
 * Lays out the sequences of S tasks. An example without a sequence (no box, an empty caption) scores nothing; the task's
 * name at the beginning is never scored, everything after it is, the end mark included.
 * @param sets (S) lists of B sequences or nulls; the captioning set last, because parallel prediction is its
 */
export function captionBatch(
  sets: readonly (readonly (DecoderSequence | null)[])[],
  options: CaptionBatchOptions,
): CaptionBatch {
  const { length: L, mask, parallel = 0, weights: factors } = options;
  const S = sets.length,
    B = sets[0]?.length ?? 0,
    R = S * B;
  check(
    sets.every((s) => s.length === B),
    'captionBatch',
    'every set must have one entry per image',
  );
  check(
    parallel >= 0 && parallel <= B,
    'captionBatch',
    `parallel must be one of 0 to ${B} but is ${parallel}`,
  );
  const ids = new Int32Array(R * L),
    targets = new Int32Array(R * L).fill(-1),
    weights = new Float32Array(R * L);
  sets.flat().forEach((sequence, r) => {
    if (r >= R - parallel) ids.fill(mask, r * L, (r + 1) * L);
    if (!sequence) return;
    const { ids: tokens, prefix } = sequence,
      n = tokens.length;
    check(n <= L, 'captionBatch', `a sequence has ${n} tokens but the decoder has ${L}`);
    if (r < R - parallel) ids.set(tokens.subarray(0, L - 1), r * L + 1);
    const each = (factors?.[Math.floor(r / B)] ?? 1) / Math.max(1, n - prefix);
    for (let i = prefix; i < n; i++) {
      targets[r * L + i] = tokens[i]!;
      weights[r * L + i] = each;
    }
  });
  return { sets: S, batch: B, length: L, ids, targets, weights, causal: R - parallel };
}

/**
 * The losses of the sets. Gradients of the vocabulary projection are added here already, so zero them beforehand
 * (see `linearCrossEntropy`).
 * @param image (B, N, Dv) un-pooled image tokens, of which `imageLengths` (B) i32 are real; or `packed` ones (T, Dv)
 * @param options.gradScale the weight that the losses will have in backward()
 * @param options.of examples of the whole batch, where this is a part of one; the losses of all parts then add up
 * @returns (S) f32, each with its task weight; the objective is their sum
 * @throws ShapeError
 */
export function captionLoss(
  model: Siglip2Model,
  image: Tensor,
  batch: CaptionBatch,
  options: {
    gradScale?: number;
    of?: number;
    imageLengths?: Tensor | null;
    packed?: Packed | null;
  } = {},
): Tensor {
  const { params, config } = model,
    { sets, batch: B, length: L } = batch,
    R = sets * B;
  check(config.decoder != null, 'captionLoss', 'the model has no decoder; give its config one');
  const states = decoderStates(params, config, tensor(batch.ids, [R, L], image.device), image, {
    ...model.options,
    causal: batch.causal,
    imageLengths: options.imageLengths ?? null,
    packed: options.packed ?? null,
  });
  return linearCrossEntropy(
    states,
    params.get('decoder.head.weight'),
    params.get('decoder.head.bias'),
    tensor(batch.targets, [R * L], image.device),
    {
      weights: tensor(batch.weights, [R * L], image.device),
      denominator: options.of ?? B,
      groups: sets,
      gradScale: options.gradScale ?? 1,
    },
  );
}
