/**
 * Adam with decoupled weight decay over the model's parameter arena, in big_vision's order of operations: clip by
 * global norm, Adam, × learning rate, + weight decay · θ, × schedule (SigLIP 2 §2.1; decay is not multiplied by the
 * learning rate). Nothing waits for the host: the clip factor is taken from a device scalar.
 */
import { definedOnly } from '../check.js';
import { CheckpointError, ConfigError } from '../errors.js';
import type { ParamStore } from '../model/params.js';
import { type Handle, op } from '../native.js';
import { adamwRates, adamwStep, sumOfSquares } from '../ops/adamw.js';
import { empty, type Tensor, tensor, zeros } from '../tensor.js';

const scaleCast = op<[y: Handle, x: Handle, N: number, scale: number]>('scale_cast');

export interface AdamWOptions {
  /** Peak learning rate. */
  lr: number;
  /** Decoupled decay of kernels, multiplied by the schedule but not by `lr`. */
  weightDecay: number;
  beta1: number;
  beta2: number;
  eps: number;
  /** Largest global gradient norm. */
  clip: number;
  /**
   * Multiplies `lr` for parameters whose name contains the key, e.g. `{ token_embedding: 10 }`. Those with 0 keep their
   * bits: they do not decay either.
   */
  lrScale: Record<string, number>;
  /** Decay of the exponential moving average of the weights; null keeps none. */
  ema: number | null;
  /**
   * Updates done before parameters whose name begins with the key joined, e.g. `{ 'ssl.': 1000 }`: their bias correction
   * counts from there. The others were there from the start.
   */
  since?: Record<string, number>;
}

/** What training uses where its config says nothing (SigLIP 2 §2.1). */
export const ADAMW_DEFAULTS: Readonly<Omit<AdamWOptions, 'since'>> = {
  lr: 1e-3,
  weightDecay: 1e-4,
  beta1: 0.9,
  beta2: 0.95,
  eps: 1e-8,
  clip: 1,
  lrScale: {},
  ema: null,
};

/** A run of trained neighbours in the arena that joined at the same step: one call of the kernel. */
interface Group {
  since: number;
  segments: Tensor;
  lrScale: Tensor;
  /** Learning rate, decay and bias corrections of the present step, (4). */
  rates: Tensor;
  /** Views of the arenas; those of the moments and the gradient have no gaps for frozen parameters. */
  param: Tensor;
  m: Tensor;
  v: Tensor;
  grad: Tensor;
  ema: Tensor | null;
  copy: Tensor | null;
}

/**
 * The optimizer of a model's parameters. Each step: `params.zeroGrad()`, `backward(…)`, `update(…)`, which clips the
 * gradient, moves the weights and, with `ema`, their average; nothing of it waits for the device. Dispose it.
 */
export class AdamW {
  readonly options: AdamWOptions;
  readonly m: Tensor;
  readonly v: Tensor;
  readonly ema: Tensor | null;
  /** Squared global norm of the last step's gradient, before clipping, (1). */
  readonly norm2: Tensor;
  /** Updates done so far. */
  step = 0;
  readonly #groups: Group[] = [];

  /**
   * @param params a model's, made with `train: true`
   * @param given changes of `ADAMW_DEFAULTS`
   * @throws ConfigError when there are no gradients, or an option cannot be
   */
  constructor(
    readonly params: ParamStore,
    given: Partial<AdamWOptions> = {},
  ) {
    const options = (this.options = checkOptions({ ...ADAMW_DEFAULTS, ...definedOnly(given) }));
    if (!params.grads)
      throw new ConfigError(
        'AdamW: these parameters have no gradients; make the model with train: true',
      );
    const { device, size, trainedSize, segments } = params;
    const nothing = Object.keys(options.lrScale).find(
      (part) => !segments.some((s) => s.name.includes(part)),
    );
    if (nothing !== undefined) {
      throw new ConfigError(
        `lrScale: no parameter's name contains "${nothing}"; they are called ` +
          `${segments[0]!.name}, …, ${segments.at(-1)!.name}`,
      );
    }
    this.m = zeros([trainedSize], 'f32', device).detach();
    this.v = zeros([trainedSize], 'f32', device).detach();
    this.ema = options.ema === null ? null : zeros([size], 'f32', device).detach();
    this.norm2 = empty([1], 'f32', device).detach();
    const joined = Object.entries(options.since ?? {});
    const since = segments.map((s) => joined.find(([start]) => s.name.startsWith(start))?.[1] ?? 0);
    const trains = segments.map((s) => s.trained !== null && this.#lrScale(s.name) > 0);
    for (let first = trains.indexOf(true); first >= 0; first = trains.indexOf(true, first)) {
      let next = first + 1;
      while (trains[next] && since[next] === since[first]) next++;
      this.#groups.push(this.#group(since[first]!, first, next));
      first = next;
    }
  }

  #lrScale(name: string): number {
    return Object.entries(this.options.lrScale).find(([part]) => name.includes(part))?.[1] ?? 1;
  }

  /** The segments from `first` up to but not including `next`. */
  #group(since: number, first: number, next: number): Group {
    const { device, size, segments, values, grads, copy } = this.params;
    const { offset: from, trained } = segments[first]!,
      n = (segments[next]?.offset ?? size) - from;
    const ends: number[] = [],
      scales: number[] = [];
    for (let i = first; i < next; i++) {
      const s = segments[i]!;
      ends.push((segments[i + 1]?.offset ?? size) - from, s.decay ? 1 : 0);
      scales.push(this.#lrScale(s.name));
    }
    const view = (arena: Tensor): Tensor => arena.view(from, [n]).detach();
    const trainedView = (arena: Tensor): Tensor => arena.view(trained!, [n]).detach();
    return {
      since,
      segments: tensor(Int32Array.from(ends), [scales.length, 2], device).detach(),
      lrScale: tensor(Float32Array.from(scales), [scales.length], device).detach(),
      rates: zeros([4], 'f32', device).detach(),
      param: view(values),
      m: trainedView(this.m),
      v: trainedView(this.v),
      grad: trainedView(grads!),
      ema: this.ema && view(this.ema),
      copy: copy && view(copy),
    };
  }

  /** Starts the moving average at the present weights; call once they are there. */
  resetEma(): void {
    if (this.ema) scaleCast(this.ema.handle, this.params.values.handle, this.ema.size, 1);
  }

  /**
   * One update from `params.grads`, clipped to the norm `clip`; their norm before that is √`norm2`.
   * @param schedule in [0, 1], multiplies the learning rate and the decay: `scheduleMultiplier`
   */
  update(schedule = 1): void {
    this.advance(schedule);
    this.apply();
  }
  /** The half of update() that differs from step to step: counts it and sends its rates to the device. */
  advance(schedule: number): void {
    const { lr, weightDecay, beta1, beta2 } = this.options;
    this.step++;
    for (const { since, rates } of this.#groups)
      rates.write(
        adamwRates(this.step - since, lr * schedule, weightDecay * schedule, beta1, beta2),
      );
  }
  /** The half that a recorded step may hold: every number of it that changes is on the device. */
  apply(): void {
    const { beta1, beta2, eps, clip, ema } = this.options;
    sumOfSquares(this.norm2, this.params.grads!);
    for (const { since: _, ...tensors } of this.#groups)
      adamwStep({
        ...tensors,
        norm2: this.norm2,
        step: 1,
        lr: 0,
        beta1,
        beta2,
        eps,
        decay: 0,
        clip,
        emaDecay: ema ?? 0,
      });
  }

  /** The state that a checkpoint keeps beside the weights. */
  async read(): Promise<Map<string, Float32Array>> {
    const state: [string, Tensor][] = [
      ['m', this.m],
      ['v', this.v],
      ...(this.ema ? [['ema', this.ema] as [string, Tensor]] : []),
    ];
    const out = new Map<string, Float32Array>();
    for (const [name, t] of state) out.set(name, (await t.read()) as Float32Array);
    return out;
  }
  write(state: ReadonlyMap<string, Float32Array>, step: number): void {
    const put = (name: string, t: Tensor): void => {
      const data = state.get(name);
      if (!data || data.length !== t.size) {
        throw new CheckpointError(
          `the checkpoint's optimizer state "${name}" has ${data?.length ?? 'no'} values where ` +
            `this model needs ${t.size}; resume with the config the run was started with`,
        );
      }
      t.write(data);
    };
    put('m', this.m);
    put('v', this.v);
    if (this.ema) put('ema', this.ema);
    this.step = step;
  }
  dispose(): void {
    for (const { since: _, ...tensors } of this.#groups)
      for (const t of Object.values(tensors) as (Tensor | null)[]) t?.dispose();
    for (const t of [this.m, this.v, this.ema, this.norm2]) t?.dispose();
  }
}

function checkOptions(options: AdamWOptions): AdamWOptions {
  const { lr, weightDecay, beta1, beta2, eps, clip, ema } = options;
  const refuse = (name: string, what: string, value: number): never => {
    throw new ConfigError(`AdamW: ${name} must be ${what} but is ${value}`);
  };
  for (const [name, value] of Object.entries({ lr, weightDecay }))
    if (!(value >= 0 && Number.isFinite(value))) refuse(name, 'a number from 0 on', value);
  for (const [name, value] of Object.entries({ eps, clip }))
    if (!(value > 0)) refuse(name, 'positive', value);
  for (const [name, value] of Object.entries({ beta1, beta2, ema }))
    if (value !== null && !(value >= 0 && value <= 1)) refuse(name, 'in [0, 1]', value);
  return options;
}
