/** The images that a command line names: files, patterns, folders, tar archives. */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { FileReader, readableImage, unreadableImage, unreadReason } from '../data/files.js';
import type { ImageInput } from '../data/input.js';
import { expandPaths } from '../data/paths.js';
import { groupMembers } from '../data/members.js';
import { SkipCounter } from '../data/skips.js';
import { indexTar } from '../data/tar.js';
import { walk } from '../data/walk.js';
import { ConfigError, DataError } from '../errors.js';

/** One image; its bytes are read when it is its turn. */
export interface NamedImage {
  name: string;
  open(): ImageInput;
}

/** What was not taken is said once a kind, not a line each. */
const told = (path: string) => new SkipCounter(Infinity, (message) => console.error(`siglip2: ${path}: ${message}`));

async function folderImages(folder: string): Promise<string[]> {
  const { names, unnamed } = await walk(folder), skips = told(folder);
  for (const name of unnamed) skips.add('the name is not UTF-8', name);
  for (const name of names) if (unreadableImage(name) !== undefined) skips.add(unreadReason(unreadableImage(name)!), name);
  return names.filter((name) => readableImage(name)).map((name) => join(folder, name));
}

/** One image a sample, by the rule that training and scoring have. */
async function tarImages(path: string): Promise<{ name: string; offset: number; size: number }[]> {
  const skips = told(path), found = groupMembers(path, await indexTar(path), undefined, (reason, name) => void skips.add(reason, name));
  return [...found.values()].flatMap(({ key, image, unread }) => {
    if (image?.fault !== undefined) skips.add(`the image is ${image.fault}`, key);
    else if (image === undefined && unread !== undefined) skips.add(unreadReason(unread), key);
    return image === undefined || image.fault !== undefined ? [] : [image];
  });
}

/**
 * Everything that `specs` name, in their order; the files of a pattern or folder sorted by path, the members of a tar in
 * its own order. Files named one by one are taken whatever their ending.
 * @throws ConfigError when there is no image; DataError, IoError
 */
export async function listImages(specs: readonly string[]): Promise<NamedImage[]> {
  const images: NamedImage[] = [];
  const reader = new FileReader();
  for (const spec of specs) {
    if (/^https?:/i.test(spec)) {
      images.push({ name: spec, open: () => spec });
      continue;
    }
    // A file whose own name looks like a pattern is meant by that name.
    for (const path of existsSync(spec) ? [spec] : expandPaths(spec).sort()) {
      const info = statSync(path, { throwIfNoEntry: false });
      if (!info) throw new DataError(`${path}: there is no such file; check the path`);
      if (info.isDirectory()) images.push(...(await folderImages(path)).map((name) => ({ name, open: () => name })));
      else if (/\.tar$/i.test(path)) {
        for (const { name, offset, size } of await tarImages(path)) {
          const full = `${path}:${name}`;
          images.push({ name: full, open: () => ({ bytes: reader.read({ path, offset, size }), name: full }) });
        }
      } else images.push({ name: path, open: () => path });
    }
  }
  if (specs.length === 0) throw new ConfigError('no images are named; give files, patterns, folders or tars');
  if (images.length === 0)
    throw new ConfigError(`there is no image in ${specs.join(', ')}; files are taken that end in ` +
      '.jpg, .png, .webp, .avif, .gif, .tif or .svg');
  return images;
}
