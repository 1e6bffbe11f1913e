/** Checkpoints from one public layout to another, tensor by tensor, without running the model. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { applyEdits, modify } from 'jsonc-parser';
import { ConfigError } from '../errors.js';
import { readTextLimited, writeFileAtomic, writeFolderAtomic } from '../fs/files.js';
import { f32ToBf16, f32ToF16 } from '../io/half.js';
import { defaultTokenizerPath } from '../text/tokenizer.js';
import { endsInEos, tokenizerFile } from '../text/tokenizer_file.js';
import { GEMMA_VOCAB } from '../text/vocab.js';
import { saveBigVision } from './big_vision.js';
import type { Checkpoint } from './checkpoint.js';
import { openCheckpoint } from './checkpoint.js';
import type { TensorData } from './hf.js';
import { preprocessorConfig, saveHfFolder, saveTokenizer } from './hf.js';
import { hfJson, toHfConfig, withFloats } from './hf_config.js';
import type { OnnxOptions } from './onnx.js';
import { exportOnnx } from './onnx.js';
import { saveOpenClip } from './open_clip.js';

export interface ConvertOptions extends OnnxOptions {
  /**
   * `hf`: a folder that transformers opens; `npz`: big_vision's released layout, f32; `onnx`: a folder with vision.onnx
   * and text.onnx (see onnx.ts), f32; `open_clip`: a folder that open_clip opens as `local-dir:`.
   */
  format: 'hf' | 'npz' | 'onnx' | 'open_clip';
  /** Element type of a folder's weights; by default as they are. */
  dtype?: 'f32' | 'f16' | 'bf16' | undefined;
  signal?: AbortSignal | undefined;
  /** Called with a sentence when the result will not give quite the same numbers. */
  onNote?: (sentence: string) => void;
}

/** Files of a model folder that are carried over as they are. */
const PROCESSOR_FILES = ['preprocessor_config.json', 'processor_config.json'];
const TOKENIZER_FILES = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'tokenizer.model',
  'spiece.model',
];

/**
 * Converts a checkpoint (folder, .npz or hub id). A folder from a folder keeps every tensor's bytes, unless another
 * `dtype` is asked for, and the wording of its JSON files; a trimmed token table becomes complete.
 * @param target a file or folder that does not exist yet, or an empty folder: nothing is ever replaced
 * @throws CheckpointError, IoError, ConfigError
 */
export async function convertCheckpoint(
  source: string,
  target: string,
  options: ConvertOptions,
): Promise<void> {
  const { format, dtype } = options;
  if (['npz', 'onnx'].includes(format) && dtype !== undefined && dtype !== 'f32')
    throw new ConfigError(
      `${format} files are written in f32; dtype ${dtype} needs the format hf or open_clip`,
    );
  if (existsSync(target) && !(statSync(target).isDirectory() && readdirSync(target).length === 0)) {
    throw new ConfigError(`${target}: is already there; remove it or choose another name`);
  }
  const from = await openCheckpoint(source, options);
  try {
    if (from.vocabulary && (format === 'npz' || format === 'open_clip'))
      throw new ConfigError(
        `${source}: has a trimmed token table, which the ${format} layout has no place for; convert it to hf first`,
      );
    if (format === 'npz') {
      await saveBigVision(target, from.config, from.reader);
      if ([from.config.vision, from.config.text].some(({ gelu }) => gelu === 'exact'))
        options.onNote?.(
          'big_vision computes GELU in its tanh form but this model in its exact form, so embeddings by big_vision differ in the third or fourth digit',
        );
    } else {
      const save = { hf: saveFolder, onnx: saveOnnx, open_clip: saveForOpenClip }[format];
      await writeFolderAtomic(target, (folder) => save(folder, from, options));
    }
  } finally {
    await from.reader.close();
  }
}

async function saveOnnx(folder: string, from: Checkpoint, options: ConvertOptions): Promise<void> {
  await exportOnnx(folder, from, options);
  await inputFiles(folder, from, undefined);
}

async function saveForOpenClip(
  folder: string,
  from: Checkpoint,
  options: ConvertOptions,
): Promise<void> {
  const note = await saveOpenClip(folder, from, tensorsOf(from, options));
  await tokenizerFiles(folder, from, from.generation === 1);
  if (note !== undefined) options.onNote?.(note);
}

/** The checkpoint's tensors, in another type if asked for. */
function tensorsOf(
  { reader }: Checkpoint,
  { dtype, signal }: ConvertOptions,
): Map<string, TensorData> {
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
    tensors.set(name, {
      shape: shape.length === 0 ? [1] : shape,
      dtype: dtype === undefined ? own : ({ f32: 'F32', f16: 'F16', bf16: 'BF16' } as const)[dtype],
      data: read,
    });
  }
  return tensors;
}

async function saveFolder(
  folder: string,
  from: Checkpoint,
  options: ConvertOptions,
): Promise<void> {
  const { config, vocabulary, lowercase, boxes } = from,
    tensors = tensorsOf(from, options);
  const trimmed = vocabulary ? { vocabulary, expandVocabulary: GEMMA_VOCAB } : {};
  await saveHfFolder(folder, { config, tensors, lowercase, boxes, inputFiles: false, ...trimmed });
  await inputFiles(folder, from, options.dtype);
}

/**
 * config.json and the files that say how to make a model's inputs: the source's with their wording, or else new ones. A
 * tokenizer that does not end texts in EOS, or begins them with BOS, is written anew.
 */
async function inputFiles(
  folder: string,
  from: Checkpoint,
  dtype: ConvertOptions['dtype'],
): Promise<void> {
  const { config, vocabulary, tokenizer } = from;
  const json =
    from.folder !== null && vocabulary === null
      ? withFloats(await readTextLimited(join(from.folder, 'config.json')))
      : hfJson(
          toHfConfig(
            vocabulary ? { ...config, text: { ...config.text, vocab: GEMMA_VOCAB } } : config,
          ),
        );
  await writeFileAtomic(join(folder, 'config.json'), withDtype(json, dtype));
  if (!(await carry(PROCESSOR_FILES, from.folder, folder)))
    await writeFileAtomic(
      join(folder, 'preprocessor_config.json'),
      hfJson(preprocessorConfig(config, from)),
    );
  await tokenizerFiles(
    folder,
    from,
    from.generation === 1 ||
      (from.folder !== null && tokenizer !== undefined && (await endsInEos(tokenizer))),
  );
}

/** @param keep the tokenizer as it is, if there is one */
async function tokenizerFiles(
  folder: string,
  { config, lowercase, tokenizer, noTokenizer }: Checkpoint,
  keep: boolean,
): Promise<void> {
  if (keep && tokenizer !== undefined) await carry(TOKENIZER_FILES, dirname(tokenizer), folder);
  else if (noTokenizer === undefined)
    await saveTokenizer(
      folder,
      config,
      lowercase,
      await tokenizerFile(tokenizer ?? defaultTokenizerPath(), lowercase),
    );
}

/** Copies files of a folder as they are. @returns whether there were any */
async function carry(names: readonly string[], from: string | null, to: string): Promise<boolean> {
  const there = from === null ? [] : names.filter((name) => existsSync(join(from, name)));
  for (const name of there) await copyFile(join(from!, name), join(to, name));
  return there.length > 0;
}

const NAMES = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' };

/** A config.json that names this type of weights wherever it names one; everything else keeps its wording. */
function withDtype(text: string, dtype: ConvertOptions['dtype']): string {
  if (dtype === undefined) return text;
  const named = (value: unknown, path: string[]): string[][] =>
    typeof value !== 'object' || value === null
      ? []
      : Object.entries(value).flatMap(([key, v]) =>
          /^(torch_)?dtype$/.test(key) ? [[...path, key]] : named(v, [...path, key]),
        );
  const found = named(JSON.parse(text), []);
  return [...found, ...(found.length > 0 ? [] : [['torch_dtype'], ['dtype']])].reduce(
    (json, path) =>
      applyEdits(
        json,
        modify(json, path, NAMES[dtype], { formattingOptions: { insertSpaces: true, tabSize: 2 } }),
      ),
    text,
  );
}
