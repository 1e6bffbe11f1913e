/** Files with a line of JSON for every step. */
import { existsSync, readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { ioError, writeFileAtomic } from '../fs/files.js';

/** A file of JSON lines that grows. Its promises reject with an IoError that names it. */
export async function openLog(
  path: string,
): Promise<{ append(line: object): Promise<void>; close(): Promise<void> }> {
  const refuse = (cause: unknown): never => {
    throw ioError('write', path, cause);
  };
  const file = await open(path, 'a').catch(refuse);
  return {
    append: (line) => file.appendFile(`${JSON.stringify(line)}\n`).catch(refuse),
    close: () => file.close(),
  };
}

/** Removes the lines that an interrupted run wrote after its checkpoint's step, and would write again. */
export async function cutLog(path: string, step: number): Promise<void> {
  if (!existsSync(path)) return;
  const lines = readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => {
      try {
        return (JSON.parse(line) as { step: number }).step <= step;
      } catch {
        return false; // the last line of a run that was killed may be cut
      }
    });
  await writeFileAtomic(path, lines.map((line) => `${line}\n`).join(''));
}
