import assert from "node:assert/strict";
import type { Log } from "../lib/log.ts";
import { retryForever } from "../lib/retry.ts";
import { sleepUntilAborted } from "../lib/schedule.ts";

/** Log that keeps its lines, with the properties put in. */
function memoryLog(): Log & { readonly lines: string[] } {
  const lines: string[] = [];
  const write = (level: string) => (message: string, properties: Record<string, unknown> = {}) =>
    void lines.push(`${level} ${message.replace(/\{(\w+)\}/g, (_, name) => String(properties[name]))}`);
  return { lines, debug: write("debug"), info: write("info"), warn: write("warn"), error: write("error") };
}

Deno.test("retryForever() returns what the work does, and says nothing", async () => {
  const log = memoryLog();
  assert.equal(await retryForever(() => Promise.resolve(1), { what: "Kafka", log }), 1);
  assert.deepEqual(log.lines, []);
});

Deno.test("retryForever() tries again until the work is done, and says so now and then", async () => {
  const log = memoryLog();
  let time = 0;
  let attempts = 0;
  const sleep = () => Promise.resolve();
  const result = await retryForever(() => {
    attempts++;
    time += 10_000;
    if (attempts === 1) throw new TypeError("fetch failed", { cause: new Error("refused") });
    if (attempts < 4) return Promise.reject(new Error(`attempt ${attempts}`));
    return Promise.resolve("done");
  }, { what: "Kafka", log, now: () => time, sleep });
  assert.equal(result, "done");
  assert.equal(attempts, 4);
  assert.deepEqual(log.lines, [
    "warn Cannot use Kafka, trying again: fetch failed: refused",
    "warn Cannot use Kafka, trying again: attempt 3",
    "info Kafka is back after 30 s",
  ]);
});

Deno.test("retryForever() waits longer and longer, up to five seconds, each time up to a half less", async () => {
  const waits: number[] = [];
  await retryForever(() => waits.length < 9 ? Promise.reject(new Error("away")) : Promise.resolve(), {
    what: "Kafka",
    log: memoryLog(),
    sleep: (ms) => Promise.resolve(void waits.push(ms)),
  });
  const longest = [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000];
  assert.ok(waits.every((wait, i) => wait <= longest[i]! && wait >= longest[i]! / 2), `${waits}`);
});

Deno.test("retryForever() throws an error that is final, and does not try again", async () => {
  const log = memoryLog();
  for (const final of [new Error("password"), new TypeError("password")]) {
    let attempts = 0;
    const work = () => {
      attempts++;
      return Promise.reject(final);
    };
    const trying = retryForever(work, { what: "Kafka", log, isFinal: (error) => error === final });
    await assert.rejects(trying, (error) => error === final);
    assert.equal(attempts, 1);
  }
  assert.deepEqual(log.lines, []);
});

Deno.test("retryForever() throws a permission that is missing", async () => {
  const denied = new Deno.errors.NotCapable("Requires net access");
  const trying = retryForever(() => Promise.reject(denied), { what: "Kafka", log: memoryLog() });
  await assert.rejects(trying, (error) => error === denied);
});

Deno.test("retryForever() rejects with the signal's reason, without waiting on", async () => {
  const controller = new AbortController();
  const { signal } = controller;
  const reason = new Error("ended");
  const trying = retryForever(() => {
    setTimeout(() => controller.abort(reason), 10);
    return Promise.reject(new Error("away"));
  }, { what: "Kafka", log: memoryLog(), signal, sleep: (_, signal) => sleepUntilAborted(60_000, signal) });
  await assert.rejects(trying, reason);
  const work = () => assert.fail("work after the end");
  await assert.rejects(retryForever(work, { what: "Kafka", log: memoryLog(), signal }), reason);
});
