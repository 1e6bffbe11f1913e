/** File access shared by the data pipeline: typed errors that name the file, exact reads. */
import * as fs from 'node:fs';
import { DataError } from '../errors.js';
import { fileError, openInputSync, readWhole } from '../fs/files.js';
import { type InPage, unpackPage } from './codecs.js';

/** A byte range of a file; `size` -1 means the whole file. */
export interface Location {
  path: string;
  offset: number;
  size: number;
  /** Of a value in a compressed page of a Parquet table, whose byte range this is: where in it. */
  within?: InPage;
}

/**
 * Reads exactly `size` bytes at `offset`; throws DataError naming file and offset when the file is
 * too short.
 */
export function readExactly(fd: number, offset: number, size: number, file: string): Buffer {
  const out = Buffer.allocUnsafe(size);
  let done = 0;
  while (done < size) {
    let n: number;
    try {
      n = fs.readSync(fd, out, done, size - done, offset + done);
    } catch (cause) {
      throw fileError(cause, 'read', file);
    }
    if (n === 0) {
      throw new DataError(
        `${file}: expected ${size} bytes at byte ${offset} ` +
          `but the file ends at byte ${offset + done}; ` +
          'it is truncated or has changed since it was indexed',
      );
    }
    done += n;
  }
  return out;
}

/** Keeps a bounded number of files open for positional reads. */
export class FileReader {
  readonly #open = new Map<string, number>();
  /** The page that was unpacked last. */
  #page: { path: string; offset: number; bytes: Uint8Array } | undefined;

  readonly #limit: number;

  /** @param limit files kept open at a time */
  constructor(limit = 64) {
    this.#limit = limit;
  }

  /** The bytes of a location. Throws DataError or IoError naming the file. */
  read(location: Location): Buffer {
    if (location.size < 0) {
      return readWhole(location.path);
    }
    const { path, offset, size, within } = location;
    if (!within) return readExactly(this.#descriptor(path), offset, size, path);
    if (this.#page?.path !== path || this.#page.offset !== offset) {
      const packed = readExactly(this.#descriptor(path), offset, size, path);
      try {
        this.#page = { path, offset, bytes: unpackPage(packed, within) };
      } catch (cause) {
        throw new DataError(
          `${path}: the page at byte ${offset} is damaged or has changed: ${(cause as Error).message}`,
          { cause },
        );
      }
    }
    return Buffer.from(this.#page.bytes.subarray(within.start, within.start + within.length));
  }

  /** Closes all files. */
  close(): void {
    for (const fd of this.#open.values()) fs.closeSync(fd);
    this.#open.clear();
  }

  #descriptor(file: string): number {
    let fd = this.#open.get(file);
    if (fd !== undefined) {
      // Re-inserting keeps the map in order of use, so the first entry is the one to close.
      this.#open.delete(file);
      this.#open.set(file, fd);
      return fd;
    }
    if (this.#open.size >= this.#limit) {
      const [oldest, old] = this.#open.entries().next().value as [string, number];
      fs.closeSync(old);
      this.#open.delete(oldest);
    }
    try {
      fd = openInputSync(file);
    } catch (cause) {
      throw fileError(cause, 'read', file);
    }
    this.#open.set(file, fd);
    return fd;
  }
}
