import { patchEmbedPacked } from '../../lib/ops/patch_embed_packed.js';
import type { Param } from '../../lib/tape.js';
import { generator, type OpCase, param } from '../harness.js';

export const kernels = ['patch_embed_packed_forward', 'patch_embed_packed_backward'];

function make(T: number, K: number, D: number): OpCase {
  const r = generator(5),
    patches = Uint8Array.from({ length: T * K }, () => (r() + 1) * 127.99);
  return {
    name: `${T} patches of ${K} → ${D}`,
    inputs: {
      patches: { data: patches, shape: [T, K], kind: 'data' },
      weight: param([D, K], 1, 0.2),
      bias: param([D], 2),
      position: param([T, D], 4),
    },
    run: (t) => ({
      y: patchEmbedPacked(t['patches']!, t['weight']!, t['bias']!, t['position']!, {
        dtype: (t['weight'] as Param).compute.dtype as 'f32' | 'bf16',
      }),
    }),
    reference(v) {
      const y = new Float64Array(T * D),
        w = v['weight']!;
      for (let t = 0; t < T; t++)
        for (let d = 0; d < D; d++) {
          let s = v['bias']![d]! + v['position']![t * D + d]!;
          for (let k = 0; k < K; k++) s += (patches[t * K + k]! / 127.5 - 1) * w[d * K + k]!;
          y[t * D + d] = s;
        }
      return { y };
    },
    bytes: { forward: T * K + 4 * (D * K + 2 * T * D), backward: T * K + 4 * (2 * D * K + T * D) },
    flops: { forward: 2 * T * K * D, backward: 2 * T * K * D },
  };
}

export const cases = [
  make(1, 3, 1),
  make(1, 12, 8),
  make(63, 12, 5),
  make(67, 27, 66),
  make(130, 48, 33),
]
  // Positions are f32 in the kernel though the harness rounds matrices.
  .flatMap((c): OpCase[] => [
    { ...c, dtypes: ['f32'] },
    { ...c, dtypes: ['bf16'], nmse: 1e-4 },
  ]);
export const bench = (): OpCase[] => [make(2048, 768, 768)];
