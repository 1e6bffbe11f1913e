/**
 * What a collection is scored in: one tar, or up to 4,096 neighbouring samples of a folder or manifest. A unit is scored
 * whole, into files of its own, so units are what a resumed or divided run counts in.
 */
import { basename, resolve } from 'node:path';
import { COLLECTIONS, collectionOf } from '../data/collection.js';
import type { Sample } from '../data/sample.js';
import { openSource } from '../data/source.js';
import type { SourceChoice, SourceSpec } from '../data/spec.js';
import { ConfigError } from '../errors.js';
import { expandPaths } from '../fs/paths.js';
import type { Skipped } from '../fs/skips.js';

/** The samples of a unit, and what was left out while they were indexed. */
export interface UnitContent {
  samples: readonly Sample[];
  skipped: readonly Skipped[];
}

export type { Skipped };

export interface ScoreUnit {
  /** Name of its output files, unique in a run. */
  name: string;
  /** The tar, folder or manifest without its path; the column `shard`. */
  shard: string;
  /** Opens the same collection again. */
  spec: SourceSpec;
  open(signal?: AbortSignal): Promise<UnitContent>;
}

/** Samples of a unit of a folder or manifest. */
const UNIT_SAMPLES = 4096;

async function content(spec: SourceSpec, signal: AbortSignal | undefined): Promise<UnitContent> {
  const { samples, skips } = await openSource(spec, {
    tolerant: true,
    ...(signal ? { signal } : {}),
  });
  return { samples, skipped: skips.entries() };
}

/**
 * The units of some tars, folders and manifests, in their order; the files of a pattern sorted. Folders and manifests are
 * indexed for it, tars when they are opened.
 * @param options language of captions that do not say theirs, default `en`, and members, as in a source
 * @throws DataError when something is missing; ConfigError for other kinds of files, or when two have the same name
 */
export async function scoreUnits(
  specs: readonly string[],
  { signal, ...choice }: Pick<SourceChoice, 'language' | 'members'> & { signal?: AbortSignal } = {},
): Promise<ScoreUnit[]> {
  const units: ScoreUnit[] = [],
    seen = new Map<string, string>();
  for (const path of specs.flatMap((spec) => expandPaths(spec))) {
    const spec = collectionOf(path, choice),
      shard = basename(resolve(path));
    const other = seen.get(shard);
    if (other !== undefined)
      throw new ConfigError(
        `${other} and ${path} have the same name, but keys and results go by it; ` +
          'score them into different folders',
      );
    seen.set(shard, path);
    if (spec.type === 'webdataset') {
      units.push({ name: shard, shard, spec, open: (stop) => content(spec, stop) });
      continue;
    }
    const { samples, skipped } = await content(spec, signal);
    for (
      let from = 0, part = 0;
      part === 0 || from < samples.length;
      from += UNIT_SAMPLES, part++
    ) {
      const some = {
        samples: samples.slice(from, from + UNIT_SAMPLES),
        skipped: part === 0 ? skipped : [],
      };
      units.push({
        name: `${shard}.${String(part).padStart(5, '0')}`,
        shard,
        spec,
        open: async () => some,
      });
    }
  }
  if (units.length === 0) throw new ConfigError(`there is nothing to score; give ${COLLECTIONS}`);
  return units;
}
