import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import { Timer } from "../lib/timer.ts";

Deno.test("Timer calls in its own time, beside others of the same length", async () => {
  const called: number[] = [];
  const { promise: end, resolve } = Promise.withResolvers<void>();
  new Timer(30, () => called.push(1));
  using second = new Timer(30, () => called.push(2));
  new Timer(30, () => {
    called.push(3);
    assert.deepEqual(called, [1, 3]);
    // Begun by a call, of this length and of another.
    new Timer(5, () => called.push(5));
    new Timer(30, resolve);
  });
  second[Symbol.dispose]();
  await delay(15);
  new Timer(30, () => called.push(4));
  await end;
  assert.deepEqual(called.toSorted(), [1, 3, 4, 5]);
});

Deno.test("Timer that is let go of by the call of another is not called, and the next still is", async () => {
  const called: string[] = [];
  const { promise: end, resolve } = Promise.withResolvers<void>();
  new Timer(5, () => last[Symbol.dispose]());
  using last = new Timer(5, () => called.push("let go of"));
  new Timer(5, resolve);
  await end;
  assert.deepEqual(called, []);
});

Deno.test("Timer does not count time in which the process stands still", async () => {
  const { promise: end, resolve } = Promise.withResolvers<number>();
  let turns = 0;
  new Timer(100, () => resolve(turns));
  const until = performance.now() + 300;
  while (performance.now() < until);
  // What came meanwhile has its turn before it.
  for (; turns < 3; turns++) await delay(0);
  assert.equal(await end, 3);
});

Deno.test("Timer that begins when the process goes on has no more than its own time", async () => {
  using _before = new Timer(100, () => {});
  const until = performance.now() + 1_000;
  while (performance.now() < until);
  const called: string[] = [];
  const { promise: end, resolve } = Promise.withResolvers<void>();
  new Timer(100, () => called.push("timer"));
  setTimeout(() => resolve(), 700);
  await end;
  assert.deepEqual(called, ["timer"]);
});

Deno.test("Timer leaves nothing that runs when the last of its length is let go of", () => {
  // The test's sanitizers would find it.
  for (let i = 0; i < 3; i++) new Timer(60_000, () => {})[Symbol.dispose]();
});
