/**
 * The parameters of a model, in one flat arena each for weights, gradients and (for bf16 activations) the bf16 copy of
 * the weights. Clipping, AdamW, EMA, zeroing and checkpoints are then one call over one buffer.
 *
 * A bf16 model that is not trained has no f32 masters of its matrices: `values` then holds the vectors and positions
 * alone, and `copy` holds the matrices.
 */
import { check } from '../check.js';
import { CheckpointError, ConfigError } from '../errors.js';
import { bf16ToF32 } from '../io/half.js';
import { type Handle, native, op } from '../native.js';
import { type Init, initialize } from '../ops/init.js';
import { Param } from '../tape.js';
import { type DeviceName, empty, scope, sizeOf, type Tensor, tensor, zeros } from '../tensor.js';

const scaleCast = op<[y: Handle, x: Handle, N: number, scale: number]>('scale_cast');

/** Elements between neighbours are a multiple of this, so that every tensor starts on a cache line. */
const ALIGN = 16;
/** These run on into the next one without a gap: q, k, v (of cross-attention k, v) are one matrix to the kernels. */
const JOINED = /\.(self_attn\.[qk]|cross_attn\.k)_proj\.(weight|bias)$/;

/** A token table that is only looked up; the op takes either type on the CPU. */
const TOKEN_TABLE = 'text_model.embeddings.token_embedding.weight';

/** One parameter tensor. */
export interface ParameterShape {
  /** Hugging Face state-dict name. */
  name: string;
  /** Row-major dimensions. */
  shape: number[];
  init: Init;
  /**
   * Whether weight decay applies: convolution and dense kernels only, as in big_vision's default
   * mask.
   */
  decay: boolean;
}

export interface Segment {
  name: string;
  /** Whether it is kept in bf16 alone: its offset is then one in `copy`, otherwise in `values`. */
  half: boolean;
  /** First element in its arena. */
  offset: number;
  size: number;
  shape: readonly number[];
  decay: boolean;
  /** First element in `grads` and in the optimizer's moments, which have no place for frozen ones: null. */
  trained: number | null;
}

export class ParamStore {
  readonly segments: readonly Segment[];
  /** Elements of `values`, gaps included (they stay zero while training). */
  readonly size: number;
  /** The same of `grads` and the moments. */
  readonly trainedSize: number;
  readonly values: Tensor;
  readonly grads: Tensor | null;
  /** What kernels multiply with when activations are bf16: a copy of `values`, or just the matrices; null for f32. */
  readonly copy: Tensor | null;
  /** Matrices are in `copy` alone, everything else in `values`: a bf16 model that does not train. */
  readonly #compact: boolean;
  readonly #byName: Map<string, Segment>;
  readonly #params = new Map<string, Param>();
  /** Answers of `trains`. */
  readonly #trains = new Map<string, boolean>();

  /**
   * @param shapes from parameterShapes(config)
   * @param options.train whether there are gradients
   * @param options.dtype type of the activations
   * @param options.values an arena of this layout to share instead of a new one
   * @param options.frozen names of parameters without gradient
   * @throws ConfigError when a part of a matrix is frozen and a part is not
   */
  constructor(
    readonly shapes: readonly ParameterShape[],
    options: {
      device?: DeviceName;
      dtype?: 'f32' | 'bf16';
      train?: boolean;
      values?: Tensor;
      frozen?: ReadonlySet<string>;
    } = {},
  ) {
    const device = options.device ?? 'cpu',
      train = options.train ?? false;
    const compact = options.dtype === 'bf16' && !train && !options.values;
    this.#compact = compact;
    const segments: Segment[] = [];
    const end = { full: 0, half: 0, trained: 0 };
    const align = (n: number): number => Math.ceil(n / ALIGN) * ALIGN;
    let joined: Segment | undefined;
    for (const { name, shape, decay } of shapes) {
      // Exactly the dense and convolution kernels decay, and exactly they are multiplied with.
      const half = compact && (decay || (name === TOKEN_TABLE && device === 'cpu'));
      const arena = half ? 'half' : 'full',
        size = sizeOf(shape);
      const trained = train && !options.frozen?.has(name) ? end.trained : null;
      const segment: Segment = { name, half, offset: end[arena], size, shape, decay, trained };
      segments.push(segment);
      if (joined && (joined.trained === null) !== (trained === null))
        throw new ConfigError(
          `freeze: ${joined.name} and ${name} are parts of one matrix; freeze both or none of them`,
        );
      joined = JOINED.test(name) ? segment : undefined;
      end[arena] += size;
      if (trained !== null) end.trained += size;
      if (!joined) [end[arena], end.trained] = [align(end[arena]), align(end.trained)];
    }
    this.segments = segments;
    this.size = end.full;
    this.trainedSize = end.trained;
    this.#byName = new Map(segments.map((s) => [s.name, s]));
    // Without training nothing runs over the gaps, and touching every page twice would double the time to load.
    const arena = (n: number, dtype: 'f32' | 'bf16'): Tensor =>
      (train ? zeros : empty)([n], dtype, device).detach();
    this.values = options.values?.reshape([this.size]).detach() ?? arena(this.size, 'f32');
    this.grads = train ? arena(this.trainedSize, 'f32') : null;
    this.copy = options.dtype === 'bf16' ? arena(compact ? end.half : this.size, 'bf16') : null;
  }

  get device(): DeviceName {
    return this.values.device;
  }

  /**
   * The same parameters with the values of another arena, their moving average say, for the same model code. It has no
   * gradients, sees every change of `values`, and has a bf16 copy of its own where this store has one: call
   * `refreshCopy` after a change. Dispose it; `values` stays its maker's.
   */
  withValues(values: Tensor): ParamStore {
    return new ParamStore(this.shapes, {
      device: this.device,
      dtype: this.copy ? 'bf16' : 'f32',
      values,
    });
  }

  segment(name: string): Segment {
    const s = this.#byName.get(name);
    if (!s) throw new CheckpointError(`the model has no parameter ${name}`);
    return s;
  }

  /** Whether a parameter whose name begins so has a gradient. */
  trains(prefix: string): boolean {
    let known = this.#trains.get(prefix);
    if (known === undefined) {
      known = this.segments.some((s) => s.trained !== null && s.name.startsWith(prefix));
      this.#trains.set(prefix, known);
    }
    return known;
  }

  /** A parameter by its Hugging Face name, `shape` as stored or given (same size). The store owns it. */
  get(name: string, shape?: readonly number[]): Param {
    const s = this.segment(name);
    return this.#view(s, s.offset, shape ?? s.shape, name);
  }
  /** Rows `from` to `to` of a matrix or vector: the key and value part of in_proj_weight, say. */
  rows(name: string, from: number, to: number): Param {
    const s = this.segment(name),
      row = s.size / s.shape[0]!;
    return this.#view(
      s,
      s.offset + from * row,
      [to - from, ...s.shape.slice(1)],
      `${name}[${from}:${to}]`,
    );
  }
  /** Neighbouring parameters stacked along their first axis: q, k, v as one (3D, D) matrix. */
  fused(names: readonly string[]): Param {
    const parts = names.map((n) => this.segment(n));
    const first = parts[0]!;
    parts.forEach((p, i) => {
      const before = parts[i - 1];
      if (before && p.offset !== before.offset + before.size)
        throw new Error(`${before.name} and ${p.name} are not neighbours`);
    });
    const n = parts.reduce((sum, p) => sum + p.shape[0]!, 0);
    return this.#view(first, first.offset, [n, ...first.shape.slice(1)], names.join('+'));
  }

  #view(
    { half, trained, offset: first }: Segment,
    offset: number,
    shape: readonly number[],
    name: string,
  ): Param {
    const key = `${half}${offset}:${shape.join('x')}`;
    let p = this.#params.get(key);
    if (p) return p;
    const n = sizeOf(shape),
      bytes = half ? 2 : 4,
      arena = half ? this.copy! : this.values;
    p = new Param(
      native().view(arena.handle, offset * bytes, n * bytes, half ? 1 : 0),
      shape,
      half ? 'bf16' : 'f32',
      this.device,
      name,
    ).detach();
    if (this.grads && trained !== null)
      p.grad = this.grads.view(trained + offset - first, shape).detach();
    // A compact store's copy holds other parameters than `values`.
    if (this.copy && !this.#compact) p.compute = this.copy.view(offset, shape).detach();
    this.#params.set(key, p);
    return p;
  }

  /** Starts every parameter from its initialiser; the result depends on `seed` alone. */
  initialize(seed: number): void {
    this.shapes.forEach((p, i) => {
      const param = this.get(p.name);
      if (param.dtype === 'f32') initialize(param, p.init, seed, i);
      else {
        scope(() => {
          const full = empty(p.shape, 'f32', this.device);
          initialize(full, p.init, seed, i);
          scaleCast(param.handle, full.handle, param.size, 1);
        });
      }
    });
    this.refreshCopy();
  }
  /**
   * Writes values of one parameter, from element `from` on, rounded where it is kept in bf16. Call `refreshCopy()` after
   * the last.
   */
  write(name: string, data: Float32Array, from = 0): void {
    const s = this.segment(name);
    scope(() => {
      if (!s.half) this.values.view(s.offset + from, [data.length]).write(data);
      else
        scaleCast(
          this.copy!.view(s.offset + from, [data.length]).handle,
          tensor(data, [data.length], this.device).handle,
          data.length,
          1,
        );
    });
  }
  /** Renews the bf16 copy after the weights were written by other means than the optimizer. */
  refreshCopy(): void {
    if (this.copy && !this.#compact) scaleCast(this.copy.handle, this.values.handle, this.size, 1);
  }
  zeroGrad(): void {
    this.grads?.zero();
  }

  /**
   * Every parameter's values on the host, by Hugging Face name.
   * @param source another arena of the same layout, an optimizer's `ema` say, or one with the layout of the gradients
   *   (`grads`, `m`, `v`), which holds the trained parameters alone
   * @throws ShapeError when it is none
   */
  async read(
    source: Tensor = this.values,
  ): Promise<Map<string, { shape: readonly number[]; data: Float32Array }>> {
    check(
      (source?.size === this.size || source?.size === this.trainedSize) && source.dtype === 'f32',
      'params.read',
      `the source must be an f32 arena of ${this.size} ` +
        'values, such as params.grads of a model made with train: true',
    );
    const all = (await source.read()) as Float32Array;
    const half = this.segments.some((s) => s.half)
      ? ((await this.copy!.read()) as Uint16Array)
      : null;
    const trained = source.size !== this.size;
    return new Map(
      this.segments
        .filter((s) => !trained || s.trained !== null)
        .map((s) => {
          const at = trained ? s.trained! : s.offset;
          const data = s.half
            ? bf16ToF32(half!.subarray(at, at + s.size))
            : all.subarray(at, at + s.size);
          return [s.name, { shape: s.shape, data }];
        }),
    );
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
