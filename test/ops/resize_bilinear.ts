import { resizeBilinear } from '../../lib/ops/resize_bilinear.js';
import { generator, input, type OpCase } from '../harness.js';

export const kernels = ['resize_bilinear_forward', 'resize_bilinear_backward'];

/** Weights of recipe NaFlex: w_ij ∝ max(0, 1 − |j + 0.5 − (i + 0.5)s| / max(1, s)), s = in/out; (out, in). */
function weights(n: number, m: number): Float64Array {
  const s = n / m,
    w = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    let sum = 0;
    for (let j = 0; j < n; j++)
      sum += w[i * n + j] = Math.max(0, 1 - Math.abs(j + 0.5 - (i + 0.5) * s) / Math.max(1, s));
    for (let j = 0; j < n; j++) w[i * n + j]! /= sum;
  }
  return w;
}

function make(
  B: number,
  H: number,
  W: number,
  C: number,
  OH: number,
  OW: number,
  bytes = false,
): OpCase {
  const r = generator(7),
    n = B * H * W * C;
  return {
    name: `${bytes ? 'u8' : 'f32'} ${B}×${H}×${W}×${C} → ${OH}×${OW}`,
    inputs: {
      x: bytes
        ? {
            data: Uint8Array.from({ length: n }, () => (r() + 1) * 127.99),
            shape: [B, H, W, C],
            kind: 'data',
          }
        : input([B, H, W, C], 1),
    },
    run: (t) => ({ y: resizeBilinear(t['x']!, [OH, OW]) }),
    reference(v) {
      const rows = weights(H, OH),
        columns = weights(W, OW),
        x = v['x']!,
        y = new Float64Array(B * OH * OW * C);
      const round = bytes ? (a: number): number => Math.floor(a + 0.5) : (a: number): number => a;
      for (let b = 0; b < B; b++)
        for (let c = 0; c < C; c++) {
          const middle = new Float64Array(H * OW);
          for (let i = 0; i < H; i++)
            for (let j = 0; j < OW; j++) {
              let s = 0;
              for (let k = 0; k < W; k++)
                s += columns[j * W + k]! * x[((b * H + i) * W + k) * C + c]!;
              middle[i * OW + j] = round(s);
            }
          for (let i = 0; i < OH; i++)
            for (let j = 0; j < OW; j++) {
              let s = 0;
              for (let k = 0; k < H; k++) s += rows[i * H + k]! * middle[k * OW + j]!;
              y[((b * OH + i) * OW + j) * C + c] = round(s);
            }
        }
      return { y };
    },
    // PIL's 22-bit weights may round a tie the other way: one grey level here and there.
    ...(bytes ? { gradients: false, nmse: 1e-6 } : {}),
    bytes: {
      forward: (bytes ? 1 : 4) * B * C * (H * W + OH * OW),
      backward: 4 * B * C * (H * W + OH * OW),
    },
    flops: { forward: 4 * B * C * OH * OW, backward: 4 * B * C * OH * OW },
  };
}

export const cases = [
  make(1, 1, 1, 1, 3, 2),
  make(2, 5, 7, 3, 9, 4),
  make(1, 16, 16, 8, 6, 6),
  make(1, 16, 16, 5, 27, 40),
  make(2, 13, 9, 3, 5, 20, true),
];
export const bench = () => [make(1, 480, 640, 3, 256, 256, true), make(1, 16, 16, 768, 24, 24)];
