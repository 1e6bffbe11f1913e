/** Checkpoints from one public layout to another, tensor by tensor, without running the model. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { applyEdits, modify } from 'jsonc-parser';
import { defaultTokenizerPath } from '../data/tokenizer.js';
import { ConfigError } from '../errors.js';
import { saveBigVision } from './big_vision.js';
import { openCheckpoint } from './checkpoint.js';
import type { Checkpoint } from './checkpoint.js';
import { readTextLimited, writeFileAtomic, writeFolderAtomic } from './files.js';
import { f32ToBf16, f32ToF16 } from './half.js';
import { preprocessorConfig, saveHfFolder, saveTokenizer } from './hf.js';
import { hfJson, toHfConfig, withFloats } from './hf_config.js';
import type { TensorData } from './hf.js';
import { exportOnnx } from './onnx.js';
import type { OnnxOptions } from './onnx.js';
import { endsInEos, tokenizerFile } from './tokenizer_file.js';
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
const PROCESSOR_FILES = ['preprocessor_config.json', 'processor_config.json'];
const TOKENIZER_FILES = ['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'tokenizer.model', 'spiece.model'];

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
  await inputFiles(folder, from, undefined);
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
  await saveHfFolder(folder, { config, tensors, lowercase, boxes, inputFiles: false, ...trimmed });
  await inputFiles(folder, from, dtype);
}

/**
 * config.json and the files that say how to make a model's inputs: the source's with their wording, or else new ones. A
 * tokenizer that does not end texts in EOS, or begins them with BOS, is written anew.
 */
async function inputFiles(folder: string, from: Checkpoint, dtype: ConvertOptions['dtype']): Promise<void> {
  const { config, vocabulary, lowercase, tokenizer } = from;
  const json = from.folder !== null && vocabulary === null ? withFloats(await readTextLimited(join(from.folder, 'config.json')))
    : hfJson(toHfConfig(vocabulary ? { ...config, text: { ...config.text, vocab: GEMMA_VOCAB } } : config));
  await writeFileAtomic(join(folder, 'config.json'), withDtype(json, dtype));
  const keep = tokenizer !== undefined && (from.generation === 1 || await endsInEos(tokenizer));
  const carried = from.folder === null ? [] : [...PROCESSOR_FILES, ...(keep ? TOKENIZER_FILES : [])].filter((name) => existsSync(join(from.folder!, name)));
  for (const name of carried) await copyFile(join(from.folder!, name), join(folder, name));
  if (!carried.some((name) => PROCESSOR_FILES.includes(name)))
    await writeFileAtomic(join(folder, 'preprocessor_config.json'), hfJson(preprocessorConfig(config, from)));
  if (keep || from.noTokenizer !== undefined) return;
  await saveTokenizer(folder, config, lowercase, await tokenizerFile(tokenizer ?? defaultTokenizerPath(), lowercase));
}

const NAMES = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' };

/** A config.json that names this type of weights wherever it names one; everything else keeps its wording. */
function withDtype(text: string, dtype: ConvertOptions['dtype']): string {
  if (dtype === undefined) return text;
  const named = (value: unknown, path: string[]): string[][] => typeof value !== 'object' || value === null ? []
    : Object.entries(value).flatMap(([key, v]) => /^(torch_)?dtype$/.test(key) ? [[...path, key]] : named(v, [...path, key]));
  const found = named(JSON.parse(text), []);
  return [...found, ...(found.length > 0 ? [] : [['torch_dtype'], ['dtype']])].reduce((json, path) =>
    applyEdits(json, modify(json, path, NAMES[dtype], { formattingOptions: { insertSpaces: true, tabSize: 2 } })), text);
}
