/** A sample of a collection, its captions, and the collection: byte ranges and no content. */
import { DataError } from '../errors.js';
import type { FileReader, Location } from '../io/reader.js';
import { captionsFromJson, captionsFromText, type ParsedCaptions } from '../text/captions.js';
import { NotText } from '../text/decode_text.js';

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

/** Captions that cannot be read. */
export class CaptionError extends DataError {
  /** @param reason as it is called in the count of skips */
  constructor(
    readonly reason: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
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
    return captions.format === 'txt'
      ? captionsFromText(data, language)
      : captionsFromJson(data, language, captions.as);
  } catch (cause) {
    const reason = `captions are not ${cause instanceof NotText ? 'UTF-8' : 'valid JSON'}`;
    throw new CaptionError(
      reason,
      `${captions.path}: the ${reason.replace('are', `of ${sample.key} are`)}: ${(cause as Error).message}`,
      { cause },
    );
  }
}

/** File and key of a sample, as errors and skips name it. */
export function describeSample(sample: Pick<Sample, 'key' | 'image'>): string {
  return sample.image.size < 0 ? sample.image.path : `${sample.image.path}:${sample.key}`;
}
