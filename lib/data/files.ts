/** File access shared by the data pipeline: typed errors that name the file, exact reads. */
import * as fs from 'node:fs';
import { DataError, Siglip2Error } from '../errors.js';
import { unpackPage, type InPage } from '../io/codecs.js';
import { ioError, openInputSync } from '../io/files.js';

/** A byte range of a file; `size` -1 means the whole file. */
export interface Location {
  path: string;
  offset: number;
  size: number;
  /** Of a value in a compressed page of a Parquet table, whose byte range this is: where in it. */
  within?: InPage;
}

/**
 * Turns a file-system error into a DataError (the file is missing) or an IoError (everything else).
 * @param doing what was being tried, as a verb: "read", "write"
 */
export function fileError(cause: unknown, doing: string, file: string): Siglip2Error {
  if (cause instanceof Siglip2Error) return cause;
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  if (code === 'ENOENT' || code === 'ENOTDIR') {
    const reason = code === 'ENOENT' ? 'there is no such file' : 'it, or a part of its path, is a file and no folder';
    return new DataError(`cannot ${doing} ${file}: ${reason}; check the path`, { cause });
  }
  return ioError(doing, file, cause) as Siglip2Error;
}

/** Of an image that is named by its own bytes, in a parquet column say, or by base64. */
export const NO_PATH = 'the image is no path of a file';

/** Why a file can be no image, as it is called in the count of skips. Throws IoError when the disk fails. */
export function imageFault(file: string): string | undefined {
  if (file.includes('\0')) return NO_PATH;
  try {
    const found = fs.statSync(file, { throwIfNoEntry: false });
    return found === undefined ? 'the image is missing' : found.size === 0 ? 'empty image' : undefined;
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === 'ENAMETOOLONG') return NO_PATH;
    if (code === 'ELOOP') return 'the image is missing';
    throw fileError(cause, 'read', file);
  }
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

/** All bytes of a file. Throws DataError or IoError naming it. */
function readWhole(file: string): Buffer {
  try {
    const fd = openInputSync(file);
    try {
      return fs.readFileSync(fd);
    } finally {
      fs.closeSync(fd);
    }
  } catch (cause) {
    throw fileError(cause, 'read', file);
  }
}

/** Keeps a bounded number of files open for positional reads. */
export class FileReader {
  private readonly open = new Map<string, number>();
  /** The page that was unpacked last. */
  private page: { path: string; offset: number; bytes: Uint8Array } | undefined;

  /** @param limit files kept open at a time */
  constructor(private readonly limit = 64) {}

  /** The bytes of a location. Throws DataError or IoError naming the file. */
  read(location: Location): Buffer {
    if (location.size < 0) {
      return readWhole(location.path);
    }
    const { path, offset, size, within } = location;
    if (!within) return readExactly(this.descriptor(path), offset, size, path);
    if (this.page?.path !== path || this.page.offset !== offset) {
      const packed = readExactly(this.descriptor(path), offset, size, path);
      try {
        this.page = { path, offset, bytes: unpackPage(packed, within) };
      } catch (cause) {
        throw new DataError(`${path}: the page at byte ${offset} is damaged or has changed: ${(cause as Error).message}`, { cause });
      }
    }
    return Buffer.from(this.page.bytes.subarray(within.start, within.start + within.length));
  }

  /** Closes all files. */
  close(): void {
    for (const fd of this.open.values()) fs.closeSync(fd);
    this.open.clear();
  }

  private descriptor(file: string): number {
    let fd = this.open.get(file);
    if (fd !== undefined) {
      // Re-inserting keeps the map in order of use, so the first entry is the one to close.
      this.open.delete(file);
      this.open.set(file, fd);
      return fd;
    }
    if (this.open.size >= this.limit) {
      const [oldest, old] = this.open.entries().next().value as [string, number];
      fs.closeSync(old);
      this.open.delete(oldest);
    }
    try {
      fd = openInputSync(file);
    } catch (cause) {
      throw fileError(cause, 'read', file);
    }
    this.open.set(file, fd);
    return fd;
  }
}

/**
 * A parsed JSON file. Throws DataError when it is missing or not JSON, IoError when it cannot be
 * read.
 */
export function readJson(file: string): unknown {
  const text = new TextDecoder().decode(readWhole(file));
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new DataError(`${file}: not valid JSON: ${(cause as Error).message}`, { cause });
  }
}

/** Extensions of files that are read as images, and of images that are not. */
const READABLE = /(?:^|\.)(jpe?g|jpe|jfif|png|webp|avif|gif|tiff?|svg)$/i;
const UNREADABLE = new RegExp('(?:^|\\.)(hei[cf]|hif|jxl|jp2|j2k|jpx|jpf|bmp|dib|psd|ico|cur|p[bgpn]m|tga|exr|hdr|qoi|dng|cr[23]|nef|' +
  'arw|orf|raf|rw2|eps|emf|wmf)$', 'i');

/** Whether a file's name is that of an image that can be read. */
export function readableImage(name: string): boolean {
  return READABLE.test(name);
}

/** The extension of an image that cannot be read; undefined for anything else. */
export function unreadableImage(name: string): string | undefined {
  return UNREADABLE.exec(name)?.[1]?.toLowerCase();
}

/** What an image of such an extension is called in the count of skips. */
export const unreadReason = (extension: string): string => `.${extension} images are not read; convert them to JPEG or PNG`;
