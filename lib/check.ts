/** Error sentences of argument checks, such as `layerNorm: weight must be [768] but is [1024]`. */
import { ConfigError, ShapeError } from './errors.js';
import type { DType, Tensor } from './tensor.js';

/** Throws ShapeError unless `x` has exactly this shape. */
export function checkShape(op: string, name: string, x: Tensor, shape: readonly number[]): void {
  if (x.shape.length === shape.length && shape.every((n, i) => n === x.shape[i])) return;
  throw new ShapeError(
    `${op}: ${name} must be [${shape.join(', ')}] but is [${x.shape.join(', ')}]`,
  );
}

/** Throws ShapeError unless `x` has `rank` axes. */
export function checkRank(op: string, name: string, x: Tensor, rank: number): void {
  if (x.shape.length !== rank)
    throw new ShapeError(`${op}: ${name} must have ${rank} axes but is [${x.shape.join(', ')}]`);
}

/** Throws ShapeError unless `x` is of one of these element types. */
export function checkDType(op: string, name: string, x: Tensor, ...dtypes: DType[]): void {
  if (!dtypes.includes(x.dtype))
    throw new ShapeError(`${op}: ${name} must be ${dtypes.join(' or ')} but is ${x.dtype}`);
}

/** The length of x's last axis and the number of rows along it. Throws ShapeError unless there is one, longer than 0. */
export function checkColumns(op: string, x: Tensor): [columns: number, rows: number] {
  const columns = x.shape.at(-1) ?? 0;
  if (columns === 0)
    throw new ShapeError(
      `${op}: x must have values along its last axis but is [${x.shape.join(', ')}]`,
    );
  return [columns, x.size / columns];
}

/** Throws ShapeError with `op: what` unless the condition holds. */
export function check(condition: boolean, op: string, what: string): asserts condition {
  if (!condition) throw new ShapeError(`${op}: ${what}`);
}

/** What a value is, in one word, for errors about a wrong one. */
export function kindOf(value: unknown): string {
  if (value === null || typeof value !== 'object')
    return typeof value === 'object' ? 'null' : typeof value;
  return Array.isArray(value) ? 'an array' : (value.constructor?.name ?? 'an object');
}

/**
 * Throws ConfigError unless `options` is an object whose keys are among `keys`.
 * @param why the end of the sentence about an unknown key; by default it lists those there are
 */
export function checkKeys(
  call: string,
  options: object,
  keys: readonly string[],
  why: (key: string) => string | undefined = () => undefined,
): void {
  if (typeof options !== 'object' || options === null || Array.isArray(options))
    throw new ConfigError(
      `${call}: the options must be an object such as { ${keys[0]}: … } but are ` + kindOf(options),
    );
  const unknown = Object.keys(options).find((key) => !keys.includes(key));
  if (unknown !== undefined)
    throw new ConfigError(
      `${call}: unknown option "${unknown}"` +
        (why(unknown) ?? `; the options are ${keys.join(', ')}`),
    );
}

/** The object without the keys whose value is undefined. */
export function definedOnly<T extends object>(o: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(o).filter(([, v]) => v !== undefined)) as never;
}
