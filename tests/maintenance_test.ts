import assert from "node:assert/strict";
import { createMaintenance, isWithin, maintenanceWindow } from "../lib/maintenance.ts";

const WINDOWS = ["0 3 * * sun 2h", "@monthly 1m"].map((text) => maintenanceWindow()(text));
const BERLIN = createMaintenance(WINDOWS, { timeZone: "Europe/Berlin", checks: "mark" })!;

const TIMES: readonly (readonly [string, boolean])[] = [
  ["2026-01-04T01:59:59.999Z", false],
  ["2026-01-04T02:00:00.000Z", true],
  ["2026-01-04T03:59:59.999Z", true],
  ["2026-01-04T04:00:00.000Z", false],
  ["2026-01-05T02:30:00.000Z", false],
  ["2026-01-31T23:00:59.000Z", true],
  ["2026-01-31T23:01:00.000Z", false],
];

Deno.test.each(TIMES)("isWithin() at %s is %s", (time, expected) => {
  assert.equal(isWithin(BERLIN, Date.parse(time)), expected);
});

Deno.test("isWithin() a window that is longer than from one begin to the next is always so", () => {
  const maintenance = createMaintenance([maintenanceWindow()("0 * * * * 2h")], { timeZone: "UTC", checks: "skip" })!;
  assert.equal(isWithin(maintenance, Date.parse("2026-01-01T00:30:00Z")), true);
});

Deno.test("createMaintenance() of no windows is none", () => {
  assert.equal(createMaintenance([], { timeZone: "UTC", checks: "mark" }), null);
});

Deno.test.each(["0 3 * * sun", "0 0 3 * * 7", "2h", "", "0 3 * * sun two"])(
  "maintenanceWindow() refuses '%s'",
  (text) => {
    assert.throws(() => maintenanceWindow()(text), /^SyntaxError: expected a cron expression/);
  },
);
