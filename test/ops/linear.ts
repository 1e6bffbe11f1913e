import { type Gelu, linear } from '../../lib/ops/linear.js';
import { input, type OpCase, param } from '../harness.js';

export const kernels = ['linear_forward', 'linear_backward'];

/** 1 + erf(x): the Maclaurin series, or of the tails the continued fraction of erfc. */
function erf1(x: number): number {
  if (Math.abs(x) < 2.5) {
    let term = x,
      sum = x;
    for (let n = 1; n < 60; n++) sum += (term *= (-x * x) / n) / (2 * n + 1);
    return 1 + (2 / Math.sqrt(Math.PI)) * sum;
  }
  const z = Math.abs(x);
  let fraction = z;
  for (let n = 80; n > 0; n--) fraction = z + n / 2 / fraction;
  const tail = Math.exp(-z * z) / Math.sqrt(Math.PI) / fraction;
  return x < 0 ? tail : 2 - tail;
}

export function gelu(x: number, form: Gelu = 'tanh'): number {
  return (
    0.5 *
    x *
    (form === 'exact'
      ? erf1(x * Math.SQRT1_2)
      : 1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))
  );
}

function make(
  M: number,
  N: number,
  K: number,
  form: Gelu | false,
  biased = true,
  scale = 1,
): OpCase {
  return {
    name: `${M}×${K} → ${N}${form ? ` GELU ${form}` : ''}${biased ? '' : ' without bias'}${scale === 1 ? '' : `, inputs to ±${3 * scale}`}`,
    inputs: {
      x: input([M, K], 1, scale),
      weight: param([N, K], 2, 1 / Math.sqrt(K)),
      ...(biased ? { bias: param([N], 3) } : {}),
    },
    run: (t) => ({ y: linear(t['x']!, t['weight']!, t['bias'] ?? null, { gelu: form }) }),
    reference(v) {
      const y = new Float64Array(M * N),
        x = v['x']!,
        w = v['weight']!,
        b = v['bias'];
      for (let m = 0; m < M; m++)
        for (let n = 0; n < N; n++) {
          let s = b ? b[n]! : 0;
          for (let k = 0; k < K; k++) s += x[m * K + k]! * w[n * K + k]!;
          y[m * N + n] = form ? gelu(s, form) : s;
        }
      return { y };
    },
    dtypes: ['f32', 'bf16'],
    bytes: { forward: 4 * (M * K + N * K + M * N), backward: 8 * (M * K + N * K + M * N) },
    flops: { forward: 2 * M * N * K, backward: 4 * M * N * K },
  };
}

export const cases = [
  make(1, 1, 1, false),
  make(5, 3, 7, false),
  make(33, 17, 65, 'tanh'),
  make(64, 72, 48, 'tanh'),
  make(7, 128, 96, false, false),
  make(70, 64, 30, 'tanh', false),
  make(33, 17, 65, 'exact'),
  make(40, 64, 24, 'exact', false),
  make(31, 40, 3, 'exact', true, 4),
].map((c) => (c.name.startsWith('1×1') ? { ...c, dtypes: ['f32' as const] } : c));

export const bench = () => [
  make(2048, 768, 768, false),
  make(2048, 3072, 768, 'tanh'),
  make(2048, 3072, 768, 'exact'),
  make(2048, 768, 3072, false),
];
