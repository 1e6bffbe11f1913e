/**
 * A checkpoint is a folder that Hugging Face tools open (config.json, model.safetensors, tokenizer and preprocessor
 * files) plus what exact continuation needs (training_state.*). It is written aside and renamed, so a crash leaves the
 * previous one; the newest is the one with the highest step.
 */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { listCheckpoints } from '../checkpoints/run.js';
import type { CollectionMark } from '../data/fingerprint.js';
import { CheckpointError } from '../errors.js';
import { writeFileAtomic, writeFolderAtomic } from '../fs/files.js';
import { openSafetensors, writeSafetensors } from '../io/safetensors.js';
import type { AdamW } from '../optim/optimizer.js';
import type { TrainConfig } from './config.js';

export { listCheckpoints };

/** Everything beside tensors that a run continues from. */
export interface TrainState {
  version: 2;
  step: number;
  examples: number;
  optimizerStep: number;
  /** Length of the run in steps. */
  totalSteps: number;
  /** Positions of `keepAt` that this checkpoint stands for; it is never removed then. */
  marks: string[];
  /** `AdamWOptions.since`. */
  since: Record<string, number>;
  /** Where each trained parameter lies in the optimizer's moments, in elements. */
  layout: [name: string, offset: number, size: number][];
  /** The sampler's position; opaque here. */
  loader: unknown;
  seconds: number;
  /** Where each parameter lies in the moving average; `layout` where nothing is frozen. */
  averageLayout?: TrainState['layout'];
  /** What the run was trained on and with; earlier versions did not say. */
  collection?: CollectionMark;
  config?: TrainConfig;
  dtype?: 'f32' | 'bf16';
}

/** Folder of the checkpoint at a step. */
export function checkpointFolder(out: string, step: number): string {
  return join(out, 'checkpoints', `step-${String(step).padStart(8, '0')}`);
}

/**
 * Writes a checkpoint atomically; `writeModel` fills the folder with the model's own files.
 * @param keep how many checkpoints without marks remain
 * @param more tensors beside the optimizer's
 * @throws IoError naming the file (a full disk, say); the run's earlier checkpoints are untouched
 */
export async function saveCheckpoint(
  out: string,
  state: TrainState,
  optimizer: AdamW,
  keep: number,
  more: ReadonlyMap<string, Float32Array>,
  writeModel: (folder: string) => Promise<void>,
): Promise<string> {
  const folder = checkpointFolder(out, state.step);
  const tensors = new Map([...(await optimizer.read()), ...more]);
  await writeFolderAtomic(folder, async (tmp) => {
    await writeModel(tmp);
    await writeSafetensors(
      join(tmp, 'training_state.safetensors'),
      [...tensors].map(([name, data]) => ({
        name,
        dtype: 'F32' as const,
        shape: [data.length],
        data,
      })),
    );
    await writeFileAtomic(join(tmp, 'training_state.json'), `${JSON.stringify(state, null, 2)}\n`);
  });
  const passing = listCheckpoints(out).filter((f) => marksOf(f).length === 0);
  for (const old of passing.slice(0, -keep)) rmSync(old, { recursive: true, force: true });
  return folder;
}

/** A checkpoint's state without its tensors. Throws CheckpointError naming the file. */
export function stateOf(folder: string): TrainState {
  const path = join(folder, 'training_state.json');
  let state: TrainState;
  try {
    state = JSON.parse(readFileSync(path, 'utf8')) as TrainState;
  } catch (cause) {
    throw new CheckpointError(
      `${path}: cannot be read (${(cause as Error).message}); choose a checkpoint written by training`,
      { cause },
    );
  }
  if (
    state.version !== 2 ||
    !Number.isSafeInteger(state.step) ||
    !Number.isSafeInteger(state.optimizerStep) ||
    !Array.isArray(state.layout) ||
    !Array.isArray(state.marks)
  )
    throw new CheckpointError(`${path}: is not a training state of this version`);
  return state;
}

/** The marks of a checkpoint; none when its state cannot be read. */
export function marksOf(folder: string): string[] {
  try {
    return stateOf(folder).marks;
  } catch {
    return [];
  }
}

/** Reads a checkpoint's training state. Throws CheckpointError naming the file. */
export async function loadTrainState(
  folder: string,
): Promise<{ state: TrainState; tensors: Map<string, Float32Array> }> {
  const state = stateOf(folder);
  const reader = await openSafetensors(join(folder, 'training_state.safetensors'));
  const tensors = new Map<string, Float32Array>();
  try {
    for (const name of reader.tensors.keys()) tensors.set(name, await reader.readFloat32(name));
  } finally {
    await reader.close();
  }
  return { state, tensors };
}
