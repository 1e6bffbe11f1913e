/**
 * Which files make a sample: one rule for everything that reads collections.
 *
 * Files of one key, the path up to the first dot of its last part, belong together. `KEY.jpg`, `KEY.json` and `KEY.txt` are image and
 * captions; where there is none of them, the first `KEY.more.jpg` and so on stands in. Names that begin with a dot are left out.
 */
import * as path from 'node:path';
import { ConfigError } from '../errors.js';
import { isHidden } from '../fs/walk.js';
import { readableImage, unreadableImage } from '../image/names.js';
import type { Location } from '../io/reader.js';
import type { TarEntry } from '../io/tar.js';

/**
 * Other members than `KEY.jpg` and `KEY.txt` or `KEY.json`, by what stands behind the key and its dot; of a manifest, other
 * columns or keys.
 */
export interface MemberNames {
  /** For example `depth.png`. */
  image?: string;
  /** For example `syn.txt` or `blip.json`; what does not end in `.json` is text. */
  caption?: string;
}

/** What a member is to its sample. */
type Part = 'image' | 'mask' | 'json' | 'txt';

/** A chosen member. */
export interface Member extends Location {
  name: string;
  /** 0 for one whose name says it, 1 for a stand-in. */
  rank: number;
  fault?: string;
}

/** The members of one sample, while they are being collected. */
export interface Draft {
  key: string;
  image?: Member;
  mask?: Member;
  json?: Member;
  txt?: Member;
  /** Extension of an image that is of no kind that is read. */
  unread?: string;
  /** Members that others of their kind leave no place for. */
  extra?: { name: string; part: Part; rank: number }[];
}

/**
 * The sample that a member belongs to by WebDataset's rule: the path up to the first dot of its last part. undefined for
 * hidden files and those without an extension.
 */
export function memberKey(name: string): string | undefined {
  const slash = name.lastIndexOf('/') + 1,
    dot = name.indexOf('.', slash);
  return dot <= slash || isHidden(name) ? undefined : name.slice(0, dot);
}

/** What follows the key and its dot, in small letters. */
export function suffixOf(name: string): string {
  const slash = name.lastIndexOf('/') + 1;
  return name.slice(name.indexOf('.', slash) + 1).toLowerCase();
}

const plain = (suffix: string | undefined): string | undefined =>
  suffix?.replace(/^\./, '').toLowerCase();

/** What a member with this suffix is. */
export function partOf(
  suffix: string,
  names: MemberNames = {},
): { part: Part; rank: number } | undefined {
  const image = plain(names.image),
    caption = plain(names.caption);
  const extension = suffix.slice(suffix.lastIndexOf('.') + 1),
    rank = extension === suffix ? 0 : 1;
  if (suffix === image) return { part: 'image', rank: 0 };
  if (suffix === caption) return { part: extension === 'json' ? 'json' : 'txt', rank: 0 };
  if (suffix === 'mask.png') return { part: 'mask', rank: 0 };
  if (suffix.endsWith('.mask.png')) return { part: 'mask', rank: 1 };
  if (readableImage(suffix))
    return image === undefined
      ? { part: 'image', rank: extension === 'svg' ? 1 : rank }
      : undefined;
  // Beside a caption that was named, the .json is still asked for classes and regions.
  if (extension === 'json')
    return caption === undefined
      ? { part: 'json', rank }
      : rank === 0 && !caption.endsWith('json')
        ? { part: 'json', rank: 1 }
        : undefined;
  if (extension === 'txt') return caption === undefined ? { part: 'txt', rank } : undefined;
  return undefined;
}

/** Called for a member that is not used. */
export type OnLeftOut = (reason: string, name: string) => void;

/**
 * The members of each sample of a tar, samples in the order of their first member.
 * @param wanted whether a key is of interest
 */
export function groupMembers(
  file: string,
  entries: readonly TarEntry[],
  names: MemberNames | undefined,
  onLeftOut: OnLeftOut,
  wanted: (key: string) => boolean = () => true,
): Map<string, Draft> {
  const drafts = new Map<string, Draft>();
  for (const { name, offset, size, fault } of entries) {
    const key = memberKey(name);
    if (key === undefined) continue;
    const suffix = suffixOf(name),
      is = partOf(suffix, names),
      unread = is ? undefined : unreadableImage(suffix);
    if (!is && unread === undefined) continue;
    let draft = drafts.get(key);
    if (!draft) {
      if (!wanted(key)) continue;
      drafts.set(key, (draft = { key }));
    }
    if (!is) {
      draft.unread ??= unread!;
      continue;
    }
    const { part, rank } = is,
      before = draft[part],
      member: Member = { path: file, offset, size, name, rank, ...(fault ? { fault } : {}) };
    if (!before || rank < before.rank) {
      if (before) (draft.extra ??= []).push({ name: before.name, part, rank: before.rank });
      draft[part] = member;
    } else (draft.extra ??= []).push({ name, part, rank });
  }
  for (const draft of drafts.values()) {
    // A stand-in that is not needed is no loss, nor is a second caption file.
    for (const { name, part, rank } of draft.extra ?? [])
      if (draft[part]!.rank === rank) onLeftOut('a second member of the same kind', name);
  }
  return drafts;
}

/**
 * The images of a folder, each a sample of its own with the captions that are beside it; its key is its path from the folder on.
 * An image without captions, `KEY.depth.png`, belongs to `KEY.jpg` where that has some, and is left out.
 * @param names from `walk`
 */
export function* groupFiles(
  folder: string,
  names: readonly string[],
  members: MemberNames = {},
): Generator<Draft> {
  // Cameras and Windows write IMG.JPG and IMG.TXT; members of tars are taken in any case too.
  const present = new Map(names.map((name) => [lowerExtension(name), name]));
  const image = plain(members.image),
    caption = plain(members.caption);
  const endings =
    caption === undefined
      ? ['json', 'txt']
      : [caption, ...(caption.endsWith('json') ? [] : ['json'])];
  const captionOf = (stem: string): boolean =>
    endings.some((ending) => present.has(`${stem}.${ending}`));
  const imageOf = (stem: string): boolean =>
    READABLE.some((extension) => present.has(`${stem}.${extension}`));
  for (const name of names) {
    const suffix = suffixOf(name.replaceAll(path.sep, '/')),
      unread = unreadableImage(name);
    if (image === undefined ? !readableImage(name) && unread === undefined : suffix !== image)
      continue;
    // An image is named by itself here, so its stem ends at the last dot; not where a member was named.
    const stem =
      image === undefined
        ? name.slice(0, -path.extname(name).length)
        : name.slice(0, -suffix.length - 1);
    const key = stem.slice(0, stem.indexOf('.', stem.lastIndexOf(path.sep) + 1));
    if (
      !captionOf(stem) &&
      key !== '' &&
      stem.startsWith(`${key}.`) &&
      captionOf(key) &&
      imageOf(key)
    )
      continue;
    if (unread !== undefined && image === undefined) {
      if (!imageOf(stem)) yield { key: name, unread };
      continue;
    }
    const whole = { offset: 0, size: -1 },
      draft: Draft = {
        key: name,
        image: { path: path.join(folder, name), name, rank: 0, ...whole },
      };
    for (const ending of endings) {
      const beside = present.get(`${stem}.${ending}`),
        part = ending.endsWith('json') ? 'json' : 'txt';
      if (beside !== undefined)
        draft[part] = {
          path: path.join(folder, beside),
          name: beside,
          rank: ending === (caption ?? ending) ? 0 : 1,
          ...whole,
        };
    }
    yield draft;
  }
}

const READABLE = ['jpg', 'jpeg', 'jpe', 'jfif', 'png', 'webp', 'avif', 'gif', 'tif', 'tiff'];

function lowerExtension(name: string): string {
  const extension = path.extname(name);
  return name.slice(0, name.length - extension.length) + extension.toLowerCase();
}

/** Members from the command line, as `image=depth.png,caption=syn.txt`. Throws ConfigError. */
export function parseMembers(given: string): MemberNames {
  const names: MemberNames = {};
  for (const one of given.split(',')) {
    const [, part, name] = /^\s*(image|caption)=(.+?)\s*$/.exec(one) ?? [];
    if (part === undefined)
      throw new ConfigError(
        `--members must be such as image=depth.png,caption=syn.txt but is ${given}`,
      );
    names[part as 'image'] = name!;
  }
  return names;
}
