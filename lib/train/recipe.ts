/**
 * A recipe is one training config with named stages (SigLIP 2 §2): each stage is the config with its own changes, runs
 * in a folder of its own, and begins where it says: anew, at a position of an earlier stage (`from: 'base@80%'`), or at
 * any checkpoint folder.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { CheckpointError, ConfigError } from '../errors.js';
import { didYouMean } from '../model/config.js';
import { listCheckpoints, marksOf, stateOf } from './checkpoint.js';
import { checkTrainConfig, type TrainConfig, type TrainConfigInput } from './config.js';
import { checkRun } from './validate.js';

/** Changes to any field, however deep; null removes one. */
type Changes<T> = T extends readonly unknown[]
  ? T
  : T extends object
    ? { [K in keyof T]?: Changes<T[K]> | null }
    : T;
export type StageInput = Changes<Omit<TrainConfigInput, 'out' | 'start' | 'keepAt'>> & {
  /** `STAGE@POSITION` on the schedule, or the path of a checkpoint folder. */
  from?: string;
};
export type RecipeInput = TrainConfigInput & { stages: Record<string, StageInput> };

export interface Stage {
  name: string;
  from: string | undefined;
  /** Complete but for `start`. */
  config: TrainConfig;
}

const STAGE = /^[\w-]+$/;
const POSITION = /^([\w-]+)@(\d+(?:\.\d+)?%)$/;

/** Whether a config has stages. */
export function isStaged(value: unknown): boolean {
  return typeof value === 'object' && value !== null && 'stages' in value;
}

/**
 * The stages of a recipe in order, checked. A stage's folder is `out`/its name; its seed, unless given, is the recipe's
 * plus its number, so that stages see the data in different orders.
 * @throws ConfigError naming the stage and the field
 */
export function readStages(value: unknown): Stage[] {
  const { stages: given, ...base } = value as Record<string, unknown>;
  if (
    typeof given !== 'object' ||
    given === null ||
    Array.isArray(given) ||
    Object.keys(given).length === 0
  )
    throw new ConfigError('config: stages must be an object with at least one named stage');
  if (typeof base['out'] !== 'string')
    throw new ConfigError('config: out must be the folder of the run');
  const names = Object.keys(given),
    marks = new Map<string, string[]>(names.map((n) => [n, []]));
  names.forEach((name, i) => {
    if (!STAGE.test(name))
      throw new ConfigError(
        `config: stage names are letters, digits, _ and - but one is "${name}"`,
      );
    const from: unknown = (given as Record<string, { from?: unknown } | null>)[name]?.from;
    if (from !== undefined && typeof from !== 'string')
      throw new ConfigError(
        `config: stages.${name}.from must be STAGE@POSITION% or a folder but is ${JSON.stringify(from)}`,
      );
    if (from !== undefined && names.includes(from))
      throw new ConfigError(
        `config: stages.${name}.from is "${from}", a stage; say where in it, such as "${from}@100%"`,
      );
    const [, parent, position] = POSITION.exec(from ?? '') ?? [];
    if (parent === undefined) return;
    if (!names.slice(0, i).includes(parent)) {
      throw new ConfigError(
        `config: stages.${name}.from is "${from}" but no stage before it is called "${parent}"` +
          didYouMean(parent, names.slice(0, i)),
      );
    }
    marks.set(parent, [...new Set([...marks.get(parent)!, position!])]);
  });
  return names.map((name, i) => {
    const { from, ...changes } = Object((given as Record<string, unknown>)[name]) as {
      from?: string;
    };
    for (const key of ['out', 'start', 'keepAt'])
      if (key in changes)
        throw new ConfigError(
          `config: stages.${name}.${key} cannot be set; it follows from the stages`,
        );
    const seed = Number(base['seed'] ?? 0) + i;
    const fixed = { out: join(base['out'] as string, name), keepAt: marks.get(name)! };
    const merged = { ...merge({ ...base, seed }, changes), ...fixed };
    try {
      return { name, from, config: checkTrainConfig(merged) };
    } catch (error) {
      throw error instanceof ConfigError
        ? new ConfigError(`stage ${name}: ${error.message}`, { cause: error })
        : error;
    }
  });
}

/** `base` with `changes` merged into it, objects field by field; what becomes null is removed. */
function merge(base: unknown, changes: unknown): Record<string, unknown> {
  const plain = (x: unknown): x is Record<string, unknown> =>
    typeof x === 'object' && x !== null && !Array.isArray(x);
  const result = { ...(plain(base) ? base : {}) };
  for (const [key, value] of Object.entries(changes as object)) {
    if (value === null) delete result[key];
    else result[key] = plain(value) ? merge(result[key], value) : (value as unknown);
  }
  return result;
}

/**
 * Finds before any stage is trained what would stop one of those that are not finished.
 * @throws ConfigError or CheckpointError naming the stage
 */
export function checkStages(stages: readonly Stage[]): void {
  for (const { name, from, config } of stages) {
    const progress = stageProgress(config.out);
    if (progress === 'new' && from !== undefined && !POSITION.test(from) && !existsSync(from))
      throw new CheckpointError(
        `stage ${name} begins at ${from}, which does not exist; give STAGE@POSITION% or the ` +
          'folder of a checkpoint',
      );
    try {
      if (progress !== 'finished') checkRun(config);
    } catch (error) {
      throw error instanceof ConfigError
        ? new ConfigError(`stage ${name}: ${error.message}`, { cause: error })
        : error;
    }
  }
}

/** How far a stage is, by its newest checkpoint that can be read. */
export function stageProgress(out: string): 'new' | 'begun' | 'finished' {
  const all = listCheckpoints(out);
  for (const folder of all.reverse()) {
    try {
      const { step, totalSteps } = stateOf(folder);
      return step >= totalSteps ? 'finished' : 'begun';
    } catch (error) {
      // One that is cut is no end of the run: resuming goes on from the one before.
      if (!(error instanceof CheckpointError)) throw error;
    }
  }
  return all.length > 0 ? 'begun' : 'new';
}

/**
 * A stage's config with the checkpoint that it begins with.
 * @throws CheckpointError when the stage it begins at has not come so far
 */
export function withStart({ name, from, config }: Stage, stages: readonly Stage[]): TrainConfig {
  if (from === undefined) return config;
  const [, parent, position] = POSITION.exec(from) ?? [];
  if (parent === undefined) return { ...config, start: from };
  const { out } = stages.find((s) => s.name === parent)!.config;
  const folder = listCheckpoints(out).find((f) => marksOf(f).includes(position!));
  if (!folder) {
    throw new CheckpointError(
      `stage ${name} begins at ${from} but ${join(out, 'checkpoints')} holds no checkpoint of ` +
        `${position}; train stage ${parent} anew with this config`,
    );
  }
  return { ...config, start: folder };
}
