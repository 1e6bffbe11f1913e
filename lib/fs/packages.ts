/** Finding files inside installed npm packages, whatever their `exports` allow. */
import * as fs from 'node:fs';
import { createRequire } from 'node:module';
import * as path from 'node:path';
import { DataError } from '../errors.js';

/**
 * The folder of an installed package, looked for from this package and from the current folder
 * upwards.
 * @throws DataError with the command that installs it
 */
export function packageFolder(name: string): string {
  for (const from of [import.meta.url, path.join(process.cwd(), 'package.json')]) {
    for (const modules of createRequire(from).resolve.paths(name) ?? []) {
      const folder = path.join(modules, name);
      if (fs.existsSync(path.join(folder, 'package.json'))) return folder;
    }
  }
  throw new DataError(`the package ${name} is not installed; run: npm install ${name}`);
}
