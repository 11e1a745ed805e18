import assert from "node:assert/strict";
import { afterAbort, firstOffset, runSchedule, type RunScheduleOptions, sleepUntilAborted } from "../lib/schedule.ts";

const WALL_START = Date.UTC(2026, 0, 2);

/** A clock that stands still until it is told to go on, with those that sleep by it. */
class Clock {
  /** Monotonic time in ms. */
  time = 0;
  /** What the clock of the wall is ahead, in ms since 1970. */
  wallOffset = WALL_START;
  #sleepers: { readonly until: number; readonly wake: () => void }[] = [];

  /** Options of a schedule that goes by this clock. */
  options(signal: AbortSignal): RunScheduleOptions {
    return { signal, now: () => this.time, wallNow: () => this.wallOffset + this.time, sleep: this.sleep };
  }

  sleep = (ms: number, signal: AbortSignal): Promise<void> =>
    new Promise((resolve) => {
      if (signal.aborted) return resolve();
      signal.addEventListener("abort", () => resolve(), { once: true });
      this.#sleepers.push({ until: this.time + ms, wake: resolve });
    });

  /** Goes on, from one sleeper's time to the next's. */
  async advance(ms: number): Promise<void> {
    const end = this.time + ms;
    for (;;) {
      await settle();
      const [next] = this.#sleepers.sort((a, b) => a.until - b.until);
      if (next === undefined || next.until > end) break;
      this.#sleepers.shift();
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

const ITEM = { name: "apache", intervalMs: 1_000 };
const OFFSET = firstOffset(ITEM);

interface Run {
  readonly name: string;
  readonly startedAt: number;
  readonly scheduledAt: Date;
}

interface Scenario {
  readonly items?: readonly (typeof ITEM)[];
  /** Time that a run takes, by its number. */
  readonly takes?: (run: number) => number;
  readonly during: (clock: Clock, controller: AbortController) => Promise<void>;
}

/** Runs a schedule by a clock of its own, to its end. */
async function play({ items = [ITEM], takes = () => 0, during }: Scenario) {
  const clock = new Clock();
  const controller = new AbortController();
  const runs: Run[] = [];
  const skipped: [string, number][] = [];
  let running = 0;
  const schedule = runSchedule(items, async ({ item: { name }, scheduledAt }) => {
    const startedAt = clock.time;
    runs.push({ name, startedAt, scheduledAt });
    running++;
    const duration = takes(runs.length - 1);
    if (duration > 0) await clock.sleep(duration, new AbortController().signal);
    running--;
  }, { ...clock.options(controller.signal), onSkipped: (name, count) => skipped.push([name, count]) });
  await during(clock, controller);
  controller.abort();
  await clock.advance(60_000);
  await schedule;
  assert.equal(running, 0, "runs that have begun are waited for");
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

Deno.test("runSchedule() runs once after the machine slept, and goes on in step", async () => {
  const { runs, starts, skipped } = await play({
    during: async (clock) => {
      await clock.advance(1_500 + OFFSET);
      await clock.jump(3_600_000);
      await clock.advance(2_000);
    },
  });
  assert.deepEqual(starts, [0, 1_000, 3_601_500, 3_602_000, 3_603_000]);
  assert.deepEqual(skipped, [["apache", 3_599]]);
  assert.equal(runs[2]!.scheduledAt.getTime(), Math.trunc(WALL_START + OFFSET + 2_000), "it was due long ago");
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
  await runSchedule([ITEM], () => assert.fail("a run"), { signal: AbortSignal.abort() });
});

Deno.test("runSchedule() ends with the error of a run, after those of others", async () => {
  const clock = new Clock();
  let others = 0;
  const schedule = runSchedule([ITEM, { name: "nginx", intervalMs: 1_000 }], async ({ item: { name } }) => {
    if (name === "apache") throw new Error("broken pipe");
    await clock.sleep(5_000, new AbortController().signal);
    others++;
  }, clock.options(new AbortController().signal));
  const rejected = assert.rejects(schedule, /^Error: broken pipe$/);
  await clock.advance(60_000);
  await rejected;
  assert.ok(others <= 1);
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
