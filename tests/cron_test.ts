import assert from "node:assert/strict";
import { cronTimes, timeZone } from "../lib/cron.ts";

interface Case {
  readonly expression: string;
  readonly timeZone?: string;
  readonly after: string;
  readonly next: string;
}

const TIMES: readonly Case[] = [
  { expression: "*/5 * * * *", after: "2026-01-01T00:00:00.000Z", next: "2026-01-01T00:05:00.000Z" },
  { expression: "*/5 * * * *", after: "2026-01-01T00:04:59.999Z", next: "2026-01-01T00:05:00.000Z" },
  { expression: "*/10 * * * * *", after: "2026-01-01T00:00:01.000Z", next: "2026-01-01T00:00:10.000Z" },
  { expression: "@hourly", after: "2026-01-01T00:00:01.000Z", next: "2026-01-01T01:00:00.000Z" },
  { expression: " 0 3 * * sun ", after: "2026-01-01T00:00:00.000Z", next: "2026-01-04T03:00:00.000Z" },
  {
    expression: "0 3 * * *",
    timeZone: "Asia/Kolkata",
    after: "2026-01-01T00:00:00.000Z",
    next: "2026-01-01T21:30:00.000Z",
  },
  // Clocks go forward at 02:00 on 29 March, and back at 03:00 on 25 October.
  {
    expression: "30 2 * * *",
    timeZone: "Europe/Berlin",
    after: "2026-03-29T00:00:00.000Z",
    next: "2026-03-29T01:00:00.000Z",
  },
  {
    expression: "30 2 * * *",
    timeZone: "Europe/Berlin",
    after: "2026-10-25T00:00:00.000Z",
    next: "2026-10-25T00:30:00.000Z",
  },
  {
    expression: "30 2 * * *",
    timeZone: "Europe/Berlin",
    after: "2026-10-25T00:30:00.000Z",
    next: "2026-10-26T01:30:00.000Z",
  },
];

Deno.test.each(TIMES)("cronTimes() of $expression $timeZone after $after", ({ expression, timeZone, after, next }) => {
  assert.equal(new Date(cronTimes(expression, timeZone).next(Date.parse(after))).toISOString(), next);
});

const WRONG: readonly (readonly [string, RegExp])[] = [
  ["often", /^SyntaxError: expected a cron expression such as 0 3 \* \* sun \(.*exactly five/],
  ["60 * * * *", /^SyntaxError: expected a cron expression such as 0 3 \* \* sun \(Invalid value for minute: 60\)$/],
  ["", /^SyntaxError: expected a cron expression/],
  ["2026-01-01T00:00:00", /^SyntaxError: expected a cron expression/],
  ["0 0 30 2 *", /^RangeError: expected a cron expression with a time that comes$/],
];

Deno.test.each(WRONG)("cronTimes() refuses '%s'", (expression, message) => {
  assert.throws(() => cronTimes(expression), message);
});

Deno.test("timeZone() takes IANA names alone", () => {
  assert.equal(timeZone()("Europe/Berlin"), "Europe/Berlin");
  for (const zone of ["Mars/Olympus", "", "CET+1x"]) {
    assert.throws(() => timeZone()(zone), /^RangeError: expected a time zone such as UTC or Europe\/Berlin$/);
  }
});
