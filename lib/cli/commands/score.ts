/** `siglip2 score`: scores every image and caption of a collection into tables, and merges them into one with a report. */
import { parseArgs } from 'node:util';
import { type MergeOptions, mergeScores, type NamedFile } from '../../curation/merge.js';
import { type ScoreOptions, scoreCollection } from '../../curation/score.js';
import { writeScoreReport } from '../../curation/score_examples.js';
import { readSettings } from '../../curation/score_table.js';
import { scoreUnits } from '../../curation/score_units.js';
import { parseMembers } from '../../data/members.js';
import { ConfigError } from '../../errors.js';
import { parseTolerance } from '../../fs/skips.js';
import { DEFAULT_ALPHA } from '../../image/image.js';
import type { DeviceName } from '../../tensor.js';
import type { Command } from '../command.js';
import { listImages } from '../images.js';
import { counted, Progress } from '../progress.js';
import { MODEL_OPTIONS, naturalNumber, openModel, wholeNumber } from './embed.js';

/** Merges the tables of a folder: prints what was found, writes the report. */
async function merge(
  folder: string,
  values: {
    near: string;
    leakage?: string[] | undefined;
    members?: string | undefined;
    partial: boolean;
    model?: string | undefined;
    device: string;
  },
): Promise<void> {
  const near = Number(values.near);
  if (!(near > 0 && near <= 1))
    throw new ConfigError(`--near must be a cosine in (0, 1] but is ${values.near}`);
  const images = values.leakage ? await listImages(values.leakage, values) : [];
  const {
    learner: { source },
    dtype,
    processor,
    alpha,
  } = readSettings(folder);
  using learner =
    values.leakage &&
    (await openModel('score', {
      device: values.device,
      model: values.model ?? source,
      dtype,
      processor,
      alpha,
    }));
  const progress = new Progress('merge');
  const options: MergeOptions = {
    near,
    partial: values.partial,
    device: values.device as DeviceName,
    onProgress: (task, done, total) => progress.update(done, total, { task }),
    ...(learner ? { leakage: { learner, images: images as NamedFile[] } } : {}),
  };
  const summary = await mergeScores(folder, options),
    report = await writeScoreReport(folder, summary);
  progress.end();
  if (summary.skips.total > 0) console.error(`without a score: ${summary.skips.summary()}`);
  if (summary.missing.length > 0)
    console.error(`${counted(summary.missing.length, 'table')} missing`);
  for (const [flag, count] of summary.flags) console.error(`${flag}: ${counted(count, 'row')}`);
  console.error(`${counted(summary.rows, 'row')} in ${folder}/scores.parquet, report: ${report}`);
}

export const command: Command = {
  usage:
    'score --model MODEL [--reference MODEL] SHARDS|FOLDER|MANIFEST… --out DIR [--index I --count N] ' +
    '[--pick first|any|LANG] [--language LANG] [--max-skips N|P%] [--members image=depth.png,caption=syn.txt] [--block 256] [--alpha drop|white] ' +
    '[--dtype f32|bf16] [--device cpu|cuda] [--batch N]\n' +
    '  score --merge DIR [--near 0.97] [--leakage IMAGES…] [--partial]',
  summary:
    'writes a table of scores for every tar (or 4,096 samples of a folder or .jsonl or .parquet manifest): ' +
    'cosine, probability, loss, learnability against a reference; run it again to go on where it stopped; ' +
    '--index and --count divide the work among processes;\n' +
    '      --merge makes scores.parquet, skipped.jsonl and report.html of the tables, marks duplicates, ' +
    'and with --leakage images of an evaluation set',
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        ...MODEL_OPTIONS,
        reference: { type: 'string' },
        out: { type: 'string' },
        index: { type: 'string', default: '0' },
        count: { type: 'string', default: '1' },
        pick: { type: 'string', default: 'first' },
        language: { type: 'string' },
        'max-skips': { type: 'string' },
        block: { type: 'string', default: '256' },
        alpha: { type: 'string', default: DEFAULT_ALPHA },
        merge: { type: 'string' },
        near: { type: 'string', default: '0.97' },
        leakage: { type: 'string', multiple: true },
        partial: { type: 'boolean', default: false },
      },
    });
    if (values.merge !== undefined) {
      if (positionals.length > 0 && !values.leakage)
        throw new ConfigError(
          `score --merge takes one folder but there is also ${positionals.join(' ')}`,
        );
      await merge(values.merge, {
        ...values,
        leakage: values.leakage && [...values.leakage, ...positionals],
      });
      return 0;
    }
    const { out, alpha } = values;
    if (out === undefined) throw new ConfigError('score needs --out, a folder for the tables');
    if (alpha !== 'drop' && alpha !== 'white')
      throw new ConfigError(`--alpha must be drop or white but is ${alpha}`);
    const units = await scoreUnits(positionals, {
      ...(values.language === undefined ? {} : { language: values.language }),
      ...(values.members === undefined ? {} : { members: parseMembers(values.members) }),
    });
    using learner = await openModel('score', { ...values, alpha });
    using reference =
      values.reference === undefined
        ? undefined
        : await openModel('score', { ...values, alpha, model: values.reference });
    const progress = new Progress('score'),
      began = performance.now();
    const options: ScoreOptions = {
      learner,
      ...(reference ? { reference } : {}),
      pick: values.pick,
      alpha,
      block: wholeNumber('block', values.block),
      index: naturalNumber('index', values.index),
      count: wholeNumber('count', values.count),
      ...(values.batch ? { batchSize: wholeNumber('batch', values.batch) } : {}),
      ...(values['max-skips']
        ? { maxSkips: parseTolerance('--max-skips', values['max-skips']) }
        : {}),
      note: (message) => console.error(`siglip2: ${message}`),
      onProgress: ({ units: done, ofUnits, samples, skipped }) =>
        progress.update(done, ofUnits, () => ({
          samples,
          skipped,
          'samples/s': Number(((samples / (performance.now() - began)) * 1000).toFixed(1)),
        })),
    };
    const { units: mine, resumed, rows, skips } = await scoreCollection(units, out, options);
    progress.end();
    if (skips.total > 0) console.error(`skipped samples: ${skips.summary()}`);
    console.error(
      `${out}: ${counted(rows, 'row')} in ${counted(mine, 'table')}${resumed ? `, ${resumed} of them from before` : ''}`,
    );
    return 0;
  },
};
