import assert from "node:assert/strict";
import { Lateness } from "../lib/lateness.ts";

Deno.test("Lateness.take() gives quantiles to 5 %, the greatest and what was left out, since the last call", () => {
  const lateness = new Lateness();
  for (let i = 1; i <= 1_000; i++) lateness.add(i / 10);
  lateness.skip(3);
  lateness.fail();
  const { p50, p99, ...counts } = lateness.take();
  assert.deepEqual(counts, { checks: 1_000, max: 100, skipped: 3, failed: 1 });
  assert.ok(p50 >= 50 && p50 <= 52.5, `${p50}`);
  assert.ok(p99 >= 99 && p99 <= 100, `${p99}`);
  assert.deepEqual(lateness.take(), { checks: 0, p50: 0, p99: 0, max: 0, skipped: 0, failed: 0 });
});

Deno.test("Lateness.take() of checks in time", () => {
  const lateness = new Lateness();
  for (const ms of [-0.4, 0, 0.05]) lateness.add(ms);
  assert.deepEqual(lateness.take(), { checks: 3, p50: 0.1, p99: 0.1, max: 0.1, skipped: 0, failed: 0 });
});
