/** Archives and tables as other programs write them, made byte by byte. */
import { brotliCompressSync, gzipSync } from 'node:zlib';
import { ByteWriter, parquetWrite } from 'hyparquet-writer';

/** A member of an archive. */
export interface TestMember {
  name: string;
  data?: string | Uint8Array;
  /** tar's type; '0' is a file. */
  type?: string;
  link?: string;
  /** Of a sparse member: more blocks of its map. */
  extended?: number;
}

const BLOCK = 512;
const padded = (bytes: Uint8Array): Buffer =>
  Buffer.concat([bytes, Buffer.alloc((BLOCK - (bytes.length % BLOCK)) % BLOCK)]);

function header({ name, type = '0', link = '', extended = 0 }: TestMember, size: number): Buffer {
  const block = Buffer.alloc(BLOCK),
    gnu = type === 'S' || type === 'L' || type === 'K';
  block.write(name, 0, 100);
  block.write('0000644\0', 100);
  block.write(`${size.toString(8).padStart(11, '0')}\0`, 124);
  block.write(`${'0'.repeat(11)}\0`, 136);
  block.write(' '.repeat(8), 148);
  block.write(type, 156);
  block.write(link, 157, 100);
  block.write(gnu ? 'ustar  \0' : 'ustar\x0000', 257, 'latin1');
  if (type === 'S') {
    block.write(`${'0'.repeat(11)}\0`, 386);
    block.write(`${size.toString(8).padStart(11, '0')}\0`, 398);
    block[482] = extended > 0 ? 1 : 0;
    block.write(`${(1 << 20).toString(8).padStart(11, '0')}\0`, 483);
  }
  const sum = block.reduce((a, b) => a + b, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return block;
}

/** A pax header for the member behind it. */
export function pax(records: Record<string, string>): TestMember {
  const data = Object.entries(records)
    .map(([key, value]) => {
      const rest = ` ${key}=${value}\n`,
        bytes = Buffer.byteLength(rest);
      let length = bytes + String(bytes).length;
      if (String(length).length !== String(bytes).length) length = bytes + String(length).length;
      return `${length}${rest}`;
    })
    .join('');
  return { name: 'PaxHeaders/x', type: 'x', data };
}

/** The bytes of an archive. @param marker whether it has an end marker, with padding to 10 KiB as tars have it */
export function tarOf(members: readonly TestMember[], marker = true): Buffer {
  const parts = members.flatMap((member) => {
    const data = Buffer.from(member.data ?? ''),
      { extended = 0 } = member;
    const map = Array.from({ length: extended }, (_, i) => {
      const block = Buffer.alloc(BLOCK);
      block[504] = i < extended - 1 ? 1 : 0;
      return block;
    });
    return [header(member, data.length), ...map, padded(data)];
  });
  const whole = Buffer.concat(parts);
  return marker
    ? Buffer.concat([
        whole,
        Buffer.alloc(
          2 * BLOCK + ((20 * BLOCK - ((whole.length + 2 * BLOCK) % (20 * BLOCK))) % (20 * BLOCK)),
        ),
      ])
    : whole;
}

/** A zstd frame of stored blocks. */
function zstd(bytes: Uint8Array): Uint8Array {
  const size = Buffer.alloc(4),
    parts: Uint8Array[] = [Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0xa0]), size],
    most = 1 << 17;
  size.writeUInt32LE(bytes.length);
  for (let from = 0; from === 0 || from < bytes.length; from += most) {
    const block = bytes.subarray(from, from + most),
      head = block.length * 8 + (from + most >= bytes.length ? 1 : 0);
    parts.push(Buffer.from([head & 255, (head >> 8) & 255, head >> 16]), block);
  }
  return Buffer.concat(parts);
}

/** An LZ4 block of literals alone. */
function lz4(bytes: Uint8Array): Uint8Array {
  if (bytes.length < 15) return Buffer.concat([Buffer.from([bytes.length << 4]), bytes]);
  const rest = bytes.length - 15;
  return Buffer.concat([
    Buffer.from([0xf0]),
    Buffer.alloc(Math.floor(rest / 255), 255),
    Buffer.from([rest % 255]),
    bytes,
  ]);
}

/** What packs the pages of a table, by codec. */
export const PACKERS = {
  GZIP: (bytes: Uint8Array) => gzipSync(bytes),
  BROTLI: (bytes: Uint8Array) => brotliCompressSync(bytes),
  ZSTD: zstd,
  LZ4_RAW: lz4,
  // Hadoop's frames: sizes unpacked and packed, big-endian, before each block.
  LZ4: (bytes: Uint8Array) => {
    const packed = lz4(bytes),
      head = Buffer.alloc(8);
    head.writeUInt32BE(bytes.length, 0);
    head.writeUInt32BE(packed.length, 4);
    return Buffer.concat([head, packed]);
  },
};

export type Codec = keyof typeof PACKERS | 'SNAPPY' | 'UNCOMPRESSED';
type WriteOptions = Parameters<typeof parquetWrite>[0];

/** The bytes of a table. */
export function tableOf(
  columnData: WriteOptions['columnData'],
  codec: Codec = 'SNAPPY',
  more: Partial<WriteOptions> = {},
): Uint8Array {
  const writer = new ByteWriter();
  parquetWrite({ writer, columnData, codec, compressors: PACKERS, ...more });
  return new Uint8Array(writer.getBuffer());
}
