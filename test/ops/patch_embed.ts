import { patchEmbed } from '../../lib/ops/patch_embed.js';
import type { Param } from '../../lib/tape.js';
import { generator, input, type OpCase, param } from '../harness.js';

export const kernels = ['patch_embed_forward', 'patch_embed_backward'];

function make(
  B: number,
  H: number,
  W: number,
  P: number,
  D: number,
  flat = false,
  computed = false,
): OpCase {
  const r = generator(3),
    rows = Math.floor(H / P),
    columns = Math.floor(W / P),
    N = rows * columns,
    K = 3 * P * P;
  const pixels = Uint8Array.from({ length: B * H * W * 3 }, () => (r() + 1) * 127.99);
  return {
    name: `${B}×${H}×${W} patch ${P} → ${D}${flat ? ' flat' : ''}${computed ? ', computed positions' : ''}`,
    inputs: {
      images: { data: pixels, shape: [B, H, W, 3], kind: 'data' },
      weight: param(flat ? [D, K] : [D, 3, P, P], 1, 0.2),
      bias: param([D], 2),
      position: computed ? input([N, D], 4) : param([N, D], 4),
    },
    run: (t) => ({
      y: patchEmbed(t['images']!, t['weight']!, t['bias']!, t['position']!, {
        patch: P,
        dtype: (t['weight'] as Param).compute.dtype as 'f32' | 'bf16',
      }),
    }),
    reference(v) {
      const y = new Float64Array(B * N * D),
        w = v['weight']!;
      for (let b = 0; b < B; b++)
        for (let n = 0; n < N; n++)
          for (let d = 0; d < D; d++) {
            let s = v['bias']![d]! + v['position']![n * D + d]!;
            for (let i = 0; i < P; i++)
              for (let j = 0; j < P; j++)
                for (let c = 0; c < 3; c++) {
                  const row = Math.floor(n / columns) * P + i,
                    column = (n % columns) * P + j;
                  const x = pixels[((b * H + row) * W + column) * 3 + c]! / 127.5 - 1;
                  s += x * w[d * K + (flat ? (i * P + j) * 3 + c : (c * P + i) * P + j)]!;
                }
            y[(b * N + n) * D + d] = s;
          }
      return { y };
    },
    dtypes: ['f32', 'bf16'],
    // The bias is rounded nowhere; positions are f32 in the kernel though the harness rounds matrices.
    nmse: 1e-4,
    bytes: {
      forward: B * H * W * 3 + 4 * (D * K + B * N * D),
      backward: B * H * W * 3 + 4 * (2 * D * K + B * N * D),
    },
    flops: { forward: 2 * B * N * K * D, backward: 2 * B * N * K * D },
  };
}

export const cases = [
  make(1, 2, 2, 2, 1),
  make(2, 8, 8, 4, 7),
  make(3, 9, 14, 4, 24),
  make(2, 16, 16, 8, 33, true),
  make(1, 7, 5, 5, 8, true),
]
  .flatMap((c): OpCase[] => [
    { ...c, dtypes: ['f32'], nmse: 1e-11 },
    { ...c, dtypes: ['bf16'] },
  ])
  .concat({ ...make(2, 8, 12, 4, 7, false, true), dtypes: ['f32'], nmse: 1e-11 });
export const bench = () => [make(8, 256, 256, 16, 768), make(64, 64, 64, 16, 128)];
