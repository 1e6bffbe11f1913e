/** What tells one collection from another for a run that continues: its samples in their order, and their captions. */
import { createHash, type Hash } from 'node:crypto';
import type { Caption } from '../text/captions.js';

/** Samples whose text is hashed at a time. */
const BATCH = 256;

/** A fingerprint as it stands in a training state. */
export interface CollectionMark {
  samples: number;
  /** Hash of the keys in order. */
  keys: string;
  /** Hash of the captions and classes in order. */
  captions: string;
}

/** Two running hashes, fed while a collection is indexed. Paths, sizes and times of files do not count, so data may move. */
export class Fingerprint {
  readonly #keys = createHash('sha256');
  readonly #captions = createHash('sha256');
  #waiting: [keys: string[], captions: string[]] = [[], []];
  #samples = 0;

  /** @param language of captions that do not say theirs */
  add(key: string, captions: readonly Caption[], language: string, label?: number): void {
    this.#waiting[0].push(JSON.stringify(key));
    this.#waiting[1].push(
      JSON.stringify([language, label ?? -1, captions.map(({ lang, text }) => [lang, text])]),
    );
    if (++this.#samples % BATCH === 0) this.#flush();
  }

  /** Adds the samples of another collection behind these. */
  append(part: CollectionMark): void {
    this.#flush();
    this.#keys.update(part.keys);
    this.#captions.update(part.captions);
    this.#samples += part.samples;
  }

  #flush(): void {
    const [keys, captions] = this.#waiting;
    this.#keys.update(keys.join('\n'));
    this.#captions.update(captions.join('\n'));
    this.#waiting = [[], []];
  }

  get mark(): CollectionMark {
    this.#flush();
    const digest = (hash: Hash): string => hash.copy().digest('hex').slice(0, 32);
    return { samples: this.#samples, keys: digest(this.#keys), captions: digest(this.#captions) };
  }
}
