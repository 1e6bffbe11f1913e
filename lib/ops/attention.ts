import { check, checkDType, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { needsGrad, record } from '../tape.js';
import { type DeviceName, empty, type Tensor, tensor } from '../tensor.js';

type Sizes = [
  B: number,
  H: number,
  Nq: number,
  Nk: number,
  Tq: number,
  Tk: number,
  D: number,
  qOffset: number,
  qRow: number,
  kOffset: number,
  kRow: number,
  vOffset: number,
  vRow: number,
  qShared: boolean,
  causal: boolean,
  scale: number,
];
type Masks = [keyLengths: Handle, qStarts: Handle, kStarts: Handle];
const forward =
  op<[o: Handle, lse: Handle, q: Handle, k: Handle, v: Handle, ...Masks, ...Sizes]>(
    'attention_forward',
  );
const back =
  op<
    [
      dq: Handle,
      dk: Handle,
      dv: Handle,
      dO: Handle,
      q: Handle,
      k: Handle,
      v: Handle,
      o: Handle,
      lse: Handle,
      ...Masks,
      ...Sizes,
    ]
  >('attention_backward');
const addTo = op<[y: Handle, a: Handle, b: Handle, N: number]>('add_forward');

/** Sequences of different lengths, one after the other without padding: T rows in all. */
export interface Packed {
  /** (S + 1) i32: sequence s is the rows offsets[s] … offsets[s + 1] − 1; the first is 0, the last T. */
  offsets: Tensor;
  /** Rows of the longest sequence. */
  longest: number;
}

/** The layout of packed sequences of these lengths; dispose its `offsets`. */
export function packed(lengths: readonly number[], device: DeviceName = 'cpu'): Packed {
  const offsets = new Int32Array(lengths.length + 1);
  lengths.forEach((n, s) => {
    check(
      Number.isInteger(n) && n >= 0,
      'packed',
      `lengths must be integers from 0 on but one is ${n}`,
    );
    check(
      offsets[s]! + n < 2 ** 31,
      'packed',
      'the sequences must have less than 2³¹ rows in all; make the batch smaller',
    );
    offsets[s + 1] = offsets[s]! + n;
  });
  return {
    offsets: tensor(offsets, [offsets.length], device),
    longest: lengths.reduce((a, b) => Math.max(a, b), 0),
  };
}

/** Which keys a query sees. */
export interface AttentionOptions {
  /** (B) i32: only the first so many keys of each sample; a sample with 0 gets zeros. */
  keyLengths?: Tensor | null;
  /** Only keys at or before the query's own position in its sequence; a number: in the first so many samples, not in the others. */
  causal?: boolean | number;
  /** The rows are packed sequences, and each sees only itself. Excludes keyLengths. */
  packed?: Packed | null;
}
/** Which keys a query of another sequence sees. */
export interface CrossAttentionOptions {
  /** (B) i32: only the first so many keys of each sample; a sample with 0 gets zeros. */
  keyLengths?: Tensor | null;
  /** The keys are packed sequences, one for each sample. Excludes keyLengths. */
  packedKeys?: Packed | null;
}

/**
 * Multi-head self-attention `softmax(q·kᵀ / √D)·v` over the output of one fused projection.
 * @param qkv (B, N, 3·C), or with `packed` (T, 3·C); f32 or bf16: q, k and v of all heads, one after the other
 * @param heads H; each has D = C / H columns
 * @returns (B, N, C), or (T, C), of qkv's type, heads side by side
 * @throws ShapeError. Packed offsets that don't rise from 0 to T by at most `longest` reject the next read() on the CPU;
 *   a GPU leaves such a sequence out.
 */
export function attention(qkv: Tensor, heads: number, options: AttentionOptions = {}): Tensor {
  const { keyLengths = null, causal = false, packed: sequences = null } = options;
  checkRank('attention', 'qkv', qkv, sequences ? 2 : 3);
  const width = qkv.shape.at(-1)!,
    C = width / 3;
  check(
    Number.isInteger(C),
    'attention',
    `qkv must have 3·C columns but is [${qkv.shape.join(', ')}]`,
  );
  const T = qkv.shape.slice(0, -1).reduce((a, b) => a * b, 1);
  const [B, N] = sequences
    ? packedSizes('attention', sequences, T, keyLengths)
    : (qkv.shape as [number, number, number]);
  const D = headColumns('attention', C, heads);
  const first = typeof causal === 'number' ? causal : causal ? B : 0;
  check(
    Number.isInteger(first) && first >= 0 && first <= B,
    'attention',
    `causal must be a number of the ${B} samples but is ${first}`,
  );
  check(
    !sequences || first === 0 || first === B,
    'attention',
    'packed sequences are all causal or none is',
  );
  const part = (from: number, n: number, masked: boolean): Part => ({
    q: sequences ? null : [from, n],
    k: sequences ? null : [from, n],
    sizes: [
      n,
      heads,
      N,
      N,
      sequences ? T : n * N,
      sequences ? T : n * N,
      D,
      0,
      width,
      C,
      width,
      2 * C,
      width,
      false,
      masked,
      1 / Math.sqrt(D),
    ],
  });
  const parts = [part(0, first, true), part(first, B - first, false)].filter((p) => p.sizes[0] > 0);
  return run(
    'attention',
    qkv,
    qkv,
    [...qkv.shape.slice(0, -1), C],
    B,
    heads,
    keyLengths,
    sequences,
    sequences,
    parts.length > 0 ? parts : [part(0, 0, false)],
  );
}

/**
 * Multi-head attention of queries over another sequence: MAP pooling (one learned query shared by the batch), and the
 * caption decoder's cross-attention.
 * @param q (B, Nq, C); or (1, Nq, C) for queries shared by the batch: their gradient is summed over the samples; or
 *   (S·B, Nq, C): S sets of queries, sample i of each over sample i of kv
 * @param kv (B, Nk, 2·C), or with `packedKeys` (T, 2·C), of q's type: k and v of all heads, one after the other
 * @param heads H; each has D = C / H columns
 * @returns (B, Nq, C) or (S·B, Nq, C) of q's type
 * @throws ShapeError, and for packed offsets as attention() does
 */
export function crossAttention(
  q: Tensor,
  kv: Tensor,
  heads: number,
  options: CrossAttentionOptions = {},
): Tensor {
  const { keyLengths = null, packedKeys = null } = options;
  checkRank('crossAttention', 'q', q, 3);
  checkRank('crossAttention', 'kv', kv, packedKeys ? 2 : 3);
  const [samples, Nq, C] = q.shape as [number, number, number];
  checkShape('crossAttention', 'kv', kv, [...kv.shape.slice(0, -1), 2 * C]);
  const Tk = kv.shape.slice(0, -1).reduce((a, b) => a * b, 1);
  const [B, Nk] = packedKeys
    ? packedSizes('crossAttention', packedKeys, Tk, keyLengths)
    : (kv.shape as [number, number, number]);
  const shared = samples === 1 && B > 1;
  check(
    shared || (B === 0 ? samples <= 1 : samples > 0 && samples % B === 0),
    'crossAttention',
    `q must be [1 or a multiple of ${B}, Nq, ${C}] but is [${q.shape.join(', ')}]`,
  );
  check(q.dtype === kv.dtype, 'crossAttention', `q is ${q.dtype} but kv is ${kv.dtype}`);
  const D = headColumns('crossAttention', C, heads);
  const sets = shared || B === 0 ? 1 : samples / B;
  const parts = Array.from(
    { length: sets },
    (_, s): Part => ({
      q: sets === 1 ? null : [s * B, B],
      k: null,
      sizes: [
        B,
        heads,
        Nq,
        Nk,
        B * Nq,
        Tk,
        D,
        0,
        C,
        0,
        2 * C,
        C,
        2 * C,
        samples !== sets * B,
        false,
        1 / Math.sqrt(D),
      ],
    }),
  );
  return run(
    'crossAttention',
    q,
    kv,
    [sets * B, Nq, C],
    B,
    heads,
    keyLengths,
    null,
    packedKeys,
    parts,
  );
}

function headColumns(name: string, C: number, heads: number): number {
  check(
    Number.isInteger(heads) && heads > 0 && C % heads === 0,
    name,
    `${C} columns cannot be split into ${heads} heads`,
  );
  return C / heads;
}

/** How many sequences, and how long the longest is. */
function packedSizes(
  name: string,
  { offsets, longest }: Packed,
  T: number,
  keyLengths: Tensor | null,
): [S: number, N: number] {
  check(
    !keyLengths,
    name,
    'keyLengths and packed sequences exclude each other; leave keyLengths out',
  );
  checkRank(name, 'offsets', offsets, 1);
  checkDType(name, 'offsets', offsets, 'i32');
  check(
    offsets.size > 0,
    name,
    'offsets must have one entry more than there are sequences but is empty',
  );
  check(
    Number.isInteger(longest) && longest >= 0 && longest <= T,
    name,
    `longest must be from 0 to ${T} rows but is ${longest}`,
  );
  return [offsets.size - 1, longest];
}

/** One kernel call: which samples of the queries (and of what is like them) and of the keys it covers, null for all. */
interface Part {
  q: readonly [first: number, n: number] | null;
  k: readonly [first: number, n: number] | null;
  sizes: Sizes;
}

/** Calls f with the part's share of each tensor (null stays null); views live as long as the call is being made. */
function withParts(
  part: Part,
  of: readonly (readonly ['q' | 'k', Tensor | null])[],
  f: (...handles: Handle[]) => void,
): void {
  const views = of.map(([side, x]) => {
    const range = part[side],
      whole = x?.shape[0] ?? 0;
    return !x || !range || range[1] === whole
      ? x
      : x.view(range[0] * (x.size / whole), [range[1], ...x.shape.slice(1)]);
  });
  f(...views.map((v) => v?.handle ?? 0));
  views.forEach((v, i) => {
    if (v && v !== of[i]![1]) v.dispose();
  });
}

function run(
  name: string,
  q: Tensor,
  kv: Tensor,
  shape: readonly number[],
  B: number,
  H: number,
  keyLengths: Tensor | null,
  packedQ: Packed | null,
  packedK: Packed | null,
  parts: readonly Part[],
): Tensor {
  checkDType(name, q === kv ? 'qkv' : 'q', q, 'f32', 'bf16');
  if (keyLengths) {
    checkShape(name, 'keyLengths', keyLengths, [B]);
    checkDType(name, 'keyLengths', keyLengths, 'i32');
  }
  const starts = [packedQ?.offsets.handle ?? 0, packedK?.offsets.handle ?? 0] as const;
  const o = empty(shape, q.dtype, q.device);
  const lse = empty([...shape.slice(0, -1), H], 'f32', q.device);
  for (const p of parts)
    withParts(
      p,
      [
        ['q', o],
        ['q', lse],
        ['q', q],
        ['k', kv],
        ['k', keyLengths],
      ],
      (ov, lv, qv, kvv, lengths) =>
        forward(ov!, lv!, qv!, kvv!, kvv!, lengths!, ...starts, ...p.sizes),
    );
  record({
    inputs: q === kv ? [q] : [q, kv],
    outputs: [o],
    saved: [lse, keyLengths, packedK?.offsets].filter((t): t is Tensor => !!t),
    backward(dO) {
      const dq = needsGrad(q) ? empty(q.shape, q.dtype, q.device) : null;
      const dkv = q === kv ? dq : needsGrad(kv) ? empty(kv.shape, kv.dtype, kv.device) : null;
      parts.forEach((p, i) => {
        // Several sets of queries: the kernel sets dkv, so the later ones are added.
        const again = dkv && q !== kv && i > 0 ? empty(kv.shape, kv.dtype, kv.device) : null;
        withParts(
          p,
          [
            ['q', dq],
            ['k', again ?? dkv],
            ['q', dO!],
            ['q', q],
            ['k', kv],
            ['q', o],
            ['q', lse],
            ['k', keyLengths],
          ],
          (dqv, dkvv, dov, qv, kvv, ov, lv, lengths) =>
            back(
              dqv!,
              dkvv!,
              dkvv!,
              dov!,
              qv!,
              kvv!,
              kvv!,
              ov!,
              lv!,
              lengths!,
              ...starts,
              ...p.sizes,
            ),
        );
        if (again) addTo(dkv!.handle, dkv!.handle, again.handle, dkv!.size);
        again?.dispose();
      });
      return q === kv ? [dq] : [dq, dkv];
    },
  });
  return o;
}
