import { HISTOGRAM_BOUNDS_MS } from "./summary.ts";
import { DAILY, LATEST, PARENT, qualifiedName } from "./table.ts";

/**
 * Views for people and dashboards, over what the consumer keeps.
 *
 * @module
 */

/** Shares of these bounds in a percentile: lower and upper bound of a bucket by its number. */
const LOWER_BOUNDS = [0, ...HISTOGRAM_BOUNDS_MS];
/** What is beyond the last bound counts as that bound: more is not known. */
const UPPER_BOUNDS = [...HISTOGRAM_BOUNDS_MS, HISTOGRAM_BOUNDS_MS.at(-1)!];
const PERCENTILES = [50, 90, 95, 99] as const;
const UPTIME_DAYS = [1, 7, 30, 90, 365] as const;

/** Text of the views by name, in the order in which they are made. */
export const VIEWS: Readonly<Record<"status" | "uptime" | "latency" | "incidents" | "certificates", string>> = {
  status: `SELECT name, location, verdict, since, now() - since AS since_interval, checked_at,
  now() - checked_at AS checked_ago, url, status_code, response_time, error, error_message, cert_expires_at
FROM ${qualifiedName(LATEST)}`,
  uptime: `SELECT name, location,
${
    UPTIME_DAYS.map((days) =>
      `  round(100.0 * sum(up + degraded) FILTER (WHERE daily.day > today.day - ${days})\n` +
      `    / nullif(sum(checks) FILTER (WHERE daily.day > today.day - ${days}), 0), 3) AS percent_${days}d`
    ).join(",\n")
  },
  sum(checks) AS checks, sum(up) AS up, sum(degraded) AS degraded, sum(down) AS down, min(daily.day) AS first_day
FROM ${qualifiedName(DAILY)} AS daily,
  (SELECT (now() AT TIME ZONE 'UTC')::date AS day) AS today
GROUP BY name, location`,
  latency: `SELECT name, location, day, responses,
  round((response_us / 1000.0 / nullif(responses, 0))::numeric, 3) AS average_ms,
${PERCENTILES.map((percentile) => `  ${percentileSql(percentile)} AS p${percentile}_ms`).join(",\n")}
FROM ${qualifiedName(DAILY)}`,
  incidents: `SELECT topic, name, location, min(occurred_at) AS started_at, max(next_at) AS ended_at,
  coalesce(max(next_at), now()) - min(occurred_at) AS duration, count(*) AS checks,
  (array_agg(error ORDER BY occurred_at, id))[1] AS error,
  (array_agg(error_message ORDER BY occurred_at, id))[1] AS error_message,
  (array_agg(status_code ORDER BY occurred_at, id))[1] AS status_code
FROM (
  SELECT topic, name, location, occurred_at, id, verdict, error, error_message, status_code,
    CASE WHEN lead(verdict) OVER series <> 'down' THEN lead(occurred_at) OVER series END AS next_at,
    count(*) FILTER (WHERE verdict <> 'down') OVER (
      PARTITION BY topic, name, location ORDER BY occurred_at, id ROWS UNBOUNDED PRECEDING
    ) AS incident
  FROM ${qualifiedName(PARENT)} WHERE final
  WINDOW series AS (PARTITION BY topic, name, location ORDER BY occurred_at, id)
) AS checks
WHERE verdict = 'down'
GROUP BY topic, name, location, incident`,
  certificates: `SELECT name, location, url, cert_subject, cert_issuer, cert_expires_at,
  floor(extract(epoch FROM cert_expires_at - now()) / 86400)::integer AS days_left, cert_seen_at
FROM ${qualifiedName(LATEST)} WHERE cert_expires_at IS NOT NULL`,
};

/** Estimate from the histogram: within a bucket, response times are taken to be spread evenly. */
function percentileSql(percentile: number): string {
  const bounds = (values: readonly number[]) => `(ARRAY[${values.join(",")}]::numeric[])[bucket]`;
  return `(SELECT round(${bounds(LOWER_BOUNDS)} + (${bounds(UPPER_BOUNDS)} - ${bounds(LOWER_BOUNDS)})
    * (responses * ${percentile / 100} - (below - count)) / count, 1)
    FROM (
      SELECT bucket, count, sum(count) OVER (ORDER BY bucket) AS below
      FROM unnest(histogram) WITH ORDINALITY AS buckets (count, bucket)
    ) AS buckets WHERE below >= responses * ${percentile / 100} AND count > 0 ORDER BY bucket LIMIT 1)`;
}

/** Makes all views, in place of those of an older version. */
export const CREATE_VIEWS_SQL: string = Object.entries(VIEWS).map(([name, text]) =>
  `DROP VIEW IF EXISTS ${qualifiedName(name)};\nCREATE VIEW ${qualifiedName(name)} AS\n${text}`
).join(";\n");
