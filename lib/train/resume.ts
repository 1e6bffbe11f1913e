/**
 * Continuing a run: from its newest checkpoint that can be read, and with what it was begun with. The training state
 * knows samples by their number and the optimizer's moments by their place, so other data would be taken for the old ones.
 */
import { renameSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { loadHfFolder } from '../checkpoints/hf.js';
import type { CollectionMark } from '../data/fingerprint.js';
import { CheckpointError, Siglip2Error } from '../errors.js';
import { openSafetensors } from '../io/safetensors.js';
import { multiplierAt, runSchedule } from '../optim/schedule.js';
import { listCheckpoints, stateOf, type TrainState } from './checkpoint.js';
import { type TrainConfig, trainConfigSchema } from './config.js';

/** What of a run must be as it was, or is said when it is not. */
export interface RunFacts {
  config: TrainConfig;
  /** What `dtype: auto` became. */
  dtype: 'f32' | 'bf16';
  collection: CollectionMark;
}

/** Reads what there is to read of a checkpoint but the values. Throws CheckpointError naming the file. */
async function checkCheckpoint(folder: string): Promise<void> {
  const { layout } = stateOf(folder),
    state = await openSafetensors(join(folder, 'training_state.safetensors'));
  await state.close();
  for (const name of ['m', 'v'])
    if (layout.length > 0 && !state.tensors.has(name))
      throw new CheckpointError(
        `${join(folder, 'training_state.safetensors')}: has no tensor "${name}"`,
      );
  const { reader } = await loadHfFolder(folder);
  await reader.close();
}

/**
 * The newest checkpoint of a run that is whole; those after it that are not, cut by a full disk or a copy say, are put
 * aside under another name. undefined when there is none at all.
 * @param note gets what is wrong with each, and where the run goes on
 * @throws CheckpointError when none is whole; IoError when the disk says no
 */
export async function newestCheckpoint(
  out: string,
  note: (message: string) => void,
): Promise<string | undefined> {
  const damaged: [folder: string, error: Error][] = [],
    all = listCheckpoints(out);
  for (const folder of all.reverse()) {
    try {
      await checkCheckpoint(folder);
    } catch (error) {
      // What the system says of a file that is there, EACCES or EIO say, is no damage.
      const { errno, code } = Object((error as Error).cause) as NodeJS.ErrnoException;
      if (!(error instanceof Siglip2Error) || (errno !== undefined && code !== 'ENOENT'))
        throw error;
      damaged.push([folder, error]);
      continue;
    }
    for (const [other, error] of damaged) {
      const aside = join(dirname(other), `damaged-${basename(other)}-${Date.now()}`);
      renameSync(other, aside);
      note(
        `${error.message}; that checkpoint is now ${aside}, and the run goes on from step ` +
          `${stateOf(folder).step}, ${folder}`,
      );
    }
    return folder;
  }
  if (damaged.length === 0) return undefined;
  throw new CheckpointError(
    `none of the ${damaged.length} checkpoints in ${join(out, 'checkpoints')} can be read: ` +
      `${damaged[0]![1].message}; start again in another folder`,
    { cause: damaged[0]![1] },
  );
}

/** Settings that change neither what is computed nor what is said of it. */
const FREE = [
  'out',
  'device',
  'start',
  'logEvery',
  'checkpointEvery',
  'keepCheckpoints',
  'keepAt',
  'graph',
  'checkpointBlocks',
  'microBatch',
  'dtype',
  'total',
  'data.source',
  'data.workers',
  'data.cacheBytes',
  'data.maxSkips',
  'data.timeoutMs',
];
/** Settings by which the batches to come would be others than those the run would have had. */
const DATA = ['seed', 'batch', 'data.captions', 'data.noise', 'data.uniqueClasses'];

/** Paths at which two JSON values differ, objects field by field, with both values. */
function differences(
  before: unknown,
  now: unknown,
  path = '',
): [path: string, before: unknown, now: unknown][] {
  if (JSON.stringify(before) === JSON.stringify(now)) return [];
  const plain = (x: unknown): x is Record<string, unknown> =>
    typeof x === 'object' && x !== null && !Array.isArray(x);
  if (!plain(before) || !plain(now) || DATA.includes(path) || FREE.includes(path))
    return [[path, before, now]];
  return [...new Set([...Object.keys(before), ...Object.keys(now)])].flatMap((key) =>
    differences(before[key], now[key], path ? `${path}.${key}` : key),
  );
}

function listed(changes: readonly [path: string, before: unknown, now: unknown][]): string {
  const show = (value: unknown): string =>
    value === undefined ? 'nothing' : JSON.stringify(value);
  return changes.map(([path, before, now]) => `${path} ${show(before)} → ${show(now)}`).join(', ');
}

/**
 * Compares a run with the one that a checkpoint is of.
 * @param accept go on with other data all the same
 * @returns whether the data are the same; otherwise no position among them has a meaning
 * @throws CheckpointError when data or captions differ, or what is frozen
 */
export function checkResumed(
  folder: string,
  state: TrainState,
  now: RunFacts,
  accept: boolean,
  note: (message: string) => void,
): boolean {
  const said: string[] = [],
    { collection: then } = state;
  // With the defaults of keys that an earlier version did not have.
  const old = state.config && trainConfigSchema.safeParse(state.config),
    before = old?.success ? old.data : state.config;
  const changes = before ? differences(before, JSON.parse(JSON.stringify(now.config))) : [];
  if (then) {
    const { samples, keys, captions } = now.collection;
    if (then.keys !== keys)
      said.push(
        `the samples are not those, or not in the order, of before (${then.samples} then, ${samples} now)`,
      );
    else if (then.captions !== captions)
      said.push('the captions, their languages or classes are others than before');
  } else note(`${folder} does not say what data it was trained on; they are taken to be the same`);
  const ofData = changes.filter(([path]) => DATA.includes(path));
  if (ofData.length > 0) said.push(`changed: ${listed(ofData)}`);
  if (said.length > 0 && !accept) {
    throw new CheckpointError(
      `${folder}: ${said.join('; ')}; resume with the data and settings the run was begun with, or ` +
        'go on from the next epoch with --accept-changes',
    );
  }
  if (said.length > 0) note(`accepted: ${said.join('; ')}; the run goes on with the next epoch`);
  const others: typeof changes = changes.filter(
    ([path]) => !FREE.includes(path) && !DATA.includes(path),
  );
  if (state.dtype && state.dtype !== now.dtype) others.push(['dtype', state.dtype, now.dtype]);
  if (others.length > 0) note(`changed since the checkpoint: ${listed(others)}`);
  noteSchedule(state, now, note);
  return said.length === 0;
}

/** Says when the schedule is another one, which moves the learning rate. */
function noteSchedule(
  { config, collection, step, totalSteps }: TrainState,
  now: RunFacts,
  note: (message: string) => void,
): void {
  const run = runSchedule(now.config, now.collection.samples);
  if (run.totalSteps === totalSteps) return;
  const rate = (of: TrainConfig, samples: number): string =>
    String(Number((of.optimizer.lr * multiplierAt(runSchedule(of, samples), step)).toPrecision(3)));
  const before = config && collection ? ` instead of ${rate(config, collection.samples)}` : '';
  note(
    `the run has ${run.totalSteps} steps and had ${totalSteps}, which moves the schedule: the learning rate goes on at ` +
      `${rate(now.config, now.collection.samples)}${before}`,
  );
}

/**
 * Compares the places of the optimizer's moments.
 * @throws CheckpointError naming a parameter that is trained now and was not, or the other way
 */
export function checkLayout(
  folder: string,
  before: TrainState['layout'],
  now: TrainState['layout'],
): void {
  const [had, have] = [before, now].map((layout) => new Set(layout.map(([name]) => name))) as [
    Set<string>,
    Set<string>,
  ];
  const thawed = [...have].find((name) => !had.has(name)),
    frozen = [...had].find((name) => !have.has(name));
  if (thawed === undefined && frozen === undefined) return;
  throw new CheckpointError(
    `${folder}: ${thawed ?? frozen} was ${thawed === undefined ? '' : 'not '}trained before and is ` +
      `${thawed === undefined ? 'not ' : ''}now; resume with the model, objectives and freeze that the run was begun with, ` +
      `or begin another run with start: ${JSON.stringify(folder)}`,
  );
}

/** Throws CheckpointError when a run that is not resumed has checkpoints already. */
export function checkNew(out: string): void {
  const newest = listCheckpoints(out).at(-1);
  if (newest)
    throw new CheckpointError(
      `${out} already holds a run (${newest}); continue it with --resume, or choose another out`,
    );
}
