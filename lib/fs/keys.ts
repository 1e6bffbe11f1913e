/**
 * Key lists: which samples of a collection are used, one a line. A line is `file<TAB>key`, where `file` is the name of the
 * tar, folder or manifest without its path, or just `key`, which means that key in any file. A name that has a tab or a line
 * break, or begins with a quotation mark, stands as a JSON string.
 */
import { isUtf8 } from 'node:buffer';
import * as path from 'node:path';
import { DataError } from '../errors.js';
import { lines } from './paths.js';

const field = (name: string): string => (/[\t\r\n]|^"/.test(name) ? JSON.stringify(name) : name);

/** The line of a sample, without its end. */
export function keyLine(file: string, key: string): string {
  return `${field(file)}\t${field(key)}`;
}

/** Lines in pieces of a MiB or so: a list may be longer than a string can be. */
export function* keyLines(rows: Iterable<{ file: string; key: string }>): Generator<Buffer> {
  let piece: string[] = [],
    size = 0;
  for (const { file, key } of rows) {
    const line = keyLine(file, key);
    piece.push(line, '\n');
    if ((size += line.length) < 1 << 20) continue;
    yield Buffer.from(piece.join(''));
    [piece, size] = [[], 0];
  }
  yield Buffer.from(piece.join(''));
}

function parseField(text: string): string {
  if (!text.startsWith('"')) return text;
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'string' ? value : text;
  } catch {
    return text;
  }
}

const FIRST_CHUNK = 1 << 16,
  CHUNK = 1 << 26;

/**
 * A set of byte strings of any number: V8's own ends at 2²⁴ and takes several times the memory. The strings stand one behind
 * the other, and an open table has their positions.
 */
class ByteStrings {
  #chunks: Buffer[] = [];
  #used = 0;
  /** Position + 1 of a string, 0 where there is none. */
  #table = new Float64Array(1 << 10);
  size = 0;

  add(bytes: Buffer): void {
    if (this.size * 2 >= this.#table.length) this.#grow();
    const slot = this.#slot(bytes);
    if (this.#table[slot] !== 0) return;
    this.#table[slot] = this.#store(bytes) + 1;
    this.size++;
  }

  has(bytes: Buffer): boolean {
    return this.#table[this.#slot(bytes)] !== 0;
  }

  #store(bytes: Buffer): number {
    const need = bytes.length + 4,
      last = this.#chunks.at(-1);
    if (!last || this.#used + need > last.length) {
      this.#chunks.push(
        Buffer.allocUnsafeSlow(
          Math.max(need, Math.min(CHUNK, last ? 2 * last.length : FIRST_CHUNK)),
        ),
      );
      this.#used = 0;
    }
    const chunk = this.#chunks.at(-1)!,
      at = this.#used;
    chunk.writeUInt32LE(bytes.length, at);
    bytes.copy(chunk, at + 4);
    this.#used += need;
    return (this.#chunks.length - 1) * CHUNK + at;
  }

  #at(position: number): Buffer {
    const chunk = this.#chunks[Math.floor(position / CHUNK)]!,
      at = position % CHUNK;
    return chunk.subarray(at + 4, at + 4 + chunk.readUInt32LE(at));
  }

  /** Where a string is in the table, or would be. */
  #slot(bytes: Buffer): number {
    let hash = 0x811c9dc5;
    for (let i = 0; i < bytes.length; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193);
    hash ^= hash >>> 15;
    const mask = this.#table.length - 1;
    for (let slot = hash & mask; ; slot = (slot + 1) & mask) {
      const position = this.#table[slot]!;
      if (position === 0 || this.#at(position - 1).equals(bytes)) return slot;
    }
  }

  #grow(): void {
    const old = this.#table;
    this.#table = new Float64Array(old.length * 2);
    for (const position of old)
      if (position !== 0) this.#table[this.#slot(this.#at(position - 1))] = position;
  }
}

/** A key list in memory: about 20 bytes for each line, and its text. */
export class KeyList {
  readonly #kept = new ByteStrings();

  private constructor(readonly path: string) {}

  /** @throws DataError when the file is missing or has no line; IoError when it cannot be read */
  static async read(file: string): Promise<KeyList> {
    const list = new KeyList(file);
    for await (const { data } of lines(file)) {
      if (data.length === 0) continue;
      if (isUtf8(data) && data[0] !== 0x22 && !data.includes('\t"')) list.#kept.add(data);
      else
        list.#kept.add(
          Buffer.from(
            data
              .toString(isUtf8(data) ? 'utf8' : 'latin1')
              .split('\t')
              .map(parseField)
              .join('\t'),
          ),
        );
    }
    if (list.size === 0)
      throw new DataError(`${file}: the key list is empty; it needs one key a line`);
    return list;
  }

  /** A list of keys in any file. */
  static of(keys: Iterable<string>): KeyList {
    const list = new KeyList('the list');
    for (const key of keys) list.#kept.add(Buffer.from(key));
    return list;
  }

  get size(): number {
    return this.#kept.size;
  }

  /** @param file the tar, folder or manifest; its path does not matter */
  has(file: string, key: string): boolean {
    return (
      this.#kept.has(Buffer.from(`${path.basename(path.resolve(file))}\t${key}`)) ||
      this.#kept.has(Buffer.from(key))
    );
  }
}
