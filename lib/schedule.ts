import { createHash } from "node:crypto";
import pLimit from "p-limit";
import type { CronTimes } from "./cron.ts";
import { byCron, type Clocks, everyInterval, type Pace } from "./pace.ts";

/** What is to be run again and again. */
export interface Scheduled {
  /** Name; its hash places the first run within the interval. */
  readonly name: string;
  /** Time from start to start, in ms. */
  readonly intervalMs: number;
  /** Times by the clock of the wall, instead of the interval. Default: none. */
  readonly cron?: CronTimes | null;
  /** Each run is up to this later, by chance, in ms; the others stay where they are. Default: 0. */
  readonly jitterMs?: number;
  /** Time from start to start once a run has failed, until one does not, in ms. Default: no other than else. */
  readonly failingIntervalMs?: number | null;
}

/** One run that is due. */
export interface Due<T> {
  /** What is due. */
  readonly item: T;
  /** When it was due. */
  readonly scheduledAt: Date;
  /** When it was due, on the clock of `now`, in ms. */
  readonly dueAt: number;
}

/** Does a run. @returns Whether it failed; nothing where that can't be told. */
export type Run<T> = (due: Due<T>) => Promise<boolean | void>;

/** Options of {@linkcode runSchedule}. */
export interface RunScheduleOptions {
  /** Ends the schedule. Runs that have begun are waited for. */
  readonly signal: AbortSignal;
  /** Told of runs that were left out because the one before had not ended, or the machine slept. */
  readonly onSkipped?: (name: string, runs: number) => void;
  /** Clock that never jumps, in ms. */
  readonly now?: () => number;
  /** Clock of the wall, in ms since 1970. */
  readonly wallNow?: () => number;
  /** Waits; resolves early when the signal is aborted. */
  readonly sleep?: (ms: number, signal: AbortSignal) => Promise<void>;
  /** Chance, from 0 to 1. */
  readonly random?: () => number;
}

/**
 * Runs each item every interval, at `start + offset + n × interval`, or at the times of its cron expression: a run that
 * takes long does not move the next ones. Never two runs of one item at a time: those that fall due meanwhile are left
 * out. So are those that fell due while the machine slept, but for one of which the next is not due yet: no burst.
 *
 * Intervals go by the monotonic clock: when that of the wall is set, nothing bunches.
 *
 * @param lists The items; each list replaces the one before. Items go by their names: new ones begin, those that are gone
 * end with the run that is under way, the others keep their place in time unless their times have changed.
 * @throws What a run or the lists reject with, which ends the schedule.
 */
export async function runSchedule<T extends Scheduled>(
  lists: Iterable<readonly T[]> | AsyncIterable<readonly T[]>,
  run: Run<T>,
  {
    signal,
    onSkipped = () => {},
    now = () => performance.now(),
    wallNow = Date.now,
    sleep = sleepUntilAborted,
    random = Math.random,
  }: RunScheduleOptions,
): Promise<void> {
  const routines = new Map<string, Routine<T>>();
  const context: RoutineContext<T> = {
    start: now(),
    clocks: { now, wallNow },
    run,
    onSkipped,
    onEnd: (name) => routines.delete(name),
    sleep,
    random,
  };
  const failed = Promise.withResolvers<never>();
  const replace = (items: readonly T[]) => {
    const gone = new Set(routines.keys()).difference(new Set(items.map(({ name }) => name)));
    for (const name of gone) routines.get(name)!.replace(null);
    for (const item of items) {
      const routine = routines.get(item.name);
      if (routine !== undefined) {
        routine.replace(item);
        continue;
      }
      const begun = new Routine(item, context);
      routines.set(item.name, begun);
      begun.ended.catch(failed.reject);
    }
  };
  const follow = async () => {
    for await (const items of lists) if (!signal.aborted) replace(items);
  };
  try {
    const followed = follow().then(() => whenAborted(signal));
    await Promise.race([followed, whenAborted(signal), failed.promise]);
  } finally {
    const ended = [...routines.values()].map((routine) => {
      routine.replace(null);
      return routine.ended;
    });
    await Promise.allSettled(ended);
  }
}

/** Options of {@linkcode runOnce}. */
export interface RunOnceOptions {
  /** Leaves out what has not begun. */
  readonly signal: AbortSignal;
  /** Runs at a time. */
  readonly atOnce: number;
}

/** Runs each item once, some at a time. @throws What the first run rejects with. */
export async function runOnce<T>(items: readonly T[], run: Run<T>, { signal, atOnce }: RunOnceOptions): Promise<void> {
  const limit = pLimit(atOnce);
  await Promise.all(items.map((item) =>
    limit(async () => {
      if (!signal.aborted) await run({ item, scheduledAt: new Date(), dueAt: performance.now() });
    })
  ));
}

/** What all items of a schedule share. */
interface RoutineContext<T> {
  /** When the schedule began, on the monotonic clock. */
  readonly start: number;
  readonly clocks: Clocks;
  readonly run: Run<T>;
  readonly onSkipped: (name: string, runs: number) => void;
  /** Told at once, so that no item is given to a routine that has ended. */
  readonly onEnd: (name: string) => void;
  readonly sleep: (ms: number, signal: AbortSignal) => Promise<void>;
  readonly random: () => number;
}

/** One item, again and again. */
class Routine<T extends Scheduled> {
  /** Resolves when the item is gone and no run is under way; rejects with a run. */
  readonly ended: Promise<void>;
  readonly #context: RoutineContext<T>;
  #item: T | null;
  /** Aborted when the times of the item have changed, or it is gone. */
  #changed = new AbortController();

  constructor(item: T, context: RoutineContext<T>) {
    this.#item = item;
    this.#context = context;
    this.ended = this.#repeat();
  }

  /** Takes the item as it is from now on; null: it is gone. */
  replace(item: T | null): void {
    if (item === null || this.#item === null || !haveSameTimes(item, this.#item)) this.#changed.abort();
    this.#item = item;
  }

  async #repeat(): Promise<void> {
    const { run, onSkipped, onEnd, sleep, random } = this.#context;
    const { name } = this.#item!;
    for (let item = this.#item; item !== null; item = this.#item) {
      this.#changed = new AbortController();
      const usual = this.#usualPace(item);
      let pace = usual;
      let due = pace.from(pace.clock());
      let delay = random() * (item.jitterMs ?? 0);
      while (!this.#changed.signal.aborted) {
        const wait = due + delay - pace.clock();
        if (wait > 0) {
          await sleep(Math.min(wait, pace.longestSleepMs), this.#changed.signal);
          if (pace.wasSetBack()) due = pace.from(pace.clock());
          continue;
        }
        let following = pace.after(due);
        // Where the next is due too, the machine slept: were it made up for, those of all items would bunch.
        const isOver = following + delay <= pace.clock();
        if (!isOver) {
          const [scheduledAt, dueAt] = [new Date(pace.wall(due + delay)), pace.monotonic(due + delay)];
          const failed = await run({ item: this.#item ?? item, scheduledAt, dueAt });
          const next = this.#nextPace({ item, usual, pace, failedAt: dueAt - delay, failed });
          if (next !== pace) {
            pace = next;
            following = pace.from(pace.clock());
          }
        }
        const next = following >= pace.clock() ? following : pace.from(pace.clock());
        const skipped = pace.count(isOver ? due : following, next);
        if (skipped > 0) onSkipped(name, skipped);
        due = next;
        delay = random() * (item.jitterMs ?? 0);
      }
    }
    onEnd(name);
  }

  #usualPace(item: T): Pace {
    const { start, clocks } = this.#context;
    if (item.cron) return byCron(item.cron, clocks);
    return everyInterval({ first: start + firstOffset(item), intervalMs: item.intervalMs }, clocks);
  }

  /** The pace after a run: from the first that failed on, that of failing ones. */
  #nextPace({ item, usual, pace, failedAt, failed }: NextPaceOptions<T>): Pace {
    if (failed === undefined || typeof item.failingIntervalMs !== "number") return pace;
    if (!failed) return usual;
    if (pace !== usual) return pace;
    const intervalMs = item.failingIntervalMs;
    return everyInterval({ first: failedAt + intervalMs, intervalMs }, this.#context.clocks);
  }
}

interface NextPaceOptions<T> {
  readonly item: T;
  readonly usual: Pace;
  readonly pace: Pace;
  /** When the run was due, on the monotonic clock. */
  readonly failedAt: number;
  readonly failed: boolean | void;
}

function haveSameTimes(a: Scheduled, b: Scheduled): boolean {
  const times = ({ intervalMs, cron, jitterMs, failingIntervalMs }: Scheduled) =>
    [cron ? `${cron.timeZone} ${cron.expression}` : intervalMs, jitterMs ?? 0, failingIntervalMs ?? null].join();
  return times(a) === times(b);
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
export function firstOffset({ name, intervalMs }: Pick<Scheduled, "name" | "intervalMs">): number {
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
