import { attention, crossAttention, type Packed } from '../../lib/ops/attention.js';
import type { Tensor } from '../../lib/tensor.js';
import { input, type OpCase } from '../harness.js';

export const kernels = ['attention_forward', 'attention_backward'];

interface Shape {
  B: number;
  H: number;
  Nq: number;
  Nk: number;
  D: number;
}
/** True: all samples; a number: the first so many. */
type Causal = boolean | number;
const masked = (causal: Causal, b: number): boolean =>
  typeof causal === 'number' ? b < causal : causal;

/** One of q, k, v: head h of row i of sample b begins at start + b·batch + i·row + h·D. */
interface Rows {
  x: Float64Array;
  start: number;
  batch: number;
  row: number;
}

function reference(
  { B, H, Nq, Nk, D }: Shape,
  q: Rows,
  k: Rows,
  v: Rows,
  causal: Causal,
  lengths?: number[],
  sets = 1,
): Float64Array {
  const o = new Float64Array(B * Nq * H * D),
    p = new Float64Array(Nk);
  const at = (t: Rows, b: number, h: number, i: number): number =>
    t.start + b * t.batch + i * t.row + h * D;
  for (let b = 0; b < B; b++)
    for (let h = 0; h < H; h++)
      for (let i = 0; i < Nq; i++) {
        const kb = b % (B / sets),
          n = Math.min(lengths?.[kb] ?? Nk, masked(causal, b) ? i + 1 : Nk),
          qi = at(q, b, h, i),
          oi = ((b * Nq + i) * H + h) * D;
        let most = -Infinity,
          sum = 0;
        for (let j = 0; j < n; j++) {
          const kj = at(k, kb, h, j);
          let dot = 0;
          for (let d = 0; d < D; d++) dot += q.x[qi + d]! * k.x[kj + d]!;
          p[j] = dot / Math.sqrt(D);
          most = Math.max(most, p[j]!);
        }
        for (let j = 0; j < n; j++) sum += p[j] = Math.exp(p[j]! - most);
        for (let j = 0; j < n; j++) {
          const vj = at(v, kb, h, j),
            pj = p[j]! / sum;
          for (let d = 0; d < D; d++) o[oi + d]! += pj * v.x[vj + d]!;
        }
      }
  return o;
}

/** Part `part` of rows that hold `parts` times H·D elements. */
const part = (
  x: Float64Array,
  { H, D }: Shape,
  N: number,
  parts: number,
  part: number,
  shared = false,
): Rows => ({ x, start: part * H * D, batch: shared ? 0 : N * parts * H * D, row: parts * H * D });

/** Pairs of a query and a key that see each other, over the batch. */
function pairs({ B, Nq, Nk }: Shape, causal: Causal, lengths?: number[]): number {
  let n = 0;
  for (let b = 0; b < B; b++)
    for (let i = 0; i < Nq; i++) n += Math.min(lengths?.[b] ?? Nk, masked(causal, b) ? i + 1 : Nk);
  return n;
}
function costs(s: Shape, causal: Causal, lengths?: number[], shared = false) {
  const p = pairs(s, causal, lengths) * s.H * s.D,
    q = (shared ? 1 : s.B) * s.Nq * s.H * s.D,
    o = s.B * s.Nq * s.H * s.D;
  const k = s.B * s.Nk * s.H * s.D;
  return {
    bytes: { forward: 4 * (q + 2 * k + o), backward: 4 * (2 * q + 4 * k + 2 * o) },
    flops: { forward: 4 * p, backward: 10 * p },
  };
}
const optional = (lengths?: number[]) =>
  lengths
    ? {
        lengths: { data: Int32Array.from(lengths), shape: [lengths.length], kind: 'data' as const },
      }
    : {};

interface Mask {
  causal?: Causal;
  lengths?: number[];
}

function self(
  B: number,
  H: number,
  N: number,
  D: number,
  { causal = false, lengths }: Mask = {},
): OpCase {
  const s = { B, H, Nq: N, Nk: N, D };
  return {
    name: `B${B} H${H} N${N} D${D}${causal === false ? '' : causal === true ? ' causal' : ` causal ${causal}`}${lengths ? ` lengths ${lengths}` : ''}`,
    inputs: { qkv: input([B, N, 3 * H * D], 7 * N + D, 1.5), ...optional(lengths) },
    run: (t) => ({ o: attention(t['qkv']!, H, { causal, keyLengths: t['lengths'] ?? null }) }),
    reference: ({ qkv }) => ({
      o: reference(
        s,
        part(qkv!, s, N, 3, 0),
        part(qkv!, s, N, 3, 1),
        part(qkv!, s, N, 3, 2),
        causal,
        lengths,
      ),
    }),
    dtypes: ['f32', 'bf16'],
    ...costs(s, causal, lengths),
  };
}

function cross(
  B: number,
  H: number,
  Nq: number,
  Nk: number,
  D: number,
  { shared = false, lengths, sets = 1 }: Mask & { shared?: boolean; sets?: number } = {},
): OpCase {
  const s = { B: sets * B, H, Nq, Nk, D };
  return {
    name: `B${B} H${H} Nq${Nq} Nk${Nk} D${D}${shared ? ' shared' : ''}${sets > 1 ? ` sets ${sets}` : ''}${lengths ? ` lengths ${lengths}` : ''}`,
    inputs: {
      q: input([shared ? 1 : sets * B, Nq, H * D], 11 * Nq + D, 1.5),
      kv: input([B, Nk, 2 * H * D], 13 * Nk + D, 1.5),
      ...optional(lengths),
    },
    run: (t) => ({ o: crossAttention(t['q']!, t['kv']!, H, { keyLengths: t['lengths'] ?? null }) }),
    reference: ({ q, kv }) => ({
      o: reference(
        s,
        part(q!, s, Nq, 1, 0, shared),
        part(kv!, s, Nk, 2, 0),
        part(kv!, s, Nk, 2, 1),
        false,
        lengths,
        sets,
      ),
    }),
    dtypes: ['f32', 'bf16'],
    ...costs(s, false, lengths, shared),
  };
}

/** The layout of packed sequences as test inputs, and as options from them. */
const offsetsOf = (lengths: number[]): OpCase['inputs'] => {
  const offsets = Int32Array.from({ length: lengths.length + 1 }, (_, s) =>
    lengths.slice(0, s).reduce((a, b) => a + b, 0),
  );
  return { offsets: { data: offsets, shape: [offsets.length], kind: 'data' } };
};
const packedOf = (lengths: number[], offsets: Tensor): Packed => ({
  offsets,
  longest: Math.max(...lengths),
});

/** The rows of sample s alone, and the sizes of that sample. */
const eachSample = (
  lengths: number[],
  f: (s: number, start: number, n: number) => Float64Array,
): Float64Array => {
  let start = 0;
  return Float64Array.from(
    lengths.flatMap((n, s) => {
      const rows = [...f(s, start, n)];
      start += n;
      return rows;
    }),
  );
};
const packedCosts = (shapes: Shape[], causal: boolean, shared = false) => {
  const all = shapes.map((s, i) => costs({ ...s, Nq: shared && i ? 0 : s.Nq }, causal));
  const sum = (f: (c: (typeof all)[0]) => number) => all.reduce((a, c) => a + f(c), 0);
  const p = shapes.reduce((n, s) => n + pairs(s, causal) * s.H * s.D, 0);
  return {
    bytes: { forward: sum((c) => c.bytes.forward), backward: sum((c) => c.bytes.backward) },
    flops: { forward: 4 * p, backward: 10 * p },
  };
};

/** Self-attention over packed sequences. */
function selfPacked(
  H: number,
  lengths: number[],
  D: number,
  { causal = false }: { causal?: boolean } = {},
): OpCase {
  const T = lengths.reduce((a, b) => a + b, 0),
    width = 3 * H * D;
  return {
    name: `packed ${lengths} H${H} D${D}${causal ? ' causal' : ''}`,
    inputs: { qkv: input([T, width], 7 * T + D, 1.5), ...offsetsOf(lengths) },
    run: (t) => ({
      o: attention(t['qkv']!, H, { causal, packed: packedOf(lengths, t['offsets']!) }),
    }),
    reference: ({ qkv }) => ({
      o: eachSample(lengths, (_, start, n) => {
        const s = { B: 1, H, Nq: n, Nk: n, D },
          x = qkv!.subarray(start * width, (start + n) * width);
        return reference(s, part(x, s, n, 3, 0), part(x, s, n, 3, 1), part(x, s, n, 3, 2), causal);
      }),
    }),
    dtypes: ['f32', 'bf16'],
    ...packedCosts(
      lengths.map((n) => ({ B: 1, H, Nq: n, Nk: n, D })),
      causal,
    ),
  };
}

/** Dense queries over packed keys. */
function crossPacked(
  H: number,
  Nq: number,
  lengths: number[],
  D: number,
  { shared = false }: { shared?: boolean } = {},
): OpCase {
  const B = lengths.length,
    C = H * D,
    T = lengths.reduce((a, b) => a + b, 0);
  return {
    name: `packed keys ${lengths} H${H} Nq${Nq} D${D}${shared ? ' shared' : ''}`,
    inputs: {
      q: input([shared ? 1 : B, Nq, C], 11 * Nq + D, 1.5),
      kv: input([T, 2 * C], 13 * T + D, 1.5),
      ...offsetsOf(lengths),
    },
    run: (t) => ({
      o: crossAttention(t['q']!, t['kv']!, H, { packedKeys: packedOf(lengths, t['offsets']!) }),
    }),
    reference: ({ q, kv }) => ({
      o: eachSample(lengths, (b, start, n) => {
        const s = { B: 1, H, Nq, Nk: n, D },
          x = kv!.subarray(start * 2 * C, (start + n) * 2 * C);
        const qb = shared ? q! : q!.subarray(b * Nq * C, (b + 1) * Nq * C);
        return reference(s, part(qb, s, Nq, 1, 0), part(x, s, n, 2, 0), part(x, s, n, 2, 1), false);
      }),
    }),
    dtypes: ['f32', 'bf16'],
    ...packedCosts(
      lengths.map((n) => ({ B: 1, H, Nq, Nk: n, D })),
      false,
      shared,
    ),
  };
}

/** Too many numbers for finite differences of the reference; a smaller twin has its gradients checked. */
const forwardOnly = (c: OpCase): OpCase => ({
  ...c,
  gradients: false,
  large: true,
  dtypes: ['f32'],
  inputs: Object.fromEntries(
    Object.entries(c.inputs).map(([name, x]) => [name, { ...x, kind: 'data' as const }]),
  ),
});
const f32 = (c: OpCase): OpCase => ({ ...c, dtypes: ['f32'] });

export const cases: OpCase[] = [
  self(2, 2, 1, 8),
  self(2, 2, 2, 30),
  self(1, 2, 15, 32),
  self(1, 1, 63, 8),
  self(1, 1, 64, 72),
  self(1, 1, 65, 64),
  self(1, 1, 130, 30),
  self(1, 1, 137, 96),
  self(1, 1, 131, 104, { causal: true }),
  self(1, 1, 50, 128),
  forwardOnly(self(2, 3, 197, 64)),
  forwardOnly(self(1, 2, 260, 72)),
  self(4, 1, 20, 32, { lengths: [0, 1, 7, 20] }),
  self(3, 2, 70, 30, { lengths: [70, 64, 3] }),
  self(2, 1, 140, 8, { lengths: [129, 128] }),
  f32(self(1, 2, 5, 64, { lengths: [0] })),
  self(2, 2, 15, 32, { causal: true }),
  self(1, 1, 65, 72, { causal: true }),
  self(1, 1, 150, 16, { causal: true }),
  self(3, 1, 60, 30, { causal: true, lengths: [0, 1, 55] }),
  self(2, 1, 140, 8, { causal: true, lengths: [140, 49] }),
  self(1, 2, 1, 64, { causal: true }),
  self(3, 1, 20, 16, { causal: 2 }),
  self(2, 2, 9, 8, { causal: 0, lengths: [9, 4] }),
  self(2, 1, 9, 8, { causal: 1, lengths: [3, 4] }),
  forwardOnly(self(1, 2, 300, 64, { causal: true, lengths: [290] })),
  cross(2, 2, 2, 15, 30),
  cross(1, 2, 65, 7, 64),
  cross(1, 1, 7, 130, 72),
  cross(3, 1, 20, 50, 32, { lengths: [0, 50, 17] }),
  cross(2, 2, 5, 9, 16, { sets: 3 }),
  cross(2, 1, 4, 9, 16, { sets: 2, lengths: [9, 2] }),
  cross(1, 1, 4, 9, 16, { sets: 3 }),
  cross(3, 2, 3, 20, 32, { shared: true }),
  cross(3, 1, 3, 20, 96, { shared: true, lengths: [1, 0, 20] }),
  cross(3, 2, 1, 16, 32, { shared: true }),
  cross(2, 1, 1, 197, 72, { shared: true }),
  cross(2, 3, 1, 130, 30),
  cross(4, 2, 1, 40, 64, { shared: true, lengths: [0, 1, 40, 33] }),
  forwardOnly(cross(4, 12, 1, 256, 64, { shared: true })),
  selfPacked(1, [0, 1, 63, 64, 65, 130], 8),
  selfPacked(2, [7, 0, 0, 50, 1], 72),
  selfPacked(1, [65, 2, 70], 30, { causal: true }),
  selfPacked(2, [0, 0], 16),
  forwardOnly(selfPacked(2, [197, 30, 260], 64)),
  crossPacked(2, 5, [20, 0, 1, 33], 32),
  crossPacked(1, 50, [65, 3, 130], 64),
  crossPacked(2, 3, [9, 0, 40], 72, { shared: true }),
  crossPacked(2, 1, [64, 1, 0, 130, 63, 65], 32, { shared: true }),
  crossPacked(3, 1, [5, 2], 30),
];

/** Vision towers, the MAP head, text, the caption decoder; then the quickstart model's sizes. */
export const bench = () => [
  self(8, 12, 256, 64),
  self(1, 16, 729, 72),
  self(8, 12, 64, 64),
  self(8, 12, 64, 64, { causal: true }),
  cross(8, 12, 1, 256, 64, { shared: true }),
  cross(8, 12, 64, 256, 64),
  selfPacked(12, [64, 1024, 576, 128, 256, 784], 64),
  crossPacked(12, 1, [64, 1024, 576, 128, 256, 784], 64, { shared: true }),
  self(64, 4, 16, 32),
  self(64, 4, 64, 32),
  cross(64, 4, 1, 16, 32, { shared: true }),
];
