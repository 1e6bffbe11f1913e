/** `siglip2 quickstart`: builds the data set, trains the small model, evaluates every language, writes the report. */
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import sharp from 'sharp';
import { loadModel } from '../../checkpoints/load.js';
import { tokenizerOf } from '../../checkpoints/tokenizer.js';
import { availableCores, wantedThreads } from '../../cores.js';
import { ConfigError } from '../../errors.js';
import { type Gallery, type ReportData, renderReport } from '../../eval/report/report.js';
import { buildEvalSets, type EvalSet } from '../../eval/sets.js';
import { evaluateSuite, retrieve, type SetResult } from '../../eval/zero_shot.js';
import { writeFileAtomic } from '../../fs/files.js';
import { deviceName } from '../../tensor.js';
import { stepsIn } from '../../train/budget.js';
import { applySets, checkTrainConfig } from '../../train/config.js';
import { isStaged } from '../../train/recipe.js';
import type { StepMetrics } from '../../train/trainer.js';
import { checkRun } from '../../train/validate.js';
import type { Command } from '../command.js';
import { presetCalled } from '../config_argument.js';
import { Progress } from '../progress.js';
import { statusOf } from '../signals.js';
import { emojiSettings } from './eval.js';
import { buildArtwork, train } from './train.js';

/** Words that the report's grid asks for, by the emoji's code points: one language each. */
const QUERIES: [language: string, codePoints: string][] = [
  ['en', '1f34e'],
  ['de', '1f431'],
  ['fr', '1f308'],
  ['ja', '1f41f'],
  ['ar', '1f338'],
  ['hi', '1f418'],
  ['ru', '2b50'],
  ['zh', '1f697'],
  ['ko', '1f433'],
  ['th', '1f34c'],
  ['el', '1f33b'],
  ['he', '1f98b'],
];
/** The sets that the report's pictures come from. */
const GALLERIES = ['seen-placed', 'unseen-studio-placed'];

export const command: Command = {
  usage: 'quickstart [--preset quickstart] [--minutes 2] [--set key=value]… [--seed N]',
  summary:
    'trains a small multilingual model on emoji artwork in about two minutes and shows what it learnt',
  async run(args) {
    const { values } = parseArgs({
      args,
      options: {
        preset: { type: 'string', default: 'quickstart' },
        set: { type: 'string', multiple: true, default: [] },
        seed: { type: 'string' },
        minutes: { type: 'string', default: '2' },
      },
    });
    const preset = presetCalled(values.preset);
    if (isStaged(preset))
      throw new ConfigError(
        `quickstart has no stages; use \`siglip2 train --preset ${values.preset}\``,
      );
    // One core for data loading: kernels of this model take microseconds, and a team of threads that has to share its
    // cores waits for the slowest at each of them. The addon reads this when it is loaded, which is later.
    process.env['SIGLIP2_THREADS'] = String(wantedThreads() ?? Math.max(1, availableCores() - 1));
    const minutes = Number(values.minutes);
    if (!(minutes > 0 && minutes < 1e5))
      throw new ConfigError(`--minutes must be a positive number but is "${values.minutes}"`);
    let config = checkTrainConfig(
      applySets(preset, [...(values.seed ? [`seed=${values.seed}`] : []), ...values.set]),
    );
    const source = config.data.source;
    if (source.type !== 'emoji')
      throw new ConfigError(
        'quickstart trains on the emoji data set; use `siglip2 train` for others',
      );
    if (existsSync(config.out) && !isRun(config.out))
      throw new ConfigError(
        `${config.out}: is there and is no run of training; remove it or choose another out`,
      );
    const command = ['siglip2 quickstart', ...args].join(' '),
      totalGiven = values.set.some((set) => set.startsWith('total='));
    if (totalGiven) checkRun(config); // before the artwork is made

    const manifest = await buildArtwork(source.path, config.data);

    // The quickstart is run again and again: its last run stays as one backup.
    if (existsSync(config.out)) {
      const old = `${config.out}.previous`;
      rmSync(old, { recursive: true, force: true });
      renameSync(config.out, old);
    }
    // As long as asked on any machine: its speed decides how many steps that is, unless the steps were given.
    if (!totalGiven) {
      const steps = await stepsIn(60 * minutes, config);
      console.error(
        `${minutes} minutes of training are ${steps} steps here; \`--set total=${steps}\` repeats this very run`,
      );
      config = { ...config, total: steps };
    }
    const trained = await train(config);
    if (trained.interrupted) return statusOf(trained.interrupted);

    const loaded = await loadModel(trained.checkpoint);
    try {
      const size = loaded.model.config.vision.imageSize;
      const suite = await buildEvalSets(source.path, { size, ...emojiSettings(config) });
      const tokenizer = await tokenizerOf(loaded);
      const progress = new Progress('evaluate');
      const sets: Record<string, SetResult> = {};
      for await (const [name, result] of evaluateSuite(loaded, suite, tokenizer, (done, total) => {
        progress.update(done, total, { sets: Object.keys(sets).length });
      }))
        sets[name] = result;
      progress.end();

      const last = trained.last!;
      const summary = {
        sets,
        train: {
          seconds: last.seconds,
          images: last.examples,
          images_per_second: last.examples / last.seconds,
        },
      };
      await writeFileAtomic(join(config.out, 'eval.json'), `${JSON.stringify(summary, null, 2)}\n`);
      printSummary(sets);

      const galleries: Gallery[] = [];
      for (const name of GALLERIES) {
        const set = suite.sets.find((s) => s.name === name)!;
        const ids = new Map(Array.from(set.candidates, (id) => [codePointsOf(set, id), id]));
        const rest = Array.from(set.candidates).filter(
          (id) => !QUERIES.some(([, code]) => ids.get(code) === id),
        );
        const queries = QUERIES.flatMap(([language, code]) => {
          const id = ids.get(code) ?? rest.shift(); // a smaller data set may lack it
          return id !== undefined && suite.names[id]?.[language] ? [{ language, id }] : [];
        });
        const found = await retrieve(loaded, suite, set, tokenizer, queries, 8);
        galleries.push({
          set: name,
          retrievals: await Promise.all(
            found.map(async (f) => ({
              query: f.query,
              lang: f.language,
              results: await Promise.all(
                f.images.map(async (i, k) => ({
                  png: await picture(set, i),
                  correct: f.correct[k]!,
                  label: suite.names[set.classes[i]!]!['en'] ?? '',
                })),
              ),
            })),
          ),
        });
      }
      const data: ReportData = {
        ...summary,
        title: 'siglip2 quickstart',
        date: new Date(),
        seed: config.seed,
        device: deviceName(loaded.model.params.device),
        command,
        model: {
          name: loaded.model.config.name,
          parameters: loaded.model.params.segments.reduce((n, s) => n + s.size, 0),
          imageSize: size,
        },
        train: {
          ...summary.train,
          steps: last.step,
          batch: config.batch,
          studios: manifest.studios.filter((s) => s.split === 'train').map((s) => s.name),
          heldOut: manifest.studios
            .filter((s) => s.split === 'test')
            .map((s) => s.name)
            .join(', '),
        },
        curve: readCurve(join(config.out, 'metrics.jsonl')),
        galleries,
        attributions: [...manifest.studios, manifest.captionSource].map((s) => ({
          name: s.package,
          license: s.licence,
          author: s.attribution,
          url: s.licenceUrl,
        })),
      };
      const report = join(config.out, 'report.html');
      await writeFileAtomic(report, renderReport(data));
      console.error(`seed ${config.seed}; report: ${report}`);
      return 0;
    } finally {
      loaded.model.dispose();
    }
  },
};

/** Whether a path is a folder that training wrote, or an empty one: what may be moved aside. */
function isRun(path: string): boolean {
  return (
    statSync(path).isDirectory() &&
    (readdirSync(path).length === 0 || existsSync(join(path, 'config.json')))
  );
}

function codePointsOf(set: EvalSet, id: number): string {
  const at = set.classes.indexOf(id);
  return set.keys[at]?.replace(/^.*?-(?=[0-9a-f]{2,})/, '') ?? '';
}

function picture(set: EvalSet, i: number): Promise<Buffer> {
  const bytes = set.size * set.size * 3;
  return sharp(set.images.subarray(i * bytes, (i + 1) * bytes), {
    raw: { width: set.size, height: set.size, channels: 3 },
  })
    .png()
    .toBuffer();
}

function readCurve(file: string): ReportData['curve'] {
  return readFileSync(file, 'utf8')
    .trim()
    .split('\n')
    .map((l) => {
      const { step, loss, lr } = JSON.parse(l) as StepMetrics;
      return { step, loss, lr };
    });
}

function printSummary(sets: Record<string, SetResult>): void {
  const percent = (x: number): string => `${(100 * x).toFixed(1)} %`.padStart(8);
  console.error(
    `${'set'.padEnd(22)}${'images'.padStart(8)}${'chance'.padStart(9)}${'pixel 1-NN'.padStart(12)}${'English'.padStart(10)}${'other languages'.padStart(17)}`,
  );
  for (const [name, s] of Object.entries(sets)) {
    const others = Object.entries(s.languages)
      .filter(([l]) => l !== 'en')
      .map(([, v]) => v.top1);
    const mean = others.reduce((a, b) => a + b, 0) / others.length;
    console.error(
      `${name.padEnd(22)}${String(s.n).padStart(8)} ${percent(s.chance)}    ${percent(s.pixel_1nn)}  ${percent(s.languages['en']?.top1 ?? NaN)}         ${percent(mean)}`,
    );
  }
}
