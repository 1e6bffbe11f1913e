import { linear } from '../../lib/ops/linear.js';
import { input, param, type OpCase } from '../harness.js';

export const kernels = ['linear_forward', 'linear_backward'];

export function gelu(x: number): number {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

function make(M: number, N: number, K: number, gelued: boolean, biased = true): OpCase {
  return {
    name: `${M}×${K} → ${N}${gelued ? ' GELU' : ''}${biased ? '' : ' without bias'}`,
    inputs: {
      x: input([M, K], 1), weight: param([N, K], 2, 1 / Math.sqrt(K)),
      ...(biased ? { bias: param([N], 3) } : {}),
    },
    run: (t) => ({ y: linear(t['x']!, t['weight']!, t['bias'] ?? null, { gelu: gelued }) }),
    reference(v) {
      const y = new Float64Array(M * N), x = v['x']!, w = v['weight']!, b = v['bias'];
      for (let m = 0; m < M; m++)
        for (let n = 0; n < N; n++) {
          let s = b ? b[n]! : 0;
          for (let k = 0; k < K; k++) s += x[m * K + k]! * w[n * K + k]!;
          y[m * N + n] = gelued ? gelu(s) : s;
        }
      return { y };
    },
    dtypes: ['f32', 'bf16'],
    bytes: { forward: 4 * (M * K + N * K + M * N), backward: 8 * (M * K + N * K + M * N) },
    flops: { forward: 2 * M * N * K, backward: 4 * M * N * K },
  };
}

export const cases = [
  make(1, 1, 1, false), make(5, 3, 7, false), make(33, 17, 65, true), make(64, 72, 48, true),
  make(7, 128, 96, false, false), make(70, 64, 30, true, false),
].map((c) => c.name.startsWith('1×1') ? { ...c, dtypes: ['f32' as const] } : c);

export const bench = () => [make(2048, 768, 768, false), make(2048, 3072, 768, true), make(2048, 768, 3072, false)];
