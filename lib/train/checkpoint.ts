/**
 * A checkpoint is a folder that Hugging Face tools open (config.json, model.safetensors, tokenizer and preprocessor
 * files) plus what exact continuation needs (training_state.*). It is written aside and renamed, so a crash leaves the
 * previous one; the newest is the one with the highest step.
 */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CheckpointError } from '../errors.js';
import { writeFileAtomic, writeFolderAtomic } from '../io/files.js';
import { openSafetensors, writeSafetensors } from '../io/safetensors.js';
import type { AdamW } from './optimizer.js';

/** Everything beside tensors that a run continues from. */
export interface TrainState {
  version: 1;
  step: number;
  examples: number;
  optimizerStep: number;
  /** The sampler's position; opaque here. */
  loader: unknown;
  seconds: number;
}

/** Folder of the checkpoint at a step. */
export function checkpointFolder(out: string, step: number): string {
  return join(out, 'checkpoints', `step-${String(step).padStart(8, '0')}`);
}

/** Checkpoint folders of a run, oldest first. */
export function listCheckpoints(out: string): string[] {
  const dir = join(out, 'checkpoints');
  if (!existsSync(dir)) return [];
  return readdirSync(dir).filter((f) => /^step-\d{8}$/.test(f)).sort().map((f) => join(dir, f));
}

/**
 * Writes a checkpoint atomically; `writeModel` fills the folder with the model's own files.
 * @throws IoError naming the file (a full disk, say); the run's earlier checkpoints are untouched
 */
export async function saveCheckpoint(out: string, state: TrainState, optimizer: AdamW, keep: number,
  writeModel: (folder: string) => Promise<void>): Promise<string> {
  const folder = checkpointFolder(out, state.step);
  const moments = await optimizer.read();
  await writeFolderAtomic(folder, async (tmp) => {
    await writeModel(tmp);
    await writeSafetensors(join(tmp, 'training_state.safetensors'),
      [...moments].map(([name, data]) => ({ name, dtype: 'F32' as const, shape: [data.length], data })));
    await writeFileAtomic(join(tmp, 'training_state.json'), `${JSON.stringify(state, null, 2)}\n`);
  });
  for (const old of listCheckpoints(out).slice(0, -keep)) rmSync(old, { recursive: true, force: true });
  return folder;
}

/** Reads a checkpoint's training state. Throws CheckpointError naming the file. */
export async function loadTrainState(folder: string): Promise<{ state: TrainState; moments: Map<string, Float32Array> }> {
  const path = join(folder, 'training_state.json');
  let state: TrainState;
  try {
    state = JSON.parse(await readFile(path, 'utf8')) as TrainState;
  } catch (cause) {
    throw new CheckpointError(`${path}: cannot be read (${(cause as Error).message}); choose a checkpoint written by training`, { cause });
  }
  if (state.version !== 1 || !Number.isSafeInteger(state.step) || !Number.isSafeInteger(state.optimizerStep))
    throw new CheckpointError(`${path}: is not a training state of this version`);
  const reader = await openSafetensors(join(folder, 'training_state.safetensors'));
  const moments = new Map<string, Float32Array>();
  try {
    for (const name of reader.tensors.keys()) moments.set(name, await reader.readFloat32(name));
  } finally {
    await reader.close();
  }
  return { state, moments };
}
