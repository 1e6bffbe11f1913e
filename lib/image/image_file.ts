/**
 * What is read from an image file's own bytes before sharp decodes it: its format, how it lies, and what else PIL takes
 * into account and libvips does not. Bytes are hostile: every length is checked against their end.
 */
import { inflateSync } from 'node:zlib';

/** Formats that are decoded. */
export type ImageFormat = 'JPEG' | 'PNG' | 'GIF' | 'TIFF' | 'WebP' | 'AVIF' | 'SVG';

const ascii = (bytes: Uint8Array, at: number, length: number): string =>
  String.fromCharCode(...bytes.subarray(at, at + length));
const big32 = (b: Uint8Array, at: number): number =>
  ((b[at]! << 24) | (b[at + 1]! << 16) | (b[at + 2]! << 8) | b[at + 3]!) >>> 0;
const little32 = (b: Uint8Array, at: number): number =>
  ((b[at + 3]! << 24) | (b[at + 2]! << 16) | (b[at + 1]! << 8) | b[at]!) >>> 0;
const little16 = (b: Uint8Array, at: number): number => b[at]! | (b[at + 1]! << 8);

/** The format by its first bytes: one that is decoded, another by its name, or undefined. */
export function imageFormat(bytes: Uint8Array): string | undefined {
  const head = ascii(bytes, 0, 16),
    begins = (text: string): boolean => head.startsWith(text);
  if (begins('\xff\xd8')) return 'JPEG';
  if (begins('\x89PNG')) return 'PNG';
  if (begins('GIF8')) return 'GIF';
  if (begins('II*\0') || begins('MM\0*') || begins('II+\0') || begins('MM\0+')) return 'TIFF';
  if (begins('RIFF') && head.startsWith('WEBP', 8)) return 'WebP';
  if (head.startsWith('ftyp', 4)) {
    const brand = head.slice(8, 12);
    return /^avi[fs]/.test(brand)
      ? 'AVIF'
      : /^(hei|hev|mif1|msf1)/.test(brand)
        ? brand === 'mif1' && ascii(bytes, 16, 64).includes('avif')
          ? 'AVIF'
          : 'HEIC'
        : /^jxl/.test(brand)
          ? 'JPEG XL'
          : 'video';
  }
  if (begins('BM')) return 'BMP';
  if (begins('\xff\x0a') || begins('\0\0\0\x0cJXL ')) return 'JPEG XL';
  if (begins('\0\0\0\x0cjP  ') || begins('\xff\x4f\xff\x51')) return 'JPEG 2000';
  if (begins('8BPS')) return 'Photoshop';
  if (begins('\0\0\x01\0')) return 'icon';
  if (begins('%PDF')) return 'PDF';
  if (/^P[1-7]\s/.test(head)) return 'PNM';
  if (begins('version https://')) return 'git-LFS pointer';
  const text = ascii(bytes, 0, 512).trimStart().toLowerCase();
  if (
    /^(<\?xml|<!--|<!doctype svg|<svg)/.test(text) &&
    ascii(bytes, 0, 4096).toLowerCase().includes('<svg')
  )
    return 'SVG';
  return /^<(!doctype html|html|head|body)/.test(text) ? 'web page' : undefined;
}

/** Colour components of a JPEG, from its frame header; 0 when there is none. */
export function jpegComponents(bytes: Uint8Array): number {
  // SOF0..SOF15 but DHT (c4), JPG (c8) and DAC (cc).
  for (const { marker, at, end } of jpegSegments(bytes))
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker))
      return at + 5 < end ? bytes[at + 5]! : 0;
  return 0;
}

/** Whether a JPEG lacks its end mark. */
export function isCutJpeg(bytes: Uint8Array): boolean {
  for (let at = bytes.length - 2; at >= 2; at--)
    if (bytes[at] === 0xff && bytes[at + 1] === 0xd9) return false;
  return true;
}

function* jpegSegments(bytes: Uint8Array): Generator<{ marker: number; at: number; end: number }> {
  for (let at = 2; at + 3 < bytes.length && bytes[at] === 0xff; ) {
    const marker = bytes[at + 1]!;
    if (marker === 0xff) {
      at++;
      continue;
    } // fill byte
    if (marker === 0xda) return; // the pixels follow
    const end = at + 2 + bytes[at + 2]! * 256 + bytes[at + 3]!;
    yield { marker, at: at + 4, end: Math.min(end, bytes.length) };
    at = end;
  }
}

/**
 * The orientation that a PNG, JPEG or WebP asks for, 1 to 8, where libvips does not look or looks too early: as PIL's
 * `exif_transpose`, EXIF first, then XMP; of a PNG EXIF in a chunk anywhere or in a text. Undefined: ask libvips.
 */
export function ownOrientation(bytes: Uint8Array, format: string | undefined): number | undefined {
  if (format === 'PNG') return pngOrientation(bytes);
  const { exif, xmp } =
    format === 'JPEG' ? jpegMetadata(bytes) : format === 'WebP' ? webpMetadata(bytes) : {};
  if (!xmp || (exif && exifOrientation(exif) !== undefined)) return undefined;
  return xmpOrientation(xmp);
}

type Metadata = { exif?: Uint8Array; xmp?: string };

function jpegMetadata(bytes: Uint8Array): Metadata {
  const found: Metadata = {},
    XMP = 'http://ns.adobe.com/xap/1.0/\0';
  for (const { marker, at, end } of jpegSegments(bytes)) {
    if (marker !== 0xe1) continue;
    if (ascii(bytes, at, 6) === 'Exif\0\0') found.exif ??= bytes.subarray(at + 6, end);
    else if (ascii(bytes, at, XMP.length) === XMP)
      found.xmp ??= Buffer.from(bytes.subarray(at + XMP.length, end)).toString('latin1');
  }
  return found;
}

function webpMetadata(bytes: Uint8Array): Metadata {
  const found: Metadata = {};
  for (let at = 12; at + 8 <= bytes.length; ) {
    const name = ascii(bytes, at, 4),
      size = little32(bytes, at + 4),
      data = bytes.subarray(at + 8, at + 8 + size);
    if (name === 'EXIF') found.exif ??= ascii(data, 0, 6) === 'Exif\0\0' ? data.subarray(6) : data;
    if (name === 'XMP ') found.xmp ??= Buffer.from(data).toString('latin1');
    at += 8 + size + (size % 2);
  }
  return found;
}

/** Texts of a PNG are read up to this many bytes. */
const MOST_TEXT = 2 ** 20;

function pngOrientation(bytes: Uint8Array): number {
  let exif: Uint8Array | undefined, profile: Uint8Array | undefined, xmp: string | undefined;
  for (let at = 8; at + 12 <= bytes.length; ) {
    const size = big32(bytes, at),
      type = ascii(bytes, at + 4, 4),
      data = bytes.subarray(at + 8, at + 8 + size);
    if (type === 'eXIf') exif ??= data;
    if (type === 'tEXt' || type === 'zTXt' || type === 'iTXt') {
      const text = pngText(type, data);
      if (text?.key === 'Raw profile type exif') profile ??= rawProfile(text.value);
      if (text?.key === 'XML:com.adobe.xmp') xmp ??= text.value;
    }
    if (type === 'IEND') break;
    at += 12 + size;
  }
  const exifs = exif ?? profile;
  return (
    (exifs && exifOrientation(exifs)) ?? (xmp !== undefined ? xmpOrientation(xmp) : undefined) ?? 1
  );
}

function pngText(type: string, data: Uint8Array): { key: string; value: string } | undefined {
  const end = data.indexOf(0);
  if (end < 1 || end > 79) return undefined;
  const key = ascii(data, 0, end),
    latin = (b: Uint8Array): string => Buffer.from(b.subarray(0, MOST_TEXT)).toString('latin1');
  const inflated = (b: Uint8Array): string | undefined => {
    try {
      return latin(inflateSync(b, { maxOutputLength: MOST_TEXT }));
    } catch {
      return undefined; // damaged or too large: not a text that says how the image lies
    }
  };
  let value: string | undefined;
  if (type === 'tEXt') value = latin(data.subarray(end + 1));
  else if (type === 'zTXt') value = inflated(data.subarray(end + 2));
  else {
    const language = data.indexOf(0, end + 3),
      translated = language < 0 ? -1 : data.indexOf(0, language + 1);
    if (translated < 0) return undefined;
    const rest = data.subarray(translated + 1);
    value = data[end + 1] ? inflated(rest) : latin(rest);
  }
  return value === undefined ? undefined : { key, value };
}

/** The bytes of ImageMagick's text form: a name, a length, hexadecimal digits. */
function rawProfile(text: string): Uint8Array | undefined {
  const hex = /^\s*\w+\s+\d+\s+([\da-f\s]*)$/i.exec(text.slice(0, MOST_TEXT))?.[1];
  if (hex === undefined) return undefined;
  const bytes = Buffer.from(hex.replace(/\s+/g, ''), 'hex');
  return ascii(bytes, 0, 6) === 'Exif\0\0' ? bytes.subarray(6) : bytes;
}

/** Tag 0x0112 of the first directory; 1 when it holds nonsense, which keeps PIL from looking further too. */
function exifOrientation(exif: Uint8Array): number | undefined {
  const little = ascii(exif, 0, 2) === 'II';
  if (exif.length < 8 || (!little && ascii(exif, 0, 2) !== 'MM')) return undefined;
  const u16 = (at: number): number =>
    little ? exif[at]! | (exif[at + 1]! << 8) : (exif[at]! << 8) | exif[at + 1]!;
  const start = little ? little32(exif, 4) : big32(exif, 4);
  if (start + 2 > exif.length) return undefined;
  for (let i = 0, n = u16(start); i < n; i++) {
    const at = start + 2 + 12 * i;
    if (at + 12 > exif.length) return undefined;
    if (u16(at) === 0x0112) return valid(u16(at + 8)) ?? 1;
  }
  return undefined;
}

function xmpOrientation(xmp: string): number | undefined {
  return valid(Number(/tiff:Orientation(?:="|>)([0-9])/.exec(xmp.slice(0, MOST_TEXT))?.[1] ?? 0));
}

const valid = (orientation: number): number | undefined =>
  orientation >= 1 && orientation <= 8 ? orientation : undefined;

/** Bits of a PNG's samples, and whether it has grey alone. */
export function pngSamples(bytes: Uint8Array): { bits: number; grey: boolean } {
  return { bits: bytes[24] ?? 8, grey: bytes[25] === 0 };
}

/** The first frame of a GIF, for what libvips makes of its surroundings and of the transparent colour. */
export interface GifFrame {
  x: number;
  y: number;
  width: number;
  height: number;
  /** Byte whose lowest bit says that a colour is transparent; undefined when none is. */
  flag: number | undefined;
  /** What PIL fills the canvas with before the frame is drawn. */
  ground: [number, number, number];
}

/** Undefined when the bytes are no complete GIF up to the first frame. */
export function gifFrame(bytes: Uint8Array): GifFrame | undefined {
  if (bytes.length < 13) return undefined;
  const packed = bytes[10]!;
  let table = packed & 0x80 ? 13 : undefined,
    at = 13 + (packed & 0x80 ? 3 << ((packed & 7) + 1) : 0);
  let flag: number | undefined,
    transparent = 0;
  for (; at + 10 <= bytes.length; ) {
    if (bytes[at] === 0x21) {
      if (bytes[at + 1] === 0xf9 && bytes[at + 2] === 4) {
        flag = bytes[at + 3]! & 1 ? at + 3 : undefined;
        transparent = bytes[at + 6]!;
      }
      at += 2;
      while (at < bytes.length && bytes[at] !== 0) at += 1 + bytes[at]!;
      at++;
    } else if (bytes[at] === 0x2c) {
      if (bytes[at + 9]! & 0x80) table = at + 10;
      const colour =
        table === undefined ? undefined : table + 3 * (flag === undefined ? 0 : transparent);
      const ground: GifFrame['ground'] =
        colour !== undefined && colour + 2 < bytes.length
          ? [bytes[colour]!, bytes[colour + 1]!, bytes[colour + 2]!]
          : [0, 0, 0];
      return {
        x: little16(bytes, at + 1),
        y: little16(bytes, at + 3),
        width: little16(bytes, at + 5),
        height: little16(bytes, at + 7),
        flag,
        ground,
      };
    } else {
      return undefined;
    }
  }
  return undefined;
}
