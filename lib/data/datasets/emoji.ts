/**
 * A real image-text dataset made of npm packages alone: emoji artwork by several studios
 * (`@iconify-json/*`, SVG), captioned with CLDR short names and keywords in 36 languages
 * (`cldr-annotations-full`).
 *
 * A class is a code point (or sequence) with an English short name and no skin tone. Every studio
 * draws the same classes in its own style, so leaving out a studio leaves out a style and keeps the
 * vocabulary:
 * - train: every other studio.
 * - val: fxemoji, for choosing a recipe. It has the fewest drawings, so it costs training least.
 * - test: openmoji, never trained on. It has nearly all classes, in full colour under a black
 *   outline of even width that no other studio draws, so that nothing in training is a near copy of
 *   it.
 */

import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { ConfigError, DataError } from '../../errors.js';
import { fileError, makeFolder, readJson, writeFileAtomic } from '../../fs/files.js';
import { packageFolder } from '../../fs/packages.js';
import { TarWriter } from '../../io/tar_writer.js';
import {
  type IconSet,
  mapIcons,
  type PackageLicence,
  packageVersion,
  render,
  studioLicence,
  svgOf,
} from './emoji_artwork.js';
import { cldrName, type EmojiClass, KEYWORDS, readClassTexts } from './emoji_captions.js';
import { legacyNames, studioNames } from './emoji_names.js';

/** Part of the dataset a studio belongs to. */
export type EmojiSplit = 'train' | 'val' | 'test';

/** One studio's artwork. */
export interface EmojiStudio {
  /** Name of the icon set; its package is `@iconify-json/<name>`. */
  name: string;
  split: EmojiSplit;
}

/** The studios of the default dataset. */
export const emojiStudios: readonly EmojiStudio[] = [
  { name: 'noto', split: 'train' },
  { name: 'twemoji', split: 'train' },
  { name: 'fluent-emoji-flat', split: 'train' },
  { name: 'emojione', split: 'train' },
  { name: 'fxemoji', split: 'val' },
  { name: 'openmoji', split: 'test' },
];

/** The 36 languages of the default dataset, those of XM3600. */
export const emojiLanguages: readonly string[] = [
  'ar',
  'bn',
  'cs',
  'da',
  'de',
  'el',
  'en',
  'es',
  'fa',
  'fi',
  'fil',
  'fr',
  'he',
  'hi',
  'hr',
  'hu',
  'id',
  'it',
  'ja',
  'ko',
  'mi',
  'nl',
  'no',
  'pl',
  'pt',
  'quz',
  'ro',
  'ru',
  'sv',
  'sw',
  'te',
  'th',
  'tr',
  'uk',
  'vi',
  'zh',
];

/** A studio as built. */
export interface EmojiStudioManifest extends PackageLicence {
  name: string;
  split: EmojiSplit;
  samples: number;
  /** Ids of the classes it has, ascending; one sample each. */
  classes: number[];
  shards: { file: string; samples: number; bytes: number }[];
  /** Icons that could not be drawn. */
  skipped: string[];
}

/** `manifest.json`: what was built from what. */
export interface EmojiManifest {
  format: number;
  /** Hash of options and package versions: equal means there is nothing to build. */
  fingerprint: string;
  /** Side of the images, pixels. */
  size: number;
  classes: number;
  samples: number;
  /** Captions over all samples. */
  captions: number;
  studios: EmojiStudioManifest[];
  languages: { code: string; cldr: string; classes: number }[];
  captionSource: PackageLicence;
}

/** Options of `buildEmojiDataset`. */
export interface EmojiOptions {
  /**
   * Studios and their splits; default `emojiStudios`. Any other coloured emoji set of
   * `@iconify-json` works too.
   */
  studios?: readonly EmojiStudio[];
  /** Languages (CLDR codes); "en" is needed. Default `emojiLanguages`. */
  languages?: readonly string[];
  /** Side of the rendered images, pixels. Default 96. */
  size?: number;
  /**
   * Also use `cldr-annotations-derived-full`: flags, keycaps, families and other sequences. Default
   * false.
   */
  derived?: boolean;
  /** With `derived`: also sequences with a skin tone, each a class of its own. Default false. */
  skinTones?: boolean;
  /** Whether people made of joined code points ("man judge", "woman judge") are classes too. Default true. */
  sequences?: boolean;
  /** Keeps only the first classes, for tests. Default: all. */
  maxClasses?: number;
  /** Samples in one shard. Default 1000. */
  samplesPerShard?: number;
  /** Called after every few images. */
  onProgress?: (progress: EmojiProgress) => void;
  /** Stops the build with the signal's reason; what is complete stays, and there is no manifest. */
  signal?: AbortSignal;
}

/** How far a build is. */
export interface EmojiProgress {
  stage: 'read' | 'render' | 'done';
  studio: string;
  /** Images drawn and to draw, all studios together (`total` is 0 while reading). */
  done: number;
  total: number;
}

const FORMAT = 2;
/** Drawing runs on libvips' threads; more than the cores of a small machine gains nothing. */
const PARALLEL = 4;

/**
 * Builds the dataset in `folder`: `<studio>-<nn>.tar` (WebDataset shards of PNG and JSON),
 * `classes.json` and `manifest.json`. When the manifest there already fits the options and the
 * installed packages, nothing is done. The manifest is written last, so a build that was cut short
 * is built again.
 *
 * @returns the manifest
 * @throws DataError when a package is missing (with the command that installs it); IoError when the
 *   folder cannot be written; ConfigError for options out of range
 */
export async function buildEmojiDataset(
  folder: string,
  options: EmojiOptions = {},
): Promise<EmojiManifest> {
  const {
    studios = emojiStudios,
    languages = emojiLanguages,
    size = 96,
    samplesPerShard = 1000,
  } = options;
  if (!languages.includes('en'))
    throw new ConfigError('emoji.languages must contain "en": classes are named by it');
  if (!(Number.isInteger(size) && size >= 8 && size <= 1024)) {
    throw new ConfigError(`emoji.size: expected an integer in [8, 1024] but got ${size}`);
  }
  const folders = new Map(
    studios.map(({ name }) => [name, packageFolder(`@iconify-json/${name}`)]),
  );
  const cldrFolder = packageFolder('cldr-annotations-full');
  const fingerprint = createHash('sha256')
    .update(
      JSON.stringify({
        format: FORMAT,
        studios,
        languages,
        size,
        samplesPerShard,
        keywords: KEYWORDS,
        names: [legacyNames, studioNames],
        derived: options.derived ?? false,
        skinTones: options.skinTones ?? false,
        sequences: options.sequences ?? true,
        maxClasses: options.maxClasses ?? null,
        packages: [...folders.values(), cldrFolder].map((f) => packageVersion(f).version),
      }),
    )
    .digest('hex');

  const existing = tryManifest(folder);
  if (existing?.fingerprint === fingerprint && complete(folder, existing)) {
    options.onProgress?.({
      stage: 'done',
      studio: '',
      done: existing.samples,
      total: existing.samples,
    });
    return existing;
  }
  await makeFolder(folder);
  try {
    fs.rmSync(path.join(folder, 'manifest.json'), { force: true });
    for (const studio of existing?.studios ?? []) {
      for (const shard of studio.shards)
        fs.rmSync(path.join(folder, path.basename(shard.file)), { force: true });
    }
  } catch (cause) {
    throw fileError(cause, 'write', folder);
  }

  const candidates = readClassTexts(options, languages);
  const sets: { studio: EmojiStudio; set: IconSet; icons: Map<string, string> }[] = [];
  for (const studio of studios) {
    options.signal?.throwIfAborted();
    options.onProgress?.({ stage: 'read', studio: studio.name, done: 0, total: 0 });
    const from = folders.get(studio.name) as string;
    const set = readJson(path.join(from, 'icons.json')) as IconSet;
    sets.push({ studio, set, icons: mapIcons(studio.name, from, set, candidates) });
  }
  const drawn = new Set(sets.flatMap(({ icons }) => [...icons.keys()]));
  const classes = candidates.filter(({ codePoints }) => drawn.has(codePoints));
  classes.forEach((item, id) => {
    item.id = id;
  });

  const total = sets.reduce((sum, { icons }) => sum + icons.size, 0);
  const manifest: EmojiManifest = {
    format: FORMAT,
    fingerprint,
    size,
    classes: classes.length,
    samples: 0,
    captions: 0,
    studios: [],
    languages: languages.map((code) => ({
      code,
      cldr: cldrName(code),
      classes: classes.filter(({ names }) => names[code] !== undefined).length,
    })),
    captionSource: {
      package: 'cldr-annotations-full',
      version: packageVersion(cldrFolder).version,
      licence: packageVersion(cldrFolder).license,
      licenceUrl: 'https://www.unicode.org/license.txt',
      attribution: `Unicode CLDR (${packageVersion(cldrFolder).homepage}), © Unicode, Inc.`,
    },
  };
  let done = 0;
  for (const { studio, set, icons } of sets) {
    const licence = studioLicence(studio.name, folders.get(studio.name) as string);
    const built: EmojiStudioManifest = {
      name: studio.name,
      split: studio.split,
      samples: 0,
      classes: [],
      shards: [],
      skipped: [],
      ...licence,
    };
    const wanted = classes.filter(({ codePoints }) => icons.has(codePoints));
    for (let start = 0, n = 0; start < wanted.length; start += samplesPerShard, n++) {
      const file = `${studio.name}-${String(n).padStart(2, '0')}.tar`;
      const writer = new TarWriter(path.join(folder, file));
      let samples = 0;
      try {
        const slice = wanted.slice(start, start + samplesPerShard);
        for (let i = 0; i < slice.length; i += PARALLEL) {
          options.signal?.throwIfAborted();
          const group = slice.slice(i, i + PARALLEL);
          const images = await Promise.all(
            group.map(async ({ codePoints }) => {
              const svg = svgOf(set, icons.get(codePoints) as string, 2 * size);
              return svg === undefined ? undefined : render(svg, size).catch(() => undefined);
            }),
          );
          group.forEach((item, j) => {
            const image = images[j];
            if (image === undefined)
              return void built.skipped.push(icons.get(item.codePoints) as string);
            const key = `${studio.name}-${item.codePoints}`;
            writer.add(`${key}.png`, image);
            writer.add(
              `${key}.json`,
              `{"class":${item.id},"codePoints":"${item.codePoints}",` +
                `"studio":"${studio.name}","captions":${item.captions}}`,
            );
            built.classes.push(item.id);
            manifest.captions += item.count;
            samples++;
          });
          done += group.length;
          options.onProgress?.({ stage: 'render', studio: studio.name, done, total });
        }
        built.shards.push({ file, samples, bytes: writer.finish() });
      } catch (cause) {
        writer.abort();
        throw cause;
      }
      built.samples += samples;
    }
    manifest.samples += built.samples;
    manifest.studios.push(built);
  }
  const table: EmojiClass[] = classes.map(({ id, codePoints, char, names }) => ({
    id,
    codePoints,
    char,
    names,
  }));
  await writeFileAtomic(
    path.join(folder, 'classes.json'),
    `[\n${table.map((c) => JSON.stringify(c)).join(',\n')}\n]\n`,
  );
  await writeFileAtomic(
    path.join(folder, 'manifest.json'),
    `${JSON.stringify(manifest, null, 1)}\n`,
  );
  options.onProgress?.({ stage: 'done', studio: '', done, total });
  return manifest;
}

/**
 * The manifest of a built dataset. Throws DataError when there is none or it is of another format.
 */
export function readManifest(folder: string): EmojiManifest {
  const file = path.join(folder, 'manifest.json');
  if (!fs.existsSync(file)) {
    throw new DataError(
      `${file}: there is no emoji dataset here; ` +
        'build it with `siglip2 dataset emoji --out DIR`',
    );
  }
  const manifest = readJson(file) as EmojiManifest;
  if (manifest.format !== FORMAT || !Array.isArray(manifest.studios)) {
    throw new DataError(
      `${file}: expected an emoji dataset of format ${FORMAT} but it is of ` +
        `${manifest.format}; build it again`,
    );
  }
  return manifest;
}

/**
 * The classes of a built dataset with their names in every language. Throws DataError when the file
 * is damaged.
 */
export function readClasses(folder: string): EmojiClass[] {
  return readJson(path.join(folder, 'classes.json')) as EmojiClass[];
}

function tryManifest(folder: string): EmojiManifest | undefined {
  try {
    return readManifest(folder);
  } catch {
    return undefined;
  }
}

/** Whether all files of a manifest are there with their sizes. */
function complete(folder: string, manifest: EmojiManifest): boolean {
  return (
    fs.existsSync(path.join(folder, 'classes.json')) &&
    manifest.studios.every((studio) =>
      studio.shards.every(
        ({ file, bytes }) =>
          fs.statSync(path.join(folder, file), { throwIfNoEntry: false })?.size === bytes,
      ),
    )
  );
}
