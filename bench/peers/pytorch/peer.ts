/**
 * Runs the PyTorch peer (`step.py`, `grads.py`, `naflex.py`) from Node: finds a Python with PyTorch, gives it
 * the fastest environment it can have, and talks to it line by line.
 */

import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { ModelConfig } from '../../../lib/model/config.js';

/** Folder of the Python files, seen from dist/bench/peers/pytorch. */
const FOLDER = fileURLToPath(new URL('../../../../bench/peers/pytorch/', import.meta.url));

/** Path of one of the peer's Python files. */
export function script(
  name: 'checkpoints.py' | 'gpu_kernels.py' | 'decoder.py' | 'grads.py' | 'naflex.py' | 'step.py',
): string {
  return join(FOLDER, name);
}

/**
 * Environment that is fair to PyTorch. An OpenBLAS on OpenMP shares PyTorch's own threads; the one
 * on pthreads, Debian's default, fights with them for the cores and makes small models about half
 * as fast. Keeping freed memory avoids a page fault for every large temporary. Variables that steer
 * OpenBLAS's choice of kernels are dropped.
 */
export function peerEnvironment(): NodeJS.ProcessEnv {
  const { OPENBLAS_CORETYPE: _core, OPENBLAS_L2_SIZE: _l2, ...rest } = process.env;
  const environment: NodeJS.ProcessEnv = {
    ...rest,
    MALLOC_MMAP_MAX_: '0',
    MALLOC_TRIM_THRESHOLD_: '100000000000',
    PYTHONDONTWRITEBYTECODE: '1',
  };
  const folders = existsSync('/usr/lib') ? readdirSync('/usr/lib') : [];
  const blas = folders
    .map((name) => `/usr/lib/${name}/openblas-openmp`)
    .filter((path) => existsSync(path));
  if (blas.length > 0) {
    const paths = [...blas, process.env.LD_LIBRARY_PATH ?? ''];
    environment.LD_LIBRARY_PATH = paths.filter(Boolean).join(':');
  }
  return environment;
}

let python: string | null | undefined;

/**
 * A Python that can import PyTorch >= 1.12 and numpy, or undefined (install Debian's python3-torch
 * and libopenblas0-openmp, or set SIGLIP2_PYTHON). Debian's own interpreter is tried before the one
 * on the PATH, because only that one sees Debian's packages.
 */
export function findPython(): string | undefined {
  if (python === undefined) {
    const candidates = [process.env.SIGLIP2_PYTHON, '/usr/bin/python3', 'python3'];
    python =
      candidates.find((candidate) => {
        if (candidate === undefined) return false;
        try {
          execFileSync(candidate, ['-c', 'import numpy, torch; torch._foreach_norm'], {
            stdio: 'ignore',
            env: peerEnvironment(),
            timeout: 60_000,
          });
          return true;
        } catch {
          return false;
        }
      }) ?? null;
  }
  return python ?? undefined;
}

/** What the peer says when it is ready. */
export interface PeerInfo {
  torch: string;
  /** Folder and file name of the BLAS in use. */
  blas: string;
  threads: number;
  /** Its own rate on a 1024-cubed f32 product, GFLOP/s. */
  matmulGflops: number;
  parameters: number;
  /** Loss of the first step. */
  loss: number;
}

/** Time of some steps; `loss` is that of the last one. */
export interface PeerTiming {
  steps: number;
  seconds: number;
  imagesPerSecond: number;
  loss: number;
}

/** Training steps of one model in PyTorch, on demand. Close it when done. */
export class TorchStep {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  readonly #errors: () => string;

  private constructor(
    child: ChildProcessWithoutNullStreams,
    lines: AsyncIterator<string>,
    errors: () => string,
    readonly info: PeerInfo,
  ) {
    this.#child = child;
    this.#lines = lines;
    this.#errors = errors;
  }

  /** Starts the peer and waits until it has done one step. Throws when there is no PyTorch. */
  static async start(config: ModelConfig, batch: number, threads: number): Promise<TorchStep> {
    const interpreter = findPython();
    if (interpreter === undefined) {
      throw new Error(
        'no Python with PyTorch found; install python3-torch and ' +
          'libopenblas0-openmp, or set SIGLIP2_PYTHON',
      );
    }
    const folder = mkdtempSync(join(tmpdir(), 'siglip2-peer-'));
    try {
      const path = join(folder, 'model.json');
      writeFileSync(path, JSON.stringify(config));
      const child = spawn(
        interpreter,
        [script('step.py'), '--config', path, '--batch', `${batch}`, '--threads', `${threads}`],
        { env: { ...peerEnvironment(), OMP_NUM_THREADS: String(threads) } },
      );
      let errors = '';
      child.stderr.setEncoding('utf8').on('data', (text: string) => {
        errors += text;
      });
      // A peer that dies is reported by the missing answer; the broken pipe itself is no news.
      child.stdin.on('error', () => undefined);
      const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
      const info = await nextAnswer<PeerInfo>(lines, () => errors);
      return new TorchStep(child, lines, () => errors, info);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }

  /** Does `steps` training steps. */
  async run(steps: number): Promise<PeerTiming> {
    this.#child.stdin.write(`run ${steps}\n`);
    return nextAnswer(this.#lines, this.#errors);
  }

  /** Measures the peer's matrix product again, GFLOP/s. */
  async matmul(): Promise<number> {
    this.#child.stdin.write('matmul\n');
    return (await nextAnswer<{ matmulGflops: number }>(this.#lines, this.#errors)).matmulGflops;
  }

  /** Ends the process and waits for it. */
  async close(): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once('close', resolve));
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.stdin.end();
    await ended;
  }
}

async function nextAnswer<T>(lines: AsyncIterator<string>, errors: () => string): Promise<T> {
  const { value, done } = await lines.next();
  if (done) {
    const last = errors().trim().split('\n').slice(-3).join(' | ');
    throw new Error(`the PyTorch peer ended: ${last}`);
  }
  const answer = JSON.parse(value) as T & { error?: string };
  if (answer.error !== undefined) throw new Error(`the PyTorch peer says: ${answer.error}`);
  return answer;
}
