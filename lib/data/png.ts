/**
 * A short way for the commonest small PNG: 8-bit RGB or RGBA, not interlaced, no colour management.
 * libvips needs about a millisecond to set up its pipeline, several times what decoding 96x96 pixels
 * takes, and artwork is decoded by the thousand before the first epoch is through. Whatever is not
 * exactly of that kind, damage included, is left to sharp.
 */
import { inflateSync } from 'node:zlib';

const kSignature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
/** Larger images gain nothing, and inflating them would hold up the thread. */
const kMaxPixels = 1 << 18;
/** Chunks that do not change the pixels. */
const kHarmless = new Set(['pHYs', 'tEXt', 'zTXt', 'iTXt', 'tIME', 'bKGD', 'sRGB', 'sBIT']);

const kCrc = Int32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
  return c;
});

function crc32(bytes: Uint8Array, start: number, end: number): number {
  let c = -1;
  for (let i = start; i < end; i++)
    c = (kCrc[(c ^ (bytes[i] as number)) & 255] as number) ^ (c >>> 8);
  return ~c >>> 0;
}

/**
 * Pixels of a simple PNG, (height, width, channels); undefined when it is anything else.
 * Never throws.
 */
export function decodeSimplePng(
  bytes: Uint8Array,
): { data: Uint8Array; width: number; height: number; channels: 3 | 4 } | undefined {
  const png = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (png.length < 57 || !png.subarray(0, 8).equals(kSignature)) return undefined;
  let width = 0;
  let height = 0;
  let channels: 3 | 4 = 3;
  const parts: Buffer[] = [];
  for (let at = 8; ;) {
    if (at + 12 > png.length) return undefined;
    const length = png.readUInt32BE(at);
    const end = at + 8 + length;
    if (end + 4 > png.length || crc32(png, at + 4, end) !== png.readUInt32BE(end)) return undefined;
    const type = png.toString('latin1', at + 4, at + 8);
    if (at === 8) {
      if (type !== 'IHDR' || length !== 13) return undefined;
      width = png.readUInt32BE(16);
      height = png.readUInt32BE(20);
      // Bit depth 8; colour type 2 (RGB) or 6 (RGBA); compression, filter and interlace method 0.
      const kind = png.readUInt32BE(24);
      const last = png[28];
      if ((kind !== 0x08020000 && kind !== 0x08060000) || last !== 0) return undefined;
      channels = kind === 0x08020000 ? 3 : 4;
      if (width === 0 || height === 0 || width * height > kMaxPixels) return undefined;
    } else if (type === 'IDAT') {
      parts.push(png.subarray(at + 8, end));
    } else if (type === 'IEND') {
      break;
    } else if (!kHarmless.has(type)) {
      return undefined;
    }
    at = end + 4;
  }
  const stride = width * channels;
  let raw: Buffer;
  try {
    raw = inflateSync(parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts), {
      maxOutputLength: height * (stride + 1),
    });
  } catch {
    return undefined;
  }
  if (raw.length !== height * (stride + 1)) return undefined;
  const data = new Uint8Array(height * stride);
  for (let y = 0; y < height; y++) {
    if (!unfilter(raw, y * (stride + 1), data, y * stride, stride, channels, y > 0))
      return undefined;
  }
  return { data, width, height, channels };
}

/** Undoes the filter of one row (PNG specification, section 9); false for an unknown filter. */
function unfilter(
  raw: Buffer,
  from: number,
  out: Uint8Array,
  to: number,
  stride: number,
  channels: number,
  hasAbove: boolean,
): boolean {
  const filter = raw[from] as number;
  from++;
  // Rows above the first and pixels left of the first count as zero.
  const above = (i: number): number => (hasAbove ? (out[to + i - stride] as number) : 0);
  switch (filter) {
    case 0:
      out.set(raw.subarray(from, from + stride), to);
      return true;
    case 1:
      for (let i = 0; i < stride; i++) {
        const left = i >= channels ? (out[to + i - channels] as number) : 0;
        out[to + i] = (raw[from + i] as number) + left;
      }
      return true;
    case 2:
      for (let i = 0; i < stride; i++) out[to + i] = (raw[from + i] as number) + above(i);
      return true;
    case 3:
      for (let i = 0; i < stride; i++) {
        const left = i >= channels ? (out[to + i - channels] as number) : 0;
        out[to + i] = (raw[from + i] as number) + ((left + above(i)) >> 1);
      }
      return true;
    case 4:
      for (let i = 0; i < stride; i++) {
        const a = i >= channels ? (out[to + i - channels] as number) : 0;
        const b = above(i);
        const c = i >= channels ? above(i - channels) : 0;
        const pa = Math.abs(b - c);
        const pb = Math.abs(a - c);
        const pc = Math.abs(a + b - 2 * c);
        out[to + i] = (raw[from + i] as number) + (pa <= pb && pa <= pc ? a : pb <= pc ? b : c);
      }
      return true;
    default:
      return false;
  }
}
