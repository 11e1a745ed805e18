import { createHash } from "node:crypto";

/** What has an interval. */
export interface Scheduled {
  /** Name; its hash places the first run within the interval. */
  readonly name: string;
  /** Time from start to start, in ms. */
  readonly intervalMs: number;
}

/** One run that is due. */
export interface Due<T> {
  /** What is due. */
  readonly item: T;
  /** When it was due. */
  readonly scheduledAt: Date;
}

/** Options of {@linkcode runSchedule}. */
export interface RunScheduleOptions {
  /** Ends the schedule. Runs that have begun are waited for. */
  readonly signal: AbortSignal;
  /** Told of runs that were left out because the one before had not ended. */
  readonly onSkipped?: (name: string, runs: number) => void;
  /** Clock that never jumps, in ms. */
  readonly now?: () => number;
  /** Clock of the wall, in ms since 1970. */
  readonly wallNow?: () => number;
  /** Waits; resolves early when the signal is aborted. */
  readonly sleep?: (ms: number, signal: AbortSignal) => Promise<void>;
}

/**
 * Runs each item every interval, at `start + offset + n × interval`: a run that takes long does not move the next ones.
 * Never two runs of one item at a time: those that fall due meanwhile are left out, also after the machine slept.
 *
 * The clock is the monotonic one: when that of the wall is set, nothing bunches. A run that rejects ends the schedule.
 */
export async function runSchedule<T extends Scheduled>(
  items: readonly T[],
  run: (due: Due<T>) => Promise<void>,
  {
    signal,
    onSkipped,
    now = () => performance.now(),
    wallNow = Date.now,
    sleep = sleepUntilAborted,
  }: RunScheduleOptions,
): Promise<void> {
  const start = now();
  const failed = new AbortController();
  const ended = AbortSignal.any([signal, failed.signal]);
  const loops = items.map(async (item) => {
    const first = start + firstOffset(item);
    for (let n = 0;;) {
      const dueAt = first + n * item.intervalMs;
      await sleep(dueAt - now(), ended);
      if (ended.aborted) return;
      // From the wall clock as it is now, which may have been set since the start.
      await run({ item, scheduledAt: new Date(wallNow() - (now() - dueAt)) });
      const next = Math.max(n + 1, Math.ceil((now() - first) / item.intervalMs));
      if (next > n + 1) onSkipped?.(item.name, next - n - 1);
      n = next;
    }
  });
  try {
    await Promise.all(loops);
  } finally {
    failed.abort();
    await Promise.allSettled(loops);
  }
}

/**
 * Offset of an item's first run within its interval, in ms: by a hash of its name, so that many items spread evenly and a
 * restart leaves each its place.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const offset = firstOffset({ name: "apache", intervalMs: 10_000 });
 * assert.ok(offset >= 0 && offset < 10_000);
 * ```
 */
export function firstOffset({ name, intervalMs }: Scheduled): number {
  return createHash("sha256").update(name).digest().readUInt32BE() / 2 ** 32 * intervalMs;
}

/** Waits for a time, or until the signal is aborted. */
export function sleepUntilAborted(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, Math.max(0, ms));
    signal.addEventListener("abort", end);
  });
}

/** Signal that is aborted some time after another: what was begun may end by then. */
export function afterAbort(signal: AbortSignal, ms: number): AbortSignal {
  const controller = new AbortController();
  const begin = () => Deno.unrefTimer(setTimeout(() => controller.abort(), ms));
  if (signal.aborted) begin();
  else signal.addEventListener("abort", begin, { once: true });
  return controller.signal;
}

/** Resolves when the signal is aborted, or is already. */
export function whenAborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}
