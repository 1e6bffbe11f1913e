/**
 * Key lists: which samples of a collection are used, one a line. A line is `file<TAB>key`, where `file` is the name of the
 * tar, folder or manifest without its path, or just `key`, which means that key in any file.
 */
import * as path from 'node:path';
import { DataError } from '../errors.js';
import { lines } from './paths.js';

/** The line of a sample. Throws DataError when a name has a tab or line break, which a list cannot hold. */
export function keyLine(file: string, key: string): string {
  if (/[\t\r\n]/.test(file + key))
    throw new DataError(`${JSON.stringify(file)}: the key ${JSON.stringify(key)} has a tab or line break; rename the sample`);
  return `${file}\t${key}`;
}

/** A key list in memory. */
export class KeyList {
  private constructor(readonly path: string, private readonly kept: ReadonlySet<string>) {}

  /** @throws DataError when the file is missing or has no line; IoError when it cannot be read */
  static async read(file: string): Promise<KeyList> {
    const kept = new Set<string>();
    for await (const { data } of lines(file)) if (data.length > 0) kept.add(data.toString('utf8'));
    if (kept.size === 0) throw new DataError(`${file}: the key list is empty; it needs one key a line`);
    return new KeyList(file, kept);
  }

  /** A list of keys in any file. */
  static of(keys: ReadonlySet<string>): KeyList { return new KeyList('the list', keys); }

  get size(): number { return this.kept.size; }

  /** @param file the tar, folder or manifest; its path does not matter */
  has(file: string, key: string): boolean {
    return this.kept.has(`${path.basename(path.resolve(file))}\t${key}`) || this.kept.has(key);
  }
}
