import assert from "node:assert/strict";
import { Deadline } from "../lib/deadline.ts";
import { whenAborted } from "../lib/schedule.ts";

Deno.test("Deadline aborts with a TimeoutError when time is up", async () => {
  using deadline = new Deadline(1);
  await whenAborted(deadline.signal);
  assert.equal(deadline.signal.reason.name, "TimeoutError");
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
