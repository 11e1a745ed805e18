import { type Entry, LinkedList } from "./linked_list.ts";

/**
 * Calls something after a time, unless it is let go of before. Those of one length come due in the order in which they
 * began, so that one timer of the runtime does for all: one for each check that nearly never comes due costs it 4 µs.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const called: string[] = [];
 * new Timer(1, () => called.push("kept"));
 * new Timer(1, () => called.push("let go of"))[Symbol.dispose]();
 * await new Promise((resolve) => setTimeout(resolve, 10));
 * assert.deepEqual(called, ["kept"]);
 * ```
 */
export class Timer implements Disposable {
  readonly #queue: Queue;
  readonly #entry: Entry<Waiting>;

  /** Begins at once; times in ms. */
  constructor(ms: number, call: () => void) {
    this.#queue = queues.getOrInsertComputed(ms, () => new Queue(ms));
    this.#entry = this.#queue.add(call);
  }

  /** Lets go of it. */
  [Symbol.dispose](): void {
    this.#queue.delete(this.#entry);
  }
}

interface Waiting {
  readonly dueAt: number;
  readonly call: () => void;
}

/** Timers of one length. */
class Queue {
  readonly #ms: number;
  readonly #waiting = new LinkedList<Waiting>();
  #timeout: ReturnType<typeof setTimeout> | undefined;

  constructor(ms: number) {
    this.#ms = ms;
  }

  add(call: () => void): Entry<Waiting> {
    this.#timeout ??= setTimeout(() => this.#callDue(), this.#ms);
    return this.#waiting.add({ dueAt: performance.now() + this.#ms, call });
  }

  delete(entry: Entry<Waiting>): void {
    this.#waiting.delete(entry);
    if (this.#waiting.first !== null) return;
    clearTimeout(this.#timeout);
    this.#timeout = undefined;
  }

  #callDue(): void {
    this.#timeout = undefined;
    const now = performance.now();
    for (let entry = this.#waiting.first; entry !== null; entry = this.#waiting.first) {
      const { dueAt, call } = entry.value;
      if (dueAt > now) {
        this.#timeout ??= setTimeout(() => this.#callDue(), dueAt - now);
        return;
      }
      this.#waiting.delete(entry);
      call();
    }
  }
}

/** By length; there are as many as the settings have different limits of time. */
const queues = new Map<number, Queue>();
