/**
 * What callers hand to an encoder as an image: a path, a URL, the bytes of a file, or raw pixels; and its decoding.
 * Decoding runs on libuv's thread pool.
 */
import { fileURLToPath } from 'node:url';
import { DataError } from '../errors.js';
import { readInput } from '../io/files.js';
import { fileError } from './files.js';
import { decodeImage, type RawImage } from './image.js';

/** Decoded pixels, row by row, channels interleaved: grey, RGB or RGBA. */
export interface RawPixels {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
  channels: 1 | 3 | 4;
}

/**
 * A path; a URL (`http:`, `https:`, `file:`, `data:`), as string or object; the bytes of a JPEG, PNG, WebP, AVIF, GIF
 * (first frame), TIFF or SVG file, with a name for error messages if there is one; or raw pixels.
 */
export type ImageInput = string | URL | Uint8Array | { bytes: Uint8Array; name: string } | RawPixels;

export interface DecodeInputOptions {
  /** Transparency: forgotten, as PIL's `convert("RGB")` does, or laid on white. Default "drop". */
  alpha?: 'drop' | 'white';
  /** Images with more pixels are refused. Default 178,956,970, PIL's limit. */
  maxPixels?: number;
  /** Most bytes of a download. Default 64 MiB. */
  maxBytes?: number;
  signal?: AbortSignal | undefined;
}

const URL_SCHEME = /^(https?|file|data):/i;

/** How an input is called in error messages. */
export function inputName(input: ImageInput): string {
  if (typeof input === 'string' || input instanceof URL) {
    const name = String(input) || 'an empty path';
    return name.length > 200 ? `${name.slice(0, 200)}…` : name;
  }
  if ('bytes' in input) return input.name ?? `image of ${input.bytes?.length} bytes`;
  return isRaw(input) ? `${input.width}×${input.height} pixels` : `image of ${input.length} bytes`;
}

/**
 * Decodes an input to 8-bit RGB with EXIF orientation applied and colour profiles ignored.
 * @throws DataError naming the input when it is missing, damaged, too large or no image; the signal's reason
 */
export async function decodeInput(input: ImageInput, options: DecodeInputOptions = {}): Promise<RawImage> {
  const alpha = options.alpha ?? 'drop', maxPixels = options.maxPixels ?? 178_956_970;
  options.signal?.throwIfAborted();
  if (input === null || !['string', 'object'].includes(typeof input))
    throw new DataError(`an image must be a path, a URL, a Buffer or raw pixels but is ${input === null ? 'null' : typeof input}`);
  if (isRaw(input)) return fromRaw(input, alpha, maxPixels);
  const name = inputName(input);
  const bytes = typeof input === 'string' || input instanceof URL ? await fetchBytes(input, options)
    : 'bytes' in input ? input.bytes : input;
  // A wider array would be decoded as the pixels that sharp takes it for.
  if (!ArrayBuffer.isView(bytes) || bytes.BYTES_PER_ELEMENT !== 1)
    throw new DataError(`an image must be a path, a URL, a Buffer or raw pixels but is ${
      ArrayBuffer.isView(bytes) ? (bytes as object).constructor.name : 'another object'}`);
  return decodeImage(bytes, name, { alpha, maxPixels, profile: 'ignore' });
}

function isRaw(input: ImageInput): input is RawPixels {
  return typeof input === 'object' && !ArrayBuffer.isView(input) && 'data' in input;
}

async function fetchBytes(input: string | URL, options: DecodeInputOptions): Promise<Uint8Array> {
  const text = String(input);
  if (!URL_SCHEME.test(text))
    return readInput(text).catch((e: unknown) => { throw fileError(e, 'read', inputName(text)); });
  if (/^file:/i.test(text)) {
    const path = filePath(text);
    return readInput(path).catch((e: unknown) => { throw fileError(e, 'read', path); });
  }
  return download(text, options);
}

function filePath(url: string): string {
  try {
    return fileURLToPath(url);
  } catch (cause) {
    throw new DataError(`${inputName(url)}: names no file of this machine: ${(cause as Error).message}`, { cause });
  }
}

async function download(url: string, { maxBytes = 64 * 2 ** 20, signal }: DecodeInputOptions): Promise<Uint8Array> {
  const name = inputName(url);
  try {
    const response = await fetch(url, signal ? { signal } : {});
    if (!response.ok || !response.body)
      throw new DataError(`${name}: the server answered ${response.status} ${response.statusText}`.trim());
    const chunks: Uint8Array[] = [];
    let size = 0;
    for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
      size += chunk.length;
      if (size > maxBytes)
        throw new DataError(`${name}: is larger than ${maxBytes} bytes; if it is meant to be, download it ` +
          'yourself and give its bytes');
      chunks.push(chunk);
    }
    return Buffer.concat(chunks, size);
  } catch (cause) {
    signal?.throwIfAborted();
    if (cause instanceof DataError) throw cause;
    const { message, cause: inner } = cause as Error;
    throw new DataError(`${name}: cannot be downloaded: ${(inner as Error | undefined)?.message ?? message}`, { cause });
  }
}

function fromRaw({ data, width, height, channels }: RawPixels, alpha: 'drop' | 'white', maxPixels: number): RawImage {
  const whole = [width, height].every((n) => Number.isSafeInteger(n) && n > 0) && [1, 3, 4].includes(channels);
  if (!whole || !ArrayBuffer.isView(data) || data.BYTES_PER_ELEMENT !== 1 || data.length !== width * height * channels)
    throw new DataError(`raw pixels: data must hold width × height × channels (1, 3 or 4) bytes but holds ` +
      `${(data as Uint8Array | undefined)?.length ?? 'none'} for ${width}×${height}×${channels}`);
  if (width * height > maxPixels) throw new DataError(`raw pixels: ${width}×${height} is more than ${maxPixels} pixels`);
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.length);
  if (channels === 3) return { data: bytes, width, height, channels };
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0, o = 0; o < rgb.length; i += channels, o += 3) {
    const opacity = channels === 4 && alpha === 'white' ? bytes[i + 3]! / 255 : 1;
    for (let c = 0; c < 3; c++) rgb[o + c] = Math.round(bytes[channels === 1 ? i : i + c]! * opacity + 255 * (1 - opacity));
  }
  return { data: rgb, width, height, channels: 3 };
}
