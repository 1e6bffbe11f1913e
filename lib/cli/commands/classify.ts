/** `siglip2 classify`: probabilities that labels belong to images. */
import { statSync } from 'node:fs';
import { parseArgs } from 'node:util';
import type { LabelScore } from '../../encoder/scores.js';
import { ConfigError } from '../../errors.js';
import type { Command } from '../command.js';
import { listImages } from '../images.js';
import { MODEL_OPTIONS, openModel, readLines, wholeNumber } from './embed.js';

export const command: Command = {
  usage:
    'classify --model FOLDER --labels a,b,c|FILE IMAGE… [--language en] ' +
    '[--template "a photo of {label}."]… [--top N] [--alpha drop|white] [--json]',
  summary:
    'the probability of each label for each image (sigmoid: labels are judged one by one and need not sum to 1); ' +
    'FILE has one label a line',
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        ...MODEL_OPTIONS,
        labels: { type: 'string' },
        language: { type: 'string', default: 'en' },
        template: { type: 'string', multiple: true },
        top: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const labels = await readLabels(values.labels ?? '');
    const images = await listImages(positionals, values);
    const top = values.top ? wholeNumber('top', values.top) : labels.length;
    using model = await openModel('classify', values);
    const results = await model.zeroShot(
      images.map((i) => i.open()),
      labels,
      {
        language: values.language,
        ...(values.template ? { templates: values.template } : {}),
        ...(values.batch ? { batchSize: wholeNumber('batch', values.batch) } : {}),
      },
    );
    results.forEach((scores, i) => {
      const best = scores.slice(0, top),
        image = images[i]!.name;
      if (values.json) console.log(JSON.stringify({ image, labels: best }));
      else {
        const line = (s: LabelScore): string =>
          `  ${(100 * s.probability).toFixed(2).padStart(6)} %  ${s.label}  (logit ${s.logit.toFixed(2)})`;
        console.log([image, ...best.map(line)].join('\n'));
      }
    });
    return 0;
  },
};

/** Labels separated by commas, or the lines of a file; empty ones are left out. @throws ConfigError */
async function readLabels(given: string): Promise<string[]> {
  const file = statSync(given, { throwIfNoEntry: false })?.isFile() ?? false;
  if (!file && !given.includes(',') && /[\\/]|\.(txt|csv|tsv|jsonl?|names|labels)$/i.test(given))
    throw new ConfigError(
      `--labels ${given}: there is no such file; give a file with one label a line, or labels separated by commas`,
    );
  const labels = (file ? await readLines(given) : given.split(','))
    .map((l) => l.trim())
    .filter((l) => l !== '');
  if (labels.length === 0)
    throw new ConfigError(
      file
        ? `--labels ${given}: the file has no label; write one on each line`
        : 'classify needs --labels, separated by commas, or a file with one a line',
    );
  return labels;
}
