/**
 * Model folders in the Hugging Face layout: config.json, model.safetensors,
 * preprocessor_config.json, tokenizer_config.json, tokenizer.json, and siglip2.json for what that
 * layout has no place for.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { CheckpointError } from '../errors.js';
import { errorCode, readTextLimited, recoverFolder, writeFileAtomic } from '../fs/files.js';
import type { Dtype, TensorEntry, TensorReader } from '../io/safetensors.js';
import { elementBytes, openSafetensors, writeSafetensors } from '../io/safetensors.js';
import { isLfsPointer, lfsPointer, parseObject } from '../io/safetensors_header.js';
import type { ModelConfig } from '../model/config.js';
import { type BoxFormat, checkBoxFormat } from '../text/regions.js';
import type { LowerMode } from '../text/tokenizer.js';
import { missingTokenizer } from '../text/tokenizer_file.js';
import { GEMMA_VOCAB } from '../text/vocab.js';
import {
  check,
  fromHfConfig,
  hfJson,
  type Siglip2Json,
  siglip2Json,
  toHfConfig,
} from './hf_config.js';
import { checkTensors } from './hf_tensors.js';
import type { Processor } from './processor_config.js';
import { defaultProcessor, readProcessor } from './processor_config.js';

/** preprocessor_config.json: resize whatever the aspect ratio, [0, 255] to [-1, 1]. */
export function preprocessorConfig(
  config: ModelConfig,
  { resample, maxPatches }: Pick<Processor, 'resample' | 'maxPatches'> = defaultProcessor(config),
): Record<string, unknown> {
  const side = config.vision.imageSize;
  const own = config.naflex
    ? {
        image_processor_type: 'Siglip2ImageProcessor',
        processor_class: 'Siglip2Processor',
        patch_size: config.vision.patch,
        max_num_patches: maxPatches,
      }
    : {
        image_processor_type: 'SiglipImageProcessor',
        processor_class: 'SiglipProcessor',
        size: { height: side, width: side },
      };
  return {
    ...own,
    do_convert_rgb: true,
    do_resize: true,
    resample,
    do_rescale: true,
    rescale_factor: 1 / 255,
    do_normalize: true,
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
  };
}

/**
 * tokenizer_config.json beside a tokenizer.json of `tokenizerFile`, which says all about ids: no BOS, EOS at the end,
 * lower-casing. Readers pad on the right to the model's length and pass no mask. The class is the one that changes nothing
 * of that file: transformers 4 knows no Siglip2Tokenizer, and the GemmaTokenizer of 5 does not lower-case. (For NaFlex
 * models, transformers 5 takes its Siglip2Tokenizer whatever is written here.)
 */
export function tokenizerConfig(
  config: ModelConfig,
  lowercase: LowerMode = 'unicode',
): Record<string, unknown> {
  return {
    tokenizer_class: 'PreTrainedTokenizerFast',
    processor_class: config.naflex ? 'Siglip2Processor' : 'SiglipProcessor',
    model_input_names: ['input_ids'],
    do_lower_case: lowercase !== 'none',
    padding_side: 'right',
    truncation_side: 'right',
    model_max_length: config.text.length,
    pad_token: '<pad>',
    eos_token: '<eos>',
    bos_token: '<bos>',
    unk_token: '<unk>',
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
  /** Contents of tokenizer.json, as `tokenizerFile` makes them. */
  tokenizer?: string | Uint8Array;
  lowercase?: LowerMode;
  /** Whether to write the files of processor and tokenizer, which the following describes. Default true. */
  inputFiles?: boolean;
  /** How images are resized, and into how many patches; by default as `defaultProcessor` says. */
  processor?: Pick<Processor, 'resample' | 'maxPatches'>;
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
  const { config, vocabulary, lowercase = 'unicode' } = model;
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
    version: 1,
    name: config.name,
    textPool: config.text.pool,
    lowercase,
    initLogitScale: config.initLogitScale,
    initLogitBias: config.initLogitBias,
    vocabulary: saved === config && vocabulary !== undefined ? [...vocabulary] : null,
    ...(saved.decoder ? { decoder: saved.decoder } : {}),
    ...(saved.decoder && model.boxes ? { boxes: model.boxes } : {}),
  };
  await writeSafetensors(
    path,
    [...tensors].map(([name, tensor]) => ({ name, ...tensor })),
  );
  await writeFileAtomic(join(folder, 'config.json'), hfJson(toHfConfig(saved)));
  // The vocabulary is one long list; a line for each of its numbers would help nobody.
  await writeFileAtomic(join(folder, 'siglip2.json'), `${JSON.stringify(extra)}\n`);
  if (model.inputFiles === false) return;
  await writeFileAtomic(
    join(folder, 'preprocessor_config.json'),
    hfJson(preprocessorConfig(saved, model.processor)),
  );
  await saveTokenizer(folder, saved, lowercase, model.tokenizer);
}

/** Writes tokenizer_config.json, and tokenizer.json where its contents are given. */
export async function saveTokenizer(
  folder: string,
  config: ModelConfig,
  lowercase: LowerMode,
  tokenizer: string | Uint8Array | undefined,
): Promise<void> {
  await writeFileAtomic(
    join(folder, 'tokenizer_config.json'),
    hfJson(tokenizerConfig(config, lowercase)),
  );
  if (tokenizer !== undefined) await writeFileAtomic(join(folder, 'tokenizer.json'), tokenizer);
}

function checkVocabulary(
  folder: string,
  config: ModelConfig,
  vocabulary: readonly number[],
  rows = GEMMA_VOCAB,
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
    shape: [rows, width],
    dtype: table.dtype,
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
  /** Why there is none, if texts cannot do without; see `missingTokenizer`. */
  noTokenizer: string | undefined;
  lowercase: LowerMode;
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
    ? check(siglip2Json, await readJson(extraPath), extraPath)
    : undefined;
  const configPath = join(folder, 'config.json');
  const config = fromHfConfig(await readJson(configPath), extra, configPath);
  const vocabulary = extra?.vocabulary ?? null;
  if (vocabulary !== null) checkVocabulary(extraPath, config, vocabulary, 2 ** 24 + 1);
  const boxes = boxFormat(extra, extraPath);
  const reader = await openSafetensors(folder);
  try {
    checkTensors(folder, config, reader.tensors);
    const processor = await readProcessor(folder, config),
      lowercase = extra?.lowercase ?? (await readLowercase(folder, config));
    const path = join(folder, 'tokenizer.json'),
      tokenizer = existsSync(path) ? path : undefined;
    const noTokenizer = tokenizer
      ? undefined
      : missingTokenizer(folder, folder, config.text.vocab, vocabulary !== null);
    return {
      ...processor,
      folder,
      config,
      reader,
      vocabulary,
      lowercase,
      tokenizer,
      noTokenizer,
      boxes,
    };
  } catch (error) {
    await reader.close();
    throw error;
  }
}

/**
 * How transformers, or else the authors' pipeline, lower-cases the texts of a folder without siglip2.json. Its
 * Siglip2Tokenizer lower-cases all letters; the older GemmaTokenizer of the fixed-resolution checkpoints none, but they
 * were trained on lower-cased text, by `tf.strings.lower` (A–Z).
 */
async function readLowercase(folder: string, config: ModelConfig): Promise<LowerMode> {
  const path = join(folder, 'tokenizer_config.json');
  const json = existsSync(path) ? parseObject(path, await readTextLimited(path)) : {};
  if (config.naflex || json['tokenizer_class'] === 'Siglip2Tokenizer') return 'unicode';
  return json['do_lower_case'] === false ? 'none' : 'ascii';
}

function boxFormat(extra: Siglip2Json | undefined, path: string): BoxFormat | undefined {
  try {
    if (extra?.boxes) checkBoxFormat(extra.boxes);
  } catch (cause) {
    throw new CheckpointError(`${path}: ${(cause as Error).message}`, { cause });
  }
  return extra?.boxes;
}

/** The value of a JSON file. @throws CheckpointError when it is missing or damaged; IoError when the disk says no */
export async function readJson(path: string): Promise<unknown> {
  let text: string;
  try {
    text = await readTextLimited(path);
  } catch (error) {
    const { message, cause } = error as Error;
    if (!['ENOENT', undefined].includes(errorCode(cause))) throw error;
    throw new CheckpointError(message, { cause });
  }
  if (isLfsPointer(text)) throw lfsPointer(path);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new CheckpointError(`${path}: is not valid JSON (${(cause as Error).message})`, {
      cause,
    });
  }
}
