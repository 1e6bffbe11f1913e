/** `siglip2 train`: runs a config, shows progress, writes checkpoints, saves and ends on a signal. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { STAGES_FILE } from '../../checkpoints/run.js';
import { buildEmojiDataset, type EmojiManifest } from '../../data/datasets/emoji.js';
import { buildScenes, type SceneOptions } from '../../data/datasets/scenes.js';
import { makeFolder, writeFileAtomic } from '../../fs/files.js';
import { checkTrainConfig, type TrainConfig } from '../../train/config.js';
import { checkStages, isStaged, readStages, stageProgress, withStart } from '../../train/recipe.js';
import { type StepMetrics, Trainer } from '../../train/trainer.js';
import type { Command } from '../command.js';
import { configArgument } from '../config_argument.js';
import { Progress } from '../progress.js';
import { type Ending, heeding, statusOf } from '../signals.js';

export const command: Command = {
  usage:
    'train CONFIG|--preset NAME [--out DIR] [--set key=value]… [--resume] [--accept-changes] [--print]',
  summary:
    'trains a model, in stages where the config has them, which go on where they were; CONFIG is .json, .js or .ts; ' +
    "--print shows the whole config; --accept-changes resumes on other data; Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 save and exit with 128 and the signal's number",
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        set: { type: 'string', multiple: true, default: [] },
        preset: { type: 'string' },
        out: { type: 'string' },
        resume: { type: 'boolean', default: false },
        'accept-changes': { type: 'boolean', default: false },
        print: { type: 'boolean', default: false },
      },
    });
    const sets = [
      ...values.set,
      ...(values.out === undefined ? [] : [`out=${JSON.stringify(values.out)}`]),
    ];
    const acceptChanges = values['accept-changes'];
    const value = await configArgument('train', positionals, values.preset, sets);
    if (isStaged(value)) return trainStages(value, values.print, acceptChanges);
    const config = checkTrainConfig(value);
    if (values.print) {
      console.log(JSON.stringify(config, null, 2));
      return 0;
    }
    const { interrupted } = await train(config, { resume: values.resume, acceptChanges });
    return interrupted ? statusOf(interrupted) : 0;
  },
};

/** Runs the stages that are not finished, one after the other; the process's exit code. */
async function trainStages(
  value: unknown,
  print: boolean,
  acceptChanges: boolean,
): Promise<number> {
  const stages = readStages(value);
  if (print) {
    console.log(
      JSON.stringify(
        Object.fromEntries(stages.map(({ name, from, config }) => [name, { from, ...config }])),
        null,
        2,
      ),
    );
    return 0;
  }
  checkStages(stages);
  const { out } = value as { out: string };
  await makeFolder(out);
  await writeFileAtomic(
    join(out, STAGES_FILE),
    `${JSON.stringify(stages.map(({ name }) => name))}\n`,
  );
  for (const stage of stages) {
    const progress = stageProgress(stage.config.out);
    if (progress === 'finished') {
      console.error(`stage ${stage.name}: finished`);
      continue;
    }
    console.error(`stage ${stage.name}${stage.from ? ` from ${stage.from}` : ''}`);
    const resume = progress === 'begun';
    const { interrupted } = await train(resume ? stage.config : withStart(stage, stages), {
      resume,
      acceptChanges,
    });
    if (interrupted) return statusOf(interrupted);
  }
  return 0;
}

/** Builds the emoji artwork of a config, and its scenes where it says how, unless they are there. */
async function buildData({ data }: TrainConfig): Promise<void> {
  const { source } = data;
  for (const one of source.type === 'mixture'
    ? source.sources.map((part) => part.source)
    : [source])
    await buildSource(one, data);
}

async function buildSource(
  source: Exclude<TrainConfig['data']['source'], { type: 'mixture' }>,
  data: TrainConfig['data'],
): Promise<void> {
  if (source.type === 'emoji' && !existsSync(join(source.path, 'manifest.json')))
    await buildArtwork(source.path, data);
  if (source.type !== 'scenes' || !source.build || existsSync(join(source.path, 'manifest.json')))
    return;
  const progress = new Progress('scenes');
  await buildScenes(source.path, {
    ...(source.build as SceneOptions),
    onProgress: (done, total) => progress.update(done, total, {}),
  });
  progress.end();
}

/** Renders the emoji artwork that a config trains on, unless the folder has it, with progress on stderr. */
export async function buildArtwork(
  folder: string,
  { maxClasses, sequences }: Pick<TrainConfig['data'], 'maxClasses' | 'sequences'> = {},
): Promise<EmojiManifest> {
  const progress = new Progress('artwork');
  let said = 0;
  const manifest = await buildEmojiDataset(folder, {
    ...(maxClasses === undefined ? {} : { maxClasses }),
    ...(sequences === undefined ? {} : { sequences }),
    onProgress: ({ done, total, studio }) => {
      if (total > 0 && (done - said > total / 20 || done === total))
        progress.update((said = done), total, { studio });
    },
  });
  progress.end();
  console.error(
    `${manifest.studios.length} studios, ${manifest.classes} classes, ${manifest.samples} pictures, ` +
      `${manifest.captions} captions in ${manifest.languages.length} languages`,
  );
  return manifest;
}

export interface TrainResult {
  /** The signal that ended the run early. */
  interrupted: Ending | null;
  /** Folder of the last checkpoint that this process wrote; empty when it ended before its first step. */
  checkpoint: string;
  last: StepMetrics | undefined;
  trainer: { step: number; totalSteps: number };
}

function rounded(losses: Record<string, number>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(losses).map(([name, value]) => [name, Number(value.toFixed(3))]),
  );
}

/**
 * Trains a config to its end with progress on stderr. A signal ends it after the step and saves; before the first step
 * there is nothing to save, and the process ends at once.
 */
export async function train(
  config: TrainConfig,
  options: { resume?: boolean; acceptChanges?: boolean } = {},
): Promise<TrainResult> {
  const stop = new AbortController(),
    progress = new Progress('train', process.stderr, 0); // every step that is to be logged
  let trainer: Trainer | undefined,
    interrupted: Ending | null = null,
    saved = 0;
  const onSignal = (signal: Ending): void => {
    if (!trainer) {
      console.error(`\n${signal}: ended before the first step; there is nothing to save`);
      process.exit(statusOf(signal));
    }
    console.error(
      `\n${signal}: stopping after this step; Ctrl-C once more, a second from now or later, to quit ` +
        'without saving',
    );
    interrupted = signal;
    stop.abort();
  };
  return heeding(onSignal, async () => {
    try {
      await buildData(config);
      const run = (trainer = await Trainer.open(config, {
        ...options,
        note: (m) => console.error(m),
      }));
      let last: StepMetrics | undefined;
      saved = run.step;
      let checkpoint = '',
        images = 0,
        since = performance.now();
      for await (const m of run.run(stop.signal)) {
        last = m;
        images += config.batch;
        if (m.step % config.logEvery === 0 || m.step === run.totalSteps) {
          for (const alarm of m.alarms ?? []) console.error(`step ${m.step}: ${alarm}`);
          const now = performance.now();
          progress.update(m.step, run.totalSteps, figures(m, (images / (now - since)) * 1000));
          [images, since] = [0, now];
        }
        // The trainer drains its pipeline at these steps, so that metrics and weights are of the same step.
        if (m.step === run.step && run.checkpointDue && m.step < run.totalSteps) {
          const began = performance.now();
          checkpoint = await run.save();
          saved = run.step;
          since += performance.now() - began;
        }
      }
      progress.end();
      // Ended before its first step a run has nothing that is not on the disk.
      if (saved !== run.step || (checkpoint === '' && !interrupted)) checkpoint = await run.save();
      if (run.loader.skips.total > 0)
        console.error(`skipped samples: ${run.loader.skips.summary()}`);
      const { all, cut } = run.loader.texts;
      if (cut > 0)
        console.error(
          `${cut} of ${all} texts (${((100 * cut) / all).toPrecision(2)} %) are longer than ${run.model.config.text.length} tokens ` +
            'and were cut (model.length)',
        );
      console.error(
        `${interrupted ? 'interrupted at' : 'done:'} step ${run.step}${checkpoint && `, ${checkpoint}`}`,
      );
      return {
        interrupted,
        checkpoint,
        last,
        trainer: { step: run.step, totalSteps: run.totalSteps },
      };
    } catch (error) {
      progress.end();
      // Data that fail, a disk or a worker, spoil no weights.
      if (trainer?.sound && trainer.step > saved) {
        const folder = await trainer.save().catch(() => null);
        if (folder)
          console.error(`saved step ${trainer.step} before ending with an error: ${folder}`);
      }
      throw error;
    } finally {
      progress.end();
      await trainer?.close();
    }
  });
}

/** What a progress line says of a step. */
function figures(m: StepMetrics, imagesPerSecond: number): Record<string, string | number> {
  return {
    step: m.step,
    loss: Number(m.loss.toFixed(4)),
    ...(Object.keys(m.losses).length > 1 ? rounded(m.losses) : {}),
    lr: Number(m.lr.toPrecision(3)),
    scale: Number(m.scale.toFixed(2)),
    bias: Number(m.bias.toFixed(2)),
    'images/s': Math.round(imagesPerSecond),
    'data wait %': Number(m.dataWait.toFixed(0)),
    'peak MiB': Math.round(m.peakBytes / 2 ** 20),
  };
}
