import type { CronTimes } from "./cron.ts";

/** Clocks to go by. */
export interface Clocks {
  /** Clock that never jumps, in ms. */
  readonly now: () => number;
  /** Clock of the wall, in ms since 1970. */
  readonly wallNow: () => number;
}

/** Points in time, on a clock of its own. */
export interface Pace {
  /** Longest sleep that trusts the clock, in ms. */
  readonly longestSleepMs: number;
  /** The clock. */
  clock(): number;
  /** First point at a time or after it. */
  from(time: number): number;
  /** The point after another. */
  after(point: number): number;
  /** Points from a time to before another. */
  count(from: number, to: number): number;
  /** A point on the monotonic clock. */
  monotonic(point: number): number;
  /** A point on the clock of the wall. */
  wall(point: number): number;
  /** Whether the clock was set back since it was asked last, so that points have to be looked for anew. */
  wasSetBack(): boolean;
}

/** A clock of the wall that is put back by less, as time servers do, is waited for. */
const SET_BACK_MS = 60_000;
/** A clock of the wall that is set is noticed after this time. */
const LONGEST_CRON_SLEEP_MS = 10_000;
/** Points of a cron expression that were left out are counted up to here. */
const MAX_COUNT = 10_000;
/** What floating point may put a point beside its place, as a share of the interval. */
const ROUNDING = 1e-9;

/** Points at `first + n × interval`, on the monotonic clock: when that of the wall is set, they stay. */
export function everyInterval(
  { first, intervalMs }: { readonly first: number; readonly intervalMs: number },
  clocks: Clocks,
): Pace {
  return new IntervalPace(first, intervalMs, clocks);
}

/** A class, since each of thousands of sites has one: functions of its own would take ten times the memory. */
class IntervalPace implements Pace {
  readonly longestSleepMs = Infinity;
  readonly #first: number;
  readonly #intervalMs: number;
  readonly #clocks: Clocks;

  constructor(first: number, intervalMs: number, clocks: Clocks) {
    this.#first = first;
    this.#intervalMs = intervalMs;
    this.#clocks = clocks;
  }

  clock(): number {
    return this.#clocks.now();
  }

  from(time: number): number {
    return this.#first + Math.max(0, Math.ceil(this.#place(time) - ROUNDING)) * this.#intervalMs;
  }

  after(point: number): number {
    return this.#first + (Math.round(this.#place(point)) + 1) * this.#intervalMs;
  }

  count(from: number, to: number): number {
    return Math.max(0, Math.round(this.#place(to) - this.#place(from)));
  }

  monotonic(point: number): number {
    return point;
  }

  /** From the clock of the wall as it is now, which may have been set since the start. */
  wall(point: number): number {
    return this.#clocks.wallNow() - (this.#clocks.now() - point);
  }

  wasSetBack(): boolean {
    return false;
  }

  #place(point: number): number {
    return (point - this.#first) / this.#intervalMs;
  }
}

/** Points of a cron expression, on the clock of the wall. */
export function byCron(times: CronTimes, { now, wallNow }: Clocks): Pace {
  let offset = wallNow() - now();
  return {
    longestSleepMs: LONGEST_CRON_SLEEP_MS,
    clock: wallNow,
    from: (time) => times.next(time - 1),
    after: (point) => times.next(point),
    count: (from, to) => {
      let count = 0;
      for (let point = from; point < to && count < MAX_COUNT; point = times.next(point)) count++;
      return count;
    },
    monotonic: (point) => now() - (wallNow() - point),
    wall: (point) => point,
    wasSetBack: () => {
      const before = offset;
      offset = wallNow() - now();
      return offset < before - SET_BACK_MS;
    },
  };
}
