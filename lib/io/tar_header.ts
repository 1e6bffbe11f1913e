/** Headers of tar archives. They are untrusted input: whatever does not fit is a fault with its byte offset. */
import { isUtf8 } from 'node:buffer';
import { DataError } from '../errors.js';

/** Bytes of a header, and what contents are padded to. */
export const BLOCK = 512;

/** What is wrong with an archive, and where. */
export class TarFault extends DataError {
  /** @param cut whether bytes are missing at the end, so that nobody can say how many samples went with them */
  constructor(
    message: string,
    readonly at: number,
    readonly cut = false,
  ) {
    super(message);
  }
}

export interface Header {
  name: string;
  link: string;
  size: number;
  type: string;
  /** Whether blocks with more of a sparse file's map follow. */
  extended: boolean;
}

/** Text as UTF-8; where it is none, each byte as a character, so that different names stay different. */
function decode(bytes: Buffer): string {
  return bytes.toString(isUtf8(bytes) ? 'utf8' : 'latin1');
}

/** Bytes up to the first NUL as text. */
export function text(block: Buffer, start: number, length: number): string {
  const end = block.indexOf(0, start);
  return decode(block.subarray(start, end < 0 ? start + length : Math.min(end, start + length)));
}

/** A numeric field: octal digits with blanks around, or base-256 when the top bit is set; NaN when it is neither. */
function number(block: Buffer, start: number, length: number): number {
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

/** Whether the block has a header's checksum: one of the two that archives carry, of unsigned (POSIX) or signed bytes. */
export function isHeader(block: Buffer): boolean {
  const stored = number(block, 148, 8);
  if (!(stored > 0)) return false;
  let unsigned = 0,
    signed = 0;
  for (let i = 0; i < BLOCK; i++) {
    const byte = i >= 148 && i < 156 ? 0x20 : (block[i] as number);
    unsigned += byte;
    signed += byte < 128 ? byte : byte - 256;
  }
  return stored === unsigned || stored === signed;
}

/** Throws TarFault for a block that is no header. */
export function parseHeader(block: Buffer, file: string, at: number): Header {
  if (!isHeader(block))
    throw new TarFault(
      `${file}: the tar header at byte ${at} has a wrong checksum; the archive is damaged`,
      at,
    );
  const size = number(block, 124, 12);
  if (!Number.isSafeInteger(size))
    throw new TarFault(
      `${file}: the tar header at byte ${at} has an unreadable size; the archive is damaged`,
      at,
    );
  let name = text(block, 0, 100);
  // Only POSIX ustar ("ustar\0") has a name prefix; GNU tar ("ustar  ") keeps other things there.
  if (text(block, 257, 6) === 'ustar' && block[262] === 0) {
    const prefix = text(block, 345, 155);
    if (prefix !== '') name = `${prefix}/${name}`;
  }
  const type = block[156] === 0 ? '0' : String.fromCharCode(block[156] as number);
  return { name, link: text(block, 157, 100), size, type, extended: block[482] !== 0 };
}

/** The records of a pax header: "<length> <key>=<value>\n", the length counting the whole record. Throws TarFault. */
export function parsePax(data: Buffer, file: string, at: number): Map<string, string> {
  const records = new Map<string, string>();
  for (let position = 0; position < data.length; ) {
    const space = data.indexOf(0x20, position),
      equals = data.indexOf(0x3d, space + 1);
    const digits = space < 0 ? '' : data.toString('latin1', position, space);
    const length = /^[1-9][0-9]{0,8}$/.test(digits) ? Number(digits) : 0,
      end = position + length;
    if (
      length < digits.length + 3 ||
      end > data.length ||
      data[end - 1] !== 0x0a ||
      equals < space + 2 ||
      equals >= end
    )
      throw new TarFault(
        `${file}: the pax header at byte ${at + position} is malformed; the archive is damaged`,
        at - BLOCK,
      );
    records.set(
      decode(data.subarray(space + 1, equals)),
      decode(data.subarray(equals + 1, end - 1)),
    );
    position = end;
  }
  return records;
}
