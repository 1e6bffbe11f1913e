/** The one error sentence of shape checks: `layerNorm: weight must be [768] but is [1024]`. */
import { ShapeError } from './errors.js';
import type { DType, Tensor } from './tensor.js';

/** Throws ShapeError unless `x` has exactly this shape. */
export function checkShape(op: string, name: string, x: Tensor, shape: readonly number[]): void {
  if (x.shape.length === shape.length && shape.every((n, i) => n === x.shape[i])) return;
  throw new ShapeError(`${op}: ${name} must be [${shape.join(', ')}] but is [${x.shape.join(', ')}]`);
}

/** Throws ShapeError unless `x` has `rank` axes. */
export function checkRank(op: string, name: string, x: Tensor, rank: number): void {
  if (x.shape.length !== rank)
    throw new ShapeError(`${op}: ${name} must have ${rank} axes but is [${x.shape.join(', ')}]`);
}

/** Throws ShapeError unless `x` is of one of these element types. */
export function checkDType(op: string, name: string, x: Tensor, ...dtypes: DType[]): void {
  if (!dtypes.includes(x.dtype)) throw new ShapeError(`${op}: ${name} must be ${dtypes.join(' or ')} but is ${x.dtype}`);
}

/** Throws ShapeError with `op: what` unless the condition holds. */
export function check(condition: boolean, op: string, what: string): asserts condition {
  if (!condition) throw new ShapeError(`${op}: ${what}`);
}
