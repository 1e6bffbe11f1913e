/** What lies where no sample was found, for the sentence that says so. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { SingleSourceSpec } from './source.js';
import { expandPaths } from './paths.js';
import { indexTar } from './tar.js';

/** Entries that are looked at: enough to see what a folder is about. */
const MOST = 10_000;

/** What takes files of an ending that this source does not. */
const READERS: Record<string, string> = {
  tar: 'tars are read by source.type "webdataset"', parquet: 'a .parquet is read by source.type "manifest"',
  jsonl: 'a .jsonl is read by source.type "manifest"',
  ...Object.fromEntries(['jpg', 'jpeg', 'png', 'webp'].map((e) => [e, 'an image needs a .txt or .json of its own stem beside it'])),
};
const FOREIGN = new Set(['arrow', 'mds', 'tfrecord', 'rec', 'lmdb', 'mdb', 'beton', 'h5', 'hdf5', 'npz', 'zip', 'gz', 'zst', 'xz', 'bz2', 'csv', 'tsv']);

function filesBelow(folder: string): string[] {
  const names: string[] = [], folders = [folder];
  for (let next = folders.pop(); next !== undefined && names.length < MOST; next = folders.pop()) {
    for (const entry of readdirSync(next, { withFileTypes: true })) {
      if (entry.isDirectory()) folders.push(join(next, entry.name));
      else names.push(entry.name);
    }
  }
  return names;
}

/** Such as `it holds 3 *.tar and 1 *.json; tars are read by …`; empty for sources that describe themselves. */
export async function contentsOf(spec: SingleSourceSpec): Promise<string> {
  let names: string[], tar = '';
  try {
    if (spec.type === 'folder') names = filesBelow(spec.path);
    else if (spec.type === 'webdataset') {
      [tar = ''] = [spec.tars].flat().flatMap(expandPaths);
      names = (await indexTar(tar, () => undefined)).map(({ name }) => name);
    } else return '';
  } catch {
    return '';  // it was readable a moment ago; the sentence without this is right too
  }
  if (names.length === 0) return 'it is empty';
  const counts = new Map<string, number>();
  for (const name of names) {
    const ending = /\.([^./\\]+)$/.exec(name)?.[1]?.toLowerCase() ?? '';
    counts.set(ending, (counts.get(ending) ?? 0) + 1);
  }
  const most = [...counts].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1)).slice(0, 5);
  const list = most.map(([ending, n]) => `${n} ${ending === '' ? 'without an ending' : `*.${ending}`}`).join(', ');
  const says = [...new Set(most.flatMap(([ending]) => FOREIGN.has(ending) ? `*.${ending} is not read by any; write the samples as tars`
    : spec.type === 'webdataset' && ending === 'tar' ? [] : READERS[ending] ?? []))];
  return `${spec.type === 'folder' ? 'it' : tar} holds ${list}${counts.size > 5 ? ', …' : ''}${says.map((s) => `; ${s}`).join('')}`;
}
