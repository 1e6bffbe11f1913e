/** `siglip2 eval`: zero-shot scores of a checkpoint in every language of the emoji sets, and its tasks on scenes. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { buildEvalSets, type EvalSetName } from '../data/evalset.js';
import type { BoxFormat } from '../data/regions.js';
import { ConfigError } from '../errors.js';
import { evaluateScenes, SCENE_TASKS } from '../eval/scene_tasks.js';
import { evaluateSuite, type SetResult } from '../eval/zero_shot.js';
import { writeFileAtomic } from '../io/files.js';
import { loadModel, type LoadedModel } from '../model/files.js';
import { tokenizerOf } from '../model/tokenizer.js';
import { listCheckpoints } from '../train/checkpoint.js';
import type { TrainConfig } from '../train/config.js';
import type { Command } from './main.js';
import { Progress } from './progress.js';

export const command: Command = {
  usage: 'eval CHECKPOINT|RUN [--task NAME]… [--data DIR] [--set-name NAME]… [--seed N] [--out FILE.json]',
  summary: 'zero-shot classification and retrieval on emoji, every language, beside chance and a pixel nearest neighbour; ' +
    `with --task, on scenes: ${Object.keys(SCENE_TASKS).join(', ')}`,
  async run(args) {
    const { values, positionals } = parseArgs({
      args, allowPositionals: true, options: {
        data: { type: 'string' }, task: { type: 'string', multiple: true }, 'set-name': { type: 'string', multiple: true },
        seed: { type: 'string', default: '1' }, out: { type: 'string' },
      },
    });
    const where = positionals[0], seed = Number(values.seed);
    if (where === undefined || positionals.length > 1)
      throw new ConfigError('eval needs a checkpoint folder, or the folder of a run');
    if (!Number.isSafeInteger(seed) || seed < 0)
      throw new ConfigError(`--seed must be a whole number but is ${values.seed}`);
    const loaded = await loadModel(listCheckpoints(where).at(-1) ?? where);
    try {
      const { task: tasks, data = tasks ? 'data/scenes' : 'data/emoji' } = values;
      const results = tasks ? { scenes: await evaluateScenes(loaded, data, tasks, { seed, ...boxesOfRun(where) }) }
        : { sets: await evaluateEmoji(loaded, data, seed, values['set-name'] as EvalSetName[] | undefined) };
      const json = `${JSON.stringify(results, null, 2)}\n`;
      if (values.out) await writeFileAtomic(values.out, json);
      else console.log(json);
      return 0;
    } finally {
      loaded.model.dispose();
    }
  },
};

async function evaluateEmoji(loaded: LoadedModel, data: string, seed: number,
  names: EvalSetName[] | undefined): Promise<Record<string, SetResult>> {
  const { imageSize: size } = loaded.model.config.vision;
  const suite = await buildEvalSets(data, { size, seed, ...(names ? { sets: names } : {}) });
  const progress = new Progress('evaluate'), sets: Record<string, SetResult> = {};
  for await (const [name, result] of evaluateSuite(loaded, suite, await tokenizerOf(loaded), (done, total) => {
    if (done % 12 === 0 || done === total) progress.update(done, total, {});
  })) sets[name] = result;
  progress.end();
  return sets;
}

/** How a run's decoder writes boxes; nothing where that is not known, and then LocCa's way holds. */
function boxesOfRun(run: string): { boxes?: BoxFormat } {
  const file = join(run, 'config.json');
  if (listCheckpoints(run).length === 0 || !existsSync(file)) return {};
  const { objectives } = JSON.parse(readFileSync(file, 'utf8')) as TrainConfig;
  return objectives.caption?.boxes ? { boxes: objectives.caption.boxes } : {};
}
