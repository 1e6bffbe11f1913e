/**
 * A trimmed vocabulary: a small model keeps only the rows of the token table that its captions use.
 * Full ids become dense ids 0 .. size-1 in the same order, so the special ids 0..3 (pad, eos, bos,
 * unk) stay as they are.
 */
import { DataError } from '../errors.js';

/** Rows of the Gemma token table. */
export const GEMMA_VOCAB = 256000;

const SPECIAL = 4;
const UNKNOWN = 3;

/** Full ids to dense ids and back. */
export class VocabMap {
  readonly #dense: Int32Array;

  readonly #ids: Int32Array;

  /** @param ids kept full ids, ascending, without repeats, 0..3 first; use `fromIds` */
  private constructor(ids: Int32Array) {
    this.#ids = ids;
    this.#dense = new Int32Array((ids[ids.length - 1] as number) + 1).fill(UNKNOWN);
    ids.forEach((id, i) => {
      this.#dense[id] = i;
    });
  }

  /**
   * Keeps `ids` and the special ids 0..3.
   * @param ids full ids in any order, repeats allowed
   * @throws DataError for an id that is not an integer in [0, 2^24)
   */
  static fromIds(ids: Iterable<number>): VocabMap {
    const kept = new Set<number>();
    for (let id = 0; id < SPECIAL; id++) kept.add(id);
    for (const id of ids) {
      // The bound keeps a damaged file from asking for a table of gigabytes; real vocabularies have
      // under a million.
      if (!Number.isInteger(id) || id < 0 || id >= 1 << 24) {
        throw new DataError(`vocabulary: expected token ids in [0, ${1 << 24}) but got ${id}`);
      }
      kept.add(id);
    }
    return new VocabMap(Int32Array.from(kept).sort());
  }

  /** Number of dense ids: the rows of the model's token table. */
  get size(): number {
    return this.#ids.length;
  }

  /** The dense id of a full id; that of unk where it was not kept. */
  toDense(id: number): number {
    return this.#dense[id] ?? UNKNOWN;
  }

  /** The full id of a dense id (0 .. size-1). Throws DataError out of range. */
  toFull(dense: number): number {
    const id = this.#ids[dense];
    if (id === undefined) throw new DataError(`vocabulary: no id ${dense} among ${this.size}`);
    return id;
  }

  /** Maps full ids in place. @returns the same array */
  map(ids: Int32Array): Int32Array {
    for (let i = 0; i < ids.length; i++) ids[i] = this.toDense(ids[i] as number);
    return ids;
  }

  /**
   * The full ids in dense order, (size): row i of the trimmed table is row `inverse()[i]` of the
   * full one.
   */
  inverse(): Int32Array {
    return this.#ids.slice();
  }

  /** For JSON.stringify. */
  toJSON(): { ids: number[] } {
    return { ids: [...this.#ids] };
  }

  /**
   * From what `toJSON` gave. Throws DataError when it is anything else: ids unsorted, repeated or
   * out of range.
   */
  static fromJSON(json: unknown): VocabMap {
    const ids = (json as { ids?: unknown } | null)?.ids;
    if (!Array.isArray(ids))
      throw new DataError('vocabulary: expected an object {"ids": [0, 1, 2, 3, ...]}');
    const map = VocabMap.fromIds(ids as number[]);
    if (map.size !== ids.length || ids.some((id, i) => id !== map.#ids[i])) {
      throw new DataError(
        'vocabulary: the ids must be ascending, without repeats, and begin with 0, 1, 2, 3',
      );
    }
    return map;
  }
}
