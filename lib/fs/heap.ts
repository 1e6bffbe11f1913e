/** A sentence before JavaScript's heap is full: V8 itself would end the process with a report nobody asked for. */
import { getHeapStatistics } from 'node:v8';
import { ConfigError } from '../errors.js';

const GIB = 2 ** 30;
const gib = (bytes: number): string => `${(bytes / GIB).toFixed(1)} GiB`;

/** What `--max-old-space-size` should say for so many bytes, in MiB: with room for everything else. */
function sizeFor(bytes: number): number {
  return Math.ceil((1.3 * bytes + GIB / 2) / 2 ** 28) * 256;
}

/**
 * @param items that are on the heap, about `bytes` each
 * @param share of all items that these are, as far as is known
 * @returns a sentence when all of them will not fit
 * @throws ConfigError when these hardly do
 */
export function checkHeap(
  what: string,
  items: number,
  bytes: number,
  share?: number,
): string | undefined {
  const { heap_size_limit: limit, used_heap_size: used } = getHeapStatistics();
  const expected = share ? Math.round(items / share) : items,
    need = expected * bytes;
  const remedy = `set NODE_OPTIONS=--max-old-space-size=${sizeFor(Math.max(need, items * bytes))}, or divide the collection`;
  // What V8 counts as used includes what it has not collected yet, so both figures have to be near.
  if (items * bytes > 0.55 * limit && used > 0.8 * limit) {
    throw new ConfigError(
      `${what}: ${items} samples fill JavaScript's heap of ${gib(limit)}` +
        `${share && share < 1 ? `, and about ${expected} are expected, which need ${gib(need)}` : ''}; ${remedy}`,
    );
  }
  return need > 0.9 * limit
    ? `${what}: about ${expected} samples need ${gib(need)} of JavaScript's heap, which has ${gib(limit)}; ${remedy}`
    : undefined;
}
