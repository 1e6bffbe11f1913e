import { distillLoss } from '../../lib/ops/distill_loss.js';
import { cast } from '../../lib/ops/elementwise.js';
import { fromBf16, type Input, input, normal, type OpCase, toBf16 } from '../harness.js';

export const kernels = ['distill_loss_forward_backward'];

const { exp, log } = Math; // a global is slow to look up inside jest

interface Options {
  scale?: number;
  weighted?: boolean;
  denominator?: number;
  overwrite?: boolean;
  temperatures?: [number, number];
}

/** softmax(x / τ) of one row, as [probabilities, log probabilities]. */
function softmax(x: Float64Array): [Float64Array, Float64Array] {
  const most = x.reduce((a, b) => (a > b ? a : b), -Infinity);
  const lse = most + log(x.reduce((sum, v) => sum + exp(v - most), 0));
  return [x.map((v) => exp(v - lse)), x.map((v) => v - lse)];
}

/** Teacher logits are data to the harness, which leaves data in f32: their values are such that the cast to bf16 is exact. */
function teacherLogits(T: number, K: number, scale: number): Input {
  return {
    data: normal(T * K, 2, scale).map((v) => fromBf16(toBf16(v))),
    shape: [T, K],
    kind: 'data',
  };
}

function make(views: number, T: number, K: number, o: Options = {}): OpCase {
  const R = views * T,
    [ts, tt] = o.temperatures ?? [0.5, 0.2];
  const weights = o.weighted
    ? Float32Array.from(normal(R, 9), (w, i) => (i % 3 === 0 ? 0 : Math.abs(w) + 0.1))
    : null;
  return {
    name: `${views} views × ${T}×${K}${Object.entries(o)
      .map(([k, v]) => `, ${k} ${String(v)}`)
      .join('')}`,
    inputs: {
      student: input([R, K], 1, o.scale ?? 1),
      teacher: teacherLogits(T, K, o.scale ?? 1),
      centre: input([K], 3, 0.5, 'data'),
      ...(weights ? { weights: { data: weights, shape: [R], kind: 'data' as const } } : {}),
    },
    run: (t) => ({
      loss: distillLoss(
        t['student']!,
        cast(t['teacher']!, t['student']!.dtype as 'f32' | 'bf16'),
        t['centre']!,
        {
          studentTemperature: ts,
          teacherTemperature: tt,
          overwriteStudent: o.overwrite ?? false,
          ...(weights ? { weights: t['weights']! } : {}),
          ...(o.denominator ? { denominator: o.denominator } : {}),
        },
      ),
    }),
    reference(v) {
      const centre = v['centre']!;
      let sum = 0;
      for (let r = 0; r < R; r++) {
        const at = r % T;
        const [p] = softmax(
          v['teacher']!.slice(at * K, (at + 1) * K).map((x, k) => (x - centre[k]!) / tt),
        );
        const [, logQ] = softmax(v['student']!.slice(r * K, (r + 1) * K).map((x) => x / ts));
        sum -= (weights ? weights[r]! : 1) * p.reduce((s, pk, k) => s + pk * logQ[k]!, 0);
      }
      return { loss: Float64Array.of(sum / (o.denominator ?? R)) };
    },
    dtypes: ['f32', 'bf16'],
    bytes: { forward: 4 * (2 * R + T) * K, backward: 0 },
    flops: { forward: (40 * R + 20 * T) * K, backward: 0 },
  };
}

export const cases = [
  make(1, 1, 2),
  make(1, 5, 7),
  make(8, 3, 33),
  make(2, 9, 600, { weighted: true }),
  make(4, 2, 130, { overwrite: true, denominator: 3 }),
  make(2, 3, 40, { scale: 8, temperatures: [0.1, 0.04] }),
  make(2, 2, 20001),
  make(3, 1, 256),
];

export const bench = () => [
  make(8, 16, 65536, { temperatures: [0.1, 0.04] }),
  make(1, 512, 8192, { overwrite: true }),
];
