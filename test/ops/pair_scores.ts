import { addChosenScores, addDiagonalScores } from '../../lib/ops/pair_scores.js';
import { zeros } from '../../lib/tensor.js';
import { generator, type Input, normal, type OpCase } from '../harness.js';
import { softplus } from './sigmoid_loss.js';

export const kernels = ['pair_scores_diagonal', 'pair_scores_chosen'];

const data = (values: Float32Array | Int32Array, shape: number[]): Input => ({
  data: values,
  shape,
  kind: 'data',
});

/** Rows of about unit length. */
const rows = (B: number, D: number, seed: number): Input => ({
  data: normal(B * D, seed, 1 / Math.sqrt(D)),
  shape: [B, D],
  kind: 'input',
});

/** K different rows, in no order. */
function distinct(K: number, B: number, seed: number): Int32Array {
  const r = generator(seed),
    keys = Float64Array.from({ length: B }, r);
  return Int32Array.from([...keys.keys()].sort((a, b) => keys[a]! - keys[b]!).slice(0, K));
}

/** `weight` is what makes the learner's and the reference's scores one sum; the chosen rows include some i. */
function make(B: number, K: number, D: number, weight: number): OpCase {
  return {
    name: `${B}×${D}, ${K} chosen, weight ${weight}`,
    inputs: {
      x: rows(B, D, 1),
      y: rows(B, D, 2),
      chosen: data(distinct(K, B, 3), [K]),
      logScale: data(Float32Array.of(1.5), [1]),
      bias: data(Float32Array.of(-2), [1]),
    },
    run({ x, y, chosen, logScale, bias }) {
      const e = { x: x!, y: y!, logScale: logScale!, bias: bias! };
      const own = zeros([B], 'f32', x!.device),
        pairs = zeros([B], 'f32', x!.device);
      addDiagonalScores(own, e, weight);
      addChosenScores(pairs, e, chosen!, weight);
      return { own, pairs };
    },
    reference({ x, y, chosen, logScale, bias }): Record<string, Float64Array> {
      const t = Math.exp(logScale![0]!),
        b = bias![0]!;
      const logit = (i: number, j: number): number => {
        let dot = 0;
        for (let d = 0; d < D; d++) dot += x![i * D + d]! * y![j * D + d]!;
        return t * dot + b;
      };
      const own = new Float64Array(B),
        pairs = new Float64Array(B);
      for (let i = 0; i < B; i++) {
        own[i] = weight * softplus(-logit(i, i));
        for (const k of chosen!)
          if (k !== i) pairs[i]! += weight * (softplus(logit(i, k)) + softplus(logit(k, i)));
      }
      return { own, pairs };
    },
    dtypes: ['f32', 'bf16'],
    gradients: false,
    bytes: { forward: (2 * B + 2 * K) * D * 4, backward: 0 },
    flops: { forward: 4 * B * K * D, backward: 0 },
  };
}

export const cases = [
  make(1, 1, 1, 1),
  make(2, 1, 3, 1),
  make(7, 7, 5, -1),
  make(65, 17, 33, 1),
  make(130, 64, 72, -1),
  make(66, 65, 16, 1),
  { ...make(1100, 1030, 24, 1), large: true },
];

export const bench = () => [make(8192, 512, 768, 1)];
