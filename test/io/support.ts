/** Checkpoints made by PyTorch, with the results they must give; for tests of loading and exporting. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { script } from '../../bench/peers/pytorch/peer.js';
import { hfJson, toHfConfig } from '../../lib/checkpoints/hf_config.js';
import { openSafetensors } from '../../lib/io/safetensors.js';
import { type ModelConfig, modelConfig } from '../../lib/model/config.js';
import { answer } from '../oracle.js';

/** A small model with every size different, so that no two axes can be confused. */
export function smallConfig(overrides: Parameters<typeof modelConfig>[1] = {}): ModelConfig {
  return modelConfig('test', {
    name: 'small/8',
    vocab: 61,
    ...overrides,
    vision: {
      width: 24,
      depth: 3,
      heads: 4,
      mlp: 40,
      patch: 8,
      imageSize: 32,
      ...overrides.vision,
    },
    text: { width: 16, depth: 2, heads: 2, mlp: 36, length: 12, ...overrides.text },
    embed: 24,
  });
}

/** What checkpoints.py is asked for. */
export interface Job {
  out: string;
  config: ModelConfig;
  layout: 'hf' | 'flax';
  dtype?: 'F32' | 'F16' | 'BF16';
  shards?: number;
  perLayer?: boolean;
  compressed?: boolean;
  noPrefix?: boolean;
}

/**
 * Checkpoints that PyTorch and NumPy made, one process for all of them, for its start takes longest; adds config.json to
 * those of `hf`.
 */
export function makeCheckpoints(name: string, jobs: readonly Job[]): void {
  for (const { out } of jobs) mkdirSync(out, { recursive: true });
  const file = join(jobs[0]!.out, 'jobs.json');
  writeFileSync(file, JSON.stringify(jobs));
  const made = ({ layout, shards = 1 }: Job): string[] =>
    layout === 'flax'
      ? ['model.npz']
      : shards === 1
        ? ['model.safetensors']
        : [
            'model.safetensors.index.json',
            ...Array.from(
              { length: shards },
              (_, i) => `model-0000${i + 1}-of-0000${shards}.safetensors`,
            ),
          ];
  const writes = jobs.flatMap((job) =>
    [...made(job), 'inputs.safetensors', 'expected.safetensors'].map((f) => join(job.out, f)),
  );
  answer(name, { args: [script('checkpoints.py'), file], writes });
  for (const { out, layout, config } of jobs)
    if (layout === 'hf') writeFileSync(join(out, 'config.json'), hfJson(toHfConfig(config)));
}

/** All tensors of a file as typed arrays. */
export async function arraysOf(
  path: string,
): Promise<Record<string, { shape: number[]; data: Float32Array | Int32Array | Uint8Array }>> {
  const reader = await openSafetensors(path);
  const out: Awaited<ReturnType<typeof arraysOf>> = {};
  for (const { name, dtype, shape } of reader.tensors.values()) {
    const bytes = await reader.read(name);
    const data =
      dtype === 'U8'
        ? bytes
        : dtype === 'I32'
          ? new Int32Array(bytes.buffer)
          : new Float32Array(bytes.buffer);
    out[name] = { shape: [...shape], data };
  }
  await reader.close();
  return out;
}

/** The largest difference of two arrays. */
export function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Infinity;
  let worst = 0;
  for (let i = 0; i < a.length; i++) worst = Math.max(worst, Math.abs(a[i]! - b[i]!));
  return worst;
}

/** ‖a − b‖ / ‖b‖. */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let error = 0,
    norm = 0;
  for (let i = 0; i < b.length; i++) {
    error += (a[i]! - b[i]!) ** 2;
    norm += b[i]! ** 2;
  }
  return Math.sqrt(error / norm);
}
