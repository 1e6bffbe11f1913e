/** Runs code in a Node process of its own, with its own number of compute threads. */
import { spawnSync } from 'node:child_process';

/** The standard output of an ES module with this source; `lib/…` in its imports is the compiled library. */
export function outputWithThreads(threads: number, source: string): string {
  const lib = new URL('../lib/', import.meta.url).href;
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', source.replaceAll("'lib/", `'${lib}`)],
    { env: { ...process.env, SIGLIP2_THREADS: String(threads), NODE_OPTIONS: '' }, encoding: 'utf8' });
  if (child.status !== 0) throw new Error(`the child process ended with ${child.status}: ${child.stderr}`);
  return child.stdout;
}
