import assert from "node:assert/strict";
import pg from "pg";
import type { PostgresSettings } from "../lib/config.ts";
import { ConfigError } from "../lib/error.ts";
import type { Log } from "../lib/log.ts";
import { decodeMessages } from "../lib/writer.ts";
import { Store } from "../lib/store.ts";
import { makeDatabase, metricMessage, type TestDatabase, testStack } from "./support.ts";

const SILENT: Log = { debug() {}, info() {}, warn() {}, error() {} };

function settings({ name }: TestDatabase, changes: Partial<PostgresSettings> = {}): PostgresSettings {
  const { host, port, user, password } = testStack().postgres;
  return {
    servers: [{ host, port }],
    user,
    password,
    database: name,
    sslmode: "disable",
    ca: null,
    minConnection: 1,
    maxConnection: 2,
    ...changes,
  };
}

function batch(topic: string, ...values: string[]): ReturnType<typeof decodeMessages> {
  return decodeMessages(values.map((value, index) => ({
    topic,
    partition: 0,
    offset: String(index),
    timestamp: Date.now(),
    key: null,
    value: new TextEncoder().encode(value),
    headers: {},
  })));
}

Deno.test("Store.write() stores a batch once, however often it comes", async () => {
  await using database = await makeDatabase();
  await using store = await Store.open(settings(database), { log: SILENT });
  await store.ensureTables(["a", "b"]);
  const rows = [...batch("a", metricMessage("a"), metricMessage("a")).rows, ...batch("b", metricMessage("b")).rows];
  const more = batch("b", metricMessage("b"), "poison");
  await store.write({ rows, deadLetters: [] });
  await store.write({ rows: [...rows, ...more.rows], deadLetters: more.deadLetters });
  await store.write({ rows: [], deadLetters: more.deadLetters });
  assert.deepEqual(
    await database.query("SELECT topic, count(*)::int AS rows FROM site_checker.all_checks GROUP BY 1 ORDER BY 1"),
    [{ topic: "a", rows: 2 }, { topic: "b", rows: 2 }],
  );
  assert.deepEqual(await database.query("SELECT count(*)::int AS letters FROM site_checker.dead_letters"), [{
    letters: 1,
  }]);
});

Deno.test("Store.write() keeps every property as it came", async () => {
  await using database = await makeDatabase();
  await using store = await Store.open(settings(database), { log: SILENT });
  await store.ensureTables(["a"]);
  const properties = {
    error_message: 'tab\t, line\nfeed, \\N, "quotes", ünï©ode 🎉',
    response_time: 1.5e-7,
    body_bytes: Number.MAX_SAFE_INTEGER,
    ip: "2001:db8::1",
    failed: [{ expectation: "regex", expected: "a\\b\n", actual: null }],
    tags: { team: "a\tb" },
    cert_expires_at: "2030-01-02T03:04:05.678Z",
  };
  for (let way = 0; way < 2; way++) {
    // Together with a row that is there already, the second one takes the slower way.
    const { rows } = batch("a", metricMessage("a", { ...properties, status_code: way }));
    const there = way === 0 ? [] : batch(
      "a",
      metricMessage("a", { id: "01890000-0000-7000-8000-000000000000", occurred_at: "2024-01-01T00:00:00Z" }),
    ).rows;
    await store.write({ rows: there, deadLetters: [] });
    await store.write({ rows: [...rows, ...there], deadLetters: [] });
    const [stored] = await database.query(
      `SELECT error_message, response_time, body_bytes::float AS body_bytes, host(ip) AS ip, failed, tags,
        to_char(cert_expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS cert_expires_at
       FROM site_checker.a WHERE status_code = $1`,
      [way],
    );
    assert.deepEqual(stored, properties);
  }
});

Deno.test("Store.ensureTables() works for two at once, and again for tables that went away", async () => {
  await using database = await makeDatabase();
  await using one = await Store.open(settings(database), { log: SILENT });
  await using two = await Store.open(settings(database), { log: SILENT });
  const topics = Array.from({ length: 20 }, (_, index) => `topic-${index}`);
  await Promise.all([one.ensureTables(topics), two.ensureTables(topics.toReversed())]);
  await database.query('DROP TABLE site_checker."topic-3"');
  const { rows } = batch("topic-3", metricMessage("topic-3"));
  await assert.rejects(one.write({ rows, deadLetters: [] }), /no partition of relation/);
  assert.deepEqual(await one.ensureTables(["topic-3"]), new Map());
  assert.equal(await one.write({ rows, deadLetters: [] }), 0);
});

Deno.test("Store works for a role that may only make the schema, and says which right is missing to others", async () => {
  await using database = await makeDatabase();
  const role = `role_${crypto.randomUUID().slice(0, 8)}`;
  const admin = new pg.Client({ ...testStack().postgres, database: database.name });
  await admin.connect();
  try {
    await admin.query(`CREATE ROLE ${role} LOGIN PASSWORD 'p'`);
    await using store = await Store.open(settings(database, { user: role, password: "p" }), { log: SILENT });
    await assert.rejects(store.ensureTables(["a"]), {
      message:
        `permission denied for database ${database.name}; to mend it: GRANT CREATE ON DATABASE "${database.name}" TO "${role}";`,
    });
    await admin.query(`GRANT CREATE ON DATABASE ${database.name} TO ${role}`);
    assert.deepEqual(await store.ensureTables(["a"]), new Map());
    await admin.query("ALTER TABLE site_checker.all_checks OWNER TO postgres");
    await assert.rejects(store.ensureTables(["b"]), /belongs to postgres.*GRANT postgres TO .*OWNER TO/);
    await admin.query("REVOKE ALL ON site_checker.all_checks FROM PUBLIC");
    const { rows } = batch("a", metricMessage("a"));
    await assert.rejects(store.write({ rows, deadLetters: [] }), {
      message:
        `permission denied for table all_checks; to mend it: GRANT SELECT, INSERT ON site_checker."all_checks" TO "${role}";`,
    });
    await admin.query(`GRANT INSERT ON site_checker.all_checks TO ${role}`);
    assert.equal(await store.write({ rows, deadLetters: [] }), 0);
  } finally {
    await admin.query(`DROP OWNED BY ${role} CASCADE`);
    await admin.query(`DROP ROLE ${role}`);
    await admin.end();
  }
});

Deno.test("Store.open() refuses credentials that are wrong, with a ConfigError", async () => {
  await using database = await makeDatabase();
  await assert.rejects(
    Store.open(settings(database, { password: "wrong" }), { log: SILENT }),
    (error) => error instanceof ConfigError && /password authentication failed/.test(error.message),
  );
});

Deno.test("Store goes on after its backends were killed", async () => {
  await using database = await makeDatabase();
  await using store = await Store.open(settings(database), { log: SILENT });
  await store.ensureTables(["a"]);
  await database.query(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'site_checker' AND datname = $1",
    [database.name],
  );
  const { rows } = batch("a", metricMessage("a"));
  await store.write({ rows, deadLetters: [] }).catch(() => store.write({ rows, deadLetters: [] }));
  assert.deepEqual(await database.query("SELECT count(*)::int AS rows FROM site_checker.a"), [{ rows: 1 }]);
});
