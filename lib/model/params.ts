/**
 * The parameters of a model, in one flat arena each for weights, gradients and (for bf16 activations) the bf16 copy of
 * the weights. Clipping, AdamW, EMA, zeroing and checkpoints are then one call over one buffer.
 */
import { CheckpointError } from '../errors.js';
import { native, op, type Handle } from '../native.js';
import { initialize } from '../ops/init.js';
import { Param } from '../tape.js';
import { sizeOf, zeros, type DeviceName, type Tensor } from '../tensor.js';
import type { ParameterShape } from './config.js';

const scaleCast = op<[y: Handle, x: Handle, N: number, scale: number]>('scale_cast');

/** Elements between neighbours are a multiple of this, so that every tensor starts on a cache line. */
const ALIGN = 16;
/** These run on into the next one without a gap: q, k, v (of cross-attention k, v) are one matrix to the kernels. */
const JOINED = /\.(self_attn\.[qk]|cross_attn\.k)_proj\.(weight|bias)$/;

export interface Segment {
  name: string;
  /** First element in the arena. */
  offset: number;
  size: number;
  shape: readonly number[];
  decay: boolean;
}

export class ParamStore {
  readonly segments: readonly Segment[];
  /** Elements of the arena, gaps included (they stay zero). */
  readonly size: number;
  readonly values: Tensor;
  readonly grads: Tensor | null;
  /** bf16 copy that kernels multiply with; null for f32 activations. */
  readonly copy: Tensor | null;
  readonly #byName: Map<string, Segment>;
  readonly #params = new Map<string, Param>();

  /**
   * @param shapes from parameterShapes(config)
   * @param options.train whether there are gradients
   * @param options.dtype type of the activations
   * @param options.values an arena of this layout to share instead of a new one
   */
  constructor(readonly shapes: readonly ParameterShape[],
    options: { device?: DeviceName; dtype?: 'f32' | 'bf16'; train?: boolean; values?: Tensor } = {}) {
    const segments: Segment[] = [];
    let offset = 0;
    for (const { name, shape, decay } of shapes) {
      const size = sizeOf(shape);
      segments.push({ name, offset, size, shape, decay });
      offset += size;
      if (!JOINED.test(name)) offset = Math.ceil(offset / ALIGN) * ALIGN;
    }
    this.segments = segments;
    this.size = offset;
    this.#byName = new Map(segments.map((s) => [s.name, s]));
    const device = options.device ?? 'cpu';
    this.values = (options.values?.reshape([offset]) ?? zeros([offset], 'f32', device)).detach();
    this.grads = options.train ? zeros([offset], 'f32', device).detach() : null;
    this.copy = options.dtype === 'bf16' ? zeros([offset], 'bf16', device).detach() : null;
  }

  get device(): DeviceName { return this.values.device; }

  /**
   * The same parameters with the values of another arena, their moving average say, for the same model code. It has no
   * gradients, sees every change of `values`, and has a bf16 copy of its own where this store has one: call
   * `refreshCopy` after a change. Dispose it; `values` stays its maker's.
   */
  withValues(values: Tensor): ParamStore {
    return new ParamStore(this.shapes, { device: this.device, dtype: this.copy ? 'bf16' : 'f32', values });
  }

  segment(name: string): Segment {
    const s = this.#byName.get(name);
    if (!s) throw new CheckpointError(`the model has no parameter ${name}`);
    return s;
  }

  /** A parameter by its Hugging Face name, `shape` as stored or given (same size). The store owns it. */
  get(name: string, shape?: readonly number[]): Param {
    const s = this.segment(name);
    return this.#view(s.offset, shape ?? s.shape, name);
  }
  /** Rows `from` to `to` of a matrix or vector: the key and value part of in_proj_weight, say. */
  rows(name: string, from: number, to: number): Param {
    const s = this.segment(name), row = s.size / s.shape[0]!;
    return this.#view(s.offset + from * row, [to - from, ...s.shape.slice(1)], `${name}[${from}:${to}]`);
  }
  /** Neighbouring parameters stacked along their first axis: q, k, v as one (3D, D) matrix. */
  fused(names: readonly string[]): Param {
    const parts = names.map((n) => this.segment(n));
    const first = parts[0]!;
    parts.forEach((p, i) => {
      const before = parts[i - 1];
      if (before && p.offset !== before.offset + before.size) throw new Error(`${before.name} and ${p.name} are not neighbours`);
    });
    const n = parts.reduce((sum, p) => sum + p.shape[0]!, 0);
    return this.#view(first.offset, [n, ...first.shape.slice(1)], names.join('+'));
  }

  #view(offset: number, shape: readonly number[], name: string): Param {
    const key = `${offset}:${shape.join('x')}`;
    let p = this.#params.get(key);
    if (p) return p;
    const n = sizeOf(shape);
    p = new Param(native().view(this.values.handle, offset * 4, n * 4, 0), shape, 'f32', this.device, name).detach();
    if (this.grads) p.grad = this.grads.view(offset, shape).detach();
    if (this.copy) p.compute = this.copy.view(offset, shape).detach();
    this.#params.set(key, p);
    return p;
  }

  /** Starts every parameter from its initialiser; the result depends on `seed` alone. */
  initialize(seed: number): void {
    this.shapes.forEach((p, i) => initialize(this.get(p.name), p.init, seed, i));
    this.refreshCopy();
  }
  /** Renews the bf16 copy after the weights were written by other means than the optimizer. */
  refreshCopy(): void {
    if (this.copy) scaleCast(this.copy.handle, this.values.handle, this.size, 1);
  }
  zeroGrad(): void { this.grads?.zero(); }

  /** Every parameter's values, by Hugging Face name. */
  async read(source: Tensor = this.values): Promise<Map<string, { shape: readonly number[]; data: Float32Array }>> {
    const all = await source.read() as Float32Array;
    return new Map(this.segments.map((s) => [s.name, { shape: s.shape, data: all.subarray(s.offset, s.offset + s.size) }]));
  }
  dispose(): void {
    for (const p of this.#params.values()) {
      p.grad?.dispose();
      if (p.compute !== p) p.compute.dispose();
      p.dispose();
    }
    this.#params.clear();
    for (const t of [this.values, this.grads, this.copy]) t?.dispose();
  }
}
