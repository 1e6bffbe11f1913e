import { softmaxCrossEntropy } from '../../lib/ops/softmax_cross_entropy.js';
import { input, normal, type OpCase } from '../harness.js';

export const kernels = ['softmax_cross_entropy_forward_backward'];

const { exp, log } = Math; // a global is slow to look up inside jest

interface Options {
  scale?: number;
  weighted?: boolean;
  smoothing?: number;
  denominator?: number;
  overwrite?: boolean;
  ignored?: number;
}

function make(R: number, V: number, o: Options = {}): OpCase {
  // Every `ignored`-th row is left out; targets are spread over the classes, first and last included.
  const targets = Int32Array.from({ length: R }, (_, r) =>
    o.ignored && r % o.ignored === 0 ? -1 : (r * (V - 1)) % V,
  );
  const weights = o.weighted ? Float32Array.from(normal(R, 9), (w) => Math.abs(w) + 0.1) : null;
  const smoothing = o.smoothing ?? 0;
  return {
    name: `${R}×${V}${Object.entries(o)
      .map(([k, v]) => `, ${k} ${v}`)
      .join('')}`,
    inputs: {
      logits: input([R, V], 1, o.scale ?? 2),
      targets: { data: targets, shape: [R], kind: 'data' },
      ...(weights ? { weights: { data: weights, shape: [R], kind: 'data' as const } } : {}),
    },
    run: (t) => ({
      loss: softmaxCrossEntropy(t['logits']!, t['targets']!, {
        labelSmoothing: smoothing,
        overwriteLogits: o.overwrite ?? false,
        ...(weights ? { weights: t['weights']! } : {}),
        ...(o.denominator ? { denominator: o.denominator } : {}),
      }),
    }),
    reference(v) {
      const logits = v['logits']!;
      let sum = 0,
        counted = 0;
      for (let r = 0; r < R; r++) {
        const target = targets[r]!,
          w = weights ? weights[r]! : 1;
        if (target < 0) continue;
        const row = logits.subarray(r * V, (r + 1) * V);
        let most = -Infinity,
          total = 0,
          plain = 0;
        for (let i = 0; i < V; i++) if (row[i]! > most) most = row[i]!;
        for (let i = 0; i < V; i++) {
          total += exp(row[i]! - most);
          plain += row[i]!;
        }
        sum += w * (most + log(total) - (1 - smoothing) * row[target]! - (smoothing / V) * plain);
        counted += w;
      }
      const denominator = o.denominator ?? counted;
      return { loss: Float64Array.of(denominator ? sum / denominator : 0) };
    },
    dtypes: ['f32', 'bf16'],
    bytes: { forward: 8 * R * V, backward: 0 },
    flops: { forward: 30 * R * V, backward: 0 },
  };
}

export const cases = [
  make(1, 2),
  make(5, 7, { ignored: 2 }),
  make(33, 130, { weighted: true, ignored: 3 }),
  make(9, 600, { smoothing: 0.1 }),
  make(6, 40, { scale: 60 }),
  make(10, 65, { overwrite: true, weighted: true, denominator: 3, smoothing: 0.2 }),
  { ...make(3, 5, { ignored: 1 }), name: 'no row counts' },
  make(2, 20001, { ignored: 2 }),
];

export const bench = () => [make(512, 32000), make(64, 256000, { overwrite: true })];
