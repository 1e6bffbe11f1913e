/**
 * Reading tar archives by position.
 *
 * Training needs the byte range of every member (random order, exact resume), so the reader makes
 * an index and leaves the members where they are. Formats: POSIX ustar with pax headers (path,
 * size) and GNU long names and base-256 numbers. An archive is untrusted input: each header's
 * checksum and each offset is checked against the file's size, and whatever does not fit is a
 * DataError with file and byte offset.
 */
import * as fs from 'node:fs';
import { DataError } from '../errors.js';
import { openInput } from '../io/files.js';
import { fileError } from './files.js';

/** One regular file inside a tar archive. */
export interface TarEntry {
  /** Path inside the archive, as stored; never used as a path on disk. */
  name: string;
  /** First byte of the content, from the start of the archive. */
  offset: number;
  /** Bytes of content. */
  size: number;
}

/**
 * The sample that a member belongs to by WebDataset's rule: the path up to the first dot of its last part. undefined for
 * hidden files and those without an extension.
 */
export function memberKey(name: string): string | undefined {
  const slash = name.lastIndexOf('/') + 1, dot = name.indexOf('.', slash);
  return dot <= slash ? undefined : name.slice(0, dot);
}

/** Bytes of a header, and what contents are padded to. */
export const kBlock = 512;
/**
 * Bytes read at a time: small members come several to a read, and large ones cost one read for
 * their header.
 */
const kWindow = 65536;
/**
 * A long name or pax record is read into memory, so a damaged size must not be able to ask for
 * gigabytes.
 */
const kMaxExtension = 1 << 20;

interface Header {
  name: string;
  size: number;
  type: string;
}

/** Bytes up to the first NUL as text. */
function text(block: Uint8Array, start: number, length: number): string {
  let end = start;
  while (end < start + length && block[end] !== 0) end++;
  return Buffer.from(block.buffer, block.byteOffset + start, end - start).toString('utf8');
}

/**
 * A numeric field: octal digits with blanks around, or base-256 when the top bit is set; NaN when
 * it is neither.
 */
function number(block: Uint8Array, start: number, length: number): number {
  const first = block[start] as number;
  if (first & 0x80) {
    if (first !== 0x80) return NaN; // 0xff means negative, which no field may be
    let value = 0;
    for (let i = start + 1; i < start + length; i++) value = value * 256 + (block[i] as number);
    return Number.isSafeInteger(value) ? value : NaN;
  }
  const digits = text(block, start, length).trim();
  if (digits === '') return 0;
  return /^[0-7]+$/.test(digits) ? parseInt(digits, 8) : NaN;
}

/**
 * The two sums that archives in the wild carry: of unsigned bytes (POSIX) and of signed bytes (old
 * tools).
 */
function checksumFits(block: Uint8Array, stored: number): boolean {
  let unsigned = 0;
  let signed = 0;
  for (let i = 0; i < kBlock; i++) {
    const byte = i >= 148 && i < 156 ? 0x20 : (block[i] as number);
    unsigned += byte;
    signed += byte < 128 ? byte : byte - 256;
  }
  return stored === unsigned || stored === signed;
}

/** First bytes of gzip, zstd, xz and bzip2 files. */
const COMPRESSED = [[0x1f, 0x8b], [0x28, 0xb5, 0x2f, 0xfd], [0xfd, 0x37, 0x7a, 0x58], [0x42, 0x5a, 0x68]];

function parseHeader(block: Uint8Array, file: string, at: number): Header {
  if (!checksumFits(block, number(block, 148, 8))) {
    if (at === 0 && COMPRESSED.some((magic) => magic.every((byte, i) => block[i] === byte)))
      throw new DataError(`${file}: is compressed; shards are read at any place, so unpack it to a plain .tar first`);
    throw new DataError(
      `${file}: the tar header at byte ${at} has a wrong checksum; the archive is damaged`,
    );
  }
  const size = number(block, 124, 12);
  if (!Number.isSafeInteger(size)) {
    throw new DataError(
      `${file}: the tar header at byte ${at} has an unreadable size; the archive is damaged`,
    );
  }
  let name = text(block, 0, 100);
  // Only POSIX ustar ("ustar\0") has a name prefix; GNU tar ("ustar  ") keeps other things there.
  if (text(block, 257, 6) === 'ustar' && block[262] === 0) {
    const prefix = text(block, 345, 155);
    if (prefix !== '') name = `${prefix}/${name}`;
  }
  return { name, size, type: block[156] === 0 ? '0' : String.fromCharCode(block[156] as number) };
}

/**
 * The records of a pax header: "<length> <key>=<value>\n", the length counting the whole record.
 */
function parsePax(data: Buffer, file: string, at: number): Map<string, string> {
  const records = new Map<string, string>();
  let position = 0;
  while (position < data.length) {
    const space = data.indexOf(0x20, position);
    const digits = space < 0 ? '' : data.toString('latin1', position, space);
    const length = /^[1-9][0-9]{0,8}$/.test(digits) ? Number(digits) : 0;
    const end = position + length;
    if (length < digits.length + 3 || end > data.length || data[end - 1] !== 0x0a) {
      throw new DataError(
        `${file}: the pax header at byte ${at + position} is malformed; the archive is damaged`,
      );
    }
    const record = data.toString('utf8', space + 1, end - 1);
    const equals = record.indexOf('=');
    if (equals < 1) {
      throw new DataError(
        `${file}: the pax header at byte ${at + position} is malformed; the archive is damaged`,
      );
    }
    records.set(record.slice(0, equals), record.slice(equals + 1));
    position = end;
  }
  return records;
}

/**
 * Lists the regular files of a local tar archive with their byte ranges. Folders, links and devices
 * are left out.
 *
 * @param file path of the archive (not compressed)
 * @param onDamage called with what is wrong with a damaged archive, which then counts as ended there
 * @returns the entries in the order of the archive
 * @throws DataError when the file is missing, or damaged or truncated (the message has the file and
 *   the byte offset) and there is no `onDamage`; IoError when it cannot be read
 */
export async function indexTar(file: string, onDamage?: (error: DataError) => void): Promise<TarEntry[]> {
  let handle: fs.promises.FileHandle;
  try {
    handle = await openInput(file);
  } catch (cause) {
    throw fileError(cause, 'read', file);
  }
  const entries: TarEntry[] = [];
  try {
    await index(handle, file, entries);
    return entries;
  } catch (cause) {
    if (!onDamage || !(cause instanceof DataError)) throw fileError(cause, 'read', file);
    onDamage(cause);
    return entries;
  } finally {
    await handle.close();
  }
}

async function index(handle: fs.promises.FileHandle, file: string, entries: TarEntry[]): Promise<void> {
  const total = (await handle.stat()).size;
  const buffer = Buffer.allocUnsafe(kWindow);
  let start = 0;
  let filled = 0;

  /** `size` bytes at `at`, from the window when they are in it. */
  const bytes = async (at: number, size: number): Promise<Buffer> => {
    if (size > kWindow) {
      const whole = Buffer.allocUnsafe(size);
      const { bytesRead } = await handle.read(whole, 0, size, at);
      return whole.subarray(0, bytesRead);
    }
    if (at < start || at + size > start + filled) {
      start = at;
      filled = (await handle.read(buffer, 0, kWindow, at)).bytesRead;
    }
    return buffer.subarray(at - start, Math.min(at - start + size, filled));
  };

  let position = 0;
  let longName: string | undefined;
  let pax: Map<string, string> | undefined;
  for (;;) {
    const block = position + kBlock <= total ? await bytes(position, kBlock) : undefined;
    if (block === undefined || block.length < kBlock) {
      throw new DataError(
        `${file}: truncated at byte ${total}: ` +
          `expected a tar header or the end marker at byte ${position}`,
      );
    }
    if (block.every((byte) => byte === 0)) return;

    const header = parseHeader(block, file, position);
    let size = header.size;
    const content = position + kBlock;
    const isExtension =
      header.type === 'x' || header.type === 'g' || header.type === 'L' || header.type === 'K';
    // The types 1-6 (links, devices, folders) have no content whatever their size field says.
    if (/[1-6]/.test(header.type)) size = 0;
    // A size that does not fit into the header is 0 there, as Python's tarfile writes it.
    else if (!isExtension && pax?.has('size')) {
      const text = pax.get('size') as string;
      size = /^[0-9]{1,16}$/.test(text) ? Number(text) : NaN;
    }
    if (!Number.isSafeInteger(size) || content + size > total) {
      throw new DataError(
        `${file}: truncated at byte ${total}: ` +
          `the entry at byte ${position} needs ${size} bytes from byte ${content}`,
      );
    }
    if (isExtension) {
      if (size > kMaxExtension) {
        throw new DataError(
          `${file}: the extended tar header at byte ${position} has ${size} bytes, ` +
            `more than ${kMaxExtension}; ` +
            'the archive is damaged',
        );
      }
      const data = await bytes(content, size);
      if (data.length < size)
        throw new DataError(`${file}: truncated at byte ${content + data.length}`);
      if (header.type === 'x') pax = parsePax(data, file, content);
      else if (header.type === 'L') longName = text(data, 0, size);
    } else {
      if (header.type === 'S') {
        throw new DataError(
          `${file}: the entry at byte ${position} is a GNU sparse file, which is not supported`,
        );
      }
      // Unknown types are regular files, as POSIX asks; 7 is a contiguous file.
      if (!/[1-6]/.test(header.type)) {
        const name = pax?.get('path') ?? longName ?? header.name;
        // Old archives mark a folder by a trailing slash only.
        if (!name.endsWith('/')) entries.push({ name, offset: content, size });
      }
      pax = undefined;
      longName = undefined;
    }
    position = content + Math.ceil(size / kBlock) * kBlock;
  }
}
