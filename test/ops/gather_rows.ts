import { gatherRows } from '../../lib/ops/gather_rows.js';
import { generator, input, type OpCase } from '../harness.js';

export const kernels = ['gather_rows_forward', 'gather_rows_backward'];

function make(R: number, D: number, keep: (row: number) => boolean, what: string): OpCase {
  const index = Int32Array.from(Array.from({ length: R }, (_, r) => r).filter(keep));
  return {
    name: `${index.length} of ${R}×${D}, ${what}`,
    inputs: { x: input([R, D], 1), index: { data: index, shape: [index.length], kind: 'data' } },
    run: (t) => ({ y: gatherRows(t['x']!, t['index']!) }),
    reference: (v) => ({
      y: Float64Array.from(
        { length: index.length * D },
        (_, i) => v['x']![index[Math.floor(i / D)]! * D + (i % D)]!,
      ),
    }),
    dtypes: ['f32', 'bf16'],
    bytes: { forward: 8 * index.length * D, backward: 4 * (index.length + R) * D },
    flops: { forward: 0, backward: 0 },
  };
}

const random = generator(3);
export const cases = [
  make(1, 1, () => true, 'all'),
  make(5, 3, (r) => r % 2 === 0, 'even'),
  make(9, 300, (r) => r === 8, 'the last'),
  make(200, 72, () => random() > 0, 'half at random'),
].map((c) => (c.name.startsWith('1 of 1×1') ? { ...c, dtypes: ['f32' as const] } : c));

export const bench = () => [make(16384, 768, (r) => r % 2 === 0, 'every second')];
