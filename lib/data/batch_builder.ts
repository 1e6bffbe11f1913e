/**
 * Making batches: reading, decoding, augmenting, choosing captions, tokenising. The same code runs
 * in a worker thread and, with no workers, in the main thread; it gets its work and gives its
 * results as messages.
 */
import { DataError, IoError, Siglip2Error } from '../errors.js';
import { Lru } from '../fs/lru.js';
import { applyTransforms, type ImageTransform, wantsAlpha } from '../image/augment.js';
import { type AlphaMode, decodeImage, premultiply, type RawImage } from '../image/image.js';
import { type NaflexImage, naflexImage, packNaflex } from '../image/naflex.js';
import { emptyViews, makeViews, type ViewsConfig, viewTargets } from '../image/views.js';
import { FileReader } from '../io/reader.js';
import { resizeImage } from '../native.js';
import { Random, Stream } from '../random.js';
import {
  type Caption,
  type CaptionChoice,
  type CaptionGroups,
  chooseCaptions,
  groupCaptions,
} from '../text/captions.js';
import { parseRegions, type Region, sampleRegions } from '../text/regions.js';
import {
  type DecoderSequence,
  type DecoderTargets,
  decoderSequences,
  type SequenceContent,
} from '../text/sequences.js';
import { type GemmaTokenizer, loadTokenizer, type TokenizerOptions } from '../text/tokenizer.js';
import { VocabMap } from '../text/vocab.js';
import type { BuiltBatch } from './batch.js';
import { type NaflexTargets, naflexLength } from './naflex_lengths.js';
import { describeSample, readCaptions, type Sample } from './sample.js';

/** What a builder needs to know; plain data, so that it can go to a thread. */
export interface BuilderConfig {
  seed: number;
  /** Side S of the images. */
  size: number;
  transforms: ImageTransform[];
  alpha: AlphaMode;
  maxPixels?: number;
  /** Decoded images kept, bytes; an eighth of it goes to captions on top. */
  cacheBytes: number;
  captions: CaptionChoice;
  /** undefined: no ids are made. */
  tokenizer: (Omit<TokenizerOptions, 'vocab'> & { vocab?: unknown }) | undefined;
  /** Whether samples have classes. */
  classes: boolean;
  /** Augmented views for self-distillation, beside the images. */
  views?: ViewsConfig;
  /** Other sides at which the images are wanted as well. */
  sizes?: readonly number[];
  /** Sequences for the caption decoder; undefined: none. */
  decoder?: DecoderTargets;
  /** Patches of aspect-preserving images instead of square images. */
  naflex?: NaflexTargets;
}

/** Work for a builder. */
export type BuilderRequest =
  /** `visit` tells a sample's comings apart: the epoch, or in a mixture, where it may come often in one, the batch. */
  | { type: 'build'; index: number; visit: number; samples: Sample[] }
  /** Stand-ins for samples that were reported as failed. */
  | { type: 'replace'; index: number; slots: number[]; samples: Sample[] };

/** A sample that cannot be used. */
export interface SampleFailure {
  slot: number;
  reason: string;
  /** File and key, and what is wrong. */
  message: string;
}

/** What a builder answers. */
export type BuilderReply =
  | { type: 'failed'; index: number; failures: SampleFailure[] }
  | { type: 'batch'; index: number; batch: BuiltBatch }
  | { type: 'error'; index: number; code: string; message: string };

/** What a builder is doing, for the message when it hangs or dies. Index into `stageNames`. */
export const Stage = {
  idle: 0,
  start: 1,
  read: 2,
  decode: 3,
  transform: 4,
  captions: 5,
  tokenize: 6,
} as const;
/** Words for the stages. */
export const stageNames: readonly string[] = [
  'waiting for work',
  'loading the tokenizer',
  'reading the image',
  'decoding the image',
  'augmenting the image',
  'reading captions',
  'tokenising',
];
/** Cells of the progress array shared between a builder and the loader. */
export const Progress = { stage: 0, sample: 1, ticks: 2, length: 3 } as const;

/** A batch in the making. */
interface Draft extends BuiltBatch {
  visit: number;
  /** What the decoder's sequences are to say: aref, gcap and cap of each sample. */
  contents: (SequenceContent | null)[][];
  /** NaFlex images as far as they are made, and the most patches of one. */
  patches: NaflexImage[];
  tokens: number;
}

/** What a sample says of its image. */
interface Described {
  captions: readonly Caption[];
  groups: CaptionGroups;
  regions: Region[];
}

/** Builds batches one after the other, in the order of the requests. */
export class Builder {
  readonly #reader = new FileReader();
  readonly #cache: Lru<number, RawImage>;
  readonly #captionCache: Lru<number, Described>;
  readonly #drafts = new Map<number, Draft>();
  readonly #perImage: number;
  #tokenizer: Promise<GemmaTokenizer> | undefined;
  #queue: Promise<void> = Promise.resolve();

  readonly #config: BuilderConfig;
  readonly #progress: Int32Array;
  readonly #post: (reply: BuilderReply, transfer: ArrayBuffer[]) => void;

  /**
   * @param progress (Progress.length) cells that tell the loader what is being done
   * @param post where the replies go, with the buffers to move rather than copy
   */
  constructor(
    config: BuilderConfig,
    progress: Int32Array,
    post: (reply: BuilderReply, transfer: ArrayBuffer[]) => void,
  ) {
    this.#config = config;
    this.#progress = progress;
    this.#post = post;
    this.#cache = new Lru(config.cacheBytes);
    this.#captionCache = new Lru(config.cacheBytes / 8);
    this.#perImage = config.captions.pick?.length ?? 1;
  }

  /** Takes a request; the reply comes through `post`. */
  handle(request: BuilderRequest): void {
    this.#queue = this.#queue.then(async () => {
      try {
        await this.#work(request);
      } catch (error) {
        this.#drafts.delete(request.index);
        const code = error instanceof Siglip2Error ? error.code : 'ERR_DATA';
        this.#post(
          { type: 'error', index: request.index, code, message: (error as Error).message },
          [],
        );
      } finally {
        this.#mark(Stage.idle, -1);
      }
    });
  }

  /** Closes files. */
  close(): void {
    this.#reader.close();
  }

  #mark(stage: number, sample: number): void {
    Atomics.store(this.#progress, Progress.stage, stage);
    Atomics.store(this.#progress, Progress.sample, sample);
    Atomics.add(this.#progress, Progress.ticks, 1);
  }

  async #work(request: BuilderRequest): Promise<void> {
    const perImage = this.#perImage,
      config = this.#config;
    let draft: Draft;
    let slots: number[];
    if (request.type === 'build') {
      const size = request.samples.length;
      draft = {
        visit: request.visit,
        images: new Uint8Array(config.naflex ? 0 : size * config.size * config.size * 3),
        patches: [],
        tokens: config.naflex ? naflexLength(config.seed, request.index, config.naflex) : 0,
        ids: new Int32Array(0),
        keys: new Array<string>(size).fill(''),
        langs: new Array<string>(size * perImage).fill(''),
        texts: new Array<string>(size * perImage).fill(''),
        samples: new Int32Array(size),
        contents: config.decoder ? [0, 1, 2].map(() => new Array<null>(size).fill(null)) : [],
        ...(config.classes ? { classes: new Int32Array(size) } : {}),
        ...(config.views ? { views: emptyViews(config.views, size) } : {}),
        ...(config.sizes
          ? { resized: config.sizes.map((side) => new Uint8Array(size * side * side * 3)) }
          : {}),
      };
      slots = request.samples.map((_, i) => i);
      this.#drafts.set(request.index, draft);
    } else {
      draft = this.#drafts.get(request.index) as Draft;
      slots = request.slots;
    }
    const failures: SampleFailure[] = [];
    for (let i = 0; i < slots.length; i++) {
      const sample = request.samples[i] as Sample;
      const slot = slots[i] as number;
      try {
        await this.#fill(draft, slot, sample);
      } catch (error) {
        // A DataError concerns this sample alone; anything else (a failing disk, a bug) stops the
        // run.
        if (!(error instanceof DataError)) throw named(error, sample);
        const stage = Atomics.load(this.#progress, Progress.stage);
        failures.push({ slot, reason: REASONS[stage] ?? 'unusable', message: error.message });
      }
    }
    if (failures.length > 0) {
      this.#post({ type: 'failed', index: request.index, failures }, []);
      return;
    }
    if (config.tokenizer !== undefined) await this.#tokenize(draft);
    if (config.decoder !== undefined)
      draft.sequences = await this.#sequences(draft.contents, config.decoder);
    if (config.naflex !== undefined)
      draft.naflex = { ...packNaflex(draft.patches), length: draft.tokens };
    this.#drafts.delete(request.index);
    const { visit: _, contents: __, patches: ___, tokens: ____, ...batch } = draft;
    const transfer = [
      batch.images,
      batch.ids,
      batch.samples,
      ...(batch.classes ? [batch.classes] : []),
      ...(batch.naflex ? [batch.naflex.patches] : []),
      ...(batch.resized ?? []),
      ...(batch.views ? [batch.views.globalViews, batch.views.localViews, batch.views.masks] : []),
    ];
    this.#post(
      { type: 'batch', index: request.index, batch },
      transfer.map(({ buffer }) => buffer as ArrayBuffer),
    );
  }

  /** Puts one sample into its place. */
  async #fill(draft: Draft, slot: number, sample: Sample): Promise<void> {
    const perImage = this.#perImage,
      config = this.#config;
    const size = draft.keys.length;
    const pixels = config.size * config.size * 3;

    this.#mark(Stage.captions, sample.index);
    const described = this.#describe(sample);
    const choice =
      sample.draw === undefined
        ? config.captions
        : { ...config.captions, languages: [sample.draw] };
    const chosen = chooseCaptions(
      sample.draw === undefined ? described.groups : groupCaptions(described.captions, choice),
      choice,
      new Random(config.seed, Stream.caption, draft.visit, sample.index),
    );
    if (chosen === undefined)
      throw new DataError(`${describeSample(sample)}: no caption in the languages wanted`);

    if (config.decoder !== undefined) {
      const random = new Random(config.seed, Stream.decoder, draft.visit, sample.index);
      const pair = sampleRegions(described.regions, random, config.decoder.minScore);
      const region = (task: 'aref' | 'gcap'): SequenceContent | null =>
        pair ? { task, text: pair[task].phrase, box: pair[task].box } : null;
      [region('aref'), region('gcap'), { task: 'cap' as const, text: chosen[0]!.text }].forEach(
        (content, set) => {
          draft.contents[set]![slot] = content;
        },
      );
    }
    const image = await this.#image(sample);
    this.#mark(Stage.transform, sample.index);
    if (config.naflex !== undefined) {
      draft.patches[slot] = naflexImage(image, config.naflex.patch, draft.tokens);
    } else {
      const made = draft.images.subarray(slot * pixels, (slot + 1) * pixels);
      applyTransforms(
        image,
        config.transforms,
        config.size,
        new Random(config.seed, Stream.augment, draft.visit, sample.index),
        resizeImage,
        made,
      );
      config.sizes?.forEach((side, k) =>
        draft.resized![k]!.set(
          resizeImage(made, config.size, config.size, 3, side, side),
          slot * side * side * 3,
        ),
      );
    }
    if (draft.views !== undefined && config.views !== undefined) {
      makeViews(
        image,
        config.views,
        { seed: config.seed, epoch: draft.visit, sample: sample.index },
        resizeImage,
        viewTargets(draft.views, slot, config.views),
      );
    }

    draft.keys[slot] = sample.key;
    draft.samples[slot] = sample.index;
    if (draft.classes !== undefined) draft.classes[slot] = sample.class ?? -1;
    for (let k = 0; k < perImage; k++) {
      const caption = chosen[k] as { lang: string; text: string };
      draft.langs[k * size + slot] = caption.lang;
      draft.texts[k * size + slot] = caption.text;
    }
  }

  #describe(sample: Sample): Described {
    const known = this.#captionCache.get(sample.index);
    if (known !== undefined) return known;
    const { captions, meta } = readCaptions(this.#reader, sample);
    const regions = this.#config.decoder ? parseRegions(meta, describeSample(sample)) : [];
    const described = { captions, groups: groupCaptions(captions, this.#config.captions), regions };
    this.#captionCache.set(
      sample.index,
      described,
      captions.reduce((sum, { text }) => sum + 2 * text.length, 0) +
        regions.reduce((sum, { phrase }) => sum + 2 * phrase.length + 64, 0),
    );
    return described;
  }

  async #sequences(
    contents: (SequenceContent | null)[][],
    { length, boxes }: DecoderTargets,
  ): Promise<(DecoderSequence | null)[][]> {
    const size = contents[0]!.length;
    const all = await decoderSequences(
      await this.#loadedTokenizer(),
      contents.flat(),
      length,
      boxes ? { boxes } : {},
    );
    return contents.map((_, set) => all.slice(set * size, (set + 1) * size));
  }

  async #image(sample: Sample): Promise<RawImage> {
    const config = this.#config;
    const known = this.#cache.get(sample.index);
    if (known !== undefined) return known;
    this.#mark(Stage.read, sample.index);
    const bytes = this.#reader.read(sample.image);
    this.#mark(Stage.decode, sample.index);
    const image = await decodeImage(bytes, describeSample(sample), {
      alpha: wantsAlpha(config.transforms) ? 'keep' : config.alpha,
      // As the encoder does, and the pipeline that the released models were trained with.
      ...(config.maxPixels === undefined ? {} : { maxPixels: config.maxPixels }),
    });
    if (image.channels === 4) premultiply(image.data);
    this.#cache.set(sample.index, image, image.data.length);
    return image;
  }

  async #tokenize(draft: Draft): Promise<void> {
    const tokenizer = await this.#loadedTokenizer();
    this.#mark(Stage.tokenize, -1);
    draft.ids = await tokenizer.encodeBatch(draft.texts);
    draft.cut = await tokenizer.countCut(draft.texts);
  }

  #loadedTokenizer(): Promise<GemmaTokenizer> {
    if (this.#tokenizer === undefined) {
      this.#mark(Stage.start, -1);
      const { vocab, ...options } = this.#config.tokenizer as NonNullable<
        BuilderConfig['tokenizer']
      >;
      this.#tokenizer = loadTokenizer(
        vocab === undefined ? options : { ...options, vocab: VocabMap.fromJSON(vocab) },
      );
    }
    return this.#tokenizer;
  }
}

/** What a failure at a stage is called in the count of skips. */
const REASONS: Record<number, string> = {
  [Stage.read]: 'the image cannot be read',
  [Stage.decode]: 'the image cannot be decoded',
  [Stage.captions]: 'the captions cannot be read or used',
};

/** The error with the sample's name, unless it is there already. */
function named(error: unknown, sample: Sample): Error {
  const message = (error as Error).message;
  const name = describeSample(sample);
  if (message.includes(sample.image.path)) return error as Error;
  return error instanceof Siglip2Error
    ? new Siglip2Error(error.code, `${name}: ${message}`, { cause: error })
    : new IoError(`${name}: ${message}`, { cause: error });
}
