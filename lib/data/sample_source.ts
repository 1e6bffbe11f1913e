/** A collection: where its samples are, and no content. */
import { DataError } from '../errors.js';
import { SkipCounter, type Tolerance } from '../fs/skips.js';
import type { EmojiClass } from './datasets/emoji_captions.js';
import { Fingerprint } from './fingerprint.js';
import type { Mixture } from './mixture.js';
import type { Sample } from './sample.js';

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
