import { addLayerNorm, layerNorm } from '../../lib/ops/layer_norm.js';
import { input, type OpCase, param } from '../harness.js';

export const kernels = ['layer_norm_forward', 'layer_norm_backward'];

function reference(h: Float64Array, w: Float64Array, b: Float64Array | undefined): Float64Array {
  const C = w.length,
    y = new Float64Array(h.length);
  for (let r = 0; r < h.length / C; r++) {
    const row = h.subarray(r * C, (r + 1) * C);
    const mean = row.reduce((s, v) => s + v, 0) / C;
    const variance = row.reduce((s, v) => s + (v - mean) ** 2, 0) / C;
    row.forEach((v, c) => {
      y[r * C + c] = ((v - mean) / Math.sqrt(variance + 1e-6)) * w[c]! + (b ? b[c]! : 0);
    });
  }
  return y;
}

function make(R: number, C: number, residual: boolean, biased = true): OpCase {
  const n = R * C * 4;
  return {
    name: `${R}×${C}${residual ? ' + residual' : ''}${biased ? '' : ' without bias'}`,
    inputs: {
      x: input([R, C], 1),
      weight: param([C], 3),
      ...(biased ? { bias: param([C], 4) } : {}),
      ...(residual ? { residual: input([R, C], 2) } : {}),
    },
    run: (t) =>
      residual
        ? { ...addLayerNorm(t['x']!, t['residual']!, t['weight']!, t['bias'] ?? null) }
        : { y: layerNorm(t['x']!, t['weight']!, t['bias'] ?? null) },
    reference(v): Record<string, Float64Array> {
      const h = residual ? v['x']!.map((a, i) => a + v['residual']![i]!) : v['x']!;
      const y = reference(h, v['weight']!, v['bias']);
      return residual ? { y, sum: h } : { y };
    },
    dtypes: ['f32', 'bf16'],
    bytes: { forward: n * (residual ? 4 : 2), backward: n * (residual ? 4 : 3) },
    flops: { forward: 8 * R * C, backward: 14 * R * C },
  };
}

export const cases = [
  make(1, 1, false),
  make(3, 7, false),
  make(5, 63, true),
  make(37, 72, false),
  make(64, 128, true),
  make(9, 768, true),
  make(4, 1152, false),
  make(2, 1536, true),
  make(130, 96, false),
  make(5, 64, true, false),
  make(6, 37, false, false),
].map((c) => (c.name.startsWith('1×1') ? { ...c, dtypes: ['f32' as const] } : c));

export const bench = () => [make(2048, 768, false), make(2048, 768, true), make(2048, 1152, true)];
