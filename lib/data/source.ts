/**
 * Local collections of images with captions, indexed once for random access.
 *
 * The index keeps byte ranges and no content, so that the order of samples is entirely up to the
 * sampler and the memory per sample is small. A sample that cannot be used is a counted skip that
 * names its file.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { setImmediate as yieldToEvents } from 'node:timers/promises';
import { ConfigError, DataError } from '../errors.js';
import { readJson } from '../fs/files.js';
import { checkHeap } from '../fs/heap.js';
import { KeyList } from '../fs/keys.js';
import { expandPaths } from '../fs/paths.js';
import type { Tolerance } from '../fs/skips.js';
import { walk } from '../fs/walk.js';
import { imageFault, NO_PATH, unreadReason } from '../image/names.js';
import { FileReader, type Location } from '../io/reader.js';
import { indexTar } from '../io/tar.js';
import type { ParsedCaptions } from '../text/captions.js';
import { DETECT, type LanguageDetector, languageDetector, UNDETERMINED } from '../text/language.js';
import { contentsOf } from './contents.js';
import { type EmojiSplit, readClasses, readManifest } from './datasets/emoji.js';
import { type Draft, groupFiles, groupMembers, type Member, type MemberNames } from './members.js';
import {
  CaptionError,
  type CaptionLocation,
  describeSample,
  readCaptions,
  type Sample,
} from './sample.js';
import { SampleSource } from './sample_source.js';
import { type ManifestRow, manifestFiles, manifestRows } from './sources/manifest.js';
import { fillMixture } from './sources/mixture.js';
import type { SingleSourceSpec, SourceChoice, SourceSpec } from './spec.js';

/** Options of `openSource`. */
export interface SourceOptions {
  /**
   * Most samples that may be skipped before it is an error, as a number or as a share such as "2%"; default 1 % of the
   * samples or 100, the larger. A tar that lost its end lost an unknown number of samples with it, so it is an error unless this
   * is given.
   */
  maxSkips?: Tolerance;
  /** Any number of skips and an empty collection are fine, for whoever counts over many collections. Default false. */
  tolerant?: boolean;
  /** Is told of the first skip of each kind when it happens, and what to know of memory. */
  note?: (message: string) => void;
  /** Instead of the spec's key list. */
  keys?: KeyList;
  /** Ends indexing early with the signal's reason. */
  signal?: AbortSignal;
}

/** Bytes of JavaScript's heap that an indexed sample takes, and how often it is asked whether they will do. */
const SAMPLE_BYTES = 450,
  HEAP_EVERY = 1 << 16;

/**
 * Indexes a collection.
 *
 * @returns its samples; those without a caption, or with an empty image, are counted in `skips`
 * @throws DataError when a file is missing or is not what it is named as, nothing usable is found, or more
 *   samples are skipped than `maxSkips`, those lost with a damaged tar among them; IoError when a file cannot be read; ConfigError for an
 *   unknown `type`
 */
export async function openSource(
  spec: SourceSpec,
  options: SourceOptions = {},
): Promise<SampleSource> {
  if (spec.type === 'mixture') {
    const whole = new SampleSource('mixture', options.maxSkips, options.note);
    await fillMixture(whole, spec, (source) => openSource(source, options));
    return whole;
  }
  const indexer = new Indexer(options);
  try {
    return await indexer.open(spec);
  } finally {
    indexer.reader.close();
  }
}

/** File names of a split's shards. Throws DataError when the folder is no scenes dataset or lacks the split. */
function sceneShards(folder: string, split: EmojiSplit): string[] {
  const file = path.join(folder, 'manifest.json');
  if (!fs.existsSync(file))
    throw new DataError(
      `${file}: there are no scenes here; build them with \`siglip2 dataset scenes --out DIR\``,
    );
  const { splits } = Object(readJson(file)) as {
    splits?: { split: string; shards: { file: string }[] }[];
  };
  if (!Array.isArray(splits))
    throw new DataError(
      `${file}: is no manifest of scenes; build them with \`siglip2 dataset scenes\``,
    );
  const found = splits.find((s) => s.split === split);
  if (!found)
    throw new DataError(
      `${file}: has no split "${split}"; it has ${splits.map((s) => s.split).join(', ')}`,
    );
  return found.shards.map((shard) => shard.file);
}

class Indexer {
  readonly reader = new FileReader();
  #source!: SampleSource;
  #detector: LanguageDetector | undefined;
  readonly #lists = new Map<string, readonly string[]>();
  #language = 'en';
  #keys: KeyList | undefined;
  #members: MemberNames | undefined;
  #seen = 0;
  /** Files of the collection, and those that are indexed. */
  #files = 1;
  #done = 0;
  #warned = false;

  readonly #options: SourceOptions;

  constructor(options: SourceOptions) {
    this.#options = options;
  }

  async open(spec: SingleSourceSpec): Promise<SampleSource> {
    if ('language' in spec && spec.language === DETECT) this.#detector = await languageDetector();
    switch (spec.type) {
      case 'webdataset': {
        const tars = (Array.isArray(spec.tars) ? spec.tars : [spec.tars]).flatMap(expandPaths);
        await this.#start(tars.length === 1 ? (tars[0] as string) : `${tars.length} tars`, spec);
        await this.#each(tars, (tar) => this.#tar(tar));
        break;
      }
      case 'folder':
        await this.#start(spec.path, spec);
        await this.#folder(spec.path);
        break;
      case 'manifest': {
        const files = await manifestFiles(spec.path);
        await this.#start(
          files.length === 1 ? (files[0] as string) : `${files.length} manifests`,
          spec,
        );
        await this.#each(files, (file) => this.#manifest(file));
        break;
      }
      case 'emoji': {
        const manifest = readManifest(spec.path);
        const studios = manifest.studios.filter((studio) =>
          spec.studios !== undefined
            ? spec.studios.includes(studio.name)
            : studio.split === (spec.split ?? 'train'),
        );
        const missing = spec.studios?.find(
          (name) => !studios.some((studio) => studio.name === name),
        );
        if (missing !== undefined) {
          throw new DataError(
            `${spec.path}: no studio "${missing}"; it has ` +
              manifest.studios.map((studio) => studio.name).join(', '),
          );
        }
        await this.#start(spec.path);
        this.#source.classes = readClasses(spec.path);
        for (const studio of studios) {
          for (const shard of studio.shards) await this.#tar(path.join(spec.path, shard.file));
        }
        break;
      }
      case 'scenes': {
        await this.#start(spec.path);
        for (const file of sceneShards(spec.path, spec.split ?? 'train'))
          await this.#tar(path.join(spec.path, file));
        break;
      }
      default:
        throw new ConfigError(
          `source.type: expected "webdataset", "folder", "manifest", "emoji" or "scenes" but got ` +
            JSON.stringify((spec as { type?: unknown }).type),
        );
    }
    const source = this.#source;
    if (this.#options.tolerant) return source;
    if (source.length > 0) source.skips.check(source.length + source.skips.total, source.name);
    if (source.length === 0) {
      const there =
        this.#keys && source.skips.total === 0
          ? `none of the ${this.#keys.size} keys in ${this.#keys.path} is there`
          : await contentsOf(spec);
      const why = [source.skips.total > 0 ? source.skips.summary() : '', there].filter(
        (part) => part !== '',
      );
      throw new DataError(
        `${source.name}: no image with a caption was found${why.map((part, i) => `${i === 0 ? ': ' : '; '}${part}`).join('')}`,
      );
    }
    return source;
  }

  async #start(name: string, { language, keys, members }: SourceChoice = {}): Promise<void> {
    this.#source = new SampleSource(name, this.#options.maxSkips, this.#options.note);
    this.#language = language ?? 'en';
    this.#members = members;
    this.#keys = this.#options.keys ?? (keys === undefined ? undefined : await KeyList.read(keys));
  }

  /** Indexing is synchronous reads of small members; now and then the event loop gets its turn. */
  async #breathe(): Promise<void> {
    if (++this.#seen % 128 === 0) {
      await yieldToEvents();
      this.#options.signal?.throwIfAborted();
    }
  }

  async #each(files: readonly string[], index: (file: string) => Promise<void>): Promise<void> {
    this.#files = files.length;
    for (const file of files) {
      await index(file);
      this.#done++;
    }
  }

  async #tar(file: string): Promise<void> {
    this.#options.signal?.throwIfAborted();
    const { skips } = this.#source;
    let damage: { error: DataError; lost: readonly string[] | undefined } | undefined;
    const entries = await indexTar(file, {
      onDamage: (error, lost) => {
        damage = { error, lost };
      },
      ...(this.#options.note ? { note: this.#options.note } : {}),
    });
    const group = (some: typeof entries, told: boolean): Map<string, Draft> =>
      groupMembers(
        file,
        some,
        this.#members,
        (reason, name) => {
          if (told) skips.add(reason, `${file}:${name}`);
        },
        (key) => !this.#keys || this.#keys.has(file, key),
      );
    const drafts = group(entries, true);
    if (damage) {
      const { error, lost } = damage;
      const gone =
        lost &&
        [
          ...group(
            lost.map((name) => ({ name, offset: 0, size: 0 })),
            false,
          ).keys(),
        ].filter((key) => !drafts.has(key));
      skips.add(
        'the tar is damaged',
        error.message,
        gone ? { samples: Math.max(1, gone.length) } : { uncounted: true },
      );
    }
    for (const draft of drafts.values()) {
      await this.#breathe();
      this.#finish(draft, file);
    }
  }

  /** Makes a sample of what was collected, or counts why not. */
  #finish(draft: Draft, file: string): void {
    const { key, image, json, txt } = draft;
    const { reader } = this,
      source = this.#source,
      language = this.#language;
    const example = image !== undefined && image.size < 0 ? image.path : `${file}:${key}`;
    if (image === undefined)
      return void source.skips.add(
        draft.unread === undefined ? 'no image' : unreadReason(draft.unread),
        example,
      );
    if (image.fault !== undefined)
      return void source.skips.add(`the image is ${image.fault}`, example);
    if (image.size === 0) return void source.skips.add('empty image', example);
    // img2dataset writes both: captions in the .txt, and a .json that may or may not repeat them.
    const candidates = [
      [json, 'json'],
      [txt, 'txt'],
    ] as const;
    let parsed: ParsedCaptions | undefined,
      location: CaptionLocation | undefined,
      meta: Record<string, unknown> = {};
    let fault: string | undefined;
    for (const [member, format] of [0, 1].flatMap((rank) =>
      candidates.filter(([one]) => one?.rank === rank),
    )) {
      const beside = member!.rank > 0 && this.#members?.caption !== undefined;
      if (member!.fault !== undefined) fault ??= `the captions are ${member!.fault}`;
      else if (parsed === undefined || beside) {
        const at: CaptionLocation = { ...placeOf(member!), format };
        try {
          const found = readCaptions(reader, { key, captions: at, language });
          if (format === 'json') ({ meta } = found);
          if (found.captions.length > 0 && !beside) [parsed, location] = [found, at];
        } catch (error) {
          if (!(error instanceof CaptionError)) throw error;
          if (!beside) fault ??= error.reason;
        }
      }
    }
    if (location === undefined || parsed === undefined)
      return void source.skips.add(fault ?? 'no caption', example);
    const sample = this.#push(key, placeOf(image), location, parsed, meta);
    if (sample !== undefined && draft.mask !== undefined && draft.mask.fault === undefined)
      sample.mask = placeOf(draft.mask);
  }

  #push(
    key: string,
    image: Location,
    captions: CaptionLocation,
    parsed: ParsedCaptions,
    meta: Record<string, unknown>,
  ): Sample | undefined {
    const source = this.#source;
    if (source.length % HEAP_EVERY === HEAP_EVERY - 1) this.#checkHeap();
    const language = this.#detector ? this.#identify(parsed) : this.#language;
    if (language === undefined) {
      source.skips.add('captions in no language', describeSample({ key, image }));
      return undefined;
    }
    const sample: Sample = { index: source.length, key, image, captions, language };
    const id = meta['class'];
    if (typeof id === 'number' && Number.isInteger(id) && id >= 0 && id < 2 ** 31)
      sample.class = id;
    source.samples.push(sample);
    source.fingerprint.add(key, parsed.captions, language, sample.class);
    const languages = new Set<string>();
    for (const { lang } of parsed.captions) {
      const said = lang === DETECT ? language : lang;
      languages.add(said);
      source.languages.set(said, (source.languages.get(said) ?? 0) + 1);
    }
    const list = [...languages],
      name = list.join();
    if (!this.#lists.has(name)) this.#lists.set(name, list);
    source.sampleLanguages.push(this.#lists.get(name)!);
    return sample;
  }

  /** The language of the captions that do not say theirs; undefined when no caption is in any. */
  #identify({ captions }: ParsedCaptions): string | undefined {
    const silent = captions.filter(({ lang }) => lang === DETECT);
    const found = this.#detector!(silent.map(({ text }) => text).join('\n'));
    return found ?? (silent.length < captions.length ? UNDETERMINED : undefined);
  }

  /** Says once, and early, when the collection will not fit. */
  #checkHeap(): void {
    const share = this.#done === 0 ? undefined : this.#done / this.#files;
    const warning = checkHeap(this.#source.name, this.#source.length, SAMPLE_BYTES, share);
    if (warning !== undefined && !this.#warned) this.#options.note?.(warning);
    this.#warned ||= warning !== undefined;
  }

  async #folder(folder: string): Promise<void> {
    const { names, unnamed } = await walk(folder),
      { skips } = this.#source;
    for (const name of unnamed) skips.add('the name is not UTF-8', path.join(folder, name));
    for (const draft of groupFiles(folder, names, this.#members)) {
      if (this.#keys && !this.#keys.has(folder, draft.key)) continue;
      await this.#breathe();
      const file = path.join(folder, draft.key);
      const fault = draft.unread === undefined ? imageFault(file) : unreadReason(draft.unread);
      if (fault === undefined) this.#finish(draft, file);
      else skips.add(fault, file);
    }
  }

  async #manifest(file: string): Promise<void> {
    const onSkip = (reason: string, example: string): void =>
      void this.#source.skips.add(reason, example);
    for await (const row of manifestRows(file, {
      language: this.#language,
      members: this.#members,
      onSkip,
    })) {
      await this.#breathe();
      this.#row(file, row);
    }
  }

  /** Makes a sample of a manifest's row, or counts why not. */
  #row(file: string, { example, image, key, captions, parsed }: ManifestRow): void {
    const { skips } = this.#source;
    if (image === undefined || key === undefined) return void skips.add('no image', example);
    if (this.#keys && !this.#keys.has(file, key)) return;
    if (typeof image === 'string' && /^https?:/i.test(image))
      return void skips.add('the image is an address, which is not fetched', example);
    const location =
      typeof image === 'string'
        ? { path: path.resolve(path.dirname(file), image), offset: 0, size: -1 }
        : image;
    const fault =
      typeof image === 'string'
        ? imageFault(location.path)
        : image.size === 0 || image.within?.length === 0
          ? 'empty image'
          : undefined;
    if (fault === NO_PATH || (typeof image !== 'string' && fault !== undefined))
      skips.add(fault, example);
    else if (fault !== undefined) skips.add(fault, location.path);
    else if (parsed.captions.length === 0) skips.add('no caption', `${example} (${key})`);
    else this.#push(key, location, captions, parsed, parsed.meta);
  }
}

/** What a sample keeps of a member. */
function placeOf({ path: file, offset, size }: Member): Location {
  return { path: file, offset, size };
}
