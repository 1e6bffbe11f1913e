/**
 * Beginning a stage of training where another one stands (SigLIP 2 §2.3, §2.4): weights go over, adapted to another
 * resolution, patch or NaFlex; so do Adam's moments, the moving average and the teacher's centres. What the new stage
 * adds keeps its initial values; what it adds, changes in shape or trains where it was frozen gets fresh moments with a step
 * count of their own.
 */

import { loadHfFolder } from '../checkpoints/hf.js';
import { checkpointOf } from '../checkpoints/run.js';
import { CheckpointError } from '../errors.js';
import type { TensorReader } from '../io/safetensors.js';
import { adaptTensors, type HostTensor } from '../model/adapt.js';
import type { Siglip2Model } from '../model/siglip2.js';
import type { AdamW } from '../optim/optimizer.js';
import { loadTrainState, type TrainState } from './checkpoint.js';

/** What a stage takes over. */
export interface Inheritance {
  state: TrainState;
  /** Weights by name, for the new model. */
  weights: Map<string, HostTensor>;
  /** Moving average of the weights; null when the checkpoint has none. */
  average: Map<string, HostTensor> | null;
  /** m and v by name, of the parameters that stay as they are. */
  moments: { m: Map<string, Float32Array>; v: Map<string, Float32Array> };
  /** The teacher's centres, if there was one. */
  centres: Map<string, Float32Array>;
  /** For `AdamWOptions.since`: updates done before a parameter joined. */
  since: Record<string, number>;
}

/**
 * Reads a checkpoint for a model of another stage.
 * @param folder of the checkpoint, or of a run, which means its newest
 * @param fresh parameters whose name begins with it may be missing from the checkpoint
 * @throws CheckpointError, ConfigError when more than the resolution differs
 */
export async function readInheritance(
  folder: string,
  model: Siglip2Model,
  fresh: string,
): Promise<Inheritance> {
  const { state, tensors: arenas } = await loadTrainState((folder = checkpointOf(folder)));
  const from = await loadHfFolder(folder);
  let old: Map<string, HostTensor>;
  try {
    old = await readAll(from.reader);
  } finally {
    await from.reader.close();
  }
  const weights = adaptTensors(old, from.config, model.config),
    since = { ...state.since };
  const parts = (
    arena: Float32Array | undefined,
    layout = state.layout,
  ): Map<string, Float32Array> =>
    new Map(
      layout.map(([name, offset, size]) => [
        name,
        arena?.subarray(offset, offset + size) ?? new Float32Array(size),
      ]),
    );
  const centres = new Map([...arenas].filter(([name]) => name.endsWith('_centre')));
  const taught = model.params.shapes.some(
    ({ name }) => name.startsWith('ssl.') && weights.has(name),
  );
  if (taught && (!arenas.has('ema') || centres.size === 0)) {
    throw new CheckpointError(
      `${folder} has self-distillation heads but no teacher; begin with a checkpoint whose ` +
        'training_state.safetensors has "ema" and the centres, or with one of before self-distillation',
    );
  }
  const moments = { m: parts(arenas.get('m')), v: parts(arenas.get('v')) };
  for (const { name, shape } of model.params.shapes) {
    const there = weights.get(name);
    if (there ? there.shape.join() !== shape.join() : !name.startsWith(fresh)) {
      throw new CheckpointError(
        `${folder}: tensor "${name}" is ${there ? `[${there.shape.join(', ')}]` : 'missing'} but this ` +
          `stage needs [${shape.join(', ')}]; begin with a checkpoint of the same model`,
      );
    }
    if (there && there.data === old.get(name)?.data && moments.m.has(name)) continue;
    since[name] = state.optimizerStep;
    moments.m.delete(name);
    moments.v.delete(name);
  }
  return {
    state,
    weights,
    moments,
    since,
    average: arenas.has('ema')
      ? adaptTensors(
          shaped(parts(arenas.get('ema'), state.averageLayout), old),
          from.config,
          model.config,
        )
      : null,
    centres,
  };
}

/** Puts what was read into the new stage's model and optimizer, whose options must have `since`. */
export function takeOver(from: Inheritance, model: Siglip2Model, optimizer: AdamW): void {
  const { params } = model;
  for (const { name, shape } of params.shapes) {
    const weight = from.weights.get(name);
    if (weight) params.write(name, weight.data);
    const { trained } = params.segment(name),
      size = shape.reduce((a, b) => a * b, 1);
    const put = (arena: typeof optimizer.m, data: Float32Array | undefined): void => {
      if (!data || trained === null) return;
      const view = arena.view(trained, [size]);
      view.write(data);
      view.dispose();
    };
    put(optimizer.m, from.moments.m.get(name));
    put(optimizer.v, from.moments.v.get(name));
  }
  params.refreshCopy();
  optimizer.step = from.state.optimizerStep;
  optimizer.resetEma();
  if (!optimizer.ema || !from.average) return;
  for (const { name } of params.shapes) {
    const average = from.average.get(name);
    if (!average) continue;
    const view = optimizer.ema.view(params.segment(name).offset, [average.data.length]);
    view.write(average.data);
    view.dispose();
  }
}

async function readAll(reader: TensorReader): Promise<Map<string, HostTensor>> {
  const all = new Map<string, HostTensor>();
  for (const [name, { shape }] of reader.tensors)
    all.set(name, { shape, data: await reader.readFloat32(name) });
  return all;
}

function shaped(
  values: ReadonlyMap<string, Float32Array>,
  like: ReadonlyMap<string, HostTensor>,
): Map<string, HostTensor> {
  return new Map(
    [...values].map(([name, data]) => [
      name,
      { data, shape: like.get(name)?.shape ?? [data.length] },
    ]),
  );
}
