/**
 * The training loop, top to bottom: open data, build or load the model, then batch → step → metrics, with checkpoints.
 * The host never waits for the device inside a step; two steps are in flight, and the metrics of a step are read when
 * the next ones are already enqueued.
 */
import { mkdirSync, existsSync, readFileSync, rmSync } from 'node:fs';
import { appendFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DataLoader, type Batch } from '../data/loader.js';
import { naflexHalves } from '../data/naflex_lengths.js';
import { openSource, type SampleSource, type SourceSpec } from '../data/source.js';
import type { ImageTransform } from '../data/augment.js';
import type { SamplerState } from '../data/sampler.js';
import type { VocabMap } from '../data/vocab.js';
import { CheckpointError, ConfigError, Siglip2Error } from '../errors.js';
import { writeFileAtomic } from '../io/files.js';
import { modelConfig, type ModelOverrides } from '../model/config.js';
import { loadModelInto, modelFiles, readVocabulary } from '../model/files.js';
import { Siglip2Model } from '../model/siglip2.js';
import { native } from '../native.js';
import { clearTape } from '../tape.js';
import { deviceName, memory, type DeviceName } from '../tensor.js';
import { listCheckpoints, loadTrainState, saveCheckpoint, type TrainState } from './checkpoint.js';
import type { TrainConfig } from './config.js';
import { toSteps } from './duration.js';
import { readInheritance, takeOver } from './inherit.js';
import { Objectives, objectiveData, objectiveShapes, type Figures, type SslFigures } from './objectives.js';
import { AdamW } from './optimizer.js';
import { checkSchedule, scheduleMultiplier, type Schedule } from './schedule.js';
import { trimmedVocabulary } from './vocabulary.js';

/** One line of metrics.jsonl. */
export interface StepMetrics {
  /** Updates done, this one included. */
  step: number;
  /** Images seen. */
  examples: number;
  /** The weighted sum of all objectives. */
  loss: number;
  /**
   * Each objective without its weight, in the file as `loss/sigmoid` and so on. The sigmoid loss is the sum over
   * columns, mean over rows, mean over the captions per image (SigLIP eq. 1).
   */
  losses: Record<string, number>;
  /** With self-distillation, what its losses are made of; in the file as `ssl/entropy` and so on. */
  ssl?: SslFigures;
  /** What is wrong with the teacher, in sentences; absent when nothing is. */
  alarms?: string[];
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
  /** Of each update of the step. */
  values: Promise<[Figures, norm2: number, logScale: number, bias: number][]>;
}

const IN_FLIGHT = 2;

/** A training run. Make one with `Trainer.open`, iterate `run()`, then `close()`. */
export class Trainer {
  readonly totalSteps: number;
  /** Steps between checkpoints; 0 writes one at the end only. */
  readonly checkpointSteps: number;
  readonly #schedule: Schedule;
  /** Where on the schedule the run begins and ends, in steps of an unstretched one. */
  readonly #span: [begin: number, end: number];
  /** Steps after which a checkpoint is kept, with the marks it gets. */
  readonly #marks = new Map<number, string[]>();
  #step = 0;
  #examples = 0;
  #seconds = 0;

  private constructor(readonly config: TrainConfig, readonly source: SampleSource, readonly vocab: VocabMap | null,
    readonly model: Siglip2Model, readonly optimizer: AdamW,
    readonly objectives: Objectives, readonly loader: DataLoader, readonly device: DeviceName) {
    const unit = { batch: config.batch, examples: source.length };
    const total = toSteps(config.total, { ...unit, name: 'total' });
    const warmup = toSteps(config.optimizer.warmup, { ...unit, name: 'optimizer.warmup', total });
    this.#schedule = checkSchedule({ kind: config.optimizer.schedule, total, warmup });
    const { from, to, stretch } = config.span;
    const at = (name: string, position: string): number => toSteps(position, { ...unit, name, total });
    const [begin, end] = this.#span = [at('span.from', from), at('span.to', to)];
    if (begin >= end) throw new ConfigError(`span: from ${from} to ${to} of ${total} steps holds no step; choose others`);
    this.totalSteps = Math.max(1, Math.round((end - begin) * stretch));
    for (const mark of config.keepAt) {
      const step = Math.round((at('keepAt', mark) - begin) * stretch);
      if (step < 0 || step > this.totalSteps)
        throw new ConfigError(`keepAt: ${mark} is outside of the span, ${from} to ${to}`);
      this.#marks.set(step, [...this.#marks.get(step) ?? [], mark]);
    }
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
    if (config.init && config.start)
      throw new ConfigError('init and start exclude each other; init takes the weights alone');
    const start = options.resume ? newest : config.init ?? config.start;
    const vocab = data.trimVocabulary
      ? (start ? await readVocabulary(start) : null) ?? await trimmedVocabulary(config, source, note) : null;
    const { variant, ...overrides } = config.model as { variant: string } & ModelOverrides;
    const shape = modelConfig(variant, { ...overrides, ...(vocab ? { vocab: vocab.size } : {}) });
    const extra = objectiveShapes(config.objectives, shape), made = objectiveData(config.objectives, shape);
    const model = new Siglip2Model(shape, { device, dtype, train: true, checkpoint: config.checkpointBlocks, extra });
    let optimizer: AdamW | undefined, objectives: Objectives | undefined, loader: DataLoader | undefined;
    try {
      if (!options.resume) model.initialize(config.seed);
      const resumed = options.resume ? await loadTrainState(newest!) : null;
      const inherited = !resumed && config.start ? await readInheritance(config.start, model, 'ssl.') : null;
      if (start && !inherited) await loadModelInto(model, start, resumed ? {} : { fresh: 'ssl.' });
      const { warmup: _w, schedule: _s, ...adam } = config.optimizer;
      optimizer = new AdamW(model.params, { ...adam, since: resumed?.state.since ?? inherited?.since ?? {} });
      if (resumed) optimizer.write(resumed.tensors, resumed.state.optimizerStep);
      else if (inherited) takeOver(inherited, model, optimizer);
      else optimizer.resetEma();
      objectives = new Objectives(config.objectives, config.seed, model, optimizer);
      const centres = resumed?.tensors ?? inherited?.centres;
      if (objectives.ssl && centres && (resumed || centres.size > 0)) objectives.ssl.teacher.write(centres);
      loader = new DataLoader(source, {
        batchSize: config.batch, seed: config.seed, size: shape.vision.imageSize,
        transforms: data.transforms as unknown as ImageTransform[], captions: definedOnly(data.captions),
        tokenizer: { ...definedOnly({ path: data.tokenizer, lower: data.lowercase, length: shape.text.length }), ...(vocab ? { vocab } : {}) },
        ...made,
        ...(shape.naflex ? { naflex: { patch: shape.vision.patch, lengths: config.naflex.lengths } } : {}),
        ...definedOnly({ workers: data.workers, cacheBytes: data.cacheBytes, maxSkips: data.maxSkips,
          uniqueBy: data.uniqueClasses ? 'class' as const : undefined, signal: options.signal }),
      });
      if (resumed) loader.restore(resumed.state.loader as SamplerState);
      const trainer = new Trainer(config, source, vocab, model, optimizer, objectives, loader, device);
      if (resumed) await trainer.#restore(resumed.state);
      else rmSync(join(config.out, 'metrics.jsonl'), { force: true });  // of a run that ended before its first checkpoint
      mkdirSync(config.out, { recursive: true });
      await writeFileAtomic(join(config.out, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
      note(`${shape.name}: ${(model.params.segments.reduce((n, s) => n + s.size, 0) / 1e6).toFixed(1)} M parameters on ` +
        `${deviceName(device)} (${dtype}); ${source.length} images, ${trainer.totalSteps} steps of ${config.batch}, seed ${config.seed}`);
      return trainer;
    } catch (e) {
      await loader?.close();
      objectives?.dispose();
      optimizer?.dispose();
      model.dispose();
      throw e;
    }
  }

  async #restore(state: TrainState): Promise<void> {
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
  get checkpointDue(): boolean {
    return (this.checkpointSteps > 0 && this.#step % this.checkpointSteps === 0) || this.#marks.has(this.#step);
  }

  /** Trains to the end, yielding each step's metrics in order. Returns early (after that step) when the signal aborts. */
  async *run(signal?: AbortSignal): AsyncGenerator<StepMetrics> {
    const queue: Pending[] = [];
    const file = join(this.config.out, 'metrics.jsonl');
    let before = performance.now();
    const finish = async (p: Pending): Promise<StepMetrics> => {
      const updates = await p.values, figures = updates.map(([f]) => f);
      const [, norm2, logScale, bias] = updates.at(-1)!;
      const mean = (of: (f: Figures) => number): number => figures.reduce((sum, f) => sum + of(f), 0) / figures.length;
      const losses = Object.fromEntries(Object.keys(figures[0]!.losses).map((k) => [k, mean((f) => f.losses[k]!)]));
      const alarms = [...new Set(figures.flatMap((f) => f.alarms))];
      const now = performance.now(), ms = now - before;
      before = now;
      this.#seconds += ms / 1000;
      const m = memory(this.device);
      const metrics: StepMetrics = {
        step: p.step, examples: p.examples, loss: mean((f) => f.total), losses, lr: p.lr,
        scale: Math.exp(logScale), bias, gradNorm: Math.sqrt(norm2), imagesPerSecond: this.config.batch / ms * 1000,
        dataWait: Math.min(100, 100 * p.waitMs / ms), peakBytes: m.peak + m.scratchPeak, seconds: this.#seconds,
        ...(figures.at(-1)!.ssl ? { ssl: figures.at(-1)!.ssl! } : {}), ...(alarms.length > 0 ? { alarms } : {}),
      };
      if (!Number.isFinite(metrics.loss)) {
        throw new Siglip2Error('ERR_DATA', `the loss is ${metrics.loss} at step ${p.step}; resume from the last checkpoint with a ` +
          'lower learning rate (optimizer.lr) or a longer warm-up');
      }
      const { losses: each, ssl = {}, ...line } = metrics;
      const flat = (group: string, of: object): object =>
        Object.fromEntries(Object.entries(of).map(([name, value]) => [`${group}/${name}`, value]));
      await appendFile(file, `${JSON.stringify({ ...line, ...flat('loss', each), ...flat('ssl', ssl) })}\n`);
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

  /** Enqueues one step: one update, or two of half a batch each where NaFlex images have the most patches. */
  #train(batch: Batch): Pending {
    const { model, optimizer, objectives, config: { naflex } } = this, [begin, end] = this.#span;
    const halve = naflex.halveLongest && naflex.lengths.length > 1 && batch.naflex?.length === Math.max(...naflex.lengths);
    const parts = halve && batch.size > 1 ? naflexHalves(batch) : [batch];
    let lr = 0;
    const values = parts.map((part, i) => {
      // The schedule goes by examples, so half a batch is half a step.
      lr = scheduleMultiplier(this.#schedule, begin + (end - begin) * (this.#step + i / parts.length) / this.totalSteps);
      model.params.zeroGrad();
      const figures = objectives.run(part, i);
      optimizer.update(lr);
      objectives.afterUpdate();
      const scalars = [optimizer.norm2, model.logitScale, model.logitBias].map((t) => t.item());
      return Promise.all([figures, ...scalars]) as Promise<[Figures, number, number, number]>;
    });
    this.#step++;
    this.#examples += batch.size;
    return {
      step: this.#step, examples: this.#examples, lr: lr * this.config.optimizer.lr, waitMs: batch.waitMs,
      values: Promise.all(values),
    };
  }

  /** Writes a checkpoint of the present step; returns its folder. Call between steps of `run()`. */
  async save(): Promise<string> {
    const state: TrainState = {
      version: 2, step: this.#step, examples: this.#examples, totalSteps: this.totalSteps, optimizerStep: this.optimizer.step,
      marks: this.#marks.get(this.#step) ?? [], since: this.optimizer.options.since ?? {},
      layout: this.model.params.segments.map(({ name, offset, size }) => [name, offset, size]),
      loader: this.loader.state, seconds: this.#seconds,
    };
    const teacher = await this.objectives.ssl?.teacher.read() ?? new Map<string, Float32Array>();
    return saveCheckpoint(this.config.out, state, this.optimizer, this.config.keepCheckpoints, teacher, (folder) =>
      modelFiles(folder, this.model, { vocab: this.vocab, tokenizer: this.config.data.tokenizer ?? null,
        lowercase: this.config.data.lowercase, ema: this.optimizer.ema }));
  }

  async close(): Promise<void> {
    await this.loader.close();
    this.objectives.dispose();
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
