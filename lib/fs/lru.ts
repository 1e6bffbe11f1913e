/** A bounded cache: the entries used longest ago go first. */
export class Lru<K, V> {
  readonly #map = new Map<K, { value: V; cost: number }>();
  #used = 0;

  /**
   * @param capacity sum of the costs kept; an entry costs 1 unless `set` says otherwise (bytes, for
   * example)
   */
  constructor(readonly capacity: number) {}

  /** Number of entries. */
  get size(): number {
    return this.#map.size;
  }

  /** Sum of the costs of the entries. */
  get cost(): number {
    return this.#used;
  }

  /** The value of `key`, which thereby becomes the one used last. */
  get(key: K): V | undefined {
    const entry = this.#map.get(key);
    if (entry === undefined) return undefined;
    // A Map keeps the order of insertion, so moving to the end is all the bookkeeping there is.
    this.#map.delete(key);
    this.#map.set(key, entry);
    return entry.value;
  }

  /** Adds or replaces an entry; what costs more than the capacity is not kept. */
  set(key: K, value: V, cost = 1): void {
    const old = this.#map.get(key);
    if (old !== undefined) {
      this.#used -= old.cost;
      this.#map.delete(key);
    }
    if (cost > this.capacity) return;
    this.#map.set(key, { value, cost });
    this.#used += cost;
    for (const [oldest, entry] of this.#map) {
      if (this.#used <= this.capacity) break;
      this.#map.delete(oldest);
      this.#used -= entry.cost;
    }
  }
}
