import assert from "node:assert/strict";
import type { PostgresSettings } from "../lib/config.ts";
import { ConfigError } from "../lib/error.ts";
import type { Log } from "../lib/log.ts";
import { Store } from "../lib/store.ts";
import { createDeadLettersSql, createParentSql, createPartitionSql, SCHEMA_VERSION } from "../lib/table.ts";
import { decodeMessages } from "../lib/writer.ts";
import { makeDatabase, metricMessage, type TestDatabase, testStack } from "./support.ts";

const SILENT: Log = { debug() {}, info() {}, warn() {}, error() {} };

function settings({ name }: TestDatabase): PostgresSettings {
  const { host, port, user, password } = testStack().postgres;
  const connection = { servers: [{ host, port }], user, password, database: name };
  return { ...connection, sslmode: "disable", ca: null, minConnection: 1, maxConnection: 2 };
}

function rowsOf(topic: string, count = 1): ReturnType<typeof decodeMessages> {
  return decodeMessages(Array.from({ length: count }, (_, index) => ({
    topic,
    partition: 0,
    offset: String(index),
    timestamp: Date.now(),
    key: null,
    value: new TextEncoder().encode(metricMessage(topic)),
    headers: {},
  })));
}

/** A database as version 1 made it: without `latest`, `daily`, views and version. */
async function makeOldDatabase(): Promise<TestDatabase> {
  const database = await makeDatabase();
  await database.query("CREATE SCHEMA site_checker");
  // Columns that came later are not there.
  await database.query(createParentSql().replace(/ {2}"excerpt" text,\n/, ""));
  await database.query(createDeadLettersSql());
  for (const topic of ["a", "b"]) await database.query(createPartitionSql(topic));
  await database.query(`INSERT INTO site_checker.all_checks
    (topic, id, occurred_at, name, url, verdict, attempt, final, response_time)
    SELECT topic, gen_random_uuid(), '2026-01-01Z'::timestamptz + n * interval '1 hour', topic, 'http://a/',
      CASE WHEN n % 10 > 7 THEN 'down' ELSE 'up' END, 1, true, n
    FROM unnest('{a,b}'::text[]) AS topic, generate_series(0, 100) AS n`);
  return database;
}

Deno.test("Store.ensureTables() brings tables of version 1 up to date, filled from the rows that are there", async () => {
  await using database = await makeOldDatabase();
  await using store = await Store.open(settings(database), { log: SILENT });
  await using other = await Store.open(settings(database), { log: SILENT });
  await Promise.all([store.ensureTables(["a", "c"]), other.ensureTables(["a"])]);
  assert.deepEqual(
    await database.query(`SELECT name, verdict, since::text, checked_at::text, topics FROM site_checker.latest, (
      SELECT set_config('timezone', 'UTC', false)) AS utc ORDER BY name`),
    ["a", "b"].map((name) => ({
      name,
      verdict: "up",
      since: "2026-01-05 04:00:00+00",
      checked_at: "2026-01-05 04:00:00+00",
      topics: [name],
    })),
  );
  assert.deepEqual(
    await database.query(`SELECT day::text, checks, up, down, response_us::float8 FROM site_checker.daily
      WHERE name = 'a' ORDER BY day LIMIT 2`),
    [
      { day: "2026-01-01", checks: 24, up: 20, down: 4, response_us: 276_000 },
      { day: "2026-01-02", checks: 24, up: 20, down: 4, response_us: 852_000 },
    ],
  );
  assert.deepEqual(await database.query('SELECT version FROM site_checker."schema~version"'), [{
    version: SCHEMA_VERSION,
  }]);
  await store.write(rowsOf("a"));
  assert.deepEqual(
    await database.query("SELECT count(*)::int AS rows, count(excerpt)::int AS new FROM site_checker.a"),
    [
      { rows: 102, new: 0 },
    ],
  );
  assert.deepEqual(await database.query("SELECT sum(checks)::int AS checks FROM site_checker.daily"), [{
    checks: 203,
  }]);
});

Deno.test("Store works with tables of a newer version, and says so where it can't", async () => {
  await using database = await makeDatabase();
  {
    await using store = await Store.open(settings(database), { log: SILENT });
    await store.ensureTables(["a"]);
  }
  await database.query(`ALTER TABLE site_checker.all_checks ADD COLUMN mood text DEFAULT 'fine'`);
  await database.query(`INSERT INTO site_checker."schema~version" (version, needs) VALUES (7, 2)`);
  const lines: string[] = [];
  {
    await using store = await Store.open(settings(database), { log: { ...SILENT, info: (line) => lines.push(line) } });
    await store.ensureTables(["b"]);
    await store.write(rowsOf("b"));
  }
  assert.match(lines[0]!, /^The tables are of version \{version\}/);
  assert.deepEqual(await database.query("SELECT mood FROM site_checker.b"), [{ mood: "fine" }]);
  await database.query(`INSERT INTO site_checker."schema~version" (version, needs) VALUES (8, 8)`);
  await assert.rejects(
    Store.open(settings(database), { log: SILENT }),
    (error) =>
      error instanceof ConfigError &&
      /of version 8, .* version 8 or later, and this one is for 2; install/.test(error.message),
  );
});

Deno.test("Store leaves a table of others alone that has one of our names, and says how to make room", async () => {
  await using database = await makeOldDatabase();
  await database.query("CREATE TABLE site_checker.latest (id integer)");
  await using store = await Store.open(settings(database), { log: SILENT });
  await assert.rejects(store.ensureTables(["a"]), {
    message: `Cannot use site_checker."latest": not made by site_checker; to make room: ` +
      `ALTER TABLE site_checker."latest" RENAME TO "latest~old";`,
  });
  await database.query(`ALTER TABLE site_checker."latest" RENAME TO "latest~old"`);
  assert.deepEqual(await store.ensureTables(["a"]), new Map());
});

Deno.test("Store makes tables again that went away, and fills them", async () => {
  await using database = await makeDatabase();
  await using store = await Store.open(settings(database), { log: SILENT });
  await store.ensureTables(["a"]);
  await store.write(rowsOf("a", 3));
  await database.query("DROP TABLE site_checker.daily CASCADE");
  await assert.rejects(store.write(rowsOf("a", 2)), /relation "site_checker.daily" does not exist/);
  await store.ensureTables(["a"]);
  await store.write(rowsOf("a", 2));
  assert.deepEqual(await database.query("SELECT checks FROM site_checker.daily"), [{ checks: 5 }]);
  assert.deepEqual(await database.query("SELECT percent_1d::float8 AS uptime FROM site_checker.uptime"), [{
    uptime: 100,
  }]);
});

Deno.test("views answer", async () => {
  await using database = await makeOldDatabase();
  await using store = await Store.open(settings(database), { log: SILENT });
  await store.ensureTables([]);
  const rows = await database.query(`SELECT to_char(started_at AT TIME ZONE 'UTC', 'DD HH24') AS started, checks::int,
    extract(hour FROM duration)::int AS hours FROM site_checker.incidents WHERE topic = 'a' ORDER BY started_at LIMIT 2`);
  assert.deepEqual(rows, [{ started: "01 08", checks: 2, hours: 2 }, { started: "01 18", checks: 2, hours: 2 }]);
  assert.deepEqual(
    await database.query(
      "SELECT responses, average_ms::float8, p50_ms::float8, p99_ms::float8 FROM site_checker.latency WHERE name = 'a' AND day = '2026-01-02'",
    ),
    [{ responses: 24, average_ms: 35.5, p50_ms: 36.7, p99_ms: 49.7 }],
  );
  assert.deepEqual(await database.query("SELECT count(*)::int AS rows FROM site_checker.certificates"), [{ rows: 0 }]);
  assert.deepEqual(await database.query("SELECT name, verdict FROM site_checker.status ORDER BY name"), [
    { name: "a", verdict: "up" },
    { name: "b", verdict: "up" },
  ]);
});
