/**
 * Decoding images with sharp into plain bytes. Resizing is not done here: libvips' kernels differ
 * from PIL's by several grey levels, so the pipeline uses the package's own PIL-exact resize.
 */
import type Sharp from 'sharp';
import { DataError, Siglip2Error } from '../errors.js';
import { wantError } from './exhausted.js';
import { releaseMemory } from '../native.js';

let library: Promise<typeof Sharp> | undefined;

/** Names of files that are read as images. */
export const READABLE_IMAGES = /\.(jpe?g|jpe|jfif|png|webp|avif|gif|tiff?|svg)$/i;
/** Names of images that are not read: whoever leaves them out says so. */
export const UNREADABLE_IMAGES =
  /\.(hei[cf]|hif|jxl|jp2|j2k|jpx|jpf|bmp|dib|psd|ico|cur|p[bgpn]m|tga|exr|hdr|qoi|dng|cr[23]|nef|arw|orf|raf|rw2|eps|emf|wmf)$/i;

/**
 * sharp, with the first image: texts and raw pixels need not wait for it.
 * @throws Siglip2Error ERR_NATIVE when it cannot be loaded
 */
function loadSharp(): Promise<typeof Sharp> {
  library ??= import('sharp').then(({ default: sharp }) => {
    // One image is decoded on one thread: the loader's workers are the parallelism, and more threads
    // than cores lose.
    sharp.concurrency(1);
    // Every image is decoded once or kept by us; libvips' cache would only hold memory.
    sharp.cache(false);
    return sharp;
  }, (cause: unknown) => {
    const reason = (cause as Error).message.split('\n')[0];
    library = undefined;
    // No DataError: the images are sound.
    throw new Siglip2Error('ERR_NATIVE', `images cannot be decoded (${reason}); run: npm install sharp`, { cause });
  });
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
 * What becomes of transparency: "keep" gives four channels for images that have it, "white" lays
 * the image on white, "drop" forgets alpha as PIL's `convert("RGB")` does.
 */
export type AlphaMode = 'keep' | 'white' | 'drop';

/** Options of `decodeImage`. */
export interface DecodeOptions {
  /** Default "white". */
  alpha?: AlphaMode;
  /**
   * Images with more pixels are refused (decompression bombs). Default 178,956,970, PIL's limit.
   */
  maxPixels?: number;
  /**
   * Embedded colour profiles: "apply" converts to sRGB, CMYK by its profile; "ignore" takes the
   * numbers as they are and CMYK by R = (255 - C)(255 - K)/255, as PIL's `convert("RGB")` does and
   * so the published preprocessors. Default "apply".
   */
  profile?: 'apply' | 'ignore';
}

/**
 * Decodes PNG, JPEG, WebP, AVIF, GIF (first frame) or SVG to 8-bit RGB or RGBA. EXIF orientation is
 * applied; grey, 16-bit and CMYK images become 8-bit sRGB.
 *
 * @param bytes the encoded image
 * @param name file and key, for the error message
 * @throws DataError naming the file when it is corrupt, truncated, too large or of an unknown
 *   format
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
  const { alpha = 'white', maxPixels = 178_956_970, profile = 'apply' } = options;
  const sharp = await loadSharp();
  try {
    const ignoreIcc = profile === 'ignore';
    let image = sharp(bytes, { failOn: 'error', limitInputPixels: maxPixels, ignoreIcc }).autoOrient();
    const cmyk = ignoreIcc && jpegComponents(bytes) === 4;
    image = cmyk
      ? image.pipelineColourspace('cmyk').toColourspace('cmyk')
      : image.toColourspace('srgb');
    if (cmyk) {
      const { data, info } = await image
        .raw({ depth: 'uchar' })
        .toBuffer({ resolveWithObject: true });
      return {
        data: inkToRgb(data),
        width: info.width,
        height: info.height,
        channels: 3,
      };
    }
    if (alpha === 'white') image = image.flatten({ background: '#ffffff' });
    if (alpha === 'drop') image = image.removeAlpha();
    const { data, info } = await image
      .raw({ depth: 'uchar' })
      .toBuffer({ resolveWithObject: true });
    const { width, height, channels } = info;
    if (channels === 3 || channels === 4) return { data, width, height, channels };
    return {
      data: spreadGrey(data, width * height, channels),
      width,
      height,
      channels: channels === 2 ? 4 : 3,
    };
  } catch (cause) {
    const want = wantError(name, cause);
    if (want) throw want;
    throw new DataError(
      `${name}: cannot decode the image: ${(cause as Error).message.replace(/\s+/g, ' ').trim()}` +
        (/pixel limit/.test((cause as Error).message)
          ? ` of ${maxPixels}; raise maxPixels if it is meant to be so large` : ''),
      { cause },
    );
  }
}

/** Colour components of a JPEG, from its frame header; 0 when the bytes are no JPEG. */
function jpegComponents(bytes: Uint8Array): number {
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return 0;
  for (let at = 2; at + 9 < bytes.length && bytes[at] === 0xff; ) {
    const marker = bytes[at + 1] as number;
    // SOF0..SOF15 but DHT (c4), JPG (c8) and DAC (cc).
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker))
      return bytes[at + 9] as number;
    if (marker === 0xff) at++; // fill byte
    else at += 2 + (bytes[at + 2] as number) * 256 + (bytes[at + 3] as number);
  }
  return 0;
}

/** CMYK to RGB without a profile: R = (255 - K) - (255 - K)·C/255, and so on. */
function inkToRgb(ink: Uint8Array): Uint8Array {
  const out = new Uint8Array((ink.length / 4) * 3);
  for (let i = 0, o = 0; i < ink.length; i += 4) {
    const light = 255 - (ink[i + 3] as number);
    for (let c = 0; c < 3; c++) out[o++] = light - div255((ink[i + c] as number) * light);
  }
  return out;
}

/** One or two channels (grey, alpha) to three or four. */
function spreadGrey(data: Uint8Array, pixels: number, channels: number): Uint8Array {
  const out = new Uint8Array(pixels * (channels + 2));
  for (let i = 0, j = 0; i < pixels; i++, j += channels + 2) {
    out.fill(data[i * channels] as number, j, j + 3);
    if (channels === 2) out[j + 3] = data[i * 2 + 1] as number;
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
