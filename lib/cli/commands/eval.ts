/** `siglip2 eval`: zero-shot scores of a checkpoint in every language of the emoji sets, and its tasks on scenes. */
import { existsSync, readFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { type LoadedModel, loadModel } from '../../checkpoints/load.js';
import { checkpointOf } from '../../checkpoints/run.js';
import { tokenizerOf } from '../../checkpoints/tokenizer.js';
import { CheckpointError, ConfigError } from '../../errors.js';
import { evaluateScenes, SCENE_TASKS } from '../../eval/scene_tasks.js';
import { buildEvalSets, type EvalSetName, type EvalSetOptions } from '../../eval/sets.js';
import { evaluateSuite, type SetResult } from '../../eval/zero_shot.js';
import { writeFileAtomic } from '../../fs/files.js';
import { checkTrainConfig, type TrainConfig } from '../../train/config.js';
import type { Command } from '../command.js';
import { Progress } from '../progress.js';

export const command: Command = {
  usage:
    'eval CHECKPOINT|RUN [--task NAME]… [--data DIR] [--set-name NAME]… [--seed N] [--out FILE.json]',
  summary:
    'zero-shot classification and retrieval on emoji, every language, beside chance and a pixel nearest neighbour; ' +
    `with --task, on scenes: ${Object.keys(SCENE_TASKS).join(', ')}; of a run on its own data, drawn as in its training`,
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        data: { type: 'string' },
        task: { type: 'string', multiple: true },
        'set-name': { type: 'string', multiple: true },
        seed: { type: 'string' },
        out: { type: 'string' },
      },
    });
    const where = positionals[0],
      seed = values.seed === undefined ? undefined : Number(values.seed);
    if (where === undefined || positionals.length > 1)
      throw new ConfigError('eval needs a checkpoint folder, or the folder of a run');
    if (seed !== undefined && !(Number.isSafeInteger(seed) && seed >= 0))
      throw new ConfigError(`--seed must be a whole number but is ${values.seed}`);
    const checkpoint = checkpointOf(where),
      config = runConfig(checkpoint);
    const loaded = await loadModel(checkpoint);
    try {
      const { task: tasks } = values,
        kind = tasks ? 'scenes' : 'emoji',
        data = values.data ?? dataOf(config, kind) ?? `data/${kind}`;
      const boxes = loaded.boxes ?? config?.objectives.caption?.boxes;
      const results = tasks
        ? {
            scenes: await evaluateScenes(loaded, data, tasks, {
              seed: seed ?? 1,
              ...(boxes ? { boxes } : {}),
            }),
          }
        : {
            sets: await evaluateEmoji(
              loaded,
              data,
              { ...emojiSettings(config), ...(seed === undefined ? {} : { seed }) },
              values['set-name'] as EvalSetName[] | undefined,
            ),
          };
      const json = `${JSON.stringify(results, null, 2)}\n`;
      if (values.out) await writeFileAtomic(values.out, json);
      else console.log(json);
      return 0;
    } finally {
      loaded.model.dispose();
    }
  },
};

async function evaluateEmoji(
  loaded: LoadedModel,
  data: string,
  settings: EmojiSettings,
  names: EvalSetName[] | undefined,
): Promise<Record<string, SetResult>> {
  const { imageSize: size } = loaded.model.config.vision;
  const suite = await buildEvalSets(data, { size, ...settings, ...(names ? { sets: names } : {}) });
  const progress = new Progress('evaluate'),
    sets: Record<string, SetResult> = {};
  for await (const [name, result] of evaluateSuite(
    loaded,
    suite,
    await tokenizerOf(loaded),
    (done, total) => {
      progress.update(done, total, {});
    },
  ))
    sets[name] = result;
  progress.end();
  return sets;
}

type EmojiSettings = Pick<EvalSetOptions, 'seed' | 'scale' | 'backgrounds'>;

/**
 * How the emoji sets of a run are drawn, wherever it is evaluated: artwork is placed as in its training, with its seed, which
 * training never uses for this. Of a checkpoint that belongs to no run: everything.
 */
export function emojiSettings(config: TrainConfig | null): EmojiSettings {
  if (config === null) return { seed: 1 };
  const place = config.data.transforms.find((t) => t.name === 'place') as
    | Omit<EmojiSettings, 'seed'>
    | undefined;
  return {
    seed: config.seed,
    ...(place?.scale ? { scale: place.scale } : {}),
    ...(place?.backgrounds ? { backgrounds: place.backgrounds } : {}),
  };
}

/** The config of the run that a checkpoint belongs to; null when it belongs to none. */
export function runConfig(checkpoint: string): TrainConfig | null {
  const folder = dirname(resolve(checkpoint)),
    file = join(dirname(folder), 'config.json');
  if (basename(folder) !== 'checkpoints' || !existsSync(file)) return null;
  try {
    return checkTrainConfig(JSON.parse(readFileSync(file, 'utf8')));
  } catch (cause) {
    throw new CheckpointError(
      `${file}: is not the config of a run (${(cause as Error).message}); give a copy of the ` +
        'checkpoint outside of its run to evaluate it without',
      { cause },
    );
  }
}

/** Where a run's data of a kind are: its source's folder, of a mixture that of the first such source. */
export function dataOf(config: TrainConfig | null, kind: 'emoji' | 'scenes'): string | undefined {
  if (config === null) return undefined;
  const { source } = config.data,
    all = source.type === 'mixture' ? source.sources.map((part) => part.source) : [source];
  return all.flatMap((one) => (one.type === kind ? one.path : []))[0];
}
