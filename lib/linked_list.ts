/** An entry of a {@linkcode LinkedList}. */
export interface Entry<T> {
  /** What it stands for. */
  readonly value: T;
  /** Whether it is in the list. */
  isListed: boolean;
  /** The one before it. */
  previous: Entry<T> | null;
  /** The one behind it. */
  next: Entry<T> | null;
}

/**
 * Things in the order in which they were added, for many that come and go: the table of a `Set` would be made anew again
 * and again.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const list = new LinkedList<string>();
 * const [, second] = ["a", "b", "c"].map((value) => list.add(value));
 * list.delete(second!);
 * assert.equal(list.first!.next!.value, "c");
 * ```
 */
export class LinkedList<T> {
  /** The first; null where there is none. */
  first: Entry<T> | null = null;
  #last: Entry<T> | null = null;

  /** Adds one behind all others. */
  add(value: T): Entry<T> {
    const entry: Entry<T> = { value, isListed: true, previous: this.#last, next: null };
    if (this.#last === null) this.first = entry;
    else this.#last.next = entry;
    this.#last = entry;
    return entry;
  }

  /** Takes one out, unless it was taken out before. */
  delete(entry: Entry<T>): void {
    if (!entry.isListed) return;
    const { previous, next } = entry;
    if (previous === null) this.first = next;
    else previous.next = next;
    if (next === null) this.#last = previous;
    else next.previous = previous;
    entry.previous = entry.next = null;
    entry.isListed = false;
  }
}
