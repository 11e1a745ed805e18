/**
 * Time that something may take: its signal is aborted when time is up, with a `TimeoutError`, or when another signal is,
 * with the reason of that. It costs less than `AbortSignal.any` with `AbortSignal.timeout`, whose timers go on when what
 * they bound has ended, and make an error each that nobody sees.
 */
export class Deadline implements Disposable {
  readonly #controller = new AbortController();
  readonly #queue: DeadlineQueue | undefined;
  readonly #bound: Set<AbortController> | undefined;

  /** Begins at once. */
  constructor(timeoutMs: number, signal?: AbortSignal) {
    if (signal?.aborted) {
      this.#controller.abort(signal.reason);
      return;
    }
    this.#bound = signal && boundBy(signal).add(this.#controller);
    this.#queue = DeadlineQueue.of(timeoutMs);
    this.#queue.add(this.#controller);
  }

  /** Aborted at the end. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Lets go of it: its signal is not aborted any more. */
  [Symbol.dispose](): void {
    this.#queue?.delete(this.#controller);
    this.#bound?.delete(this.#controller);
  }
}

/** Those of one length end in the order in which they began: one timer does for all, where one each costs a check 4 µs. */
class DeadlineQueue {
  static readonly #byLength = new Map<number, DeadlineQueue>();
  readonly #timeoutMs: number;
  /** When each is up, on the clock of `performance.now()`; the first to end comes first. */
  readonly #ends = new Map<AbortController, number>();
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** The one of a length. */
  static of(timeoutMs: number): DeadlineQueue {
    return DeadlineQueue.#byLength.getOrInsertComputed(timeoutMs, () => new DeadlineQueue(timeoutMs));
  }

  private constructor(timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
  }

  add(controller: AbortController): void {
    this.#ends.set(controller, performance.now() + this.#timeoutMs);
    this.#timer ??= setTimeout(() => this.#endFirst(), this.#timeoutMs);
  }

  delete(controller: AbortController): void {
    if (!this.#ends.delete(controller) || this.#ends.size > 0) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** Ends those that are up, and waits for the next. */
  #endFirst(): void {
    this.#timer = undefined;
    const now = performance.now();
    for (const [controller, end] of this.#ends) {
      if (end > now) {
        this.#timer ??= setTimeout(() => this.#endFirst(), end - now);
        return;
      }
      this.#ends.delete(controller);
      controller.abort(new DOMException("Time is up", "TimeoutError"));
    }
  }
}

/** What ends with a signal: one listener for all, since each one costs a look at all the others. */
const bound = new WeakMap<AbortSignal, Set<AbortController>>();

function boundBy(signal: AbortSignal): Set<AbortController> {
  const known = bound.get(signal);
  if (known !== undefined) return known;
  const controllers = new Set<AbortController>();
  bound.set(signal, controllers);
  signal.addEventListener("abort", () => {
    for (const controller of controllers) controller.abort(signal.reason);
  }, { once: true });
  return controllers;
}
