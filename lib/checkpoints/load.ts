/** A model from every kind of checkpoint, and to a Hugging Face folder. */
import { join } from 'node:path';
import { CheckpointError, DeviceError } from '../errors.js';
import { writeFileAtomic, writeFolderAtomic } from '../fs/files.js';
import { writeSafetensors } from '../io/safetensors.js';
import { type ModelOptions, Siglip2Model } from '../model/siglip2.js';
import { loadFile } from '../ops/load_file.js';
import { synchronize, type Tensor } from '../tensor.js';
import type { BoxFormat } from '../text/regions.js';
import { defaultTokenizerPath, type LowerMode } from '../text/tokenizer.js';
import { tokenizerFile } from '../text/tokenizer_file.js';
import { VocabMap } from '../text/vocab.js';
import { type Checkpoint, openCheckpoint } from './checkpoint.js';
import { saveHfFolder, type TensorData } from './hf.js';
import type { Processor } from './processor_config.js';

export interface ModelFilesOptions {
  /** Of a model with a trimmed token table. */
  vocab: VocabMap | null;
  /** Path of the tokenizer.json that was trained with; null: the Gemma one. */
  tokenizer: string | null;
  lowercase: LowerMode;
  /** How images are resized, and into how many patches; by default as `defaultProcessor` says. */
  processor?: Pick<Processor, 'resample' | 'maxPatches'>;
  /** How the decoder was taught to write boxes; LocCa's way by default. */
  boxes?: BoxFormat | undefined;
  /** Moving average of the weights, written beside them as model_ema.safetensors. */
  ema: Tensor | null;
}

/**
 * Fills a folder with config.json, model.safetensors, tokenizer and preprocessor files.
 * Give it the temporary folder of `writeFolderAtomic`. Throws IoError when the disk says no.
 */
export async function modelFiles(
  folder: string,
  model: Siglip2Model,
  options: ModelFilesOptions,
): Promise<void> {
  const tensors = async (source: Tensor): Promise<Map<string, TensorData>> =>
    new Map(
      [...(await model.params.read(source))].map(([name, t]) => [name, { ...t, dtype: 'F32' }]),
    );
  await saveHfFolder(folder, {
    config: model.config,
    tensors: await tensors(model.params.values),
    lowercase: options.lowercase,
    tokenizer: await tokenizerFile(options.tokenizer ?? defaultTokenizerPath(), options.lowercase),
    boxes: options.boxes,
    ...(options.processor ? { processor: options.processor } : {}),
    ...(options.vocab ? { vocabulary: [...options.vocab.inverse()] } : {}),
  });
  if (options.vocab)
    await writeFileAtomic(join(folder, 'README.md'), trimmedReadme(options.vocab.size));
  if (options.ema) {
    await writeSafetensors(
      join(folder, 'model_ema.safetensors'),
      [...(await tensors(options.ema))].map(([name, t]) => ({ name, ...t })),
    );
  }
}

/**
 * Writes a model as a Hugging Face folder, which `load`, `loadModel` and other tools open. The folder is there whole or not
 * at all; it takes the place of one of its name.
 * @param options what texts need where it is not the default: a trimmed vocabulary, a tokenizer, `lowercase`; and the
 *   moving average, `optimizer.ema`
 * @throws IoError naming the file
 */
export function saveModel(
  folder: string,
  model: Siglip2Model,
  options: Partial<ModelFilesOptions> = {},
): Promise<void> {
  return writeFolderAtomic(folder, (tmp) =>
    modelFiles(tmp, model, {
      vocab: null,
      tokenizer: null,
      lowercase: 'ascii',
      ema: null,
      ...options,
    }),
  );
}

/** For whoever opens the folder with another tool. */
function trimmedReadme(rows: number): string {
  return `# A siglip2 checkpoint with a trimmed vocabulary

The token table has ${rows} rows, those of the tokens in the training captions; config.json says which ("vocabulary"). siglip2
opens this folder as it is. **Other tools need a complete table first**: with the ids of tokenizer.json they would read beyond
this one (an index error). Export it, and open what was written:

    npx siglip2 export THIS_FOLDER --format hf --out full
`;
}

/** How a checkpoint is loaded. */
export interface LoadOptions {
  /** Stops the load; the promise then rejects with the signal's reason within a few tensors. */
  signal?: AbortSignal;
  /** Called as weights arrive. */
  onProgress?: (loadedBytes: number, totalBytes: number) => void;
}

/** Bytes that may be on their way to the device: bounds the memory of a load and how late an abort is noticed. */
const IN_FLIGHT = 2 ** 26;

async function fill(
  model: Siglip2Model,
  { reader }: Checkpoint,
  { signal, onProgress }: LoadOptions,
): Promise<void> {
  const { params } = model,
    names = new Set(params.shapes.map(({ name }) => name));
  // In the order of the file, which is the fastest to read.
  const tensors = [...reader.tensors.values()].filter(({ name }) => names.has(name));
  const total = tensors.reduce((sum, { bytes }) => sum + bytes, 0);
  let done = 0,
    inFlight = 0;
  const sent = async (bytes: number, last = false): Promise<void> => {
    done += bytes;
    inFlight += bytes;
    if (inFlight < IN_FLIGHT && !last) return;
    inFlight = 0;
    await synchronize(params.device);
    onProgress?.(done, total);
    signal?.throwIfAborted();
  };
  try {
    for (const { name, bytes } of tensors) {
      signal?.throwIfAborted();
      const place = params.device === 'cpu' ? reader.locate(name) : undefined;
      if (place) {
        loadFile(params.get(name), place);
        await sent(bytes);
      } else {
        let from = 0;
        for await (const piece of reader.chunks(name)) {
          params.write(name, piece, from);
          from += piece.length;
          await sent((piece.length / params.segment(name).size) * bytes);
        }
      }
    }
    params.refreshCopy();
    await sent(0, true);
  } catch (error) {
    // What is enqueued still reads from the file, which the caller closes.
    await synchronize(params.device).catch(() => undefined);
    if (error instanceof DeviceError && error.message.startsWith('load_file:')) {
      throw new CheckpointError(
        `a weight cannot be loaded: ${error.message.slice('load_file: '.length)}`,
        { cause: error },
      );
    }
    throw error;
  }
}

/**
 * Writes a checkpoint's weights, those of any kind that `loadModel` takes, into a model of the same shape.
 * @param options.fresh parameters whose name begins with it may be missing from the checkpoint and then keep the values
 *   they have: heads that a new stage of training adds, `ssl.` say
 * @throws CheckpointError naming the first tensor that is missing or has another shape
 */
export async function loadModelInto(
  model: Siglip2Model,
  folder: string,
  options: { fresh?: string } = {},
): Promise<void> {
  const from = await openCheckpoint(folder);
  try {
    for (const { name, shape } of model.params.shapes) {
      const there = from.reader.tensors.get(name)?.shape;
      if (!there && options.fresh && name.startsWith(options.fresh)) continue;
      if (!there || there.join() !== shape.join()) {
        throw new CheckpointError(
          `${folder}: tensor "${name}" is ${there ? `[${there.join(', ')}]` : 'missing'} but this model ` +
            `needs [${shape.join(', ')}]; choose the model the checkpoint was made with`,
        );
      }
    }
    await fill(model, from, {});
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
  /** Why there is no tokenizer, if texts cannot do without. */
  noTokenizer?: string | undefined;
  lowercase: LowerMode;
  /** How images are resized, and which generation the texts are of. */
  processor: Processor;
  /** How the decoder writes boxes; undefined: LocCa's way. */
  boxes?: BoxFormat | undefined;
}

/**
 * Loads a checkpoint: a folder (ours, or a released one of SigLIP or SigLIP 2, of fixed resolution or NaFlex), a
 * big_vision .npz file, or a hub id.
 * A bf16 model without training takes half the memory: its matrices are never held in f32.
 * @throws CheckpointError, IoError, or the signal's reason
 */
export async function loadModel(
  source: string,
  options: ModelOptions & LoadOptions = {},
): Promise<LoadedModel> {
  const from = await openCheckpoint(source, options);
  try {
    const model = new Siglip2Model(from.config, options);
    try {
      await fill(model, from, options);
    } catch (error) {
      model.dispose();
      throw error;
    }
    return {
      model,
      vocab: from.vocabulary ? VocabMap.fromIds(from.vocabulary) : null,
      tokenizer: from.tokenizer,
      noTokenizer: from.noTokenizer,
      lowercase: from.lowercase,
      boxes: from.boxes,
      processor: {
        resample: from.resample,
        generation: from.generation,
        maxPatches: from.maxPatches,
        clean: from.clean,
      },
    };
  } finally {
    await from.reader.close();
  }
}

/** The trimmed vocabulary of a checkpoint folder; null when its token table is complete. */
export async function readVocabulary(folder: string): Promise<VocabMap | null> {
  const from = await openCheckpoint(folder);
  await from.reader.close();
  return from.vocabulary ? VocabMap.fromIds(from.vocabulary) : null;
}
