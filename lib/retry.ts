import { errorMessage } from "./error.ts";
import type { Log } from "./log.ts";
import { sleepUntilAborted } from "./schedule.ts";

/** Options of {@linkcode retryForever}. */
export interface RetryForeverOptions {
  /** What is away, for the log. */
  readonly what: string;
  /** Where to say so. */
  readonly log: Log;
  /** Ends the waiting; the promise is rejected with its reason. */
  readonly signal?: AbortSignal;
  /** Whether an error can't pass by itself; it is thrown then. Default: none is. */
  readonly isFinal?: (error: unknown) => boolean;
  /** Clock, in ms. */
  readonly now?: () => number;
  /** Waits; resolves early when the signal is aborted. */
  readonly sleep?: (ms: number, signal: AbortSignal) => Promise<void>;
}

const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 5_000;
/** While something is away, a line every so often. */
const REPORT_EVERY_MS = 15_000;

/**
 * Does something for as long as it takes, with growing waits of 0.1 to 5 s between, and says so now and then. Waits are
 * up to a half shorter by chance, so that many that wait for the same thing do not all come at once.
 *
 * @throws The error that `isFinal` is true of, a missing permission of the runtime, which won't come by itself, or the
 * signal's reason.
 */
export async function retryForever<T>(
  work: () => Promise<T>,
  {
    what,
    log,
    signal = new AbortController().signal,
    isFinal = () => false,
    now = Date.now,
    sleep = sleepUntilAborted,
  }: RetryForeverOptions,
): Promise<T> {
  let since: number | undefined;
  let reportedAt = -Infinity;
  for (let waitMs = FIRST_WAIT_MS;; waitMs = Math.min(2 * waitMs, LONGEST_WAIT_MS)) {
    signal.throwIfAborted();
    try {
      const result = await work();
      if (since !== undefined) {
        log.info("{what} is back after {seconds} s", { what, seconds: Math.round((now() - since) / 1000) });
      }
      return result;
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable || isFinal(error)) throw error;
      signal.throwIfAborted();
      since ??= now();
      if (now() - reportedAt >= REPORT_EVERY_MS) {
        reportedAt = now();
        log.warn("Cannot use {what}, trying again: {reason}", { what, reason: errorMessage(error) });
      }
    }
    await sleep(waitMs * (1 - Math.random() / 2), signal);
  }
}
