/** `siglip2 debias`: keep probabilities that take representation and association bias out of a data set. */
import { createHash } from 'node:crypto';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { BiasTally, debias, type Labels } from '../../curation/debias.js';
import { debiasPage, debiasText, violations } from '../../curation/debias_report.js';
import {
  debiasOptions,
  type LabelledRecord,
  Labeller,
  loadDebiasConfig,
  readRecords,
} from '../../curation/labels.js';
import { COLLECTIONS, collectionOf } from '../../data/collection.js';
import { parseMembers } from '../../data/members.js';
import { ConfigError, DataError } from '../../errors.js';
import { makeFolder, writeFileAtomic } from '../../fs/files.js';
import { keyLines } from '../../fs/keys.js';
import { expandPaths } from '../../fs/paths.js';
import { parseTolerance, SkipCounter } from '../../fs/skips.js';
import type { Command } from '../command.js';
import { MODEL_OPTIONS, naturalNumber, openModel, wholeNumber } from './embed.js';

/** Samples that are labelled at a time. */
const BATCH = 256;

export const command: Command = {
  usage:
    'debias INPUT… --config FILE --out DIR [--passes 10] [--seed 0] [--max-skips N|P%] [--members image=depth.png,caption=syn.txt] ' +
    '[--model FOLDER [--device D] [--batch N]]',
  summary:
    'balances attributes that the config names: INPUT are tars, folders, manifests, or .parquet with a column "key"; ' +
    'writes keep.parquet (file, key, probability, kept), keep.txt, report.html and report.txt; ' +
    'exits 3 when a constraint does not hold',
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        ...MODEL_OPTIONS,
        config: { type: 'string' },
        out: { type: 'string' },
        passes: { type: 'string', default: '10' },
        seed: { type: 'string', default: '0' },
        'max-skips': { type: 'string' },
      },
    });
    if (positionals.length === 0)
      throw new ConfigError(`debias needs ${COLLECTIONS}, or .parquet tables with a column "key"`);
    if (values.config === undefined || values.out === undefined)
      throw new ConfigError('debias needs --config FILE and --out DIR');
    await makeFolder(values.out);
    const config = await loadDebiasConfig(values.config),
      options = debiasOptions(config);
    const passes = wholeNumber('passes', values.passes),
      seed = naturalNumber('seed', values.seed);
    const maxSkips = values['max-skips'];
    const skips = new SkipCounter(
      maxSkips === undefined ? undefined : parseTolerance('--max-skips', maxSkips),
      (message) => console.error(`siglip2: ${message}`),
    );
    using model = values.model === undefined ? undefined : await openModel('debias', values);
    const labeller = new Labeller(
      config,
      model,
      skips,
      values.batch ? { batchSize: wholeNumber('batch', values.batch) } : {},
    );

    const files: string[] = [],
      keys: string[] = [],
      labels: Labels[] = [];
    let batch: LabelledRecord[] = [],
      said = 0;
    const flush = async (): Promise<void> => {
      (await labeller.label(batch)).forEach((l, i) => {
        if (!l) return;
        files.push(batch[i]!.file);
        keys.push(batch[i]!.key);
        labels.push(l);
      });
      batch = [];
    };
    for (const input of positionals
      .flatMap(expandPaths)
      .map((path) =>
        collectionOf(
          path,
          values.members === undefined ? {} : { members: parseMembers(values.members) },
        ),
      ))
      for await (const record of readRecords(input, skips)) {
        batch.push(record);
        if (batch.length < BATCH) continue;
        await flush();
        if (labels.length >= said + 100_000)
          console.error(`${(said = labels.length)} samples labelled`);
      }
    await flush();
    skips.check(labels.length + skips.total, positionals.join(' '));
    options.groups
      .flatMap(({ name, attributes }) => attributes.map((a) => `${name}/${a.name}`))
      .forEach((name, k) => {
        if (!labels.some((l) => l[k]))
          throw new DataError(`debias: no sample is ${name}; check its rule in ${values.config}`);
      });

    const { probabilities, ...result } = debias(labels, options, passes, seed),
      kept = new BiasTally(options);
    const keep = labels.map((l, i) => {
      const stays = uniform(seed, files[i]!, keys[i]!) < probabilities[i]!;
      if (stays) kept.add(l);
      return stays;
    });
    const report = { samples: labels.length, keep: config.keep, ...result, kept };
    const table = parquetWriteBuffer({
      columnData: [
        { name: 'file', data: files, type: 'STRING' },
        { name: 'key', data: keys, type: 'STRING' },
        { name: 'probability', data: probabilities, type: 'DOUBLE' },
        { name: 'kept', data: keep, type: 'BOOLEAN' },
      ],
    });
    await writeFileAtomic(join(values.out, 'keep.parquet'), new Uint8Array(table));
    const stay = files.flatMap((file, i) =>
      keep[i] ? [{ file: basename(file), key: keys[i]! }] : [],
    );
    await writeFileAtomic(join(values.out, 'keep.txt'), keyLines(stay));
    await writeFileAtomic(join(values.out, 'report.html'), debiasPage(report));
    await writeFileAtomic(join(values.out, 'report.txt'), `${debiasText(report, Infinity)}\n`);
    console.log(debiasText(report));
    if (skips.total > 0) console.error(`skipped samples: ${skips.summary()}`);
    return violations(report).length === 0 ? 0 : 3;
  },
};

/** A number in [0, 1) of seed, file name and key alone: the draw does not depend on the order of the samples. */
function uniform(seed: number, file: string, key: string): number {
  return (
    createHash('sha256')
      .update(JSON.stringify([seed, basename(file), key]))
      .digest()
      .readUInt32BE() /
    2 ** 32
  );
}
