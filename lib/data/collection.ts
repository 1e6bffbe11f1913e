/** Which collection a path means: decided here for all commands, so that they agree. */
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { DataError } from '../errors.js';
import { headOf, isKind, kindOf } from '../fs/kinds.js';
import { MANIFEST } from './sources/manifest.js';
import type { SourceChoice, SourceSpec } from './spec.js';

/** What can be named, for sentences that ask for it. */
export const COLLECTIONS = '.tar shards, folders, or .jsonl, .csv, .tsv or .parquet manifests';

/**
 * @param path a folder, a manifest by its ending, or a tar by its ending or first bytes
 * @throws DataError when there is no such file, or for another kind of file, which is called what it is
 */
export function collectionOf(path: string, choice: SourceChoice = {}): SourceSpec {
  const info = statSync(path, { throwIfNoEntry: false }),
    full = resolve(path);
  if (!info) throw new DataError(`${path}: there is no such file; check the path`);
  if (info.isDirectory()) return { type: 'folder', path: full, ...choice };
  if (MANIFEST.test(path)) return { type: 'manifest', path: full, ...choice };
  const kind = /\.tar$/i.test(path) ? undefined : kindOf(headOf(path), path);
  if (/\.tar$/i.test(path) || kind?.id === 'tar')
    return { type: 'webdataset', tars: [full], ...choice };
  const what = kind ? isKind(kind) : 'is no collection of images with captions';
  throw new DataError(
    `${path}: ${what}${kind && kind.remedy !== '' ? '' : `; give ${COLLECTIONS}`}`,
  );
}
