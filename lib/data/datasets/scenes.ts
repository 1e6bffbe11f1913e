/**
 * Photo-like scenes with ground truth for localisation: emoji artwork of several studios on varied backgrounds, native
 * aspect ratios, exact boxes and instance masks, captions in many languages made of CLDR names and spatial relations.
 * As in the emoji dataset whole studios are held out, so a test scene shows known things in unknown styles.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import sharp from 'sharp';
import { ConfigError } from '../../errors.js';
import { fileError, makeFolder, readJson, writeFileAtomic } from '../../fs/files.js';
import { packageFolder } from '../../fs/packages.js';
import { premultiply, type RawImage } from '../../image/image.js';
import { TarWriter } from '../../io/tar_writer.js';
import { Random, Stream } from '../../random.js';
import type { Region } from '../../text/regions.js';
import { type EmojiSplit, type EmojiStudio, emojiLanguages, emojiStudios } from './emoji.js';
import type { PackageLicence } from './emoji_artwork.js';
import { type IconSet, mapIcons, studioLicence, svgOf } from './emoji_artwork.js';
import { type ClassText, readClassTexts } from './emoji_captions.js';
import {
  type Artwork,
  composeScene,
  OBJECT_SCALE,
  type ObjectScale,
  pickSome,
  type Scene,
} from './scene_compose.js';
import { listText, opposite, type Relation, relationText } from './scene_templates.js';

export interface SceneOptions {
  /** Scenes of each split; default 4,000, 400 and 400. A split with 0 is left out. */
  scenes?: Partial<Record<EmojiSplit, number>>;
  seed?: number;
  /** The longer side is between this and 4/3 of it, pixels. Default 224. */
  size?: number;
  /** Most objects in a scene. Default 5. */
  objects?: number;
  /** Side of an object, as a share of the scene's shorter side. Default 0.2 to 0.6. */
  scale?: ObjectScale;
  /** Keeps only so many classes, evenly spread over those that the most studios draw. Default: all. */
  classes?: number;
  studios?: readonly EmojiStudio[];
  languages?: readonly string[];
  /** Scenes in one shard. Default 1000. */
  scenesPerShard?: number;
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

/** One split as built. */
export interface SceneSplit {
  split: EmojiSplit;
  scenes: number;
  studios: string[];
  shards: { file: string; scenes: number; bytes: number }[];
}

/** `manifest.json`: what was built from what. */
export interface SceneManifest {
  format: number;
  seed: number;
  size: number;
  classes: number;
  languages: readonly string[];
  splits: SceneSplit[];
  licences: PackageLicence[];
}

/** Side that drawings are rasterised at; objects are made of it, a little larger at most. */
const ART = 128;
/** Scenes being encoded while the next are composed. */
const AHEAD = 8;

/** Drawings of one studio, rasterised when first needed. */
class Studio {
  readonly #drawn = new Map<string, Promise<RawImage | undefined>>();
  constructor(
    readonly name: string,
    readonly set: IconSet,
    readonly icons: ReadonlyMap<string, string>,
  ) {}

  draw(codePoints: string): Promise<RawImage | undefined> {
    let drawing = this.#drawn.get(codePoints);
    if (!drawing) {
      drawing = rasterise(svgOf(this.set, this.icons.get(codePoints)!, ART)).catch(() => undefined);
      this.#drawn.set(codePoints, drawing);
    }
    return drawing;
  }
}

async function rasterise(svg: string | undefined): Promise<RawImage | undefined> {
  if (svg === undefined) return undefined;
  const data = await sharp(Buffer.from(svg))
    .resize(ART, ART, { fit: 'fill' })
    .ensureAlpha()
    .raw()
    .toBuffer();
  if (!data.some((v, i) => i % 4 === 3 && v >= 128)) return undefined;
  return { data: premultiply(data), width: ART, height: ART, channels: 4 };
}

/** The relation of two boxes, when they lie clearly beside or above each other. */
function relationOf(a: Region['box'], b: Region['box'], scene: Scene): Relation | undefined {
  const dx = (b[0] + b[2] - a[0] - a[2]) * scene.width,
    dy = (b[1] + b[3] - a[1] - a[3]) * scene.height;
  if (Math.abs(dx) >= 1.5 * Math.abs(dy))
    return a[2] <= b[0] ? 'left' : b[2] <= a[0] ? 'right' : undefined;
  if (Math.abs(dy) >= 1.5 * Math.abs(dx))
    return a[3] <= b[1] ? 'above' : b[3] <= a[1] ? 'below' : undefined;
  return undefined;
}

/** Captions by language: a relation first, where the scene shows one and the language has a template, then a list. */
function captionsOf(
  scene: Scene,
  classes: readonly ClassText[],
  languages: readonly string[],
  random: Random,
): Record<string, string[]> {
  const pairs = scene.objects.flatMap((a, i) =>
    scene.objects.flatMap((b, j) => {
      const relation = i < j ? relationOf(a.box, b.box, scene) : undefined;
      return relation ? [{ i, j, relation }] : [];
    }),
  );
  let shown = pairs.length > 0 ? random.pick(pairs) : undefined;
  if (shown && random.uniform() < 0.5)
    shown = { i: shown.j, j: shown.i, relation: opposite[shown.relation] };
  const captions: Record<string, string[]> = {};
  for (const language of languages) {
    const names = scene.objects.map(({ artwork }) => classes[artwork.class]!.names[language]);
    const known = names.filter((n) => n !== undefined);
    if (known.length < names.length) continue;
    const relation =
      shown && relationText(language, shown.relation, known[shown.i]!, known[shown.j]!);
    captions[language] =
      relation !== undefined ? [relation, listText(language, known)] : [listText(language, known)];
  }
  return captions;
}

/** Every object in English and in one other language. */
function regionsOf(scene: Scene, classes: readonly ClassText[], random: Random): Region[] {
  return scene.objects.flatMap(({ artwork, box }) => {
    const { names } = classes[artwork.class]!,
      others = Object.keys(names).filter((l) => l !== 'en');
    const said = ['en', ...(others.length > 0 ? [random.pick(others)] : [])];
    return said.map((lang) => ({ box, score: 1, phrase: names[lang]!, lang }));
  });
}

/**
 * Builds `<split>-<nnn>.tar` (WebDataset: `<key>.jpg`, `<key>.json`, `<key>.mask.png`), `classes.json` and
 * `manifest.json` in `folder`. The JSON has `captions` by language, `regions` (see `parseRegions`), and `objects`: what
 * the grey level of the mask minus 1 is the index of. The same options give the same scenes.
 * @returns the manifest, which is written last
 * @throws DataError when a package is missing; IoError when the folder cannot be written; ConfigError for options out
 *   of range; the signal's reason
 */
export async function buildScenes(
  folder: string,
  options: SceneOptions = {},
): Promise<SceneManifest> {
  const { seed = 1, size = 224, objects = 5, scenesPerShard = 1000 } = options;
  const { studios = emojiStudios, languages = emojiLanguages, scale = OBJECT_SCALE } = options;
  const counts = { train: 4000, val: 400, test: 400, ...options.scenes };
  const within = (name: string, value: number, low: number, high: number): void => {
    if (!(Number.isInteger(value) && value >= low && value <= high))
      throw new ConfigError(
        `scenes.${name}: expected an integer in [${low}, ${high}] but got ${value}`,
      );
  };
  within('size', size, 48, 2048);
  within('objects', objects, 1, 20);
  within('scenesPerShard', scenesPerShard, 1, 1e6);
  for (const [split, n] of Object.entries(counts)) within(split, n, 0, 1e8);
  if (!(scale[0] > 0 && scale[0] <= scale[1] && scale[1] <= 1))
    throw new ConfigError(
      `scenes.scale: expected two shares in (0, 1] in order but got ${scale.join(', ')}`,
    );
  if (!languages.includes('en'))
    throw new ConfigError('scenes.languages must contain "en": classes are named by it');
  await makeFolder(folder);
  try {
    fs.rmSync(path.join(folder, 'manifest.json'), { force: true });
  } catch (cause) {
    throw fileError(cause, 'write', folder);
  }

  const all = readClassTexts({}, languages);
  const drawers = studios.map(({ name, split }) => {
    const from = packageFolder(`@iconify-json/${name}`),
      set = readJson(path.join(from, 'icons.json')) as IconSet;
    return {
      split,
      studio: new Studio(name, set, mapIcons(name, from, set, all)),
      licence: studioLicence(name, from),
    };
  });
  const drawnBy = (c: ClassText): number =>
    drawers.filter(({ studio }) => studio.icons.has(c.codePoints)).length;
  // A stable sort: the most widely drawn first, in order of code points, where neighbours look alike.
  const drawn = all
    .map((c) => ({ c, n: drawnBy(c) }))
    .filter(({ n }) => n > 0)
    .sort((a, b) => b.n - a.n);
  const count = Math.min(options.classes ?? drawn.length, drawn.length);
  const widest = Math.max(count, drawn.filter(({ n }) => n === drawn[0]?.n).length);
  const classes = Array.from({ length: count }, (_, id) => ({
    ...drawn[Math.floor((id * widest) / count)]!.c,
    id,
  }));
  const manifest: SceneManifest = {
    format: 1,
    seed,
    size,
    classes: classes.length,
    languages,
    splits: [],
    licences: drawers.map(({ licence }) => licence),
  };
  const wanted = (['train', 'val', 'test'] as const).filter((split) => counts[split] > 0);
  const total = wanted.reduce((n, split) => n + counts[split], 0);
  let done = 0;

  for (const [number, split] of wanted.entries()) {
    const own = drawers.filter((d) => d.split === split).map(({ studio }) => studio);
    const possible = classes.filter(({ codePoints }) =>
      own.some(({ icons }) => icons.has(codePoints)),
    );
    if (possible.length === 0)
      throw new ConfigError(
        `scenes: no studio of the split "${split}" draws anything; set its number of scenes to 0`,
      );
    const make = async (
      index: number,
    ): Promise<{ key: string; json: string; image: Buffer; mask: Buffer }> => {
      const random = new Random(seed, Stream.scene, number, index);
      const draw = async ({ id, codePoints }: ClassText): Promise<Artwork | undefined> => {
        const studio = random.pick(own.filter(({ icons }) => icons.has(codePoints))),
          image = await studio.draw(codePoints);
        return image && { class: id, studio: studio.name, image };
      };
      const drawings = await Promise.all(
        pickSome(possible, 1 + random.below(objects), random).map(draw),
      );
      const artworks = drawings.filter((d) => d !== undefined);
      const scene = composeScene(artworks, size, random, scale),
        { width, height } = scene;
      const json = JSON.stringify({
        captions: captionsOf(scene, classes, languages, random),
        regions: regionsOf(scene, classes, random),
        width,
        height,
        objects: scene.objects.map(({ artwork, box }) => ({
          class: artwork.class,
          studio: artwork.studio,
          box,
        })),
      });
      const [image, mask] = await Promise.all([
        sharp(scene.pixels, { raw: { width, height, channels: 3 } })
          .jpeg({ quality: 80 + random.below(16) })
          .toBuffer(),
        sharp(scene.mask, { raw: { width, height, channels: 1 } })
          .toColourspace('b-w')
          .png()
          .toBuffer(),
      ]);
      return { key: `${split}-${String(index).padStart(7, '0')}`, json, image, mask };
    };
    const built: SceneSplit = {
      split,
      scenes: counts[split],
      studios: own.map(({ name }) => name),
      shards: [],
    };
    for (let start = 0; start < counts[split]; start += scenesPerShard) {
      const file = `${split}-${String(built.shards.length).padStart(3, '0')}.tar`;
      const end = Math.min(counts[split], start + scenesPerShard);
      const writer = new TarWriter(path.join(folder, file)),
        queue: ReturnType<typeof make>[] = [];
      try {
        for (let next = start; next < end || queue.length > 0; ) {
          options.signal?.throwIfAborted();
          while (next < end && queue.length < AHEAD) queue.push(make(next++));
          const { key, json, image, mask } = await queue.shift()!;
          writer.add(`${key}.jpg`, image);
          writer.add(`${key}.json`, json);
          writer.add(`${key}.mask.png`, mask);
          options.onProgress?.(++done, total);
        }
        built.shards.push({ file, scenes: end - start, bytes: writer.finish() });
      } catch (cause) {
        await Promise.allSettled(queue);
        writer.abort();
        throw cause;
      }
    }
    manifest.splits.push(built);
  }
  const table = classes.map(({ id, codePoints, char, names }) =>
    JSON.stringify({ id, codePoints, char, names }),
  );
  await writeFileAtomic(path.join(folder, 'classes.json'), `[\n${table.join(',\n')}\n]\n`);
  await writeFileAtomic(
    path.join(folder, 'manifest.json'),
    `${JSON.stringify(manifest, null, 1)}\n`,
  );
  return manifest;
}
