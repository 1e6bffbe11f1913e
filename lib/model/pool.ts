/** Multi-head attention pooling (MAP): one learned query attends over the tokens (SigLIP 2 §2.1). */
import { crossAttention } from '../ops/attention.js';
import { add, cast } from '../ops/elementwise.js';
import { layerNorm } from '../ops/layer_norm.js';
import { linear } from '../ops/linear.js';
import { reshape } from '../tape.js';
import type { Tensor } from '../tensor.js';
import { type Lengths, mlp } from './block.js';
import type { Tower } from './config.js';
import type { ParamStore } from './params.js';

/**
 * out = a + MLP(LN(a)), a = attention of the probe over `x`; no residual around the attention.
 * @param name prefix of the parameters, `vision_model.head`
 * @param x (B, T, D), or (T, D) with `lengths.packed`: tokens after the final LayerNorm
 * @returns (B, D)
 */
export function mapPool(
  p: ParamStore,
  name: string,
  x: Tensor,
  { heads, gelu }: Pick<Tower, 'heads' | 'gelu'>,
  eps: number,
  lengths: Lengths = {},
): Tensor {
  const D = x.shape.at(-1)!;
  const weight = (from: number, to: number) =>
    p.rows(`${name}.attention.in_proj_weight`, from * D, to * D);
  const bias = (from: number, to: number) =>
    p.rows(`${name}.attention.in_proj_bias`, from * D, to * D);
  const probe = cast(p.get(`${name}.probe`), x.dtype as 'f32' | 'bf16');
  const q = linear(probe, weight(0, 1), bias(0, 1)); // (1, 1, D), shared by the batch
  const kv = linear(x, weight(1, 3), bias(1, 3)); // (B, T, 2D) or (T, 2D)
  const mixed = crossAttention(
    q,
    kv,
    heads, // (B, 1, D)
    { packedKeys: lengths.packed ?? null, keyLengths: lengths.keyLengths ?? null },
  );
  const a = linear(
    mixed,
    p.get(`${name}.attention.out_proj.weight`),
    p.get(`${name}.attention.out_proj.bias`),
  );
  const y = layerNorm(a, p.get(`${name}.layernorm.weight`), p.get(`${name}.layernorm.bias`), eps);
  return reshape(add(a, mlp(p, name, y, gelu)), [mixed.shape[0]!, D]);
}
