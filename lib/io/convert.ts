/** Checkpoints from one public layout to another, tensor by tensor, without running the model. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { copyFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { defaultTokenizerPath } from '../data/tokenizer.js';
import { ConfigError } from '../errors.js';
import { saveBigVision } from './big_vision.js';
import { openCheckpoint } from './checkpoint.js';
import type { Checkpoint } from './checkpoint.js';
import { writeFileAtomic, writeFolderAtomic } from './files.js';
import { f32ToBf16, f32ToF16 } from './half.js';
import { preprocessorConfig, saveHfFolder, tokenizerConfig, toHfConfig } from './hf.js';
import type { TensorData } from './hf.js';
import { exportOnnx } from './onnx.js';
import type { OnnxOptions } from './onnx.js';
import { GEMMA_VOCAB } from '../model/config.js';

export interface ConvertOptions extends OnnxOptions {
  /**
   * `hf`: a folder that transformers opens; `npz`: big_vision's released layout, f32; `onnx`: a folder with vision.onnx
   * and text.onnx (see onnx.ts), f32.
   */
  format: 'hf' | 'npz' | 'onnx';
  /** Element type of a folder's weights; by default as they are. */
  dtype?: 'f32' | 'f16' | 'bf16' | undefined;
  signal?: AbortSignal | undefined;
}

/** Files of a model folder that are carried over as they are. */
const VERBATIM = ['preprocessor_config.json', 'processor_config.json', 'tokenizer_config.json', 'special_tokens_map.json', 'tokenizer.json',
  'tokenizer.model', 'spiece.model'];

/**
 * Converts a checkpoint (folder, .npz or hub id). A folder from a folder keeps every tensor's bytes, unless another
 * `dtype` is asked for, and the wording of its JSON files; a trimmed token table becomes complete.
 * @param target a file or folder that does not exist yet, or an empty folder: nothing is ever replaced
 * @throws CheckpointError, IoError, ConfigError
 */
export async function convertCheckpoint(source: string, target: string, options: ConvertOptions): Promise<void> {
  const { format, dtype } = options;
  if (format !== 'hf' && dtype !== undefined && dtype !== 'f32') throw new ConfigError(`${format} files are written in f32; dtype ${dtype} needs the format hf`);
  if (existsSync(target) && !(statSync(target).isDirectory() && readdirSync(target).length === 0)) {
    throw new ConfigError(`${target}: is already there; remove it or choose another name`);
  }
  const from = await openCheckpoint(source, options);
  try {
    if (format === 'npz') {
      if (from.vocabulary) throw new ConfigError(`${source}: has a trimmed token table, which the npz layout has no place for; convert it to hf first`);
      await saveBigVision(target, from.config, from.reader);
    } else {
      await writeFolderAtomic(target, (folder) => format === 'hf' ? saveFolder(folder, from, options) : saveOnnx(folder, from, options));
    }
  } finally {
    await from.reader.close();
  }
}

async function saveOnnx(folder: string, from: Checkpoint, options: ConvertOptions): Promise<void> {
  await exportOnnx(folder, from, options);
  await writeJson(join(folder, 'config.json'), await configJson(from, undefined));
  await inputFiles(folder, from);
}

async function saveFolder(folder: string, from: Checkpoint, { dtype, signal }: ConvertOptions): Promise<void> {
  const { config, reader, vocabulary, lowercase, boxes } = from;
  const tensors = new Map<string, TensorData>();
  for (const { name, dtype: own, shape } of reader.tensors.values()) {
    if (name.endsWith('.position_ids')) continue;
    const read = async () => {
      signal?.throwIfAborted();
      if (dtype === undefined) return reader.read(name);
      const values = await reader.readFloat32(name);
      return dtype === 'f32' ? values : dtype === 'f16' ? f32ToF16(values) : f32ToBf16(values);
    };
    // A scalar of an older export is a vector of one to everything else.
    tensors.set(name, { shape: shape.length === 0 ? [1] : shape, dtype: dtype === undefined ? own : ({ f32: 'F32', f16: 'F16', bf16: 'BF16' } as const)[dtype], data: read });
  }
  const trimmed = vocabulary ? { vocabulary, expandVocabulary: GEMMA_VOCAB } : {};
  await saveHfFolder(folder, { config, tensors, lowercase, boxes, ...trimmed });
  await writeJson(join(folder, 'config.json'), await configJson(from, dtype));
  await inputFiles(folder, from);
}

/** The files that say how to make a model's inputs: the source's, or new ones. */
async function inputFiles(folder: string, from: Checkpoint): Promise<void> {
  const { config, vocabulary, lowercase, resample } = from, gemma = config.text.vocab === GEMMA_VOCAB || vocabulary !== null;
  const has = (file: string): boolean => existsSync(join(folder, file));
  for (const file of from.folder === null ? [] : VERBATIM) {
    if (existsSync(join(from.folder!, file))) await copyFile(join(from.folder!, file), join(folder, file));
  }
  if (!has('preprocessor_config.json')) await writeJson(join(folder, 'preprocessor_config.json'), { ...preprocessorConfig(config), resample });
  if (!has('tokenizer_config.json') && gemma) await writeJson(join(folder, 'tokenizer_config.json'), tokenizerConfig(config, lowercase));
  if (!has('tokenizer.json') && gemma) await copyFile(defaultTokenizerPath(), join(folder, 'tokenizer.json'));
}

/** The source's own config.json, sparse as it may be; otherwise a complete one. */
async function configJson(from: Checkpoint, dtype: ConvertOptions['dtype']): Promise<Record<string, unknown>> {
  const names = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' };
  const json = from.folder !== null && from.vocabulary === null
    ? JSON.parse(await readFile(join(from.folder, 'config.json'), 'utf8')) as Record<string, unknown>
    : toHfConfig(from.vocabulary ? { ...from.config, text: { ...from.config.text, vocab: GEMMA_VOCAB } } : from.config);
  return dtype === undefined ? json : { ...json, torch_dtype: names[dtype] };
}

function writeJson(path: string, value: unknown): Promise<void> {
  return writeFileAtomic(path, `${JSON.stringify(value, null, 2)}\n`);
}
