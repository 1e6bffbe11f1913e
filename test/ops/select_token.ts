import { selectToken } from '../../lib/ops/select_token.js';
import { input, type OpCase } from '../harness.js';

export const kernels = ['select_token_forward', 'select_token_backward'];

function make(B: number, T: number, C: number, index: number): OpCase {
  const at = index < 0 ? T + index : index;
  return {
    name: `${B}×${T}×${C} token ${index}`,
    inputs: { x: input([B, T, C], 1) },
    run: (t) => ({ y: selectToken(t['x']!, index) }),
    reference: (v) => ({ y: v['x']!.filter((_, i) => Math.floor(i / C) % T === at) }),
    dtypes: ['f32', 'bf16'],
  };
}

export const cases = [make(1, 1, 1, 0), make(3, 5, 7, -1), make(2, 16, 72, 3)];
