/**
 * Images that are the same, by the hash of their bytes, or look the same, by their embeddings. The search over embeddings
 * is exact: blocks of a matrix product, on any device, and nothing of the size of all pairs in memory.
 */
import { scores } from '../inference/retrieval.js';
import { f16ToF32 } from '../io/half.js';
import type { DeviceName } from '../tensor.js';

/** Unit rows as half floats, (rows, dim). */
export interface HalfRows {
  data: Uint16Array;
  dim: number;
}

export interface NearOptions {
  /** Cosine from which two images look the same. */
  threshold: number;
  device?: DeviceName;
  signal?: AbortSignal;
  /** Called after every block with the rows of `a` that are done. */
  onProgress?: (done: number, total: number) => void;
}

/** Rows of a block: two of them and their products take 40 MiB at 1,152 values a row. */
const BLOCK = 2048;

/** A block of rows from row `from` on, of length 1 to the precision of f32: half floats alone would be off by 1e-4. */
function unitRows({ data, dim }: HalfRows, from: number): Float32Array {
  const rows = f16ToF32(data.subarray(from * dim, Math.min(data.length, (from + BLOCK) * dim)));
  for (let at = 0; at < rows.length; at += dim) {
    let sum = 0;
    for (let d = at; d < at + dim; d++) sum += rows[d]! * rows[d]!;
    const scale = 1 / (Math.sqrt(sum) || 1);
    for (let d = at; d < at + dim; d++) rows[d]! *= scale;
  }
  return rows;
}

/**
 * Calls `onPair` for every pair of rows (i of a, j of b) with a cosine of at least `threshold`; without `b`, for every pair
 * i < j of a. Work: 2·|a|·|b|·dim operations, half of it without `b`.
 */
export async function nearPairs(
  a: HalfRows,
  b: HalfRows | null,
  options: NearOptions,
  onPair: (i: number, j: number, cosine: number) => void,
): Promise<void> {
  const { threshold, device = 'cpu', signal, onProgress } = options,
    { dim } = a,
    other = b ?? a;
  const n = a.data.length / dim,
    m = other.data.length / dim;
  for (let i0 = 0; i0 < n; i0 += BLOCK) {
    const left = unitRows(a, i0),
      rows = left.length / dim;
    for (let j0 = b ? 0 : i0; j0 < m; j0 += BLOCK) {
      signal?.throwIfAborted();
      const right = unitRows(other, j0),
        columns = right.length / dim,
        tile = await scores(left, right, dim, device);
      for (let i = 0; i < rows; i++) {
        for (let j = !b && i0 === j0 ? i + 1 : 0; j < columns; j++) {
          const cosine = tile[i * columns + j]!;
          if (cosine >= threshold) onPair(i0 + i, j0 + j, cosine);
        }
      }
    }
    onProgress?.(Math.min(n, i0 + BLOCK), n);
  }
}

/** Sets of rows that are merged again and again; the representative of a set is its first row. */
class Sets {
  readonly #parent: Int32Array;

  constructor(n: number) {
    this.#parent = Int32Array.from({ length: n }, (_, i) => i);
  }

  first(row: number): number {
    while (this.#parent[row] !== row) row = this.#parent[row] = this.#parent[this.#parent[row]!]!;
    return row;
  }

  join(i: number, j: number): void {
    const [a, b] = [this.first(i), this.first(j)];
    if (a !== b) this.#parent[Math.max(a, b)] = Math.min(a, b);
  }
}

export interface Duplicates {
  /** (rows): the first row of its group, -1 for a row that is alone. */
  group: Int32Array;
  /** (rows): 1 when an earlier row has the same hash. */
  exact: Uint8Array;
}

/**
 * Groups rows that have the same hash, or a chain of pairs that look the same between them.
 * @param embeddings one row for each hash
 */
export async function groupDuplicates(
  hashes: readonly string[],
  embeddings: HalfRows,
  options: NearOptions,
): Promise<Duplicates> {
  const n = hashes.length,
    sets = new Sets(n),
    exact = new Uint8Array(n),
    seen = new Map<string, number>();
  hashes.forEach((hash, i) => {
    const before = seen.get(hash);
    if (before === undefined) seen.set(hash, i);
    else [exact[i]] = [1, sets.join(before, i)];
  });
  await nearPairs(embeddings, null, options, (i, j) => sets.join(i, j));
  const sizes = new Int32Array(n);
  for (let i = 0; i < n; i++) sizes[sets.first(i)]!++;
  return {
    group: Int32Array.from({ length: n }, (_, i) =>
      sizes[sets.first(i)]! > 1 ? sets.first(i) : -1,
    ),
    exact,
  };
}
