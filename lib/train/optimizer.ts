/**
 * Adam with decoupled weight decay over the model's parameter arena, in big_vision's order of operations: clip by
 * global norm, Adam, × learning rate, + weight decay · θ, × schedule (SigLIP 2 §2.1; decay is not multiplied by the
 * learning rate). Nothing waits for the host: the clip factor is taken from a device scalar.
 */
import { CheckpointError } from '../errors.js';
import type { ParamStore } from '../model/params.js';
import { adamwRates, adamwStep, sumOfSquares } from '../ops/adamw.js';
import { empty, tensor, zeros, type Tensor } from '../tensor.js';

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
  /** Multiplies `lr` for parameters whose name contains the key, e.g. `{ token_embedding: 10 }`. */
  lrScale: Record<string, number>;
  /** Decay of the exponential moving average of the weights; null keeps none. */
  ema: number | null;
}

export class AdamW {
  readonly m: Tensor;
  readonly v: Tensor;
  readonly ema: Tensor | null;
  /** Squared global norm of the last step's gradient, before clipping, (1). */
  readonly norm2: Tensor;
  /** Updates done so far. */
  step = 0;
  /** Learning rate, decay and bias corrections of the present step. */
  readonly #rates: Tensor;
  readonly #segments: Tensor;
  readonly #lrScale: Tensor;

  constructor(readonly params: ParamStore, readonly options: AdamWOptions) {
    const { device, size } = params;
    const ends: number[] = [], scales: number[] = [];
    params.segments.forEach((s, i) => {
      const end = params.segments[i + 1]?.offset ?? size;
      const factor = Object.entries(options.lrScale).find(([part]) => s.name.includes(part))?.[1] ?? 1;
      ends.push(end, s.decay ? 1 : 0);
      scales.push(factor);
    });
    this.#segments = tensor(Int32Array.from(ends), [scales.length, 2], device).detach();
    this.#lrScale = tensor(Float32Array.from(scales), [scales.length], device).detach();
    this.m = zeros([size], 'f32', device).detach();
    this.v = zeros([size], 'f32', device).detach();
    this.ema = options.ema === null ? null : zeros([size], 'f32', device).detach();
    this.norm2 = empty([1], 'f32', device).detach();
    this.#rates = zeros([4], 'f32', device).detach();
  }

  /** Starts the moving average at the present weights; call once they are there. */
  resetEma(): void {
    if (!this.ema) return;
    // A step with learning rate and decay 0 and an EMA decay of 0 copies the weights.
    this.#run(null, 0);
    this.m.zero();
    this.v.zero();
  }

  /** One update from `params.grads`; `schedule` in [0, 1] multiplies the learning rate and the decay. */
  update(schedule: number): void {
    this.advance(schedule);
    this.apply();
  }
  /** The half of update() that differs from step to step: counts it and sends its rates to the device. */
  advance(schedule: number): void {
    const { lr, weightDecay, beta1, beta2 } = this.options;
    this.#rates.write(adamwRates(++this.step, lr * schedule, weightDecay * schedule, beta1, beta2));
  }
  /** The half that a recorded step may hold: every number of it that changes is on the device. */
  apply(): void {
    sumOfSquares(this.norm2, this.params.grads!);
    this.#run(this.#rates, this.options.ema ?? 0);
  }

  /** Without rates: a step whose learning rate and decay are 0. */
  #run(rates: Tensor | null, ema: number): void {
    const { beta1, beta2, eps, clip } = this.options;
    adamwStep({
      param: this.params.values, m: this.m, v: this.v, ema: this.ema, copy: this.params.copy, grad: this.params.grads!,
      norm2: this.norm2, segments: this.#segments, lrScale: this.#lrScale,
      ...(rates ? { rates } : {}), step: 1, lr: 0, beta1, beta2, eps, decay: 0, clip, emaDecay: ema,
    });
  }

  /** The state that a checkpoint keeps beside the weights. */
  async read(): Promise<Map<string, Float32Array>> {
    const state: [string, Tensor][] = [['m', this.m], ['v', this.v], ...(this.ema ? [['ema', this.ema] as [string, Tensor]] : [])];
    const out = new Map<string, Float32Array>();
    for (const [name, t] of state) out.set(name, await t.read() as Float32Array);
    return out;
  }
  write(state: ReadonlyMap<string, Float32Array>, step: number): void {
    const put = (name: string, t: Tensor): void => {
      const data = state.get(name);
      if (!data || data.length !== t.size) {
        throw new CheckpointError(`the checkpoint's optimizer state "${name}" has ${data?.length ?? 'no'} values where ` +
          `this model needs ${t.size}; resume with the config the run was started with`);
      }
      t.write(data);
    };
    put('m', this.m);
    put('v', this.v);
    if (this.ema) put('ema', this.ema);
    this.step = step;
  }
  dispose(): void {
    for (const t of [this.m, this.v, this.ema, this.norm2, this.#rates, this.#segments, this.#lrScale]) t?.dispose();
  }
}
