/** The files below a folder. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { fileError } from './files.js';

/** Whether a part of a path, in the collection, begins with a dot: what a file manager hides. */
export function isHidden(name: string): boolean {
  return /(?:^|[/\\])\.(?!\.?(?:[/\\]|$))/.test(name);
}

/** What a folder holds. */
export interface Found {
  /** Paths of files from the folder on, sorted. Links that lead nowhere are among them, for whoever counts. */
  names: string[];
  /** Folders and files whose names are not UTF-8 and which therefore cannot be opened. */
  unnamed: string[];
}

/**
 * Lists a folder and its subfolders, links to files and folders included, each folder once whatever leads to it; hidden ones
 * (names that begin with a dot) are left out.
 * @throws DataError when there is no such folder; IoError when one cannot be read
 */
export async function walk(folder: string): Promise<Found> {
  const names: string[] = [],
    unnamed: string[] = [],
    seen = new Set<string>();
  let links: string[] = [''];
  // A folder is taken by its own path where it has one in here, so links to folders come last.
  while (links.length > 0) {
    const round = links.sort();
    links = [];
    for (const link of round) {
      const open = [
        {
          below: link,
          real: await reading(path.join(folder, link), (file) => fs.promises.realpath(file)),
        },
      ];
      for (let next = open.pop(); next !== undefined; next = open.pop()) {
        const { below, real } = next;
        if (seen.has(real)) continue;
        seen.add(real);
        for (const entry of await reading(path.join(folder, below), (file) =>
          fs.promises.readdir(file, { withFileTypes: true }),
        )) {
          if (isHidden(entry.name)) continue;
          const name = path.join(below, entry.name),
            file = path.join(folder, name);
          if (entry.name.includes('\ufffd') && !fs.existsSync(file)) unnamed.push(name);
          else if (entry.isDirectory())
            open.push({ below: name, real: path.join(real, entry.name) });
          else if (entry.isSymbolicLink() && isFolder(file)) links.push(name);
          else names.push(name);
        }
      }
    }
  }
  return { names: names.sort(), unnamed: unnamed.sort() };
}

async function reading<T>(file: string, run: (file: string) => Promise<T>): Promise<T> {
  return run(file).catch((cause: unknown) => {
    throw fileError(cause, 'read', file);
  });
}

/** Whether a link leads to a folder; not when it leads nowhere. */
function isFolder(file: string): boolean {
  try {
    return fs.statSync(file, { throwIfNoEntry: false })?.isDirectory() ?? false;
  } catch {
    return false;
  }
}
