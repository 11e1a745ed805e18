import { HISTOGRAM_BOUNDS_MS } from "../lib/summary.ts";
import type { Invariant } from "./judgement.ts";

const LATEST_COLUMNS =
  "name, location, verdict, since, checked_at, id, previous_at, previous_id, url, status_code, error, error_message, " +
  "response_time, topics";

/** The last check of each site, and since when its verdict is what it is, from all rows. */
const EXPECTED_LATEST_SQL = `
  WITH check_ AS (SELECT * FROM site_checker.all_checks WHERE final),
  last AS (SELECT DISTINCT ON (name, location) * FROM check_ ORDER BY name, location, occurred_at DESC, id DESC),
  previous AS (
    SELECT DISTINCT ON (check_.name, check_.location) check_.name, check_.location, check_.occurred_at, check_.id
    FROM check_ JOIN last ON check_.name = last.name AND check_.location IS NOT DISTINCT FROM last.location
    WHERE check_.verdict <> last.verdict
    ORDER BY check_.name, check_.location, check_.occurred_at DESC, check_.id DESC
  ),
  since AS (
    SELECT check_.name, check_.location, min(check_.occurred_at) AS at
    FROM check_ LEFT JOIN previous
      ON check_.name = previous.name AND check_.location IS NOT DISTINCT FROM previous.location
    WHERE previous.id IS NULL OR (check_.occurred_at, check_.id) > (previous.occurred_at, previous.id)
    GROUP BY check_.name, check_.location
  ),
  topics AS (SELECT name, location, array_agg(DISTINCT topic ORDER BY topic) AS topics FROM check_ GROUP BY 1, 2)
  SELECT last.name, last.location, last.verdict, since.at, last.occurred_at, last.id, previous.occurred_at, previous.id,
    last.url, last.status_code, last.error, last.error_message, last.response_time, topics.topics
  FROM last
  JOIN since ON since.name = last.name AND since.location IS NOT DISTINCT FROM last.location
  JOIN topics ON topics.name = last.name AND topics.location IS NOT DISTINCT FROM last.location
  LEFT JOIN previous ON previous.name = last.name AND previous.location IS NOT DISTINCT FROM last.location`;

const DAILY_COLUMNS = "name, location, day, checks, up, degraded, down, responses, response_us, histogram";

/** Checks of each site and day, in UTC, from all rows. */
const EXPECTED_DAILY_SQL = `
  SELECT name, location, (occurred_at AT TIME ZONE 'UTC')::date, count(*)::integer,
    count(*) FILTER (WHERE verdict = 'up')::integer, count(*) FILTER (WHERE verdict = 'degraded')::integer,
    count(*) FILTER (WHERE verdict = 'down')::integer, count(response_time)::integer,
    coalesce(sum(floor(response_time * 1000 + 0.5)), 0)::bigint,
    ARRAY[${
  Array.from(
    { length: HISTOGRAM_BOUNDS_MS.length + 1 },
    (_, bucket) =>
      `count(*) FILTER (WHERE width_bucket(response_time, '{${HISTOGRAM_BOUNDS_MS}}'::float8[]) = ${bucket})::integer`,
  ).join(", ")
}]
  FROM site_checker.all_checks WHERE final GROUP BY 1, 2, 3`;

/** Compares `site_checker.latest` and `site_checker.daily` with what all rows say, where they are there. */
export async function judgeSums(query: (sql: string) => Promise<Record<string, unknown>[]>): Promise<Invariant[]> {
  const tables = await query(
    `SELECT relname FROM pg_class WHERE relnamespace = 'site_checker'::regnamespace AND relkind = 'r'`,
  );
  const found = new Set(tables.map(({ relname }) => relname));
  const result: Invariant[] = [];
  for (
    const { table, columns, expected } of [
      { table: "latest", columns: LATEST_COLUMNS, expected: EXPECTED_LATEST_SQL },
      { table: "daily", columns: DAILY_COLUMNS, expected: EXPECTED_DAILY_SQL },
    ]
  ) {
    const name = `site_checker.${table} equals what all rows say`;
    if (!found.has(table)) {
      result.push({ name, held: null, figure: "not there yet" });
      continue;
    }
    const actual = `SELECT ${columns} FROM site_checker.${table}`;
    const [counts] = await query(
      `WITH expected AS (${expected}), actual AS (${actual}),
        difference AS ((TABLE expected EXCEPT ALL TABLE actual) UNION ALL (TABLE actual EXCEPT ALL TABLE expected))
        SELECT (SELECT count(*)::int FROM actual) AS rows, (SELECT count(*)::int FROM difference) AS different`,
    );
    const { rows, different } = counts as { rows: number; different: number };
    result.push({ name, held: different === 0, figure: `${rows} rows, ${different} different` });
  }
  return result;
}
