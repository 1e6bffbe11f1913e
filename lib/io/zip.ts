/**
 * Zip archives as numpy writes them: members stored or deflated, ZIP64 where sizes need it. Only the central directory
 * is trusted, and only after every offset in it was proved against the file's size; a member's own header must agree.
 * Format: PKWARE's APPNOTE 6.3, sections 4.3 to 4.5.
 */
import type { FileHandle } from 'node:fs/promises';
import { promisify } from 'node:util';
import { crc32, inflateRaw } from 'node:zlib';
import { CheckpointError } from '../errors.js';
import { readExactly } from './safetensors_header.js';

/** A file in an archive. */
export interface ZipMember {
  name: string;
  stored: boolean;
  /** Of its first (compressed) byte in the archive. */
  offset: number;
  /** Bytes in the archive, and after decompression. */
  packed: number;
  size: number;
  crc: number;
}

/** Longest directory that is read: a checkpoint has hundreds of members, not a million. */
const MOST_DIRECTORY_BYTES = 2 ** 26;
/** Deflate cannot shrink its input by more than this, so a larger claim is false. */
const MOST_DEFLATE_RATIO = 1032;
const END = 0x06054b50,
  END64 = 0x06064b50,
  LOCATOR64 = 0x07064b50,
  CENTRAL = 0x02014b50,
  LOCAL = 0x04034b50;
const IN_64 = 0xffffffff;

/** @throws CheckpointError naming the file: no archive, cut, encrypted, or with sizes that contradict each other */
export async function readZip(path: string, handle: FileHandle): Promise<Map<string, ZipMember>> {
  const { size: bytes } = await handle.stat();
  const fail = (what: string): CheckpointError => new CheckpointError(`${path}: ${what}`);
  const read = async (offset: number, length: number): Promise<Buffer> => {
    if (!(offset >= 0 && length >= 0 && offset + length <= bytes)) {
      throw fail(
        `has ${bytes} bytes but its directory points to ${offset + length}; it is cut or damaged`,
      );
    }
    const buffer = Buffer.alloc(length);
    if (!(await readExactly(handle, buffer, offset))) throw fail('was cut while it was read');
    return buffer;
  };
  const { at, length, count } = await findDirectory(bytes, read, fail);
  const directory = await read(at, length);
  const members = new Map<string, ZipMember>();
  let p = 0;
  for (let i = 0; i < count; i++) {
    if (p + 46 > length || directory.readUInt32LE(p) !== CENTRAL)
      throw fail('has a damaged directory');
    const [nameBytes, extraBytes, noteBytes] = [28, 30, 32].map((o) =>
      directory.readUInt16LE(p + o),
    ) as [number, number, number];
    const end = p + 46 + nameBytes + extraBytes + noteBytes;
    if (end > length) throw fail('has a damaged directory');
    const name = directory.toString('utf8', p + 46, p + 46 + nameBytes);
    const method = directory.readUInt16LE(p + 10);
    if (directory.readUInt16LE(p + 8) & 1) throw fail(`member "${name}" is encrypted`);
    if (method !== 0 && method !== 8)
      throw fail(
        `member "${name}" is compressed by method ${method}; 0 (stored) and 8 (deflated) are known`,
      );
    const wide = wideFields(directory.subarray(p + 46 + nameBytes, end - noteBytes));
    const field = (o: number): number => {
      const v = directory.readUInt32LE(p + o);
      if (v !== IN_64) return v;
      const w = wide.shift();
      if (w === undefined) throw fail(`member "${name}" lacks its 64-bit size`);
      return w;
    };
    const size = field(24),
      packed = field(20),
      local = field(42);
    if (method === 0 ? size !== packed : size > packed * MOST_DEFLATE_RATIO + 64) {
      throw fail(`member "${name}" says ${packed} bytes become ${size}; the file is damaged`);
    }
    if (members.has(name)) throw fail(`has two members "${name}"`);
    const head = await read(local, 30);
    if (
      head.readUInt32LE(0) !== LOCAL ||
      head.readUInt16LE(8) !== method ||
      head.readUInt16LE(26) !== nameBytes
    ) {
      throw fail(`member "${name}" is not where the directory says; the file is damaged`);
    }
    const offset = local + 30 + nameBytes + head.readUInt16LE(28);
    if (offset + packed > at)
      throw fail(`member "${name}" runs into the directory; the file is cut or damaged`);
    members.set(name, {
      name,
      stored: method === 0,
      offset,
      packed,
      size,
      crc: directory.readUInt32LE(p + 16),
    });
    p = end;
  }
  let last = 0;
  for (const { name, offset, packed } of [...members.values()].sort(
    (a, b) => a.offset - b.offset,
  )) {
    if (offset < last) throw fail(`member "${name}" overlaps another; the file is damaged`);
    last = offset + packed;
  }
  return members;
}

type Read = (offset: number, length: number) => Promise<Buffer>;

async function findDirectory(
  bytes: number,
  read: Read,
  fail: (what: string) => CheckpointError,
): Promise<{ at: number; length: number; count: number }> {
  // The end record is last but for a comment of at most 65,535 bytes.
  const tail = await read(Math.max(0, bytes - 65557), Math.min(bytes, 65557));
  let e = tail.length - 22;
  while (
    e >= 0 &&
    !(tail.readUInt32LE(e) === END && e + 22 + tail.readUInt16LE(e + 20) === tail.length)
  )
    e--;
  if (e < 0) throw fail('is no zip archive, or is cut');
  let [count, length, at] = [
    tail.readUInt16LE(e + 10),
    tail.readUInt32LE(e + 12),
    tail.readUInt32LE(e + 16),
  ];
  if (e >= 20 && tail.readUInt32LE(e - 20) === LOCATOR64) {
    const wide = await read(safe(tail.readBigUInt64LE(e - 12), fail), 56);
    if (wide.readUInt32LE(0) !== END64) throw fail('has a damaged 64-bit end record');
    [count, length, at] = [32, 40, 48].map((o) => safe(wide.readBigUInt64LE(o), fail)) as [
      number,
      number,
      number,
    ];
  }
  if (length > MOST_DIRECTORY_BYTES || count * 46 > length)
    throw fail(`states ${count} members in ${length} bytes; it is damaged`);
  return { at, length, count };
}

function safe(value: bigint, fail: (what: string) => CheckpointError): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER))
    throw fail(`states an offset of ${value}; it is damaged`);
  return Number(value);
}

/** The 64-bit numbers of extra field 1, in order. */
function wideFields(extra: Buffer): number[] {
  for (let p = 0; p + 4 <= extra.length; ) {
    const length = extra.readUInt16LE(p + 2),
      end = p + 4 + length;
    if (end > extra.length) break;
    if (extra.readUInt16LE(p) === 1) {
      return Array.from({ length: Math.floor(length / 8) }, (_, i) =>
        Number(extra.readBigUInt64LE(p + 4 + 8 * i)),
      );
    }
    p = end;
  }
  return [];
}

const inflate = promisify(inflateRaw);

/** All bytes of a member, decompressed and checked. @throws CheckpointError naming file and member */
export async function readMember(
  path: string,
  handle: FileHandle,
  member: ZipMember,
): Promise<Uint8Array> {
  const packed = new Uint8Array(member.packed);
  const fail = (what: string): CheckpointError =>
    new CheckpointError(`${path}: member "${member.name}" ${what}; the file is damaged`);
  if (!(await readExactly(handle, packed, member.offset))) throw fail('ends early');
  let bytes: Uint8Array = packed;
  if (!member.stored) {
    try {
      bytes = await inflate(packed, { maxOutputLength: Math.max(1, member.size) });
    } catch (cause) {
      throw new CheckpointError(
        fail(`cannot be decompressed (${(cause as Error).message})`).message,
        { cause },
      );
    }
  }
  if (bytes.length !== member.size)
    throw fail(`has ${bytes.length} bytes instead of ${member.size}`);
  if (crc32(bytes) !== member.crc) throw fail('fails its checksum');
  return bytes;
}

/** A member to write. */
export interface ZipEntry {
  name: string;
  data: () => Promise<Uint8Array>;
}

/** The bytes of an archive of stored members, one member in memory at a time. Every size is written as 64 bits. */
export async function* zipChunks(entries: Iterable<ZipEntry>): AsyncGenerator<Uint8Array> {
  const directory: Buffer[] = [];
  let at = 0;
  for (const { name, data } of entries) {
    const bytes = await data(),
      text = Buffer.from(name),
      crc = crc32(bytes);
    const wide = (...values: number[]): Buffer => {
      const extra = Buffer.alloc(4 + 8 * values.length);
      extra.writeUInt16LE(1, 0);
      extra.writeUInt16LE(8 * values.length, 2);
      values.forEach((v, i) => extra.writeBigUInt64LE(BigInt(v), 4 + 8 * i));
      return extra;
    };
    // Common to both headers: version 4.5, UTF-8 name, stored, 1 January 1980 (so the same model gives the same bytes).
    const common = (extra: number): Buffer => {
      const b = Buffer.alloc(26);
      b.writeUInt16LE(45, 0);
      b.writeUInt16LE(0x800, 2);
      b.writeUInt16LE(0x21, 8);
      b.writeUInt32LE(crc, 10);
      b.writeUInt32LE(IN_64, 14);
      b.writeUInt32LE(IN_64, 18);
      b.writeUInt16LE(text.length, 22);
      b.writeUInt16LE(extra, 24);
      return b;
    };
    const local = wide(bytes.length, bytes.length),
      central = wide(bytes.length, bytes.length, at);
    const head = Buffer.concat([word(LOCAL), common(local.length), text, local]);
    const rest = Buffer.alloc(14);
    rest.writeUInt32LE(IN_64, 10);
    directory.push(
      Buffer.concat([word(CENTRAL), Buffer.of(45, 3), common(central.length), rest, text, central]),
    );
    yield head;
    yield bytes;
    at += head.length + bytes.length;
  }
  const list = Buffer.concat(directory);
  const end64 = Buffer.alloc(56),
    locator = Buffer.alloc(20),
    end = Buffer.alloc(22);
  end64.writeUInt32LE(END64, 0);
  end64.writeBigUInt64LE(44n, 4);
  end64.writeUInt16LE(45, 12);
  end64.writeUInt16LE(45, 14);
  for (const [o, v] of [
    [24, directory.length],
    [32, directory.length],
    [40, list.length],
    [48, at],
  ] as const)
    end64.writeBigUInt64LE(BigInt(v), o);
  locator.writeUInt32LE(LOCATOR64, 0);
  locator.writeBigUInt64LE(BigInt(at + list.length), 8);
  locator.writeUInt32LE(1, 16);
  end.writeUInt32LE(END, 0);
  end.fill(0xff, 8, 20);
  yield Buffer.concat([list, end64, locator, end]);
}

function word(value: number): Buffer {
  const b = Buffer.alloc(4);
  b.writeUInt32LE(value);
  return b;
}
