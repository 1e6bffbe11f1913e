/**
 * Pre-LN transformer blocks (SigLIP 2 §2.1; no dropout, no layer scale). The residual stream is kept as a pair (h, d)
 * whose sum it is: the addition happens inside the next LayerNorm, so each residual costs no pass of its own.
 */
import { attention, crossAttention, type Packed } from '../ops/attention.js';
import { addLayerNorm, layerNorm } from '../ops/layer_norm.js';
import { type Gelu, linear } from '../ops/linear.js';
import { mlp as mlpOp } from '../ops/mlp.js';
import { selectToken } from '../ops/select_token.js';
import { checkpoint, isRecording, needsGrad, noGrad } from '../tape.js';
import { scope, type Tensor } from '../tensor.js';
import type { ParamStore } from './params.js';

/** Where sequences of different lengths end. At most one of the two. */
export interface Lengths {
  /** The tokens are (T, D), sequences one after the other without padding. */
  packed?: Packed | null;
  /** (B) i32: of (B, N, D) tokens only the first so many of each sample count, the rest is padding. */
  keyLengths?: Tensor | null;
}

export interface EncoderOptions extends Lengths {
  heads: number;
  depth: number;
  eps: number;
  gelu?: Gelu | undefined;
  /** Keeps only the blocks' inputs for backward and computes them again. */
  checkpoint: boolean;
}

type Stream = [h: Tensor, d: Tensor];

/** LayerNorm of the stream with the parameters `${name}.weight` and `.bias`; `sum` is the stream as one tensor. */
function norm(
  p: ParamStore,
  name: string,
  h: Tensor,
  d: Tensor | null,
  eps: number,
): { sum: Tensor; y: Tensor } {
  const weight = p.get(`${name}.weight`),
    bias = p.get(`${name}.bias`);
  return d ? addLayerNorm(h, d, weight, bias, eps) : { sum: h, y: layerNorm(h, weight, bias, eps) };
}

/** fc2(gelu(fc1(x))) with the parameters under `${name}.mlp`. x (…, D) → (…, D). */
export function mlp(p: ParamStore, name: string, x: Tensor, gelu: Gelu = 'tanh'): Tensor {
  const layer = (fc: string) => ({
    weight: p.get(`${name}.mlp.${fc}.weight`),
    bias: p.get(`${name}.mlp.${fc}.bias`),
  });
  return mlpOp(x, layer('fc1'), layer('fc2'), gelu);
}

/** Frees at once what `fn` makes and does not return, unless backward will read it. */
function passing<T>(fn: () => T): T {
  return isRecording() ? fn() : scope(fn);
}

/** The second half of a block, behind the attention's result `a`. */
function mlpHalf(p: ParamStore, name: string, o: EncoderOptions, h: Tensor, a: Tensor): Stream {
  return passing(() => {
    const second = norm(p, `${name}.layer_norm2`, h, a, o.eps);
    return [second.sum, mlp(p, name, second.y, o.gelu)];
  });
}

function block(
  p: ParamStore,
  name: string,
  o: EncoderOptions,
  h: Tensor,
  d: Tensor | null,
): Stream {
  const [sum, a] = passing(() => {
    const first = norm(p, `${name}.layer_norm1`, h, d, o.eps);
    const proj = (kind: 'weight' | 'bias') =>
      p.fused(['q', 'k', 'v'].map((x) => `${name}.self_attn.${x}_proj.${kind}`));
    const qkv = linear(first.y, proj('weight'), proj('bias'));
    const mixed = attention(qkv, o.heads, {
      packed: o.packed ?? null,
      keyLengths: o.keyLengths ?? null,
    });
    const out = `${name}.self_attn.out_proj`;
    return [first.sum, linear(mixed, p.get(`${out}.weight`), p.get(`${out}.bias`))];
  }) as Stream;
  return mlpHalf(p, name, o, sum, a);
}

/** The block for the last token alone: keys and values come from all tokens, everything after them is one row. */
function lastTokenBlock(
  p: ParamStore,
  name: string,
  o: EncoderOptions,
  h: Tensor,
  d: Tensor | null,
): Stream {
  const first = norm(p, `${name}.layer_norm1`, h, d, o.eps);
  const proj = (xs: string[], kind: 'weight' | 'bias') =>
    p.fused(xs.map((x) => `${name}.self_attn.${x}_proj.${kind}`));
  const kv = linear(first.y, proj(['k', 'v'], 'weight'), proj(['k', 'v'], 'bias'));
  const q = linear(selectToken(first.y, -1), proj(['q'], 'weight'), proj(['q'], 'bias'));
  const mixed = crossAttention(q, kv, o.heads, { keyLengths: o.keyLengths ?? null });
  const a = linear(
    mixed,
    p.get(`${name}.self_attn.out_proj.weight`),
    p.get(`${name}.self_attn.out_proj.bias`),
  );
  return mlpHalf(p, name, o, selectToken(first.sum, -1), a);
}

/**
 * All blocks and the final LayerNorm.
 * @param layers prefix of the blocks' parameters, e.g. `vision_model.encoder.layers`
 * @param finalNorm prefix of the last LayerNorm
 * @param x (B, T, D), or (T, D) with `o.packed`
 * @param only `last`: just the last token is wanted, so the last block computes no other
 * @returns as x, or (B, 1, D) with `only: 'last'`
 */
export function encoder(
  p: ParamStore,
  layers: string,
  finalNorm: string,
  o: EncoderOptions,
  x: Tensor,
  only: 'all' | 'last' = 'all',
): Tensor {
  let h: Tensor = x,
    d: Tensor | null = null;
  // Inputs of every checkpoint, so that they live until backward needs them again.
  const lengths = [o.packed?.offsets, o.keyLengths].filter((t) => t != null);
  for (let i = 0; i < o.depth; i++) {
    const run = only === 'last' && i === o.depth - 1 ? lastTokenBlock : block;
    const name = `${layers}.${i}`;
    const [before, added]: [Tensor, Tensor | null] = [h, d];
    // A frozen block on what nobody trains is as in inference.
    const recorded: boolean =
      isRecording() && (needsGrad(before) || needsGrad(added) || p.trains(`${name}.`));
    [h, d] = !recorded
      ? noGrad(() => scope(() => run(p, name, o, before, added)))
      : !o.checkpoint
        ? run(p, name, o, before, added)
        : (checkpoint(
            (...t) => run(p, name, o, t[lengths.length]!, t[lengths.length + 1] ?? null),
            ...lengths,
            ...(added ? [before, added] : [before]),
          ) as Stream);
    if (recorded) continue;
    if (before !== x) before.dispose();
    added?.dispose();
  }
  return norm(p, finalNorm, h, d, o.eps).y;
}
