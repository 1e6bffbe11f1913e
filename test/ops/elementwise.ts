import { add, scale } from '../../lib/ops/elementwise.js';
import { input, type OpCase } from '../harness.js';

export const kernels = ['add_forward', 'scale_cast'];

function make(shape: number[]): OpCase {
  return {
    name: shape.join('×'),
    inputs: { a: input(shape, 1), b: input(shape, 2) },
    // a is used twice, so its gradient is a sum of shared and own parts.
    run: (t) => ({ y: add(add(t['a']!, t['b']!), scale(t['a']!, -0.25)) }),
    reference: (v) => ({ y: v['a']!.map((a, i) => 0.75 * a + v['b']![i]!) }),
    dtypes: ['f32', 'bf16'],
  };
}

export const cases = [make([1]), make([3, 5]), make([2, 3, 17]), make([40000])];
