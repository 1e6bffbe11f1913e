/** `siglip2 dataset`: builds a dataset out of installed packages. */
import { parseArgs } from 'node:util';
import { buildScenes, type SceneOptions } from '../data/datasets/scenes.js';
import { ConfigError } from '../errors.js';
import type { Command } from './main.js';
import { Progress } from './progress.js';

export const command: Command = {
  usage: 'dataset scenes --out DIR [--train N] [--val N] [--test N] [--classes N] [--size PX] [--objects N] [--seed N]',
  summary: 'composes photo-like scenes of emoji artwork with boxes, masks and captions as WebDataset shards; studios are split',
  async run(args) {
    const number = { type: 'string' } as const;
    const { values, positionals } = parseArgs({
      args, allowPositionals: true, options: {
        out: { type: 'string' }, train: number, val: number, test: number,
        classes: number, size: number, objects: number, seed: number,
      },
    });
    if (positionals.length !== 1 || positionals[0] !== 'scenes')
      throw new ConfigError(`dataset needs the name of a dataset, scenes, but got ${positionals.join(' ') || 'none'}`);
    if (values.out === undefined) throw new ConfigError('dataset scenes needs --out DIR');
    const read = (name: 'train' | 'val' | 'test' | 'classes' | 'size' | 'objects' | 'seed'): number | undefined => {
      const text = values[name];
      if (text !== undefined && !/^\d{1,9}$/.test(text))
        throw new ConfigError(`--${name} must be a whole number but is ${text}`);
      return text === undefined ? undefined : Number(text);
    };
    const given = <K extends string>(names: readonly K[], of: (name: K) => number | undefined): { [P in K]?: number } =>
      Object.fromEntries(names.flatMap((n) => of(n) === undefined ? [] : [[n, of(n)]])) as { [P in K]?: number };
    const progress = new Progress('scenes'), started = performance.now();
    const options: SceneOptions = {
      ...given(['classes', 'size', 'objects', 'seed'], read), scenes: given(['train', 'val', 'test'], read),
      onProgress: (done, total) => {
        if (done % 200 !== 0 && done !== total) return;
        progress.update(done, total, { 'scenes/s': Math.round(done / (performance.now() - started) * 1000) });
      },
    };
    const manifest = await buildScenes(values.out, options);
    progress.end();
    for (const { split, scenes, studios } of manifest.splits)
      console.log(`${split}: ${scenes} scenes by ${studios.join(', ')}`);
    console.log(`${values.out}: ${manifest.classes} classes, ${manifest.languages.length} languages`);
    return 0;
  },
};
