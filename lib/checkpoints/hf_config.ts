/**
 * config.json of the Hugging Face layout. Fixed-resolution models are `siglip`, NaFlex models are `siglip2`, as in the
 * released checkpoints. Published files leave out keys that equal the class defaults, so the defaults of transformers'
 * SiglipTextConfig, SiglipVisionConfig and Siglip2VisionConfig are filled in here.
 */
import { z } from 'zod';
import { CheckpointError, ConfigError } from '../errors.js';
import type { ModelConfig } from '../model/config.js';
import { checkModelConfig, modelConfig, patchCount, VARIANTS } from '../model/config.js';
import { decoderSchema } from '../model/decoder_config.js';

export const siglip2Json = z.strictObject({
  version: z.literal(1),
  /** Variant name. */
  name: z.string(),
  textPool: z.enum(['last', 'map']),
  /** How captions are lower-cased before the tokenizer. */
  lowercase: z.enum(['ascii', 'unicode', 'none']),
  initLogitScale: z.number(),
  initLogitBias: z.number(),
  /**
   * Of a trimmed token table: the full id of every row, ascending; null when the table is complete.
   */
  vocabulary: z
    .array(
      z
        .int()
        .min(0)
        .max(2 ** 24),
    )
    .nullable(),
  /** The caption decoder, whose tensors `decoder.*` are in model.safetensors; none when absent. */
  decoder: decoderSchema,
  /** How the decoder has learnt to write boxes; LocCa's way when absent. */
  boxes: z
    .strictObject({
      bins: z.int().max(999999),
      order: z.tuple([z.int(), z.int(), z.int(), z.int()]).readonly(),
    })
    .optional(),
});

/** Contents of siglip2.json. */
export type Siglip2Json = z.output<typeof siglip2Json>;

/** Keys that transformers declares as floats, and refuses when they hold a whole number. */
const WHOLE_FLOATS = new RegExp(
  '("(?:initializer_factor|initializer_range|layer_norm_eps|attention_dropout|hidden_dropout|' +
    'dropout|logit_scale_init_value|rescale_factor)"\\s*:\\s*-?\\d+)(?=\\s*[,}])',
  'g',
);

/** JSON text in which such numbers are floats; everything else keeps its wording. */
export function withFloats(text: string): string {
  return text.replace(WHOLE_FLOATS, '$1.0');
}

/** The text of a JSON file for other tools. */
export function hfJson(value: unknown): string {
  return `${withFloats(JSON.stringify(value, null, 2))}\n`;
}

type TowerShape = Pick<ModelConfig['vision'], 'width' | 'depth' | 'heads' | 'mlp' | 'gelu'>;

/** config.json of a model. The pad, bos and eos ids are Gemma's, unlike the class defaults. */
export function toHfConfig(config: ModelConfig): Record<string, unknown> {
  const { vision, text, naflex } = config;
  const family = naflex ? 'siglip2' : 'siglip';
  const tower = ({ width, mlp, depth, heads, gelu }: TowerShape): Record<string, unknown> => ({
    hidden_size: width,
    intermediate_size: mlp,
    num_hidden_layers: depth,
    num_attention_heads: heads,
    hidden_act: gelu === 'exact' ? 'gelu' : 'gelu_pytorch_tanh',
    layer_norm_eps: config.layerNormEps,
  });
  return {
    architectures: [naflex ? 'Siglip2Model' : 'SiglipModel'],
    model_type: family,
    // transformers 4.56 renamed the key; older versions read the old one.
    dtype: 'float32',
    torch_dtype: 'float32',
    text_config: {
      model_type: `${family}_text_model`,
      ...tower(text),
      vocab_size: text.vocab,
      max_position_embeddings: text.length,
      projection_size: config.embed,
      pad_token_id: 0,
      eos_token_id: 1,
      bos_token_id: 2,
    },
    vision_config: {
      model_type: `${family}_vision_model`,
      ...tower(vision),
      num_channels: 3,
      patch_size: vision.patch,
      ...(naflex ? { num_patches: patchCount(config) } : { image_size: vision.imageSize }),
      vision_use_head: true,
    },
  };
}

/** Bounds what a hostile config makes us lay out before the tensors are compared with it. */
const MOST_LAYERS = 1024;

const count = z
  .int()
  .min(1)
  .max(2 ** 31 - 1);
/** A number, or the same for both axes. */
const side = z.union(
  [
    count,
    z
      .tuple([count, count])
      .refine(([a, b]) => a === b)
      .transform(([a]) => a),
  ],
  'must be a whole number, the same for both axes',
);
const tower = {
  hidden_size: count.default(768),
  intermediate_size: count.default(3072),
  num_hidden_layers: count.max(MOST_LAYERS).default(12),
  num_attention_heads: count.default(12),
  hidden_act: z.enum(['gelu_pytorch_tanh', 'gelu']).default('gelu_pytorch_tanh'),
  layer_norm_eps: z.number().positive().default(1e-6),
};
const hfConfig = z.looseObject({
  model_type: z.enum(['siglip', 'siglip2']),
  text_config: z
    .looseObject({
      ...tower,
      vocab_size: count.default(32000),
      max_position_embeddings: count.default(64),
      projection_size: count.optional(),
    })
    .prefault({}),
  vision_config: z
    .looseObject({
      ...tower,
      num_channels: z.literal(3).default(3),
      patch_size: side.default(16),
      image_size: side.default(224),
      num_patches: count.default(256),
      vision_use_head: z.literal(true).default(true),
    })
    .prefault({}),
});

/** Models that transformers splits off or puts on top of SigLIP's, by what a folder of theirs is good for. */
const PARTS: Record<string, string> = {
  siglip_vision_model: 'the vision tower alone',
  siglip2_vision_model: 'the vision tower alone',
  siglip_text_model: 'the text tower alone',
  siglip2_text_model: 'the text tower alone',
};

/** Refuses folders of one tower by name. */
function checkTwoTowers(json: unknown, file: string): void {
  const { model_type: type, architectures } = (json ?? {}) as {
    model_type?: unknown;
    architectures?: unknown;
  };
  const names = (Array.isArray(architectures) ? architectures : []).filter(
    (name) => typeof name === 'string',
  );
  const part =
    PARTS[String(type)] ??
    (names.some((n) => /^Siglip2?VisionModel$/.test(n))
      ? 'the vision tower alone'
      : names.some((n) => /^Siglip2?TextModel$/.test(n))
        ? 'the text tower alone'
        : names.some((n) => /^Siglip2?ForImageClassification$/.test(n))
          ? 'the vision tower with a classifier'
          : undefined);
  if (part === undefined) return;
  throw new CheckpointError(
    `${file}: this folder holds ${part} (${names[0] ?? String(type)}), but images are compared with texts here, ` +
      'so both towers are needed; save the whole SiglipModel or Siglip2Model that it was taken from',
  );
}

/** The value without the keys that are null, which Python writes for "not given". */
function withoutNulls(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, v]) => v !== null)
      .map(([k, v]) => [k, withoutNulls(v)]),
  );
}

/** Checks a parsed JSON value; the error names the file and the key. */
export function check<T>(schema: z.ZodType<T>, value: unknown, file: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const path = (issue?.path ?? []).map(String);
  const found = path.reduce<unknown>(
    (at, key) => (at as Record<string, unknown> | null | undefined)?.[key],
    value,
  );
  const where = path.length ? `key "${path.join('.')}"` : 'the contents';
  throw new CheckpointError(
    `${file}: ${where} ` +
      `${found === undefined ? 'is missing' : `is ${JSON.stringify(found)?.slice(0, 80)}`}: ` +
      `${issue?.message ?? 'not valid'}`,
  );
}

/**
 * The model of a config.json. What transformers leaves out is filled in with its class defaults
 * (the vocabulary's is 32,000). Keys that do not change the tensors or the result are ignored.
 *
 * @param json The parsed file.
 * @param extra siglip2.json, when there is one.
 * @param file Its name, for errors.
 * @throws CheckpointError naming the key: a missing model type, a wrong type, or a model that is
 *   not SigLIP's.
 */
export function fromHfConfig(
  json: unknown,
  extra?: Siglip2Json,
  file = 'config.json',
): ModelConfig {
  checkTwoTowers(json, file);
  const parsed = check(hfConfig, withoutNulls(json), file);
  const { model_type: family, text_config: text, vision_config: vision } = parsed;
  const naflex = family === 'siglip2';
  if (text.layer_norm_eps !== vision.layer_norm_eps) {
    throw new CheckpointError(
      `${file}: layer_norm_eps must be the same in both towers but is ` +
        `${text.layer_norm_eps} and ${vision.layer_norm_eps}`,
    );
  }
  const side = Math.sqrt(vision.num_patches);
  if (naflex && !Number.isInteger(side)) {
    throw new CheckpointError(
      `${file}: key "vision_config.num_patches" is ` + `${vision.num_patches}: it must be a square`,
    );
  }
  const shape = (t: typeof text | typeof vision): TowerShape => ({
    width: t.hidden_size,
    depth: t.num_hidden_layers,
    heads: t.num_attention_heads,
    mlp: t.intermediate_size,
    ...(t.hidden_act === 'gelu' ? { gelu: 'exact' } : {}),
  });
  const patch = vision.patch_size;
  const config: ModelConfig = {
    name: extra?.name ?? variantName(vision.hidden_size, vision.num_hidden_layers, patch),
    naflex,
    vision: { ...shape(vision), patch, imageSize: naflex ? side * patch : vision.image_size },
    text: {
      ...shape(text),
      vocab: text.vocab_size,
      length: text.max_position_embeddings,
      pool: extra?.textPool ?? 'last',
    },
    embed: text.projection_size ?? text.hidden_size,
    initLogitScale: extra?.initLogitScale ?? Math.log(10),
    initLogitBias: extra?.initLogitBias ?? -10,
    layerNormEps: text.layer_norm_eps,
    ...(extra?.decoder ? { decoder: extra.decoder } : {}),
  };
  try {
    return checkModelConfig(config);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw new CheckpointError(`${file}: ${error.message}`, { cause: error });
  }
}

function variantName(width: number, depth: number, patch: number): string {
  return (
    VARIANTS.find((name) => {
      const { vision } = modelConfig(name);
      return vision.width === width && vision.depth === depth && vision.patch === patch;
    }) ?? `custom/${patch}`
  );
}
