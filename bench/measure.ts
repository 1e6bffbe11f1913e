/** Timing shared by the benchmarks: medians of tinybench, and the two ceilings of a roofline measured in the same run. */
import { appendFileSync, readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { Bench } from 'tinybench';
import { native } from '../lib/native.js';
import { scale } from '../lib/ops/elementwise.js';
import { linear } from '../lib/ops/linear.js';
import { noGrad } from '../lib/tape.js';
import { type DeviceName, deviceName, scope, synchronize, zeros } from '../lib/tensor.js';

/** Times of one call, in seconds, the device's work included. */
export interface Timing {
  median: number;
  max: number;
  /** Calls that were timed. */
  n: number;
  /** Left out where there are fewer than 20: it would be the largest. */
  p95?: number;
}

export function timing(seconds: readonly number[]): Timing {
  const sorted = seconds.slice().sort((a, b) => a - b),
    n = sorted.length;
  const at = (q: number): number => sorted[Math.floor(q * (n - 1))] ?? NaN;
  return { median: at(0.5), max: at(1), n, ...(n < 20 ? {} : { p95: at(0.95) }) };
}

export async function time(
  fn: () => void,
  device: DeviceName,
  milliseconds = 600,
): Promise<Timing> {
  const bench = new Bench({
    time: milliseconds,
    warmupTime: milliseconds / 4,
    warmupIterations: 2,
    iterations: 5,
  });
  bench.add('x', async () => {
    scope(() => {
      fn();
    }); // nothing that fn returns stays
    await synchronize(device);
  });
  await bench.run();
  const result = bench.tasks[0]!.result;
  if (!('latency' in result)) throw new Error('the benchmark was aborted');
  return timing((result.latency.samples ?? [result.latency.mean]).map((ms) => ms / 1000));
}

/** FLOP/s of the device library's own matrix product: the best of three shapes that the model uses. */
export async function matmulRate(
  device: DeviceName,
  dtype: 'f32' | 'bf16',
  tokens = 2048,
): Promise<number> {
  let best = 0;
  for (const [M, N, K] of [
    [tokens, 3072, 768],
    [tokens, 768, 3072],
    [1024, 1024, 1024],
  ] as const) {
    const x = zeros([M, K], dtype, device),
      w = zeros([N, K], dtype, device);
    const { median } = await time(() => noGrad(() => linear(x, w, null)), device);
    best = Math.max(best, (2 * M * N * K) / median);
    x.dispose();
    w.dispose();
  }
  return best;
}

/** Bytes per second of a copy far larger than the caches. */
export async function copyRate(device: DeviceName): Promise<number> {
  const n = 1 << 26,
    x = zeros([n], 'f32', device);
  const { median } = await time(() => noGrad(() => scale(x, 1)), device);
  x.dispose();
  return (8 * n) / median;
}

/**
 * Most resident memory of this program, in bytes; rusage's figure would include what the process was before it became
 * this one.
 */
export function peakMemory(): number {
  return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024;
}

/** Of an odd number of values; NaN of none. */
export function median(values: readonly number[]): number {
  return values.slice().sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;
}

/** What a figure needs beside it to mean something later. */
export function circumstances(device: DeviceName): Record<string, string | number> {
  const { isa, threads, onednn } = native().buildInfo();
  return {
    device: deviceName(device),
    cpu: cpus()[0]?.model.trim() ?? '',
    threads,
    isa,
    onednn,
    node: process.versions.node,
    date: new Date().toISOString().slice(0, 10),
  };
}

/** Appends one JSON line to a results file. */
export function save(file: string | undefined, record: object): void {
  if (file) appendFileSync(file, `${JSON.stringify(record)}\n`);
}
