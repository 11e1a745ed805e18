import assert from "node:assert/strict";
import { startKafka } from "../local/kafka.ts";
import { freePorts } from "../local/port.ts";
import {
  commitOffset,
  committedOffset,
  eventually,
  groups,
  kafkaFlags,
  makeDatabase,
  metricMessage,
  publish,
  runProgram,
  runWell,
  setRule,
  startProgram,
  temporaryFile,
  testStack,
  uniqueName,
} from "./support.ts";

Deno.test("consumer --once stores what topics hold, commits, and stores nothing twice", async () => {
  await using database = await makeDatabase();
  const [topic, group] = [uniqueName("once"), uniqueName("group")];
  await publish(topic, Array.from({ length: 500 }, () => metricMessage(topic)));
  const args = ["--once", "--kafka-topic", topic, "--kafka-group-id", group, ...kafkaFlags(), ...database.flags];
  await runWell("consumer", args);
  assert.equal(await committedOffset(group, topic), 500);
  await runWell("consumer", args);
  await runWell("consumer", args.map((arg) => arg === group ? uniqueName("other") : arg));
  const [counts] = await database.query(
    `SELECT count(*)::int AS rows, count(DISTINCT id)::int AS ids FROM site_checker."${topic}"`,
  );
  assert.deepEqual(counts, { rows: 500, ids: 500 });
});

Deno.test("consumer makes a table for topics of any name", async () => {
  await using database = await makeDatabase();
  const suffix = crypto.randomUUID().slice(0, 8);
  const long = `${"x".repeat(192)}${suffix}`;
  const topics = [`a.b-c_D.${suffix}`, long, `${long.slice(0, 63)}`, "all_checks", "latest", `pkey.${suffix}`];
  for (const topic of topics) await publish(topic, [metricMessage(topic)]);
  await runWell("consumer", [
    "--once",
    ...topics.flatMap((topic) => ["--kafka-topic", topic]),
    ...["--kafka-group-id", uniqueName("group")],
    ...kafkaFlags(),
    ...database.flags,
  ]);
  const rows = await database.query<{ topic: string; own_table: string }>(
    "SELECT DISTINCT topic, tableoid::regclass::text AS own_table FROM site_checker.all_checks",
  );
  const tables = new Map(
    rows.map(({ topic, own_table }) => [topic, own_table.replaceAll('"', "").replace("site_checker.", "")]),
  );
  assert.deepEqual(new Set(tables.keys()), new Set(topics));
  assert.equal(tables.get(`a.b-c_D.${suffix}`), `a.b-c_D.${suffix}`);
  assert.match(tables.get(long)!, /^x{50}~[0-9a-f]{12}$/);
  assert.match(tables.get("latest")!, /^latest~[0-9a-f]{12}$/);
  assert.equal(new Set(tables.values()).size, topics.length);
});

Deno.test("consumer keeps a message that is no row as a dead letter, and stores its neighbours", async () => {
  await using database = await makeDatabase();
  const topic = uniqueName("poison");
  const args = ["--once", "--kafka-topic", topic, "--kafka-group-id", uniqueName("group"), ...kafkaFlags()];
  await publish(topic, [metricMessage(topic)]);
  await runWell("consumer", [...args, ...database.flags]);
  await database.query("ALTER TABLE site_checker.all_checks ADD CONSTRAINT no_teapot CHECK (status_code <> 418)");
  await publish(topic, [
    { value: "{not json", key: "k" },
    { value: new Uint8Array([0xff, 0x00]) },
    { value: null },
    metricMessage(topic, { verdict: "sideways" }),
    metricMessage(topic, { failed: ["\0"] }),
    // Ours, but PostgreSQL refuses it.
    metricMessage(topic, { status_code: 418 }),
    metricMessage(topic),
  ]);
  const { stderr } = await runWell("consumer", [...args, ...database.flags]);
  assert.match(stderr, /6 message\(s\) became dead letters/);
  const letters = await database.query<{ offset: string; key: string | null; value: string | null; reason: string }>(
    `SELECT "offset"::int, convert_from(key, 'UTF8') AS key, encode(value, 'hex') AS value, reason
     FROM site_checker.dead_letters WHERE topic = $1 ORDER BY 1`,
    [topic],
  );
  assert.deepEqual(
    letters.map(({ offset, reason }) => [offset, reason.replace(/ \(SQLSTATE.*/, "").replace(topic, "TOPIC")]),
    [
      [1, "expected JSON"],
      [2, "expected text in UTF-8"],
      [3, "expected a metric, got a message without a value"],
      [4, 'expected one of up, degraded, down as verdict, got "sideways"'],
      [5, 'expected JSON without NUL and lone surrogates as failed, got ["\\u0000"]'],
      [6, 'new row for relation "TOPIC" violates check constraint "no_teapot"'],
    ],
  );
  assert.deepEqual([letters[0]?.key, letters[1]?.value, letters[2]?.value], ["k", "ff00", null]);
  assert.deepEqual(await database.query(`SELECT count(*)::int AS rows FROM site_checker."${topic}"`), [{ rows: 2 }]);
});

Deno.test("consumer reads the Python program's messages", async () => {
  await using database = await makeDatabase();
  const topic = uniqueName("python");
  const old = {
    name: topic,
    url: "https://www.apache.org/",
    regex: "",
    has_regex: false,
    status_code: 200,
    response_time: 123,
    ocurred_at: "2021-03-04T05:06:07.891011",
  };
  await publish(topic, [
    JSON.stringify(JSON.stringify(old)),
    JSON.stringify({ ...old, regex: "About", has_regex: true, status_code: 503 }),
  ]);
  const flags = ["--kafka-topic", topic, ...kafkaFlags(), ...database.flags];
  await runWell("consumer", ["--once", "--kafka-group-id", uniqueName("group"), ...flags]);
  // Read again by a new group, they are the same rows.
  await runWell("consumer", ["--once", "--kafka-group-id", uniqueName("group"), ...flags]);
  const rows = await database.query(
    `SELECT verdict, status_code, response_time, regex, has_regex, method,
      to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') AS occurred_at
     FROM site_checker."${topic}" ORDER BY status_code`,
  );
  const common = { response_time: 123, method: null, occurred_at: "2021-03-04 05:06:07.891011" };
  assert.deepEqual(
    rows,
    [
      { verdict: "up", status_code: 200, regex: null, has_regex: null, ...common },
      { verdict: "down", status_code: 503, regex: "About", has_regex: true, ...common },
    ].map(({ verdict, status_code, regex, has_regex, response_time, method, occurred_at }) => ({
      verdict,
      status_code,
      response_time,
      regex,
      has_regex,
      method,
      occurred_at,
    })),
  );
});

Deno.test("consumer joins a topic that appears later within ten seconds, by name and by pattern", async () => {
  await using database = await makeDatabase();
  const [early, late, matching] = [uniqueName("early"), uniqueName("late"), uniqueName("matching")];
  await publish(early, [metricMessage(early)]);
  const group = uniqueName("group");
  await using consumer = startProgram("consumer", [
    ...["--kafka-topic", `${early},${late}`, "--kafka-topic", `/${matching.slice(0, -3)}.{1,3}/`],
    ...["--kafka-group-id", group, ...kafkaFlags(), ...database.flags],
  ]);
  await consumer.waitFor("Made tables for topics");
  for (const topic of [late, matching]) await publish(topic, [metricMessage(topic)]);
  await eventually(async () => {
    const [found] = await database.query<{ topics: number }>(
      "SELECT count(DISTINCT topic)::int AS topics FROM site_checker.all_checks",
    );
    return found?.topics === 3;
  }, { timeoutMs: 10_000, what: "rows of the topics that came later" });
  const { code, stderr } = await consumer.stop("SIGTERM");
  assert.equal(code, 0, stderr);
  assert.equal(await committedOffset(group, late), 1);
});

Deno.test("consumer takes the topics of the file's sites, and connects over mutual TLS and verify-full", async () => {
  await using database = await makeDatabase();
  const { certificates, kafkaSsl, postgres } = testStack();
  const [one, two] = [uniqueName("one"), uniqueName("two")];
  for (const topic of [one, two]) await publish(topic, [metricMessage(topic)]);
  await using file = await temporaryFile(
    "config.ini",
    `[kafka]
bootstrap_servers = ${kafkaSsl}
security_protocol = SSL
ssl_cafile = ${certificates}/ca.pem
ssl_certfile = ${certificates}/service.cert
ssl_keyfile = ${certificates}/service.key
[postgres]
user = ${postgres.user}
password = wrong: the environment's counts
host = localhost
port = ${postgres.port}
database = ${database.name}
sslmode = verify-full
sslrootcert = ${certificates}/ca.pem
min_connection = 1
max_connection = 3
[website_${one}]
url = http://127.0.0.1/
[website_${two}]
url = http://127.0.0.1/
`,
  );
  await runWell("consumer", ["--once", "--config-path", file.path], {
    env: { POSTGRES_PASSWORD: postgres.password, KAFKA_GROUP_ID: uniqueName("group") },
  });
  const rows = await database.query("SELECT topic FROM site_checker.all_checks ORDER BY topic");
  assert.deepEqual(rows.map(({ topic }) => topic), [one, two].toSorted());
  const ssl = await database.query("SELECT current_setting('ssl') AS ssl");
  assert.deepEqual(ssl, [{ ssl: "on" }]);
});

Deno.test.each([
  ["another password", ["--postgres-password=nope"], /password authentication failed/],
  ["another database", ["--postgres-database=nope"], /database "nope" does not exist/],
  ["an authority that is not the server's", ["--postgres-sslmode=verify-full"], /certificate/],
])("consumer exits 2 with %s", async (_, flags, message) => {
  await using database = await makeDatabase();
  const { code, stderr } = await runProgram("consumer", [
    "--once",
    "--kafka-topic=x",
    ...kafkaFlags(),
    ...database.flags.filter((flag) => !flags.some((other) => flag.split("=")[0] === other.split("=")[0])),
    ...flags,
  ]);
  assert.equal(code, 2, stderr);
  assert.match(stderr, /^consumer: Cannot connect to PostgreSQL at 127\.0\.0\.1:\d+ as 'postgres'/);
  assert.match(stderr, message);
  assert.doesNotMatch(stderr, /\n\s+at /);
});

Deno.test("consumer --dry-run prints rows, needs no database, and leaves no group behind", async () => {
  const topic = uniqueName("dry");
  await publish(topic, [metricMessage(topic), "poison", metricMessage(topic)]);
  const { stdout, stderr } = await runWell("consumer", [
    "--once",
    "--dry-run",
    "--kafka-topic",
    topic,
    ...kafkaFlags(),
  ]);
  const rows = stdout.trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(rows.map((row) => [row.topic, row.verdict]), [[topic, "up"], [topic, "up"]]);
  assert.match(stderr, /Dead letter .*@1: expected JSON/);
  assert.deepEqual((await groups()).filter((group) => group.includes("dry-run")), []);
});

Deno.test("consumer --once exits 1 where another member of the group is alive", async () => {
  await using database = await makeDatabase();
  const [topic, group] = [uniqueName("busy"), uniqueName("group")];
  await publish(topic, [metricMessage(topic)]);
  const args = ["--kafka-topic", topic, "--kafka-group-id", group, ...kafkaFlags(), ...database.flags];
  await using consumer = startProgram("consumer", args);
  await consumer.waitFor("Joined group");
  const { code, stderr } = await runProgram("consumer", ["--once", ...args]);
  assert.equal(code, 1, stderr);
  assert.match(stderr, /1 other member\(s\) of consumer group '.*' are alive/);
});

Deno.test("consumer leaves a foreign table alone, goes on with other topics, and says how to make room", async () => {
  await using database = await makeDatabase();
  const [old, other] = [uniqueName("apache"), uniqueName("other")];
  await database.query("CREATE SCHEMA site_checker");
  await database.query(
    `CREATE TABLE site_checker."${old}" (id SERIAL PRIMARY KEY, url VARCHAR(1024), regex VARCHAR(1024), has_regex BOOL,
      status_code SMALLINT, response_time INT, ocurred_at TIMESTAMP)`,
  );
  await database.query(
    `INSERT INTO site_checker."${old}" (url, regex, has_regex, status_code, response_time, ocurred_at) VALUES
      ('http://a/', '', false, 200, 5, '2020-01-02 03:04:05'), ('http://a/', 'x', false, 500, 6, '2020-01-02 03:04:25')`,
  );
  for (const topic of [old, other]) await publish(topic, [metricMessage(topic)]);
  await using consumer = startProgram("consumer", [
    ...[
      "--kafka-topic",
      `${old},${other}`,
      "--kafka-group-id",
      uniqueName("group"),
      ...kafkaFlags(),
      ...database.flags,
    ],
  ]);
  await consumer.waitFor(`Topic '${old}' waits, others go on`);
  const count = async (table: string) =>
    (await database.query<{ rows: number }>(`SELECT count(*)::int AS rows FROM site_checker."${table}"`))[0]?.rows;
  await eventually(async () => await count(other) === 1);
  assert.equal(await count(old), 2);

  const [rename, adopt] = consumer.output.stderr.match(/ALTER TABLE [^;]+;|INSERT INTO [^;]+;/g) ?? [];
  await database.query(rename!);
  await consumer.waitFor(`Topic '${old}' goes on`);
  await database.query(adopt!);
  await database.query(adopt!);
  const rows = await database.query(
    `SELECT verdict, error, status_code, response_time, regex, has_regex, occurred_at::text FROM site_checker."${old}"
     WHERE occurred_at < '2021-01-01' ORDER BY status_code`,
  );
  assert.deepEqual(rows.map(({ verdict, error, regex, has_regex }) => ({ verdict, error, regex, has_regex })), [
    { verdict: "up", error: null, regex: null, has_regex: null },
    { verdict: "down", error: "status", regex: "x", has_regex: false },
  ]);
  assert.equal(await count(old), 3);
});

Deno.test("consumer killed by SIGKILL loses nothing and doubles nothing", async () => {
  await using database = await makeDatabase();
  const [topic, group] = [uniqueName("killed"), uniqueName("group")];
  const args = ["--kafka-topic", topic, "--kafka-group-id", group, ...kafkaFlags(), ...database.flags];
  await publish(topic, Array.from({ length: 3_000 }, () => metricMessage(topic)));
  for (let round = 0; round < 2; round++) {
    await using consumer = startProgram("consumer", args);
    await eventually(() => /Joined group|Made tables/.test(consumer.output.stderr));
    await consumer.stop("SIGKILL");
  }
  await runWell("consumer", ["--once", ...args]);
  const [counts] = await database.query(
    `SELECT count(*)::int AS rows, count(DISTINCT id)::int AS ids FROM site_checker."${topic}"`,
  );
  assert.deepEqual(counts, { rows: 3_000, ids: 3_000 });
});

Deno.test("consumer --once waits for a broker that goes away in the middle, and stores all", async () => {
  const folder = await Deno.makeTempDir();
  await using cleanUp = new AsyncDisposableStack();
  cleanUp.defer(() => Deno.remove(folder, { recursive: true }));
  const kafka = cleanUp.use(await startKafka({ folder }));
  await using database = await makeDatabase();
  const topic = uniqueName("away");
  const publishSome = (count: number) =>
    publish(topic, Array.from({ length: count }, () => metricMessage(topic)), kafka.bootstrapServers);
  const args = ["--once", "--kafka-topic", topic, `--kafka-bootstrap-servers=${kafka.bootstrapServers}`];
  await publishSome(1);
  await runWell("consumer", [...args, ...database.flags]);
  // More than a consumer takes into memory, so that some is not read yet when the broker goes.
  for (let i = 0; i < 40; i++) await publishSome(1_000);
  const blocked = database.query(
    "BEGIN; LOCK TABLE site_checker.all_checks IN EXCLUSIVE MODE; SELECT pg_sleep(6); COMMIT",
  );
  await using consumer = startProgram("consumer", [...args, ...database.flags]);
  await consumer.waitFor("Joined group");
  await kafka.kill("SIGKILL");
  await blocked;
  await consumer.waitFor("trying again");
  await kafka.start();
  const { code, stderr } = await consumer.ended;
  assert.equal(code, 0, stderr);
  const [counts] = await database.query(
    `SELECT count(*)::int AS rows, count(DISTINCT id)::int AS ids FROM site_checker."${topic}"`,
  );
  assert.deepEqual(counts, { rows: 40_001, ids: 40_001 });
});

Deno.test("consumer names a topic that it has no right to read, reads others meanwhile, and it when the right is there", async () => {
  const folder = await Deno.makeTempDir();
  await using cleanUp = new AsyncDisposableStack();
  cleanUp.defer(() => Deno.remove(folder, { recursive: true }));
  const { bootstrapServers } = cleanUp.use(await startKafka({ folder, accessControl: true }));
  await using database = await makeDatabase();
  const publishTo = (topic: string) => publish(topic, [metricMessage(topic)], bootstrapServers);
  for (const topic of ["bad", "good"]) await publishTo(topic);
  const lift = await setRule(bootstrapServers, { topic: "bad", operation: "DESCRIBE", permission: "ALLOW" });
  const args = ["--kafka-topic=bad,good", `--kafka-bootstrap-servers=${bootstrapServers}`, ...database.flags];
  const count = async (topic: string) => {
    const sql = `SELECT count(*)::int AS rows FROM site_checker.all_checks WHERE topic = '${topic}'`;
    return (await database.query<{ rows: number }>(sql).catch(() => []))[0]?.rows;
  };
  {
    await using consumer = startProgram("consumer", args);
    await consumer.waitFor("Topic 'bad' can't be read, others go on");
    await eventually(async () => await count("good") === 1);
    await publishTo("good");
    await eventually(async () => await count("good") === 2);
    assert.equal((await consumer.stop("SIGTERM")).code, 0);
    assert.equal(consumer.output.stderr.match(/ERROR|Reading failed/g)?.length, 1, consumer.output.stderr);
  }
  await publishTo("good");
  const { code, stderr } = await runProgram("consumer", ["--once", ...args]);
  assert.equal(code, 1);
  assert.match(stderr, /Topic 'bad' can't be read/);
  assert.deepEqual([await count("good"), await count("bad")], [3, 0]);
  await lift();
  await runWell("consumer", ["--once", ...args]);
  assert.deepEqual([await count("good"), await count("bad")], [3, 1]);
});

Deno.test("two consumers that start at once on an empty database share the work without an error", async () => {
  await using database = await makeDatabase();
  const group = uniqueName("group");
  const topics = Array.from({ length: 6 }, (_, index) => uniqueName(`shared-${index}`));
  for (const topic of topics) await publish(topic, [metricMessage(topic), metricMessage(topic)]);
  const args = ["--kafka-topic", topics.join(","), "--kafka-group-id", group, ...kafkaFlags(), ...database.flags];
  await using one = startProgram("consumer", args);
  await using two = startProgram("consumer", args);
  await eventually(async () => {
    const [found] = await database.query<{ rows: number }>("SELECT count(*)::int AS rows FROM site_checker.all_checks")
      .catch(() => []);
    return found?.rows === 12;
  }, { timeoutMs: 30_000, what: "12 rows" });
  for (const consumer of [one, two]) {
    const { code, stderr } = await consumer.stop("SIGTERM");
    assert.equal(code, 0);
    assert.doesNotMatch(stderr, /ERROR/);
  }
});

Deno.test("consumer waits for a database that is not there, and ends in time at SIGTERM", async () => {
  await using consumer = startProgram("consumer", [
    "--kafka-topic=x",
    ...kafkaFlags(),
    ...[
      "--postgres-host=127.0.0.1",
      `--postgres-port=${freePorts(1)[0]}`,
      "--postgres-user=u",
      "--postgres-password=p",
    ],
  ]);
  await consumer.waitFor("Cannot use PostgreSQL at 127.0.0.1");
  const begun = performance.now();
  const { code } = await consumer.stop("SIGTERM");
  assert.equal(code, 0);
  assert.ok(performance.now() - begun < 10_000);
});

Deno.test("consumer --reset-offsets rebuilds from Kafka what is missing, and doubles nothing", async () => {
  await using database = await makeDatabase();
  const [topic, group] = [uniqueName("reset"), uniqueName("group")];
  const from = Date.UTC(2026, 0, 1);
  await publish(
    topic,
    Array.from({ length: 20 }, (_, minute) => ({
      value: metricMessage(topic, { status_code: minute, occurred_at: new Date(from + minute * 60_000).toISOString() }),
      timestamp: String(from + minute * 60_000),
    })),
  );
  const args = ["--once", "--kafka-topic", topic, "--kafka-group-id", group, ...kafkaFlags(), ...database.flags];
  const count = async () =>
    (await database.query<{ rows: number }>(`SELECT count(*)::int AS rows FROM site_checker."${topic}"`))[0]?.rows;
  await runWell("consumer", args);
  await database.query(`DELETE FROM site_checker."${topic}" WHERE status_code < 15`);
  await runWell("consumer", [...args, "--reset-offsets", "2026-01-01T00:10:00Z"]);
  assert.equal(await count(), 10);
  await runWell("consumer", [...args, "--reset-offsets", "latest"]);
  assert.equal(await count(), 10);
  await runWell("consumer", [...args, "--reset-offsets", "earliest"]);
  assert.equal(await count(), 20);
  const { code, stderr } = await runProgram("consumer", [...args, "--reset-offsets", "yesterday"]);
  assert.equal(code, 2);
  assert.match(
    stderr,
    /^consumer: Cannot read --reset-offsets: expected earliest, latest or a time .*, got 'yesterday'\n$/,
  );
});

Deno.test("consumer reads a topic that was made again from its start, and says so", async () => {
  await using database = await makeDatabase();
  const [topic, group] = [uniqueName("again"), uniqueName("group")];
  const args = ["--kafka-topic", topic, "--kafka-group-id", group, ...kafkaFlags(), ...database.flags];
  await publish(topic, Array.from({ length: 3 }, () => metricMessage(topic)));
  // Kafka itself forgets what was committed of a topic that is deleted, unless the group's coordinator was away.
  await commitOffset(group, topic, 1_000);
  await using consumer = startProgram("consumer", args);
  await consumer.waitFor(`What is committed of '${topic}', partition 0, is not there`);
  await eventually(async () => {
    const [found] = await database.query<{ rows: number }>(`SELECT count(*)::int AS rows FROM site_checker."${topic}"`)
      .catch(() => []);
    return found?.rows === 3;
  });
});

Deno.test("consumers of one group that know different topics read every partition", async () => {
  await using database = await makeDatabase();
  const group = uniqueName("group");
  const topics = Array.from({ length: 4 }, (_, index) => uniqueName(`known-${index}`));
  for (const topic of topics) await publish(topic, [metricMessage(topic)]);
  const start = (known: readonly string[]) =>
    startProgram("consumer", [
      "--kafka-topic",
      known.join(","),
      "--kafka-group-id",
      group,
      ...kafkaFlags(),
      ...database.flags,
    ]);
  await using one = start(topics.slice(0, 3));
  await using two = start(topics.slice(1));
  await using three = start(topics.slice(3));
  await eventually(async () => {
    const [found] = await database.query<{ topics: number }>(
      "SELECT count(DISTINCT topic)::int AS topics FROM site_checker.all_checks",
    ).catch(() => []);
    return found?.topics === topics.length;
  }, { timeoutMs: 30_000, what: "rows of every topic" });
  for (const consumer of [one, two, three]) {
    const { code, stderr } = await consumer.stop("SIGTERM");
    assert.equal(code, 0, stderr);
    assert.doesNotMatch(stderr, /ERROR|Unexpected/);
  }
});
