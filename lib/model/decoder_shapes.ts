/**
 * The shape of the caption decoder (LocCa, SigLIP 2 §2.2): half as deep as the text tower and otherwise of its shape,
 * with cross-attention to the image tokens; details and initialisers as in big_vision's models/proj/cappa. It serves
 * training and evaluation and is no part of the released model: other tools ignore the tensors `decoder.*`.
 */
import { z } from 'zod';
import { ConfigError } from '../errors.js';
import type { ModelConfig, TextConfig } from './config.js';
import type { Init, ParameterShape } from './parameters.js';

export interface DecoderConfig {
  depth: number;
  width: number;
  heads: number;
  mlp: number;
  /** Tokens per sequence, the end mark included; shorter ones are padded to it. */
  length: number;
  /** Biases in projections, MLPs and inner LayerNorms; the last LayerNorm and the logits always have one. */
  bias: boolean;
}

const count = z.int().min(1).max(2 ** 31 - 1);
export const decoderSchema = z.strictObject({
  depth: count, width: count, heads: count, mlp: count, length: count, bias: z.boolean(),
}).nullable().optional();

/** The decoder that belongs to a text tower, with changes. */
export function decoderConfig(text: TextConfig, changes: Partial<DecoderConfig> = {}): DecoderConfig {
  const { width, heads, mlp, length } = text;
  const base = { depth: Math.max(1, Math.floor(text.depth / 2)), width, heads, mlp, length, bias: false };
  const given = Object.entries(changes).filter(([, value]) => value !== undefined);
  return { ...base, ...Object.fromEntries(given) };
}

/** The rules between the fields. Throws ConfigError. */
export function checkDecoder({ width, heads }: DecoderConfig): void {
  if (width % heads !== 0)
    throw new ConfigError(`model: decoder.width ${width} must be a multiple of decoder.heads ${heads}`);
}

const ZEROS: Init = { kind: 'zeros' };

/**
 * Parameters of the decoder, none without one. The token table has one row more than the vocabulary, the mask token of
 * parallel prediction. q, k, v of self-attention are neighbours, and so are k and v of cross-attention, so that each
 * group is one matrix product.
 */
export function decoderShapes(config: ModelConfig): ParameterShape[] {
  const { decoder, text, vision } = config;
  if (!decoder) return [];
  const { width, mlp, bias } = decoder;
  const plain = (name: string, shape: number[], init: Init): ParameterShape => ({ name, shape, init, decay: false });
  const kernel = (name: string, shape: number[], init: Init): ParameterShape => ({ name, shape, init, decay: true });
  const optional = (name: string, size: number, init: Init = ZEROS): ParameterShape[] =>
    bias ? [plain(name, [size], init)] : [];
  const norm = (name: string): ParameterShape[] =>
    [plain(`${name}.weight`, [width], { kind: 'ones' }), ...optional(`${name}.bias`, width)];
  const projection = (name: string, from: number): ParameterShape =>
    kernel(`${name}.weight`, [width, from], { kind: 'lecunNormal', fanIn: from });
  const dense = (name: string, to: number, from: number): ParameterShape[] => [
    kernel(`${name}.weight`, [to, from], { kind: 'xavierUniform', fanIn: from, fanOut: to }),
    ...optional(`${name}.bias`, to, { kind: 'normal', std: 1e-6 }),
  ];
  const attention = (name: string, from: number): ParameterShape[] => [
    projection(`${name}.q_proj`, width), projection(`${name}.k_proj`, from), projection(`${name}.v_proj`, from),
    ...['q', 'k', 'v'].flatMap((p) => optional(`${name}.${p}_proj.bias`, width)),
    projection(`${name}.out_proj`, width), ...optional(`${name}.out_proj.bias`, width),
  ];
  return [
    plain('decoder.embeddings.token_embedding.weight', [text.vocab + 1, width], { kind: 'normal', std: 1 }),
    plain('decoder.embeddings.position_embedding.weight', [decoder.length, width], { kind: 'normal', std: width ** -0.5 }),
    ...Array.from({ length: decoder.depth }, (_, i) => `decoder.layers.${i}`).flatMap((layer) => [
      ...norm(`${layer}.layer_norm1`), ...attention(`${layer}.self_attn`, width),
      ...norm(`${layer}.layer_norm2`), ...attention(`${layer}.cross_attn`, vision.width),
      ...norm(`${layer}.layer_norm3`), ...dense(`${layer}.mlp.fc1`, mlp, width), ...dense(`${layer}.mlp.fc2`, width, mlp),
    ]),
    plain('decoder.final_layer_norm.weight', [width], { kind: 'ones' }),
    plain('decoder.final_layer_norm.bias', [width], ZEROS),
    kernel('decoder.head.weight', [text.vocab, width], ZEROS),
    plain('decoder.head.bias', [text.vocab], ZEROS),
  ];
}
