import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import { Deadline } from "../lib/deadline.ts";
import { whenAborted } from "../lib/schedule.ts";

Deno.test("Deadline aborts with a TimeoutError when time is up", async () => {
  using deadline = new Deadline(1);
  await whenAborted(deadline.signal);
  assert.equal(deadline.signal.reason.name, "TimeoutError");
});

Deno.test("Deadline ends in its own time, beside others of the same length", async () => {
  const ended: number[] = [];
  const begin = (number: number) => {
    const deadline = new Deadline(30);
    deadline.signal.addEventListener("abort", () => ended.push(number));
    return deadline;
  };
  const early = [1, 2, 3].map(begin);
  early[1]![Symbol.dispose]();
  await delay(15);
  // Begun by what the end of another brings about.
  const last = Promise.withResolvers<void>();
  early[2]!.signal.addEventListener("abort", () => begin(5).signal.addEventListener("abort", () => last.resolve()));
  const late = begin(4);
  await whenAborted(early[2]!.signal);
  assert.deepEqual(ended, [1, 3]);
  assert.equal(late.signal.aborted, false);
  await last.promise;
  assert.deepEqual(ended, [1, 3, 4, 5]);
});

Deno.test("Deadline ends with another signal, for its reason, at once where that has ended before", () => {
  const controller = new AbortController();
  using one = new Deadline(60_000, controller.signal);
  using other = new Deadline(60_000, controller.signal);
  assert.equal(one.signal.aborted, false);
  const reason = new Error("the end");
  controller.abort(reason);
  using late = new Deadline(60_000, controller.signal);
  for (const { signal } of [one, other, late]) assert.equal(signal.reason, reason);
});

Deno.test("Deadline that is let go of does not end with the other signal", () => {
  const controller = new AbortController();
  const deadline = new Deadline(60_000, controller.signal);
  deadline[Symbol.dispose]();
  controller.abort();
  assert.equal(deadline.signal.aborted, false);
});
