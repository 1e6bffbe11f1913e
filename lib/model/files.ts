/** A model to and from a Hugging Face folder. */
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { defaultTokenizerPath } from '../data/tokenizer.js';
import { VocabMap } from '../data/vocab.js';
import { CheckpointError } from '../errors.js';
import { loadHfFolder, saveHfFolder, type HfFolder, type TensorData } from '../io/hf.js';
import { writeSafetensors } from '../io/safetensors.js';
import type { Tensor } from '../tensor.js';
import { Siglip2Model, type ModelOptions } from './siglip2.js';

export interface ModelFilesOptions {
  /** Of a model with a trimmed token table. */
  vocab: VocabMap | null;
  /** Path of the tokenizer.json to put into the folder; null: the Gemma one. */
  tokenizer: string | null;
  lowercase: 'ascii' | 'unicode' | 'none';
  /** Moving average of the weights, written beside them as model_ema.safetensors. */
  ema: Tensor | null;
}

/**
 * Fills a folder with config.json, model.safetensors, tokenizer and preprocessor files.
 * Give it the temporary folder of `writeFolderAtomic`. Throws IoError when the disk says no.
 */
export async function modelFiles(folder: string, model: Siglip2Model, options: ModelFilesOptions): Promise<void> {
  const tensors = async (source: Tensor): Promise<Map<string, TensorData>> => new Map(
    [...await model.params.read(source)].map(([name, t]) => [name, { ...t, dtype: 'F32' }]));
  await saveHfFolder(folder, {
    config: model.config, tensors: await tensors(model.params.values), lowercase: options.lowercase,
    ...(options.vocab ? { vocabulary: [...options.vocab.inverse()] } : {}),
  });
  await copyFile(options.tokenizer ?? defaultTokenizerPath(), join(folder, 'tokenizer.json'));
  if (options.ema) {
    await writeSafetensors(join(folder, 'model_ema.safetensors'),
      [...await tensors(options.ema)].map(([name, t]) => ({ name, ...t })));
  }
}

async function fill(model: Siglip2Model, from: HfFolder): Promise<void> {
  for (const { name, shape } of model.params.shapes) {
    const size = shape.reduce((a, b) => a * b, 1);
    model.params.get(name).write(await from.reader.readFloat32(name, new Float32Array(size)));
  }
  model.params.refreshCopy();
}

/**
 * Writes a checkpoint's weights into a model of the same shape.
 * @throws CheckpointError naming the first tensor that is missing or has another shape
 */
export async function loadModelInto(model: Siglip2Model, folder: string): Promise<void> {
  const from = await loadHfFolder(folder);
  try {
    for (const { name, shape } of model.params.shapes) {
      const there = from.reader.tensors.get(name)?.shape;
      if (!there || there.join() !== shape.join()) {
        throw new CheckpointError(`${folder}: tensor "${name}" is ${there ? `[${there.join(', ')}]` : 'missing'} but this model ` +
          `needs [${shape.join(', ')}]; choose the model the checkpoint was made with`);
      }
    }
    await fill(model, from);
  } finally {
    await from.reader.close();
  }
}

/** A model with its weights, and what its texts need. */
export interface LoadedModel {
  model: Siglip2Model;
  vocab: VocabMap | null;
  /** Path of the folder's tokenizer.json, if it has one. */
  tokenizer: string | undefined;
  lowercase: 'ascii' | 'unicode' | 'none';
}

/**
 * Opens a checkpoint folder, ours or a released one, of fixed resolution or NaFlex.
 * @throws CheckpointError, IoError
 */
export async function loadModel(folder: string, options: ModelOptions = {}): Promise<LoadedModel> {
  const from = await loadHfFolder(folder);
  try {
    const model = new Siglip2Model(from.config, options);
    await fill(model, from);
    return {
      model, vocab: from.vocabulary ? VocabMap.fromIds(from.vocabulary) : null,
      tokenizer: from.tokenizer, lowercase: from.lowercase,
    };
  } finally {
    await from.reader.close();
  }
}

/** The trimmed vocabulary of a checkpoint folder; null when its token table is complete. */
export async function readVocabulary(folder: string): Promise<VocabMap | null> {
  const from = await loadHfFolder(folder);
  await from.reader.close();
  return from.vocabulary ? VocabMap.fromIds(from.vocabulary) : null;
}
