/** Samples left out, by reason: counted, with examples, and an error when there are too many. */
import { ConfigError, DataError } from '../errors.js';

/** How many samples may be skipped: a number of them, or a share such as "2%". */
export type Tolerance = number | string;

/** How often a reason came up, and the first few files it came up for. */
export interface SkipRecord {
  count: number;
  examples: string[];
}

/** A skip as it is listed. */
export interface Skipped {
  /** File and key, or the error that says them. */
  example: string;
  reason: string;
  /** Samples that it stands for, where it is not one. */
  samples?: number;
  /** Of a file that lost its end: more samples than are counted may be gone. */
  uncounted?: boolean;
}

const EXAMPLES = 5;

/** A share as in "2%"; undefined for a number. Throws ConfigError for anything else, naming the option. */
function shareOf(tolerance: Tolerance, option: string): number | undefined {
  if (typeof tolerance === 'number' && tolerance >= 0) return undefined;
  const percent = /^(\d+(?:\.\d+)?)\s*%$/.exec(String(tolerance))?.[1];
  if (percent === undefined || Number(percent) > 100)
    throw new ConfigError(
      `${option} must be a number of samples or a share such as "2%" but is ${JSON.stringify(tolerance)}`,
    );
  return Number(percent) / 100;
}

/** A tolerance from the command line. Throws ConfigError. */
export function parseTolerance(option: string, text: string): Tolerance {
  if (/^\d{1,15}$/.test(text)) return Number(text);
  shareOf(text, option);
  return text;
}

/**
 * Counts skipped samples by reason. Nothing is ever skipped silently: whoever skips calls `add`.
 */
export class SkipCounter {
  /** Reason to count and examples. */
  readonly byReason = new Map<string, SkipRecord>();
  /** By example. */
  readonly #seen = new Map<string, Skipped>();
  #total = 0;
  #uncounted: string | undefined;

  /**
   * @param maxSkips most skips allowed; default 1 % of the samples or 100, whichever is larger
   * @param note is told of the first skip of each kind when it happens, and then of every tenth, hundredth, ...
   */
  constructor(
    readonly maxSkips?: Tolerance,
    readonly note?: (message: string) => void,
  ) {
    if (maxSkips !== undefined) shareOf(maxSkips, 'maxSkips');
  }

  /** Number of skipped samples. */
  get total(): number {
    return this.#total;
  }

  /**
   * Counts `example` (a sample's file and key) once, however often an epoch meets it. @returns
   * whether it was new
   * @param more of what is not one sample
   */
  add(reason: string, example: string, more: Pick<Skipped, 'samples' | 'uncounted'> = {}): boolean {
    if (this.#seen.has(example)) return false;
    const { count } = this.#count({ example, reason, ...more }),
      first = count === (more.samples ?? 1);
    if (first) this.note?.(`skipped: ${reason}: ${example}`);
    else if (/^10+$/.test(String(count))) this.note?.(`skipped so far: ${reason}: ${count}`);
    return true;
  }

  #count(skip: Skipped): SkipRecord {
    const { example, reason, samples = 1, uncounted } = skip;
    this.#seen.set(example, skip);
    let record = this.byReason.get(reason);
    if (record === undefined) this.byReason.set(reason, (record = { count: 0, examples: [] }));
    record.count += samples;
    this.#total += samples;
    if (record.examples.length < EXAMPLES) record.examples.push(example);
    if (uncounted) this.#uncounted ??= example;
    return record;
  }

  /** Counts what another counter counted, and told, too. */
  addAll(other: SkipCounter): void {
    for (const skip of other.#seen.values()) if (!this.#seen.has(skip.example)) this.#count(skip);
  }

  /** Everything that was skipped, in order. */
  entries(): Skipped[] {
    return [...this.#seen.values()];
  }

  /** Throws DataError for a file that lost its end, with nobody knows how many samples, unless a tolerance is given. */
  checkEnds(): void {
    if (this.#uncounted === undefined || this.maxSkips !== undefined) return;
    throw new DataError(
      `${this.#uncounted}; how many samples are lost with its end nobody can say: ` +
        'fetch the file again, leave it out, or set maxSkips (--max-skips) to go on with what is there',
    );
  }

  /**
   * Throws DataError when more samples were skipped than allowed. @param samples size of the whole
   * collection
   */
  check(samples: number, what: string): void {
    this.checkEnds();
    const { maxSkips } = this;
    const share = maxSkips === undefined ? undefined : shareOf(maxSkips, 'maxSkips');
    const limit =
      share !== undefined
        ? Math.floor(samples * share)
        : ((maxSkips as number | undefined) ?? Math.max(100, Math.floor(samples / 100)));
    if (this.#total > limit) {
      throw new DataError(
        `${what}: ${this.#total} of ${samples} samples cannot be used, ` +
          `more than maxSkips = ${share === undefined ? limit : `${maxSkips} (${limit})`}: ` +
          `${this.summary()}; repair the data or raise maxSkips`,
      );
    }
  }

  /** One line: each reason with its count and first examples. */
  summary(): string {
    return [...this.byReason]
      .map(([reason, { count, examples }]) => `${reason} (${count}: ${examples.join(', ')})`)
      .join('; ');
  }

  /** A copy that counts on from here, with another limit if one is given. */
  clone(maxSkips: Tolerance | undefined = this.maxSkips): SkipCounter {
    const copy = new SkipCounter(maxSkips, this.note);
    copy.addAll(this);
    return copy;
  }
}
