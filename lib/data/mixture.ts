/** What is drawn from a collection made of several, with an account of every draw. */

import { ConfigError, DataError } from '../errors.js';
import type { CaptionChoice } from '../text/captions.js';
import { type Cell, cellShares, MixtureOrder, totals } from './mixture_order.js';
import type { Sample } from './sample.js';
import type { SamplerOptions } from './sampler.js';
import type { MixtureSpec } from './spec.js';

/** What a mixture asks of a collection. */
interface Samples {
  readonly length: number;
  at(index: number): Sample;
  readonly sampleLanguages: readonly (readonly string[])[];
}

/** Draws so far, exact: what is in the batches, stand-ins for unusable samples included. */
export interface Drawn {
  sources: Record<string, number>;
  languages: Record<string, number>;
}

/** A loader's account in its checkpointed state: share and draws so far of each `source/language`. */
export type MixtureState = Record<string, { share: number; drawn: number }>;

/** What is drawn from a mixture: entries, each one sample in one language. */
export class Mixture {
  readonly cells: Cell[] = [];
  /** Of each cell; they add up to 1. */
  readonly shares: Float64Array;
  /** Sample and cell of each entry. */
  readonly #samples: Int32Array;
  readonly #cells: Int32Array;

  readonly #whole: Samples;

  /**
   * @param names of the sources
   * @param whole all samples, source by source
   * @param sizes samples of each source
   * @throws ConfigError when quotas and weights cannot hold
   */
  constructor(
    readonly names: readonly string[],
    whole: Samples,
    sizes: readonly number[],
    spec: MixtureSpec,
  ) {
    this.#whole = whole;
    const given = spec.sources.map(({ weight }) => weight);
    const members: number[][] = [];
    let first = 0;
    sizes.forEach((size, source) => {
      const byLanguage = new Map<string, number[]>();
      for (let i = first; i < first + size; i++)
        for (const language of whole.sampleLanguages[i]!) {
          const list = byLanguage.get(language);
          if (list) list.push(i);
          else byLanguage.set(language, [i]);
        }
      for (const language of [...byLanguage.keys()].sort()) {
        const list = byLanguage.get(language)!;
        this.cells.push({ source, language, count: list.length });
        members.push(list);
      }
      first += size;
    });
    const weights = given.every((w) => w === undefined) ? undefined : given.map((w) => w ?? NaN);
    this.shares = cellShares(this.cells, names, weights, spec.languages ?? {});
    this.#samples = Int32Array.from(members.flat());
    this.#cells = Int32Array.from(members.flatMap((list, c) => list.map(() => c)));
  }

  /** Number of entries. */
  get length(): number {
    return this.#samples.length;
  }

  /** The sample of an entry, with the language that its caption is to be in. */
  sample(entry: number): Sample {
    return {
      ...this.#whole.at(this.#samples[entry]!),
      draw: this.cells[this.#cells[entry]!]!.language,
    };
  }

  /**
   * Options that make a sampler draw from the mixture. No sample comes twice in a batch, nor with `uniqueBy` any class.
   * @param classes of the samples; negative means none
   * @throws ConfigError when a batch would need more samples of a cell than there are
   */
  samplerOptions({ batchSize, seed, uniqueBy, classes }: SamplerOptions): SamplerOptions {
    if (uniqueBy !== undefined && classes === undefined)
      throw new ConfigError('uniqueBy "class" needs samples with classes; this mixture has none');
    const lack = this.cells.findIndex(({ count }, c) => this.shares[c]! * batchSize > count);
    if (lack >= 0) {
      const { source, language, count } = this.cells[lack]!;
      throw new ConfigError(
        `mixture: a batch of ${batchSize} needs ${(this.shares[lack]! * batchSize).toFixed(1)} samples ` +
          `in ${language} from ${this.names[source]} but there are ${count}; lower its quota, the temperature or the batch`,
      );
    }
    const unique = uniqueBy === undefined ? undefined : classes;
    const kinds = unique?.reduce((most, id) => Math.max(most, id + 1), 0) ?? 0;
    const ids = this.#samples.map((sample) => {
      const id = unique?.[sample] ?? -1;
      return id >= 0 ? id : kinds + sample;
    });
    const counts = Int32Array.from(this.cells, ({ count }) => count);
    // An epoch is as many draws as there are samples, or several times that where it would be a few batches only.
    const length = this.#whole.length * Math.ceil((8 * batchSize) / this.#whole.length);
    const order = new MixtureOrder(counts, this.shares, length, seed);
    return {
      batchSize,
      seed,
      uniqueBy: 'class',
      classes: ids,
      groups: this.#cells,
      order: (epoch) => order.epoch(epoch),
    };
  }

  /** Throws ConfigError when captions are chosen by language elsewhere too. */
  checkCaptions({ pick = ['any'], languages }: CaptionChoice): void {
    if (languages !== undefined || pick.some((entry) => entry !== 'any'))
      throw new ConfigError(
        'captions: the quotas of a mixture choose the language, so pick can only be "any" and ' +
          'languages must be absent; a quota of 0 leaves a language out',
      );
  }

  /** A fresh account of draws. */
  account(): DrawAccount {
    return new DrawAccount(this, this.#cells);
  }

  /** One line: the sources and languages with their shares, the largest first. */
  describe(): string {
    const list = (shares: Map<string, number>): string => {
      const sorted = [...shares].filter(([, share]) => share > 0).sort((a, b) => b[1] - a[1]);
      const rest = sorted.slice(8).reduce((sum, [, share]) => sum + share, 0);
      return [
        ...sorted.slice(0, 8),
        ...(rest > 0 ? [[`${sorted.length - 8} more`, rest] as const] : []),
      ]
        .map(([name, share]) => `${name} ${(100 * share).toFixed(1)} %`)
        .join(', ');
    };
    return (
      `mixture: ${list(totals(this.cells, this.shares, ({ source }) => this.names[source]!))}; ` +
      list(totals(this.cells, this.shares, ({ language }) => language))
    );
  }
}

/** Counts what was drawn. */
export class DrawAccount {
  readonly #drawn: Float64Array;

  readonly #mixture: Mixture;
  readonly #cellOf: Int32Array;

  /** @param cellOf cell of each entry */
  constructor(mixture: Mixture, cellOf: Int32Array) {
    this.#mixture = mixture;
    this.#cellOf = cellOf;
    this.#drawn = new Float64Array(mixture.cells.length);
  }

  /** Counts the entries of a batch. */
  add(entries: Int32Array): void {
    for (const entry of entries) this.#drawn[this.#cellOf[entry]!]!++;
  }

  get drawn(): Drawn {
    const { cells, names } = this.#mixture;
    return {
      sources: Object.fromEntries(totals(cells, this.#drawn, ({ source }) => names[source]!)),
      languages: Object.fromEntries(
        [...totals(cells, this.#drawn, ({ language }) => language)].filter(([, n]) => n > 0),
      ),
    };
  }

  get state(): MixtureState {
    const { shares } = this.#mixture;
    return Object.fromEntries(
      this.#keys().map((key, c) => [key, { share: shares[c]!, drawn: this.#drawn[c]! }]),
    );
  }

  /** Goes on counting from a state. Throws DataError when it is of another mixture. */
  restore(state: MixtureState | undefined): void {
    const keys = this.#keys();
    const other = keys.find((key, c) => state?.[key]?.share !== this.#mixture.shares[c]);
    if (state === undefined || other !== undefined || Object.keys(state).length !== keys.length)
      throw new DataError(
        'the data state was saved with another mixture' +
          `${other === undefined ? '' : `: ${other} had a share of ${state?.[other]?.share ?? 'nothing'}`}; ` +
          'resume with the same sources, weights and quotas, or start a new run',
      );
    keys.forEach((key, c) => {
      this.#drawn[c] = state[key]!.drawn;
    });
  }

  #keys(): string[] {
    return this.#mixture.cells.map(
      ({ source, language }) => `${this.#mixture.names[source]}/${language}`,
    );
  }
}
