/**
 * Files and folders that are either wholly new or wholly old, never half-written.
 *
 * Everything is written beside its destination, flushed to the disk, and moved into place by
 * rename, which POSIX makes atomic within a file system. Every failure is an IoError that names the
 * file and a remedy.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readFileSync,
  rmSync,
  type Stats,
} from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { access, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { DataError, IoError, Siglip2Error } from '../errors.js';

/** What `writeFileAtomic` takes: bytes, text (as UTF-8), or chunks pulled one at a time. */
export type Chunks = Uint8Array | string | Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

/** Largest single write; bounds what the kernel copies at once without slowing long files. */
const WRITE_BYTES = 2 ** 26;

let serial = 0;

/** Of this process: in containers every process has the number 1, and Workers share one. */
const mine = randomBytes(8).toString('hex');

/** A hidden sibling of `path` that no other process and no other call uses. */
export function temporary(path: string): string {
  return join(dirname(path), `.${basename(path)}.tmp-${mine}-${serial++}`);
}

/** What a draft that was left behind by a killed process was to become; undefined for other names. */
export function draftTarget(name: string): string | undefined {
  return /^\.(.+)\.tmp-[\da-f]+-\d+$/.exec(name)?.[1];
}

const drafts = new Set<string>();

/**
 * Removes a file or folder that is being written when the process exits before `settleDraft`, by `process.exit` say;
 * not when a signal kills it.
 */
export function trackDraft(path: string): void {
  if (drafts.size === 0) process.once('exit', removeDrafts);
  drafts.add(path);
}

/** The draft is in place, or gone. */
export function settleDraft(path: string): void {
  drafts.delete(path);
  if (drafts.size === 0) process.off('exit', removeDrafts);
}

function removeDrafts(): void {
  for (const path of drafts) rmSync(path, { recursive: true, force: true });
}

/** The hidden sibling that holds the previous folder while `writeFolderAtomic` swaps. */
function previous(path: string): string {
  return join(dirname(path), `.${basename(path)}.previous`);
}

/** The `code` of a system error (ENOENT, ENOSPC, ...), if it has one. */
export function errorCode(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null | undefined)?.code;
  return typeof code === 'string' ? code : undefined;
}

const REMEDIES: Record<string, string> = {
  ENOSPC: 'the disk is full; free some space or choose another folder',
  EDQUOT: 'the disk quota is used up; free some space or choose another folder',
  EFBIG: 'the file system allows no file of this size; choose another folder',
  EACCES: 'permission is denied; check the rights of the file and its folder',
  EPERM: 'permission is denied; check the rights of the file and its folder',
  EROFS: 'the file system is read-only; choose another folder',
  ENOENT: 'it does not exist; check the path',
  ENOTDIR: 'a part of the path is a file and not a folder; check the path',
  EEXIST: 'a part of the path is a file and not a folder; check the path',
  EISDIR: 'it is a folder and not a file; check the path',
  ENAMETOOLONG: 'the name is too long; choose a shorter one',
  EMFILE: 'too many files are open; raise the limit (ulimit -n)',
  EIO: 'the disk reports an error; check the device',
};

/**
 * The IoError for a failed action on a file: `cannot write x: the disk is full; ... (ENOSPC)`.
 * Errors of this package and aborts pass through as they are, for they already say what happened.
 */
export function ioError(action: string, path: string, cause: unknown): unknown {
  const aborted = (cause as Error | undefined)?.name === 'AbortError';
  if (cause instanceof Siglip2Error || aborted) return cause;
  return new IoError(`cannot ${action} ${path}: ${reasonOf(cause)}`, { cause });
}

/** What a system error means and what to do about it: `the disk is full; free some space … (ENOSPC)`. */
export function reasonOf(cause: unknown): string {
  const code = errorCode(cause);
  const reason = REMEDIES[code ?? ''] ?? (cause as Error | undefined)?.message ?? String(cause);
  return `${reason}${code === undefined ? '' : ` (${code})`}`;
}

/** Makes a folder and those around it; throws the system's error. */
async function makeFolders(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true });
  } catch (error) {
    // Of a read-only file system Node says that the folder does not exist: the nearest that does knows better.
    let there = dirname(folder);
    while (!(await exists(there))) there = dirname(there);
    await access(there, constants.W_OK);
    throw error;
  }
}

/**
 * Makes a folder for output, and those around it, unless it is there.
 * @throws IoError naming it
 */
export async function makeFolder(path: string): Promise<void> {
  await makeFolders(resolve(path)).catch((error: unknown) => {
    throw ioError('write', path, error);
  });
}

/**
 * Makes the folder of a file that is to be written, for work so long that its end is no time to learn of a wrong path.
 * @throws IoError when the file cannot be written
 */
export async function prepareToWrite(path: string): Promise<void> {
  const target = resolve(path);
  try {
    await makeFolders(dirname(target));
    await access(dirname(target), constants.W_OK);
    if ((await stat(target).catch(() => undefined))?.isDirectory())
      throw Object.assign(new Error(), { code: 'EISDIR' });
  } catch (error) {
    throw ioError('write', path, error);
  }
}

async function writeAll(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.byteLength; ) {
    const size = Math.min(bytes.byteLength - at, WRITE_BYTES);
    at += (await handle.write(bytes, at, size, null)).bytesWritten;
  }
}

async function writeChunks(handle: FileHandle, chunks: Chunks): Promise<void> {
  if (typeof chunks === 'string') await writeAll(handle, Buffer.from(chunks));
  else if (ArrayBuffer.isView(chunks)) await writeAll(handle, chunks);
  else for await (const chunk of chunks) await writeAll(handle, chunk);
}

/**
 * Makes a rename in `folder` durable. Some network file systems and Windows cannot, and need not.
 */
async function syncFolder(folder: string): Promise<void> {
  try {
    const handle = await open(folder, constants.O_RDONLY);
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    const harmless = ['EINVAL', 'EPERM', 'EACCES', 'EISDIR', 'ENOTSUP'];
    if (!harmless.includes(errorCode(error) ?? '')) throw error;
  }
}

/**
 * Writes a file so that a reader, a crash or a full disk never sees half of it. Missing folders of
 * the path are made. Chunks are pulled one at a time, so a producer may refill the buffer it
 * yielded.
 *
 * @throws IoError naming the file, the cause and a remedy; the old file is then untouched and
 *   nothing is left behind. An error of this package thrown by the producer passes through.
 */
export async function writeFileAtomic(path: string, chunks: Chunks): Promise<void> {
  const target = resolve(path);
  const draft = temporary(target);
  try {
    await makeFolders(dirname(target));
    const handle = await open(draft, 'wx');
    trackDraft(draft);
    try {
      await writeChunks(handle, chunks);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(draft, target);
    await syncFolder(dirname(target));
  } catch (error) {
    await rm(draft, { force: true }).catch(() => undefined);
    throw ioError('write', path, error);
  } finally {
    settleDraft(draft);
  }
}

/** Flushes every file and folder below `folder`, deepest first, and the folder itself. */
async function syncTree(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) await syncTree(path);
    else if (entry.isFile()) {
      const handle = await open(path, constants.O_RDONLY);
      try {
        await handle.sync();
      } finally {
        await handle.close();
      }
    }
  }
  await syncFolder(folder);
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    (error: unknown) => {
      if (['ENOENT', 'ENOTDIR'].includes(errorCode(error) ?? '')) return false;
      throw error;
    },
  );
}

/**
 * Finishes or undoes a folder swap that a crash interrupted: brings the previous folder back if
 * there is no new one, removes it otherwise. Call it before reading a folder that
 * `writeFolderAtomic` writes.
 *
 * @throws IoError when the folder cannot be moved.
 */
export async function recoverFolder(path: string): Promise<void> {
  const target = resolve(path);
  try {
    if (!(await exists(previous(target)))) return;
    if (await exists(target)) await rm(previous(target), { recursive: true, force: true });
    else await rename(previous(target), target);
  } catch (error) {
    throw ioError('recover', path, error);
  }
}

/**
 * Replaces a folder by one that `build` fills. `build` gets an empty folder beside the destination;
 * when it is done everything is flushed, the previous folder steps aside, the new one takes its
 * place, and only then is the previous one removed. If the process dies between the two renames,
 * `recoverFolder` (called here and before reading) brings the previous one back.
 *
 * @throws IoError naming the folder, the cause and a remedy, or whatever error of this package
 *   `build` threw; the previous folder is then in place, unchanged; nothing else is left behind.
 */
export async function writeFolderAtomic(
  path: string,
  build: (temporaryFolder: string) => Promise<void>,
): Promise<void> {
  const target = resolve(path);
  const draft = temporary(target);
  const old = previous(target);
  try {
    await recoverFolder(target);
    trackDraft(draft);
    await makeFolders(draft);
    await build(draft);
    await syncTree(draft);
    const replacing = await exists(target);
    if (replacing) await rename(target, old);
    try {
      await rename(draft, target);
    } catch (error) {
      if (replacing) await rename(old, target);
      throw error;
    }
    await syncFolder(dirname(target));
    if (replacing) await rm(old, { recursive: true, force: true });
  } catch (error) {
    await rm(draft, { recursive: true, force: true }).catch(() => undefined);
    throw ioError('write', path, error);
  } finally {
    settleDraft(draft);
  }
}

/**
 * Removes what is left in a folder of files and folders whose writing was killed, and finishes
 * interrupted swaps. Only for a folder that nobody else writes to at the time; one that does not
 * exist is clean.
 * @throws IoError naming what cannot be removed
 */
export async function cleanFolder(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => []);
  for (const name of names) {
    const path = join(folder, name),
      [, swapped] = /^\.(.+)\.previous$/.exec(name) ?? [];
    if (swapped !== undefined) await recoverFolder(join(folder, swapped));
    else if (draftTarget(name) !== undefined)
      await rm(path, { recursive: true, force: true }).catch((error: unknown) => {
        throw ioError('remove', path, error);
      });
  }
}

/** Pipes that are open already, by the shell's `<(…)` say: opening these waits for nobody. */
const OPENED = /^\/(dev\/(stdin|fd\/\d+)|proc\/self\/fd\/\d+)$/;
/** Opening a pipe without a writer would wait for one, and with it a thread that the process waits for at its end. */
const TO_READ = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0);

function checkInput(info: Stats): void {
  if (info.isFile() || info.isDirectory()) return;
  throw new Error(
    `it is ${info.isFIFO() ? 'a named pipe' : info.isSocket() ? 'a socket' : 'a device'} and not a regular ` +
      'file; write what it gives into a file first',
  );
}

/**
 * Opens a file that a user named for reading. Throws the system's error, or one like it for `ioError` when the file is a
 * named pipe, a socket or a device.
 */
export async function openInput(path: string): Promise<FileHandle> {
  if (OPENED.test(path)) return open(path, constants.O_RDONLY);
  const handle = await open(path, TO_READ);
  try {
    checkInput(await handle.stat());
    return handle;
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** The same at once; returns the descriptor. */
export function openInputSync(path: string): number {
  if (OPENED.test(path)) return openSync(path, constants.O_RDONLY);
  const fd = openSync(path, TO_READ);
  try {
    checkInput(fstatSync(fd));
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** The bytes of such a file; throws as `openInput` does. */
export async function readInput(path: string): Promise<Buffer> {
  const handle = await openInput(path);
  try {
    return await handle.readFile();
  } finally {
    await handle.close();
  }
}

/**
 * Reads a whole file of at most `maxBytes` bytes (1 GiB unless told), so that a wrong path cannot
 * fill the memory.
 *
 * @throws IoError when the file is missing, is no regular file, is larger, or cannot be read.
 */
export async function readFileLimited(path: string, maxBytes = 2 ** 30): Promise<Buffer> {
  try {
    const handle = await openInput(path);
    try {
      const info = await handle.stat();
      if (!info.isFile()) {
        throw new IoError(`cannot read ${path}: it is not a regular file; check the path`);
      }
      if (info.size > maxBytes) {
        throw new IoError(
          `cannot read ${path}: it has ${info.size} bytes but at most ` +
            `${maxBytes} are expected; check that it is the right file`,
        );
      }
      return await handle.readFile();
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw ioError('read', path, error);
  }
}

/**
 * Reads a UTF-8 text file of at most `maxBytes` bytes (64 MiB unless told).
 * @throws IoError as `readFileLimited`, and when the bytes are not UTF-8.
 */
export async function readTextLimited(path: string, maxBytes = 2 ** 26): Promise<string> {
  const bytes = await readFileLimited(path, maxBytes);
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new IoError(
      `cannot read ${path}: it is not UTF-8 text; check that it is the right file`,
      { cause },
    );
  }
}

/**
 * Turns a file-system error into a DataError (the file is missing) or an IoError (everything else).
 * @param doing what was being tried, as a verb: "read", "write"
 */
export function fileError(cause: unknown, doing: string, file: string): Siglip2Error {
  if (cause instanceof Siglip2Error) return cause;
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  if (code === 'ENOENT' || code === 'ENOTDIR') {
    const reason =
      code === 'ENOENT'
        ? 'there is no such file'
        : 'it, or a part of its path, is a file and no folder';
    return new DataError(`cannot ${doing} ${file}: ${reason}; check the path`, { cause });
  }
  return ioError(doing, file, cause) as Siglip2Error;
}

/** All bytes of a file. Throws DataError or IoError naming it. */
export function readWhole(file: string): Buffer {
  try {
    const fd = openInputSync(file);
    try {
      return readFileSync(fd);
    } finally {
      closeSync(fd);
    }
  } catch (cause) {
    throw fileError(cause, 'read', file);
  }
}

/**
 * A parsed JSON file. Throws DataError when it is missing or not JSON, IoError when it cannot be
 * read.
 */
export function readJson(file: string): unknown {
  const text = new TextDecoder().decode(readWhole(file));
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new DataError(`${file}: not valid JSON: ${(cause as Error).message}`, { cause });
  }
}
