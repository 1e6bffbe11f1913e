/** `siglip2 embed`: one unit-length f32 row per image or text, in input order, as .npy, .safetensors or .parquet. */
import { rm } from 'node:fs/promises';
import { extname } from 'node:path';
import { parseArgs } from 'node:util';
import type { DescribeOptions } from '../../encoder/describe.js';
import { type EncodeOptions, type Encoder, load } from '../../encoder/encoder.js';
import { ConfigError } from '../../errors.js';
import { prepareToWrite, writeFileAtomic } from '../../fs/files.js';
import { lines } from '../../fs/paths.js';
import type { ProcessorName } from '../../image/processor.js';
import { writeNpy } from '../../io/npy.js';
import { writeParquet } from '../../io/parquet.js';
import { writeSafetensors } from '../../io/safetensors.js';
import type { DeviceName } from '../../tensor.js';
import type { Command } from '../command.js';
import { listImages, type NamedImage } from '../images.js';
import { Progress } from '../progress.js';

/** Options that every command with a model has. */
export const MODEL_OPTIONS = {
  model: { type: 'string' },
  dtype: { type: 'string', default: 'f32' },
  device: { type: 'string', default: 'cpu' },
  processor: { type: 'string' },
  alpha: { type: 'string' },
  batch: { type: 'string' },
  members: { type: 'string' },
} as const;

/** Loads the model that the options name. */
export function openModel(
  command: string,
  values: {
    model?: string | undefined;
    dtype: string;
    device: string;
    processor?: string | undefined;
    alpha?: string | undefined;
  },
): Promise<Encoder> {
  if (values.model === undefined)
    throw new ConfigError(`${command} needs --model, the folder of a checkpoint`);
  return load(values.model, {
    dtype: values.dtype as 'f32',
    device: values.device as DeviceName,
    ...(values.processor ? { processor: values.processor as ProcessorName } : {}),
    ...(values.alpha ? { alpha: values.alpha as 'drop' } : {}),
  });
}

/** A number from the command line. */
export function wholeNumber(name: string, text: string): number {
  const n = Number(text);
  if (!(Number.isInteger(n) && n > 0))
    throw new ConfigError(
      `--${name} must be a positive whole number but is ${JSON.stringify(text)}`,
    );
  return n;
}

/** A number from the command line that may be 0. */
export function naturalNumber(name: string, text: string): number {
  if (!/^\d{1,9}$/.test(text))
    throw new ConfigError(`--${name} must be a whole number but is ${JSON.stringify(text)}`);
  return Number(text);
}

/** Options of the commands that let the caption decoder write. */
export function describeOptions(values: {
  beams: string;
  batch?: string | undefined;
}): DescribeOptions {
  return {
    beams: wholeNumber('beams', values.beams),
    ...(values.batch ? { batchSize: wholeNumber('batch', values.batch) } : {}),
  };
}

/** The lines of a text file. */
export async function readLines(file: string): Promise<string[]> {
  const out: string[] = [];
  for await (const { data } of lines(file)) out.push(data.toString('utf8'));
  return out;
}

function* opened(images: readonly NamedImage[]): Generator<ReturnType<NamedImage['open']>> {
  for (const image of images) yield image.open();
}

const FORMATS = ['.npy', '.safetensors', '.parquet'];

export const command: Command = {
  usage:
    'embed --model FOLDER (--images GLOB|FOLDER|TAR… | --texts FILE) --out FILE.{npy,safetensors,parquet} [--dtype f32|bf16] ' +
    '[--device cpu|cuda] [--processor hf|big_vision|aa-f32] [--alpha drop|white] [--members image=depth.png] [--batch N] [--skip-bad]',
  summary:
    'one unit-length f32 row per image (patterns and folders sorted) or line of text, in input order; ' +
    'a bad image is an error, or with --skip-bad a row of NaN and a line in FILE.skipped.txt',
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        ...MODEL_OPTIONS,
        images: { type: 'string', multiple: true },
        texts: { type: 'string' },
        out: { type: 'string' },
        'skip-bad': { type: 'boolean', default: false },
      },
    });
    const { out } = values,
      format = extname(out ?? '');
    if (out === undefined || !FORMATS.includes(format))
      throw new ConfigError(`embed needs --out, a file that ends in ${FORMATS.join(', ')}`);
    if ((values.images === undefined) === (values.texts === undefined))
      throw new ConfigError('embed needs either --images or --texts');
    if (values.texts !== undefined && positionals.length > 0)
      throw new ConfigError(
        `embed takes one file of --texts but there is also ${positionals.join(' ')}`,
      );
    // A pattern that the shell expanded leaves all files but the first as positionals.
    const images = values.images
      ? await listImages([...values.images, ...positionals], values)
      : [];
    const texts = values.texts === undefined ? [] : await readLines(values.texts);
    const names = values.texts === undefined ? images.map((i) => i.name) : texts;
    await prepareToWrite(out);
    using model = await openModel('embed', values);
    const progress = new Progress('embed'),
      skipped: string[] = [];
    const options: EncodeOptions<'f32'> = {
      ...(values.batch ? { batchSize: wholeNumber('batch', values.batch) } : {}),
      onProgress: (done) =>
        progress.update(done, names.length, skipped.length ? { skipped: skipped.length } : {}),
      ...(values['skip-bad']
        ? {
            onBadImage: (error: Error, i: number) =>
              skipped.push(`${i}\t${names[i]}\t${error.message}`),
          }
        : {}),
    };
    const rows =
      values.texts === undefined
        ? model.streamImages(opened(images), options)
        : model.streamTexts(texts, options);
    if (format === '.npy') await writeNpy(out, names.length, model.dim, rows);
    else {
      const all: Float32Array[] = [];
      for await (const row of rows) all.push(row);
      if (format === '.parquet') await writeParquet(out, names, all);
      else {
        const data = new Float32Array(all.length * model.dim);
        all.forEach((row, i) => data.set(row, i * model.dim));
        await writeSafetensors(out, [
          { name: 'embeddings', dtype: 'F32', shape: [all.length, model.dim], data },
        ]);
      }
    }
    progress.end();
    // The list of an earlier run would speak of other rows.
    await rm(`${out}.skipped.txt`, { force: true });
    if (skipped.length) {
      await writeFileAtomic(
        `${out}.skipped.txt`,
        `${skipped.sort((a, b) => parseInt(a, 10) - parseInt(b, 10)).join('\n')}\n`,
      );
      console.error(
        `siglip2: ${skipped.length} of ${names.length} images are bad; their rows are NaN, ${out}.skipped.txt lists them`,
      );
    }
    return 0;
  },
};
