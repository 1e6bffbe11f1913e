/** Embeddings as callers get them: rows in one typed array, in the number format they asked for. */
import { ConfigError } from '../errors.js';
import { f16ToF32, f32ToF16 } from '../io/half.js';

/**
 * `f32`; `f16`, the bits of IEEE half floats; `int8`, every row scaled to ±127 by its largest value. Cosine similarity
 * does not care about a row's scale, so int8 rows can go into a vector index as they are.
 */
export type OutputType = 'f32' | 'f16' | 'int8';
export const OUTPUT_TYPES: readonly OutputType[] = ['f32', 'f16', 'int8'];
/** The array that holds values of each format. */
interface Arrays {
  f32: Float32Array;
  f16: Uint16Array;
  int8: Int8Array;
}
/** One row. */
export type Row<T extends OutputType = OutputType> = Arrays[T];

/** A matrix of embeddings, one unit-length row per input, in input order. */
export class Embeddings<T extends OutputType = 'f32'> {
  constructor(
    /** (rows, dim), row by row. */
    readonly data: Row<T>,
    readonly rows: number,
    /** Values of one embedding. */
    readonly dim: number,
    readonly type: T,
    /** (rows): row i is `scales[i] * data`, for int8; null otherwise. */
    readonly scales: Float32Array | null = null,
  ) {}

  /** Row `i`, a view. */
  row(i: number): Row<T> {
    if (!(Number.isInteger(i) && i >= 0 && i < this.rows))
      throw new ConfigError(`row must be in [0, ${this.rows}) but is ${i}`);
    return this.data.subarray(i * this.dim, (i + 1) * this.dim) as Row<T>;
  }

  /** The rows as f32, whatever their type; the data itself when it is f32. */
  toFloat32(): Float32Array {
    if (this.type === 'f32') return this.data as Float32Array;
    if (this.type === 'f16') return f16ToF32(this.data as Uint16Array);
    return Float32Array.from(
      this.data as Int8Array,
      (v, i) => v * this.scales![Math.floor(i / this.dim)]!,
    );
  }

  /** Row `i` as text that pgvector and others read: `[0.1,-0.2,…]`. */
  toText(i: number): string {
    this.row(i); // refuses an i that is none
    return `[${Array.from(this.slice(i, i + 1).toFloat32()).join(',')}]`;
  }

  /** Rows `from` to `to` as a matrix of their own; shares memory. */
  slice(from: number, to: number): Embeddings<T> {
    if (
      !(
        Number.isInteger(from) &&
        Number.isInteger(to) &&
        from >= 0 &&
        from <= to &&
        to <= this.rows
      )
    )
      throw new ConfigError(
        `slice: from and to must lie in [0, ${this.rows}], in this order, but are ` +
          `${from} and ${to}`,
      );
    return new Embeddings(
      this.data.subarray(from * this.dim, to * this.dim) as Row<T>,
      to - from,
      this.dim,
      this.type,
      this.scales?.subarray(from, to) ?? null,
    );
  }

  /** One matrix from f32 rows. */
  static from<T extends OutputType = 'f32'>(
    rows: readonly Float32Array[],
    dim: number,
    type?: T,
  ): Embeddings<T> {
    const all = new Float32Array(rows.length * dim),
      format: OutputType = type ?? 'f32';
    const made = (data: Row, scales?: Float32Array): Embeddings<T> =>
      new Embeddings(data as Row<T>, rows.length, dim, format as T, scales);
    rows.forEach((row, i) => all.set(row, i * dim));
    if (format === 'f32') return made(all);
    if (format === 'f16') return made(f32ToF16(all));
    const scales = new Float32Array(rows.length),
      data = new Int8Array(all.length);
    rows.forEach((row, i) => {
      scales[i] = toInt8(row, data.subarray(i * dim, (i + 1) * dim));
    });
    return made(data, scales);
  }
}

/** Quantises a row symmetrically; returns its scale. A row of zeros has scale 0, one with NaN becomes zeros with scale NaN. */
function toInt8(row: Float32Array, out: Int8Array): number {
  let most = 0;
  for (const v of row) most = Math.max(most, Math.abs(v));
  if (!(most > 0)) return most;
  for (let i = 0; i < row.length; i++) out[i] = Math.round((row[i]! * 127) / most);
  return most / 127;
}

/** One row in a type, in memory of its own: a consumer may transfer it. */
export function convertRow<T extends OutputType>(row: Float32Array, type: T): Row<T> {
  return type === 'f32' ? (row.slice() as Row<T>) : Embeddings.from([row], row.length, type).data;
}
