import { check, checkDType, checkRank, checkShape } from '../check.js';
import { op, type Handle } from '../native.js';
import { needsGrad, record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';

type Sizes = [B: number, H: number, Nq: number, Nk: number, D: number, qOffset: number, qRow: number, kOffset: number,
  kRow: number, vOffset: number, vRow: number, qShared: boolean, causal: boolean, scale: number];
const forward = op<[o: Handle, lse: Handle, q: Handle, k: Handle, v: Handle, keyLengths: Handle, ...Sizes]>('attention_forward');
const back = op<[dq: Handle, dk: Handle, dv: Handle, dO: Handle, q: Handle, k: Handle, v: Handle, o: Handle, lse: Handle,
  keyLengths: Handle, ...Sizes]>('attention_backward');

/** Which keys a query sees. */
export interface AttentionOptions {
  /** (B) i32: only the first so many keys of each sample; a sample with 0 gets zeros. */
  keyLengths?: Tensor | null;
  /** Only keys at or before the query's own position. */
  causal?: boolean;
}

/**
 * Multi-head self-attention `softmax(q·kᵀ / √D)·v` over the output of one fused projection.
 * @param qkv (B, N, 3·C), f32 or bf16: q, k and v of all heads, one after the other
 * @param heads H; each has D = C / H columns
 * @returns (B, N, C) of qkv's type, heads side by side
 * @throws ShapeError
 */
export function attention(qkv: Tensor, heads: number, options: AttentionOptions = {}): Tensor {
  checkRank('attention', 'qkv', qkv, 3);
  const [B, N, width] = qkv.shape as [number, number, number];
  const C = width / 3;
  check(Number.isInteger(C), 'attention', `qkv must have 3·C columns but is [${qkv.shape.join(', ')}]`);
  const D = headColumns('attention', C, heads);
  const sizes: Sizes = [B, heads, N, N, D, 0, width, C, width, 2 * C, width, false, options.causal ?? false, 1 / Math.sqrt(D)];
  return run('attention', qkv, qkv, options.keyLengths ?? null, C, sizes);
}

/**
 * Multi-head attention of queries over another sequence: MAP pooling (one learned query shared by the batch), and the
 * caption decoder's cross-attention.
 * @param q (B, Nq, C), or (1, Nq, C) for queries shared by the batch: their gradient is summed over the samples
 * @param kv (B, Nk, 2·C) of q's type: k and v of all heads, one after the other
 * @param heads H; each has D = C / H columns
 * @returns (B, Nq, C) of q's type
 * @throws ShapeError
 */
export function crossAttention(q: Tensor, kv: Tensor, heads: number, options: Omit<AttentionOptions, 'causal'> = {}): Tensor {
  checkRank('crossAttention', 'q', q, 3);
  checkRank('crossAttention', 'kv', kv, 3);
  const [samples, Nq, C] = q.shape as [number, number, number];
  const [B, Nk] = kv.shape as [number, number, number];
  checkShape('crossAttention', 'kv', kv, [B, Nk, 2 * C]);
  check(samples === B || samples === 1, 'crossAttention', `q must be [${B} or 1, Nq, ${C}] but is [${q.shape.join(', ')}]`);
  check(q.dtype === kv.dtype, 'crossAttention', `q is ${q.dtype} but kv is ${kv.dtype}`);
  const D = headColumns('crossAttention', C, heads);
  const sizes: Sizes = [B, heads, Nq, Nk, D, 0, C, 0, 2 * C, C, 2 * C, samples !== B, false, 1 / Math.sqrt(D)];
  return run('crossAttention', q, kv, options.keyLengths ?? null, C, sizes);
}

function headColumns(name: string, C: number, heads: number): number {
  check(Number.isInteger(heads) && heads > 0 && C % heads === 0, name, `${C} columns cannot be split into ${heads} heads`);
  return C / heads;
}

function run(name: string, q: Tensor, kv: Tensor, keyLengths: Tensor | null, C: number, sizes: Sizes): Tensor {
  const [B, H, Nq] = sizes;
  checkDType(name, q === kv ? 'qkv' : 'q', q, 'f32', 'bf16');
  if (keyLengths) {
    checkShape(name, 'keyLengths', keyLengths, [B]);
    checkDType(name, 'keyLengths', keyLengths, 'i32');
  }
  const lengths = keyLengths?.handle ?? 0;
  const o = empty([B, Nq, C], q.dtype, q.device);
  const lse = empty([B, H, Nq], 'f32', q.device);
  forward(o.handle, lse.handle, q.handle, kv.handle, kv.handle, lengths, ...sizes);
  record({
    inputs: q === kv ? [q] : [q, kv], outputs: [o], saved: keyLengths ? [lse, keyLengths] : [lse],
    backward(dO) {
      const dq = needsGrad(q) ? empty(q.shape, q.dtype, q.device) : null;
      const dkv = q === kv ? dq : needsGrad(kv) ? empty(kv.shape, kv.dtype, kv.device) : null;
      back(dq?.handle ?? 0, dkv?.handle ?? 0, dkv?.handle ?? 0, dO!.handle, q.handle, kv.handle, kv.handle, o.handle,
        lse.handle, lengths, ...sizes);
      return q === kv ? [dq] : [dq, dkv];
    },
  });
  return o;
}
