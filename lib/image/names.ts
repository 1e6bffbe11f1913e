/** Files that are images, by their names. */
import * as fs from 'node:fs';
import { fileError } from '../fs/files.js';

/** Extensions of files that are read as images, and of images that are not. */
const READABLE = /(?:^|\.)(jpe?g|jpe|jfif|png|webp|avif|gif|tiff?|svg)$/i;
const UNREADABLE = new RegExp(
  '(?:^|\\.)(hei[cf]|hif|jxl|jp2|j2k|jpx|jpf|bmp|dib|psd|ico|cur|p[bgpn]m|tga|exr|hdr|qoi|dng|cr[23]|nef|' +
    'arw|orf|raf|rw2|eps|emf|wmf)$',
  'i',
);

/** Whether a file's name is that of an image that can be read. */
export function readableImage(name: string): boolean {
  return READABLE.test(name);
}

/** The extension of an image that cannot be read; undefined for anything else. */
export function unreadableImage(name: string): string | undefined {
  return UNREADABLE.exec(name)?.[1]?.toLowerCase();
}

/** What an image of such an extension is called in the count of skips. */
export const unreadReason = (extension: string): string =>
  `.${extension} images are not read; convert them to JPEG or PNG`;

/** Of an image that is named by its own bytes, in a parquet column say, or by base64. */
export const NO_PATH = 'the image is no path of a file';

/** Why a file can be no image, as it is called in the count of skips. Throws IoError when the disk fails. */
export function imageFault(file: string): string | undefined {
  if (file.includes('\0')) return NO_PATH;
  try {
    const found = fs.statSync(file, { throwIfNoEntry: false });
    return found === undefined
      ? 'the image is missing'
      : found.size === 0
        ? 'empty image'
        : undefined;
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === 'ENAMETOOLONG') return NO_PATH;
    if (code === 'ELOOP') return 'the image is missing';
    throw fileError(cause, 'read', file);
  }
}
