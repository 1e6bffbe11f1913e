/** `siglip2 train`: runs a config, shows progress, writes checkpoints, stops cleanly on Ctrl-C. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { buildEmojiDataset, type EmojiManifest } from '../data/datasets/emoji.js';
import { buildScenes, type SceneOptions } from '../data/datasets/scenes.js';
import { makeFolder, writeFileAtomic } from '../io/files.js';
import { STAGES_FILE } from '../io/run.js';
import { checkTrainConfig, type TrainConfig } from '../train/config.js';
import { checkStages, isStaged, readStages, stageProgress, withStart } from '../train/recipe.js';
import { Trainer, type StepMetrics } from '../train/trainer.js';
import { configArgument } from './config_argument.js';
import type { Command } from './main.js';
import { Progress } from './progress.js';

export const command: Command = {
  usage: 'train CONFIG|--preset NAME [--out DIR] [--set key=value]… [--resume] [--print]',
  summary: 'trains a model, in stages where the config has them, which go on where they were; CONFIG is .json, .js or .ts; ' +
    '--print shows the whole config; Ctrl-C saves and exits 130',
  async run(args) {
    const { values, positionals } = parseArgs({
      args, allowPositionals: true, options: {
        set: { type: 'string', multiple: true, default: [] }, preset: { type: 'string' }, out: { type: 'string' },
        resume: { type: 'boolean', default: false }, print: { type: 'boolean', default: false },
      },
    });
    const sets = [...values.set, ...(values.out === undefined ? [] : [`out=${JSON.stringify(values.out)}`])];
    const value = await configArgument('train', positionals, values.preset, sets);
    if (isStaged(value)) return trainStages(value, values.print);
    const config = checkTrainConfig(value);
    if (values.print) {
      console.log(JSON.stringify(config, null, 2));
      return 0;
    }
    return (await train(config, { resume: values.resume })).interrupted ? 130 : 0;
  },
};

/** Runs the stages that are not finished, one after the other; the process's exit code. */
async function trainStages(value: unknown, print: boolean): Promise<number> {
  const stages = readStages(value);
  if (print) {
    console.log(JSON.stringify(Object.fromEntries(stages.map(({ name, from, config }) => [name, { from, ...config }])), null, 2));
    return 0;
  }
  checkStages(stages);
  const { out } = value as { out: string };
  await makeFolder(out);
  await writeFileAtomic(join(out, STAGES_FILE), `${JSON.stringify(stages.map(({ name }) => name))}\n`);
  for (const stage of stages) {
    const progress = stageProgress(stage.config.out);
    if (progress === 'finished') {
      console.error(`stage ${stage.name}: finished`);
      continue;
    }
    console.error(`stage ${stage.name}${stage.from ? ` from ${stage.from}` : ''}`);
    const resume = progress === 'begun';
    if ((await train(resume ? stage.config : withStart(stage, stages), { resume })).interrupted) return 130;
  }
  return 0;
}

/** Builds the emoji artwork of a config, and its scenes where it says how, unless they are there. */
async function buildData({ data }: TrainConfig): Promise<void> {
  const { source } = data;
  for (const one of source.type === 'mixture' ? source.sources.map((part) => part.source) : [source])
    await buildSource(one, data);
}

async function buildSource(source: Exclude<TrainConfig['data']['source'], { type: 'mixture' }>,
  data: TrainConfig['data']): Promise<void> {
  if (source.type === 'emoji' && !existsSync(join(source.path, 'manifest.json'))) await buildArtwork(source.path, data);
  if (source.type !== 'scenes' || !source.build || existsSync(join(source.path, 'manifest.json'))) return;
  const progress = new Progress('scenes');
  await buildScenes(source.path, {
    ...source.build as SceneOptions,
    onProgress: (done, total) => progress.update(done, total, {}),
  });
  progress.end();
}

/** Renders the emoji artwork that a config trains on, unless the folder has it, with progress on stderr. */
export async function buildArtwork(folder: string,
  { maxClasses, sequences }: Pick<TrainConfig['data'], 'maxClasses' | 'sequences'> = {}): Promise<EmojiManifest> {
  const progress = new Progress('artwork');
  let said = 0;
  const manifest = await buildEmojiDataset(folder, {
    ...(maxClasses === undefined ? {} : { maxClasses }), ...(sequences === undefined ? {} : { sequences }),
    onProgress: ({ done, total, studio }) => {
      if (total > 0 && (done - said > total / 20 || done === total)) progress.update(said = done, total, { studio });
    },
  });
  progress.end();
  console.error(`${manifest.studios.length} studios, ${manifest.classes} classes, ${manifest.samples} pictures, ` +
    `${manifest.captions} captions in ${manifest.languages.length} languages`);
  return manifest;
}

export interface TrainResult {
  interrupted: boolean;
  /** Folder of the last checkpoint. */
  checkpoint: string;
  last: StepMetrics | undefined;
  trainer: { step: number; totalSteps: number };
}

function rounded(losses: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(losses).map(([name, value]) => [name, Number(value.toFixed(3))]));
}

/** Trains a config to its end with progress on stderr; the first SIGINT or SIGTERM saves and ends, the second quits. */
export async function train(config: TrainConfig, options: { resume?: boolean } = {}): Promise<TrainResult> {
  const stop = new AbortController();
  const onSignal = (): void => {
    if (stop.signal.aborted) process.exit(130);
    console.error('\nstopping after this step; once more to quit without saving');
    stop.abort();
  };
  process.on('SIGINT', onSignal);
  process.on('SIGTERM', onSignal);
  const progress = new Progress('train', process.stderr, 0);  // every step that is to be logged
  let trainer: Trainer | undefined;
  try {
    await buildData(config);
    trainer = await Trainer.open(config, { ...options, note: (m) => console.error(m) });
    let last: StepMetrics | undefined;
    let saved = trainer.step, checkpoint = '', images = 0, since = performance.now();
    for await (const m of trainer.run(stop.signal)) {
      last = m;
      images += config.batch;
      if (m.step % config.logEvery === 0 || m.step === trainer.totalSteps) {
        for (const alarm of m.alarms ?? []) console.error(`step ${m.step}: ${alarm}`);
        const now = performance.now();
        progress.update(m.step, trainer.totalSteps, {
          step: m.step, loss: Number(m.loss.toFixed(4)),
          ...(Object.keys(m.losses).length > 1 ? rounded(m.losses) : {}),
          lr: Number(m.lr.toPrecision(3)), scale: Number(m.scale.toFixed(2)),
          bias: Number(m.bias.toFixed(2)), 'images/s': Math.round(images / (now - since) * 1000), 'data wait %': Number(m.dataWait.toFixed(0)),
          'peak MiB': Math.round(m.peakBytes / 2 ** 20),
        });
        [images, since] = [0, now];
      }
      // The trainer drains its pipeline at these steps, so that metrics and weights are of the same step.
      if (m.step === trainer.step && trainer.checkpointDue && m.step < trainer.totalSteps) {
        checkpoint = await trainer.save();
        saved = trainer.step;
      }
    }
    progress.end();
    if (saved !== trainer.step || checkpoint === '') checkpoint = await trainer.save();
    if (trainer.loader.skips.total > 0) console.error(`skipped samples: ${trainer.loader.skips.summary()}`);
    const { all, cut } = trainer.loader.texts;
    if (cut > 0)
      console.error(`${cut} of ${all} texts (${(100 * cut / all).toPrecision(2)} %) are longer than ${trainer.model.config.text.length} tokens ` +
        'and were cut (model.length)');
    console.error(`${stop.signal.aborted ? 'interrupted at' : 'done:'} step ${trainer.step}, ${checkpoint}`);
    return { interrupted: stop.signal.aborted, checkpoint, last, trainer: { step: trainer.step, totalSteps: trainer.totalSteps } };
  } finally {
    progress.end();
    process.off('SIGINT', onSignal);
    process.off('SIGTERM', onSignal);
    await trainer?.close();
  }
}
