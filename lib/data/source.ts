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
import { captionsFromJson, captionsFromObject, type ParsedCaptions } from './captions.js';
import { contentsOf } from './contents.js';
import { readClasses, readManifest, type EmojiSplit } from './datasets/emoji.js';
import { FileReader, fileError, imageFault, NO_PATH, readJson, type Location } from './files.js';
import { DETECT, languageDetector, UNDETERMINED, type LanguageDetector } from './language.js';
import { fillMixture, type MixtureSpec } from './mixture.js';
import { KeyList } from './keys.js';
import { parquetManifest } from './parquet_manifest.js';
import { expandPaths, lines } from './paths.js';
import { describeSample, readCaptions, SampleSource, type CaptionLocation, type Sample } from './sample.js';
import { indexTar, memberKey, type TarEntry } from './tar.js';

interface SourceChoice {
  /** Language of captions that do not say theirs. Default "en". */
  language?: string;
  /** A key list (`KeyList`): only the samples it names are used. */
  keys?: string;
}

/** What to open; plain JSON, so that it can stand in a config. */
export type SourceSpec = SingleSourceSpec | MixtureSpec;

/**
 * One collection. `language` is that of captions that do not say theirs, "en" by default; "detect" identifies it from each
 * sample's captions.
 */
export type SingleSourceSpec =
  /** WebDataset tars: paths with `*`, `?` in the last part, or `{000..012}`, `{a,b}` anywhere. */
  | ({ type: 'webdataset'; tars: string | string[] } & SourceChoice)
  /** A folder (with subfolders) of images with a .txt or .json of the same stem. */
  | ({ type: 'folder'; path: string } & SourceChoice)
  /**
   * A .jsonl of `{image, caption | captions, ...}`, or a .parquet with such columns; image paths are relative to the
   * manifest.
   */
  | ({ type: 'manifest'; path: string } & SourceChoice)
  /** The dataset that `buildEmojiDataset` makes: one split of it, or the studios named. */
  | { type: 'emoji'; path: string; split?: EmojiSplit; studios?: string[] }
  /** One split, train by default, of what `buildScenes` makes. */
  | { type: 'scenes'; path: string; split?: EmojiSplit };

/** Options of `openSource`. */
export interface SourceOptions {
  /**
   * Most samples that may be skipped before it is an error; default 1 % of the samples or 100, the
   * larger.
   */
  maxSkips?: number;
  /**
   * Counts as skips what is an error otherwise: a damaged tar gives the samples before the damage, an unreadable manifest
   * none; any number of skips and an empty collection are fine. For whoever counts over many collections. Default false.
   */
  tolerant?: boolean;
  /** Instead of the spec's key list. */
  keys?: KeyList;
  /** Ends indexing early with the signal's reason. */
  signal?: AbortSignal;
}

const kImages = new Set(['png', 'jpg', 'jpeg', 'webp', 'avif', 'gif', 'tif', 'tiff']);

/**
 * Indexes a collection.
 *
 * @returns its samples; those without a caption, or with an empty image, are counted in `skips`
 * @throws DataError when a file is missing or a tar is damaged, nothing usable is found, or more
 *   samples are skipped than `maxSkips`; IoError when a file cannot be read; ConfigError for an
 *   unknown `type`
 */
export async function openSource(
  spec: SourceSpec,
  options: SourceOptions = {},
): Promise<SampleSource> {
  if (spec.type === 'mixture') {
    const whole = new SampleSource('mixture', options.maxSkips);
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

/** The files of one sample, while they are being collected. */
interface Draft {
  key: string;
  image?: Location;
  mask?: Location;
  json?: Location;
  txt?: Location;
}

/** File names of a split's shards. Throws DataError when the folder is no scenes dataset or lacks the split. */
function sceneShards(folder: string, split: EmojiSplit): string[] {
  const file = path.join(folder, 'manifest.json');
  if (!fs.existsSync(file))
    throw new DataError(`${file}: there are no scenes here; build them with \`siglip2 dataset scenes --out DIR\``);
  const { splits } = Object(readJson(file)) as { splits?: { split: string; shards: { file: string }[] }[] };
  if (!Array.isArray(splits)) throw new DataError(`${file}: is no manifest of scenes; build them with \`siglip2 dataset scenes\``);
  const found = splits.find((s) => s.split === split);
  if (!found) throw new DataError(`${file}: has no split "${split}"; it has ${splits.map((s) => s.split).join(', ')}`);
  return found.shards.map((shard) => shard.file);
}

function lowerExtension(name: string): string {
  const extension = path.extname(name);
  return name.slice(0, name.length - extension.length) + extension.toLowerCase();
}

class Indexer {
  readonly reader = new FileReader();
  private source!: SampleSource;
  private detector: LanguageDetector | undefined;
  private readonly lists = new Map<string, readonly string[]>();
  private language = 'en';
  private keys: KeyList | undefined;
  private seen = 0;

  constructor(private readonly options: SourceOptions) {}

  async open(spec: SingleSourceSpec): Promise<SampleSource> {
    if ('language' in spec && spec.language === DETECT) this.detector = await languageDetector();
    switch (spec.type) {
      case 'webdataset': {
        const tars = (Array.isArray(spec.tars) ? spec.tars : [spec.tars]).flatMap(expandPaths);
        await this.start(tars.length === 1 ? (tars[0] as string) : `${tars.length} tars`, spec);
        for (const tar of tars) await this.tar(tar);
        break;
      }
      case 'folder':
        await this.start(spec.path, spec);
        await this.folder(spec.path);
        break;
      case 'manifest':
        await this.start(spec.path, spec);
        try {
          await (spec.path.endsWith('.parquet') ? this.parquet(spec.path) : this.manifest(spec.path));
        } catch (error) {
          if (!this.options.tolerant || !(error instanceof DataError)) throw error;
          this.source.skips.add('the manifest cannot be read', error.message);
        }
        break;
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
        await this.start(spec.path);
        this.source.classes = readClasses(spec.path);
        for (const studio of studios) {
          for (const shard of studio.shards) await this.tar(path.join(spec.path, shard.file));
        }
        break;
      }
      case 'scenes': {
        await this.start(spec.path);
        for (const file of sceneShards(spec.path, spec.split ?? 'train')) await this.tar(path.join(spec.path, file));
        break;
      }
      default:
        throw new ConfigError(
          `source.type: expected "webdataset", "folder", "manifest", "emoji" or "scenes" but got ` +
            JSON.stringify((spec as { type?: unknown }).type),
        );
    }
    const { source } = this;
    if (this.options.tolerant) return source;
    source.skips.check(source.length + source.skips.total, source.name);
    if (source.length === 0) {
      const why = source.skips.total > 0 ? `: ${source.skips.summary()}`
        : this.keys ? `: none of the ${this.keys.size} keys in ${this.keys.path} is there`
          : (await contentsOf(spec)).replace(/^./s, ': $&');
      throw new DataError(`${source.name}: no image with a caption was found${why}`);
    }
    return source;
  }

  private async start(name: string, { language, keys }: SourceChoice = {}): Promise<void> {
    this.source = new SampleSource(name, this.options.maxSkips);
    this.language = language ?? 'en';
    this.keys = this.options.keys ?? (keys === undefined ? undefined : await KeyList.read(keys));
  }

  /** Indexing is synchronous reads of small members; now and then the event loop gets its turn. */
  private async breathe(): Promise<void> {
    if (++this.seen % 128 === 0) {
      await yieldToEvents();
      this.options.signal?.throwIfAborted();
    }
  }

  private async tar(file: string): Promise<void> {
    this.options.signal?.throwIfAborted();
    const drafts = new Map<string, Draft>();
    const onDamage = (error: DataError): void => void this.source.skips.add('the tar is damaged', error.message);
    for (const entry of await indexTar(file, this.options.tolerant ? onDamage : undefined))
      this.member(file, entry, drafts);
    for (const draft of drafts.values()) {
      await this.breathe();
      this.finish(draft, file);
    }
  }

  private member(file: string, entry: TarEntry, drafts: Map<string, Draft>): void {
    const key = memberKey(entry.name);
    if (key === undefined) return;
    const extension = entry.name.slice(entry.name.lastIndexOf('.') + 1).toLowerCase();
    const part = entry.name.endsWith('.mask.png')
      ? 'mask'
      : kImages.has(extension)
      ? 'image'
      : extension === 'json' || extension === 'txt'
        ? extension
        : undefined;
    if (part === undefined) return;
    if (this.keys && !this.keys.has(file, key)) return;
    let draft = drafts.get(key);
    if (draft === undefined) drafts.set(key, (draft = { key }));
    if (draft[part] !== undefined) {
      this.source.skips.add('a second member of the same kind', `${file}:${entry.name}`);
      return;
    }
    draft[part] = { path: file, offset: entry.offset, size: entry.size };
  }

  /** Makes a sample of what was collected, or counts why not. */
  private finish(draft: Draft, file: string): void {
    const { key, image, json, txt } = draft;
    const { source, reader, language } = this;
    const example = image !== undefined && image.size < 0 ? image.path : `${file}:${key}`;
    if (image === undefined) return void source.skips.add('no image', example);
    if (image.size === 0) return void source.skips.add('empty image', example);
    let parsed: ParsedCaptions | undefined;
    let location: CaptionLocation | undefined;
    let meta: Record<string, unknown> = {};
    if (json !== undefined) {
      location = { ...json, format: 'json' };
      try {
        parsed = readCaptions(reader, { key, captions: location, language });
        meta = parsed.meta;
      } catch (error) {
        if (!(error instanceof DataError)) throw error;
        return void source.skips.add('captions are not valid JSON', example);
      }
    }
    // img2dataset writes both: captions in the .txt, and a .json that may or may not repeat them.
    if ((parsed === undefined || parsed.captions.length === 0) && txt !== undefined) {
      location = { ...txt, format: 'txt' };
      parsed = readCaptions(reader, { key, captions: location, language });
    }
    if (location === undefined || parsed === undefined || parsed.captions.length === 0) {
      return void source.skips.add('no caption', example);
    }
    const sample = this.push(key, image, location, parsed, meta);
    if (sample !== undefined && draft.mask !== undefined) sample.mask = draft.mask;
  }

  private push(
    key: string,
    image: Location,
    captions: CaptionLocation,
    parsed: ParsedCaptions,
    meta: Record<string, unknown>,
  ): Sample | undefined {
    const { source } = this;
    const language = this.detector ? this.identify(parsed) : this.language;
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
    const list = [...languages], name = list.join();
    if (!this.lists.has(name)) this.lists.set(name, list);
    source.sampleLanguages.push(this.lists.get(name)!);
    return sample;
  }

  /** The language of the captions that do not say theirs; undefined when no caption is in any. */
  private identify({ captions }: ParsedCaptions): string | undefined {
    const silent = captions.filter(({ lang }) => lang === DETECT);
    const found = this.detector!(silent.map(({ text }) => text).join('\n'));
    return found ?? (silent.length < captions.length ? UNDETERMINED : undefined);
  }

  private async folder(folder: string): Promise<void> {
    let names: string[];
    try {
      names = (await fs.promises.readdir(folder, { recursive: true })).sort();
    } catch (cause) {
      throw fileError(cause, 'read', folder);
    }
    // Cameras and Windows write IMG.JPG and IMG.TXT; members of tars are taken in any case too.
    const present = new Map(names.map((name) => [lowerExtension(name), name]));
    for (const name of names) {
      const extension = path.extname(name);
      if (!kImages.has(extension.slice(1).toLowerCase()) || path.basename(name).startsWith('.'))
        continue;
      if (this.keys && !this.keys.has(folder, name)) continue;
      await this.breathe();
      const stem = name.slice(0, -extension.length);
      const file = path.join(folder, name);
      const draft: Draft = { key: name, image: { path: file, offset: 0, size: -1 } };
      for (const part of ['json', 'txt'] as const) {
        const beside = present.get(`${stem}.${part}`);
        if (beside !== undefined) draft[part] = { path: path.join(folder, beside), offset: 0, size: -1 };
      }
      const fault = imageFault(file);
      if (fault === undefined) this.finish(draft, file);
      else this.source.skips.add(fault, file);
    }
  }

  private async manifest(file: string): Promise<void> {
    let number = 0;
    for await (const { data, offset } of lines(file)) {
      number++;
      if (data.length === 0) continue;
      await this.breathe();
      const example = `${file} line ${number}`;
      let parsed: ParsedCaptions;
      try {
        parsed = captionsFromJson(data, this.language);
      } catch {
        this.source.skips.add('the line is not valid JSON', example);
        continue;
      }
      this.row(file, example, { path: file, offset, size: data.length, format: 'json' }, parsed);
    }
  }

  private async parquet(file: string): Promise<void> {
    let number = 0;
    for await (const row of parquetManifest(file)) {
      number++;
      await this.breathe();
      const inline = JSON.stringify(row);
      this.row(file, `${file} row ${number}`, { path: file, offset: 0, size: -1, format: 'json', inline },
        captionsFromObject(row, this.language));
    }
  }

  /** Makes a sample of a manifest's row, or counts why not. */
  private row(file: string, example: string, captions: CaptionLocation, parsed: ParsedCaptions): void {
    const { skips } = this.source, image = parsed.meta['image'];
    if (typeof image !== 'string' || image === '') return void skips.add('no image', example);
    if (this.keys && !this.keys.has(file, image)) return;
    const location = { path: path.resolve(path.dirname(file), image), offset: 0, size: -1 };
    const fault = imageFault(location.path);
    if (fault === NO_PATH) skips.add(fault, example);
    else if (fault !== undefined) skips.add(fault, location.path);
    else if (parsed.captions.length === 0) skips.add('no caption', `${example} (${image})`);
    else this.push(image, location, captions, parsed, parsed.meta);
  }
}
