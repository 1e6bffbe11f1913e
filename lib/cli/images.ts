/** The images that a command line names: files, patterns, folders, tar archives. */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { groupFiles, groupMembers, type MemberNames, parseMembers } from '../data/members.js';
import { ConfigError, DataError } from '../errors.js';
import { headOf, IMAGE_KINDS, isKind, kindOf } from '../fs/kinds.js';
import { expandPaths } from '../fs/paths.js';
import { SkipCounter } from '../fs/skips.js';
import { walk } from '../fs/walk.js';
import type { ImageInput } from '../image/input.js';
import { readableImage, unreadReason } from '../image/names.js';
import { FileReader } from '../io/reader.js';
import { indexTar } from '../io/tar.js';

/** One image; its bytes are read when it is its turn. */
export interface NamedImage {
  name: string;
  open(): ImageInput;
}

/** What was not taken is said once a kind, not a line each. */
const told = (path: string) =>
  new SkipCounter(Infinity, (message) => console.error(`siglip2: ${path}: ${message}`));

async function folderImages(folder: string, members: MemberNames | undefined): Promise<string[]> {
  const { names, unnamed } = await walk(folder),
    skips = told(folder);
  for (const name of unnamed) skips.add('the name is not UTF-8', name);
  return [...groupFiles(folder, names, members)].flatMap(({ key, unread }) => {
    if (unread !== undefined) skips.add(unreadReason(unread), key);
    return unread === undefined ? [join(folder, key)] : [];
  });
}

/** One image a sample, by the rule that training and scoring have. */
async function tarImages(
  path: string,
  members: MemberNames | undefined,
): Promise<{ name: string; offset: number; size: number }[]> {
  const skips = told(path),
    entries = await indexTar(path, { note: (message) => console.error(`siglip2: ${message}`) });
  const found = groupMembers(
    path,
    entries,
    members,
    (reason, name) => void skips.add(reason, name),
  );
  return [...found.values()].flatMap(({ key, image, unread }) => {
    if (image?.fault !== undefined) skips.add(`the image is ${image.fault}`, key);
    else if (image === undefined && unread !== undefined) skips.add(unreadReason(unread), key);
    return image === undefined || image.fault !== undefined ? [] : [image];
  });
}

/**
 * Everything that `specs` name, in their order; the files of a pattern or folder sorted by path, the members of a tar in
 * its own order. In folders and tars `members`, as `image=depth.png`, names the images. Files named one by one are taken whatever their ending.
 * @throws ConfigError when there is no image; DataError, IoError
 */
export async function listImages(
  specs: readonly string[],
  given: { members?: string | undefined } = {},
): Promise<NamedImage[]> {
  const images: NamedImage[] = [],
    members = given.members === undefined ? undefined : parseMembers(given.members);
  const reader = new FileReader();
  for (const spec of specs) {
    if (/^https?:/i.test(spec)) {
      images.push({ name: spec, open: () => spec });
      continue;
    }
    const skips = told(spec);
    // A file whose own name looks like a pattern is meant by that name.
    for (const path of existsSync(spec) ? [spec] : expandPaths(spec).sort()) {
      const info = statSync(path, { throwIfNoEntry: false });
      if (!info) throw new DataError(`${path}: there is no such file; check the path`);
      if (info.isDirectory()) {
        images.push(
          ...(await folderImages(path, members)).map((name) => ({ name, open: () => name })),
        );
        continue;
      }
      const kind =
        readableImage(path) || /\.tar$/i.test(path) ? undefined : kindOf(headOf(path), path);
      if (kind && kind.id !== 'tar' && !IMAGE_KINDS.has(kind.id)) {
        if (path === spec)
          throw new DataError(`${path}: ${isKind(kind)}; images, folders and tars are taken`);
        skips.add(`is ${kind.name}`, path);
      } else if (kind?.id === 'tar' || /\.tar$/i.test(path)) {
        for (const { name, offset, size } of await tarImages(path, members)) {
          const full = `${path}:${name}`;
          images.push({
            name: full,
            open: () => ({ bytes: reader.read({ path, offset, size }), name: full }),
          });
        }
      } else images.push({ name: path, open: () => path });
    }
  }
  if (specs.length === 0)
    throw new ConfigError('no images are named; give files, patterns, folders or tars');
  if (images.length === 0)
    throw new ConfigError(
      `there is no image in ${specs.join(', ')}; files are taken that end in ` +
        '.jpg, .png, .webp, .avif, .gif, .tif or .svg',
    );
  return images;
}
