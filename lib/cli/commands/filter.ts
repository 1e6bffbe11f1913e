/** `siglip2 filter`: chooses rows of a scored collection and writes a key list or new tars. */
import { parseArgs } from 'node:util';
import {
  checkKeysFile,
  chooseRows,
  type FilterOptions,
  writeKeys,
  writeTars,
} from '../../curation/filter.js';
import { ConfigError } from '../../errors.js';
import type { Command } from '../command.js';
import { wholeNumber } from './embed.js';

export const command: Command = {
  usage:
    'filter DIR (--out KEYS.txt | --tars DIR) [--where "COLUMN OP VALUE"]… [--unique] [--percentile P] [--top N] ' +
    '[--by COLUMN] [--per-language]',
  summary:
    'chooses rows of DIR (from `score --merge`): those that meet every --where (>= <= > < = != and ~ !~ for ' +
    'contains; flags=F, flags!=F: has the flag or not), one of each group of duplicates (--unique), not below a percentile of --by (default cosine), ' +
    'the --top by it; a key list goes into data.source.keys of a training config',
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        out: { type: 'string' },
        tars: { type: 'string' },
        where: { type: 'string', multiple: true, default: [] },
        unique: { type: 'boolean', default: false },
        percentile: { type: 'string' },
        top: { type: 'string' },
        by: { type: 'string', default: 'cosine' },
        'per-language': { type: 'boolean', default: false },
      },
    });
    const folder = positionals[0];
    if (folder === undefined || positionals.length > 1)
      throw new ConfigError('filter needs one folder of scores');
    if ((values.out === undefined) === (values.tars === undefined))
      throw new ConfigError('filter needs either --out KEYS.txt or --tars DIR');
    if (values.out !== undefined) checkKeysFile(values.out);
    const options: FilterOptions = {
      where: values.where,
      by: values.by,
      unique: values.unique,
      perLanguage: values['per-language'],
      ...(values.percentile === undefined ? {} : { percentile: Number(values.percentile) }),
      ...(values.top === undefined ? {} : { top: wholeNumber('top', values.top) }),
    };
    const chosen = await chooseRows(folder, options);
    if (chosen.kept.length === 0)
      throw new ConfigError(
        `filter: none of the ${chosen.rows} rows is left; loosen the conditions`,
      );
    if (values.out !== undefined) await writeKeys(values.out, chosen);
    else await writeTars(folder, values.tars!, chosen);
    console.error(`${chosen.kept.length} of ${chosen.rows} rows: ${values.out ?? values.tars}`);
    return 0;
  },
};
