/** Tells a machine that lacks memory, descriptors or a sound disk from a bad file: its images are sound. */
import { DataError, IoError, Siglip2Error } from '../errors.js';

/** What the system says when the fault is the machine's. */
const WANTS = new Set([
  'EAGAIN',
  'EDQUOT',
  'EIO',
  'EMFILE',
  'ENFILE',
  'ENOBUFS',
  'ENOMEM',
  'ENOSPC',
  'EREMOTEIO',
  'ESTALE',
  'ERR_MEMORY',
  'ERR_MEMORY_ALLOCATION_FAILED',
]);
/** The same in the words of libvips and V8, which give no codes. */
const WORDS: readonly (readonly [RegExp, string])[] = [
  [/too many open files/i, 'EMFILE'],
  [/no space left on device/i, 'ENOSPC'],
  [/disk quota exceeded/i, 'EDQUOT'],
  [/input\/output error/i, 'EIO'],
  [/resource temporarily unavailable|creating thread/i, 'EAGAIN'],
  [/out of memory -+ size ==|array buffer allocation failed/i, 'ENOMEM'],
];
/** What decoders of single formats say of a failed allocation, and of a damaged file that asks for senseless ones too. */
const DOUBTFUL = /out of memory|(not enough|insufficient|allocate) memory/i;
/** Less than a photograph takes: a machine that cannot give it lacks memory whatever a file asks for. */
const PROBE_BYTES = 2 ** 26;

function lacksMemory(): boolean {
  try {
    return new ArrayBuffer(PROBE_BYTES).byteLength === 0;
  } catch {
    return true;
  }
}

/** The errors that an error came from, itself first. */
function* causes(error: unknown): Generator<Error> {
  for (
    let e = error, depth = 0;
    typeof e === 'object' && e !== null && depth < 8;
    e = (e as Error).cause, depth++
  ) {
    yield e as Error;
    if (Array.isArray((e as AggregateError).errors)) yield* (e as AggregateError).errors as Error[];
  }
}

/**
 * The error that says what the machine lacks, if that is what an error came from: a cause with a system's code, or with
 * ERR_MEMORY. Undefined when it may be the fault of a file.
 */
export function exhausted(error: unknown): Error | undefined {
  for (const cause of causes(error)) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== undefined && WANTS.has(code)) return cause;
  }
  return undefined;
}

/**
 * Whether an error says that one image or file cannot be used, so that work on others may go on: it is missing or damaged, or may
 * not be read. Not when the machine lacks something, for then others would be lost without a fault of theirs.
 */
export function isBadFile(error: unknown): error is DataError | IoError {
  return (error instanceof DataError || error instanceof IoError) && !exhausted(error);
}

/** The error for an image that could not be decoded for want of something, by its true name; undefined when it is damaged. */
export function wantError(name: string, cause: unknown): Siglip2Error | undefined {
  const message = (cause as Error).message.replace(/\s+/g, ' ').trim();
  const code =
    (exhausted(cause) as NodeJS.ErrnoException | undefined)?.code ??
    WORDS.find(([words]) => words.test(message))?.[1] ??
    (DOUBTFUL.test(message) && lacksMemory() ? 'ENOMEM' : undefined);
  if (code === undefined) return undefined;
  if (/MEM/.test(code))
    return new Siglip2Error(
      'ERR_MEMORY',
      `${name}: there is not enough memory to decode the image (${message}); free some, or ` +
        'let fewer be decoded at once with UV_THREADPOOL_SIZE',
      { cause },
    );
  return new IoError(`${name}: the machine lacks what it takes to decode the image: ${message}`, {
    cause: Object.assign(new Error(message, { cause }), { code }),
  });
}
