/** `siglip2 dataset`: builds a dataset out of installed packages. */
import { parseArgs } from 'node:util';
import { buildScenes, type SceneOptions } from '../../data/datasets/scenes.js';
import { ConfigError } from '../../errors.js';
import type { Command } from '../command.js';
import { Progress } from '../progress.js';
import { buildArtwork } from './train.js';

export const command: Command = {
  usage:
    'dataset emoji --out DIR\n' +
    '  dataset scenes --out DIR [--train N] [--val N] [--test N] [--classes N] [--size PX] [--objects N] [--seed N]',
  summary:
    'emoji: renders the artwork of six studios with names in 36 languages; ' +
    'scenes: composes photo-like scenes of emoji artwork with boxes, masks and captions as WebDataset ' +
    'shards; studios are split',
  async run(args) {
    const number = { type: 'string' } as const;
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        out: { type: 'string' },
        train: number,
        val: number,
        test: number,
        classes: number,
        size: number,
        objects: number,
        seed: number,
      },
    });
    const [name, ...more] = positionals,
      { out, ...scenes } = values;
    if ((name !== 'scenes' && name !== 'emoji') || more.length > 0)
      throw new ConfigError(
        `dataset needs the name of a dataset, emoji or scenes, but got ` +
          (positionals.join(' ') || 'none'),
      );
    if (out === undefined) throw new ConfigError(`dataset ${name} needs --out DIR`);
    if (name === 'emoji') {
      if (Object.keys(scenes).length > 0)
        throw new ConfigError(
          `--${Object.keys(scenes)[0]} is for scenes; dataset emoji has --out only`,
        );
      await buildArtwork(out);
      return 0;
    }
    const read = (
      name: 'train' | 'val' | 'test' | 'classes' | 'size' | 'objects' | 'seed',
    ): number | undefined => {
      const text = values[name];
      if (text !== undefined && !/^\d{1,9}$/.test(text))
        throw new ConfigError(`--${name} must be a whole number but is ${text}`);
      return text === undefined ? undefined : Number(text);
    };
    const given = <K extends string>(
      names: readonly K[],
      of: (name: K) => number | undefined,
    ): { [P in K]?: number } =>
      Object.fromEntries(names.flatMap((n) => (of(n) === undefined ? [] : [[n, of(n)]]))) as {
        [P in K]?: number;
      };
    const progress = new Progress('scenes'),
      started = performance.now();
    const options: SceneOptions = {
      ...given(['classes', 'size', 'objects', 'seed'], read),
      scenes: given(['train', 'val', 'test'], read),
      onProgress: (done, total) =>
        progress.update(done, total, {
          'scenes/s': Math.round((done / (performance.now() - started)) * 1000),
        }),
    };
    const manifest = await buildScenes(out, options);
    progress.end();
    for (const { split, scenes, studios } of manifest.splits)
      console.log(`${split}: ${scenes} scenes by ${studios.join(', ')}`);
    console.log(`${out}: ${manifest.classes} classes, ${manifest.languages.length} languages`);
    return 0;
  },
};
