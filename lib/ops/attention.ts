import { check, checkDType, checkRank, checkShape } from '../check.js';
import { op, type Handle } from '../native.js';
import { needsGrad, record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';

type Sizes = [B: number, H: number, Nq: number, Nk: number, D: number, qOffset: number, qRow: number, kOffset: number,
  kRow: number, vOffset: number, vRow: number, qShared: boolean, causal: boolean, scale: number];
const forward = op<[o: Handle, lse: Handle, q: Handle, k: Handle, v: Handle, keyLengths: Handle, ...Sizes]>('attention_forward');
const back = op<[dq: Handle, dk: Handle, dv: Handle, dO: Handle, q: Handle, k: Handle, v: Handle, o: Handle, lse: Handle,
  keyLengths: Handle, ...Sizes]>('attention_backward');
const addTo = op<[y: Handle, a: Handle, b: Handle, N: number]>('add_forward');

/** Which keys a query sees. */
export interface AttentionOptions {
  /** (B) i32: only the first so many keys of each sample; a sample with 0 gets zeros. */
  keyLengths?: Tensor | null;
  /** Only keys at or before the query's own position; a number: in the first so many samples, not in the others. */
  causal?: boolean | number;
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
  const { causal = false } = options, first = typeof causal === 'number' ? causal : causal ? B : 0;
  check(Number.isInteger(first) && first >= 0 && first <= B, 'attention',
    `causal must be a number of the ${B} samples but is ${first}`);
  const sizes = (n: number, masked: boolean): Sizes =>
    [n, heads, N, N, D, 0, width, C, width, 2 * C, width, false, masked, 1 / Math.sqrt(D)];
  const parts: Part[] = [
    { q0: 0, k0: 0, samples: first, sizes: sizes(first, true) },
    { q0: first, k0: first, samples: B - first, sizes: sizes(B - first, false) },
  ].filter((p) => p.samples > 0);
  return run('attention', qkv, qkv, options.keyLengths ?? null, C, sizes(B, false), parts);
}

/**
 * Multi-head attention of queries over another sequence: MAP pooling (one learned query shared by the batch), and the
 * caption decoder's cross-attention.
 * @param q (B, Nq, C); or (1, Nq, C) for queries shared by the batch: their gradient is summed over the samples; or
 *   (S·B, Nq, C): S sets of queries, sample i of each over sample i of kv
 * @param kv (B, Nk, 2·C) of q's type: k and v of all heads, one after the other
 * @param heads H; each has D = C / H columns
 * @returns (B, Nq, C) or (S·B, Nq, C) of q's type
 * @throws ShapeError
 */
export function crossAttention(q: Tensor, kv: Tensor, heads: number, options: Omit<AttentionOptions, 'causal'> = {}): Tensor {
  checkRank('crossAttention', 'q', q, 3);
  checkRank('crossAttention', 'kv', kv, 3);
  const [samples, Nq, C] = q.shape as [number, number, number];
  const [B, Nk] = kv.shape as [number, number, number];
  checkShape('crossAttention', 'kv', kv, [B, Nk, 2 * C]);
  const shared = samples === 1 && B > 1;
  check(shared || (samples > 0 && samples % B === 0), 'crossAttention',
    `q must be [1 or a multiple of ${B}, Nq, ${C}] but is [${q.shape.join(', ')}]`);
  check(q.dtype === kv.dtype, 'crossAttention', `q is ${q.dtype} but kv is ${kv.dtype}`);
  const D = headColumns('crossAttention', C, heads);
  const sizes: Sizes = [B, heads, Nq, Nk, D, 0, C, 0, 2 * C, C, 2 * C, shared, false, 1 / Math.sqrt(D)];
  const parts = Array.from({ length: shared ? 1 : samples / B }, (_, s): Part => ({ q0: s * B, k0: 0, samples: B, sizes }));
  return run('crossAttention', q, kv, options.keyLengths ?? null, C, sizes, parts);
}

function headColumns(name: string, C: number, heads: number): number {
  check(Number.isInteger(heads) && heads > 0 && C % heads === 0, name, `${C} columns cannot be split into ${heads} heads`);
  return C / heads;
}

/** One kernel call: samples q0 … of q and o, k0 … of kv. */
interface Part {
  q0: number;
  k0: number;
  samples: number;
  sizes: Sizes;
}

/** The n samples of x from `first` on; x itself when that is all of them. */
function samplesOf(x: Tensor, first: number, n: number): Tensor {
  const whole = x.shape[0]!;
  return n === whole ? x : x.view(first * (x.size / whole), [n, ...x.shape.slice(1)]);
}

/** Calls f with the part's share of each tensor (null stays null); views live as long as the call is being made. */
function withParts(part: Part, of: (Tensor | null)[], first: (i: number) => number, f: (...handles: Handle[]) => void): void {
  const views = of.map((x, i) => x && samplesOf(x, first(i), Math.min(part.samples, x.shape[0]!)));
  f(...views.map((v) => v?.handle ?? 0));
  views.forEach((v, i) => { if (v && v !== of[i]) v.dispose(); });
}

function run(name: string, q: Tensor, kv: Tensor, keyLengths: Tensor | null, C: number, [, H, Nq]: Sizes,
  parts: Part[]): Tensor {
  const B = q === kv ? q.shape[0]! : Math.max(q.shape[0]!, kv.shape[0]!);
  checkDType(name, q === kv ? 'qkv' : 'q', q, 'f32', 'bf16');
  if (keyLengths) {
    checkShape(name, 'keyLengths', keyLengths, [kv.shape[0]!]);
    checkDType(name, 'keyLengths', keyLengths, 'i32');
  }
  const o = empty([B, Nq, C], q.dtype, q.device);
  const lse = empty([B, H, Nq], 'f32', q.device);
  for (const p of parts) {
    const first = [p.q0, p.q0, p.q0, p.k0, p.k0];
    withParts(p, [o, lse, q, kv, keyLengths], (i) => first[i]!, (ov, lv, qv, kvv, lengths) =>
      forward(ov!, lv!, qv!, kvv!, kvv!, lengths!, ...p.sizes));
  }
  record({
    inputs: q === kv ? [q] : [q, kv], outputs: [o], saved: keyLengths ? [lse, keyLengths] : [lse],
    backward(dO) {
      const dq = needsGrad(q) ? empty(q.shape, q.dtype, q.device) : null;
      const dkv = q === kv ? dq : needsGrad(kv) ? empty(kv.shape, kv.dtype, kv.device) : null;
      parts.forEach((p, i) => {
        // Several sets of queries: the kernel sets dkv, so the later ones are added.
        const again = dkv && q !== kv && i > 0 ? empty(kv.shape, kv.dtype, kv.device) : null;
        const first = [p.q0, p.k0, p.q0, p.q0, p.k0, p.q0, p.q0, p.k0];
        withParts(p, [dq, again ?? dkv, dO!, q, kv, o, lse, keyLengths], (k) => first[k]!,
          (dqv, dkvv, dov, qv, kvv, ov, lv, lengths) =>
            back(dqv!, dkvv!, dkvv!, dov!, qv!, kvv!, kvv!, ov!, lv!, lengths!, ...p.sizes));
        if (again) addTo(dkv!.handle, dkv!.handle, again.handle, dkv!.size);
        again?.dispose();
      });
      return q === kv ? [dq] : [dq, dkv];
    },
  });
  return o;
}
