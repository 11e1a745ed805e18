import { cronExpression, type CronTimes, cronTimes } from "./cron.ts";
import { duration, formatDuration, parser, type ParseValue } from "./value.ts";

/** What becomes of checks within maintenance: they are made and marked, or left out. */
export const MAINTENANCE_CHECKS = ["mark", "skip"] as const;

/** Tag of checks that are made within maintenance; its value is `true`. */
export const MAINTENANCE_TAG = "maintenance";

/** A window as it is written. */
export interface MaintenanceWindow {
  /** When it begins. */
  readonly expression: string;
  /** How long it is, in ms. */
  readonly durationMs: number;
}

/** When a site is maintained, and what becomes of its checks then. */
export interface Maintenance {
  /** When. */
  readonly windows: readonly { readonly begin: CronTimes; readonly durationMs: number }[];
  /** What becomes of checks. */
  readonly checks: typeof MAINTENANCE_CHECKS[number];
}

const DAY_MS = 24 * 60 * 60_000;

/**
 * Parser of a window: a cron expression of its begin, and its duration.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.deepEqual(maintenanceWindow()("0 3 * * sun 2h"), { expression: "0 3 * * sun", durationMs: 7_200_000 });
 * ```
 */
export function maintenanceWindow(): ParseValue<MaintenanceWindow> {
  const parseBegin = cronExpression();
  const parseDuration = duration({ minMs: 1_000, maxMs: 31 * DAY_MS });
  return parser("cron expression and duration", (text) => {
    const { begin, length } = /^(?<begin>.+)\s(?<length>\S+)$/s.exec(text.trim())?.groups ?? {};
    // A sixth field without a unit is of the expression.
    if (begin === undefined || length === undefined || !/[a-z]$/i.test(length) || !/^[\d.-]/.test(length)) {
      throw new SyntaxError("expected a cron expression and a duration with its unit, such as 0 3 * * sun 2h");
    }
    return { expression: parseBegin(begin), durationMs: parseDuration(length) };
  }, ({ expression, durationMs }) => `${expression} ${formatDuration(durationMs)}`);
}

/** Windows in a time zone; null where there are none. */
export function createMaintenance(
  windows: readonly MaintenanceWindow[],
  { timeZone, checks }: { readonly timeZone: string; readonly checks: Maintenance["checks"] },
): Maintenance | null {
  if (windows.length === 0) return null;
  return {
    checks,
    windows: windows.map(({ expression, durationMs }) => ({ begin: cronTimes(expression, timeZone), durationMs })),
  };
}

/** Whether a time, in ms since 1970, is within a window: from its begin to before its end. */
export function isWithin(maintenance: Maintenance, time: number): boolean {
  return maintenance.windows.some(({ begin, durationMs }) => begin.next(time - durationMs) <= time);
}
