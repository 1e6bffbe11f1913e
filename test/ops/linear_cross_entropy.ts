import { linearCrossEntropy } from '../../lib/ops/linear_cross_entropy.js';
import { input, normal, type OpCase, param } from '../harness.js';

export const kernels = ['linear_cross_entropy_forward_backward'];

const { exp, log } = Math; // a global is slow to look up inside jest

interface Options {
  scale?: number;
  weighted?: boolean;
  biased?: boolean;
  denominator?: number;
  ignored?: number;
  groups?: number;
}

function make(R: number, V: number, D: number, o: Options = {}): OpCase {
  // Every `ignored`-th row is left out; targets are spread over the vocabulary, first and last included.
  const targets = Int32Array.from({ length: R }, (_, r) =>
    o.ignored && r % o.ignored === 0 ? -1 : (r * (V - 1)) % V,
  );
  // A weight of 0 leaves a row out too.
  const weights = o.weighted
    ? Float32Array.from(normal(R, 9), (w, r) => (r % 5 === 4 ? 0 : Math.abs(w) + 0.1))
    : null;
  const { biased = true, groups = 1 } = o;
  return {
    name: `${R}×${D} → ${V}${Object.entries(o)
      .map(([k, v]) => `, ${k} ${v}`)
      .join('')}`,
    inputs: {
      h: input([R, D], 1),
      weight: param([V, D], 2, (o.scale ?? 1) / Math.sqrt(D)),
      targets: { data: targets, shape: [R], kind: 'data' },
      ...(biased ? { bias: param([V], 3) } : {}),
      ...(weights ? { weights: { data: weights, shape: [R], kind: 'data' as const } } : {}),
    },
    run: (t) => ({
      loss: linearCrossEntropy(t['h']!, t['weight']!, t['bias'] ?? null, t['targets']!, {
        groups,
        gradScale: 0.75, // the weight that the harness gives a loss
        ...(weights ? { weights: t['weights']! } : {}),
        ...(o.denominator ? { denominator: o.denominator } : {}),
      }),
    }),
    reference(v) {
      const h = v['h']!,
        w = v['weight']!,
        b = v['bias'],
        loss = new Float64Array(groups),
        l = new Float64Array(V);
      let counted = 0;
      for (let r = 0; r < R; r++) {
        const target = targets[r]!,
          each = weights ? weights[r]! : 1;
        if (target < 0) continue;
        let most = -Infinity,
          total = 0;
        for (let i = 0; i < V; i++) {
          let sum = b ? b[i]! : 0;
          for (let d = 0; d < D; d++) sum += h[r * D + d]! * w[i * D + d]!;
          l[i] = sum;
          if (sum > most) most = sum;
        }
        for (let i = 0; i < V; i++) total += exp(l[i]! - most);
        const group = Math.floor(r / (R / groups));
        loss[group] = loss[group]! + each * (most + log(total) - l[target]!);
        counted += each;
      }
      const denominator = o.denominator ?? counted;
      return { loss: loss.map((x) => (denominator ? x / denominator : 0)) };
    },
    dtypes: R > 1 ? ['f32', 'bf16'] : ['f32'],
    bytes: { forward: 4 * V * D, backward: 16 * V * D },
    flops: { forward: 2 * R * V * D, backward: 4 * R * V * D },
  };
}

export const cases = [
  make(1, 2, 1),
  make(5, 7, 3, { ignored: 2 }),
  make(33, 130, 24, { weighted: true, ignored: 3 }),
  make(12, 65, 16, { denominator: 4, weighted: true }),
  // The harness differentiates a single loss; the gradients of groups are those of one group.
  { ...make(12, 65, 16, { groups: 3, denominator: 4, weighted: true }), gradients: false },
  make(9, 100, 8, { biased: false }),
  make(6, 40, 8, { scale: 40 }),
  { ...make(3, 5, 2, { ignored: 1 }), name: 'no row counts', dtypes: ['f32' as const] },
  { ...make(200, 300, 8, { ignored: 7 }), large: true }, // more than one pack of rows
  // More than one tile of tokens. Most gradients are so small that adding them to the harness's 0.5 rounds them.
  {
    ...make(3, 4200, 4, { weighted: true }),
    large: true,
    dtypes: ['f32' as const],
    gradNmse: 1e-7,
  },
];

export const bench = () => [make(2048, 32000, 768), make(2048, 256000, 768)];
