import { type Entry, LinkedList } from "./linked_list.ts";
import { Timer } from "./timer.ts";

/**
 * Time that something may take: its signal is aborted when time is up, with a `TimeoutError`, or when another signal is,
 * with the reason of that. It costs less than `AbortSignal.any` with `AbortSignal.timeout`, whose timers go on when what
 * they bound has ended, and make an error each that nobody sees.
 */
export class Deadline implements Disposable {
  readonly #controller = new AbortController();
  readonly #timer: Timer | undefined;
  readonly #bound: LinkedList<AbortController> | undefined;
  readonly #entry: Entry<AbortController> | undefined;

  /** Begins at once. */
  constructor(timeoutMs: number, signal?: AbortSignal) {
    if (signal?.aborted) {
      this.#controller.abort(signal.reason);
      return;
    }
    this.#bound = signal && boundBy(signal);
    this.#entry = this.#bound?.add(this.#controller);
    this.#timer = new Timer(timeoutMs, () => this.#controller.abort(new DOMException("Time is up", "TimeoutError")));
  }

  /** Aborted at the end. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Time in which the process stood still, in ms, which does not count: for differences. */
  get stoodMs(): number {
    return this.#timer?.stoodMs ?? 0;
  }

  /** Lets go of it: its signal is not aborted any more. */
  [Symbol.dispose](): void {
    this.#timer?.[Symbol.dispose]();
    if (this.#entry !== undefined) this.#bound!.delete(this.#entry);
  }
}

/** What ends with a signal: one listener for all, since each one costs a look at all the others. */
const bound = new WeakMap<AbortSignal, LinkedList<AbortController>>();

function boundBy(signal: AbortSignal): LinkedList<AbortController> {
  const known = bound.get(signal);
  if (known !== undefined) return known;
  const controllers = new LinkedList<AbortController>();
  bound.set(signal, controllers);
  signal.addEventListener("abort", () => {
    for (let entry = controllers.first; entry !== null; entry = controllers.first) {
      controllers.delete(entry);
      entry.value.abort(signal.reason);
    }
  }, { once: true });
  return controllers;
}
