/** Stable error codes; every error of the package carries one. */
export type ErrorCode =
  | 'ERR_SHAPE'
  | 'ERR_DTYPE'
  | 'ERR_DEVICE'
  | 'ERR_MEMORY'
  | 'ERR_DISPOSED'
  | 'ERR_NATIVE'
  | 'ERR_CONFIG'
  | 'ERR_DATA'
  | 'ERR_CHECKPOINT'
  | 'ERR_IO';

/**
 * The base of every error this package throws. `message` is one sentence: what was expected, what came, what to do.
 * `code` is stable across versions; `cause` keeps the underlying error.
 */
export class Siglip2Error extends Error {
  constructor(
    readonly code: ErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** Shapes or dtypes of an op's arguments do not fit together. */
export class ShapeError extends Siglip2Error {
  constructor(message: string) {
    super('ERR_SHAPE', message);
  }
}
/** A config has an unknown key, a wrong type or a value out of range. */
export class ConfigError extends Siglip2Error {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_CONFIG', message, options);
  }
}
/** A data set, shard, image or caption is missing or damaged; the message names the file. */
export class DataError extends Siglip2Error {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_DATA', message, options);
  }
}
/** A checkpoint is missing, damaged, or does not fit the model. */
export class CheckpointError extends Siglip2Error {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_CHECKPOINT', message, options);
  }
}
/** A file cannot be read or written; the message names it. Nothing half-written is left behind. */
export class IoError extends Siglip2Error {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_IO', message, options);
  }
}
/** The device, the addon or a kernel failed. */
export class DeviceError extends Siglip2Error {
  constructor(message: string, code: ErrorCode = 'ERR_DEVICE') {
    super(code, message);
  }
}
