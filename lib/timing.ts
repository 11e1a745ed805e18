import { type CronTimes, cronTimes } from "./cron.ts";
import { createMaintenance, type Maintenance } from "./maintenance.ts";
import type { SiteSource } from "./site_source.ts";
import { formatDuration } from "./value.ts";

/** When a site is checked. */
export interface Timing {
  /** Time from start to start, in ms. */
  readonly intervalMs: number;
  /** Times by the clock of the wall, instead of the interval; null for none. */
  readonly cron: CronTimes | null;
  /** Each check is up to this later, by chance, in ms. */
  readonly jitterMs: number;
  /** Time from start to start while the site is down, in ms; null for no other than else. */
  readonly failingIntervalMs: number | null;
  /** When it is maintained; null for never. */
  readonly maintenance: Maintenance | null;
}

/**
 * Reads when a site is checked.
 *
 * @throws {ConfigError} with where, what is wrong and what is allowed.
 */
export function readTiming(site: SiteSource): Timing {
  const intervalMs = site.take("interval");
  const expression = site.take("cron");
  const timeZone = site.take("time_zone");
  const jitterMs = site.take("jitter");
  const failingIntervalMs = site.take("failing_interval") ?? null;
  const windows = site.take("maintenance");
  const checks = site.take("maintenance_checks");
  const isByCron = expression !== undefined && site.precedence("cron") >= site.precedence("interval");
  if (isByCron && site.precedence("cron") === site.precedence("interval")) {
    throw site.refuse("cron", "expected interval or cron, got both");
  }
  if (!isByCron) {
    site.show("interval", formatDuration(intervalMs));
    if (jitterMs >= intervalMs) {
      throw site.refuse(
        "jitter",
        `expected less than the interval, which is ${formatDuration(intervalMs)}, got ${formatDuration(jitterMs)}`,
      );
    }
  }
  if (failingIntervalMs !== null && jitterMs >= failingIntervalMs) {
    site.warn(
      `jitter of website '${site.name}' (${formatDuration(jitterMs)}) is not less than its failing_interval ` +
        `(${formatDuration(failingIntervalMs)}): while it is down, checks are left out`,
    );
  }
  if (site.precedence("time_zone") > 1 && !isByCron && windows.length === 0) {
    site.warn(`time_zone of website '${site.name}' is not used: it has neither cron nor maintenance`);
  }
  if (site.precedence("maintenance_checks") > 1 && windows.length === 0) {
    site.warn(`maintenance_checks of website '${site.name}' is not used: it has no maintenance`);
  }
  return {
    intervalMs,
    cron: isByCron ? cronTimes(expression, timeZone) : null,
    jitterMs,
    failingIntervalMs,
    maintenance: createMaintenance(windows, { timeZone, checks }),
  };
}
