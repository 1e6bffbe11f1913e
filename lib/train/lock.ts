/** One process at a time trains into a folder: two would replace each other's checkpoints and mix their metrics. */
import { createHash } from 'node:crypto';
import { realpathSync } from 'node:fs';
import { createServer } from 'node:net';
import { basename, dirname, join, resolve } from 'node:path';
import { CheckpointError } from '../errors.js';
import { cleanFolder, errorCode } from '../fs/files.js';

/** The path without symbolic links, the same whether its last parts are there yet or not. */
function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    const parent = dirname(path);
    return parent === path ? path : join(realPath(parent), basename(path));
  }
}

/**
 * Takes a run's folder for this process, and removes what killed ones left half-written in it. The lock is a socket in
 * Linux' abstract namespace, which the kernel frees with the process however it ends, so there is nothing stale to
 * judge; it holds within one machine. Elsewhere, and where sockets are forbidden, there is none.
 * @returns gives the folder back
 * @throws CheckpointError when somebody is training into it
 */
export async function lockRun(out: string): Promise<() => void> {
  if (process.platform !== 'linux') return () => undefined;
  const name = createHash('sha256')
    .update(realPath(resolve(out)))
    .digest('hex')
    .slice(0, 32);
  const server = createServer();
  const code = await new Promise<string | undefined>((done) => {
    server.once('error', (error) => done(errorCode(error) ?? ''));
    server.listen(`\0siglip2-${name}`, () => done(undefined));
  });
  if (code === 'EADDRINUSE')
    throw new CheckpointError(
      `${out}: another process is training into this folder; wait until it ends, or choose ` +
        'another out',
    );
  if (code !== undefined) return () => undefined;
  server.unref();
  try {
    for (const folder of [out, join(out, 'checkpoints')]) await cleanFolder(folder);
  } catch (error) {
    server.close();
    throw error;
  }
  return () => server.close();
}
