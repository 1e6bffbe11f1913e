import { embedding } from '../../lib/ops/embedding.js';
import type { Param } from '../../lib/tape.js';
import { generator, type OpCase, param } from '../harness.js';

export const kernels = ['embedding_forward', 'embedding_backward'];

function make(B: number, L: number, V: number, D: number): OpCase {
  const r = generator(5);
  // The square crowds small ids, so that many rows share one: the case that scatter-add must get right.
  const ids = Int32Array.from({ length: B * L }, () => Math.floor(((r() + 1) / 2) ** 2 * V));
  return {
    name: `${B}×${L} of ${V}×${D}`,
    inputs: {
      ids: { data: ids, shape: [B, L], kind: 'data' },
      table: param([V, D], 2),
      position: param([L, D], 3),
    },
    // The harness gives a parameter a bf16 copy where it runs with bf16 activations.
    run: (t) => ({
      y: embedding(
        t['ids']!,
        t['table']!,
        t['position']!,
        (t['table'] as Param).compute.dtype as 'f32' | 'bf16',
      ),
    }),
    reference(v) {
      const y = new Float64Array(B * L * D);
      for (let i = 0; i < B * L; i++)
        for (let d = 0; d < D; d++)
          y[i * D + d] = v['table']![ids[i]! * D + d]! + v['position']![(i % L) * D + d]!;
      return { y };
    },
    dtypes: ['f32', 'bf16'],
    bytes: { forward: 12 * B * L * D, backward: 16 * B * L * D },
    flops: { forward: B * L * D, backward: 2 * B * L * D },
  };
}

export const cases = [
  make(1, 1, 1, 1),
  make(2, 3, 5, 7),
  make(5, 16, 40, 24),
  make(40, 16, 9, 32),
  make(300, 2, 3, 70),
].map((c) => (c.name.startsWith('1×1 ') ? { ...c, dtypes: ['f32' as const] } : c));
export const bench = () => [make(256, 64, 32000, 768)];
