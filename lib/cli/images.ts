/** The images that a command line names: files, patterns, folders, tar archives. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { FileReader } from '../data/files.js';
import { READABLE_IMAGES } from '../data/image.js';
import type { ImageInput } from '../data/input.js';
import { expandPaths } from '../data/paths.js';
import { indexTar } from '../data/tar.js';
import { ConfigError, DataError } from '../errors.js';

/** One image; its bytes are read when it is its turn. */
export interface NamedImage {
  name: string;
  open(): ImageInput;
}

function folderImages(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? folderImages(path) : entry.isFile() && READABLE_IMAGES.test(entry.name) ? [path] : [];
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
      if (info.isDirectory()) images.push(...folderImages(path).sort().map((name) => ({ name, open: () => name })));
      else if (/\.tar$/i.test(path)) {
        for (const { name, offset, size } of (await indexTar(path)).filter((e) => READABLE_IMAGES.test(e.name))) {
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
