/**
 * `siglip2 search`: embeds the images of a folder once, then answers typed queries with a page of pictures. Embeddings are
 * cached by file name, size and time, so a second run only embeds what is new.
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { hubFolder } from '../../checkpoints/hub.js';
import type { Encoder } from '../../encoder/encoder.js';
import { Embeddings } from '../../encoder/output.js';
import { ConfigError, Siglip2Error } from '../../errors.js';
import { prepareToWrite, writeFileAtomic } from '../../fs/files.js';
import { cacheHome } from '../../fs/places.js';
import { DEFAULT_ALPHA } from '../../image/image.js';
import { topK } from '../../inference/retrieval.js';
import { openSafetensors, writeSafetensors } from '../../io/safetensors.js';
import type { Command } from '../command.js';
import { listImages, type NamedImage } from '../images.js';
import { counted, Progress } from '../progress.js';
import { renderSearchPage, type SearchResult } from '../search_page.js';
import { MODEL_OPTIONS, openModel, wholeNumber } from './embed.js';

const filesJson = z.array(z.strictObject({ name: z.string(), stamp: z.string() }));

/** Changes when the file does. */
function stamp(path: string): string {
  const info = statSync(path, { throwIfNoEntry: false });
  return info ? `${info.size} ${info.mtimeMs}` : '';
}

/** Rows of an earlier run by file; empty when there is none, of other rows, or damaged (it is only a cache). */
async function readCache(
  file: string,
  dim: number,
  of: string,
): Promise<Map<string, { stamp: string; row: Float32Array }>> {
  const rows = new Map<string, { stamp: string; row: Float32Array }>();
  if (!existsSync(file)) return rows;
  try {
    const reader = await openSafetensors(file);
    try {
      if (reader.metadata['of'] !== of) {
        console.error(
          `siglip2: the cache ${file} holds rows of another model or other settings, and is made anew`,
        );
        return rows;
      }
      const files = filesJson.parse(JSON.parse(reader.metadata['files'] ?? ''));
      const data = await reader.readFloat32('embeddings');
      if (data.length === files.length * dim)
        files.forEach((f, i) =>
          rows.set(f.name, { stamp: f.stamp, row: data.subarray(i * dim, (i + 1) * dim) }),
        );
    } finally {
      await reader.close();
    }
  } catch (e) {
    if (!(e instanceof Siglip2Error || e instanceof z.ZodError || e instanceof SyntaxError))
      throw e;
    console.error(`siglip2: the cache ${file} is damaged and is made anew`);
  }
  return rows;
}

/** One row per image, from the cache or the model; images that cannot be decoded are left out and named. */
async function indexImages(
  model: Encoder,
  images: readonly NamedImage[],
  cache: string | undefined,
  of: string,
  batchSize: number | undefined,
): Promise<{ names: string[]; rows: Embeddings }> {
  const known =
      cache === undefined
        ? new Map<string, { stamp: string; row: Float32Array }>()
        : await readCache(cache, model.dim, of),
    stamps = new Map(images.map((i) => [i.name, stamp(i.name)]));
  const missing = images.filter(
    ({ name }) => stamps.get(name) === '' || known.get(name)?.stamp !== stamps.get(name),
  );
  const progress = new Progress('index'),
    bad = new Set<string>();
  const made = await model.encodeImages(
    missing.map((i) => i.open()),
    {
      ...(batchSize ? { batchSize } : {}),
      onProgress: (done) => progress.update(done, missing.length, {}),
      onBadImage: (e, i) => {
        bad.add(missing[i]!.name);
        console.error(`siglip2: left out: ${e.message}`);
      },
    },
  );
  progress.end();
  missing.forEach(({ name }, i) => known.set(name, { stamp: stamps.get(name)!, row: made.row(i) }));
  const names = images.map((i) => i.name).filter((name) => !bad.has(name));
  const rows = Embeddings.from(
    names.map((name) => known.get(name)!.row),
    model.dim,
  );
  if (missing.length > 0 && cache !== undefined)
    await writeSafetensors(
      cache,
      [{ name: 'embeddings', dtype: 'F32', shape: [rows.rows, model.dim], data: rows.data }],
      { of, files: JSON.stringify(names.map((name) => ({ name, stamp: stamps.get(name)! }))) },
    );
  return { names, rows };
}

/** What a cache's rows are of: the weights by their files, and all that makes other rows of the same image. */
async function rowsOf(
  { source, processor, dtype }: Encoder,
  alpha: string = DEFAULT_ALPHA,
): Promise<string> {
  const at = existsSync(source) ? source : await hubFolder(source),
    path = resolve(at);
  const files = statSync(at).isDirectory()
    ? readdirSync(at)
        .filter((name) => /\.(safetensors|json)$/.test(name))
        .sort()
    : [''];
  return JSON.stringify([
    path,
    files.map((name) => [name, stamp(join(path, name))]),
    processor,
    dtype,
    alpha,
  ]);
}

/** Where the embeddings of these images by this model are kept; undefined, with a note, where there is no place for them. */
async function cachePath(folder: string, of: string): Promise<string | undefined> {
  const key = createHash('sha256')
      .update(JSON.stringify([resolve(folder), of]))
      .digest('hex'),
    home = cacheHome();
  const path = home && join(home, 'siglip2', `search-${key.slice(0, 16)}.safetensors`);
  try {
    if (path !== undefined) await prepareToWrite(path);
  } catch (error) {
    console.error(
      `siglip2: goes on without a cache of the embeddings (${(error as Error).message}); --cache names another place`,
    );
    return undefined;
  }
  if (path === undefined)
    console.error(
      'siglip2: goes on without a cache of the embeddings, since this user has no home; --cache or XDG_CACHE_HOME names a place',
    );
  return path;
}

export const command: Command = {
  usage:
    'search FOLDER --model FOLDER [QUERY…] [--out search.html] [--top 24] [--alpha drop|white] [--cache FILE]',
  summary:
    'embeds a folder of images once, then answers queries (arguments, or typed one a line) with a page of pictures',
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        ...MODEL_OPTIONS,
        out: { type: 'string', default: 'search.html' },
        top: { type: 'string', default: '24' },
        cache: { type: 'string' },
      },
    });
    const [folder, ...queries] = positionals;
    if (folder === undefined) throw new ConfigError('search needs a folder of images');
    const top = wholeNumber('top', values.top),
      images = await listImages([folder], values);
    if (values.cache !== undefined && !values.cache.endsWith('.safetensors'))
      throw new ConfigError(
        `--cache must be a file that ends in .safetensors but is ${values.cache}`,
      );
    await prepareToWrite(values.out);
    using model = await openModel('search', values);
    const of = await rowsOf(model, values.alpha),
      cache = values.cache ?? (await cachePath(folder, of));
    if (cache !== undefined) await prepareToWrite(cache);
    const { names, rows } = await indexImages(
      model,
      images,
      cache,
      of,
      values.batch ? wholeNumber('batch', values.batch) : undefined,
    );
    if (names.length === 0) throw new ConfigError(`no image in ${folder} can be decoded`);
    const results: SearchResult[] = [];
    const answer = async (query: string): Promise<void> => {
      const scores = await model.similarity(await model.encodeTexts(query), rows);
      const best = topK(scores.logits, top).map((i) => ({
        file: names[i]!,
        probability: scores.probabilities[i]!,
        cosine: scores.cosine[i]!,
      }));
      results.unshift({ query, images: best });
      await writeFileAtomic(values.out, await renderSearchPage(results, names.length));
      const line = (b: (typeof best)[number]): string =>
        `  ${(100 * b.probability).toFixed(2).padStart(6)} %  ${b.cosine.toFixed(4)}  ${b.file}`;
      console.log([query, ...best.slice(0, 5).map(line)].join('\n'));
    };
    for (const query of queries) await answer(query);
    if (queries.length === 0) {
      const typed = createInterface({
        input: process.stdin,
        output: process.stderr,
        prompt: 'search> ',
        terminal: process.stdin.isTTY === true,
      });
      if (process.stdin.isTTY) typed.prompt();
      for await (const line of typed) {
        if (line.trim() !== '') await answer(line.trim());
        if (process.stdin.isTTY) typed.prompt();
      }
    }
    console.error(
      `${counted(names.length, 'image')}, ${
        results.length > 0
          ? `page: ${values.out}`
          : 'no page, for nothing was asked; give queries as arguments or one a line'
      }`,
    );
    return 0;
  },
};
