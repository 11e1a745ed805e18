import assert from "node:assert/strict";
import { cronTimes } from "../lib/cron.ts";
import {
  afterAbort,
  firstOffset,
  runSchedule,
  type RunScheduleOptions,
  type Scheduled,
  sleepUntilAborted,
} from "../lib/schedule.ts";

const WALL_START = Date.UTC(2026, 0, 2);

/** A clock that stands still until it is told to go on, with the timers that go by it. */
class Clock {
  /** Monotonic time in ms. */
  time = 0;
  /** What the clock of the wall is ahead, in ms since 1970. */
  wallOffset = WALL_START;
  #timers: { readonly until: number; readonly wake: () => void }[] = [];

  /** Options of a schedule that goes by this clock. */
  options(signal: AbortSignal): RunScheduleOptions {
    return {
      signal,
      now: () => this.time,
      wallNow: () => this.wallOffset + this.time,
      wakeAfter: (ms, wake) => {
        const timer = { until: this.time + ms, wake };
        this.#timers.push(timer);
        return () => this.#timers = this.#timers.filter((other) => other !== timer);
      },
    };
  }

  /** Timers that have not gone off and were not called off. */
  get timers(): number {
    return this.#timers.length;
  }

  sleep(ms: number): Promise<void> {
    return new Promise((wake) => this.#timers.push({ until: this.time + ms, wake }));
  }

  /** Goes on, from one timer's time to the next's. */
  async advance(ms: number): Promise<void> {
    const end = this.time + ms;
    for (;;) {
      await settle();
      const [next] = this.#timers.sort((a, b) => a.until - b.until);
      if (next === undefined || next.until > end) break;
      this.#timers.shift();
      this.time = Math.max(this.time, next.until);
      next.wake();
    }
    this.time = end;
  }

  /** Goes on at once, as when the machine slept: nobody wakes on the way. */
  async jump(ms: number): Promise<void> {
    await settle();
    this.time += ms;
    await this.advance(0);
  }
}

/** Lets all that can go on without time going on do so. */
async function settle(): Promise<void> {
  for (let i = 0; i < 20; i++) await Promise.resolve();
}

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;

interface Item extends Scheduled {
  /** Tells an item from a later one of the same name. */
  readonly version?: number;
}

/** Lists of items that come one after the other. */
class Lists {
  #waiting: (readonly Item[])[] = [];
  #pushed = Promise.withResolvers<void>();

  push(items: readonly Item[]): void {
    this.#waiting.push(items);
    this.#pushed.resolve();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<readonly Item[]> {
    for (;;) {
      await this.#pushed.promise;
      this.#pushed = Promise.withResolvers();
      yield* this.#waiting.splice(0);
    }
  }
}

const ITEM: Item = { name: "apache", intervalMs: 1_000 };
const OFFSET = firstOffset(ITEM);

interface Run {
  readonly name: string;
  readonly startedAt: number;
  readonly scheduledAt: Date;
  readonly dueAt: number;
  readonly version: number | undefined;
}

interface Scenario {
  readonly items?: readonly Item[];
  /** Lists of items, instead of one. */
  readonly lists?: AsyncIterable<readonly Item[]>;
  /** Time that a run takes, by its number. */
  readonly takes?: (run: number) => number;
  /** Whether a run fails, by its number. */
  readonly fails?: (run: number) => boolean;
  /** What chance brings, in turn. */
  readonly chances?: readonly number[];
  /** Told of the begin (1) and the end (-1) of each run. */
  readonly onRun?: (change: number) => void;
  readonly during: (clock: Clock, controller: AbortController) => Promise<void>;
}

/** Runs a schedule by a clock of its own, to its end. */
async function play(
  { items = [ITEM], lists = [items] as never, takes = () => 0, fails, chances = [], onRun, during }: Scenario,
) {
  const clock = new Clock();
  const controller = new AbortController();
  const runs: Run[] = [];
  const skipped: [string, number][] = [];
  let running = 0;
  let chance = 0;
  const schedule = runSchedule(lists, async ({ item: { name, version }, scheduledAt, dueAt }) => {
    const run = runs.length;
    runs.push({ name, startedAt: clock.time, scheduledAt, dueAt, version });
    running++;
    onRun?.(1);
    const duration = takes(run);
    if (duration > 0) await clock.sleep(duration);
    running--;
    onRun?.(-1);
    return fails?.(run);
  }, {
    ...clock.options(controller.signal),
    onSkipped: (name, count) => skipped.push([name, count]),
    random: () => chances[chance++] ?? 0,
  });
  await during(clock, controller);
  controller.abort();
  await clock.advance(60_000);
  await schedule;
  assert.equal(running, 0, "runs that have begun are waited for");
  assert.equal(clock.timers, 0, "no timer is left behind");
  return { runs, skipped, starts: runs.map(({ startedAt }) => startedAt - OFFSET) };
}

Deno.test("runSchedule() runs at start + offset + n × interval, however long a run takes", async () => {
  const { runs, starts, skipped } = await play({
    takes: (run) => run * 97,
    during: (clock) => clock.advance(10_000),
  });
  assert.deepEqual(starts, [0, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 7_000, 8_000, 9_000]);
  assert.deepEqual(skipped, []);
  for (const { startedAt, scheduledAt } of runs) {
    assert.equal(scheduledAt.getTime(), Math.trunc(WALL_START + startedAt));
  }
});

Deno.test("runSchedule() leaves runs out that fall due while the one before goes on, and counts them", async () => {
  const { starts, skipped } = await play({
    takes: (run) => run === 1 ? 2_500 : 10,
    during: (clock) => clock.advance(6_000),
  });
  assert.deepEqual(starts, [0, 1_000, 4_000, 5_000]);
  assert.deepEqual(skipped, [["apache", 2]]);
});

Deno.test("runSchedule() starts no second run of an item, and does not hold up others", async () => {
  const other = { name: "nginx", intervalMs: 1_000 };
  const { runs } = await play({
    items: [ITEM, other],
    takes: (run) => run === 0 ? 50_000 : 0,
    during: (clock) => clock.advance(5_000),
  });
  const [first] = runs;
  assert.equal(runs.filter(({ name }) => name === first!.name).length, 1);
  assert.equal(runs.filter(({ name }) => name !== first!.name).length, 5);
});

Deno.test("runSchedule() makes up for nothing after the machine slept, and goes on in step", async () => {
  const { runs, starts, skipped } = await play({
    during: async (clock) => {
      await clock.advance(1_500 + OFFSET);
      await clock.jump(3_600_000);
      await clock.advance(2_000);
    },
  });
  assert.deepEqual(starts, [0, 1_000, 3_602_000, 3_603_000]);
  assert.deepEqual(skipped, [["apache", 3_600]]);
  assert.equal(runs[2]!.scheduledAt.getTime(), Math.trunc(WALL_START + OFFSET + 3_602_000));
});

Deno.test("runSchedule() runs late what was due during a short sleep of the machine", async () => {
  const { runs, starts, skipped } = await play({
    during: async (clock) => {
      await clock.advance(1_500 + OFFSET);
      await clock.jump(1_200);
      await clock.advance(1_000);
    },
  });
  assert.deepEqual(starts, [0, 1_000, 2_700, 3_000]);
  assert.deepEqual(skipped, []);
  assert.equal(runs[2]!.dueAt - OFFSET, 2_000);
  assert.equal(runs[2]!.scheduledAt.getTime(), Math.trunc(WALL_START + OFFSET + 2_000));
});

Deno.test("runSchedule() starts no burst when the machine wakes: many items go on at their places", async () => {
  const items = Array.from({ length: 100 }, (_, i) => ({ name: `site-${i}`, intervalMs: 10_000 }));
  const { runs } = await play({
    items,
    during: async (clock) => {
      await clock.advance(10_000);
      await clock.jump(3_605_000);
      await clock.advance(10_000);
    },
  });
  const after = runs.filter(({ startedAt }) => startedAt > 3_600_000);
  assert.equal(after.length, 100);
  assert.deepEqual(after.map(({ startedAt }) => startedAt), after.map(({ dueAt }) => dueAt));
});

/** Times of runs on the clock of the wall: from 2026-01-02T00:00Z. */
function wallTimes(runs: readonly Run[]): string[] {
  return runs.map(({ scheduledAt }) => scheduledAt.toISOString().slice(5, 19));
}

Deno.test("runSchedule() runs by a cron expression in its zone, however long a run takes", async () => {
  const cron = cronTimes("*/15 1,2 * * *", "Europe/Berlin");
  const { runs, skipped } = await play({
    items: [{ name: "nightly", intervalMs: 1_000, cron }],
    takes: () => 61_000,
    during: (clock) => clock.advance(24 * HOUR_MS + 16 * MINUTE_MS),
  });
  const day = ["00:00:00", "00:15:00", "00:30:00", "00:45:00", "01:00:00", "01:15:00", "01:30:00", "01:45:00"];
  assert.deepEqual(wallTimes(runs), [
    ...day.map((time) => `01-02T${time}`),
    ...["01-03T00:00:00", "01-03T00:15:00"],
  ]);
  for (const { startedAt, dueAt } of runs) assert.equal(startedAt, dueAt);
  assert.deepEqual(skipped, []);
});

Deno.test("runSchedule() leaves times of a cron expression out that come while a run goes on", async () => {
  const { runs, skipped } = await play({
    items: [{ name: "busy", intervalMs: 1_000, cron: cronTimes("*/5 * * * *") }],
    takes: (run) => run === 1 ? 12 * MINUTE_MS : 0,
    during: (clock) => clock.advance(26 * MINUTE_MS),
  });
  assert.deepEqual(wallTimes(runs), ["01-02T00:00:00", "01-02T00:05:00", "01-02T00:20:00", "01-02T00:25:00"]);
  assert.deepEqual(skipped, [["busy", 2]]);
});

Deno.test("runSchedule() by a cron expression starts no burst when the clock of the wall jumps or the machine slept", async () => {
  const { runs, skipped } = await play({
    items: [{ name: "busy", intervalMs: 1_000, cron: cronTimes("*/5 * * * *") }],
    during: async (clock) => {
      await clock.advance(6 * MINUTE_MS);
      clock.wallOffset += 10 * HOUR_MS;
      await clock.advance(5 * MINUTE_MS);
      await clock.jump(2 * HOUR_MS);
      await clock.advance(5 * MINUTE_MS);
    },
  });
  assert.deepEqual(wallTimes(runs), ["01-02T00:00:00", "01-02T00:05:00", "01-02T10:10:00", "01-02T12:15:00"]);
  assert.deepEqual(skipped, [["busy", 120], ["busy", 24]]);
});

Deno.test("runSchedule() by a cron expression follows a clock of the wall that is set back, but not its small corrections", async () => {
  const { runs } = await play({
    items: [{ name: "busy", intervalMs: 1_000, cron: cronTimes("*/5 * * * *") }],
    during: async (clock) => {
      await clock.advance(5 * MINUTE_MS + 1_000);
      clock.wallOffset -= 2_000;
      await clock.advance(5 * MINUTE_MS + 2_000);
      clock.wallOffset -= 2 * HOUR_MS;
      await clock.advance(5 * MINUTE_MS);
    },
  });
  assert.deepEqual(wallTimes(runs), ["01-02T00:00:00", "01-02T00:05:00", "01-02T00:10:00", "01-01T22:15:00"]);
});

Deno.test("runSchedule() delays each run by chance up to the jitter, and moves none of the others", async () => {
  const chances = [0.5, 0, 0.25, 0.75, 0];
  const { runs, starts } = await play({
    items: [{ ...ITEM, jitterMs: 400 }],
    chances,
    during: (clock) => clock.advance(OFFSET + 4_000),
  });
  assert.deepEqual(starts, [200, 1_000, 2_100, 3_300, 4_000]);
  for (const { startedAt, dueAt } of runs) assert.equal(startedAt, dueAt, "the delay is no lateness");
});

Deno.test("runSchedule() runs a failing item at its own interval, and goes back to its place when it does not fail", async () => {
  const { starts } = await play({
    items: [{ ...ITEM, failingIntervalMs: 300 }],
    fails: (run) => run >= 1 && run <= 4,
    during: (clock) => clock.advance(OFFSET + 5_000),
  });
  assert.deepEqual(starts, [0, 1_000, 1_300, 1_600, 1_900, 2_200, 3_000, 4_000, 5_000]);
});

Deno.test("runSchedule() runs an item that goes on failing less often, where its interval says so", async () => {
  const { starts } = await play({
    items: [{ ...ITEM, failingIntervalMs: 2_500 }],
    fails: (run) => run < 3,
    during: (clock) => clock.advance(OFFSET + 10_000),
  });
  assert.deepEqual(starts, [0, 2_500, 5_000, 7_500, 8_000, 9_000, 10_000]);
});

Deno.test("runSchedule() takes lists: new items begin, gone ones end, unchanged ones keep their place", async () => {
  const lists = new Lists();
  const [a, b, c] = ["a", "b", "c"].map((name) => ({ name, intervalMs: 1_000 })) as [Item, Item, Item];
  const { runs } = await play({
    lists,
    takes: () => 50,
    during: async (clock) => {
      lists.push([a, b]);
      await clock.advance(2_500);
      lists.push([{ ...b, version: 2 }, c]);
      await clock.advance(2_500);
      lists.push([{ ...b, intervalMs: 500 }]);
      await clock.advance(1_000);
    },
  });
  const starts = (item: Item) => runs.filter(({ name }) => name === item.name).map(({ startedAt }) => startedAt);
  const grid = (item: Item, from: number, to: number) => {
    const times = [];
    for (let time = firstOffset(item); time <= to; time += item.intervalMs) if (time >= from) times.push(time);
    return times;
  };
  assert.deepEqual(starts(a), grid(a, 0, 2_500));
  assert.deepEqual(starts(b), [...grid(b, 0, 5_000), ...grid({ ...b, intervalMs: 500 }, 5_000, 6_000)]);
  assert.deepEqual(starts(c), grid(c, 2_500, 5_000));
  assert.deepEqual(
    runs.filter(({ name, version }) => name === "b" && version === 2).map(({ startedAt }) => startedAt),
    grid(b, 2_500, 5_000),
  );
});

Deno.test("runSchedule() lets the run of an item that is gone end, and starts no second one when it comes back meanwhile", async () => {
  const lists = new Lists();
  let running = 0;
  const { runs } = await play({
    lists,
    takes: (run) => run === 0 ? 3_300 : 10,
    onRun: (change) => assert.ok((running += change) <= 1),
    during: async (clock) => {
      lists.push([ITEM]);
      await clock.advance(OFFSET + 100);
      lists.push([]);
      await clock.advance(1_000);
      lists.push([ITEM]);
      await clock.advance(4_000);
      lists.push([]);
      await clock.advance(2_000);
    },
  });
  assert.deepEqual(runs.map(({ startedAt }) => startedAt - OFFSET), [0, 4_000, 5_000]);
});

Deno.test("runSchedule() takes other times at once, shorter and longer ones, and leaves no turn of the former ones", async () => {
  const lists = new Lists();
  const { runs } = await play({
    lists,
    during: async (clock) => {
      for (const intervalMs of [HOUR_MS, 1_000, HOUR_MS, 2_000]) {
        lists.push([{ ...ITEM, intervalMs, version: intervalMs }]);
        await clock.advance(3_000);
      }
      lists.push([]);
      await clock.advance(HOUR_MS);
    },
  });
  const seconds = [3_000, 4_000, 5_000].map((time) => time + OFFSET);
  const twoSeconds = [8_000, 10_000].map((time) => time + firstOffset({ ...ITEM, intervalMs: 2_000 }));
  assert.deepEqual(runs.map(({ startedAt }) => startedAt), [...seconds, ...twoSeconds]);
  assert.deepEqual(runs.map(({ version }) => version), [1_000, 1_000, 1_000, 2_000, 2_000]);
});

Deno.test("runSchedule() sets one timer for all items", async () => {
  await play({
    items: Array.from({ length: 100 }, (_, i) => ({ name: `site-${i}`, intervalMs: 1_000 + i })),
    during: async (clock) => {
      for (let i = 0; i < 100; i++) {
        await clock.advance(99);
        await settle();
        assert.equal(clock.timers, 1);
      }
    },
  });
});

Deno.test("runSchedule() goes by the clocks and the timer of the machine where none are given", async () => {
  const controller = new AbortController();
  const names: string[] = [];
  await runSchedule(
    [[ITEM, { name: "nginx", intervalMs: 5 }, { name: "rare", intervalMs: 365 * 24 * HOUR_MS }]],
    ({ item }) => {
      names.push(item.name);
      if (item.name === "apache") controller.abort();
      return Promise.resolve();
    },
    { signal: controller.signal },
  );
  assert.ok(names.includes("nginx"));
  assert.equal(names.at(-1), "apache");
});

Deno.test("runSchedule() ends with the error of its lists", async () => {
  const clock = new Clock();
  const lists = (async function* () {
    yield [ITEM];
    await settle();
    throw new Error("no list");
  })();
  const { signal } = new AbortController();
  await assert.rejects(runSchedule(lists, () => Promise.resolve(), clock.options(signal)), /^Error: no list$/);
});

Deno.test("runSchedule() follows a clock of the wall that is set, without a burst", async () => {
  const { runs, starts } = await play({
    during: async (clock) => {
      await clock.advance(1_500 + OFFSET);
      clock.wallOffset += 3_600_000;
      await clock.advance(1_000);
      clock.wallOffset -= 7_200_000;
      await clock.advance(1_000);
    },
  });
  assert.deepEqual(starts, [0, 1_000, 2_000, 3_000]);
  const wall = runs.map(({ scheduledAt }) => scheduledAt.getTime() - Math.trunc(WALL_START + OFFSET));
  assert.deepEqual(wall, [0, 1_000, 3_602_000, -3_597_000]);
});

Deno.test("runSchedule() ends by its signal, after the runs that have begun", async () => {
  const { starts } = await play({
    takes: () => 700,
    during: async (clock, controller) => {
      await clock.advance(OFFSET + 1_100);
      controller.abort();
    },
  });
  assert.deepEqual(starts, [0, 1_000]);
});

Deno.test("runSchedule() runs nothing when its signal is aborted already", async () => {
  await runSchedule([[ITEM]], () => assert.fail("a run"), { signal: AbortSignal.abort() });
});

Deno.test("runSchedule() ends with the error of a run, after those of others", async () => {
  const clock = new Clock();
  let others = 0;
  const schedule = runSchedule([[ITEM, { name: "nginx", intervalMs: 1_000 }]], async ({ item: { name } }) => {
    if (name === "apache") throw new Error("broken pipe");
    await clock.sleep(5_000);
    others++;
  }, clock.options(new AbortController().signal));
  const rejected = assert.rejects(schedule, /^Error: broken pipe$/);
  await clock.advance(60_000);
  await rejected;
  assert.ok(others <= 1);
});

Deno.test("runSchedule() ends with the error of what is told of runs that were left out", async () => {
  const clock = new Clock();
  const schedule = runSchedule([[ITEM]], () => Promise.resolve(), {
    ...clock.options(new AbortController().signal),
    onSkipped: () => {
      throw new Error("cannot count");
    },
  });
  const rejected = assert.rejects(schedule, /^Error: cannot count$/);
  await clock.advance(OFFSET + 100);
  await clock.jump(HOUR_MS);
  await rejected;
  assert.equal(clock.timers, 0);
});

Deno.test("firstOffset() spreads many names evenly over the interval", () => {
  const counts = new Array<number>(10).fill(0);
  for (let i = 0; i < 1_000; i++) {
    const offset = firstOffset({ name: `site-${i}`, intervalMs: 10_000 });
    assert.ok(offset >= 0 && offset < 10_000);
    counts[Math.floor(offset / 1_000)]!++;
  }
  // 100 each are expected; three and a half times the standard deviation of 9.5 is allowed.
  assert.ok(counts.every((count) => count > 66 && count < 134), `${counts}`);
});

Deno.test("firstOffset() leaves a name its place", () => {
  assert.equal(
    firstOffset({ name: "apache", intervalMs: 10_000 }),
    firstOffset({ name: "apache", intervalMs: 10_000 }),
  );
  assert.equal(
    firstOffset({ name: "apache", intervalMs: 5_000 }) * 2,
    firstOffset({ name: "apache", intervalMs: 10_000 }),
  );
});

Deno.test("sleepUntilAborted() resolves after its time, at once when the signal is aborted, and leaves nothing behind", async () => {
  const controller = new AbortController();
  await sleepUntilAborted(1, controller.signal);
  await sleepUntilAborted(-1, controller.signal);
  const sleeping = sleepUntilAborted(60_000, controller.signal);
  controller.abort();
  await sleeping;
  await sleepUntilAborted(60_000, controller.signal);
});

Deno.test("afterAbort() is aborted some time after the other signal, also where that is aborted already", async () => {
  const controller = new AbortController();
  const after = afterAbort(controller.signal, 20);
  await sleepUntilAborted(40, new AbortController().signal);
  assert.equal(after.aborted, false);
  controller.abort();
  assert.equal(after.aborted, false);
  for (const signal of [after, afterAbort(controller.signal, 20)]) {
    await sleepUntilAborted(10_000, signal);
    assert.equal(signal.aborted, true);
  }
});
