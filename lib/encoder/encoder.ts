/**
 * A checkpoint as an encoder: images and texts in, unit-length embeddings, scores and dense features out. What tends to
 * go wrong with SigLIP 2 elsewhere is not the caller's business here: resizing, lower-casing, padding to exactly the
 * trained length, no text mask (there is no way to pass one), last-token pooling, sigmoid and not softmax.
 *
 * On the CPU the same input gives the same vector bit for bit, whatever else is in the call and however many threads run.
 */
import { kindOf } from '../check.js';
import { type LoadedModel, loadModel } from '../checkpoints/load.js';
import { checkpointOf } from '../checkpoints/run.js';
import { tokenizerOf } from '../checkpoints/tokenizer.js';
import { ConfigError, DataError, DeviceError } from '../errors.js';
import { isBadFile } from '../fs/exhausted.js';
import type { RawImage } from '../image/image.js';
import { type ImageInput, useDecoded } from '../image/input.js';
import type { Processor } from '../image/processor.js';
import { boxesOfPhrases, captionImages } from '../inference/localize.js';
import { noGrad } from '../tape.js';
import {
  batchInvariant,
  type DeviceName,
  deviceName,
  scope,
  type Tensor,
  tensor,
} from '../tensor.js';
import type { GemmaTokenizer } from '../text/tokenizer.js';
import { abortable, inBatches } from './batching.js';
import {
  type DescribeOptions,
  type Describer,
  describe,
  type Location,
  location,
  phrasesFor,
} from './describe.js';
import {
  asList,
  checkCount,
  checkLoadOptions,
  checkOptions,
  checkSource,
  checkStrings,
  ENCODE_KEYS,
  type EncodeOptions,
  type LoadOptions,
  ZERO_SHOT_KEYS,
  type ZeroShotOptions,
} from './options.js';
import { convertRow, Embeddings, OUTPUT_TYPES, type OutputType, type Row } from './output.js';
import { promptTemplates } from './prompts.js';
import { type LabelScore, meanRows, ranked, type Similarity, similarity } from './scores.js';
import { makeVisionInput, type Prepared, type VisionInput } from './vision_input.js';

export type { EncodeOptions, LoadOptions, ZeroShotOptions };

/** Dense features of an image: one vector per patch, after the last LayerNorm and before pooling. Not normalised. */
export interface DenseFeatures {
  /** (rows, columns, dim) */
  data: Float32Array;
  /** The grid of patches; of a NaFlex model it follows the image's aspect ratio. */
  rows: number;
  columns: number;
  dim: number;
}

/**
 * Loads a checkpoint. The tokenizer is loaded with the first text.
 * @param source a checkpoint's folder (ours or a released one), a run's, which means its newest checkpoint, a big_vision .npz, or a hub id like `owner/name`
 * @throws CheckpointError, IoError, ConfigError; DeviceError when there is no such device; the signal's reason, at once
 * @example
 * using model = await load('models/siglip2-base-patch16-256');
 * const { data, dim } = await model.encodeImages(['cat.jpg', 'dog.jpg']); // (2, dim)
 */
export async function load(source: string, options: LoadOptions = {}): Promise<Encoder> {
  checkLoadOptions(options);
  const { device = 'cpu', dtype = 'f32', signal } = options;
  signal?.throwIfAborted();
  deviceName(device);
  const opening = open(source, device, dtype, options);
  return abortable(opening, signal).catch((e: unknown) => {
    opening.then(
      (late) => late.dispose(),
      () => undefined,
    ); // what an abort leaves behind is freed when it arrives
    throw e;
  });
}

async function open(
  source: string,
  device: DeviceName,
  dtype: 'f32' | 'bf16',
  options: LoadOptions,
): Promise<Encoder> {
  source = checkpointOf(source);
  const loaded = await loadModel(source, {
    device,
    dtype,
    ...(options.signal ? { signal: options.signal } : {}),
  });
  try {
    const [logScale, bias] = await Promise.all([
      loaded.model.logitScale.item(),
      loaded.model.logitBias.item(),
    ]);
    return new Encoder(source, loaded, Math.exp(logScale), bias, options);
  } catch (e) {
    loaded.model.dispose();
    throw e;
  }
}

/** A loaded model. `dispose()` it, or declare it with `using`. Made by `load`. */
export class Encoder {
  #loaded: LoadedModel | undefined;
  #tokenizer: Promise<GemmaTokenizer> | undefined;
  readonly #vision: VisionInput;
  /** Values of an embedding, E. */
  readonly dim: number;
  /** Side of the model's square input, in pixels; null for NaFlex models, which keep the aspect ratio. */
  readonly imageSize: number | null;
  /** Token ids of a text, padding included. */
  readonly textLength: number;

  readonly #options: LoadOptions;

  /**
   * @param source where it came from
   * @param scale t, not its logarithm
   */
  constructor(
    readonly source: string,
    loaded: LoadedModel,
    readonly scale: number,
    readonly bias: number,
    options: LoadOptions = {},
  ) {
    this.#options = options;
    this.#loaded = loaded;
    const { embed, vision, text, naflex } = loaded.model.config;
    [this.dim, this.imageSize, this.textLength] = [
      embed,
      naflex ? null : vision.imageSize,
      text.length,
    ];
    this.#vision = makeVisionInput(loaded, options.processor, options.maxPatches);
  }

  /** How images become pixels. */
  get processor(): Processor {
    return this.#vision.processor;
  }

  get device(): DeviceName {
    return this.#model.params.device;
  }
  get dtype(): 'f32' | 'bf16' {
    return this.#model.options.dtype;
  }
  get disposed(): boolean {
    return this.#loaded === undefined;
  }

  /**
   * Embeddings of images.
   * @param images one or several: path, URL, file bytes or raw pixels
   * @returns one unit row per image, in order
   * @throws DataError naming the image; the signal's reason
   */
  async encodeImages<T extends OutputType = 'f32'>(
    images: ImageInput | readonly ImageInput[],
    options: EncodeOptions<T> = {},
  ): Promise<Embeddings<T>> {
    const list = asList(images);
    return this.#collect(this.#images(list, options, list.length), options);
  }

  /**
   * Embeddings of texts.
   * @returns one unit row per text, in order
   */
  async encodeTexts<T extends OutputType = 'f32'>(
    texts: string | readonly string[],
    options: EncodeOptions<T> = {},
  ): Promise<Embeddings<T>> {
    const list = checkStrings('encodeTexts', 'texts', typeof texts === 'string' ? [texts] : texts);
    return this.#collect(this.#texts(list, options, list.length), options);
  }

  /**
   * Rows for a stream of images, in its order. At most a few batches are taken from the source ahead of what was
   * consumed. An error ends the stream; a consumer that stops early closes the source.
   */
  async *streamImages<T extends OutputType = 'f32'>(
    source: Iterable<ImageInput> | AsyncIterable<ImageInput>,
    options: EncodeOptions<T> = {},
  ): AsyncGenerator<Row<T>, void, undefined> {
    checkSource('streamImages', source);
    for await (const row of this.#images(source, options, undefined))
      yield convertRow(row, options.output ?? ('f32' as T));
  }

  /** Rows for a stream of texts; as `streamImages`. */
  async *streamTexts<T extends OutputType = 'f32'>(
    source: Iterable<string> | AsyncIterable<string>,
    options: EncodeOptions<T> = {},
  ): AsyncGenerator<Row<T>, void, undefined> {
    checkSource('streamTexts', source);
    for await (const row of this.#texts(source, options, undefined))
      yield convertRow(row, options.output ?? ('f32' as T));
  }

  /** Every image against every text. */
  async similarity(
    images: Embeddings<OutputType>,
    texts: Embeddings<OutputType>,
  ): Promise<Similarity> {
    for (const x of [images, texts]) {
      if (!(x instanceof Embeddings))
        throw new ConfigError(
          `similarity: both must be Embeddings, as encodeImages and encodeTexts give, but one is ` +
            kindOf(x),
        );
      if (x.dim !== this.dim)
        throw new ConfigError(
          `similarity: embeddings of this model have ${this.dim} values but these have ${x.dim}`,
        );
    }
    return similarity(images, texts, this.scale, this.bias, this.device);
  }

  /**
   * Which labels fit each image: probabilities that image and label belong together, each label judged by itself.
   * @returns for every image all labels, most probable first
   */
  async zeroShot(
    images: ImageInput | readonly ImageInput[],
    labels: readonly string[],
    options: ZeroShotOptions = {},
  ): Promise<LabelScore[][]> {
    checkOptions('zeroShot', options, ZERO_SHOT_KEYS);
    if (checkStrings('zeroShot', 'labels', labels).length === 0)
      throw new ConfigError('zeroShot: there are no labels');
    const { language: _, templates: __, ...rest } = options;
    const texts = await this.encodeLabels(labels, options);
    const rows = await this.encodeImages(images, rest);
    const scores = await this.similarity(rows, texts);
    return Array.from({ length: rows.rows }, (_, i) => ranked(scores, i, labels));
  }

  /** One unit row per label: the mean of its prompts' embeddings. */
  async encodeLabels(
    labels: readonly string[],
    options: ZeroShotOptions = {},
  ): Promise<Embeddings<'f32'>> {
    checkOptions('encodeLabels', options, ZERO_SHOT_KEYS);
    checkStrings('encodeLabels', 'labels', labels);
    const { language = 'en', templates, onProgress: _, ...rest } = options;
    const prompts = promptTemplates(language, templates);
    const all = await this.encodeTexts(
      labels.flatMap((label) => prompts.map((p) => p.replaceAll('{label}', label))),
      rest,
    );
    return new Embeddings(
      meanRows(all.toFloat32(), this.dim, prompts.length),
      labels.length,
      this.dim,
      'f32',
    );
  }

  /** Dense features of images, each with the grid it lies on. */
  async tokens(
    images: ImageInput | readonly ImageInput[],
    options: Omit<EncodeOptions, 'output' | 'onBadImage'> = {},
  ): Promise<DenseFeatures[]> {
    checkOptions('tokens', options, ['batchSize', 'signal', 'onProgress']);
    const list = asList(images);
    const dim = this.#model.config.vision.width;
    const grids: [rows: number, columns: number][] = [];
    const rows = this.#stream(
      list,
      (image, i) => this.#pixels(image, i, options),
      (batch) => () => {
        for (const item of batch) grids.push(this.#vision.grid(item));
        return this.#vision.tokens(this.#model, batch);
      },
      (item) => this.#vision.grid(item).reduce((a, b) => a * b, dim),
      8,
      options,
      list.length,
    );
    const features: DenseFeatures[] = [];
    for await (const data of rows) {
      const [down, across] = grids[features.length]!;
      features.push({ data: data.slice(), rows: down, columns: across, dim });
    }
    return features;
  }

  /**
   * What images show, in the words of the checkpoint's caption decoder: one lower-case text per image. Released
   * checkpoints have no decoder; those that training writes have one where `model.decoder` was trained.
   * @throws ConfigError when there is no decoder; otherwise as `encodeImages`
   */
  caption(
    images: ImageInput | readonly ImageInput[],
    options: DescribeOptions = {},
  ): Promise<string[]> {
    return describe(
      'caption',
      this.#describer,
      asList(images),
      options,
      ({ model, words, tokens, options: o }) => captionImages(model, words, tokens, o),
    );
  }

  /**
   * Where in each image a phrase is, by the checkpoint's caption decoder. It writes one box for whatever it is asked,
   * also for what is not there: `zeroShot` says whether it is.
   * @param phrases one for all images, or one each
   * @returns null where what the decoder wrote is no box
   * @throws as `caption`
   */
  async locate(
    images: ImageInput | readonly ImageInput[],
    phrases: string | readonly string[],
    options: DescribeOptions = {},
  ): Promise<(Location | null)[]> {
    const list = asList(images),
      wanted = phrasesFor(phrases, list.length);
    return describe(
      'locate',
      this.#describer,
      list,
      options,
      async ({ model, words, tokens, items, options: o }) => {
        const boxes = await boxesOfPhrases(
          model,
          words,
          tokens,
          items.map(({ index }) => wanted[index]!),
          o,
        );
        return boxes.map((box, i) => location(box, items[i]!.width, items[i]!.height));
      },
    );
  }

  /** Frees the model's memory. Calls that are still running reject. Safe to call twice. */
  dispose(): void {
    this.#loaded?.model.dispose();
    this.#loaded = undefined;
  }
  [Symbol.dispose](): void {
    this.dispose();
  }

  get #open(): LoadedModel {
    if (!this.#loaded)
      throw new DeviceError('the encoder was used after it was disposed', 'ERR_DISPOSED');
    return this.#loaded;
  }
  get #model(): LoadedModel['model'] {
    return this.#open.model;
  }
  get #describer(): Describer {
    return {
      vision: this.#vision,
      open: () => this.#open,
      words: () => this.#tokenizerReady(),
      decode: (input, signal, use) => this.#decoded(input, signal, use),
    };
  }

  async #collect<T extends OutputType>(
    rows: AsyncIterable<Float32Array>,
    options: EncodeOptions<T>,
  ): Promise<Embeddings<T>> {
    const all: Float32Array[] = [];
    for await (const row of rows) all.push(row);
    return Embeddings.from(all, this.dim, options.output);
  }

  #images(
    source: Iterable<ImageInput> | AsyncIterable<ImageInput>,
    options: EncodeOptions,
    total: number | undefined,
  ): AsyncGenerator<Float32Array> {
    checkOptions('encodeImages', options, ENCODE_KEYS);
    return this.#stream(
      source,
      (image, i) => this.#pixels(image, i, options),
      (batch) => () => this.#vision.encode(this.#model, batch),
      () => this.dim,
      8,
      options,
      total,
    );
  }

  #texts(
    source: Iterable<string> | AsyncIterable<string>,
    options: EncodeOptions,
    total: number | undefined,
  ): AsyncGenerator<Float32Array> {
    checkOptions('encodeTexts', options, ENCODE_KEYS);
    return this.#stream(
      source,
      async (text) => {
        if (typeof text !== 'string')
          throw new DataError(
            `a text must be a string but is ${text === null ? 'null' : typeof text}`,
          );
        return text;
      },
      async (batch) => {
        const ids = await (await this.#tokenizerReady()).encodeBatch(batch);
        return () =>
          this.#model.encodeTexts(tensor(ids, [batch.length, this.textLength], this.device));
      },
      () => this.dim,
      32,
      options,
      total,
    );
  }

  /**
   * Prepare, batch, compute, read: one f32 row of `width(item)` values per input, NaN where prepare gave null. `ready` gives
   * what enqueues a batch.
   */
  #stream<T, U>(
    source: Iterable<T> | AsyncIterable<T>,
    prepare: (item: T, index: number) => Promise<U>,
    ready: (batch: U[]) => (() => Tensor) | Promise<() => Tensor>,
    width: (item: U) => number,
    usual: number,
    options: EncodeOptions,
    total: number | undefined,
  ): AsyncGenerator<Float32Array, void, undefined> {
    const { batchSize: size = usual, output = 'f32', signal, onProgress } = options;
    checkCount('batchSize', size);
    if (!OUTPUT_TYPES.includes(output))
      throw new ConfigError(
        `output must be ${OUTPUT_TYPES.join(', ')} but is ${JSON.stringify(output)}`,
      );
    const device = this.device;
    let done = 0;
    const run = async (batch: U[]): Promise<Float32Array[]> => {
      const encode = await ready(batch);
      const rows = scope(() => noGrad(() => batchInvariant(device, encode)));
      let data: Float32Array;
      try {
        data = (await rows.read()) as Float32Array;
      } finally {
        rows.dispose();
      }
      done += batch.length;
      onProgress?.(done, total);
      let at = 0;
      return batch.map((item) => {
        const row = data.subarray(at, (at += width(item)));
        return item === null ? row.fill(NaN) : row;
      });
    };
    return inBatches(source, { size, ahead: 2 * size, prepare, run, signal });
  }

  /** An input's pixels; null when it is bad and the caller wants to know and go on. */
  async #pixels(
    input: ImageInput,
    index: number,
    { signal, onBadImage }: EncodeOptions,
  ): Promise<Prepared | null> {
    try {
      return await this.#decoded(input, signal, (image) => this.#vision.prepare(image));
    } catch (e) {
      if (!onBadImage || signal?.aborted || !isBadFile(e)) throw e;
      onBadImage(e, index);
      return null;
    }
  }

  #decoded<T>(
    input: ImageInput,
    signal: AbortSignal | undefined,
    use: (image: RawImage) => Promise<T>,
  ): Promise<T> {
    const { alpha, maxPixels } = this.#options;
    return useDecoded(
      input,
      { signal, ...(alpha ? { alpha } : {}), ...(maxPixels ? { maxPixels } : {}) },
      use,
    );
  }

  #tokenizerReady(): Promise<GemmaTokenizer> {
    const { lowercase } = this.#options,
      loaded = this.#open;
    // A failed load may be tried again, after an install say.
    this.#tokenizer ??= tokenizerOf(lowercase ? { ...loaded, lowercase } : loaded).catch(
      (e: unknown) => {
        this.#tokenizer = undefined;
        throw e;
      },
    );
    return this.#tokenizer;
  }
}
