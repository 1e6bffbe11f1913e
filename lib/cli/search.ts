/**
 * `siglip2 search`: embeds the images of a folder once, then answers typed queries with a page of pictures. Embeddings are
 * cached by file name, size and time, so a second run only embeds what is new.
 */
import { createHash } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import type { Encoder } from '../encoder.js';
import { Embeddings } from '../encoder/output.js';
import { ConfigError, Siglip2Error } from '../errors.js';
import { topK } from '../eval/retrieval.js';
import { prepareToWrite, writeFileAtomic } from '../io/files.js';
import { openSafetensors, writeSafetensors } from '../io/safetensors.js';
import { DEFAULT_ALPHA } from '../data/image.js';
import { listImages, type NamedImage } from './images.js';
import { MODEL_OPTIONS, openModel, wholeNumber } from './embed.js';
import type { Command } from './main.js';
import { Progress } from './progress.js';
import { renderSearchPage, type SearchResult } from './search_page.js';

const filesJson = z.array(z.strictObject({ name: z.string(), stamp: z.string() }));

/** Changes when the file does. */
function stamp(path: string): string {
  const info = statSync(path, { throwIfNoEntry: false });
  return info ? `${info.size} ${info.mtimeMs}` : '';
}

/** Rows of an earlier run by file; empty when there is none, or when the cache is damaged (it is only a cache). */
async function readCache(file: string, dim: number): Promise<Map<string, { stamp: string; row: Float32Array }>> {
  const rows = new Map<string, { stamp: string; row: Float32Array }>();
  if (!existsSync(file)) return rows;
  try {
    const reader = await openSafetensors(file);
    try {
      const files = filesJson.parse(JSON.parse(reader.metadata['files'] ?? ''));
      const data = await reader.readFloat32('embeddings');
      if (data.length === files.length * dim)
        files.forEach((f, i) => rows.set(f.name, { stamp: f.stamp, row: data.subarray(i * dim, (i + 1) * dim) }));
    } finally {
      await reader.close();
    }
  } catch (e) {
    if (!(e instanceof Siglip2Error || e instanceof z.ZodError || e instanceof SyntaxError)) throw e;
    console.error(`siglip2: the cache ${file} is damaged and is made anew`);
  }
  return rows;
}

/** One row per image, from the cache or the model; images that cannot be decoded are left out and named. */
async function indexImages(model: Encoder, images: readonly NamedImage[], cache: string,
  batchSize: number | undefined): Promise<{ names: string[]; rows: Embeddings }> {
  const known = await readCache(cache, model.dim), stamps = new Map(images.map((i) => [i.name, stamp(i.name)]));
  const missing = images.filter(({ name }) => stamps.get(name) === '' || known.get(name)?.stamp !== stamps.get(name));
  const progress = new Progress('index'), bad = new Set<string>();
  const made = await model.encodeImages(missing.map((i) => i.open()), {
    ...(batchSize ? { batchSize } : {}), onProgress: (done) => progress.update(done, missing.length, {}),
    onBadImage: (e, i) => {
      bad.add(missing[i]!.name);
      console.error(`siglip2: left out: ${e.message}`);
    },
  });
  progress.end();
  missing.forEach(({ name }, i) => known.set(name, { stamp: stamps.get(name)!, row: made.row(i) }));
  const names = images.map((i) => i.name).filter((name) => !bad.has(name));
  const rows = Embeddings.from(names.map((name) => known.get(name)!.row), model.dim);
  if (missing.length > 0)
    await writeSafetensors(cache, [{ name: 'embeddings', dtype: 'F32', shape: [rows.rows, model.dim], data: rows.data }],
      { files: JSON.stringify(names.map((name) => ({ name, stamp: stamps.get(name)! }))) });
  return { names, rows };
}

/** Where the embeddings of these images by this model are kept. `model.source` is a run's newest checkpoint. */
function cachePath(folder: string, model: Encoder, alpha: string = DEFAULT_ALPHA): string {
  const weights = stamp(join(model.source, 'model.safetensors')) || stamp(model.source);
  const parts = [resolve(folder), resolve(model.source), weights, model.processor, model.dtype, alpha];
  const key = createHash('sha256').update(JSON.stringify(parts)).digest('hex');
  return join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'siglip2', `search-${key.slice(0, 16)}.safetensors`);
}

export const command: Command = {
  usage: 'search FOLDER --model FOLDER [QUERY…] [--out search.html] [--top 24] [--alpha drop|white] [--cache FILE]',
  summary: 'embeds a folder of images once, then answers queries (arguments, or typed one a line) with a page of pictures',
  async run(args) {
    const { values, positionals } = parseArgs({
      args, allowPositionals: true, options: {
        ...MODEL_OPTIONS, out: { type: 'string', default: 'search.html' }, top: { type: 'string', default: '24' }, cache: { type: 'string' },
      },
    });
    const [folder, ...queries] = positionals;
    if (folder === undefined) throw new ConfigError('search needs a folder of images');
    const top = wholeNumber('top', values.top), images = await listImages([folder]);
    if (values.cache !== undefined && !values.cache.endsWith('.safetensors'))
      throw new ConfigError(`--cache must be a file that ends in .safetensors but is ${values.cache}`);
    await prepareToWrite(values.out);
    using model = await openModel('search', values);
    const cache = values.cache ?? cachePath(folder, model, values.alpha);
    await prepareToWrite(cache);
    const { names, rows } = await indexImages(model, images, cache, values.batch ? wholeNumber('batch', values.batch) : undefined);
    if (names.length === 0) throw new ConfigError(`no image in ${folder} can be decoded`);
    const results: SearchResult[] = [];
    const answer = async (query: string): Promise<void> => {
      const scores = await model.similarity(await model.encodeTexts(query), rows);
      const best = topK(scores.logits, top).map((i) => ({ file: names[i]!, probability: scores.probabilities[i]!, cosine: scores.cosine[i]! }));
      results.unshift({ query, images: best });
      await writeFileAtomic(values.out, await renderSearchPage(results, names.length));
      const line = (b: (typeof best)[number]): string => `  ${(100 * b.probability).toFixed(2).padStart(6)} %  ${b.cosine.toFixed(4)}  ${b.file}`;
      console.log([query, ...best.slice(0, 5).map(line)].join('\n'));
    };
    for (const query of queries) await answer(query);
    if (queries.length === 0) {
      const typed = createInterface({ input: process.stdin, output: process.stderr, prompt: 'search> ', terminal: process.stdin.isTTY === true });
      if (process.stdin.isTTY) typed.prompt();
      for await (const line of typed) {
        if (line.trim() !== '') await answer(line.trim());
        if (process.stdin.isTTY) typed.prompt();
      }
    }
    console.error(`${names.length} images, page: ${values.out}`);
    return 0;
  },
};
