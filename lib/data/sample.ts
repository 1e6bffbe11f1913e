/** A sample of a collection, its captions, and the collection: byte ranges and no content. */
import { DataError } from '../errors.js';
import { captionsFromJson, captionsFromText, type ParsedCaptions } from './captions.js';
import type { EmojiClass } from './datasets/emoji.js';
import type { FileReader, Location } from './files.js';
import { Fingerprint } from './fingerprint.js';
import type { Mixture } from './mixture.js';
import { SkipCounter, type Tolerance } from './skips.js';
import { NotText } from './text.js';

/** Where a sample's captions are, and how they are written. */
export interface CaptionLocation extends Location {
  format: 'json' | 'txt';
  /** The JSON itself, where it has no byte range of its own: in tables. */
  inline?: string;
  /** The key in the JSON that has the captions, where it is not one of the usual ones. */
  as?: string;
}

/** One sample of a collection. */
export interface Sample {
  /** Position in the collection, 0 .. length-1. */
  index: number;
  /** Name, unique within its file. */
  key: string;
  image: Location;
  captions: CaptionLocation;
  /** Language of captions that do not say theirs. */
  language: string;
  /** Drawn from a mixture: the language its caption is to be in. */
  draw?: string;
  /** Class id, where the collection has classes (`class` in the sample's JSON). */
  class?: number;
  /** A grey image with the number of the object at each pixel, where there is one (`<key>.mask.png`). */
  mask?: Location;
}

/** An indexed local collection of samples. Made by `openSource`. */
export class SampleSource {
  /** What was skipped while indexing; the loader counts on from here. */
  readonly skips: SkipCounter;
  /** All usable samples, in the order of the files. */
  readonly samples: Sample[] = [];
  /** Captions by language. */
  readonly languages = new Map<string, number>();
  /** Languages of each sample's captions; samples with the same ones share a list. */
  readonly sampleLanguages: (readonly string[])[] = [];
  /** Of a mixture: what is drawn from it. */
  mixture: Mixture | undefined;
  /** Of the samples, as they are added. */
  readonly fingerprint = new Fingerprint();
  /** The classes, where the collection says what they are called. */
  classes: EmojiClass[] | undefined;

  /** @param name the collection in error messages, usually its path */
  constructor(
    readonly name: string,
    maxSkips?: Tolerance,
    note?: (message: string) => void,
  ) {
    this.skips = new SkipCounter(maxSkips, note);
  }

  /** Number of usable samples. */
  get length(): number {
    return this.samples.length;
  }

  /** Number of captions over all samples and languages. */
  get captionCount(): number {
    let total = 0;
    for (const count of this.languages.values()) total += count;
    return total;
  }

  /** Sample `index` (0 .. length-1). Throws DataError when it is out of range. */
  at(index: number): Sample {
    const sample = this.samples[index];
    if (sample === undefined)
      throw new DataError(`${this.name}: no sample ${index} among ${this.length}`);
    return sample;
  }
}

/** Captions that cannot be read. */
export class CaptionError extends DataError {
  /** @param reason as it is called in the count of skips */
  constructor(readonly reason: string, message: string, options?: ErrorOptions) { super(message, options); }
}

/**
 * A sample's captions and metadata, read from disk. Throws CaptionError, DataError or IoError naming the file.
 */
export function readCaptions(
  reader: FileReader,
  sample: Pick<Sample, 'key' | 'captions' | 'language'>,
): ParsedCaptions {
  const { captions, language } = sample;
  const data = captions.inline === undefined ? reader.read(captions) : Buffer.from(captions.inline);
  try {
    return captions.format === 'txt' ? captionsFromText(data, language) : captionsFromJson(data, language, captions.as);
  } catch (cause) {
    const reason = `captions are not ${cause instanceof NotText ? 'UTF-8' : 'valid JSON'}`;
    throw new CaptionError(reason, `${captions.path}: the ${reason.replace('are', `of ${sample.key} are`)}: ${(cause as Error).message}`, { cause });
  }
}

/** File and key of a sample, as errors and skips name it. */
export function describeSample(sample: Pick<Sample, 'key' | 'image'>): string {
  return sample.image.size < 0 ? sample.image.path : `${sample.image.path}:${sample.key}`;
}
