/** Samples left out, by reason: counted, with examples, and an error when there are too many. */
import { DataError } from '../errors.js';

/** How often a reason came up, and the first few files it came up for. */
export interface SkipRecord {
  count: number;
  examples: string[];
}

const kExamples = 5;

/**
 * Counts skipped samples by reason. Nothing is ever skipped silently: whoever skips calls `add`.
 */
export class SkipCounter {
  /** Reason to count and examples. */
  readonly byReason = new Map<string, SkipRecord>();
  /** Reason of every example. */
  private readonly seen = new Map<string, string>();

  /** @param maxSkips most skips allowed; default 1 % of the samples or 100, whichever is larger */
  constructor(readonly maxSkips?: number) {}

  /** Number of skipped samples. */
  get total(): number {
    return this.seen.size;
  }

  /**
   * Counts `example` (a sample's file and key) once, however often an epoch meets it. @returns
   * whether it was new
   */
  add(reason: string, example: string): boolean {
    if (this.seen.has(example)) return false;
    this.seen.set(example, reason);
    let record = this.byReason.get(reason);
    if (record === undefined) this.byReason.set(reason, (record = { count: 0, examples: [] }));
    record.count++;
    if (record.examples.length < kExamples) record.examples.push(example);
    return true;
  }

  /** Counts what another counter counted too. */
  addAll(other: SkipCounter): void {
    for (const [key, reason] of other.seen) this.seen.set(key, reason);
    for (const [reason, { count, examples }] of other.byReason) {
      const record = this.byReason.get(reason);
      this.byReason.set(reason, {
        count: (record?.count ?? 0) + count,
        examples: [...(record?.examples ?? []), ...examples].slice(0, kExamples),
      });
    }
  }

  /** Everything that was skipped, in order. */
  entries(): { example: string; reason: string }[] {
    return [...this.seen].map(([example, reason]) => ({ example, reason }));
  }

  /**
   * Throws DataError when more samples were skipped than allowed. @param samples size of the whole
   * collection
   */
  check(samples: number, what: string): void {
    const limit = this.maxSkips ?? Math.max(100, Math.floor(samples / 100));
    if (this.total > limit) {
      throw new DataError(
        `${what}: ${this.total} of ${samples} samples cannot be used, ` +
          `more than maxSkips = ${limit}: ` +
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
  clone(maxSkips: number | undefined = this.maxSkips): SkipCounter {
    const copy = new SkipCounter(maxSkips);
    copy.addAll(this);
    return copy;
  }
}
