/** Which parameters of a run are frozen: they keep their bits, and get no gradient, no moments and no decay. */
import { ConfigError } from '../errors.js';
import { didYouMean, type ModelConfig } from '../model/config.js';
import { parameterShapes } from '../model/shapes.js';
import { Siglip2Model } from '../model/siglip2.js';
import type { DeviceName } from '../tensor.js';
import type { TrainConfig } from './config.js';
import { objectiveShapes } from './objectives.js';

/** Matches a parameter whose name is the pattern or begins with it and a dot; `*` stands for any characters. */
function matcher(pattern: string): RegExp {
  const parts = pattern
    .replace(/\.$/, '')
    .split('*')
    .map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'));
  return new RegExp(`^${parts.join('.*')}(\\.|$)`);
}

/** `a.b.c` → a, a.b, a.b.c */
function beginnings(name: string): string[] {
  const parts = name.split('.');
  return parts.map((_, i) => parts.slice(0, i + 1).join('.'));
}

/**
 * The names that `freeze` names, and those whose learning rate `optimizer.lrScale` makes 0.
 * @param names of all parameters
 * @throws ConfigError when a pattern fits none, or none is left to train
 */
export function frozenNames(
  { freeze, optimizer: { lrScale } }: Pick<TrainConfig, 'freeze' | 'optimizer'>,
  names: readonly string[],
): ReadonlySet<string> {
  const frozen = new Set<string>();
  for (const pattern of freeze) {
    const fits = matcher(pattern),
      found = names.filter((name) => fits.test(name));
    if (found.length === 0) {
      const known = [...new Set(names.flatMap(beginnings))];
      const roots = known.filter((name) => !name.includes('.'));
      throw new ConfigError(
        `freeze: no parameter is called or begins with "${pattern}"${didYouMean(pattern, known)}; ` +
          `the names begin with ${roots.join(', ')}`,
      );
    }
    for (const name of found) frozen.add(name);
  }
  // As the optimizer does it: the first key that is part of the name.
  for (const name of names)
    if (Object.entries(lrScale).find(([part]) => name.includes(part))?.[1] === 0) frozen.add(name);
  if (frozen.size === names.length)
    throw new ConfigError(
      'freeze: every parameter is frozen, so there is nothing to train; leave something out',
    );
  return frozen;
}

/**
 * The model of a run, with its objectives' parameters and what is frozen.
 * @param shape of the model
 * @throws ConfigError
 */
export function trainedModel(
  config: TrainConfig,
  shape: ModelConfig,
  device: DeviceName,
  dtype: 'f32' | 'bf16',
): Siglip2Model {
  const extra = objectiveShapes(config.objectives, shape);
  const names = [...parameterShapes(shape), ...extra].map(({ name }) => name);
  return new Siglip2Model(shape, {
    device,
    dtype,
    train: true,
    checkpoint: config.checkpointBlocks,
    extra,
    frozen: frozenNames(config, names),
  });
}
