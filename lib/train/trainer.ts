/**
 * The training loop, top to bottom: open data, build or load the model, then batch → step → metrics, with checkpoints.
 * The host never waits for the device inside a step; two steps are in flight, and the metrics of a step are read when
 * the next ones are already enqueued.
 */
import { mkdirSync, existsSync, readFileSync } from 'node:fs';
import { appendFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DataLoader, type Batch } from '../data/loader.js';
import { openSource, type SampleSource, type SourceSpec } from '../data/source.js';
import type { ImageTransform } from '../data/augment.js';
import type { SamplerState } from '../data/sampler.js';
import type { VocabMap } from '../data/vocab.js';
import { CheckpointError, Siglip2Error } from '../errors.js';
import { writeFileAtomic } from '../io/files.js';
import { contrastiveLoss } from '../losses/sigmoid.js';
import { modelConfig, type ModelOverrides } from '../model/config.js';
import { loadModelInto, modelFiles, readVocabulary } from '../model/files.js';
import { Siglip2Model } from '../model/siglip2.js';
import { native } from '../native.js';
import { backward, clearTape } from '../tape.js';
import { deviceName, memory, scope, tensor, type DeviceName } from '../tensor.js';
import { listCheckpoints, loadTrainState, saveCheckpoint, type TrainState } from './checkpoint.js';
import type { TrainConfig } from './config.js';
import { toSteps } from './duration.js';
import { AdamW } from './optimizer.js';
import { checkSchedule, scheduleMultiplier, type Schedule } from './schedule.js';
import { trimmedVocabulary } from './vocabulary.js';

/** One line of metrics.jsonl. */
export interface StepMetrics {
  /** Updates done, this one included. */
  step: number;
  /** Images seen. */
  examples: number;
  /** Sum over columns, mean over rows, mean over the captions per image (SigLIP eq. 1). */
  loss: number;
  /** Learning rate of this step. */
  lr: number;
  /** exp(t'), the logit scale, and b, the logit bias, after this step. */
  scale: number;
  bias: number;
  /** Global norm of the gradient before clipping. */
  gradNorm: number;
  imagesPerSecond: number;
  /** Share of wall time spent waiting for data, in percent. */
  dataWait: number;
  /** Most device bytes in use since the start, workspace included. */
  peakBytes: number;
  /** Training time of the run so far, resumed parts included. */
  seconds: number;
}

export interface TrainerOptions {
  /** Continue from the newest checkpoint in config.out. */
  resume?: boolean;
  signal?: AbortSignal;
  /** One line about what is being done. */
  note?: (message: string) => void;
}

/** Metrics of a step whose numbers are still on their way. */
interface Pending {
  step: number;
  examples: number;
  lr: number;
  waitMs: number;
  values: Promise<number[]>;
}

const IN_FLIGHT = 2;

/** A training run. Make one with `Trainer.open`, iterate `run()`, then `close()`. */
export class Trainer {
  readonly totalSteps: number;
  /** Steps between checkpoints; 0 writes one at the end only. */
  readonly checkpointSteps: number;
  readonly #schedule: Schedule;
  #step = 0;
  #examples = 0;
  #seconds = 0;

  private constructor(readonly config: TrainConfig, readonly source: SampleSource, readonly vocab: VocabMap | null,
    readonly model: Siglip2Model, readonly optimizer: AdamW, readonly loader: DataLoader, readonly device: DeviceName) {
    const unit = { batch: config.batch, examples: source.length };
    this.totalSteps = toSteps(config.total, { ...unit, name: 'total' });
    const warmup = toSteps(config.optimizer.warmup, { ...unit, name: 'optimizer.warmup', total: this.totalSteps });
    this.#schedule = checkSchedule({ kind: config.optimizer.schedule, total: this.totalSteps, warmup });
    this.checkpointSteps = toSteps(config.checkpointEvery, { ...unit, name: 'checkpointEvery', total: this.totalSteps });
  }

  /**
   * Opens data and model. Throws ConfigError, DataError, CheckpointError or DeviceError saying what to change.
   */
  static async open(config: TrainConfig, options: TrainerOptions = {}): Promise<Trainer> {
    const note = options.note ?? (() => undefined);
    const device = chooseDevice(config.device, note);
    const dtype = config.dtype === 'auto' ? (device !== 'cpu' || native().buildInfo().nativeBf16 ? 'bf16' : 'f32') : config.dtype;
    const newest = listCheckpoints(config.out).at(-1);
    if (options.resume && !newest)
      throw new CheckpointError(`there is no checkpoint in ${join(config.out, 'checkpoints')} to resume from; start without --resume`);
    if (!options.resume && newest)
      throw new CheckpointError(`${config.out} already holds a run (${newest}); continue it with --resume, or choose another out`);

    const { data } = config;
    const source = await openSource(definedOnly(data.source) as SourceSpec, definedOnly({ maxSkips: data.maxSkips, signal: options.signal }));
    const start = options.resume ? newest : config.init;
    const vocab = data.trimVocabulary
      ? (start ? await readVocabulary(start) : null) ?? await trimmedVocabulary(config, source, note) : null;
    const { variant, ...overrides } = config.model as { variant: string } & ModelOverrides;
    const shape = modelConfig(variant, { ...overrides, ...(vocab ? { vocab: vocab.size } : {}) });
    const model = new Siglip2Model(shape, { device, dtype, train: true, checkpoint: config.checkpointBlocks });
    let optimizer: AdamW | undefined, loader: DataLoader | undefined;
    try {
      if (start) await loadModelInto(model, start);
      else model.initialize(config.seed);
      const { warmup: _w, schedule: _s, ...adam } = config.optimizer;
      optimizer = new AdamW(model.params, adam);
      optimizer.resetEma();
      const resumed = options.resume ? await loadTrainState(newest!) : null;
      loader = new DataLoader(source, {
        batchSize: config.batch, seed: config.seed, size: shape.vision.imageSize,
        transforms: data.transforms as unknown as ImageTransform[], captions: definedOnly(data.captions),
        tokenizer: { ...definedOnly({ path: data.tokenizer, lower: data.lowercase, length: shape.text.length }), ...(vocab ? { vocab } : {}) },
        ...definedOnly({ workers: data.workers, cacheBytes: data.cacheBytes, maxSkips: data.maxSkips,
          uniqueBy: data.uniqueClasses ? 'class' as const : undefined, signal: options.signal }),
      });
      if (resumed) loader.restore(resumed.state.loader as SamplerState);
      const trainer = new Trainer(config, source, vocab, model, optimizer, loader, device);
      if (resumed) await trainer.#restore(resumed);
      mkdirSync(config.out, { recursive: true });
      await writeFileAtomic(join(config.out, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
      note(`${shape.name}: ${(model.params.segments.reduce((n, s) => n + s.size, 0) / 1e6).toFixed(1)} M parameters on ` +
        `${deviceName(device)} (${dtype}); ${source.length} images, ${trainer.totalSteps} steps of ${config.batch}, seed ${config.seed}`);
      return trainer;
    } catch (e) {
      await loader?.close();
      optimizer?.dispose();
      model.dispose();
      throw e;
    }
  }

  async #restore({ state, moments }: { state: TrainState; moments: Map<string, Float32Array> }): Promise<void> {
    this.optimizer.write(moments, state.optimizerStep);
    this.#step = state.step;
    this.#examples = state.examples;
    this.#seconds = state.seconds;
    // Lines that the interrupted run wrote after its checkpoint would come twice.
    const file = join(this.config.out, 'metrics.jsonl');
    if (!existsSync(file)) return;
    const lines = readFileSync(file, 'utf8').split('\n').filter((l) => {
      try {
        return (JSON.parse(l) as StepMetrics).step <= state.step;
      } catch {
        return false;  // the last line of a run that was killed may be cut
      }
    });
    await writeFileAtomic(file, lines.map((l) => `${l}\n`).join(''));
  }

  get step(): number { return this.#step; }
  /** Whether a checkpoint is written after the present step. */
  get checkpointDue(): boolean { return this.checkpointSteps > 0 && this.#step % this.checkpointSteps === 0; }

  /** Trains to the end, yielding each step's metrics in order. Returns early (after that step) when the signal aborts. */
  async *run(signal?: AbortSignal): AsyncGenerator<StepMetrics> {
    const queue: Pending[] = [];
    const file = join(this.config.out, 'metrics.jsonl');
    let before = performance.now();
    const finish = async (p: Pending): Promise<StepMetrics> => {
      const [norm2, logScale, bias, ...losses] = await p.values as [number, number, number, ...number[]];
      const now = performance.now(), ms = now - before;
      before = now;
      this.#seconds += ms / 1000;
      const m = memory(this.device);
      const metrics: StepMetrics = {
        step: p.step, examples: p.examples, loss: losses.reduce((a, b) => a + b, 0) / losses.length, lr: p.lr,
        scale: Math.exp(logScale), bias, gradNorm: Math.sqrt(norm2), imagesPerSecond: this.config.batch / ms * 1000,
        dataWait: Math.min(100, 100 * p.waitMs / ms), peakBytes: m.peak + m.scratchPeak, seconds: this.#seconds,
      };
      if (!Number.isFinite(metrics.loss)) {
        throw new Siglip2Error('ERR_DATA', `the loss is ${metrics.loss} at step ${p.step}; resume from the last checkpoint with a ` +
          'lower learning rate (optimizer.lr) or a longer warm-up');
      }
      await appendFile(file, `${JSON.stringify(metrics)}\n`);
      return metrics;
    };
    try {
      while (this.#step < this.totalSteps && !signal?.aborted) {
        const batch = await this.loader.next();
        queue.push(this.#train(batch));
        while (queue.length >= (this.checkpointDue ? 1 : IN_FLIGHT)) yield await finish(queue.shift()!);
      }
      while (queue.length) yield await finish(queue.shift()!);
    } finally {
      for (const p of queue) await p.values.catch(() => undefined);
      clearTape();
    }
  }

  /** Enqueues one step. */
  #train(batch: Batch): Pending {
    const { model, optimizer, device } = this;
    const S = model.config.vision.imageSize, L = model.config.text.length, B = batch.size;
    const lr = scheduleMultiplier(this.#schedule, this.#step);
    // First of all: some losses add to the gradients in their forward pass.
    model.params.zeroGrad();
    const read = scope(() => {
      const images = model.encodeImages(tensor(batch.images, [B, S, S, 3], device));
      const captions = batch.ids.length / (B * L);  // per image; the first B rows are every image's first
      const texts = Array.from({ length: captions }, (_, c) =>
        model.encodeTexts(tensor(batch.ids.subarray(c * B * L, (c + 1) * B * L), [B, L], device)));
      const losses = contrastiveLoss(model, images, texts);
      backward(losses.map((l) => [l, 1 / captions]));
      optimizer.update(lr);
      return [optimizer.norm2, model.logitScale, model.logitBias, ...losses].map((t) => t.item());
    });
    this.#step++;
    this.#examples += B;
    return { step: this.#step, examples: this.#examples, lr: lr * this.config.optimizer.lr, waitMs: batch.waitMs, values: Promise.all(read) };
  }

  /** Writes a checkpoint of the present step; returns its folder. Call between steps of `run()`. */
  async save(): Promise<string> {
    const state: TrainState = {
      version: 1, step: this.#step, examples: this.#examples, optimizerStep: this.optimizer.step,
      loader: this.loader.state, seconds: this.#seconds,
    };
    return saveCheckpoint(this.config.out, state, this.optimizer, this.config.keepCheckpoints, (folder) =>
      modelFiles(folder, this.model, { vocab: this.vocab, tokenizer: this.config.data.tokenizer ?? null,
        lowercase: this.config.data.lowercase, ema: this.optimizer.ema }));
  }

  async close(): Promise<void> {
    await this.loader.close();
    this.optimizer.dispose();
    this.model.dispose();
  }
}

/** The object without the keys whose value is undefined. */
function definedOnly<T extends object>(o: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(o).filter(([, v]) => v !== undefined)) as never;
}

function chooseDevice(wish: string, note: (m: string) => void): DeviceName {
  if (wish !== 'auto') return wish as DeviceName;
  if (native().buildInfo().cuda !== 'cuda') return 'cpu';
  try {
    deviceName('cuda');
    return 'cuda';
  } catch (e) {
    note(`on the CPU, because ${(e as Error).message}`);
    return 'cpu';
  }
}
