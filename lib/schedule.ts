import { createHash } from "node:crypto";
import pLimit from "p-limit";
import TinyQueue from "tinyqueue";
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
  /** Timer: calls back once, after a time. @returns What calls it off. */
  readonly wakeAfter?: (ms: number, wake: () => void) => () => void;
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
    wakeAfter = startTimer,
    random = Math.random,
  }: RunScheduleOptions,
): Promise<void> {
  const clocks = { now, wallNow };
  const schedule = new Schedule({ start: now(), clocks, run, onSkipped, wakeAfter, random, signal });
  const follow = async () => {
    for await (const items of lists) if (!signal.aborted) schedule.replace(items);
  };
  try {
    const followed = follow().then(() => whenAborted(signal));
    await Promise.race([followed, whenAborted(signal), schedule.failed.promise]);
  } finally {
    await schedule.end();
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
interface ScheduleContext<T> {
  /** When the schedule began, on the monotonic clock. */
  readonly start: number;
  readonly clocks: Clocks;
  readonly run: Run<T>;
  readonly onSkipped: (name: string, runs: number) => void;
  readonly wakeAfter: (ms: number, wake: () => void) => () => void;
  readonly random: () => number;
  readonly signal: AbortSignal;
}

/** All items in the order of their turns, with one timer: a timer for each would cost more than all the rest. */
class Schedule<T extends Scheduled> {
  /** Rejects with what ends the schedule. */
  readonly failed = Promise.withResolvers<never>();
  readonly #context: ScheduleContext<T>;
  readonly #routines = new Map<string, Routine<T>>();
  /** Those without a run under way; the one whose turn is next comes first. */
  #waiting = new TinyQueue<Routine<T>>([], byTurn);
  /** When the timer goes off, on the monotonic clock. */
  #wakeAt = Infinity;
  #stopTimer = () => {};

  constructor(context: ScheduleContext<T>) {
    this.#context = context;
  }

  /** Takes the items as they are from now on. */
  replace(items: readonly T[]): void {
    const gone = new Set(this.#routines.keys()).difference(new Set(items.map(({ name }) => name)));
    for (const name of gone) {
      const routine = this.#routines.get(name)!;
      routine.replace(null);
      if (routine.underWay === null) this.#routines.delete(name);
    }
    for (const item of items) {
      const routine = this.#routines.get(item.name);
      if (routine === undefined) this.#routines.set(item.name, new Routine(item, this.#context));
      else routine.replace(item);
    }
    const waiting = this.#routines.values().filter(({ underWay }) => underWay === null);
    this.#waiting = new TinyQueue([...waiting], byTurn);
    this.#setTimer();
  }

  /** Begins no more runs. Resolves when none is under way. */
  async end(): Promise<void> {
    this.replace([]);
    this.#stopTimer();
    await Promise.all(this.#routines.values().map(({ underWay }) => underWay));
  }

  /** Sets the timer to the next turn, unless it goes off before. */
  #setTimer(): void {
    const next = this.#waiting.peek();
    if (next === undefined || next.turnAt >= this.#wakeAt) return;
    this.#stopTimer();
    this.#wakeAt = next.turnAt;
    this.#stopTimer = this.#context.wakeAfter(next.turnAt - this.#context.clocks.now(), () => this.#wake());
  }

  #wake(): void {
    const { clocks, signal } = this.#context;
    this.#wakeAt = Infinity;
    const now = clocks.now();
    try {
      for (let next = this.#waiting.peek(); next !== undefined && next.turnAt <= now; next = this.#waiting.peek()) {
        if (signal.aborted) return;
        this.#waiting.pop();
        this.#takeTurn(next);
      }
      this.#setTimer();
    } catch (error) {
      this.failed.reject(error);
    }
  }

  #takeTurn(routine: Routine<T>): void {
    if (routine.isDue()) {
      // Where the next is due too, the machine slept: were it made up for, those of all items would bunch.
      if (!routine.isNextDue()) {
        routine.underWay = this.#run(routine);
        return;
      }
      this.#tellSkipped(routine, routine.skip());
    }
    this.#waiting.push(routine);
  }

  /** Does one run, and lets the item wait again. Never rejects. */
  async #run(routine: Routine<T>): Promise<void> {
    try {
      const due = routine.due();
      const failed = await this.#context.run(due);
      this.#tellSkipped(routine, routine.goOn({ dueAt: due.dueAt, failed }));
      if (routine.isGone) {
        this.#routines.delete(routine.name);
        return;
      }
      this.#waiting.push(routine);
      this.#setTimer();
    } catch (error) {
      this.failed.reject(error);
    }
  }

  #tellSkipped({ name }: Routine<T>, runs: number): void {
    if (runs > 0) this.#context.onSkipped(name, runs);
  }
}

function byTurn(a: { readonly turnAt: number }, b: { readonly turnAt: number }): number {
  return a.turnAt - b.turnAt;
}

/** One item and its points in time. */
class Routine<T extends Scheduled> {
  readonly name: string;
  /** The run that is under way. */
  underWay: Promise<void> | null = null;
  /** When to look at it next, on the monotonic clock. */
  turnAt = 0;
  readonly #context: ScheduleContext<T>;
  /** The item whose times hold. */
  #item: T;
  /** The item with other times that holds from the end of the run under way; null: it is gone; undefined: no change. */
  #successor: T | null | undefined;
  #usual: Pace;
  #pace: Pace;
  /** Point of the next run, or of the one under way, and the one after it, on the clock of the pace. */
  #point = 0;
  #following = 0;
  /** How much later than its point the run is, by chance. */
  #delay = 0;

  constructor(item: T, context: ScheduleContext<T>) {
    this.name = item.name;
    this.#item = item;
    this.#context = context;
    this.#usual = this.#pace = usualPace(item, context);
    this.#moveTo(this.#comingPoint());
  }

  get isGone(): boolean {
    return this.#successor === null;
  }

  /** Takes the item as it is from now on; null: it is gone. Other times hold from the end of the run under way. */
  replace(item: T | null): void {
    if (item !== null && this.#successor === undefined && haveSameTimes(item, this.#item)) {
      this.#item = item;
      return;
    }
    this.#successor = item;
    if (this.underWay === null) this.#succeed();
  }

  /** Whether the run is due, by the clock of its pace: that of the wall may have been set. */
  isDue(): boolean {
    if (this.#pace.wasSetBack()) this.#setPoint(this.#comingPoint());
    if (this.#point + this.#delay <= this.#pace.clock()) return true;
    this.#setTurn();
    return false;
  }

  /** Whether the run after it is due too. */
  isNextDue(): boolean {
    return this.#following + this.#delay <= this.#pace.clock();
  }

  /** The run that is due. */
  due(): Due<T> {
    const point = this.#point + this.#delay;
    return { item: this.#item, scheduledAt: new Date(this.#pace.wall(point)), dueAt: this.#pace.monotonic(point) };
  }

  /** Leaves out all runs that are due. @returns Their number. */
  skip(): number {
    return this.#goOnFrom(this.#point);
  }

  /** Goes on after a run. @returns The number of those that fell due meanwhile, which are left out. */
  goOn({ dueAt, failed }: { readonly dueAt: number; readonly failed: boolean | void }): number {
    this.underWay = null;
    const pace = this.#nextPace(dueAt - this.#delay, failed);
    if (pace !== this.#pace) {
      this.#pace = pace;
      this.#following = this.#comingPoint();
    }
    const skipped = this.#goOnFrom(this.#following);
    this.#succeed();
    return skipped;
  }

  /** Moves to the point that follows, or to the first that has not passed. @returns Points from another to there. */
  #goOnFrom(point: number): number {
    const next = this.#following >= this.#pace.clock() ? this.#following : this.#comingPoint();
    this.#moveTo(next);
    return this.#pace.count(point, next);
  }

  #succeed(): void {
    if (!this.#successor) return;
    this.#item = this.#successor;
    this.#successor = undefined;
    this.#usual = this.#pace = usualPace(this.#item, this.#context);
    this.#moveTo(this.#comingPoint());
  }

  #comingPoint(): number {
    return this.#pace.from(this.#pace.clock());
  }

  #moveTo(point: number): void {
    this.#delay = this.#context.random() * (this.#item.jitterMs ?? 0);
    this.#setPoint(point);
  }

  #setPoint(point: number): void {
    this.#point = point;
    this.#following = this.#pace.after(point);
    this.#setTurn();
  }

  #setTurn(): void {
    const { now } = this.#context.clocks;
    this.turnAt = Math.min(this.#pace.monotonic(this.#point + this.#delay), now() + this.#pace.longestSleepMs);
  }

  /** The pace after a run: from the first that failed on, that of failing ones. */
  #nextPace(failedAt: number, failed: boolean | void): Pace {
    const intervalMs = this.#item.failingIntervalMs;
    if (failed === undefined || typeof intervalMs !== "number") return this.#pace;
    if (!failed) return this.#usual;
    if (this.#pace !== this.#usual) return this.#pace;
    return everyInterval({ first: failedAt + intervalMs, intervalMs }, this.#context.clocks);
  }
}

function usualPace(item: Scheduled, { start, clocks }: { readonly start: number; readonly clocks: Clocks }): Pace {
  if (item.cron) return byCron(item.cron, clocks);
  return everyInterval({ first: start + firstOffset(item), intervalMs: item.intervalMs }, clocks);
}

function haveSameTimes(a: Scheduled, b: Scheduled): boolean {
  const isPaceSame = a.cron && b.cron
    ? a.cron.expression === b.cron.expression && a.cron.timeZone === b.cron.timeZone
    : !a.cron && !b.cron && a.intervalMs === b.intervalMs;
  return isPaceSame && (a.jitterMs ?? 0) === (b.jitterMs ?? 0) &&
    (a.failingIntervalMs ?? null) === (b.failingIntervalMs ?? null);
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

/** Timers take no longer times: some 25 days. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** Calls back after a time. @returns What calls it off. */
function startTimer(ms: number, wake: () => void): () => void {
  // Fractions would be cut off: it would go off too early, and have to be set again.
  const timer = setTimeout(wake, Math.min(Math.max(0, Math.ceil(ms)), LONGEST_TIMER_MS));
  return () => clearTimeout(timer);
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
