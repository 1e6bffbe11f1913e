/**
 * Model folders in the Hugging Face layout: config.json, model.safetensors,
 * preprocessor_config.json, tokenizer_config.json, tokenizer.json, and siglip2.json for what that
 * layout has no place for.
 *
 * Fixed-resolution models are `siglip`, NaFlex models are `siglip2`, as in the released
 * checkpoints. Published config.json files leave out keys that equal the class defaults, so the
 * defaults of transformers' SiglipTextConfig, SiglipVisionConfig and Siglip2VisionConfig are filled
 * in here.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { checkBoxFormat, type BoxFormat } from '../data/regions.js';
import { CheckpointError, ConfigError } from '../errors.js';
import {
  checkModelConfig, GEMMA_VOCAB, gridSide, modelConfig, patchCount, VARIANTS,
} from '../model/config.js';
import type { ModelConfig } from '../model/config.js';
import { decoderSchema } from '../model/decoder_shapes.js';
import { errorCode, readTextLimited, recoverFolder, writeFileAtomic } from './files.js';
import { checkTensors } from './hf_tensors.js';
import { readProcessor } from './processor.js';
import type { Processor } from './processor.js';
import { elementBytes, openSafetensors, writeSafetensors } from './safetensors.js';
import type { Dtype, TensorEntry, TensorReader } from './safetensors.js';

type TowerShape = Pick<ModelConfig['vision'], 'width' | 'depth' | 'heads' | 'mlp' | 'gelu'>;

/** config.json of a model. The pad, bos and eos ids are Gemma's, unlike the class defaults. */
export function toHfConfig(config: ModelConfig): Record<string, unknown> {
  const { vision, text, naflex } = config;
  const family = naflex ? 'siglip2' : 'siglip';
  const tower = ({ width, mlp, depth, heads, gelu }: TowerShape): Record<string, unknown> => ({
    hidden_size: width, intermediate_size: mlp,
    num_hidden_layers: depth, num_attention_heads: heads,
    hidden_act: gelu === 'exact' ? 'gelu' : 'gelu_pytorch_tanh', layer_norm_eps: config.layerNormEps, attention_dropout: 0,
  });
  return {
    architectures: [naflex ? 'Siglip2Model' : 'SiglipModel'],
    model_type: family,
    initializer_factor: 1,
    torch_dtype: 'float32',
    text_config: {
      model_type: `${family}_text_model`, ...tower(text), vocab_size: text.vocab,
      max_position_embeddings: text.length, projection_size: config.embed,
      pad_token_id: 0, eos_token_id: 1, bos_token_id: 2,
    },
    vision_config: {
      model_type: `${family}_vision_model`, ...tower(vision),
      num_channels: 3, patch_size: vision.patch,
      ...(naflex ? { num_patches: patchCount(config) } : { image_size: vision.imageSize }),
      vision_use_head: true,
    },
  };
}

/** Bounds what a hostile config makes us lay out before the tensors are compared with it. */
const MOST_LAYERS = 1024;

const count = z.int().min(1).max(2 ** 31 - 1);
const tower = {
  hidden_size: count.default(768), intermediate_size: count.default(3072),
  num_hidden_layers: count.max(MOST_LAYERS).default(12), num_attention_heads: count.default(12),
  hidden_act: z.enum(['gelu_pytorch_tanh', 'gelu']).default('gelu_pytorch_tanh'),
  layer_norm_eps: z.number().positive().default(1e-6),
};
const hfConfig = z.looseObject({
  model_type: z.enum(['siglip', 'siglip2']),
  text_config: z.looseObject({
    ...tower, vocab_size: count.default(32000), max_position_embeddings: count.default(64),
    projection_size: count.optional(),
  }).prefault({}),
  vision_config: z.looseObject({
    ...tower, num_channels: z.literal(3).default(3),
    patch_size: count.default(16), image_size: count.default(224),
    num_patches: count.default(256), vision_use_head: z.literal(true).default(true),
  }).prefault({}),
});

const siglip2Json = z.strictObject({
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
  vocabulary: z.array(z.int().min(0).max(2 ** 24)).nullable(),
  /** The caption decoder, whose tensors `decoder.*` are in model.safetensors; none when absent. */
  decoder: decoderSchema,
  /** How the decoder has learnt to write boxes; LocCa's way when absent. */
  boxes: z.strictObject({
    bins: z.int().max(999999), order: z.tuple([z.int(), z.int(), z.int(), z.int()]).readonly(),
  }).optional(),
});

/** Contents of siglip2.json. */
export type Siglip2Json = z.output<typeof siglip2Json>;

/** Checks a parsed JSON value; the error names the file and the key. */
function check<T>(schema: z.ZodType<T>, value: unknown, file: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const path = (issue?.path ?? []).map(String);
  const found = path.reduce<unknown>((at, key) =>
    (at as Record<string, unknown> | null | undefined)?.[key], value);
  const where = path.length ? `key "${path.join('.')}"` : 'the contents';
  throw new CheckpointError(`${file}: ${where} ` +
    `${found === undefined ? 'is missing' : `is ${JSON.stringify(found)?.slice(0, 80)}`}: ` +
      `${issue?.message ?? 'not valid'}`);
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
  json: unknown, extra?: Siglip2Json, file = 'config.json',
): ModelConfig {
  const parsed = check(hfConfig, json, file);
  const { model_type: family, text_config: text, vision_config: vision } = parsed;
  const naflex = family === 'siglip2';
  if (text.layer_norm_eps !== vision.layer_norm_eps) {
    throw new CheckpointError(`${file}: layer_norm_eps must be the same in both towers but is ` +
      `${text.layer_norm_eps} and ${vision.layer_norm_eps}`);
  }
  const side = Math.sqrt(vision.num_patches);
  if (naflex && !Number.isInteger(side)) {
    throw new CheckpointError(`${file}: key "vision_config.num_patches" is ` +
      `${vision.num_patches}: it must be a square`);
  }
  const shape = (t: typeof text | typeof vision): TowerShape => ({
    width: t.hidden_size, depth: t.num_hidden_layers,
    heads: t.num_attention_heads, mlp: t.intermediate_size,
    ...(t.hidden_act === 'gelu' ? { gelu: 'exact' } : {}),
  });
  const patch = vision.patch_size;
  const config: ModelConfig = {
    name: extra?.name ?? variantName(vision.hidden_size, vision.num_hidden_layers, patch),
    naflex,
    vision: { ...shape(vision), patch, imageSize: naflex ? side * patch : vision.image_size },
    text: {
      ...shape(text), vocab: text.vocab_size,
      length: text.max_position_embeddings, pool: extra?.textPool ?? 'last',
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
  return VARIANTS.find((name) => {
    const { vision } = modelConfig(name);
    return vision.width === width && vision.depth === depth && vision.patch === patch;
  }) ?? `custom/${patch}`;
}

/** preprocessor_config.json: bilinear resize whatever the aspect ratio, [0, 255] to [-1, 1]. */
export function preprocessorConfig(config: ModelConfig): Record<string, unknown> {
  const side = config.vision.imageSize;
  const own = config.naflex
    ? { image_processor_type: 'Siglip2ImageProcessor', processor_class: 'Siglip2Processor',
        patch_size: config.vision.patch, max_num_patches: gridSide(config) ** 2 }
    : { image_processor_type: 'SiglipImageProcessor', processor_class: 'SiglipProcessor',
        size: { height: side, width: side } };
  return {
    ...own, do_convert_rgb: true, do_resize: true,
    // 2 is PIL's bilinear; the SigLIP 1 files had 3, bicubic.
    resample: 2,
    do_rescale: true, rescale_factor: 1 / 255,
    do_normalize: true, image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5],
  };
}

/**
 * tokenizer_config.json for the Gemma tokenizer: no BOS, EOS, padding on the right to the model's
 * length. `do_lower_case` documents the training; older transformers do not act on it, so callers
 * lower-case.
 */
export function tokenizerConfig(
  config: ModelConfig, lowercase: Siglip2Json['lowercase'] = 'ascii',
): Record<string, unknown> {
  return {
    tokenizer_class: 'GemmaTokenizer',
    processor_class: config.naflex ? 'Siglip2Processor' : 'SiglipProcessor',
    add_bos_token: false, add_eos_token: true, do_lower_case: lowercase !== 'none',
    padding_side: 'right', model_max_length: config.text.length,
    pad_token: '<pad>', eos_token: '<eos>', bos_token: '<bos>', unk_token: '<unk>',
    clean_up_tokenization_spaces: false,
  };
}

/** A tensor in memory. */
export interface TensorData {
  shape: readonly number[];
  dtype: Dtype;
  data: TensorEntry['data'];
}

/** What `saveHfFolder` writes. */
export interface HfModel {
  config: ModelConfig;
  /** By Hugging Face name; exactly the tensors of the config. */
  tensors: ReadonlyMap<string, TensorData>;
  /** Contents of tokenizer.json. */
  tokenizer?: string | Uint8Array;
  lowercase?: Siglip2Json['lowercase'];
  /** How the decoder writes boxes. */
  boxes?: BoxFormat | undefined;
  /** Full id of every row of a trimmed token table, ascending. */
  vocabulary?: readonly number[];
  /**
   * Write the complete token table of this many rows instead of the trimmed one, so that other
   * tools can use the folder. Rows of ids that were dropped become that of <unk> (3), which is what
   * they meant in training.
   */
  expandVocabulary?: number;
}

const UNKNOWN = 3;

/**
 * Fills a folder with a model. Give it the temporary folder of `writeFolderAtomic` to replace a
 * folder whole.
 *
 * @throws CheckpointError when a tensor is missing, extra or of the wrong shape; IoError when the
 *   disk says no.
 */
export async function saveHfFolder(folder: string, model: HfModel): Promise<void> {
  const { config, vocabulary, lowercase = 'ascii' } = model;
  const path = join(folder, 'model.safetensors');
  checkTensors(path, config, model.tensors);
  if (vocabulary !== undefined) checkVocabulary(folder, config, vocabulary, model.expandVocabulary);
  const tensors = new Map(model.tensors);
  let saved = config;
  if (vocabulary !== undefined && model.expandVocabulary !== undefined) {
    // The decoder's tables are trimmed too, and of no use outside training.
    saved = { ...config, text: { ...config.text, vocab: model.expandVocabulary }, decoder: null };
    for (const name of model.tensors.keys()) if (name.startsWith('decoder.')) tensors.delete(name);
    const table = 'text_model.embeddings.token_embedding.weight';
    tensors.set(table, expandRows(tensors.get(table)!, vocabulary, model.expandVocabulary));
  }
  const extra: Siglip2Json = {
    version: 1, name: config.name, textPool: config.text.pool, lowercase,
    initLogitScale: config.initLogitScale, initLogitBias: config.initLogitBias,
    vocabulary: saved === config && vocabulary !== undefined ? [...vocabulary] : null,
    ...(saved.decoder ? { decoder: saved.decoder } : {}),
    ...(saved.decoder && model.boxes ? { boxes: model.boxes } : {}),
  };
  await writeSafetensors(path, [...tensors].map(([name, tensor]) => ({ name, ...tensor })));
  const json: [string, unknown][] = [
    ['config.json', toHfConfig(saved)], ['preprocessor_config.json', preprocessorConfig(saved)],
    ['tokenizer_config.json', tokenizerConfig(saved, lowercase)], ['siglip2.json', extra],
  ];
  for (const [name, value] of json) {
    // The vocabulary is one long list; a line for each of its numbers would help nobody.
    const indent = name === 'siglip2.json' ? undefined : 2;
    await writeFileAtomic(join(folder, name), `${JSON.stringify(value, null, indent)}\n`);
  }
  if (model.tokenizer !== undefined) {
    await writeFileAtomic(join(folder, 'tokenizer.json'), model.tokenizer);
  }
}

function checkVocabulary(
  folder: string, config: ModelConfig, vocabulary: readonly number[], rows = GEMMA_VOCAB,
): void {
  const fail = (what: string): CheckpointError =>
    new CheckpointError(`${folder}: the trimmed vocabulary ${what}`);
  if (vocabulary.length !== config.text.vocab) {
    throw fail(`has ${vocabulary.length} ids but the token table has ${config.text.vocab} rows`);
  }
  vocabulary.forEach((id, i) => {
    if (!Number.isSafeInteger(id) || id < 0 || id <= (vocabulary[i - 1] ?? -1)) {
      throw fail(`must ascend but has ${id} after ${vocabulary[i - 1] ?? 'nothing'}`);
    }
    if (id >= rows) throw fail(`has id ${id} but the complete table has ${rows} rows`);
  });
}

/** Scatters the rows of a trimmed table (V, D) to a complete one (rows, D). */
function expandRows(table: TensorData, vocabulary: readonly number[], rows: number): TensorData {
  const width = table.shape[1]!;
  return {
    shape: [rows, width], dtype: table.dtype,
    data: async () => {
      const view = await (typeof table.data === 'function' ? table.data() : table.data);
      const from = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
      const stride = width * elementBytes(table.dtype);
      const row = (i: number): Uint8Array => from.subarray(i * stride, (i + 1) * stride);
      const to = new Uint8Array(rows * stride);
      const unknown = vocabulary.indexOf(UNKNOWN);
      if (unknown >= 0) for (let id = 0; id < rows; id++) to.set(row(unknown), id * stride);
      vocabulary.forEach((id, i) => to.set(row(i), id * stride));
      return to;
    },
  };
}

/**
 * A model folder that has been checked; tensors are read from `reader` by name. Close the reader
 * when done.
 */
export interface HfFolder extends Processor {
  /** Where it was opened; null for another kind of file. */
  folder: string | null;
  config: ModelConfig;
  reader: TensorReader;
  /** Path of tokenizer.json, when the folder has one. */
  tokenizer: string | undefined;
  lowercase: Siglip2Json['lowercase'];
  /** How the decoder writes boxes; undefined: LocCa's way. */
  boxes?: BoxFormat | undefined;
  /** Full id of every row of a trimmed token table; null when it is complete. */
  vocabulary: readonly number[] | null;
}

/**
 * Opens a model folder, ours or a released one, and proves that its tensors fit its config. Reads
 * no weights.
 *
 * @throws CheckpointError naming the file and key or tensor; IoError when the disk says no.
 */
export async function loadHfFolder(folder: string): Promise<HfFolder> {
  await recoverFolder(folder);
  const extraPath = join(folder, 'siglip2.json');
  const extra = existsSync(extraPath)
    ? check(siglip2Json, await readJson(extraPath), extraPath) : undefined;
  const configPath = join(folder, 'config.json');
  const config = fromHfConfig(await readJson(configPath), extra, configPath);
  const vocabulary = extra?.vocabulary ?? null;
  if (vocabulary !== null) checkVocabulary(extraPath, config, vocabulary, 2 ** 24 + 1);
  const processor = await readProcessor(folder, config), boxes = boxFormat(extra, extraPath);
  const reader = await openSafetensors(folder);
  try {
    checkTensors(folder, config, reader.tensors);
  } catch (error) {
    await reader.close();
    throw error;
  }
  const tokenizer = join(folder, 'tokenizer.json');
  return {
    ...processor, folder, config, reader, vocabulary, lowercase: extra?.lowercase ?? 'ascii',
    tokenizer: existsSync(tokenizer) ? tokenizer : undefined, boxes,
  };
}

function boxFormat(extra: Siglip2Json | undefined, path: string): BoxFormat | undefined {
  try {
    if (extra?.boxes) checkBoxFormat(extra.boxes);
  } catch (cause) {
    throw new CheckpointError(`${path}: ${(cause as Error).message}`, { cause });
  }
  return extra?.boxes;
}

async function readJson(path: string): Promise<unknown> {
  let text: string;
  try {
    text = await readTextLimited(path);
  } catch (error) {
    const { message, cause } = error as Error;
    if (!['ENOENT', undefined].includes(errorCode(cause))) throw error;
    throw new CheckpointError(message, { cause });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new CheckpointError(`${path}: is not valid JSON (${(cause as Error).message})`,
      { cause });
  }
}
