import { check, checkDType, checkRank, checkShape } from '../check.js';
import { op, type Handle } from '../native.js';
import { needsGrad, record } from '../tape.js';
import { empty, tensor, type DeviceName, type Tensor } from '../tensor.js';

type Sizes = [B: number, H: number, Nq: number, Nk: number, Tq: number, Tk: number, D: number, qOffset: number, qRow: number,
  kOffset: number, kRow: number, vOffset: number, vRow: number, qShared: boolean, causal: boolean, scale: number];
type Masks = [keyLengths: Handle, qStarts: Handle, kStarts: Handle];
const forward = op<[o: Handle, lse: Handle, q: Handle, k: Handle, v: Handle, ...Masks, ...Sizes]>('attention_forward');
const back = op<[dq: Handle, dk: Handle, dv: Handle, dO: Handle, q: Handle, k: Handle, v: Handle, o: Handle, lse: Handle,
  ...Masks, ...Sizes]>('attention_backward');

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
    check(Number.isInteger(n) && n >= 0, 'packed', `lengths must be integers from 0 on but one is ${n}`);
    check(offsets[s]! + n < 2 ** 31, 'packed', 'the sequences must have less than 2³¹ rows in all; make the batch smaller');
    offsets[s + 1] = offsets[s]! + n;
  });
  return { offsets: tensor(offsets, [offsets.length], device), longest: lengths.reduce((a, b) => Math.max(a, b), 0) };
}

/** Which keys a query sees. */
export interface AttentionOptions {
  /** (B) i32: only the first so many keys of each sample; a sample with 0 gets zeros. */
  keyLengths?: Tensor | null;
  /** Only keys at or before the query's own position in its sequence. */
  causal?: boolean;
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
  const width = qkv.shape.at(-1)!, C = width / 3;
  check(Number.isInteger(C), 'attention', `qkv must have 3·C columns but is [${qkv.shape.join(', ')}]`);
  const T = qkv.shape.slice(0, -1).reduce((a, b) => a * b, 1);
  const [B, N] = sequences ? packedSizes('attention', sequences, T, keyLengths) : qkv.shape as [number, number, number];
  const D = headColumns('attention', C, heads);
  return run('attention', qkv, qkv, [...qkv.shape.slice(0, -1), C], keyLengths, sequences, sequences,
    [B, heads, N, N, T, T, D, 0, width, C, width, 2 * C, width, false, causal, 1 / Math.sqrt(D)]);
}

/**
 * Multi-head attention of queries over another sequence: MAP pooling (one learned query shared by the batch), and the
 * caption decoder's cross-attention.
 * @param q (B, Nq, C), or (1, Nq, C) for queries shared by the batch: their gradient is summed over the samples
 * @param kv (B, Nk, 2·C), or with `packedKeys` (T, 2·C), of q's type: k and v of all heads, one after the other
 * @param heads H; each has D = C / H columns
 * @returns (B, Nq, C) of q's type
 * @throws ShapeError, and for packed offsets as attention() does
 */
export function crossAttention(q: Tensor, kv: Tensor, heads: number, options: CrossAttentionOptions = {}): Tensor {
  const { keyLengths = null, packedKeys = null } = options;
  checkRank('crossAttention', 'q', q, 3);
  checkRank('crossAttention', 'kv', kv, packedKeys ? 2 : 3);
  const [samples, Nq, C] = q.shape as [number, number, number];
  checkShape('crossAttention', 'kv', kv, [...kv.shape.slice(0, -1), 2 * C]);
  const Tk = kv.shape.slice(0, -1).reduce((a, b) => a * b, 1);
  const [B, Nk] = packedKeys ? packedSizes('crossAttention', packedKeys, Tk, keyLengths) : kv.shape as [number, number, number];
  check(samples === B || samples === 1, 'crossAttention', `q must be [${B} or 1, Nq, ${C}] but is [${q.shape.join(', ')}]`);
  check(q.dtype === kv.dtype, 'crossAttention', `q is ${q.dtype} but kv is ${kv.dtype}`);
  const D = headColumns('crossAttention', C, heads);
  return run('crossAttention', q, kv, [B, Nq, C], keyLengths, null, packedKeys,
    [B, heads, Nq, Nk, B * Nq, Tk, D, 0, C, 0, 2 * C, C, 2 * C, samples !== B, false, 1 / Math.sqrt(D)]);
}

function headColumns(name: string, C: number, heads: number): number {
  check(Number.isInteger(heads) && heads > 0 && C % heads === 0, name, `${C} columns cannot be split into ${heads} heads`);
  return C / heads;
}

/** How many sequences, and how long the longest is. */
function packedSizes(name: string, { offsets, longest }: Packed, T: number, keyLengths: Tensor | null): [S: number, N: number] {
  check(!keyLengths, name, 'keyLengths and packed sequences exclude each other; leave keyLengths out');
  checkRank(name, 'offsets', offsets, 1);
  checkDType(name, 'offsets', offsets, 'i32');
  check(offsets.size > 0, name, 'offsets must have one entry more than there are sequences but is empty');
  check(Number.isInteger(longest) && longest >= 0 && longest <= T, name, `longest must be from 0 to ${T} rows but is ${longest}`);
  return [offsets.size - 1, longest];
}

function run(name: string, q: Tensor, kv: Tensor, shape: readonly number[], keyLengths: Tensor | null, packedQ: Packed | null,
  packedK: Packed | null, sizes: Sizes): Tensor {
  const [B, H, , , Tq] = sizes;
  checkDType(name, q === kv ? 'qkv' : 'q', q, 'f32', 'bf16');
  if (keyLengths) {
    checkShape(name, 'keyLengths', keyLengths, [B]);
    checkDType(name, 'keyLengths', keyLengths, 'i32');
  }
  const masks: Masks = [keyLengths?.handle ?? 0, packedQ?.offsets.handle ?? 0, packedK?.offsets.handle ?? 0];
  const o = empty(shape, q.dtype, q.device);
  const lse = empty([Tq, H], 'f32', q.device);
  forward(o.handle, lse.handle, q.handle, kv.handle, kv.handle, ...masks, ...sizes);
  record({
    inputs: q === kv ? [q] : [q, kv], outputs: [o],
    saved: [lse, keyLengths, packedK?.offsets].filter((t): t is Tensor => !!t),
    backward(dO) {
      const dq = needsGrad(q) ? empty(q.shape, q.dtype, q.device) : null;
      const dkv = q === kv ? dq : needsGrad(kv) ? empty(kv.shape, kv.dtype, kv.device) : null;
      back(dq?.handle ?? 0, dkv?.handle ?? 0, dkv?.handle ?? 0, dO!.handle, q.handle, kv.handle, kv.handle, o.handle,
        lse.handle, ...masks, ...sizes);
      return q === kv ? [dq] : [dq, dkv];
    },
  });
  return o;
}
