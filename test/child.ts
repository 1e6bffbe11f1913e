/** Runs code in a Node process of its own, with its own number of compute threads or other variables. */
import { spawnSync } from 'node:child_process';

/** The standard output of an ES module with this source; `lib/…` in its imports is the compiled library. */
export function outputWithThreads(threads: number, source: string): string {
  return outputOf(source, { SIGLIP2_THREADS: String(threads) });
}

/** As `outputWithThreads`, in this process's environment with changes. */
export function outputOf(source: string, env: Record<string, string>): string {
  const lib = new URL('../lib/', import.meta.url).href;
  const child = spawnSync(
    process.execPath,
    ['--input-type=module', '-e', source.replaceAll("'lib/", `'${lib}`)],
    { env: { ...process.env, NODE_OPTIONS: '', ...env }, encoding: 'utf8' },
  );
  if (child.status !== 0)
    throw new Error(`the child process ended with ${child.status}: ${child.stderr}`);
  return child.stdout;
}
