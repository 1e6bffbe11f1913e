/** `siglip2 train`: runs a config, shows progress, writes checkpoints, stops cleanly on Ctrl-C. */
import { parseArgs } from 'node:util';
import { ConfigError } from '../errors.js';
import { presets } from '../train/presets.js';
import { applySets, checkTrainConfig, loadTrainConfig, type TrainConfig } from '../train/config.js';
import { Trainer, type StepMetrics } from '../train/trainer.js';
import type { Command } from './main.js';
import { Progress } from './progress.js';

export const command: Command = {
  usage: 'train CONFIG|--preset NAME [--set key=value]… [--resume] [--print]',
  summary: 'trains a model; CONFIG is .json, .js or .ts; --print shows the whole config; Ctrl-C saves and exits 130',
  async run(args) {
    const { values, positionals } = parseArgs({
      args, allowPositionals: true, options: {
        set: { type: 'string', multiple: true, default: [] }, preset: { type: 'string' },
        resume: { type: 'boolean', default: false }, print: { type: 'boolean', default: false },
      },
    });
    let config: TrainConfig;
    if (values.preset !== undefined) {
      const preset = presets[values.preset];
      if (!preset) throw new ConfigError(`no preset is called "${values.preset}"; the presets are ${Object.keys(presets).join(', ')}`);
      config = checkTrainConfig(applySets(preset, values.set));
    } else if (positionals[0] !== undefined) {
      config = await loadTrainConfig(positionals[0], values.set);
    } else {
      throw new ConfigError('train needs a config file or --preset NAME');
    }
    if (values.print) {
      console.log(JSON.stringify(config, null, 2));
      return 0;
    }
    return (await train(config, { resume: values.resume })).interrupted ? 130 : 0;
  },
};

export interface TrainResult {
  interrupted: boolean;
  /** Folder of the last checkpoint. */
  checkpoint: string;
  last: StepMetrics | undefined;
  trainer: { step: number; totalSteps: number };
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
  const progress = new Progress('train');
  let trainer: Trainer | undefined;
  try {
    trainer = await Trainer.open(config, { ...options, note: (m) => console.error(m) });
    let last: StepMetrics | undefined;
    let saved = trainer.step, checkpoint = '', images = 0, since = performance.now();
    for await (const m of trainer.run(stop.signal)) {
      last = m;
      images += config.batch;
      if (m.step % config.logEvery === 0 || m.step === trainer.totalSteps) {
        const now = performance.now();
        progress.update(m.step, trainer.totalSteps, {
          step: m.step, loss: Number(m.loss.toFixed(4)), lr: Number(m.lr.toPrecision(3)), scale: Number(m.scale.toFixed(2)),
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
    console.error(`${stop.signal.aborted ? 'interrupted at' : 'done:'} step ${trainer.step}, ${checkpoint}`);
    return { interrupted: stop.signal.aborted, checkpoint, last, trainer: { step: trainer.step, totalSteps: trainer.totalSteps } };
  } finally {
    progress.end();
    process.off('SIGINT', onSignal);
    process.off('SIGTERM', onSignal);
    await trainer?.close();
  }
}
