import { maskTokens } from '../../lib/ops/mask_tokens.js';
import { generator, input, type OpCase, param } from '../harness.js';

export const kernels = ['mask_tokens_forward', 'mask_tokens_backward'];

/** @param share of masked patches @param computed whether the positions are computed ones instead of a parameter */
function make(B: number, N: number, D: number, share: number, computed = false): OpCase {
  const r = generator(7);
  const mask = Uint8Array.from({ length: B * N }, () => ((r() + 1) / 2 < share ? 1 : 0));
  return {
    name: `${B}×${N}×${D}, ${share * 100} % masked${computed ? ', computed positions' : ''}`,
    inputs: {
      x: input([B, N, D], 1),
      token: param([D], 2),
      position: computed ? input([N, D], 3) : param([N, D], 3),
      mask: { data: mask, shape: [B, N], kind: 'data' },
    },
    run: (t) => ({ y: maskTokens(t['x']!, t['token']!, t['position']!, t['mask']!) }),
    reference: (v) => ({
      y: v['x']!.map((x, i) => {
        const row = Math.floor(i / D),
          d = i % D;
        return mask[row] ? v['token']![d]! + v['position']![(row % N) * D + d]! : x;
      }),
    }),
    dtypes: computed ? ['f32'] : ['f32', 'bf16'],
    bytes: { forward: 8 * B * N * D, backward: 8 * B * N * D },
    flops: { forward: B * N * D, backward: 2 * B * N * D },
  };
}

export const cases = [
  make(1, 1, 3, 1),
  make(1, 2, 5, 0),
  make(3, 7, 9, 0.5),
  make(4, 16, 300, 0.5),
  make(2, 5, 8, 0.4, true),
];
export const bench = () => [make(64, 256, 768, 0.5)];
