/**
 * The folder of a training run in place of a checkpoint, by one rule everywhere: it means the run's newest checkpoint, and
 * the folder of a run in stages that of its last stage.
 */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { CheckpointError } from '../errors.js';

/** In the folder of a run in stages: their names in order. */
export const STAGES_FILE = 'stages.json';

/** Checkpoint folders of a run, oldest first. */
export function listCheckpoints(out: string): string[] {
  const dir = join(out, 'checkpoints');
  if (!existsSync(dir)) return [];
  return readdirSync(dir)
    .filter((f) => /^step-\d{8}$/.test(f))
    .sort()
    .map((f) => join(dir, f));
}

/**
 * The checkpoint that a name means: of a run's folder the newest, of a run in stages that of the last stage that has one;
 * anything else, a checkpoint's folder, a file, a hub id, is itself.
 * @throws CheckpointError for the folder of a run that has none yet
 */
export function checkpointOf(source: string): string {
  if (typeof source !== 'string' || !statSync(source, { throwIfNoEntry: false })?.isDirectory())
    return source;
  const newest = listCheckpoints(source).at(-1) ?? stagesOf(source).at(-1);
  if (newest !== undefined) return newest;
  const isRun = (folder: string): boolean =>
    ['metrics.jsonl', STAGES_FILE, 'checkpoints'].some((name) => existsSync(join(folder, name)));
  if (
    isRun(source) ||
    (!existsSync(join(source, 'config.json')) &&
      readdirSync(source).some((name) => isRun(join(source, name))))
  )
    throw new CheckpointError(
      `${source}: is the folder of a training run that has no checkpoint yet; wait for its first one`,
    );
  return source;
}

/** Newest checkpoints of a recipe's stages, in the stages' order; where that is not known, in the order of their making. */
function stagesOf(folder: string): string[] {
  if (existsSync(join(folder, 'config.json'))) return [];
  const newest = new Map<string, string>();
  for (const { name } of readdirSync(folder, { withFileTypes: true }).filter((entry) =>
    entry.isDirectory(),
  )) {
    const checkpoint = listCheckpoints(join(folder, name)).at(-1);
    if (checkpoint !== undefined) newest.set(name, checkpoint);
  }
  const order = stageNames(folder);
  if (order.length > 0) return order.flatMap((name) => newest.get(name) ?? []);
  return [...newest.values()].sort((a, b) => statSync(a).mtimeMs - statSync(b).mtimeMs);
}

function stageNames(folder: string): string[] {
  try {
    const names: unknown = JSON.parse(readFileSync(join(folder, STAGES_FILE), 'utf8'));
    return Array.isArray(names) ? names.map(String) : [];
  } catch {
    return []; // a run of before there was such a file
  }
}
