import { sigmoidLoss, sigmoidLossBlock } from '../../lib/ops/sigmoid_loss.js';
import { noGrad } from '../../lib/tape.js';
import { type Tensor, zeros } from '../../lib/tensor.js';
import { type Input, normal, type OpCase } from '../harness.js';

export const kernels = ['sigmoid_loss_forward_backward'];

/** Unit rows. */
function unit(R: number, D: number, seed: number): Float32Array {
  const v = normal(R * D, seed);
  for (let r = 0; r < R; r++) {
    const row = v.subarray(r * D, (r + 1) * D),
      norm = Math.hypot(...row);
    row.forEach((e, d) => {
      row[d] = e / norm;
    });
  }
  return v;
}
const scalar = (v: number, kind: Input['kind'] = 'param'): Input => ({
  data: Float32Array.of(v),
  shape: [1],
  kind,
});

const { exp, log1p, abs } = Math; // a global is slow to look up inside jest

export function softplus(a: number): number {
  return (a > 0 ? a : 0) + log1p(exp(-abs(a)));
}

interface Block {
  M: number;
  N: number;
  D: number;
  row0: number;
  col0: number;
}
type Arrays = Record<string, Float64Array>;

/** Loss and gradients of one block in float64, divided by `batch`. */
function exact(v: Arrays, { M, N, D, row0, col0 }: Block, batch: number) {
  const x = v['x']!,
    y = v['y']!,
    t = Math.exp(v['logScale']![0]!),
    b = v['bias']![0]!;
  let loss = 0,
    dlogScale = 0,
    dbias = 0;
  const dx = new Float64Array(M * D),
    dy = new Float64Array(N * D);
  for (let i = 0; i < M; i++)
    for (let j = 0; j < N; j++) {
      let dot = 0;
      for (let d = 0; d < D; d++) dot += x[i * D + d]! * y[j * D + d]!;
      const z = row0 + i === col0 + j ? 1 : -1,
        l = t * dot + b;
      loss += softplus(-z * l) / batch;
      const g = -z / (1 + exp(z * l)) / batch;
      dlogScale += g * t * dot;
      dbias += g;
      for (let d = 0; d < D; d++) {
        dx[i * D + d]! += g * t * y[j * D + d]!;
        dy[j * D + d]! += g * t * x[i * D + d]!;
      }
    }
  return {
    loss: Float64Array.of(loss),
    dx,
    dy,
    dlogScale: Float64Array.of(dlogScale),
    dbias: Float64Array.of(dbias),
  };
}

/** Three products of tile × D; backward only scales what forward made. */
const cost = (M: number, N: number, D: number) => ({
  bytes: { forward: 4 * D * 3 * (M + N), backward: 4 * D * 2 * (M + N) },
  flops: { forward: 6 * M * N * D, backward: (M + N) * D },
});

/** A whole batch through the tape. */
function whole(B: number, D: number, scale: number, bias: number, chunk?: number): OpCase {
  return {
    name: `${B}×${D}, scale ${scale}, bias ${bias}${chunk ? `, chunks of ${chunk}` : ''}`,
    inputs: {
      x: { data: unit(B, D, 1), shape: [B, D], kind: 'input' },
      y: { data: unit(B, D, 2), shape: [B, D], kind: 'input' },
      logScale: scalar(Math.log(scale)),
      bias: scalar(bias),
    },
    run: (t) => ({
      loss: sigmoidLoss(t['x']!, t['y']!, t['logScale']!, t['bias']!, chunk ? { chunk } : {}),
    }),
    reference: (v) => ({ loss: exact(v, { M: B, N: B, D, row0: 0, col0: 0 }, B).loss }),
    dtypes: ['f32', 'bf16'],
    ...cost(B, B, D),
  };
}

/** The kernel on blocks of the pair matrix, every output against its formula; several blocks accumulate. */
function blocks(
  name: string,
  M: number,
  N: number,
  D: number,
  parts: readonly Block[],
  scale = 10,
  bias = -10,
): OpCase {
  const batch = 50;
  return {
    name: `${name}, scale ${scale}`,
    inputs: {
      x: { data: unit(M, D, 3), shape: [M, D], kind: 'input' },
      y: { data: unit(N, D, 4), shape: [N, D], kind: 'input' },
      logScale: scalar(Math.log(scale), 'data'),
      bias: scalar(bias, 'data'),
    },
    run(t) {
      const {
        x,
        y,
        logScale,
        bias: b,
      } = t as { [k: string]: Tensor } & { x: Tensor; y: Tensor; logScale: Tensor; bias: Tensor };
      const of = (shape: readonly number[]) => zeros(shape, 'f32', x.device);
      const out = {
        loss: of([1]),
        dx: of(x.shape),
        dy: of(y.shape),
        dlogScale: of([1]),
        dbias: of([1]),
      };
      const first = parts[0]!;
      for (const p of parts) {
        const row = (p.row0 - first.row0) * D,
          col = (p.col0 - first.col0) * D;
        sigmoidLossBlock({
          x: x.view(row, [p.M, D]),
          y: y.view(col, [p.N, D]),
          logScale,
          bias: b,
          row0: p.row0,
          col0: p.col0,
          globalBatch: batch,
          loss: out.loss,
          dx: out.dx.view(row, [p.M, D]),
          dy: out.dy.view(col, [p.N, D]),
          dlogScale: out.dlogScale,
          dbias: out.dbias,
        });
      }
      // Without gradients the value must be the same.
      const only = of([1]);
      for (const p of parts)
        sigmoidLossBlock({
          x: x.view((p.row0 - first.row0) * D, [p.M, D]),
          y: y.view((p.col0 - first.col0) * D, [p.N, D]),
          logScale,
          bias: b,
          row0: p.row0,
          col0: p.col0,
          globalBatch: batch,
          loss: only,
          dx: null,
          dy: null,
          dlogScale: null,
          dbias: null,
        });
      return { ...out, only };
    },
    reference(v): Arrays {
      const r = exact(v, { M, N, D, row0: parts[0]!.row0, col0: parts[0]!.col0 }, batch);
      return { ...r, only: r.loss };
    },
    gradients: false,
    dtypes: ['f32', 'bf16'],
    ...cost(M, N, D),
  };
}
const one = (
  M: number,
  N: number,
  D: number,
  row0: number,
  col0: number,
  scale?: number,
  bias?: number,
) =>
  blocks(
    `block ${M}×${N}×${D} at ${row0}, ${col0}`,
    M,
    N,
    D,
    [{ M, N, D, row0, col0 }],
    scale,
    bias,
  );

const evaluation: OpCase = {
  ...whole(9, 5, 10, -10),
  name: 'under noGrad',
  gradients: false,
  run: (t) => ({ loss: noGrad(() => sigmoidLoss(t['x']!, t['y']!, t['logScale']!, t['bias']!)) }),
};

export const cases = [
  whole(1, 1, 10, -10),
  whole(7, 5, 10, -10),
  whole(37, 16, 112, -16.5),
  whole(37, 16, 112, -10, 10),
  whole(24, 72, 1, 0, 1),
  evaluation,
  one(5, 9, 7, 0, 0),
  one(9, 5, 7, 3, 0),
  one(6, 33, 8, 20, 4),
  one(8, 8, 8, 8, 0),
  one(130, 70, 24, 40, 50, 112),
  blocks(
    'four blocks',
    23,
    23,
    12,
    [
      { M: 10, N: 15, D: 12, row0: 0, col0: 0 },
      { M: 10, N: 8, D: 12, row0: 0, col0: 15 },
      { M: 13, N: 15, D: 12, row0: 10, col0: 0 },
      { M: 13, N: 8, D: 12, row0: 10, col0: 15 },
    ],
    30,
  ),
  { ...one(1030, 1100, 4, 0, 6, 20, -5), large: true }, // more than one tile each way
];

export const bench = () => [whole(4096, 768, 10, -10), whole(256, 768, 10, -10)];
