import assert from "node:assert/strict";
import pg from "pg";
import type { PostgresSettings } from "../lib/config.ts";
import { ConfigError } from "../lib/error.ts";
import type { Log } from "../lib/log.ts";
import { decodeMessages, Writer } from "../lib/writer.ts";
import { Store } from "../lib/store.ts";
import type { DeadLetter } from "../lib/table.ts";
import { freePorts } from "../local/port.ts";
import { startPostgres } from "../local/postgres.ts";
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

/** A message's identity has its record's time in it. */
function sameTime(letter: DeadLetter): DeadLetter {
  return { ...letter, message: { ...letter.message, timestamp: 0 } };
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
  await database.query("ALTER TABLE site_checker.all_checks ADD CONSTRAINT no_teapot CHECK (attempt <> 418)");
  for (let way = 0; way < 3; way++) {
    // Together with a row that is there already, and with one that is refused, it takes slower ways.
    const { rows } = batch("a", metricMessage("a", { ...properties, status_code: way }));
    const there = way === 0 ? [] : batch(
      "a",
      metricMessage("a", { id: "01890000-0000-7000-8000-000000000000", occurred_at: "2024-01-01T00:00:00Z" }),
    ).rows;
    await store.write({ rows: there, deadLetters: [] });
    const refused = way < 2 ? [] : batch("a", metricMessage("a", { attempt: 418 })).rows;
    await store.write({ rows: [...rows, ...there, ...refused], deadLetters: [] });
    const [stored] = await database.query(
      `SELECT error_message, response_time, body_bytes::float AS body_bytes, host(ip) AS ip, failed, tags,
        to_char(cert_expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS cert_expires_at
       FROM site_checker.a WHERE status_code = $1`,
      [way],
    );
    assert.deepEqual(stored, properties);
  }
});

Deno.test("Store.write() leaves out what is there, and counts the others once", async () => {
  await using database = await makeDatabase();
  await using store = await Store.open(settings(database), { log: SILENT });
  const topics = ["a", "b", "c", "d"];
  await store.ensureTables(topics);
  const rows = topics.flatMap((topic) => batch(topic, ...Array.from({ length: 50 }, () => metricMessage("x"))).rows);
  for (let i = 0; i < 10; i++) {
    const there = rows.filter(() => Math.random() < 0.2);
    const more = topics.flatMap((topic) => batch(topic, metricMessage("x"), metricMessage(topic)).rows);
    // Some of them twice: the first one counts.
    const some = [...there, ...more, ...more.slice(0, 3)].sort(() => Math.random() - 0.5);
    await store.write({ rows: some, deadLetters: batch("a", "poison").deadLetters.map(sameTime) });
    const stored = await counts(database);
    assert.deepEqual(stored, { rows: stored["rows"], ids: stored["rows"], letters: 1, checks: stored["rows"] });
    rows.push(...more);
  }
  await store.write({ rows, deadLetters: [] });
  await store.write({ rows, deadLetters: [] });
  assert.deepEqual(await counts(database), { rows: rows.length, ids: rows.length, letters: 1, checks: rows.length });
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
    await admin.query(`GRANT SELECT, INSERT ON site_checker.all_checks TO ${role}`);
    await admin.query("ALTER TABLE site_checker.daily OWNER TO postgres");
    await assert.rejects(store.write({ rows, deadLetters: [] }), {
      message:
        `permission denied for table daily; to mend it: GRANT SELECT, INSERT, UPDATE, DELETE ON site_checker."daily" TO "${role}";`,
    });
    await admin.query(`GRANT SELECT, INSERT, UPDATE, DELETE ON site_checker.daily TO ${role}`);
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

/** Rows, ids and dead letters that are there, and what `daily` has counted. */
async function counts(database: TestDatabase): Promise<Record<string, number>> {
  const [row] = await database.query<Record<string, number>>(
    `SELECT count(*)::int AS rows, count(DISTINCT id)::int AS ids,
    (SELECT count(*)::int FROM site_checker.dead_letters) AS letters,
    (SELECT coalesce(sum(checks), 0)::int FROM site_checker.daily) AS checks FROM site_checker.all_checks`,
  );
  return row!;
}

Deno.test.each([
  {
    what: "a statement timeout (57014)",
    code: "57014",
    begin: "ALTER ROLE $role SET statement_timeout = '200ms'",
    lock: true,
  },
  { what: "a lock timeout (55P03)", code: "55P03", begin: "ALTER ROLE $role SET lock_timeout = '200ms'", lock: true },
  {
    what: "a server that takes no writes (25006)",
    code: "25006",
    begin: "ALTER ROLE $role SET default_transaction_read_only = on",
    end: "ALTER ROLE $role RESET default_transaction_read_only",
  },
  {
    what: "too many connections (53300)",
    code: "53300",
    begin: "ALTER ROLE $role CONNECTION LIMIT 0",
    end: "ALTER ROLE $role CONNECTION LIMIT -1",
  },
  {
    what: "no space left (53100)",
    code: "53100",
    begin: `CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
      CREATE TRIGGER fail BEFORE INSERT ON site_checker.a FOR EACH ROW EXECUTE FUNCTION fail()`,
    end: "DROP TRIGGER fail ON site_checker.a",
  },
])("Writer waits $what out, and makes no dead letter of it", async ({ code, begin, end, lock }) => {
  await using database = await makeDatabase();
  const role = `role_${crypto.randomUUID().slice(0, 8)}`;
  await database.query(`CREATE ROLE ${role} LOGIN PASSWORD 'p'`);
  await database.query(`GRANT CREATE ON DATABASE ${database.name} TO ${role}`);
  const reasons: string[] = [];
  const log: Log = { ...SILENT, warn: (_, properties) => reasons.push(String(properties?.["reason"])) };
  try {
    {
      await using store = await Store.open(settings(database, { user: role, password: "p" }), { log: SILENT });
      await store.ensureTables(["a"]);
    }
    await using store = await Store.open(settings(database, { user: role, password: "p", minConnection: 0 }), { log });
    await store.ensureTables(["a"]);
    const messages = batch("a", ...Array.from({ length: 20 }, () => metricMessage("a"))).rows.map(({ message }) =>
      message
    );
    await database.query(begin.replaceAll("$role", role));
    await database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", [role]);
    const admin = new pg.Client({ ...testStack().postgres, database: database.name });
    await admin.connect();
    await admin.query("BEGIN");
    if (lock) await admin.query("LOCK TABLE site_checker.latest");
    const controller = new AbortController();
    const writing = new Writer(store, { log, signal: controller.signal }).write(messages, controller.signal).stored;
    await assert.rejects(async () => {
      for (let i = 0; i < 3; i++) await store.write(batch("a", metricMessage("a")));
    }, (error: unknown) => {
      // The first ones meet connections that have just been ended.
      return code === (error as { code: string }).code || /terminat|closed/i.test(String(error));
    });
    await new Promise((resolve) => setTimeout(resolve, 600));
    await admin.query("ROLLBACK");
    await admin.end();
    if (end !== undefined) await database.query(end.replaceAll("$role", role));
    assert.equal(await writing, "stored");
    const { rows, ids, letters, checks } = await counts(database);
    assert.deepEqual([letters, ids, checks], [0, rows, rows]);
    assert.ok(rows! >= 20 && rows! <= 23);
    assert.ok(reasons.length > 0);
  } finally {
    await database.query(`DROP OWNED BY ${role} CASCADE`);
    await database.query(`DROP ROLE ${role}`);
  }
});

Deno.test("Writer comes through serialization failures and deadlocks (40001, 40P01)", async () => {
  await using database = await makeDatabase();
  await database.query(`ALTER DATABASE ${database.name} SET default_transaction_isolation = 'serializable'`);
  const { signal } = new AbortController();
  await using one = await Store.open(settings(database), { log: SILENT });
  await using two = await Store.open(settings(database), { log: SILENT });
  const writers = [one, two].map((store) => new Writer(store, { log: SILENT, signal }));
  for (let i = 0; i < 15; i++) {
    const messages = batch("a", ...["a", "b", "c"].map((name) => metricMessage(name))).rows.map(({ message }) =>
      message
    );
    await Promise.all([
      writers[0]!.write(messages, signal).stored,
      writers[1]!.write(messages.toReversed(), signal).stored,
    ]);
  }
  assert.deepEqual(await counts(database), { rows: 45, ids: 45, letters: 0, checks: 45 });
});

/** Stands between store and server, and cuts a connection once a COMMIT has gone through, before the answer comes. */
function startCuttingProxy(target: { host: string; port: number }): AsyncDisposable & { port: number; cuts: number } {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const connections = new Set<Deno.Conn>();
  const serve = async (client: Deno.Conn) => {
    const server = await Deno.connect({ hostname: target.host, port: target.port });
    connections.add(client).add(server);
    let cutting = false;
    const close = () => [client, server].forEach((connection) => connections.delete(connection) && connection.close());
    const forward = async (from: Deno.Conn, to: Deno.Conn, look: (text: string) => void) => {
      const buffer = new Uint8Array(65_536);
      for (let size; (size = await from.read(buffer)) !== null;) {
        const bytes = buffer.subarray(0, size);
        look(new TextDecoder("latin1").decode(bytes));
        if (from === server && cutting) break;
        for (let written = 0; written < size;) written += await to.write(bytes.subarray(written));
      }
      close();
    };
    await Promise.allSettled([
      forward(client, server, (text) => {
        if (!text.includes("COMMIT") || proxy.cuts === 0) return;
        proxy.cuts--;
        cutting = true;
      }),
      forward(server, client, () => {}),
    ]);
    close();
  };
  const serving: Promise<void>[] = [];
  const accepting = (async () => {
    for await (const client of listener) serving.push(serve(client));
  })();
  const proxy = {
    port: listener.addr.port,
    cuts: 0,
    async [Symbol.asyncDispose]() {
      listener.close();
      for (const connection of [...connections]) connections.delete(connection) && connection.close();
      await accepting;
      await Promise.allSettled(serving);
    },
  };
  return proxy;
}

Deno.test("Writer does nothing twice where a connection ends between COMMIT and its answer", async () => {
  await using database = await makeDatabase();
  await using proxy = startCuttingProxy(testStack().postgres);
  await using store = await Store.open(
    settings(database, { servers: [{ host: "127.0.0.1", port: proxy.port }] }),
    { log: SILENT },
  );
  await store.ensureTables(["a"]);
  const { signal } = new AbortController();
  const writer = new Writer(store, { log: SILENT, signal });
  for (let i = 0; i < 5; i++) {
    const { rows: [row], deadLetters } = batch("a", metricMessage("a"), "poison");
    proxy.cuts = i % 3;
    assert.equal(
      await writer.write([row!.message, ...deadLetters.map(({ message }) => ({ ...message, timestamp: i }))], signal)
        .stored,
      "stored",
    );
  }
  assert.deepEqual(await counts(database), { rows: 5, ids: 5, letters: 5, checks: 5 });
});

Deno.test("Writer has room for few messages that are long, while the database waits", async () => {
  await using database = await makeDatabase();
  await using store = await Store.open(settings(database), { log: SILENT });
  await store.ensureTables(["a"]);
  const admin = new pg.Client({ ...testStack().postgres, database: database.name });
  await admin.connect();
  await admin.query("BEGIN");
  await admin.query("LOCK TABLE site_checker.latest");
  const { signal } = new AbortController();
  const writer = new Writer(store, { log: SILENT, signal, transactions: 2 });
  const excerpt = "x".repeat(1024 * 1024);
  const stored: Promise<unknown>[] = [];
  for (let accepted = true; accepted && stored.length < 100;) {
    const { rows: [row] } = batch("a", metricMessage("a", { excerpt }));
    const handling = writer.write([row!.message], signal);
    stored.push(handling.stored);
    const waiting = Promise.withResolvers<boolean>();
    const timer = setTimeout(() => waiting.resolve(false), 2_000);
    accepted = await Promise.race([handling.accepted.then(() => true), waiting.promise]);
    clearTimeout(timer);
  }
  // Eight in each of two transactions, and eight that wait; the first transaction begins with what is there by then.
  assert.ok(stored.length >= 8 && stored.length <= 25, String(stored.length));
  await admin.query("ROLLBACK");
  await admin.end();
  assert.deepEqual(new Set(await Promise.all(stored)), new Set(["stored"]));
  const { rows, ids } = await counts(database);
  assert.deepEqual([rows, ids], [stored.length, stored.length]);
});

/** A writer of two transactions: the first waits for a lock, the second, of other topics and names, is in the database. */
async function startOvertaking(database: TestDatabase, store: Store, signal: AbortSignal): Promise<{
  readonly settled: string[];
  readonly both: Promise<unknown>;
  /** Gives the lock free. */
  end(): Promise<void>;
}> {
  const messages = (topic: string) =>
    batch(topic, ...Array.from({ length: 4_000 }, () => metricMessage(topic))).rows.map(({ message }) => message);
  await store.ensureTables(["a", "b"]);
  await store.write({ ...batch("a", metricMessage("a")) });
  const admin = new pg.Client({ ...testStack().postgres, database: database.name });
  await admin.connect();
  await admin.query("BEGIN");
  await admin.query("SELECT FROM site_checker.latest WHERE name = 'a' FOR UPDATE");
  const writer = new Writer(store, { log: SILENT, signal, transactions: 2 });
  const settled: string[] = [];
  const write = async (topic: string) => {
    const { stored } = writer.write(messages(topic), new AbortController().signal);
    settled.push(await stored.then((handled) => `${topic} ${handled}`, () => `${topic} given up`));
  };
  const first = write("a");
  await new Promise((resolve) => setTimeout(resolve, 50));
  const both = Promise.all([first, write("b")]);
  for (let rows = 0; rows < 4_000; await new Promise((resolve) => setTimeout(resolve, 20))) {
    [{ rows } = { rows: 0 }] = await database.query<{ rows: number }>(
      "SELECT count(*)::int AS rows FROM site_checker.b",
    );
  }
  return {
    settled,
    both,
    async end() {
      await admin.query("ROLLBACK");
      await admin.end();
    },
  };
}

Deno.test("Writer says in their order what is stored, though a later transaction be done first", async () => {
  await using database = await makeDatabase();
  await using store = await Store.open(settings(database), { log: SILENT });
  const { settled, both, end } = await startOvertaking(database, store, new AbortController().signal);
  assert.deepEqual(settled, []);
  await end();
  await both;
  assert.deepEqual(settled, ["a stored", "b stored"]);
  assert.deepEqual(await counts(database), { rows: 8_001, ids: 8_001, letters: 0, checks: 8_001 });
});

Deno.test("Writer gives up what comes behind what it gave up, though that be in the database", async () => {
  await using database = await makeDatabase();
  await using store = await Store.open(settings(database), { log: SILENT });
  const controller = new AbortController();
  const { settled, both, end } = await startOvertaking(database, store, controller.signal);
  controller.abort();
  await database.query(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'site_checker' AND state = 'active'",
  );
  await both;
  await end();
  assert.deepEqual(settled, ["a given up", "b given up"]);
});

Deno.test("Store uses the server that takes writes, and the next one when it goes", async () => {
  await using database = await makeDatabase();
  const folder = await Deno.makeTempDir({ prefix: "site_checker-second-" });
  await Deno.chmod(folder, 0o755);
  try {
    const { host, port, user, password } = testStack().postgres;
    await using second = await startPostgres({ folder, password, database: database.name });
    const servers = [{ host, port: freePorts(1)[0]! }, { host, port }, { host: second.host, port: second.port }];
    await database.query(`ALTER DATABASE ${database.name} SET default_transaction_read_only = on`);
    const lines: unknown[] = [];
    const log: Log = { ...SILENT, info: (_, properties) => lines.push(properties?.["port"]) };
    await using store = await Store.open(settings(database, { servers }), { log });
    await store.ensureTables(["a"]);
    await store.write(batch("a", metricMessage("a")));
    const elsewhere = new pg.Client({ host, port: second.port, user, password, database: database.name });
    await elsewhere.connect();
    assert.deepEqual((await elsewhere.query("SELECT count(*)::int AS rows FROM site_checker.a")).rows, [{ rows: 1 }]);
    await elsewhere.end();
    await database.query(
      `SET default_transaction_read_only = off; ALTER DATABASE ${database.name} SET default_transaction_read_only = off`,
    );
    await second.stop();
    const { signal } = new AbortController();
    const writer = new Writer(store, { log: SILENT, signal });
    assert.equal(
      await writer.write(batch("a", metricMessage("a")).rows.map(({ message }) => message), signal).stored,
      "stored",
    );
    assert.deepEqual(await counts(database), { rows: 1, ids: 1, letters: 0, checks: 1 });
    assert.deepEqual(lines.filter((line) => line !== undefined), [second.port, port]);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("Store.write() splits what spans many topics, and says what to set where locks are few", async () => {
  await using database = await makeDatabase();
  const warnings: Record<string, unknown>[] = [];
  await using store = await Store.open(settings(database), {
    log: { ...SILENT, warn: (_, properties) => warnings.push(properties ?? {}) },
  });
  const topics = Array.from({ length: 450 }, (_, i) => `topic-${i}`);
  await store.ensureTables(topics);
  assert.deepEqual(warnings, []);
  await store.write({ rows: topics.flatMap((topic) => batch(topic, metricMessage(topic)).rows), deadLetters: [] });
  assert.deepEqual(await counts(database), { rows: 450, ids: 450, letters: 0, checks: 450 });
});
