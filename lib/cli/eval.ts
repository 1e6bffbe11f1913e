/** `siglip2 eval`: zero-shot scores of a checkpoint in every language of the emoji sets. */
import { parseArgs } from 'node:util';
import { buildEvalSets, type EvalSetName } from '../data/evalset.js';
import { ConfigError } from '../errors.js';
import { evaluateSuite, type SetResult } from '../eval/zero_shot.js';
import { writeFileAtomic } from '../io/files.js';
import { loadModel } from '../model/files.js';
import { tokenizerOf } from '../model/tokenizer.js';
import { listCheckpoints } from '../train/checkpoint.js';
import type { Command } from './main.js';
import { Progress } from './progress.js';

export const command: Command = {
  usage: 'eval CHECKPOINT|RUN [--data data/emoji] [--set-name NAME]… [--seed N] [--out FILE.json]',
  summary: 'zero-shot classification and retrieval, every language, beside chance and a pixel nearest neighbour',
  async run(args) {
    const { values, positionals } = parseArgs({
      args, allowPositionals: true, options: {
        data: { type: 'string', default: 'data/emoji' }, 'set-name': { type: 'string', multiple: true },
        seed: { type: 'string', default: '1' }, out: { type: 'string' },
      },
    });
    const where = positionals[0];
    if (where === undefined) throw new ConfigError('eval needs a checkpoint folder, or the folder of a run');
    const loaded = await loadModel(listCheckpoints(where).at(-1) ?? where);
    try {
      const suite = await buildEvalSets(values.data, {
        size: loaded.model.config.vision.imageSize, seed: Number(values.seed),
        ...(values['set-name'] ? { sets: values['set-name'] as EvalSetName[] } : {}),
      });
      const progress = new Progress('evaluate');
      const sets: Record<string, SetResult> = {};
      for await (const [name, result] of evaluateSuite(loaded, suite, await tokenizerOf(loaded), (done, total) => {
        if (done % 12 === 0 || done === total) progress.update(done, total, {});
      })) sets[name] = result;
      progress.end();
      const json = `${JSON.stringify({ sets }, null, 2)}\n`;
      if (values.out) await writeFileAtomic(values.out, json);
      else console.log(json);
      return 0;
    } finally {
      loaded.model.dispose();
    }
  },
};
