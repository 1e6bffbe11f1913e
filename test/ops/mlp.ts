import type { Gelu } from '../../lib/ops/linear.js';
import { mlp } from '../../lib/ops/mlp.js';
import { input, type OpCase, param } from '../harness.js';
import { gelu } from './linear.js';

export const kernels = ['linear_forward', 'linear_backward'];

function make(
  M: number,
  D: number,
  H: number,
  E: number,
  biased = true,
  form: Gelu = 'tanh',
): OpCase {
  return {
    name: `${M}×${D} → ${H} → ${E}${biased ? '' : ' without bias'}${form === 'exact' ? ' exact' : ''}`,
    inputs: {
      x: input([M, D], 1),
      w1: param([H, D], 2, 1 / Math.sqrt(D)),
      w2: param([E, H], 3, 1 / Math.sqrt(H)),
      ...(biased ? { b1: param([H], 4), b2: param([E], 5) } : {}),
    },
    run: (t) => ({
      y: mlp(
        t['x']!,
        { weight: t['w1']!, bias: t['b1'] ?? null },
        { weight: t['w2']!, bias: t['b2'] ?? null },
        form,
      ),
    }),
    reference(v) {
      const layer = (
        x: Float64Array,
        w: Float64Array,
        b: Float64Array | undefined,
        K: number,
        N: number,
      ): Float64Array => {
        const y = new Float64Array(M * N);
        for (let m = 0; m < M; m++)
          for (let n = 0; n < N; n++) {
            let s = b ? b[n]! : 0;
            for (let k = 0; k < K; k++) s += x[m * K + k]! * w[n * K + k]!;
            y[m * N + n] = s;
          }
        return y;
      };
      return {
        y: layer(
          layer(v['x']!, v['w1']!, v['b1'], D, H).map((x) => gelu(x, form)),
          v['w2']!,
          v['b2'],
          H,
          E,
        ),
      };
    },
    dtypes: ['f32', 'bf16'],
    bytes: {
      forward: 4 * (M * (D + 2 * H + E) + H * (D + E)),
      backward: 8 * (M * (D + 2 * H + E) + H * (D + E)),
    },
    flops: { forward: 2 * M * H * (D + E), backward: 4 * M * H * (D + E) },
  };
}

export const cases = [
  make(3, 5, 7, 4),
  make(33, 17, 40, 9, false),
  make(40, 24, 48, 16),
  make(21, 9, 40, 8, true, 'exact'),
];

export const bench = () => [make(2048, 768, 3072, 768)];
