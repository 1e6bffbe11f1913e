/**
 * Decoding images with sharp into plain bytes. Resizing is not done here: libvips' kernels differ
 * from PIL's by several grey levels, so the pipeline uses the package's own PIL-exact resize.
 */
import type Sharp from 'sharp';
import type { Sharp as Pipeline } from 'sharp';
import { DataError, Siglip2Error } from '../errors.js';
import { wantError } from '../fs/exhausted.js';
import { releaseMemory } from '../native.js';
import {
  type GifFrame,
  gifFrame,
  imageFormat,
  isCutJpeg,
  jpegComponents,
  ownOrientation,
  pngSamples,
} from './image_file.js';

let library: Promise<typeof Sharp> | undefined;

/**
 * sharp, with the first image: texts and raw pixels need not wait for it.
 * @throws Siglip2Error ERR_NATIVE when it cannot be loaded
 */
function loadSharp(): Promise<typeof Sharp> {
  library ??= import('sharp').then(
    ({ default: sharp }) => {
      // One image is decoded on one thread: the loader's workers are the parallelism, and more threads
      // than cores lose.
      sharp.concurrency(1);
      // Every image is decoded once or kept by us; libvips' cache would only hold memory.
      sharp.cache(false);
      return sharp;
    },
    (cause: unknown) => {
      const reason = (cause as Error).message.split('\n')[0];
      library = undefined;
      // No DataError: the images are sound.
      throw new Siglip2Error(
        'ERR_NATIVE',
        `images cannot be decoded (${reason}); run: npm install sharp`,
        { cause },
      );
    },
  );
  return library;
}

/** Pixels as bytes, row by row, channels interleaved. */
export interface RawImage {
  /** (height, width, channels) */
  data: Uint8Array;
  height: number;
  width: number;
  channels: 3 | 4;
}

/**
 * PIL-exact antialiased bilinear resize of uint8 pixels: (height, width, channels) to (outHeight,
 * outWidth, channels). Channels are independent, so colour must be multiplied by alpha beforehand.
 */
export type ResizeImage = (
  src: Uint8Array,
  height: number,
  width: number,
  channels: number,
  outHeight: number,
  outWidth: number,
) => Uint8Array;

/**
 * What becomes of transparency: "white" lays the image on white, as people see it and as transformers 5 does; "drop"
 * forgets alpha as PIL's `convert("RGB")` does; "keep" gives four channels for images that have it.
 */
export type AlphaMode = 'keep' | 'white' | 'drop';

/** The default of everything that decodes images. */
export const DEFAULT_ALPHA = 'white';
/** Pixels of an image, PIL's limit. */
export const DEFAULT_MAX_PIXELS = 178_956_970;

/** Options of `decodeImage`. */
export interface DecodeOptions {
  /** Default "white". */
  alpha?: AlphaMode;
  /**
   * Images with more pixels are refused (decompression bombs). Default 178,956,970, PIL's limit.
   */
  maxPixels?: number;
}

/**
 * Decodes PNG, JPEG, WebP, AVIF, GIF (first frame), TIFF or SVG to 8-bit RGB or RGBA, as PIL does: orientation of EXIF and
 * XMP is applied, colour profiles are not, CMYK becomes R = (255 - C)(255 - K)/255, colours of 16 bits lose their lower
 * eight, and grey of more than 8 bits is clipped at 255.
 *
 * @param bytes the encoded image
 * @param name file and key, for the error message
 * @throws DataError naming the file when it is corrupt, truncated, too large or of a format that is not read
 */
export async function decodeImage(
  bytes: Uint8Array,
  name: string,
  options: DecodeOptions = {},
): Promise<RawImage> {
  const image = await decode(bytes, name, options);
  ours.add(image);
  return image;
}

/** What `decodeImage` made; other images' pixels may be the caller's. */
const ours = new WeakSet<RawImage>();

/** Frees the pixels of an image that `decodeImage` made and nobody needs any more; others are left alone. */
export function releaseDecoded(image: RawImage): void {
  if (ours.delete(image)) releaseMemory(image.data);
}

async function decode(bytes: Uint8Array, name: string, options: DecodeOptions): Promise<RawImage> {
  const { alpha = DEFAULT_ALPHA, maxPixels = DEFAULT_MAX_PIXELS } = options;
  const sharp = await loadSharp(),
    format = imageFormat(bytes),
    gif = format === 'GIF' ? gifFrame(bytes) : undefined;
  try {
    const limits = { failOn: 'error', limitInputPixels: maxPixels, ignoreIcc: true } as const;
    const shown = gif?.flag !== undefined && alpha === 'drop' ? opaque(bytes, gif.flag) : bytes;
    const { cmyk, deepGrey } = await kindOfPixels(sharp(shown, limits), bytes, format);
    const orientation = ownOrientation(bytes, format);
    const image =
      orientation === undefined
        ? sharp(shown, limits).autoOrient()
        : oriented(sharp(shown, limits), orientation);
    const raw = async (
      depth: 'uchar' | 'ushort' | 'float',
      space: string,
      from = image,
    ): Promise<{ data: Buffer } & Size> => {
      const { data, info } = await from
        .toColourspace(space)
        .raw({ depth })
        .toBuffer({ resolveWithObject: true });
      return { data, width: info.width, height: info.height, channels: info.channels };
    };
    if (cmyk) {
      const { data, ...size } = await raw(cmyk, 'cmyk', image.pipelineColourspace('cmyk'));
      // Of 16 bits PIL takes the upper eight.
      const ink =
        cmyk === 'uchar'
          ? data
          : Uint8Array.from(
              new Uint16Array(data.buffer, data.byteOffset, data.length / 2),
              (v) => v >> 8,
            );
      return {
        width: size.width,
        height: size.height,
        channels: 3,
        data: inkToRgb(ink, size.channels),
      };
    }
    if (deepGrey) {
      const { data, width, height, channels } = await raw(
        deepGrey,
        deepGrey === 'ushort' ? 'grey16' : 'b-w',
        image.pipelineColourspace(deepGrey === 'ushort' ? 'grey16' : 'b-w'),
      );
      const values =
        deepGrey === 'ushort'
          ? new Uint16Array(data.buffer, data.byteOffset, data.length / 2)
          : new Float32Array(data.buffer, data.byteOffset, data.length / 4);
      const grey = Uint8Array.from({ length: width * height }, (_, i) =>
        Math.trunc(Math.min(255, Math.max(0, values[i * channels]!))),
      );
      return { width, height, channels: 3, data: spread(grey, width * height, 1, 3) };
    }
    const { data, width, height, channels } = await raw(
      'uchar',
      'srgb',
      alpha === 'drop' && !gif ? image.removeAlpha() : image,
    );
    const pixels = withAlpha(data, width * height, channels, alpha);
    if (pixels !== data) releaseMemory(data);
    const decoded = {
      data: pixels,
      width,
      height,
      channels: (pixels.length / (width * height)) as 3 | 4,
    };
    // Around the first frame a GIF with a transparent colour is transparent, unless alpha is dropped.
    return gif && (gif.flag === undefined || alpha === 'drop') ? fillAround(decoded, gif) : decoded;
  } catch (cause) {
    const want = wantError(name, cause);
    if (want) throw want;
    throw new DataError(`${name}: ${whyNot(cause as Error, bytes, format, maxPixels)}`, { cause });
  }
}

interface Size {
  width: number;
  height: number;
  channels: number;
}

/** Why an image cannot be decoded, as a sentence behind its name. */
function whyNot(
  { message }: Error,
  bytes: Uint8Array,
  format: string | undefined,
  maxPixels: number,
): string {
  const said = message.replace(/\s+/g, ' ').trim();
  if (/pixel limit/.test(said))
    return `cannot decode the image: ${said} of ${maxPixels}; raise maxPixels if it is meant to be so large`;
  if (bytes.length === 0) return 'cannot decode the image: it is empty';
  if (format === 'JPEG' && isCutJpeg(bytes))
    return 'cannot decode the image: it is a truncated JPEG, without its end';
  if (format === 'git-LFS pointer')
    return 'is a git-LFS pointer and not the image; fetch it with `git lfs pull`';
  if (format === 'web page')
    return 'is a web page and no image; whatever was downloaded was not there';
  if (
    format !== undefined &&
    !['JPEG', 'PNG', 'GIF', 'TIFF', 'WebP', 'AVIF', 'SVG'].includes(format)
  )
    return `is a ${format} file, which is not read; convert it to PNG or JPEG`;
  return `cannot decode the image: ${said}`;
}

/** What the file's samples are, where they need care. */
async function kindOfPixels(
  image: Pipeline,
  bytes: Uint8Array,
  format: string | undefined,
): Promise<{ cmyk?: 'uchar' | 'ushort'; deepGrey?: 'ushort' | 'float' }> {
  if (format === 'JPEG') return jpegComponents(bytes) === 4 ? { cmyk: 'uchar' } : {};
  if (format === 'PNG') {
    const { bits, grey } = pngSamples(bytes);
    return bits === 16 && grey && (await image.metadata()).channels === 1
      ? { deepGrey: 'ushort' }
      : {};
  }
  if (format !== 'TIFF') return {};
  const { space, channels, depth } = await image.metadata();
  if (space === 'cmyk') return { cmyk: depth === 'ushort' ? 'ushort' : 'uchar' };
  return channels !== 1 || depth === 'uchar'
    ? {}
    : { deepGrey: depth === 'ushort' ? 'ushort' : 'float' };
}

/** A GIF's bytes without its transparent colour, whose pixels then have the palette's. */
function opaque(bytes: Uint8Array, flag: number): Uint8Array {
  const copy = bytes.slice();
  copy[flag]! &= ~1;
  return copy;
}

/** Gives the part of a GIF's canvas that its first frame leaves free the colour that PIL gives it. */
function fillAround(image: RawImage, { x, y, width, height, ground }: GifFrame): RawImage {
  if (x === 0 && y === 0 && width >= image.width && height >= image.height) return image;
  const { data, channels } = image;
  for (let row = 0, i = 0; row < image.height; row++)
    for (let column = 0; column < image.width; column++, i += channels)
      if (row < y || row >= y + height || column < x || column >= x + width) data.set(ground, i);
  return image;
}

/** Mirrored and turned as an orientation of EXIF says; sharp mirrors before it turns. */
function oriented(image: Pipeline, orientation: number): Pipeline {
  if ([2, 5, 7].includes(orientation)) image = image.flop();
  if (orientation === 4) image = image.flip();
  const angle = [0, 0, 0, 180, 0, 270, 90, 90, 270][orientation]!;
  return angle ? image.rotate(angle) : image;
}

/** Pixels of one to four channels, grey or colour with or without alpha, as three channels, or as four where alpha is kept. */
export function withAlpha(
  data: Uint8Array,
  pixels: number,
  channels: number,
  alpha: AlphaMode,
): Uint8Array {
  const transparent = channels % 2 === 0;
  if (channels === 3 || (channels === 4 && alpha === 'keep')) return data;
  if (!transparent || alpha === 'keep') return spread(data, pixels, channels, transparent ? 4 : 3);
  const out = spread(data, pixels, channels, 3);
  if (alpha === 'drop') return out;
  for (let i = 0, a = channels - 1; i < out.length; i += 3, a += channels) {
    const opacity = data[a]!;
    if (opacity !== 255) for (let c = i; c < i + 3; c++) out[c] = onWhite(out[c]!, opacity);
  }
  return out;
}

/** PIL's `alpha_composite` over opaque white, in its own rounding. */
export function onWhite(value: number, opacity: number): number {
  const x = (value * opacity + 255 * (255 - opacity) + 128) * 128;
  return (((x >> 8) + x) >> 8) >> 7;
}

/** Grey repeated, or alpha left out. */
function spread(data: Uint8Array, pixels: number, channels: number, to: 3 | 4): Uint8Array {
  const out = new Uint8Array(pixels * to),
    colours = channels > 2;
  for (let i = 0, j = 0; j < out.length; i += channels, j += to) {
    out[j] = data[i]!;
    out[j + 1] = data[colours ? i + 1 : i]!;
    out[j + 2] = data[colours ? i + 2 : i]!;
    if (to === 4) out[j + 3] = data[i + channels - 1]!;
  }
  return out;
}

/** CMYK to RGB without a profile: R = (255 - K) - (255 - K)·C/255, and so on. */
function inkToRgb(ink: Uint8Array, channels: number): Uint8Array {
  const out = new Uint8Array((ink.length / channels) * 3);
  for (let i = 0, o = 0; i < ink.length; i += channels) {
    const light = 255 - (ink[i + 3] as number);
    for (let c = 0; c < 3; c++) out[o++] = light - div255((ink[i + c] as number) * light);
  }
  return out;
}

/**
 * Multiplies colour by alpha in place (rounded), so that resizing does not bleed hidden colours.
 * (H, W, 4)
 */
export function premultiply(rgba: Uint8Array): Uint8Array {
  for (let i = 0; i < rgba.length; i += 4) {
    const a = rgba[i + 3] as number;
    if (a === 255) continue;
    for (let c = i; c < i + 3; c++) rgba[c] = div255((rgba[c] as number) * a);
  }
  return rgba;
}

/** round(x / 255) for 0 <= x <= 65025, exactly and without a division. */
export function div255(x: number): number {
  const y = x + 128;
  return (y + (y >> 8)) >> 8;
}
