import { type Entry, LinkedList } from "./linked_list.ts";

/**
 * Calls something after a time, unless it is let go of before. Those of one length come due in the order in which they
 * began, so that one timer of the runtime does for all: one for each check that nearly never comes due costs it 4 µs.
 *
 * Time in which the process stood still, since it or its machine was halted or overloaded, does not count: an answer may
 * have come meanwhile, and waits to be read.
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

  /** Time in which the process stood still while there was one of its length, in ms: for differences. */
  get stoodMs(): number {
    return this.#queue.stoodMs;
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

/** A process that stands still is noticed by a wake-up that is late: there is one every so often while a timer waits. */
const LONGEST_SLEEP_MS = 250;
const SHORTEST_SLEEP_MS = 25;
/** A wake-up that is late by no more is not worth noticing. */
const LATE_MS = 25;

/** Timers of one length. */
class Queue {
  readonly #ms: number;
  readonly #sleepMs: number;
  readonly #waiting = new LinkedList<Waiting>();
  #timeout: ReturnType<typeof setTimeout> | undefined;
  #wakeAt = 0;
  /** Time in which the process stood still while some waited, in ms. */
  #stoodMs = 0;

  constructor(ms: number) {
    this.#ms = ms;
    this.#sleepMs = Math.min(Math.max(SHORTEST_SLEEP_MS, ms / 4), LONGEST_SLEEP_MS);
  }

  get stoodMs(): number {
    return this.#stoodBy(performance.now());
  }

  add(call: () => void): Entry<Waiting> {
    const now = performance.now();
    if (this.#timeout === undefined) this.#sleep(this.#ms, now);
    return this.#waiting.add({ dueAt: now + this.#ms - this.#stoodBy(now), call });
  }

  delete(entry: Entry<Waiting>): void {
    this.#waiting.delete(entry);
    if (this.#waiting.first !== null) return;
    clearTimeout(this.#timeout);
    this.#timeout = undefined;
  }

  /** With what the next wake-up will notice: it may be late itself, and others have their turn before it. */
  #stoodBy(now: number): number {
    return this.#stoodMs + (this.#timeout === undefined ? 0 : noticed(now - this.#wakeAt));
  }

  #sleep(ms: number, now: number): void {
    const sleepMs = Math.min(ms, this.#sleepMs);
    this.#wakeAt = now + sleepMs;
    this.#timeout = setTimeout(() => this.#wake(), Math.ceil(sleepMs));
  }

  #wake(): void {
    this.#timeout = undefined;
    const now = performance.now();
    this.#stoodMs += noticed(now - this.#wakeAt);
    for (let entry = this.#waiting.first; entry !== null; entry = this.#waiting.first) {
      const { dueAt, call } = entry.value;
      const leftMs = dueAt + this.#stoodMs - now;
      if (leftMs > 0) {
        if (this.#timeout === undefined) this.#sleep(leftMs, now);
        return;
      }
      this.#waiting.delete(entry);
      call();
    }
  }
}

function noticed(lateMs: number): number {
  return lateMs > LATE_MS ? lateMs : 0;
}

/** By length; there are as many as the settings have different limits of time. */
const queues = new Map<number, Queue>();
