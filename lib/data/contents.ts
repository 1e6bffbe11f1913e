/** What lies where no sample was found, for the sentence that says so. */

import { expandPaths } from '../fs/paths.js';
import { isHidden, walk } from '../fs/walk.js';
import { readableImage, unreadableImage } from '../image/names.js';
import { indexTar } from '../io/tar.js';
import { MANIFEST, wanted } from './sources/manifest.js';
import type { SingleSourceSpec } from './spec.js';

/** Files that are counted: enough to see what a folder is about. */
const MOST = 100_000;

/** Endings of collections that no source reads. */
const FOREIGN = new Set([
  'arrow',
  'mds',
  'tfrecord',
  'rec',
  'lmdb',
  'mdb',
  'beton',
  'h5',
  'hdf5',
  'npz',
  'zip',
  'gz',
  'zst',
  'xz',
  'bz2',
]);

/** What takes files of an ending that this source does not. */
function advice(type: string, name: string, ending: string): string | undefined {
  if (FOREIGN.has(ending))
    return `*.${ending} is not read by any source; write the samples as tars`;
  if (ending === 'tar')
    return type === 'webdataset' ? undefined : 'tars are read by source.type "webdataset"';
  if (MANIFEST.test(name)) return `a .${ending} is read by source.type "manifest"`;
  if (unreadableImage(name) !== undefined)
    return `.${ending} images are not read; convert them to JPEG or PNG`;
  return readableImage(name)
    ? 'an image needs a .txt or .json of its own stem beside it'
    : undefined;
}

/** Such as `it holds 3 *.tar, 1 *.json; tars are read by …`; empty for sources that describe themselves. */
export async function contentsOf(spec: SingleSourceSpec): Promise<string> {
  let names: string[],
    tar = '';
  try {
    if (spec.type === 'folder') ({ names } = await walk(spec.path));
    else if (spec.type === 'webdataset') {
      [tar = ''] = [spec.tars].flat().flatMap(expandPaths);
      names = (await indexTar(tar, { onDamage: () => undefined })).map(({ name }) => name);
    } else return spec.type === 'manifest' ? `a manifest needs ${wanted(spec.members)}` : '';
  } catch {
    return ''; // it was readable a moment ago; the sentence without this is right too
  }
  const counts = new Map<string, { count: number; example: string }>();
  for (const name of names.slice(0, MOST)) {
    if (isHidden(name)) continue;
    const ending = /\.([^./\\]+)$/.exec(name)?.[1]?.toLowerCase() ?? '',
      known = counts.get(ending);
    if (known) known.count++;
    else counts.set(ending, { count: 1, example: name });
  }
  if (counts.size === 0) return `${spec.type === 'folder' ? 'it' : tar} is empty`;
  const most = [...counts]
    .sort(([a, x], [b, y]) => y.count - x.count || (a < b ? -1 : 1))
    .slice(0, 5);
  const list = most
    .map(([ending, { count }]) => `${count} ${ending === '' ? 'without an ending' : `*.${ending}`}`)
    .join(', ');
  const says = new Set(
    most.flatMap(([ending, { example }]) => advice(spec.type, example, ending) ?? []),
  );
  return `${spec.type === 'folder' ? 'it' : tar} holds ${list}${counts.size > 5 ? ', …' : ''}${[...says].map((s) => `; ${s}`).join('')}`;
}
