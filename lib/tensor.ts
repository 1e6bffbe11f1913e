/**
 * Tensors: a native handle, a shape, an element type, a device. Memory is owned by name, not by the garbage collector:
 * a tensor lives while a scope, the tape or a module holds it.
 */
import { DeviceError, ShapeError } from './errors.js';
import { completion, type Handle, type MemoryStats, native, type OpTiming } from './native.js';

export type DType = 'f32' | 'bf16' | 'u8' | 'i32';
export type TensorData = Float32Array | Uint16Array | Uint8Array | Int32Array;

const DTYPE_CODE: Record<DType, number> = { f32: 0, bf16: 1, u8: 2, i32: 3 };
const DTYPE_BYTES: Record<DType, number> = { f32: 4, bf16: 2, u8: 1, i32: 4 };

/**
 * `'cpu'`, `'cuda'` (the first GPU) or `'cuda:N'`. On `'dry:cpu'` and `'dry:cuda'` the same code runs, but nothing is
 * computed and no memory is taken: `memory()` says what it would take.
 */
export type DeviceName = 'cpu' | 'cuda' | `cuda:${number}` | DryDeviceName;
export type DryDeviceName = 'dry:cpu' | 'dry:cuda';

const MOST_GPUS = 16;

/** The native side's number of a device. */
export function deviceIndex(device: DeviceName): number {
  if (device === 'cpu') return 0;
  if (device === 'cuda') return 1;
  if (device === 'dry:cpu') return MOST_GPUS + 1;
  if (device === 'dry:cuda') return MOST_GPUS + 2;
  const n = /^cuda:(\d+)$/.exec(device);
  if (!n)
    throw new DeviceError(`device must be 'cpu', 'cuda' or 'cuda:N' but is '${String(device)}'`);
  if (Number(n[1]) >= MOST_GPUS)
    throw new DeviceError(`device must be 'cuda:0' to 'cuda:${MOST_GPUS - 1}' but is '${device}'`);
  return 1 + Number(n[1]);
}

/** The elements a shape holds. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

function newArray(dtype: DType, n: number): TensorData {
  return dtype === 'f32'
    ? new Float32Array(n)
    : dtype === 'bf16'
      ? new Uint16Array(n)
      : dtype === 'u8'
        ? new Uint8Array(n)
        : new Int32Array(n);
}

let currentScope: Set<Tensor> | undefined;

/**
 * A dense row-major tensor. `handle` names its memory; shape and dtype never change. Its owner is the `scope()` it was
 * made in, or outside a scope the caller, who disposes it. Others may `hold()` it; it is freed when nobody does.
 */
export class Tensor {
  #holders = 1;
  #owned = true;
  #handle: Handle;

  constructor(
    handle: Handle,
    readonly shape: readonly number[],
    readonly dtype: DType,
    readonly device: DeviceName,
  ) {
    this.#handle = handle;
    currentScope?.add(this);
  }

  get handle(): Handle {
    if (this.#handle === 0)
      throw new DeviceError(
        'a tensor was used after it was disposed; hold() it, or return it from its scope()',
        'ERR_DISPOSED',
      );
    return this.#handle;
  }
  get size(): number {
    return sizeOf(this.shape);
  }
  get bytes(): number {
    return this.size * DTYPE_BYTES[this.dtype];
  }
  get disposed(): boolean {
    return this.#handle === 0;
  }

  /** Keeps the memory, beside its owner, until the matching `release()`. */
  hold(): this {
    this.#holders++;
    return this;
  }
  release(): void {
    if (--this.#holders > 0 || this.#handle === 0) return;
    native().free(this.#handle);
    this.#handle = 0;
  }
  /** The owner gives it up (in stream order); freed now unless somebody holds it. Safe to call twice. */
  dispose(): void {
    if (!this.#owned) return;
    this.#owned = false;
    currentScope?.delete(this);
    this.release();
  }
  /** Takes the tensor out of its scope: the caller, a module say, owns it from now on. */
  detach(): this {
    currentScope?.delete(this);
    return this;
  }
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Another tensor over the same memory; both are held on their own. */
  reshape(shape: readonly number[]): Tensor {
    if (sizeOf(shape) !== this.size)
      throw new ShapeError(
        `reshape: [${this.shape.join(', ')}] does not fit [${shape.join(', ')}]`,
      );
    return this.view(0, shape);
  }
  /** The elements from `offset` on, as `shape`; shares memory. */
  view(offset: number, shape: readonly number[]): Tensor {
    const b = DTYPE_BYTES[this.dtype];
    return new Tensor(
      native().view(this.handle, offset * b, sizeOf(shape) * b, DTYPE_CODE[this.dtype]),
      shape,
      this.dtype,
      this.device,
    );
  }

  /** Copies host data in, in stream order; `data` may be changed on return. bf16 is given as raw 16-bit words. */
  write(data: TensorData): this {
    native().write(this.handle, data);
    return this;
  }
  /** Sets every byte to zero, in stream order. */
  zero(): this {
    native().fillByte(this.handle, 0);
    return this;
  }
  /** A copy on the host, after all work enqueued so far; bf16 comes as raw 16-bit words. Rejects with the device's error. */
  async read(): Promise<TensorData> {
    const out = newArray(this.dtype, this.size);
    await completion((id) => native().read(this.handle, out, id), out);
    return out;
  }
  /** The single number of a one-element f32 tensor. */
  async item(): Promise<number> {
    if (this.size !== 1 || this.dtype !== 'f32')
      throw new ShapeError(
        `item: needs one f32 element, this is ${this.dtype} [${this.shape.join(', ')}]`,
      );
    return (await this.read())[0]!;
  }
}

/** A new tensor with undefined contents. Throws DeviceError ERR_MEMORY over the limit; nothing is then changed. */
export function empty(
  shape: readonly number[],
  dtype: DType = 'f32',
  device: DeviceName = 'cpu',
): Tensor {
  const bytes = sizeOf(shape) * DTYPE_BYTES[dtype];
  // Two negative sizes, or two fractions, can have a size that looks right.
  if (!Number.isSafeInteger(bytes) || !shape.every((n) => Number.isSafeInteger(n) && n >= 0))
    throw new ShapeError(`a tensor cannot have the shape [${shape.join(', ')}]`);
  return new Tensor(
    native().allocate(deviceIndex(device), bytes, DTYPE_CODE[dtype]),
    shape,
    dtype,
    device,
  );
}

/** A new tensor of zeros. */
export function zeros(
  shape: readonly number[],
  dtype: DType = 'f32',
  device: DeviceName = 'cpu',
): Tensor {
  return empty(shape, dtype, device).zero();
}

/** A new tensor with this data; the element type follows the array's (Uint16Array is bf16). */
export function tensor(
  data: TensorData,
  shape: readonly number[],
  device: DeviceName = 'cpu',
): Tensor {
  // By name, not instanceof: arrays may come from another realm (a vm context, a test runner).
  const kinds: Record<string, DType> = {
    Float32Array: 'f32',
    Uint16Array: 'bf16',
    Int32Array: 'i32',
    Uint8Array: 'u8',
    Uint8ClampedArray: 'u8',
  };
  const dtype = kinds[Object.prototype.toString.call(data).slice(8, -1)];
  if (dtype === undefined || !Array.isArray(shape))
    throw new ShapeError(
      'tensor: needs a Float32Array, Uint16Array (bf16), Int32Array or Uint8Array, ' +
        'and an array of sizes',
    );
  if (data.length !== sizeOf(shape))
    throw new ShapeError(`tensor: ${data.length} values do not fit [${shape.join(', ')}]`);
  return empty(shape, dtype, device).write(data);
}

/**
 * Runs `fn` and frees every tensor made inside, except those it returns (alone, in an array or in a plain object),
 * which move to the enclosing scope or to the caller. Synchronous: kernels keep running after it returns.
 */
export function scope<T>(fn: () => T): T {
  const outer = currentScope;
  const mine = new Set<Tensor>();
  currentScope = mine;
  try {
    const result = fn();
    if (typeof (result as { then?: unknown } | undefined)?.then === 'function')
      throw new TypeError(
        'scope: the function must be synchronous; read() after the scope, on a tensor it returned',
      );
    for (const t of tensorsIn(result)) if (mine.delete(t)) outer?.add(t);
    return result;
  } finally {
    currentScope = outer;
    for (const t of mine) t.dispose();
  }
}

function tensorsIn(value: unknown): Tensor[] {
  if (value instanceof Tensor) return [value];
  if (Array.isArray(value)) return value.flatMap(tensorsIn);
  if (
    value !== null &&
    typeof value === 'object' &&
    Object.getPrototypeOf(value) === Object.prototype
  )
    return Object.values(value).flatMap(tensorsIn);
  return [];
}

/** Tensors alive, views included; 0 when everything was given back. */
export function liveCount(): number {
  return native().liveCount();
}
/** Bytes in use on a device. */
export function memory(device: DeviceName = 'cpu'): MemoryStats {
  return native().memory(deviceIndex(device));
}
/** Starts a new peak measurement. */
export function resetPeak(device: DeviceName = 'cpu'): void {
  native().resetPeak(deviceIndex(device));
}
/** Most bytes tensors may take on a device; beyond it allocation throws ERR_MEMORY. 0 lifts the limit. */
export function setMemoryLimit(bytes: number, device: DeviceName = 'cpu'): void {
  native().setMemoryLimit(deviceIndex(device), bytes);
}
/** Test mode: poisons new tensors and checks guard zones around them; see `memory().guardViolations`. */
export function setDebug(on: boolean, device: DeviceName = 'cpu'): void {
  native().setDebug(deviceIndex(device), on);
}
/** Resolves when the device has done all work enqueued so far; rejects with its first error. */
export function synchronize(device: DeviceName = 'cpu'): Promise<void> {
  return completion((id) => native().synchronize(deviceIndex(device), id), undefined);
}
/**
 * Runs `fn` so that on the CPU every row of a batch gets the same bits whatever the other rows, their number and the
 * number of threads: for inference. CUDA devices are not affected.
 */
export function batchInvariant<T>(device: DeviceName, fn: () => T): T {
  native().setBatchInvariant(deviceIndex(device), true);
  try {
    return fn();
  } finally {
    native().setBatchInvariant(deviceIndex(device), false);
  }
}
/** Time by op since the last call, longest first; empty on devices that do not measure it. */
export function takeProfile(device: DeviceName = 'cpu'): OpTiming[] {
  return native()
    .takeProfile(deviceIndex(device))
    .sort((a, b) => b.seconds - a.seconds);
}
/**
 * Waits for the device, then says how many threads are at work on it: fewer than `SIGLIP2_THREADS` while other processes
 * take their cores. Results do not depend on it.
 * @param hold from now on so many, 0 for as many as the machine lets run; for measurements and tests
 */
export function activeThreads(device: DeviceName = 'cpu', hold = -1): number {
  return native().activeThreads(deviceIndex(device), hold);
}
/** The device's name; throws DeviceError with the reason when there is none. */
export function deviceName(device: DeviceName): string {
  return native().deviceName(deviceIndex(device));
}
