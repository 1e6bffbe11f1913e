/**
 * The caption decoder (LocCa, SigLIP 2 §2.2): pre-LN blocks of self-attention, cross-attention to the un-pooled image
 * tokens, and MLP. As in CapPa, sequences are shifted right behind token 0, a causal mask is the only mask over them
 * (padding is not masked), and a sequence in parallel prediction is all mask tokens and without the causal mask.
 */
import { checkRank, checkShape } from '../check.js';
import { attention, crossAttention, type Packed } from '../ops/attention.js';
import { embedding } from '../ops/embedding.js';
import { addLayerNorm, layerNorm } from '../ops/layer_norm.js';
import { linear } from '../ops/linear.js';
import { mlp } from '../ops/mlp.js';
import { checkpoint, type Param, reshape } from '../tape.js';
import type { Tensor } from '../tensor.js';
import type { ModelConfig } from './config.js';
import type { DecoderConfig } from './decoder_config.js';
import type { ParamStore } from './params.js';

export interface DecoderOptions {
  /** Type of the activations; that of the image tokens. */
  dtype: 'f32' | 'bf16';
  /** Gradient checkpointing per block. */
  checkpoint: boolean;
  /** The first so many sequences are causal, the others in parallel prediction; all are causal by default. */
  causal?: number;
  /** (B) i32: tokens of each image that are real; all by default. */
  imageLengths?: Tensor | null;
  /** The image tokens are (T, Dv), one image after the other without padding. Excludes `imageLengths`. */
  packed?: Packed | null;
}

/** The parameters of one decoder block by role; absent biases are null. */
export class DecoderLayer {
  constructor(
    readonly params: ParamStore,
    readonly name: string,
    readonly config: DecoderConfig,
    readonly eps: number,
  ) {}

  #bias(names: string[]): Param | null {
    return this.config.bias ? this.params.fused(names.map((n) => `${this.name}.${n}.bias`)) : null;
  }
  #layer(names: string[]): { weight: Param; bias: Param | null } {
    return {
      weight: this.params.fused(names.map((n) => `${this.name}.${n}.weight`)),
      bias: this.#bias(names),
    };
  }
  #linear(x: Tensor, names: string[]): Tensor {
    const { weight, bias } = this.#layer(names);
    return linear(x, weight, bias);
  }
  /** LayerNorm `i` (1 to 3) of h + d. */
  norm(i: number, h: Tensor, d: Tensor | null): { sum: Tensor; y: Tensor } {
    const weight = this.params.get(`${this.name}.layer_norm${i}.weight`),
      bias = this.#bias([`layer_norm${i}`]);
    return d
      ? addLayerNorm(h, d, weight, bias, this.eps)
      : { sum: h, y: layerNorm(h, weight, bias, this.eps) };
  }
  /** (…, W) → (…, 3W) */
  selfQkv(x: Tensor): Tensor {
    return this.#linear(x, ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj']);
  }
  selfQ(x: Tensor): Tensor {
    return this.#linear(x, ['self_attn.q_proj']);
  }
  selfKv(x: Tensor): Tensor {
    return this.#linear(x, ['self_attn.k_proj', 'self_attn.v_proj']);
  }
  selfOut(x: Tensor): Tensor {
    return this.#linear(x, ['self_attn.out_proj']);
  }
  crossQ(x: Tensor): Tensor {
    return this.#linear(x, ['cross_attn.q_proj']);
  }
  /** Image tokens (B, N, Dv) or (T, Dv) → keys and values of 2W columns */
  crossKv(image: Tensor): Tensor {
    return this.#linear(image, ['cross_attn.k_proj', 'cross_attn.v_proj']);
  }
  crossOut(x: Tensor): Tensor {
    return this.#linear(x, ['cross_attn.out_proj']);
  }
  mlp(x: Tensor): Tensor {
    return mlp(x, this.#layer(['mlp.fc1']), this.#layer(['mlp.fc2']));
  }
}

/** The blocks of a model with a decoder. */
export function decoderLayers(p: ParamStore, config: ModelConfig): DecoderLayer[] {
  const decoder = config.decoder!;
  return Array.from(
    { length: decoder.depth },
    (_, i) => new DecoderLayer(p, `decoder.layers.${i}`, decoder, config.layerNormEps),
  );
}

/** Token embeddings with positions `from` … of sequences. ids (R, L) i32 → (R, L, W) */
export function decoderEmbed(
  p: ParamStore,
  config: ModelConfig,
  ids: Tensor,
  dtype: 'f32' | 'bf16',
  from = 0,
): Tensor {
  const [R, L] = ids.shape as [number, number],
    name = 'decoder.embeddings';
  const positions = p.rows(`${name}.position_embedding.weight`, from, from + L);
  const rows = embedding(ids, p.get(`${name}.token_embedding.weight`), positions, dtype);
  return reshape(rows, [R, L, config.decoder!.width]);
}

/** The last LayerNorm, which always has a bias. */
export function decoderNorm(p: ParamStore, h: Tensor, d: Tensor, eps: number): Tensor {
  const name = 'decoder.final_layer_norm';
  return addLayerNorm(h, d, p.get(`${name}.weight`), p.get(`${name}.bias`), eps).y;
}

/**
 * The decoder's states, from which the vocabulary projection `decoder.head` predicts the next token.
 * @param ids (S·B, L) i32: S sets of sequences, sequence i of each about image i; see `captionBatch`
 * @param image (B, N, Dv), or with `packed` (T, Dv): image tokens after the vision tower's last LayerNorm
 * @returns (S·B·L, W)
 * @throws ShapeError
 */
export function decoderStates(
  p: ParamStore,
  config: ModelConfig,
  ids: Tensor,
  image: Tensor,
  o: DecoderOptions,
): Tensor {
  const { heads, width, length } = config.decoder!;
  const [R, L] = ids.shape as [number, number];
  checkShape('decoderStates', 'ids', ids, [R, Math.min(L, length)]);
  checkRank('decoderStates', 'image', image, o.packed ? 2 : 3);
  checkShape('decoderStates', 'image', image, [...image.shape.slice(0, -1), config.vision.width]);
  const causal = o.causal ?? R,
    keys = { keyLengths: o.imageLengths ?? null, packedKeys: o.packed ?? null };
  const block = (
    layer: DecoderLayer,
    tokens: Tensor,
    h: Tensor,
    d: Tensor | null,
  ): [Tensor, Tensor] => {
    const first = layer.norm(1, h, d);
    const a = layer.selfOut(attention(layer.selfQkv(first.y), heads, { causal }));
    const second = layer.norm(2, first.sum, a);
    const c = layer.crossOut(
      crossAttention(layer.crossQ(second.y), layer.crossKv(tokens), heads, keys),
    );
    const third = layer.norm(3, second.sum, c);
    return [third.sum, layer.mlp(third.y)];
  };
  let h = decoderEmbed(p, config, ids, o.dtype),
    d: Tensor | null = null;
  for (const layer of decoderLayers(p, config)) {
    [h, d] = o.checkpoint
      ? (checkpoint((t, a, b) => block(layer, t!, a!, b ?? null), image, ...(d ? [h, d] : [h])) as [
          Tensor,
          Tensor,
        ])
      : block(layer, image, h, d);
  }
  return reshape(decoderNorm(p, h, d!, config.layerNormEps), [R * L, width]);
}
