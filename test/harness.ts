/**
 * One case table per op (test/ops/<op>.ts) and everything that is derived from it: forward against a float64
 * reference, gradients against finite differences of that reference, repeatability, guard zones, leaks.
 * bench/ops.ts times the same cases.
 */

import { native } from '../lib/native.js';
import { backward, noGrad, Param, requireGrad } from '../lib/tape.js';
import {
  type DeviceName,
  empty,
  liveCount,
  memory,
  scope,
  setDebug,
  type Tensor,
  type TensorData,
  tensor,
} from '../lib/tensor.js';

export interface Input {
  data: Float32Array | Uint8Array | Int32Array;
  shape: number[];
  /** 'input': an activation, its gradient is checked. 'param': a weight, gradient accumulated. 'data': no gradient. */
  kind: 'input' | 'param' | 'data';
}

export interface OpCase {
  name: string;
  inputs: Record<string, Input>;
  /** Runs the op; a scalar output named `loss` is differentiated as a loss. */
  run(t: Record<string, Tensor>): Record<string, Tensor>;
  /** The same outputs in float64, from the same inputs. */
  reference(v: Record<string, Float64Array>): Record<string, Float64Array>;
  /** Most normalised mean squared error of outputs; default 1e-11 for f32 and 2e-5 for bf16. */
  nmse?: number;
  /** The same for gradients; default 1e-9 and 2e-4. */
  gradNmse?: number;
  dtypes?: ('f32' | 'bf16')[];
  /** Whether gradients are checked; default true. */
  gradients?: boolean;
  /** Skipped where the device runs at a thousandth of a GPU's speed (cuda-host). */
  large?: boolean;
  /** Bytes that must move and floating-point operations, forward and backward, for the benchmark's roofline. */
  bytes?: { forward: number; backward: number };
  flops?: { forward: number; backward: number };
}

export interface OpTable {
  /** Native ops that the cases run: a device without one of them skips the table. */
  kernels: string[];
  cases: OpCase[];
  /** Real sizes, for bench/ops.ts. */
  bench?: () => OpCase[];
}

/** A small deterministic generator for test data (xorshift), uniform in [−1, 1). */
export function generator(seed: number): () => number {
  let x = (seed * 2654435761 + 88675123) >>> 0 || 1;
  return () => {
    x ^= x << 13;
    x >>>= 0;
    x ^= x >>> 17;
    x ^= x << 5;
    x >>>= 0;
    return x / 2 ** 31 - 1;
  };
}
/** Roughly normal values: the sum of three uniform ones. */
export function normal(n: number, seed: number, scale = 1): Float32Array {
  const r = generator(seed);
  return Float32Array.from({ length: n }, () => (r() + r() + r()) * scale);
}
export function input(
  shape: number[],
  seed: number,
  scale = 1,
  kind: Input['kind'] = 'input',
): Input {
  return {
    data: normal(
      shape.reduce((a, b) => a * b, 1),
      seed,
      scale,
    ),
    shape,
    kind,
  };
}
export const param = (shape: number[], seed: number, scale = 1): Input =>
  input(shape, seed, scale, 'param');

/** Σ(a−b)² / Σb²; absolute where the reference is zero. */
export function nmse(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let error = 0,
    norm = 0;
  for (let i = 0; i < b.length; i++) {
    const d = a[i]! - b[i]!;
    if (Number.isNaN(d)) return NaN;
    error += d * d;
    norm += b[i]! * b[i]!;
  }
  return a.length !== b.length ? NaN : norm > 0 ? error / norm : error;
}

const f32 = new Float32Array(1),
  u32 = new Uint32Array(f32.buffer);
/** Round to bfloat16, to nearest even; returns the 16-bit word. */
export function toBf16(v: number): number {
  f32[0] = v;
  return ((u32[0]! + 0x7fff + ((u32[0]! >>> 16) & 1)) >>> 16) & 0xffff;
}
export function fromBf16(w: number): number {
  u32[0] = (w << 16) >>> 0;
  return f32[0]!;
}
/** Host numbers of a tensor's data, bf16 widened. */
export function numbers(data: TensorData, dtype: string): Float64Array {
  return Float64Array.from(data, dtype === 'bf16' ? fromBf16 : (v) => v);
}

type Arrays = Record<string, Float64Array>;
interface Ran {
  outputs: Arrays;
  grads: Arrays;
  bits: Record<string, TensorData>;
}

/** Builds the inputs on the device, runs forward and (with cotangents) backward, reads everything back. */
export async function runCase(
  c: OpCase,
  device: DeviceName,
  dtype: 'f32' | 'bf16',
  cotangents?: Arrays,
): Promise<Ran> {
  const reads: [string, 'out' | 'grad', Tensor][] = [];
  const keep = scope(() => {
    const t: Record<string, Tensor> = {};
    for (const [name, x] of Object.entries(c.inputs)) {
      const half = dtype === 'bf16' && x.kind !== 'data';
      if (x.kind === 'param') {
        const p = new Param(
          native().allocate(device === 'cpu' ? 0 : 1, x.data.byteLength, 0),
          x.shape,
          'f32',
          device,
          name,
        );
        p.write(x.data);
        p.grad = tensor(new Float32Array(x.data.length).fill(0.5), x.shape, device);
        if (half) p.compute = tensor(Uint16Array.from(x.data, toBf16), x.shape, device);
        t[name] = p;
      } else {
        t[name] = tensor(
          half ? Uint16Array.from(x.data as Float32Array, toBf16) : x.data,
          x.shape,
          device,
        );
        if (x.kind === 'input') requireGrad(t[name]!);
      }
    }
    const outputs = cotangents ? c.run(t) : noGrad(() => c.run(t));
    for (const [name, y] of Object.entries(outputs)) reads.push([name, 'out', y]);
    if (cotangents) {
      const roots = Object.entries(outputs).flatMap(([name, y]): [Tensor, Tensor | number][] => {
        const w = cotangents[name];
        if (!w) return [];
        if (name === 'loss') return [[y, w[0]!]];
        return [
          [
            y,
            tensor(
              y.dtype === 'bf16' ? Uint16Array.from(w, toBf16) : Float32Array.from(w),
              y.shape,
              device,
            ),
          ],
        ];
      });
      const grads = backward(roots);
      for (const [name, x] of Object.entries(c.inputs)) {
        if (x.kind === 'param') reads.push([name, 'grad', (t[name] as Param).grad!]);
        const g = x.kind === 'input' && grads.get(t[name]!);
        if (g) reads.push([name, 'grad', g]);
      }
    }
    return reads.map((r) => r[2]);
  });
  const result: Ran = { outputs: {}, grads: {}, bits: {} };
  for (const [name, kind, t] of reads) {
    const data = await t.read();
    result.bits[`${kind} ${name}`] = data;
    const v = numbers(data, t.dtype);
    if (kind === 'out') result.outputs[name] = v;
    // Parameter gradients accumulate: they started at 0.5.
    else result.grads[name] = c.inputs[name]!.kind === 'param' ? v.map((g) => g - 0.5) : v;
  }
  for (const t of keep) t.dispose();
  return result;
}

const SAMPLES = 20;

/** All checks of one case; returns what is wrong, nothing when all is right. */
export async function checkCase(
  c: OpCase,
  device: DeviceName,
  dtype: 'f32' | 'bf16',
): Promise<string[]> {
  const wrong: string[] = [];
  const exact: Arrays = {};
  for (const [name, x] of Object.entries(c.inputs)) {
    // Activations and weight matrices are rounded to bf16 before use; vectors (bias, LayerNorm) stay f32.
    const rounded =
      dtype === 'bf16' && (x.kind === 'input' || (x.kind === 'param' && x.shape.length > 1));
    exact[name] = Float64Array.from(
      x.data as Float32Array,
      rounded ? (v: number) => fromBf16(toBf16(v)) : (v: number) => v,
    );
  }
  const want = c.reference(exact);
  const cotangents: Arrays = {};
  Object.entries(want).forEach(([name, y], i) => {
    cotangents[name] =
      name === 'loss'
        ? Float64Array.of(0.75)
        : Float64Array.from(
            normal(y.length, 900 + i),
            dtype === 'bf16' ? (v) => fromBf16(toBf16(v)) : (v) => v,
          );
  });
  const differentiate = c.gradients !== false;
  const before = { live: liveCount(), guards: memory(device).guardViolations };
  const got = await runCase(c, device, dtype, differentiate ? cotangents : undefined);

  const most = c.nmse ?? (dtype === 'f32' ? 1e-11 : 2e-5);
  for (const [name, y] of Object.entries(want)) {
    const e = nmse(got.outputs[name] ?? [], y);
    if (!(e <= most)) wrong.push(`${name}: error ${e.toExponential(2)} > ${most}`);
  }
  if (differentiate) {
    const objective = (v: Arrays): number =>
      Object.entries(c.reference(v)).reduce((sum, [name, y]) => {
        const w = cotangents[name]!;
        return sum + y.reduce((s, yi, i) => s + yi * w[i]!, 0);
      }, 0);
    const mostGrad = c.gradNmse ?? (dtype === 'f32' ? 1e-9 : 2e-4);
    const pick = generator(4242);
    for (const [name, g] of Object.entries(got.grads)) {
      const x = exact[name]!;
      const at =
        x.length <= SAMPLES
          ? [...x.keys()]
          : Array.from({ length: SAMPLES }, () => Math.floor(((pick() + 1) / 2) * x.length));
      const numeric = at.map((i) => {
        const v = x[i]!,
          h = 1e-4 * Math.max(1, Math.abs(v));
        x[i] = v + h;
        const up = objective(exact);
        x[i] = v - h;
        const down = objective(exact);
        x[i] = v;
        return (up - down) / (2 * h);
      });
      const e = nmse(
        at.map((i) => g[i]!),
        numeric,
      );
      if (!(e <= mostGrad)) wrong.push(`d${name}: error ${e.toExponential(2)} > ${mostGrad}`);
    }
    const missing = Object.entries(c.inputs).filter(([n, x]) => x.kind !== 'data' && !got.grads[n]);
    for (const [n] of missing) wrong.push(`d${n} was not computed`);
  }
  const again = await runCase(c, device, dtype, differentiate ? cotangents : undefined);
  for (const [name, data] of Object.entries(got.bits)) {
    const other = again.bits[name]!;
    if (
      !Buffer.from(data.buffer, data.byteOffset, data.byteLength).equals(
        Buffer.from(other.buffer, other.byteOffset, other.byteLength),
      )
    )
      wrong.push(`${name} differs between two runs`);
  }
  const after = memory(device).guardViolations;
  if (after !== before.guards)
    wrong.push(`${after - before.guards} tensors were written out of bounds`);
  if (liveCount() !== before.live) wrong.push(`${liveCount() - before.live} tensors leaked`);
  return wrong;
}

/** Poisoned memory and guard zones for the whole file; call once before the first tensor. */
export function debugDevice(device: DeviceName): void {
  setDebug(true, device);
  empty([1], 'f32', device).dispose();
}
