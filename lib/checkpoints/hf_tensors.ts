/** Whether tensors are those of a model. */
import { CheckpointError } from '../errors.js';
import { isSmallFloat, smallFloat } from '../io/foreign.js';
import type { Dtype, TensorInfo } from '../io/safetensors.js';
import type { ModelConfig } from '../model/config.js';
import { parameterShapes } from '../model/shapes.js';

/** Parameters that only training uses; readers of the two towers pass over them. */
const TRAINING_ONLY = /^ssl\./;

const FLOATS: readonly Dtype[] = ['F32', 'F16', 'BF16', 'F64'];

/** @param names of all tensors of the file @throws CheckpointError unless the tensor has a floating-point type that is read here */
export function checkFloat(
  path: string,
  { name, dtype }: Pick<TensorInfo, 'name' | 'dtype'>,
  names: Iterable<string>,
): void {
  if (FLOATS.includes(dtype)) return;
  throw new CheckpointError(
    `${path}: tensor "${name}" ` +
      (isSmallFloat(dtype)
        ? `is ${dtype}: ${smallFloat(path, names)}`
        : `must be floating-point but is ${dtype}`),
  );
}

/**
 * Proves that tensors are those of a config: none missing, none more, right shapes, floating-point.
 * `position_ids` of older exports and parameters of training alone are passed over; a scalar passes for a vector of one.
 *
 * @throws CheckpointError naming the file and the tensor.
 */
export function checkTensors(
  path: string,
  config: ModelConfig,
  tensors: ReadonlyMap<string, Pick<TensorInfo, 'shape' | 'dtype'>>,
): void {
  const shapes = parameterShapes(config);
  for (const { name, shape } of shapes) {
    const tensor = tensors.get(name);
    if (tensor === undefined) {
      throw new CheckpointError(
        `${path}: holds no tensor "${name}", which ${config.name} needs; ` +
          'is it a checkpoint of another model?',
      );
    }
    const scalar = shape.length === 1 && shape[0] === 1 && tensor.shape.length === 0;
    if (!scalar && shape.join() !== tensor.shape.join()) {
      throw new CheckpointError(
        `${path}: tensor "${name}" must be [${shape.join(', ')}] but is ` +
          `[${tensor.shape.join(', ')}]; the config is of another model`,
      );
    }
    checkFloat(path, { ...tensor, name }, tensors.keys());
  }
  const known = new Set(shapes.map(({ name }) => name));
  for (const name of tensors.keys()) {
    if (!known.has(name) && !name.endsWith('.position_ids') && !TRAINING_ONLY.test(name)) {
      throw new CheckpointError(
        `${path}: tensor "${name}" belongs to no ${config.name}; is it a ` +
          'checkpoint of another model?',
      );
    }
  }
}
