/** `siglip2 caption`: what images show, in the words of a checkpoint's caption decoder. */
import { parseArgs } from 'node:util';
import type { Command } from '../command.js';
import { listImages } from '../images.js';
import { describeOptions, MODEL_OPTIONS, openModel } from './embed.js';

export const command: Command = {
  usage:
    'caption --model FOLDER IMAGE… [--beams 1] [--json] [--dtype f32|bf16] [--device cpu|cuda] ' +
    '[--alpha drop|white] [--batch N]',
  summary:
    'one caption per image; the checkpoint must have a caption decoder, as those of training with model.decoder do',
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        ...MODEL_OPTIONS,
        beams: { type: 'string', default: '1' },
        json: { type: 'boolean', default: false },
      },
    });
    const images = await listImages(positionals, values),
      options = describeOptions(values);
    using model = await openModel('caption', values);
    const captions = await model.caption(
      images.map((i) => i.open()),
      options,
    );
    captions.forEach((caption, i) => {
      const image = images[i]!.name;
      console.log(values.json ? JSON.stringify({ image, caption }) : `${image}\n  ${caption}`);
    });
    return 0;
  },
};
