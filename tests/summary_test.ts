import assert from "node:assert/strict";
import type { PostgresSettings } from "../lib/config.ts";
import type { Log } from "../lib/log.ts";
import type { KafkaMessage } from "../lib/metric.ts";
import { Store } from "../lib/store.ts";
import * as summary from "../lib/summary.ts";
import { HISTOGRAM_BOUNDS_MS, rowIdentity, summarize } from "../lib/summary.ts";
import type { Row } from "../lib/table.ts";
import { VIEWS } from "../lib/view.ts";
import { decodeMessages } from "../lib/writer.ts";
import { makeDatabase, metricMessage, type TestDatabase, testStack } from "./support.ts";

const SILENT: Log = { debug() {}, info() {}, warn() {}, error() {} };

function settings({ name }: TestDatabase): PostgresSettings {
  const { host, port, user, password } = testStack().postgres;
  const connection = { servers: [{ host, port }], user, password, database: name };
  return { ...connection, sslmode: "disable", ca: null, minConnection: 1, maxConnection: 2 };
}

function rowOf(name: string, changes: Record<string, unknown> = {}, topic = name): Row {
  const message: KafkaMessage = {
    topic,
    partition: 0,
    offset: "0",
    timestamp: 0,
    key: null,
    value: new TextEncoder().encode(metricMessage(name, changes)),
    headers: {},
  };
  const { rows: [row], deadLetters } = decodeMessages([message]);
  return row ?? assert.fail(deadLetters[0]?.reason);
}

/** What `latest` has to say, put as plainly as SQL allows. */
const EXPECTED_LATEST_SQL = `WITH checks AS (
  SELECT *, row_number() OVER (PARTITION BY name, location ORDER BY occurred_at DESC, id DESC) AS age
  FROM site_checker.all_checks WHERE final
)
SELECT name, location, verdict,
  (SELECT min(c.occurred_at) FROM checks AS c WHERE c.name = last.name AND c.location IS NOT DISTINCT FROM last.location
    AND c.age < coalesce(previous.age, 2147483647)) AS since,
  occurred_at AS checked_at, id, previous.occurred_at AS previous_at, previous.id AS previous_id, url, status_code, error,
  error_message, response_time, cert.occurred_at AS cert_seen_at, cert.id AS cert_id, cert.cert_subject,
  cert.cert_issuer, cert.cert_expires_at,
  (SELECT array_agg(DISTINCT topic ORDER BY topic) FROM checks AS c
    WHERE c.name = last.name AND c.location IS NOT DISTINCT FROM last.location) AS topics
FROM checks AS last
LEFT JOIN LATERAL (SELECT occurred_at, id, age FROM checks AS c WHERE c.name = last.name
  AND c.location IS NOT DISTINCT FROM last.location AND c.verdict <> last.verdict ORDER BY age LIMIT 1) AS previous ON true
LEFT JOIN LATERAL (SELECT * FROM checks AS c WHERE c.name = last.name
  AND c.location IS NOT DISTINCT FROM last.location AND c.cert_expires_at IS NOT NULL ORDER BY age LIMIT 1) AS cert ON true
WHERE last.age = 1 ORDER BY name, location`
  // The certificate's columns are those of its own check.
  .replace("SELECT name, location, verdict,", "SELECT last.name, last.location, last.verdict,")
  .replace("  occurred_at AS checked_at, id,", "  last.occurred_at AS checked_at, last.id,")
  .replace(
    "url, status_code, error,\n  error_message, response_time,",
    "last.url, last.status_code, last.error,\n  last.error_message, last.response_time,",
  )
  .replace("ORDER BY name, location", "ORDER BY last.name, last.location");

const EXPECTED_DAILY_SQL =
  `SELECT name, location, (occurred_at AT TIME ZONE 'UTC')::date::text AS day, count(*)::int AS checks,
  count(*) FILTER (WHERE verdict = 'up')::int AS up, count(*) FILTER (WHERE verdict = 'degraded')::int AS degraded,
  count(*) FILTER (WHERE verdict = 'down')::int AS down, count(response_time)::int AS responses,
  coalesce(sum(floor(response_time * 1000 + 0.5)), 0)::bigint::text AS response_us,
  (SELECT array_agg((SELECT count(*) FROM unnest(array_agg(response_time)) AS r (ms)
      WHERE ms >= coalesce(lower, '-infinity') AND ms < coalesce(upper, 'infinity'))::int ORDER BY lower NULLS FIRST)
    FROM unnest('{null,${HISTOGRAM_BOUNDS_MS}}'::float8[], '{${HISTOGRAM_BOUNDS_MS},null}'::float8[]) AS b (lower, upper)
  ) AS histogram
FROM site_checker.all_checks WHERE final GROUP BY name, location, (occurred_at AT TIME ZONE 'UTC')::date ORDER BY 1, 2, 3`;

/** Asserts that both tables say what all rows say. */
async function assertExact(database: TestDatabase, hint: string): Promise<void> {
  const latest =
    `SELECT name, location, verdict, since, checked_at, id, previous_at, previous_id, url, status_code, error,
    error_message, response_time, cert_seen_at, cert_id, cert_subject, cert_issuer, cert_expires_at, topics
    FROM site_checker.latest ORDER BY name, location`;
  assert.deepEqual(await database.query(latest), await database.query(EXPECTED_LATEST_SQL), `latest, ${hint}`);
  const daily = `SELECT name, location, day::text, checks, up, degraded, down, responses, response_us::text, histogram
    FROM site_checker.daily ORDER BY name, location, day`;
  assert.deepEqual(await database.query(daily), await database.query(EXPECTED_DAILY_SQL), `daily, ${hint}`);
}

/** Numbers from 0 to 1, always the same for a seed (mulberry32). */
function randomNumbers(seed: number): () => number {
  return () => {
    seed = seed + 0x6d2b79f5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
}

function randomRow(random: () => number, names: readonly string[]): Row {
  const pick = <T>(values: readonly T[]): T => values[Math.floor(random() * values.length)]!;
  const name = pick(names);
  const verdict = pick(["up", "up", "up", "degraded", "down"]);
  // Many at the same time, or within a microsecond of it, and in other zones.
  const second = Math.floor(random() * 90);
  const time = new Date(Date.UTC(2026, 0, 1, 23, 59, 15) + second * 1_000).toISOString().slice(0, 19);
  const fraction = pick(["", ".5", ".0000015", ".0000025", ".9999999", ".123", ".123456"]);
  return rowOf(name, {
    location: pick([null, null, "", "eu"]),
    verdict,
    final: random() < 0.9,
    occurred_at: random() < 0.2
      ? `${time.replace("2026-01-01T23", "2026-01-02T00")}${fraction}+01:00`
      : `${time}${fraction}Z`,
    error: verdict === "down" ? "status" : null,
    error_message: verdict === "down" ? `${random()}` : null,
    status_code: Math.floor(random() * 400) + 100,
    response_time: pick([null, random() * 100, random() * 1e5, 1.5, 70_000, 0]),
    cert_expires_at: pick([null, null, "2027-01-01T00:00:00Z"]),
    cert_subject: pick([null, `${random()}`]),
    id: random() < 0.1 ? crypto.randomUUID().toUpperCase() : crypto.randomUUID(),
  }, pick([name, name, "shared"]));
}

Deno.test("latest and daily say what all rows say, whatever order they come in and however often", async () => {
  for (let run = 0; run < 6; run++) {
    const seed = (Date.now() + run) % 2 ** 32;
    const random = randomNumbers(seed);
    await using database = await makeDatabase();
    await using one = await Store.open(settings(database), { log: SILENT });
    await using two = await Store.open(settings(database), { log: SILENT });
    const names = ["a", "b", "c"].slice(0, 1 + run % 3);
    await one.ensureTables([...names, "shared"]);
    await two.ensureTables([...names, "shared"]);
    const rows = Array.from({ length: 200 }, () => randomRow(random, names));
    if (run % 2 === 0) rows.sort((a, b) => a.metric.occurred_at < b.metric.occurred_at ? -1 : 1);
    const write = async (store: Store) => {
      for (let i = 0; i < rows.length;) {
        const size = 1 + Math.floor(random() * 12);
        const again = Array.from({ length: random() < 0.3 ? 2 : 0 }, () => rows[Math.floor(random() * rows.length)]!);
        await store.write({ rows: [...rows.slice(i, i + size), ...again], deadLetters: [] })
          .catch((error) => assert.equal(error.code, "40P01"));
        i += size;
        if (run % 2 === 0 && i % 5 === 0) await assertExact(database, `seed ${seed}, row ${i}`);
      }
    };
    // The second one has all of it again, at the same time in every other run.
    await (run % 2 === 0 ? write(one).then(() => write(two)) : Promise.all([write(one), write(two)]));
    await one.write({ rows, deadLetters: [] });
    await assertExact(database, `seed ${seed}`);
    await one.rebuildSummaries();
    await assertExact(database, `seed ${seed}, rebuilt`);
  }
});

Deno.test("summaries are written in one order of keys: two writers of the same names do not deadlock", async () => {
  await using database = await makeDatabase();
  const names = Array.from({ length: 40 }, (_, i) => `site-${i}`);
  const stores = await Promise.all([1, 2, 3].map(() => Store.open(settings(database), { log: SILENT })));
  try {
    await Promise.all(stores.map((store) => store.ensureTables(["shared"])));
    await Promise.all(stores.map(async (store, index) => {
      for (let i = 0; i < 25; i++) {
        const some = index === 1 ? names.toReversed() : names.toSorted(() => Math.random() - 0.5);
        await store.write({ rows: some.map((name) => rowOf(name, {}, "shared")), deadLetters: [] });
      }
    }));
    const [sums] = await database.query(
      "SELECT sum(checks)::int AS checks, count(*)::int AS rows FROM site_checker.daily",
    );
    assert.equal(sums?.["checks"], 3 * 25 * names.length);
    await assertExact(database, "after three writers");
    assert.deepEqual(
      await database.query("SELECT deadlocks::int FROM pg_stat_database WHERE datname = current_database()"),
      [{ deadlocks: 0 }],
    );
  } finally {
    for (const store of stores) await store[Symbol.asyncDispose]();
  }
});

Deno.test("Store.rebuildSummaries() counts rows that came by hand, while a consumer goes on", async () => {
  await using database = await makeDatabase();
  await using store = await Store.open(settings(database), { log: SILENT });
  await store.ensureTables(["a"]);
  await store.write({ rows: [rowOf("a"), rowOf("a", { verdict: "down" })], deadLetters: [] });
  await database.query(`INSERT INTO site_checker.all_checks (topic, id, occurred_at, name, url, verdict, attempt, final)
    SELECT 'a', gen_random_uuid(), now() - n * interval '1 hour', 'a', '', 'up', 1, true FROM generate_series(1, 50) AS n`);
  let writing = true;
  const writes = (async () => {
    while (writing) await store.write({ rows: [rowOf("a")], deadLetters: [] });
  })();
  await using other = await Store.open(settings(database), { log: SILENT });
  for (let i = 0; i < 5; i++) await other.rebuildSummaries();
  writing = false;
  await writes;
  await assertExact(database, "rebuilt");
});

Deno.test.each([
  ["2026-01-01T00:00:00.000Z", "1767225600000000"],
  ["2026-01-01 00:00:00Z", "1767225600000000"],
  ["2026-01-01T01:00+01:00", "1767225600000000"],
  ["2026-01-01T00:00:00.1234565Z", "1767225600123456"],
  ["2026-01-01T00:00:00.9999999Z", "1767225601000000"],
  ["1969-12-31T23:59:59.999999Z", "-1"],
])("rowIdentity() has %s as %s µs, as PostgreSQL has it", (occurred_at, micros) => {
  const id = "0195B1C2-7D4E-7abc-8def-0123456789ab";
  assert.equal(rowIdentity(rowOf("a", { occurred_at, id })), `a/${micros}/${id.toLowerCase()}`);
});

Deno.test("summarize() counts final attempts alone, in the order of keys", () => {
  const rows = [rowOf("b"), rowOf("a", { final: false }), rowOf("a", { location: "z" }), rowOf("a"), rowOf("b")];
  const { latest, daily } = summarize(rows);
  assert.deepEqual(latest.map(({ last }) => [last.name, last.location]), [["a", null], ["a", "z"], ["b", null]]);
  assert.deepEqual(daily.map(({ name, location, verdicts: { up } }) => [name, location, up]), [
    ["a", null, 1],
    ["a", "z", 1],
    ["b", null, 2],
  ]);
});

Deno.test.each([
  ...Object.entries(summary).filter(([what]) => what.endsWith("_SQL")).map(([what, sql]) => ({ what, sql })),
  ...Object.entries(VIEWS).map(([name, sql]) => ({ what: `View ${name}`, sql })),
])("$what is this", async ({ sql }, t) => await t.assertSnapshot(sql));
