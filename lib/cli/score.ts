/** `siglip2 score`: scores every image and caption of a collection into tables. */
import { parseArgs } from 'node:util';
import { scoreCollection, type ScoreOptions } from '../curation/score.js';
import { scoreUnits } from '../curation/score_units.js';
import { ConfigError } from '../errors.js';
import { MODEL_OPTIONS, openModel, wholeNumber } from './embed.js';
import type { Command } from './main.js';
import { Progress } from './progress.js';

/** A number from the command line that may be 0. */
function naturalNumber(name: string, text: string): number {
  return text === '0' ? 0 : wholeNumber(name, text);
}

export const command: Command = {
  usage: 'score --model MODEL [--reference MODEL] SHARDS|FOLDER|MANIFEST… --out DIR [--index I --count N] [--pick first|any|LANG] ' +
    '[--language LANG] [--max-skips N] [--block 256] [--alpha drop|white] [--dtype f32|bf16] [--device cpu|cuda] [--batch N]',
  summary: 'writes a table of scores for every tar (or 4,096 samples of a folder or .jsonl or .parquet manifest): cosine, probability, loss, ' +
    'learnability against a reference; run it again to go on where it stopped; --index and --count divide the work among processes',
  async run(args) {
    const { values, positionals } = parseArgs({
      args, allowPositionals: true, options: {
        ...MODEL_OPTIONS, reference: { type: 'string' }, out: { type: 'string' }, index: { type: 'string', default: '0' },
        count: { type: 'string', default: '1' }, pick: { type: 'string', default: 'first' }, language: { type: 'string' },
        'max-skips': { type: 'string' }, block: { type: 'string', default: '256' }, alpha: { type: 'string', default: 'drop' },
      },
    });
    const { out, alpha } = values;
    if (out === undefined) throw new ConfigError('score needs --out, a folder for the tables');
    if (alpha !== 'drop' && alpha !== 'white') throw new ConfigError(`--alpha must be drop or white but is ${alpha}`);
    const units = await scoreUnits(positionals, values.language === undefined ? {} : { language: values.language });
    using learner = await openModel('score', values);
    using reference = values.reference === undefined ? undefined : await openModel('score', { ...values, model: values.reference });
    const progress = new Progress('score'), began = performance.now();
    let shown = 0;
    const options: ScoreOptions = {
      learner, ...(reference ? { reference } : {}), pick: values.pick, alpha, block: wholeNumber('block', values.block),
      index: naturalNumber('index', values.index), count: wholeNumber('count', values.count),
      ...(values.batch ? { batchSize: wholeNumber('batch', values.batch) } : {}),
      ...(values['max-skips'] ? { maxSkips: naturalNumber('max-skips', values['max-skips']) } : {}),
      onProgress: ({ units: done, ofUnits, samples, skipped }) => {
        if (done < ofUnits && performance.now() - shown < 1000) return;
        shown = performance.now();
        progress.update(done, ofUnits, { samples, skipped, 'samples/s': Number((samples / (shown - began) * 1000).toFixed(1)) });
      },
    };
    const { units: mine, resumed, rows, skips } = await scoreCollection(units, out, options);
    progress.end();
    if (skips.total > 0) console.error(`skipped samples: ${skips.summary()}`);
    console.error(`${out}: ${rows} rows in ${mine} tables${resumed ? `, ${resumed} of them from before` : ''}`);
    return 0;
  },
};
