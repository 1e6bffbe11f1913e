/**
 * What callers hand to an encoder as an image: a path, a URL, the bytes of a file, or raw pixels; and its decoding.
 * Decoding runs on libuv's thread pool.
 */
import { fileURLToPath } from 'node:url';
import { types } from 'node:util';
import { kindOf } from '../check.js';
import { DataError } from '../errors.js';
import { exhausted } from '../fs/exhausted.js';
import { fileError, ioError, readInput } from '../fs/files.js';
import {
  DEFAULT_ALPHA,
  DEFAULT_MAX_PIXELS,
  decodeImage,
  type RawImage,
  withAlpha,
} from './image.js';
import { decodingLanes, readingLanes } from './lanes.js';

/** Decoded pixels, row by row, channels interleaved: grey, RGB or RGBA. A canvas' ImageData is such. */
export interface RawPixels {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
  /** Default: as many as `data` holds. */
  channels?: 1 | 3 | 4;
}

/** Encoded bytes, as files hold them. */
export type EncodedImage = Uint8Array | ArrayBufferLike | Blob | Response;

/**
 * A path; a URL (`http:`, `https:`, `file:`, `data:`), as string or object; the bytes of a JPEG, PNG, WebP, AVIF, GIF
 * (first frame), TIFF or SVG file, as an array, buffer, Blob, File or Response, with a name for error messages if there is
 * one; or raw pixels. What is given belongs to the call until it has settled, or given the row: it is not copied.
 */
export type ImageInput =
  | string
  | URL
  | EncodedImage
  | { bytes: EncodedImage; name: string }
  | RawPixels;

export interface DecodeInputOptions {
  /** Transparency: laid on white, or forgotten as PIL's `convert("RGB")` does. Default "white". */
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
  if (isNamed(input)) return input.name ?? inputName(input.bytes);
  if (isRaw(input)) return `${input.width}×${input.height} pixels`;
  if (isBody(input))
    return (
      (input as Partial<File>).name || (input as Partial<Response>).url || 'an image without a name'
    );
  return `image of ${input.byteLength} bytes`;
}

/**
 * Decodes an input to 8-bit RGB with EXIF orientation applied and colour profiles ignored.
 * @throws DataError naming the input when it is missing, damaged, too large or no image; the signal's reason
 */
export async function decodeInput(
  input: ImageInput,
  options: DecodeInputOptions = {},
): Promise<RawImage> {
  const { alpha = DEFAULT_ALPHA, maxPixels = DEFAULT_MAX_PIXELS } = options;
  options.signal?.throwIfAborted();
  if (isRaw(input)) return fromRaw(input, alpha, maxPixels);
  const { name, bytes } = await encoded(input, options);
  return decodeImage(bytes, name, { alpha, maxPixels });
}

/**
 * Decodes an input as `decodeInput` does and gives it to `use`, which shrinks it. So many are read and decoded at a time as
 * the lanes allow, whoever calls; the result settles when `use` has.
 */
export function useDecoded<T>(
  input: ImageInput,
  options: DecodeInputOptions,
  use: (image: RawImage) => Promise<T>,
): Promise<T> {
  return readingLanes.run(async () => {
    options.signal?.throwIfAborted();
    const read = isRaw(input) ? input : await encoded(input, options);
    return decodingLanes.run(async () => use(await decodeInput(read, options)));
  });
}

type NotRaw = Exclude<ImageInput, RawPixels>;

/** The encoded bytes of an input, with its name. */
async function encoded(
  input: NotRaw,
  options: DecodeInputOptions,
): Promise<{ name: string; bytes: Uint8Array }> {
  if (typeof input === 'string' || input instanceof URL)
    return { name: inputName(input), bytes: await fetchBytes(input, options) };
  const given = isNamed(input) ? input.bytes : input;
  if (isBody(given)) {
    const name = inputName(input),
      body = given as Partial<Response> & Blob;
    try {
      return {
        name,
        bytes:
          typeof body.ok === 'boolean'
            ? await bodyOf(body as Response, name, options)
            : new Uint8Array(await body.arrayBuffer()),
      };
    } catch (cause) {
      options.signal?.throwIfAborted();
      if (cause instanceof DataError) throw cause;
      throw new DataError(`${name}: cannot be read: ${(cause as Error).message}`, { cause });
    }
  }
  const bytes = types.isAnyArrayBuffer(given) ? new Uint8Array(given) : (given as Uint8Array);
  // A wider array would be decoded as the pixels that sharp takes it for.
  if (!ArrayBuffer.isView(bytes) || bytes.BYTES_PER_ELEMENT !== 1)
    throw new DataError(
      `an image must be a path, a URL, a Buffer, a Blob, a Response or raw pixels but is ${
        ArrayBuffer.isView(bytes)
          ? `${(bytes as object).constructor.name}; give raw pixels as { data, width, height }`
          : kindOf(given)
      }`,
    );
  return { name: inputName(input), bytes: unshared(bytes) };
}

/** What other threads may write to while it is decoded, copied. */
function unshared(bytes: Uint8Array): Uint8Array {
  return types.isSharedArrayBuffer(bytes.buffer) ? bytes.slice() : bytes;
}

const isObject = (input: unknown): input is object => typeof input === 'object' && input !== null;

function isNamed(input: unknown): input is { bytes: EncodedImage; name: string } {
  return isObject(input) && !ArrayBuffer.isView(input) && !isBody(input) && 'bytes' in input;
}

function isBody(input: unknown): input is Blob | Response {
  return isObject(input) && typeof (input as Partial<Blob>).arrayBuffer === 'function';
}

function isRaw(input: ImageInput): input is RawPixels {
  return isObject(input) && !ArrayBuffer.isView(input) && 'data' in input;
}

async function fetchBytes(input: string | URL, options: DecodeInputOptions): Promise<Uint8Array> {
  const text = String(input);
  if (!URL_SCHEME.test(text))
    return readInput(text).catch((e: unknown) => {
      throw fileError(e, 'read', inputName(text));
    });
  if (/^file:/i.test(text)) {
    const path = filePath(text);
    return readInput(path).catch((e: unknown) => {
      throw fileError(e, 'read', path);
    });
  }
  return download(text, options);
}

function filePath(url: string): string {
  try {
    return fileURLToPath(url);
  } catch (cause) {
    throw new DataError(
      `${inputName(url)}: names no file of this machine: ${(cause as Error).message}`,
      { cause },
    );
  }
}

/** A response's bytes. */
async function bodyOf(
  response: Response,
  name: string,
  { maxBytes = 64 * 2 ** 20 }: DecodeInputOptions,
): Promise<Uint8Array> {
  if (!response.ok || !response.body)
    throw new DataError(
      `${name}: the server answered ${response.status} ${response.statusText}`.trim(),
    );
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
    size += chunk.length;
    if (size > maxBytes)
      throw new DataError(
        `${name}: is larger than ${maxBytes} bytes; if it is meant to be, download it ` +
          'yourself and give its bytes',
      );
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, size);
}

async function download(url: string, options: DecodeInputOptions): Promise<Uint8Array> {
  const name = inputName(url),
    { signal } = options;
  try {
    return await bodyOf(await fetch(url, signal ? { signal } : {}), name, options);
  } catch (cause) {
    signal?.throwIfAborted();
    if (cause instanceof DataError) throw cause;
    const want = exhausted(cause);
    if (want) throw ioError('download', name, want);
    const { message, cause: inner } = cause as Error;
    throw new DataError(
      `${name}: cannot be downloaded: ${(inner as Error | undefined)?.message ?? message}`,
      { cause },
    );
  }
}

function fromRaw(raw: RawPixels, alpha: 'drop' | 'white', maxPixels: number): RawImage {
  const { data, width, height } = raw,
    channels = raw.channels ?? data?.length / (width * height);
  if (ArrayBuffer.isView(data) && !types.isUint8Array(data) && !types.isUint8ClampedArray(data))
    throw new DataError(
      `raw pixels: data must be a Uint8Array or Uint8ClampedArray of values from 0 to 255 but is ${
        (data as object).constructor.name
      }`,
    );
  const whole =
    [width, height].every((n) => Number.isSafeInteger(n) && n > 0) && [1, 3, 4].includes(channels);
  if (!whole || !ArrayBuffer.isView(data) || data.length !== width * height * channels)
    throw new DataError(
      `raw pixels: data must hold width × height × channels (1, 3 or 4) bytes but holds ` +
        `${(data as Uint8Array | undefined)?.length ?? 'none'} for ${width}×${height}×${channels}`,
    );
  if (width * height > maxPixels)
    throw new DataError(`raw pixels: ${width}×${height} is more than ${maxPixels} pixels`);
  const bytes = unshared(new Uint8Array(data.buffer, data.byteOffset, data.length));
  return { data: withAlpha(bytes, width * height, channels, alpha), width, height, channels: 3 };
}
