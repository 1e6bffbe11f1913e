/**
 * The shape of the caption decoder (LocCa, SigLIP 2 §2.2): half as deep as the text tower and otherwise of its shape,
 * with cross-attention to the image tokens; details and initialisers as in big_vision's models/proj/cappa. It serves
 * training and evaluation and is no part of the released model: other tools ignore the tensors `decoder.*`.
 */

import type { Init } from '../ops/init.js';
import type { ModelConfig } from './config.js';
import type { ParameterShape } from './params.js';

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
  const plain = (name: string, shape: number[], init: Init): ParameterShape => ({
    name,
    shape,
    init,
    decay: false,
  });
  const kernel = (name: string, shape: number[], init: Init): ParameterShape => ({
    name,
    shape,
    init,
    decay: true,
  });
  const optional = (name: string, size: number, init: Init = ZEROS): ParameterShape[] =>
    bias ? [plain(name, [size], init)] : [];
  const norm = (name: string): ParameterShape[] => [
    plain(`${name}.weight`, [width], { kind: 'ones' }),
    ...optional(`${name}.bias`, width),
  ];
  const projection = (name: string, from: number): ParameterShape =>
    kernel(`${name}.weight`, [width, from], { kind: 'lecunNormal', fanIn: from });
  const dense = (name: string, to: number, from: number): ParameterShape[] => [
    kernel(`${name}.weight`, [to, from], { kind: 'xavierUniform', fanIn: from, fanOut: to }),
    ...optional(`${name}.bias`, to, { kind: 'normal', std: 1e-6 }),
  ];
  const attention = (name: string, from: number): ParameterShape[] => [
    projection(`${name}.q_proj`, width),
    projection(`${name}.k_proj`, from),
    projection(`${name}.v_proj`, from),
    ...['q', 'k', 'v'].flatMap((p) => optional(`${name}.${p}_proj.bias`, width)),
    projection(`${name}.out_proj`, width),
    ...optional(`${name}.out_proj.bias`, width),
  ];
  return [
    plain('decoder.embeddings.token_embedding.weight', [text.vocab + 1, width], {
      kind: 'normal',
      std: 1,
    }),
    plain('decoder.embeddings.position_embedding.weight', [decoder.length, width], {
      kind: 'normal',
      std: width ** -0.5,
    }),
    ...Array.from({ length: decoder.depth }, (_, i) => `decoder.layers.${i}`).flatMap((layer) => [
      ...norm(`${layer}.layer_norm1`),
      ...attention(`${layer}.self_attn`, width),
      ...norm(`${layer}.layer_norm2`),
      ...attention(`${layer}.cross_attn`, vision.width),
      ...norm(`${layer}.layer_norm3`),
      ...dense(`${layer}.mlp.fc1`, mlp, width),
      ...dense(`${layer}.mlp.fc2`, width, mlp),
    ]),
    plain('decoder.final_layer_norm.weight', [width], { kind: 'ones' }),
    plain('decoder.final_layer_norm.bias', [width], ZEROS),
    kernel('decoder.head.weight', [text.vocab, width], ZEROS),
    plain('decoder.head.bias', [text.vocab], ZEROS),
  ];
}
