/**
 * Recorded steps: the work of a training step is noted once and replayed with one call, where the device can (a CUDA
 * graph). What a step enqueues then costs one launch instead of a thousand.
 */
import { native } from './native.js';
import { clearTape } from './tape.js';
import { type DeviceName, deviceIndex, scope, type Tensor } from './tensor.js';

/** What a step hands out: its outputs, alone, in an array or in a plain object. */
type Outputs = Tensor | readonly Tensor[] | Record<string, Tensor>;

/**
 * A step that is run again and again on tensors of the same shapes. `fn` must do the same work each time: it reads its
 * inputs from tensors that live outside of it, which the caller `write()`s before `run()`; what changes from step to step
 * (learning rate, step number) is such a tensor too. It may not read back, wait, or bring in host data.
 *
 * The first run is an ordinary one (libraries choose their kernels, memory grows), the second is recorded, later ones
 * replay it. On a device that records nothing every run is an ordinary one. A recording keeps the memory of one step for
 * itself until `dispose()`.
 */
export class RecordedStep<T extends Outputs> {
  #runs = 0;
  #recording = 0;
  #outputs: T | undefined;

  constructor(
    readonly device: DeviceName,
    readonly fn: () => T,
  ) {}

  /** Whether runs replay a recording. */
  get recorded(): boolean {
    return this.#recording !== 0;
  }

  /**
   * One step. `use` receives its outputs and enqueues what is to be done with them, `item()` say; they are not the
   * caller's and hold the next step's values after the next run.
   * @returns what `use` returns
   * @throws DeviceError when `fn` reads back or brings in host data while it is recorded
   */
  run<R>(use: (outputs: T) => R): R {
    const { device, fn } = this;
    if (this.#recording === 0 && this.#runs++ > 0) this.#record();
    if (this.#recording === 0) {
      let result: R;
      scope(() => {
        result = use(fn());
      });
      return result!;
    }
    native().replay(deviceIndex(device), this.#recording);
    return use(this.#outputs!);
  }

  #record(): void {
    const index = deviceIndex(this.device);
    if (!native().beginRecording(index)) return;
    try {
      this.#outputs = scope(() => this.fn());
      each(this.#outputs, (t) => t.detach());
      this.#recording = native().endRecording(index, true);
    } catch (e) {
      this.#release();
      clearTape();
      if (this.#recording === 0) endQuietly(index);
      throw e;
    }
  }

  #release(): void {
    if (this.#outputs) each(this.#outputs, (t) => t.dispose());
    this.#outputs = undefined;
  }
  /** Gives the recording and its memory back. */
  dispose(): void {
    this.#release();
    if (this.#recording) native().forget(deviceIndex(this.device), this.#recording);
    this.#recording = 0;
    this.#runs = 0;
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

function each(outputs: Outputs, f: (t: Tensor) => void): void {
  (Array.isArray(outputs)
    ? outputs
    : 'handle' in outputs
      ? [outputs as Tensor]
      : Object.values(outputs)
  ).forEach(f);
}

/** Ends a recording whose making failed; its own error matters, not a second one. */
function endQuietly(index: number): void {
  try {
    native().endRecording(index, false);
  } catch {
    /* the first error is thrown */
  }
}
