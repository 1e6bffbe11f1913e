/**
 * Joint example selection (JEST, arXiv 2406.17711; ACID, arXiv 2411.18674): picks from a super-batch the batch that is
 * worth training on. The pairwise losses make the worth of a sample depend on what is already picked, so the batch is
 * drawn in chunks, each given the chunks before it, as in blocked Gibbs sampling.
 */
import { ConfigError, DataError } from '../../errors.js';
import { addChosenScores, addDiagonalScores, type PairEmbeddings } from '../../ops/pair_scores.js';
import { Random, Stream } from '../../random.js';
import { noGrad } from '../../tape.js';
import { scope, type Tensor, tensor, zeros } from '../../tensor.js';

/**
 * What makes a pair worth training on, as a function S of the sigmoid losses ℓ: `learnability` S = ℓ(learner) −
 * ℓ(reference); `easy-reference` S = −ℓ(reference); `learner` S = ℓ(learner).
 */
export type SelectionScore = 'learnability' | 'easy-reference' | 'learner';

export interface SelectionOptions {
  /** Samples dropped, as a share of the super-batch; 0.5 and 0.75 in SigLIP 2, 0.8 in JEST. */
  filterRatio: number;
  /** Chunks in which the batch is drawn; 16 in JEST. */
  chunks: number;
  /** How sharply scores decide: probabilities are proportional to exp(gain · score). */
  gain: number;
  score: SelectionScore;
  /** Selection depends on the embeddings, the seed and the step alone, so every rank makes the same one. */
  seed: number;
  step: number;
}

/** The samples that a filter ratio leaves of a super-batch. */
export function selectedCount(superBatch: number, filterRatio: number): number {
  return Math.round(superBatch * (1 - filterRatio));
}

/**
 * The uniform numbers in (0, 1) behind one chunk's draw: n consecutive ones of the generator of (seed, step, chunk).
 */
export function selectionUniforms(
  n: number,
  seed: number,
  step: number,
  chunk: number,
): Float64Array {
  const random = new Random(seed, Stream.selection, step, chunk);
  return Float64Array.from({ length: n }, () => (random.uint32() + 0.5) / 2 ** 32);
}

/**
 * Selects a batch from a super-batch of B embedded pairs. With S of `score` and C what is chosen so far, each chunk is
 * drawn without replacement with probabilities ∝ exp(gain · (S_ii + Σ_{k∈C} (S_ik + S_ki))), by the Gumbel-top-k trick.
 * Memory on the device: B numbers and one tile of the pair matrix, whatever B is; work: 4·B·b·D operations a model.
 * @param learner needed unless the score is `easy-reference`
 * @param reference needed unless the score is `learner`; its D may differ from the learner's
 * @returns the chosen rows, chunk after chunk, ascending within a chunk
 * @throws ConfigError for options out of range or a model that is missing; DataError when a score is not a number
 */
export async function selectBatch(
  learner: PairEmbeddings | null,
  reference: PairEmbeddings | null,
  options: SelectionOptions,
): Promise<Int32Array> {
  const { chunks, gain, seed, step } = options;
  const models = weighted(learner, reference, options.score);
  const first = models[0]!.e.x,
    B = first.shape[0] ?? 0;
  if (!models.every(({ e }) => e.x.shape[0] === B))
    throw new ConfigError(
      'selection: learner and reference must embed the same super-batch, but have ' +
        `${models.map(({ e }) => e.x.shape[0]).join(' and ')} rows`,
    );
  if (!(options.filterRatio >= 0 && options.filterRatio < 1))
    throw new ConfigError(`selection: filterRatio must be in [0, 1) but is ${options.filterRatio}`);
  const count = selectedCount(B, options.filterRatio);
  if (!Number.isSafeInteger(chunks) || chunks < 1 || chunks > count)
    throw new ConfigError(
      `selection: chunks must be an integer from 1 to the batch of ${count} but is ${chunks}`,
    );
  if (!(Number.isFinite(gain) && gain >= 0))
    throw new ConfigError(`selection: gain must be a number that is not negative but is ${gain}`);

  const scores = diagonalScores(learner, reference, options.score);
  try {
    const selected = new Int32Array(count),
      free = new Uint8Array(B).fill(1);
    for (let chunk = 0, from = 0; chunk < chunks; chunk++) {
      const to = Math.floor(((chunk + 1) * count) / chunks);
      const gains = (await scores.read()) as Float32Array;
      const chosen = gumbelTopK(
        gains,
        free,
        gain,
        to - from,
        selectionUniforms(B, seed, step, chunk),
      );
      selected.set(chosen, from);
      for (const i of chosen) free[i] = 0;
      from = to;
      if (chunk + 1 < chunks)
        scope(() => {
          const indices = tensor(chosen, [chosen.length], first.device);
          for (const { e, weight } of models) addChosenScores(scores, e, indices, weight);
        });
    }
    return selected;
  } finally {
    scores.dispose();
  }
}

/**
 * S_ii, the worth of every pair by itself: (B) f32 on the embeddings' device.
 * @throws ConfigError when a model that the score needs is missing
 */
export function diagonalScores(
  learner: PairEmbeddings | null,
  reference: PairEmbeddings | null,
  score: SelectionScore,
): Tensor {
  const models = weighted(learner, reference, score),
    { x } = models[0]!.e;
  return scope(() =>
    noGrad(() => {
      const total = zeros([x.shape[0]!], 'f32', x.device);
      for (const { e, weight } of models) addDiagonalScores(total, e, weight);
      return total;
    }),
  );
}

/** The models whose losses make up S, with the sign of each. */
function weighted(
  learner: PairEmbeddings | null,
  reference: PairEmbeddings | null,
  score: SelectionScore,
): { e: PairEmbeddings; weight: number }[] {
  const terms = { learnability: [1, -1], 'easy-reference': [0, -1], learner: [1, 0] }[score];
  if (!terms)
    throw new ConfigError(
      `selection: score must be learnability, easy-reference or learner but is ${String(score)}`,
    );
  return [learner, reference].flatMap((e, i) => {
    const weight = terms[i]!;
    if (weight === 0) return [];
    if (!e)
      throw new ConfigError(
        `selection: the score ${score} needs the ${i === 0 ? 'learner' : 'reference'}'s embeddings, ` +
          'which were not given',
      );
    return [{ e, weight }];
  });
}

/**
 * k of the free samples without replacement, with probabilities ∝ exp(gain · score): the k largest of gain · score plus
 * Gumbel noise −log(−log u). Equal keys go to the lower index.
 * @returns ascending indices
 */
export function gumbelTopK(
  scores: Float32Array,
  free: Uint8Array,
  gain: number,
  k: number,
  uniforms: Float64Array,
): Int32Array {
  const keys = new Float64Array(scores.length).fill(-Infinity);
  for (let i = 0; i < keys.length; i++) {
    if (!free[i]) continue;
    if (!Number.isFinite(scores[i]))
      throw new DataError(
        `selection: the score of sample ${i} is ${scores[i]}; ` +
          'its embeddings are damaged or the model has diverged',
      );
    keys[i] = gain * scores[i]! - Math.log(-Math.log(uniforms[i]!));
  }
  const threshold = keys.slice().sort()[keys.length - k]!;
  let above = 0;
  for (const key of keys) if (key > threshold) above++;
  const out = new Int32Array(k);
  for (let i = 0, n = 0, equal = k - above; n < k; i++) {
    const key = keys[i]!;
    if (key > threshold || (key === threshold && equal-- > 0)) out[n++] = i;
  }
  return out;
}
