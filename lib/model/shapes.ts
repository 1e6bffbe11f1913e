/**
 * The parameters of SigLIP 2: complete list and counts.
 *
 * `parameterShapes` is the single source of truth for the model code, initialisation, weight decay
 * and checkpoints: a tensor that is not in its list does not exist. Names are those of the Hugging
 * Face state dict, so a checkpoint needs no renaming. Layer shapes and initialisers as in big_vision's
 * models/vit.py and models/proj/image_text/text_transformer.py; tensor names as in transformers'
 * modeling_siglip.py.
 */
import type { Init } from '../ops/init.js';
import { type ModelConfig, patchCount, type Tower } from './config.js';
import { decoderShapes } from './decoder_shapes.js';
import type { ParameterShape } from './params.js';

const ZEROS: Init = { kind: 'zeros' };
const ONES: Init = { kind: 'ones' };

/**
 * Every parameter of the model, in storage order: text tower, vision tower, logit scale, logit
 * bias, and the decoder's if there is one.
 *
 * Within each `self_attn` the three q, k, v kernels are neighbours and so are their three biases:
 * in one arena they form a (3D, D) kernel and a (3D) bias, and the projections run as one matrix
 * product.
 */
export function parameterShapes(config: ModelConfig): ParameterShape[] {
  const { vision, text, embed } = config;
  const patchValues = 3 * vision.patch ** 2;
  const patchShape = config.naflex
    ? [vision.width, patchValues]
    : [vision.width, 3, vision.patch, vision.patch];
  return [
    table('text_model.embeddings.token_embedding.weight', text.vocab, text.width),
    table('text_model.embeddings.position_embedding.weight', text.length, text.width),
    ...blocks('text_model.encoder.layers', text),
    ...layerNorm('text_model.final_layer_norm', text.width),
    // The public format has no name for a pooling head in the text tower; `pool` is ours.
    ...(text.pool === 'map' ? mapHead('text_model.pool', text) : []),
    kernel('text_model.head.weight', [embed, text.width], {
      kind: 'lecunNormal',
      fanIn: text.width,
    }),
    plain('text_model.head.bias', [embed], ZEROS),

    kernel('vision_model.embeddings.patch_embedding.weight', patchShape, {
      kind: 'lecunNormal',
      fanIn: patchValues,
    }),
    plain('vision_model.embeddings.patch_embedding.bias', [vision.width], ZEROS),
    table('vision_model.embeddings.position_embedding.weight', patchCount(config), vision.width),
    ...blocks('vision_model.encoder.layers', vision),
    ...layerNorm('vision_model.post_layernorm', vision.width),
    ...mapHead('vision_model.head', vision),

    plain('logit_scale', [1], { kind: 'constant', value: config.initLogitScale }),
    plain('logit_bias', [1], { kind: 'constant', value: config.initLogitBias }),
    ...decoderShapes(config),
  ];
}

function kernel(name: string, shape: number[], init: Init): ParameterShape {
  return { name, shape, init, decay: true };
}

function plain(name: string, shape: number[], init: Init): ParameterShape {
  return { name, shape, init, decay: false };
}

function table(name: string, rows: number, width: number): ParameterShape {
  return plain(name, [rows, width], { kind: 'normal', std: width ** -0.5 });
}

function layerNorm(name: string, width: number): ParameterShape[] {
  return [plain(`${name}.weight`, [width], ONES), plain(`${name}.bias`, [width], ZEROS)];
}

function xavier(name: string, rows: number, columns: number): ParameterShape {
  return kernel(name, [rows, columns], { kind: 'xavierUniform', fanIn: columns, fanOut: rows });
}

function mlp(name: string, { width, mlp: hidden }: Tower): ParameterShape[] {
  const noise: Init = { kind: 'normal', std: 1e-6 };
  return [
    xavier(`${name}.fc1.weight`, hidden, width),
    plain(`${name}.fc1.bias`, [hidden], noise),
    xavier(`${name}.fc2.weight`, width, hidden),
    plain(`${name}.fc2.bias`, [width], noise),
  ];
}

function blocks(name: string, shape: Tower): ParameterShape[] {
  const { width, depth } = shape;
  return Array.from({ length: depth }, (_, i) => `${name}.${i}`).flatMap((layer) => [
    ...layerNorm(`${layer}.layer_norm1`, width),
    ...['q', 'k', 'v'].map((p) => xavier(`${layer}.self_attn.${p}_proj.weight`, width, width)),
    ...['q', 'k', 'v'].map((p) => plain(`${layer}.self_attn.${p}_proj.bias`, [width], ZEROS)),
    xavier(`${layer}.self_attn.out_proj.weight`, width, width),
    plain(`${layer}.self_attn.out_proj.bias`, [width], ZEROS),
    ...layerNorm(`${layer}.layer_norm2`, width),
    ...mlp(`${layer}.mlp`, shape),
  ]);
}

/**
 * Multi-head attention pooling: one learned query (the probe), then LayerNorm and an MLP with
 * residual.
 */
function mapHead(name: string, shape: Tower): ParameterShape[] {
  const { width } = shape;
  return [
    plain(`${name}.probe`, [1, 1, width], { kind: 'xavierUniform', fanIn: 1, fanOut: width }),
    // Three stacked D x D kernels, so the fans are those of one of them.
    kernel(`${name}.attention.in_proj_weight`, [3 * width, width], {
      kind: 'xavierUniform',
      fanIn: width,
      fanOut: width,
    }),
    plain(`${name}.attention.in_proj_bias`, [3 * width], ZEROS),
    xavier(`${name}.attention.out_proj.weight`, width, width),
    plain(`${name}.attention.out_proj.bias`, [width], ZEROS),
    ...layerNorm(`${name}.layernorm`, width),
    ...mlp(`${name}.mlp`, shape),
  ];
}

/** Parameter counts by part. */
export interface ParameterCounts {
  /** The vision tower with its pooling head. */
  vision: number;
  visionWithoutMap: number;
  text: number;
  /** Both towers, the logit scale and the logit bias: what a release contains. */
  total: number;
  /** The caption decoder. */
  decoder: number;
  /** Number of tensors, the decoder's included. */
  tensors: number;
}

/** Number of values by part; equals SigLIP 2's released checkpoints for the released shapes. */
export function parameterCounts(config: ModelConfig): ParameterCounts {
  const shapes = parameterShapes(config);
  const sum = (prefix: string): number =>
    shapes
      .filter(({ name }) => name.startsWith(prefix))
      .reduce((total, { shape }) => total + shape.reduce((a, b) => a * b, 1), 0);
  const vision = sum('vision_model.');
  return {
    vision,
    visionWithoutMap: vision - sum('vision_model.head.'),
    text: sum('text_model.'),
    total: sum('') - sum('decoder.'),
    decoder: sum('decoder.'),
    tensors: shapes.length,
  };
}
