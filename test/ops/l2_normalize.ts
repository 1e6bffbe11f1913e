import { l2Normalize } from '../../lib/ops/l2_normalize.js';
import { input, type OpCase } from '../harness.js';

export const kernels = ['l2_normalize_forward', 'l2_normalize_backward'];

function make(R: number, C: number, eps = 1e-8): OpCase {
  return {
    name: `${R}×${C} eps ${eps}`,
    inputs: { x: input([R, C], 1) },
    run: (t) => ({ y: l2Normalize(t['x']!, eps) }),
    reference(v) {
      const x = v['x']!,
        y = new Float64Array(x.length);
      for (let r = 0; r < R; r++) {
        const row = x.subarray(r * C, (r + 1) * C);
        const norm = Math.sqrt(row.reduce((s, e) => s + e * e, 0)) + eps;
        row.forEach((e, c) => {
          y[r * C + c] = e / norm;
        });
      }
      return { y };
    },
    dtypes: ['f32', 'bf16'],
    bytes: { forward: 8 * R * C, backward: 12 * R * C },
    flops: { forward: 3 * R * C, backward: 5 * R * C },
  };
}

const zeroRow: OpCase = { ...make(2, 5), name: 'a row of zeros', gradients: false };
(zeroRow.inputs['x']!.data as Float32Array).fill(0, 0, 5);

export const cases = [
  make(1, 2),
  make(3, 7),
  make(37, 72),
  make(65, 128, 0.1),
  make(4, 1152),
  zeroRow,
];
export const bench = () => [make(4096, 768)];
