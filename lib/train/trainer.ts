/**
 * The training loop, top to bottom: open data, build or load the model, then batch → step → metrics, with checkpoints.
 * The host never waits for the device inside a step, unless selection chooses what to train on; two steps are in flight,
 * and the metrics of a step are read when the next ones are already enqueued.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { definedOnly } from '../check.js';
import { loadModelInto, modelFiles, readVocabulary } from '../checkpoints/load.js';
import type { Batch } from '../data/batch.js';
import { DataLoader, type LoaderState } from '../data/loader.js';
import type { Drawn } from '../data/mixture.js';
import { naflexUpdates, patchBudget } from '../data/naflex_lengths.js';
import { swapCaptions } from '../data/noise.js';
import type { SampleSource } from '../data/sample_source.js';
import { openSource } from '../data/source.js';
import type { SourceSpec } from '../data/spec.js';
import { CheckpointError, ConfigError, Siglip2Error } from '../errors.js';
import { writeFileAtomic } from '../fs/files.js';
import type { ParamStore, Segment } from '../model/params.js';
import type { Siglip2Model } from '../model/siglip2.js';
import { native } from '../native.js';
import { toSteps } from '../optim/duration.js';
import { AdamW } from '../optim/optimizer.js';
import { multiplierAt, type RunSchedule, runSchedule } from '../optim/schedule.js';
import { clearTape } from '../tape.js';
import { type DeviceName, deviceName, memory } from '../tensor.js';
import type { VocabMap } from '../text/vocab.js';
import { listCheckpoints, loadTrainState, saveCheckpoint, type TrainState } from './checkpoint.js';
import {
  checkTrainConfig,
  chosenDtype,
  type TrainConfig,
  type TrainConfigInput,
} from './config.js';
import { trainedModel } from './freeze.js';
import { readInheritance, takeOver } from './inherit.js';
import { lockRun } from './lock.js';
import { cutLog, openLog } from './log.js';
import { type Figures, Objectives, type SslFigures } from './objectives.js';
import { RecordedUpdate } from './recorded_update.js';
import { checkLayout, checkNew, checkResumed, newestCheckpoint, type RunFacts } from './resume.js';
import { OnlineSelection, type Selected, type SelectionFigures } from './selection/selection.js';
import { loaderOptions, shapeOf } from './validate.js';
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
   * columns, mean over rows, (weighted) mean over the captions per image (SigLIP eq. 1).
   */
  losses: Record<string, number>;
  /** With self-distillation, what its losses are made of; in the file as `ssl/entropy` and so on. */
  ssl?: SslFigures;
  /** Where there is selection; in the file as `selection/chosen` and so on. */
  selection?: SelectionFigures;
  /** Where captions were swapped: their share among the samples loaded and those trained on; `noise/…` in the file. */
  noise?: { loaded: number; trained: number };
  /** What is wrong with the teacher, in sentences; absent when nothing is. */
  alarms?: string[];
  /** Learning rate of this step. */
  lr: number;
  /** exp(t'), the logit scale, and b, the logit bias, after this step. */
  scale: number;
  bias: number;
  /** Global norm of the gradient before clipping. */
  gradNorm: number;
  /** Over the latest ten steps, without the writing of checkpoints. */
  imagesPerSecond: number;
  /** Share of wall time spent waiting for data, in percent. */
  dataWait: number;
  /** Most device bytes in use since the start, workspace included. */
  peakBytes: number;
  /** Training time of the run so far, resumed parts included, the writing of checkpoints not. */
  seconds: number;
  /** Of a mixture, at every `logEvery`-th step and the last: what was drawn so far. */
  drawn?: Drawn;
}

export interface TrainerOptions {
  /** Continue from the newest checkpoint in config.out that is whole. */
  resume?: boolean;
  /** Continue although data, captions, seed or batch are not those of the checkpoint: from the next epoch on. */
  acceptChanges?: boolean;
  signal?: AbortSignal;
  /** One line about what is being done. */
  note?: (message: string) => void;
}

/** What a step trains on. */
interface Chosen extends Partial<Selected> {
  batch: Batch;
  noise?: StepMetrics['noise'];
}

/** Metrics of a step whose numbers are still on their way. */
interface Pending {
  step: number;
  examples: number;
  lr: number;
  waitMs: number;
  drawn: Drawn | undefined;
  chosen: Omit<Chosen, 'batch'>;
  /** Of each update of the step. */
  values: Promise<[Figures, norm2: number, logScale: number, bias: number][]>;
  /** When the device had them; the host may take them later. */
  done: Promise<number>;
}

const IN_FLIGHT = 2;
/** Files with a line for every step. */
const LOGS = ['metrics.jsonl', 'selection.jsonl'] as const;

/** A training run. Make one with `Trainer.open`, iterate `run()`, then `close()`. */
export class Trainer {
  readonly totalSteps: number;
  /** Steps between checkpoints; 0 writes one at the end only. */
  readonly checkpointSteps: number;
  readonly #schedule: RunSchedule;
  /** Steps after which a checkpoint is kept, with the marks it gets. */
  readonly #marks = new Map<number, string[]>();
  #step = 0;
  #examples = 0;
  #seconds = 0;
  /** The last step whose figures are known, and finite. */
  #sound = 0;
  /** The batch that is awaited, also when a run was ended meanwhile, and the loader's state before it. */
  #asked: { state: LoaderState; batch: Promise<Batch> } | undefined;
  /** Gives the run's folder back to other processes. */
  #unlock: () => void = () => undefined;

  private constructor(
    readonly config: TrainConfig,
    readonly source: SampleSource,
    readonly vocab: VocabMap | null,
    readonly model: Siglip2Model,
    readonly optimizer: AdamW,
    readonly objectives: Objectives,
    readonly selection: OnlineSelection | null,
    readonly loader: DataLoader,
    readonly device: DeviceName,
    readonly swapped: Uint8Array | null,
    readonly recording: RecordedUpdate | null,
    readonly facts: RunFacts,
  ) {
    this.#schedule = runSchedule(config, source.length);
    this.totalSteps = this.#schedule.totalSteps;
    for (const mark of config.keepAt) {
      const step = this.#schedule.stepAt('keepAt', mark);
      if (step < 0 || step > this.totalSteps)
        throw new ConfigError(
          `keepAt: ${mark} is outside of the span, ${config.span.from} to ${config.span.to}`,
        );
      this.#marks.set(step, [...(this.#marks.get(step) ?? []), mark]);
    }
    this.checkpointSteps = toSteps(config.checkpointEvery, {
      batch: config.batch,
      examples: source.length,
      name: 'checkpointEvery',
      total: this.totalSteps,
    });
  }

  /**
   * Opens data and model. Throws ConfigError, DataError, CheckpointError or DeviceError saying what to change.
   * @param input a config, as it is written or checked already
   */
  static async open(
    input: TrainConfigInput | TrainConfig,
    options: TrainerOptions = {},
  ): Promise<Trainer> {
    const config = checkTrainConfig(input),
      unlock = await lockRun(config.out);
    try {
      const trainer = await Trainer.#open(config, options);
      trainer.#unlock = unlock;
      return trainer;
    } catch (e) {
      unlock();
      throw e;
    }
  }

  static async #open(config: TrainConfig, options: TrainerOptions): Promise<Trainer> {
    const note = options.note ?? (() => undefined);
    const device = chooseDevice(config.device, note);
    const dtype = chosenDtype(config.dtype, device);
    const newest = options.resume ? await newestCheckpoint(config.out, note) : undefined;
    if (!options.resume) checkNew(config.out);
    else if (!newest)
      throw new CheckpointError(
        `there is no checkpoint in ${join(config.out, 'checkpoints')} to resume from; start without --resume`,
      );

    const { data } = config;
    const source = await openSource(
      definedOnly(data.source) as SourceSpec,
      definedOnly({ maxSkips: data.maxSkips, signal: options.signal, note }),
    );
    const facts: RunFacts = { config, dtype, collection: source.fingerprint.mark };
    const resumed = newest === undefined ? null : await loadTrainState(newest);
    const sameData =
      !resumed || checkResumed(newest!, resumed.state, facts, options.acceptChanges ?? false, note);
    const swapped = data.noise
      ? swapCaptions(source.samples, data.noise.swapped, data.noise.seed)
      : null;
    if (config.init && config.start)
      throw new ConfigError('init and start exclude each other; init takes the weights alone');
    const start = options.resume ? newest : (config.init ?? config.start);
    const vocab = data.trimVocabulary
      ? ((start ? await readVocabulary(start) : null) ??
        (await trimmedVocabulary(source, {
          captions: data.captions,
          lowercase: data.lowercase,
          tokenizer: data.tokenizer,
          note,
          decoder: (config.model as { decoder?: unknown }).decoder != null,
        })))
      : null;
    const shape = shapeOf(config, vocab),
      load = loaderOptions(config, shape, vocab);
    const model = trainedModel(config, shape, device, dtype);
    let optimizer: AdamW | undefined,
      objectives: Objectives | undefined,
      loader: DataLoader | undefined;
    let selection: OnlineSelection | null = null;
    try {
      if (!options.resume) model.initialize(config.seed);
      if (resumed) checkLayout(newest!, resumed.state.layout, layoutOf(model.params));
      const inherited =
        !resumed && config.start ? await readInheritance(config.start, model, 'ssl.') : null;
      if (start && !inherited) await loadModelInto(model, start, resumed ? {} : { fresh: 'ssl.' });
      const { warmup: _w, schedule: _s, ...adam } = config.optimizer;
      optimizer = new AdamW(model.params, {
        ...adam,
        since: resumed?.state.since ?? inherited?.since ?? {},
      });
      if (resumed) optimizer.write(resumed.tensors, resumed.state.optimizerStep);
      else if (inherited) takeOver(inherited, model, optimizer);
      else optimizer.resetEma();
      objectives = new Objectives(config, model, optimizer);
      const centres = resumed?.tensors ?? inherited?.centres;
      if (objectives.ssl && centres && (resumed || centres.size > 0))
        objectives.ssl.teacher.write(centres);
      selection = await OnlineSelection.open(config, model, source, note);
      loader = new DataLoader(source, {
        ...load,
        sizes: selection?.sizes ?? [],
        ...definedOnly({ signal: options.signal }),
      });
      if (resumed) {
        const state = resumed.state.loader as LoaderState;
        loader.restore(
          sameData ? state : { ...loader.state, epoch: state.epoch + 1, batches: state.batches },
        );
      }
      const recording = config.graph
        ? RecordedUpdate.open(config, model, objectives, optimizer, note)
        : null;
      const trainer = new Trainer(
        config,
        source,
        vocab,
        model,
        optimizer,
        objectives,
        selection,
        loader,
        device,
        swapped,
        recording,
        facts,
      );
      if (resumed) await trainer.#restore(resumed.state);
      // Of a run that ended before its first checkpoint.
      else for (const file of LOGS) rmSync(join(config.out, file), { force: true });
      await writeFileAtomic(
        join(config.out, 'config.json'),
        `${JSON.stringify(config, null, 2)}\n`,
      );
      const million = (some: (s: Segment) => boolean): string =>
        (model.params.segments.filter(some).reduce((n, s) => n + s.size, 0) / 1e6).toFixed(1);
      const frozen = model.params.segments.some((s) => s.trained === null);
      note(
        `${shape.name}: ${million(() => true)} M parameters` +
          `${frozen ? `, ${million((s) => s.trained === null)} M of them frozen,` : ''} on ` +
          `${deviceName(device)} (${dtype}); ${source.length} images, ${trainer.totalSteps} steps of ${config.batch}, seed ${config.seed}`,
      );
      if (source.mixture) note(source.mixture.describe());
      if (resumed)
        note(`going on from step ${resumed.state.step} of ${trainer.totalSteps}, ${newest!}`);
      return trainer;
    } catch (e) {
      await loader?.close();
      selection?.dispose();
      objectives?.dispose();
      optimizer?.dispose();
      model.dispose();
      throw e;
    }
  }

  async #restore(state: TrainState): Promise<void> {
    this.#step = this.#sound = state.step;
    this.#examples = state.examples;
    this.#seconds = state.seconds;
    for (const name of LOGS) await cutLog(join(this.config.out, name), state.step);
  }

  get step(): number {
    return this.#step;
  }
  /** Whether all steps so far went well, as far as their figures say; then the present weights can be saved. */
  get sound(): boolean {
    return this.#sound === this.#step;
  }
  /** Whether a checkpoint is written after the present step. */
  get checkpointDue(): boolean {
    return (
      (this.checkpointSteps > 0 && this.#step % this.checkpointSteps === 0) ||
      this.#marks.has(this.#step)
    );
  }

  /** Trains to the end, yielding each step's metrics in order. Returns early (after that step) when the signal aborts. */
  async *run(signal?: AbortSignal): AsyncGenerator<StepMetrics> {
    const queue: Pending[] = [];
    const [log, choices] = await Promise.all(
      LOGS.map((name, i) =>
        i === 0 || this.config.selection?.log ? openLog(join(this.config.out, name)) : undefined,
      ),
    );
    let before = 0;
    const finish = async (p: Pending): Promise<StepMetrics> => {
      const updates = await p.values,
        figures = updates.map(([f]) => f);
      const [, norm2, logScale, bias] = updates.at(-1)!;
      const mean = (of: (f: Figures) => number): number =>
        figures.reduce((sum, f) => sum + of(f), 0) / figures.length;
      const losses = Object.fromEntries(
        Object.keys(figures[0]!.losses).map((k) => [k, mean((f) => f.losses[k]!)]),
      );
      const alarms = [...new Set(figures.flatMap((f) => f.alarms))];
      const now = await p.done,
        ms = now - before;
      before = now;
      this.#seconds += ms / 1000;
      const m = memory(this.device);
      const metrics: StepMetrics = {
        step: p.step,
        examples: p.examples,
        loss: mean((f) => f.total),
        losses,
        lr: p.lr,
        scale: Math.exp(logScale),
        bias,
        gradNorm: Math.sqrt(norm2),
        imagesPerSecond: (this.config.batch / Math.max(ms, 1e-6)) * 1000,
        dataWait: Math.min(100, (100 * p.waitMs) / ms),
        peakBytes: m.peak + m.scratchPeak,
        seconds: this.#seconds,
        ...(figures.at(-1)!.ssl ? { ssl: figures.at(-1)!.ssl! } : {}),
        ...(p.chosen.figures ? { selection: p.chosen.figures } : {}),
        ...(p.chosen.noise ? { noise: p.chosen.noise } : {}),
        ...(alarms.length > 0 ? { alarms } : {}),
        ...(p.drawn ? { drawn: p.drawn } : {}),
      };
      this.#checkFinite(metrics);
      this.#sound = p.step;
      const { losses: loss, ssl, selection, noise, ...line } = metrics;
      const flat = Object.entries({ loss, ssl, selection, noise }).flatMap(([group, values]) =>
        Object.entries(values ?? {}).map(([name, value]) => [`${group}/${name}`, value]),
      );
      await log!.append({ ...line, ...Object.fromEntries(flat) });
      const { chosen, rejected } = p.chosen;
      await choices?.append({ step: p.step, chosen, rejected });
      return metrics;
    };
    try {
      while (this.#step < this.totalSteps && !signal?.aborted) {
        // With nothing on its way the time since the last step was the caller's, who wrote a checkpoint, say.
        if (queue.length === 0) before = performance.now();
        let batch: Batch | null;
        try {
          batch = await this.#next(signal);
        } catch (error) {
          while (queue.length) yield await finish(queue.shift()!);
          throw error;
        }
        if (!batch) break;
        queue.push(this.#train(await this.#choose(batch)));
        while (queue.length >= (this.checkpointDue ? 1 : IN_FLIGHT))
          yield await finish(queue.shift()!);
      }
      while (queue.length) yield await finish(queue.shift()!);
    } finally {
      for (const p of queue) await p.values.catch(() => undefined);
      clearTape();
      await Promise.all([log?.close(), choices?.close()]);
    }
  }

  /**
   * Throws when the step went wrong, before its weights can become a checkpoint: they may be spoilt by the step whose
   * loss is the last sound one.
   */
  #checkFinite({ step, loss, gradNorm, scale, bias }: StepMetrics): void {
    const values = {
      loss: loss,
      "gradient's norm": gradNorm,
      'logit scale': scale,
      'logit bias': bias,
    };
    const [name, value] = Object.entries(values).find(([, v]) => !Number.isFinite(v)) ?? [];
    if (name === undefined) return;
    const again =
      listCheckpoints(this.config.out).length > 0
        ? 'resume from the last checkpoint'
        : 'start again';
    throw new Siglip2Error(
      'ERR_DATA',
      `the ${name} is ${value} at step ${step}; ${again} with a lower learning rate ` +
        '(optimizer.lr) or a longer warm-up',
    );
  }

  /** The next batch; null when the signal aborts first, for data may be slow to come. */
  async #next(signal?: AbortSignal): Promise<Batch | null> {
    const asked = (this.#asked ??= { state: this.loader.state, batch: this.loader.next() });
    let stop = (): void => undefined;
    try {
      return await new Promise((resolve, reject) => {
        signal?.addEventListener('abort', (stop = () => resolve(null)));
        asked.batch.then((batch) => {
          // One that comes too late is for the next run().
          if (!signal?.aborted) this.#asked = undefined;
          resolve(batch);
        }, reject);
      });
    } finally {
      signal?.removeEventListener('abort', stop);
    }
  }

  /** What to train on of what was loaded: all of it, or what selection chooses with the weights as they are now. */
  async #choose(loaded: Batch): Promise<Chosen> {
    const chosen: Chosen = (await this.selection?.select(loaded)) ?? { batch: loaded };
    const { swapped } = this;
    if (!swapped) return chosen;
    const share = ({ samples }: Batch): number =>
      samples.reduce((sum, i) => sum + swapped[i]!, 0) / samples.length;
    return { ...chosen, noise: { loaded: share(loaded), trained: share(chosen.batch) } };
  }

  /** Enqueues one step: one update, or two of half a batch each where NaFlex images have the most patches. */
  #train({ batch, ...chosen }: Chosen): Pending {
    const parts = naflexUpdates(batch, this.config.naflex);
    let lr = 0;
    const values = parts.map((part, i) => {
      // The schedule goes by examples, so half a batch is half a step.
      lr = multiplierAt(this.#schedule, this.#step + i / parts.length);
      return this.#update(part, i, lr);
    });
    this.#step++;
    this.#examples += batch.size;
    const all = Promise.all(values);
    return {
      step: this.#step,
      examples: this.#examples,
      lr: lr * this.config.optimizer.lr,
      waitMs: batch.waitMs,
      chosen,
      drawn:
        this.#step % this.config.logEvery === 0 || this.#step === this.totalSteps
          ? batch.drawn
          : undefined,
      values: all,
      done: all.then(
        () => performance.now(),
        () => performance.now(),
      ),
    };
  }

  /** One update: its figures, the gradient's squared norm, and the sigmoid loss's scale and bias after it. */
  #update(batch: Batch, turn: number, lr: number): Promise<[Figures, number, number, number]> {
    const { model, optimizer, objectives, recording } = this;
    const read = (): Promise<number>[] =>
      [optimizer.norm2, model.logitScale, model.logitBias].map((t) => t.item());
    const together = (figures: Promise<Figures>, scalars: Promise<number>[]) =>
      Promise.all([figures, ...scalars]) as Promise<[Figures, number, number, number]>;
    if (recording) {
      optimizer.advance(lr);
      const done = recording.run(batch, read);
      if (done) return together(done.figures, done.after);
    }
    const figures = objectives.update(batch, turn, recording ? null : lr);
    return together(figures, read());
  }

  /** Writes a checkpoint of the present step; returns its folder. Call between steps of `run()`. */
  async save(): Promise<string> {
    const state: TrainState = {
      version: 2,
      step: this.#step,
      examples: this.#examples,
      totalSteps: this.totalSteps,
      optimizerStep: this.optimizer.step,
      marks: this.#marks.get(this.#step) ?? [],
      since: this.optimizer.options.since ?? {},
      layout: layoutOf(this.model.params),
      ...this.facts,
      ...(this.model.params.trainedSize < this.model.params.size
        ? {
            averageLayout: this.model.params.segments.map(({ name, offset, size }) => [
              name,
              offset,
              size,
            ]),
          }
        : {}),
      loader: this.#asked?.state ?? this.loader.state,
      seconds: this.#seconds,
    };
    const teacher = (await this.objectives.ssl?.teacher.read()) ?? new Map<string, Float32Array>();
    return saveCheckpoint(
      this.config.out,
      state,
      this.optimizer,
      this.config.keepCheckpoints,
      teacher,
      (folder) =>
        modelFiles(folder, this.model, {
          vocab: this.vocab,
          tokenizer: this.config.data.tokenizer ?? null,
          lowercase: this.config.data.lowercase,
          processor: { resample: 2, maxPatches: patchBudget(this.config.naflex) },
          boxes: this.config.objectives.caption?.boxes,
          ema: this.optimizer.ema,
        }),
    );
  }

  async close(): Promise<void> {
    await this.loader.close();
    this.selection?.dispose();
    this.recording?.dispose();
    this.objectives.dispose();
    this.optimizer.dispose();
    this.model.dispose();
    this.#unlock();
  }
}

/** Places of the trained parameters. */
function layoutOf({ segments }: ParamStore): TrainState['layout'] {
  return segments
    .filter((s) => s.trained !== null)
    .map(({ name, trained, size }) => [name, trained!, size]);
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
