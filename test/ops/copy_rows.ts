import { copyRows } from '../../lib/ops/copy_rows.js';
import { zeros } from '../../lib/tensor.js';
import { input, type OpCase } from '../harness.js';

export const kernels = ['copy_rows_forward'];

function make(Y: number, X: number, C: number, pairs: [to: number, from: number][]): OpCase {
  const index = (k: 0 | 1) => ({
    data: Int32Array.from(pairs, (p) => p[k]),
    shape: [pairs.length],
    kind: 'data' as const,
  });
  return {
    name: `${pairs.length} of ${X}×${C} into ${Y}`,
    inputs: { x: { ...input([X, C], 1), kind: 'data' }, to: index(0), from: index(1) },
    run(t) {
      const y = zeros([Y, C], 'f32', t['x']!.device);
      copyRows(y, t['x']!, t['to']!, t['from']!);
      return { y };
    },
    reference({ x }) {
      const y = new Float64Array(Y * C);
      for (const [to, from] of pairs) y.set(x!.subarray(from * C, (from + 1) * C), to * C);
      return { y };
    },
    gradients: false,
    bytes: { forward: 8 * pairs.length * C, backward: 0 },
  };
}

export const cases = [
  make(1, 1, 1, [[0, 0]]),
  make(5, 3, 7, [
    [4, 0],
    [0, 2],
    [2, 2],
  ]),
  make(3, 2, 65, []),
  make(
    40,
    9,
    130,
    Array.from({ length: 40 }, (_, i) => [39 - i, i % 9]),
  ),
];
export const bench = () => [
  make(
    4096,
    4096,
    1536,
    Array.from({ length: 4096 }, (_, i) => [i, 4095 - i]),
  ),
];
