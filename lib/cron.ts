import { Cron } from "croner";
import { parser, type ParseValue } from "./value.ts";

/** Times of day, week or year. */
export interface CronTimes {
  /** As it was written. */
  readonly expression: string;
  /** Zone of its times (IANA). */
  readonly timeZone: string;
  /** The first time after another, in ms since 1970; infinite where none comes. */
  next(after: number): number;
}

/**
 * Times of a cron expression: minute, hour, day of month, month, day of week, with a field of seconds before them if need
 * be, or a nickname such as `@daily`.
 *
 * Where a zone's clocks are put forward or back, a time that they leave out comes when they have moved on, and one that
 * they have twice comes once.
 *
 * @param timeZone Zone (IANA). Default: `UTC`.
 * @throws {SyntaxError} when it is no such expression.
 * @throws {RangeError} when its time never comes, as of 30 February, or there is no such zone.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const sundays = cronTimes("0 3 * * sun", "Europe/Berlin");
 * assert.equal(new Date(sundays.next(Date.UTC(2026, 0, 1))).toISOString(), "2026-01-04T02:00:00.000Z");
 * ```
 */
export function cronTimes(expression: string, timeZone: string = "UTC"): CronTimes {
  checkTimeZone(timeZone);
  const cron = parse(expression.trim(), timeZone);
  const next = (after: number) => cron.nextRun(new Date(after))?.getTime() ?? Infinity;
  if (next(Date.now()) === Infinity) throw new RangeError("expected a cron expression with a time that comes");
  return { expression: expression.trim(), timeZone, next };
}

/** Parser of a cron expression, see {@linkcode cronTimes}. Value: the expression. */
export function cronExpression(): ParseValue<string> {
  return parser("cron expression", (text) => cronTimes(text).expression);
}

/** Parser of the IANA name of a time zone. */
export function timeZone(): ParseValue<string> {
  return parser("time zone (IANA)", (text) => {
    checkTimeZone(text);
    return text;
  });
}

function checkTimeZone(timeZone: string): void {
  try {
    new Intl.DateTimeFormat("en", { timeZone });
  } catch {
    throw new RangeError("expected a time zone such as UTC or Europe/Berlin");
  }
}

function parse(expression: string, timeZone: string): Cron {
  // A point in time is no expression, though the library takes it.
  if (/^\d{4}-/.test(expression)) throw new SyntaxError("expected a cron expression such as 0 3 * * sun");
  try {
    return new Cron(expression, { timezone: timeZone });
  } catch (error) {
    const reason = error instanceof Error ? error.message.replace(/^CronPattern: /, "") : String(error);
    throw new SyntaxError(`expected a cron expression such as 0 3 * * sun (${reason})`);
  }
}
