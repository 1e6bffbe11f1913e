/** `siglip2 locate`: where in images a phrase is, by a checkpoint's caption decoder. */
import { extname } from 'node:path';
import { parseArgs } from 'node:util';
import sharp from 'sharp';
import type { Location } from '../../encoder/describe.js';
import { ConfigError } from '../../errors.js';
import { writeFileAtomic } from '../../fs/files.js';
import { decodeInput, type ImageInput } from '../../image/input.js';
import type { Command } from '../command.js';
import { listImages } from '../images.js';
import { describeOptions, MODEL_OPTIONS, openModel } from './embed.js';

/** The upright image with the box on it; the file's ending says the format. */
export async function drawBox(
  file: string,
  input: ImageInput,
  { pixels }: Location,
): Promise<void> {
  const { data, width, height, channels } = await decodeInput(input),
    [left, top, right, bottom] = pixels;
  const line = Math.max(2, Math.round(Math.max(width, height) / 150));
  const rect = (colour: string, stroke: number): string =>
    `<rect x="${left}" y="${top}" width="${right - left}" ` +
    `height="${bottom - top}" fill="none" stroke="${colour}" stroke-width="${stroke}"/>`;
  // White around the colour, so that it is seen on every ground.
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}">` +
    `${rect('white', 2 * line)}${rect('#e6007e', line)}</svg>`;
  const picture = sharp(data, { raw: { width, height, channels } }).composite([
    { input: Buffer.from(svg) },
  ]);
  const ending = extname(file).slice(1).toLowerCase();
  await writeFileAtomic(
    file,
    await picture.toFormat(ending === 'png' || ending === 'webp' ? ending : 'jpeg').toBuffer(),
  );
}

export const command: Command = {
  usage:
    'locate --model FOLDER --phrase TEXT IMAGE… [--out FILE.{jpg,png,webp}] [--beams 1] [--json] [--dtype f32|bf16] ' +
    '[--device cpu|cuda] [--alpha drop|white] [--batch N]',
  summary:
    'the box of a phrase in each image, in pixels: left, top, right, bottom; with --out a picture of one image with its ' +
    'box; the checkpoint must have a caption decoder',
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        ...MODEL_OPTIONS,
        phrase: { type: 'string' },
        out: { type: 'string' },
        beams: { type: 'string', default: '1' },
        json: { type: 'boolean', default: false },
      },
    });
    const { phrase, out } = values;
    if (phrase === undefined) throw new ConfigError('locate needs --phrase, what to look for');
    if (out !== undefined && !/\.(jpe?g|png|webp)$/i.test(out))
      throw new ConfigError(`--out must end in .jpg, .png or .webp but is ${out}`);
    const images = await listImages(positionals, values),
      options = describeOptions(values);
    if (out !== undefined && images.length !== 1)
      throw new ConfigError(`--out is for one image but there are ${images.length}`);
    using model = await openModel('locate', values);
    const places = await model.locate(
      images.map((i) => i.open()),
      phrase,
      options,
    );
    places.forEach((place, i) => {
      const image = images[i]!.name;
      console.log(
        values.json
          ? JSON.stringify({ image, phrase, ...(place ?? { box: null, pixels: null }) })
          : `${image}\n  ${place ? place.pixels.join(' ') : 'no box'}`,
      );
    });
    const [place] = places;
    if (out !== undefined && place) await drawBox(out, images[0]!.open(), place);
    return 0;
  },
};
