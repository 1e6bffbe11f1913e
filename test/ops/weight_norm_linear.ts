import { weightNormLinear } from '../../lib/ops/weight_norm_linear.js';
import { input, type OpCase, param } from '../harness.js';

export const kernels = [
  'linear_forward',
  'linear_backward',
  'l2_normalize_forward',
  'l2_normalize_backward',
  'scale_cast',
  'add_forward',
];

function make(M: number, N: number, K: number): OpCase {
  return {
    name: `${M}×${K} · (${N}×${K})ᵀ`,
    inputs: { x: input([M, K], 1), weight: param([N, K], 2, 0.2) },
    run: (t) => ({ y: weightNormLinear(t['x']!, t['weight']!) }),
    reference(v) {
      const x = v['x']!,
        w = v['weight']!,
        y = new Float64Array(M * N);
      for (let n = 0; n < N; n++) {
        const row = w.subarray(n * K, (n + 1) * K),
          norm = Math.sqrt(row.reduce((s, a) => s + a * a, 0));
        for (let m = 0; m < M; m++)
          y[m * N + n] = row.reduce((s, a, k) => s + (a / norm) * x[m * K + k]!, 0);
      }
      return { y };
    },
    bytes: { forward: 4 * (M * K + N * K + M * N), backward: 8 * (M * K + N * K + M * N) },
    flops: { forward: 2 * M * N * K, backward: 4 * M * N * K },
  };
}

// In bf16 the unit rows are rounded once more, after the normalisation.
export const cases = [make(1, 1, 2), make(3, 7, 5), make(16, 130, 24)].flatMap((c) => [
  { ...c, dtypes: ['f32' as const] },
  { ...c, gradNmse: 4e-4, dtypes: ['bf16' as const] },
]);
export const bench = () => [make(256, 65536, 256)];
