import pRetry from "p-retry";
import { errorMessage } from "./error.ts";
import type { Log } from "./log.ts";

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
}

const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 5_000;
/** While something is away, a line every so often. */
const REPORT_EVERY_MS = 15_000;

/**
 * Does something for as long as it takes, with growing waits of 0.1 to 5 s between, and says so now and then.
 *
 * @throws The error that `isFinal` is true of, or the signal's reason.
 */
export async function retryForever<T>(
  work: () => Promise<T>,
  { what, log, signal, isFinal = () => false, now = Date.now }: RetryForeverOptions,
): Promise<T> {
  let since: number | undefined;
  let reportedAt = -Infinity;
  // A missing permission of the runtime won't come by itself.
  const final = (error: unknown) => error instanceof Deno.errors.NotCapable || isFinal(error);
  const result = await pRetry(async () => {
    try {
      return await work();
    } catch (error) {
      // Only errors of the network are tried again by p-retry where they are a TypeError.
      throw error instanceof TypeError ? new Error(error.message, { cause: error }) : error;
    }
  }, {
    retries: Infinity,
    minTimeout: FIRST_WAIT_MS,
    maxTimeout: LONGEST_WAIT_MS,
    randomize: true,
    ...(signal && { signal }),
    shouldRetry: ({ error }) => !final(error),
    onFailedAttempt: ({ error }) => {
      if (final(error)) return;
      since ??= now();
      if (now() - reportedAt < REPORT_EVERY_MS) return;
      reportedAt = now();
      log.warn("Cannot use {what}, trying again: {reason}", { what, reason: errorMessage(error) });
    },
  });
  if (since !== undefined) {
    log.info("{what} is back after {seconds} s", { what, seconds: Math.round((now() - since) / 1000) });
  }
  return result;
}
