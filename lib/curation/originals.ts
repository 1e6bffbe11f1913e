/** The samples behind rows of scores, found again in their tars, folders and manifests. */

import type { Sample } from '../data/sample.js';
import { openSource } from '../data/source.js';
import { DataError } from '../errors.js';
import { KeyList } from '../fs/keys.js';
import { openUnit, type UnitNotes } from './score_table.js';

/**
 * The samples of some rows.
 * @param wanted keys by unit
 * @returns samples by unit and key; none of a collection that is gone
 */
export async function originalSamples(
  folder: string,
  wanted: ReadonlyMap<string, ReadonlySet<string>>,
): Promise<Map<string, Map<string, Sample>>> {
  const found = new Map<string, Map<string, Sample>>();
  // Parts of a folder or manifest share it: it is indexed once, for the keys of all of them.
  const collections = new Map<string, { spec: UnitNotes['spec']; units: string[] }>();
  for (const unit of wanted.keys()) {
    const { spec } = (await openUnit(folder, unit)).notes,
      id = JSON.stringify(spec),
      same = collections.get(id);
    if (same) same.units.push(unit);
    else collections.set(id, { spec, units: [unit] });
  }
  for (const { spec, units } of collections.values()) {
    const keys = new Set(units.flatMap((unit) => [...wanted.get(unit)!]));
    try {
      const { samples } = await openSource(spec, { tolerant: true, keys: KeyList.of(keys) });
      const byKey = new Map(samples.map((sample) => [sample.key, sample]));
      for (const unit of units) found.set(unit, byKey);
    } catch (error) {
      if (!(error instanceof DataError)) throw error;
    }
  }
  return found;
}
