/**
 * The only file that loads the addon. It says what went wrong in one message when none can be loaded, and turns the
 * addon's completion callbacks into promises.
 */
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { availableCores, wantedThreads } from './cores.js';
import {
  CheckpointError,
  ConfigError,
  DataError,
  DeviceError,
  type ErrorCode,
  IoError,
  ShapeError,
  Siglip2Error,
} from './errors.js';

/** A tensor's number on the native side: slot and generation; 0 stands for an absent tensor. */
export type Handle = number;

/** Bytes in use on one device. `scratchPeak` is kernel workspace, on top of `peak`. */
export interface MemoryStats {
  live: number;
  peak: number;
  reserved: number;
  scratchPeak: number;
  guardViolations: number;
}

/** Time that a device spent in one op. */
export interface OpTiming {
  op: string;
  calls: number;
  seconds: number;
}

/** How the addon was built, and what this machine's CPU gives it. */
export interface BuildInfo {
  cuda: 'cuda' | 'cuda-host' | 'none';
  /** Which library multiplies on the GPU, or why it is our own kernels; empty without CUDA. */
  cudaProducts: string;
  isa: 'avx2' | 'avx512';
  nativeBf16: boolean;
  onednn: string;
  threads: number;
  ops: { name: string; cuda: boolean }[];
}

interface Addon {
  /** Returns the number of this copy of the package's JavaScript; ids of completions are copy · 2³² and on. */
  start(
    makeError: (code: ErrorCode, message: string) => Error,
    complete: (id: number, error: string) => void,
  ): number;
  allocate(device: number, bytes: number, dtype: number): Handle;
  view(handle: Handle, byteOffset: number, bytes: number, dtype: number): Handle;
  free(handle: Handle): void;
  write(handle: Handle, data: NodeJS.TypedArray): void;
  read(handle: Handle, into: NodeJS.TypedArray, id: number): void;
  fillByte(handle: Handle, byte: number): void;
  synchronize(device: number, id: number): void;
  memory(device: number): MemoryStats;
  resetPeak(device: number): void;
  setMemoryLimit(device: number, bytes: number): void;
  setDebug(device: number, on: boolean): void;
  liveCount(): number;
  shutdown(): void;
  release(array: Uint8Array): void;
  resizeImage(
    source: Uint8Array,
    height: number,
    width: number,
    channels: number,
    target: Uint8Array | Float32Array,
    outHeight: number,
    outWidth: number,
    method: number,
    done?: (error?: string) => void,
  ): void;
  setBatchInvariant(device: number, on: boolean): void;
  beginRecording(device: number): boolean;
  endRecording(device: number, keep: boolean): number;
  replay(device: number, recording: number): void;
  forget(device: number, recording: number): void;
  takeProfile(device: number): OpTiming[];
  activeThreads(device: number, hold: number): number;
  deviceName(index: number): string;
  buildInfo(): BuildInfo;
  ops: Record<string, (...args: (number | boolean)[]) => void>;
}

/** Marks the listener that ends the addon's threads. */
const SHUTDOWN = Symbol.for('siglip2.shutdown');

let addon: Addon | undefined;
let nextId = NaN;
const pending = new Map<
  number,
  { resolve: () => void; reject: (e: Error) => void; keep: unknown; at: Error }
>();

/** The package's folder: the nearest one above this file with a package.json of this name. */
export function packageRoot(): string {
  for (let dir = dirname(fileURLToPath(import.meta.url)); ; dir = dirname(dir)) {
    const file = join(dir, 'package.json');
    if (existsSync(file) && JSON.parse(readFileSync(file, 'utf8')).name === 'siglip2') return dir;
    if (dir === dirname(dir))
      throw new DeviceError(
        'the package.json of siglip2 was not found above its own code; reinstall it',
      );
  }
}

/** The package's version. */
export function packageVersion(): string {
  return (
    JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as { version: string }
  ).version;
}

function load(): Addon {
  const root = packageRoot();
  process.env['SIGLIP2_THREADS'] = String(wantedThreads() ?? availableCores()); // the addon reads it once
  const require = createRequire(import.meta.url);
  const errors: string[] = [];
  const wanted = process.env['SIGLIP2_BINARY'];
  const attempts: [string, () => Addon][] = wanted
    ? [[wanted, () => require(resolve(root, wanted)) as Addon]]
    : [
        [
          'build/Release/siglip2.node',
          () =>
            (require('bindings') as (o: object) => Addon)({
              bindings: 'siglip2',
              module_root: root,
            }),
        ],
      ];
  for (const [name, attempt] of attempts) {
    try {
      return attempt();
    } catch (e) {
      // `bindings` lists a dozen places where builds of other tools would be.
      const [first] = (e as Error).message.split('\n');
      errors.push(
        `  ${name}: ${/^Could not locate the bindings file/.test(first!) ? 'there is no such file, nor one where other builds put it' : first}`,
      );
    }
  }
  throw new DeviceError(
    `the native addon of siglip2 could not be loaded on ${process.platform}-${process.arch}, Node ${process.versions.node}:\n` +
      `${errors.join('\n')}\n` +
      'Remedies: 1. build it with `npm run setup` in the package folder; 2. libdnnl missing: `apt-get install libdnnl-dev`; ' +
      '3. without CMake: `npx node-gyp rebuild`.',
    'ERR_NATIVE',
  );
}

function makeError(code: ErrorCode, message: string): Error {
  switch (code) {
    case 'ERR_SHAPE':
      return new ShapeError(message);
    case 'ERR_CONFIG':
      return new ConfigError(message);
    case 'ERR_DATA':
      return new DataError(message);
    case 'ERR_CHECKPOINT':
      return new CheckpointError(message);
    case 'ERR_IO':
      return new IoError(message);
    case 'ERR_DEVICE':
    case 'ERR_MEMORY':
    case 'ERR_DISPOSED':
      return new DeviceError(message, code);
    default:
      return new Siglip2Error(code, message);
  }
}

function complete(id: number, error: string): void {
  const p = pending.get(id);
  pending.delete(id);
  if (!p) return;
  if (error) {
    const [, code, message] = /^(?:(ERR_\w+): )?(.*)$/s.exec(error)!; // devices name a code where it is not ERR_DEVICE
    p.at.message = message!;
    p.reject(Object.assign(p.at, code ? { code } : {}));
  } else {
    p.resolve();
  }
}

/** The loaded addon; the first call loads it. Throws DeviceError (ERR_NATIVE) with numbered remedies. */
export function native(): Addon {
  if (!addon) {
    const loaded = load(),
      copy = loaded.start(makeError, complete) as number | undefined;
    if (copy === undefined)
      throw new DeviceError(
        `the addon is of another version than the package, ${packageVersion()}; rebuild it with \`npm run setup\``,
        'ERR_NATIVE',
      );
    addon = loaded;
    nextId = copy * 2 ** 32 + 1;
    // Node runs no cleanup hooks on process.exit() or an uncaught error; threads must be gone before C++ statics are. One
    // listener, however many copies of this file there are.
    if (!process.listeners('exit').some((listener) => SHUTDOWN in listener))
      process.on(
        'exit',
        Object.assign(() => loaded.shutdown(), { [SHUTDOWN]: true }),
      );
  }
  return addon;
}

/** Starts an asynchronous native call; the promise settles when the device has got there. */
export function completion(start: (id: number) => void, keep: unknown): Promise<void> {
  native();
  const id = nextId++;
  // The error is made here, so that a rejection shows the caller's stack.
  const at = new DeviceError('');
  return new Promise((resolve, reject) => {
    pending.set(id, { resolve, reject, keep, at });
    try {
      start(id);
    } catch (e) {
      pending.delete(id);
      reject(e as Error);
    }
  });
}

/**
 * One native op by name. Its TypeScript signature is declared here, at its one use; native/op.h checks the count and
 * kind of the arguments against the C++ signature.
 */
export function op<A extends (number | boolean)[]>(name: string): (...args: A) => void {
  let f: ((...args: (number | boolean)[]) => void) | undefined;
  return (...args) => {
    f ??= native().ops[name];
    if (!f)
      throw new DeviceError(
        `the addon has no op ${name}; rebuild it with \`npm run build\``,
        'ERR_NATIVE',
      );
    f(...args);
  };
}

/** Memory that is about to be overwritten: clearing it first costs a tenth of a resize. */
function uncleared(bytes: number): ArrayBuffer {
  return Buffer.allocUnsafeSlow(bytes).buffer as ArrayBuffer;
}

/**
 * Resizes one uint8 image (height, width, channels) with the antialiased bilinear filter of PIL, bit for bit. Runs in
 * the calling thread and starts no device: meant for data-loading Workers.
 */
export function resizeImage(
  source: Uint8Array,
  height: number,
  width: number,
  channels: number,
  outHeight: number,
  outWidth: number,
): Uint8Array {
  const target = new Uint8Array(uncleared(outHeight * outWidth * channels));
  native().resizeImage(source, height, width, channels, target, outHeight, outWidth, 0);
  return target;
}

/**
 * How `resizeImageAsync` resizes: `pil-bilinear` and `pil-bicubic` are bit-identical to PIL on uint8; `two-point` is
 * TensorFlow's bilinear without antialiasing, truncated to uint8; `f32` is the antialiased bilinear filter with f32
 * results in [0, 255].
 */
export type ResizeMethod = 'pil-bilinear' | 'pil-bicubic' | 'two-point' | 'f32';
const RESIZE_METHODS: readonly ResizeMethod[] = ['pil-bilinear', 'pil-bicubic', 'two-point', 'f32'];

/**
 * Resizes one uint8 image (height, width, channels) on libuv's thread pool; the event loop stays free.
 * @param into what becomes the result, f32 for `f32` and uint8 otherwise; a new array when undefined
 */
export function resizeImageAsync(
  source: Uint8Array,
  height: number,
  width: number,
  channels: number,
  outHeight: number,
  outWidth: number,
  method: ResizeMethod,
  into?: Uint8Array | Float32Array,
): Promise<Uint8Array | Float32Array> {
  const n = outHeight * outWidth * channels;
  const target =
    into ?? (method === 'f32' ? new Float32Array(uncleared(4 * n)) : new Uint8Array(uncleared(n)));
  return new Promise((resolve, reject) => {
    native().resizeImage(
      source,
      height,
      width,
      channels,
      target,
      outHeight,
      outWidth,
      RESIZE_METHODS.indexOf(method),
      (error) => (error ? reject(new DeviceError(error)) : resolve(target)),
    );
  });
}

/**
 * Gives the memory of an array back at once; the array, and all others on its buffer, are empty afterwards. For large
 * arrays that nobody else can have: the collection of garbage comes late, and the next one would need new memory.
 */
export function releaseMemory(array: Uint8Array): void {
  if (array.byteLength > 0 && array.byteLength === array.buffer.byteLength) native().release(array);
}
