import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import { LookUps } from "../lib/lookup.ts";
import type { Metric } from "../lib/metric.ts";
import { NameGate } from "../lib/name_gate.ts";

const UP = { status_code: 200, error: null, failed_phase: null } as Metric;
const NO_NAME = { status_code: null, error: "dns_other", failed_phase: "dns" } as Metric;

/** Look-ups that take their time by the name, and count what is under way. */
function slowLookUps(timeMs: (name: string) => number): { lookUps: LookUps; most: () => number; asked: string[] } {
  let [now, most] = [0, 0];
  const asked: string[] = [];
  const resolve = async (name: string) => {
    asked.push(name);
    most = Math.max(most, ++now);
    await delay(timeMs(name));
    now--;
    return [{ address: "192.0.2.1" }];
  };
  return { lookUps: new LookUps({ resolve }), most: () => most, asked };
}

const OPTIONS = { timeoutMs: 10_000, signal: new AbortController().signal };

Deno.test("NameGate.pass() lets addresses and names that are known to be quick pass at once", async () => {
  const { lookUps, asked } = slowLookUps(() => 1);
  const gate = new NameGate({ lookUps });
  for (const host of ["192.0.2.1", "[::1]", "a.test", "a.test"]) {
    assert.equal(await gate.pass(host, () => Promise.resolve(UP), OPTIONS), UP);
  }
  assert.deepEqual(asked, ["a.test"]);
});

Deno.test("NameGate.pass() looks a name up again once it is in trouble", async () => {
  const { lookUps, asked } = slowLookUps(() => 1);
  const gate = new NameGate({ lookUps });
  for (const metric of [UP, NO_NAME, UP, UP]) await gate.pass("a.test", () => Promise.resolve(metric), OPTIONS);
  assert.deepEqual(asked, ["a.test", "a.test"]);
});

Deno.test("NameGate.pass() makes few checks at a time of names that are slow, and holds up no quick one", async () => {
  const { lookUps, most } = slowLookUps((name) => name.startsWith("slow") ? 600 : 1);
  const gate = new NameGate({ lookUps });
  await gate.pass("quick.test", () => Promise.resolve(UP), OPTIONS);
  let [now, mostChecks] = [0, 0];
  const checkSlow = async () => {
    mostChecks = Math.max(mostChecks, ++now);
    await delay(20);
    now--;
    return NO_NAME;
  };
  let done = 0;
  const slow = Array.from(
    { length: 40 },
    (_, i) => gate.pass(`slow-${i}.test`, checkSlow, OPTIONS).then(() => void done++),
  );
  assert.equal(await gate.pass("quick.test", () => Promise.resolve(UP), OPTIONS), UP);
  assert.equal(done, 0);
  await Promise.all(slow);
  assert.ok(mostChecks <= 4, `${mostChecks} checks`);
  assert.ok(most() <= 16, `${most()} look-ups`);
});

Deno.test("NameGate.pass() makes the check where the look-up fails, or takes longer than the check may", async () => {
  const failing = new NameGate({ lookUps: new LookUps({ resolve: () => Promise.reject(new Error("ENOTFOUND")) }) });
  assert.equal(await failing.pass("a.test", () => Promise.resolve(NO_NAME), OPTIONS), NO_NAME);
  const never = Promise.withResolvers<[]>();
  const hanging = new NameGate({ lookUps: new LookUps({ resolve: () => never.promise }) });
  const metric = await hanging.pass("a.test", () => Promise.resolve(NO_NAME), { ...OPTIONS, timeoutMs: 10 });
  assert.equal(metric, NO_NAME);
  never.resolve([]);
});

Deno.test("NameGate.pass() ends with its signal", async () => {
  const never = Promise.withResolvers<[]>();
  const gate = new NameGate({ lookUps: new LookUps({ resolve: () => never.promise }) });
  const controller = new AbortController();
  const pass = gate.pass("a.test", () => assert.fail("a check"), { ...OPTIONS, signal: controller.signal });
  controller.abort(new Error("ending"));
  await assert.rejects(pass, /^Error: ending$/);
  never.resolve([]);
});
