import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { type Admin, Kafka as KafkaClient, logLevel, Partitioners } from "kafkajs";
import pg from "pg";
import { errorMessage } from "../lib/error.ts";
import { createAuthority } from "../local/certificate.ts";
import { Child } from "../local/child.ts";
import { formatGrid } from "../local/grid.ts";
import { type Kafka, runKafkaTool, startKafka } from "../local/kafka.ts";
import { isLocked, LockedError, takeLock } from "../local/lock.ts";
import { freePorts } from "../local/port.ts";
import { hasPostgres, type Postgres, startPostgres } from "../local/postgres.ts";
import { REPOSITORY } from "../local/repository.ts";
import { findStack, StackRunningError, startStack } from "../local/stack.ts";
import { publish, readByConsole, testStack, uniqueName } from "./support.ts";

const DAY_MS = 24 * 60 * 60 * 1000;
const CONSOLE_CONSUMER = "org.apache.kafka.tools.consumer.ConsoleConsumer";
const CONSOLE_PRODUCER = "org.apache.kafka.tools.ConsoleProducer";

/** A folder that servers' users can reach, and that goes with the test. */
async function temporaryFolder(): Promise<{ readonly path: string } & AsyncDisposable> {
  const path = await Deno.makeTempDir();
  await Deno.chmod(path, 0o755);
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

async function withAdmin<T>(
  options: ConstructorParameters<typeof KafkaClient>[0],
  use: (admin: Admin) => Promise<T>,
): Promise<T> {
  const admin = new KafkaClient({ logLevel: logLevel.NOTHING, retry: { retries: 2 }, ...options }).admin();
  try {
    await admin.connect();
    return await use(admin);
  } finally {
    await admin.disconnect();
  }
}

async function publishOne({ bootstrapServers }: Kafka, topic: string, value: string): Promise<void> {
  const producer = new KafkaClient({ brokers: [bootstrapServers], logLevel: logLevel.NOTHING })
    .producer({ createPartitioner: Partitioners.DefaultPartitioner });
  await producer.connect();
  await producer.send({ topic, messages: [{ key: "key", value }] });
  await producer.disconnect();
}

async function endOffset({ bootstrapServers }: Kafka, topic: string): Promise<string | undefined> {
  return await withAdmin({ brokers: [bootstrapServers] }, async (admin) => {
    const [partition] = await admin.fetchTopicOffsets(topic);
    return partition?.high;
  });
}

async function query(
  config: Pick<pg.ClientConfig, "host" | "port" | "user" | "password" | "database" | "ssl">,
  text: string,
): Promise<unknown[]> {
  const { host, port, user, password, database, ssl = false } = config;
  const client = new pg.Client({ host, port, user, password, database, ssl } as pg.ClientConfig);
  client.on("error", () => {});
  try {
    await client.connect();
    return (await client.query(text)).rows;
  } finally {
    await client.end();
  }
}

async function certificateFiles(): Promise<{ ca: string; cert: string; key: string }> {
  const { certificates } = testStack();
  const [ca, cert, key] = await Promise.all(
    ["ca.pem", "service.cert", "service.key"].map((name) => Deno.readTextFile(`${certificates}/${name}`)),
  ) as [string, string, string];
  return { ca, cert, key };
}

async function runScript(
  script: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", `${REPOSITORY}/${script}`, ...args],
    env: { NO_COLOR: "1", ...env },
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

Deno.test("freePorts() gives different ports, none of those that outgoing connections take", () => {
  const ports = freePorts(50);
  assert.equal(new Set(ports).size, 50);
  for (const port of ports) {
    assert.ok(port >= 10_000 && port < 32_768, String(port));
    Deno.listen({ hostname: "127.0.0.1", port }).close();
  }
});

Deno.test("takeLock() refuses a lock that somebody has, and names the process", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/lock`;
  assert.equal(await isLocked(path), false);
  {
    using _ = await takeLock(path, { action: "Cannot start" });
    assert.equal(await isLocked(path), true);
    await assert.rejects(
      takeLock(path, { action: "Cannot start", timeoutMs: 100 }),
      new LockedError(`Cannot start: in use by process ${Deno.pid}`),
    );
  }
  assert.equal(await isLocked(path), false);
});

Deno.test("Child ends with a process that is killed", async () => {
  await using folder = await temporaryFolder();
  const script = `
    import { Child } from ${JSON.stringify(import.meta.resolve("../local/child.ts"))};
    const child = await Child.start({ command: "sleep", args: ["60"], log: "${folder.path}/log" });
    console.log(child.pid);
    Deno.kill(Deno.pid, "SIGKILL");`;
  const { stdout } = await new Deno.Command(Deno.execPath(), { args: ["eval", script] }).output();
  const pid = Number(new TextDecoder().decode(stdout));
  assert.ok(pid > 0);
  for (let tries = 0; await isAlive(pid); tries++) {
    assert.ok(tries < 50, "The child outlives its parent");
    await delay(100);
  }
});

Deno.test("Child keeps the last lines of its own output, not of earlier ones", async () => {
  await using folder = await temporaryFolder();
  const log = `${folder.path}/log`;
  await Deno.writeTextFile(log, "earlier\n");
  await using child = await Child.start({ command: "sh", args: ["-c", "echo out; echo err >&2; exit 3"], log });
  assert.equal((await child.ended).code, 3);
  await child.stop();
  assert.deepEqual((await child.tail()).split("\n").sort(), ["err", "out"]);
});

Deno.test("formatGrid() aligns numbers to the right", () => {
  const columns = [{ name: "name" }, { name: "ms", align: "right" }] as const;
  assert.equal(
    formatGrid(columns, [["apache", "5"], ["fine", "12.25"]]),
    [
      " name   |    ms",
      "--------+-------",
      " apache |     5",
      " fine   | 12.25",
    ].join("\n"),
  );
});

Deno.test("formatGrid() shortens long values and keeps each row on a line", () => {
  const rows = [["0123456789"], ["a\nb\tc"], [""]];
  assert.equal(
    formatGrid([{ name: "text" }], rows, { maxWidth: 6 }),
    [" text", "--------", " 01234…", " a↵b·c", ""].join("\n"),
  );
});

Deno.test("formatGrid() takes more rows than a call takes arguments", () => {
  const rows = Array.from({ length: 200_000 }, (_, index) => [String(index)]);
  assert.equal(formatGrid([{ name: "n", align: "right" }], rows).split("\n").at(-1), " 199999");
});

Deno.test("issue() makes certificates of the authority, for the names and the time that were asked for", async () => {
  const authority = await createAuthority("tests");
  const notAfter = new Date("2020-01-01T00:00:00Z");
  const { certificate } = await authority.issue({
    commonName: "site",
    names: ["site.example", "10.1.2.3", "::1"],
    notBefore: new Date("2019-01-01T00:00:00Z"),
    notAfter,
  });
  const parsed = new X509Certificate(certificate);
  assert.ok(parsed.verify(new X509Certificate(authority.certificate).publicKey));
  assert.equal(parsed.checkHost("site.example"), "site.example");
  assert.equal(parsed.checkIP("10.1.2.3"), "10.1.2.3");
  assert.equal(parsed.checkIP("::1"), "::1");
  assert.equal(Date.parse(parsed.validTo), notAfter.getTime());
});

for (
  const { what, host = "localhost", names = ["localhost"], days = [-1, 1], expected } of [
    { what: "names", expected: "trusted" },
    { what: "addresses", host: "127.0.0.1", names: ["127.0.0.1"], expected: "trusted" },
    { what: "another name", names: ["127.0.0.1"], expected: "certificate not valid for name" },
    { what: "a time that is over", days: [-2, -1], expected: "certificate expired" },
    { what: "a time to come", days: [1, 2], expected: "certificate not valid yet" },
  ]
) {
  Deno.test(`issue() makes certificates for ${what}, as fetch finds`, async () => {
    const authority = await createAuthority("tests");
    const [notBefore, notAfter] = days.map((day) => new Date(Date.now() + day * DAY_MS)) as [Date, Date];
    const { certificate: cert, key } = await authority.issue({ commonName: "site", names, notBefore, notAfter });
    const listen = { hostname: "127.0.0.1", port: 0, onListen: () => {} };
    await using server = Deno.serve({ ...listen, cert, key }, () => new Response("trusted"));
    using client = Deno.createHttpClient({ caCerts: [authority.certificate] });
    const found = await fetch(`https://${host}:${server.addr.port}/`, { client })
      .then((response) => response.text(), (error) => errorMessage(error));
    assert.ok(found.includes(expected), found);
  });
}

Deno.test("Kafka takes a client certificate of its authority over TLS, and no client without one", async () => {
  const { kafkaSsl } = testStack();
  const { ca, cert, key } = await certificateFiles();
  const brokers = [kafkaSsl];
  assert.ok(Array.isArray(await withAdmin({ brokers, ssl: { ca, cert, key } }, (admin) => admin.listTopics())));
  const once = { retry: { retries: 0 } };
  await assert.rejects(withAdmin({ brokers, ...once, ssl: { ca } }, (admin) => admin.listTopics()));
  const other = await (await createAuthority("other")).issue({ commonName: "client" });
  const ssl = { ca, cert: other.certificate, key: other.key };
  await assert.rejects(withAdmin({ brokers, ...once, ssl }, (admin) => admin.listTopics()));
});

Deno.test("runKafkaTool() writes and reads a topic by Kafka's own tools, over TLS too", async () => {
  const { kafka, kafkaSsl, certificates } = testStack();
  const topic = uniqueName("tool");
  await runKafkaTool(
    CONSOLE_PRODUCER,
    [
      ...["--bootstrap-server", kafka, "--topic", topic],
      ...["parse.key", "parse.headers"].flatMap((name) => ["--property", `${name}=true`]),
    ],
    { stdin: "h:1\tk\tvalue\n" },
  );
  await using folder = await temporaryFolder();
  const properties = `${folder.path}/client.properties`;
  const { ca, cert, key } = await certificateFiles();
  const pem = (text: string) => text.trim().replaceAll("\n", "\\n");
  await Deno.writeTextFile(
    properties,
    [
      "security.protocol=SSL",
      "ssl.truststore.type=PEM",
      `ssl.truststore.certificates=${pem(ca)}`,
      "ssl.keystore.type=PEM",
      `ssl.keystore.certificate.chain=${pem(cert)}`,
      `ssl.keystore.key=${pem(key)}`,
    ].join("\n"),
  );
  const output = await runKafkaTool(CONSOLE_CONSUMER, [
    ...["--bootstrap-server", kafkaSsl, "--consumer.config", properties],
    ...["--topic", topic, "--from-beginning", "--max-messages", "1", "--timeout-ms", "20000"],
    ...["timestamp", "headers", "key"].flatMap((name) => ["--property", `print.${name}=true`]),
  ]);
  assert.match(output, /^CreateTime:\d+\th:1\tk\tvalue\n$/);
  assert.ok((await Deno.stat(`${certificates}/service.key`)).isFile);
});

Deno.test("runKafkaTool() reads a topic by a client that is not ours", async () => {
  const topic = uniqueName("console");
  await publish(topic, [{ key: "k", value: '{"a":1}', timestamp: "1600000000000" }]);
  assert.deepEqual(await readByConsole(topic, 1), [
    { timestamp: 1_600_000_000_000, headers: "NO_HEADERS", key: "k", value: { a: 1 } },
  ]);
});

Deno.test("runKafkaTool() says why a tool failed", async () => {
  await assert.rejects(runKafkaTool(CONSOLE_CONSUMER, ["--nonsense"]), /ConsoleConsumer failed: .*nonsense/s);
});

Deno.test("PostgreSQL takes connections over TLS, whose certificate passes verify-full", async () => {
  const { ca } = await certificateFiles();
  const { postgres } = testStack();
  const text = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
  assert.deepEqual(await query({ ...postgres, ssl: { ca } }, text), [{ ssl: true }]);
  const { certificate } = await createAuthority("other");
  await assert.rejects(query({ ...postgres, ssl: { ca: certificate } }, text), /certificate/);
});

Deno.test("startKafka() gives a broker that comes through a kill, a stop and a restart with its data", async () => {
  await using folder = await temporaryFolder();
  await using kafka = await startKafka({ folder: folder.path });
  await publishOne(kafka, "kept", "1");
  const { pid, bootstrapServers } = kafka;
  await kafka.kill("SIGKILL");
  assert.equal(kafka.pid, undefined);
  assert.match(await kafka.ended, /^SIGKILL\n/);

  await kafka.start();
  assert.notEqual(kafka.pid, pid);
  assert.equal(kafka.bootstrapServers, bootstrapServers);
  await publishOne(kafka, "kept", "2");
  await kafka.stop();
  assert.equal(kafka.pid, undefined);

  await kafka.start();
  assert.equal(await endOffset(kafka, "kept"), "2");
});

Deno.test("startKafka() refuses to make topics by itself where it is told so", async () => {
  await using folder = await temporaryFolder();
  await using kafka = await startKafka({ folder: folder.path, autoCreateTopics: false });
  const metadata = withAdmin({ brokers: [kafka.bootstrapServers] }, (admin) => admin.fetchTopicOffsets("absent"));
  await assert.rejects(metadata, /does not host this topic-partition/);
});

Deno.test("startKafka() fails with the end of the broker's log, and leaves nothing behind", async () => {
  await using folder = await temporaryFolder();
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  await assert.rejects(
    startKafka({ folder: folder.path, port: listener.addr.port }),
    /^Error: Cannot start Kafka, its log in .*kafka\.log ends with:\n.*Address already in use/s,
  );
  assert.equal(await isLocked(`${folder.path}/lock`), false);
});

Deno.test("startKafka() is given up by its signal", async () => {
  await using folder = await temporaryFolder();
  await assert.rejects(startKafka({ folder: folder.path, signal: AbortSignal.timeout(300) }));
  assert.equal(await isLocked(`${folder.path}/lock`), false);
});

Deno.test("startPostgres() gives a server that comes through kill -9, a stop and a restart with its data", async () => {
  await using folder = await temporaryFolder();
  assert.equal(await hasPostgres(folder.path), false);
  const options = { folder: folder.path, password: "p@ss/word", database: 'own "name"' };
  {
    await using postgres = await startPostgres(options);
    await query(postgres, "CREATE TABLE kept AS SELECT 1 AS n");
    // A backend that holds the shared memory for a while.
    const busy = query(postgres, "SELECT pg_sleep(2)").catch(() => {});
    await delay(200);
    await postgres.kill("SIGKILL");
    assert.equal(postgres.pid, undefined);
    await assert.rejects(query(postgres, "SELECT 1"), /ECONNREFUSED/);
    await busy;
    await postgres.start();
    assert.deepEqual(await settings(postgres), {
      fsync: "on",
      server_encoding: "UTF8",
      datlocale: "C.UTF-8",
      listen_addresses: "127.0.0.1",
    });
    await postgres.stop();
    await postgres.start();
    assert.deepEqual(await queryUrl(postgres, "SELECT n FROM kept"), [{ n: 1 }]);
  }
  assert.equal(await hasPostgres(folder.path), true);
  await using postgres = await startPostgres(options);
  assert.deepEqual(await query(postgres, "SELECT n FROM kept"), [{ n: 1 }]);
});

Deno.test("startPostgres() makes a cluster anew that was left half made", async () => {
  await using folder = await temporaryFolder();
  await Deno.mkdir(`${folder.path}/data`);
  await Deno.writeTextFile(`${folder.path}/data/PG_VERSION`, "18\n");
  await using postgres = await startPostgres({ folder: folder.path });
  assert.deepEqual(await query(postgres, "SELECT 1 AS n"), [{ n: 1 }]);
});

Deno.test("startPostgres() says at once that the cluster has another password", async () => {
  await using folder = await temporaryFolder();
  {
    await using _ = await startPostgres({ folder: folder.path });
  }
  const begun = performance.now();
  await assert.rejects(startPostgres({ folder: folder.path, password: "wrong" }), /password authentication failed/);
  assert.ok(performance.now() - begun < 10_000);
});

Deno.test("startStack() uses what the environment names, and is found by its folder while it runs", async () => {
  await using folder = await temporaryFolder();
  const { kafka, postgres } = testStack();
  const variables = { KAFKA_BOOTSTRAP_SERVERS: kafka, POSTGRES_HOST: postgres.host };
  for (const [name, value] of Object.entries(variables)) Deno.env.set(name, value);
  try {
    const lines: string[] = [];
    {
      await using stack = await startStack({ folder: folder.path, report: (line) => lines.push(line) });
      assert.equal(stack.kafka, undefined);
      assert.equal(stack.postgres, undefined);
      assert.deepEqual(stack.connection, variables);
      assert.deepEqual((await findStack(folder.path))?.connection, variables);
      await assert.rejects(startStack({ folder: folder.path }), StackRunningError);
    }
    assert.deepEqual(lines, [`Using Kafka at ${kafka}`, `Using PostgreSQL at ${postgres.host}`]);
    assert.equal(await findStack(folder.path), undefined);
  } finally {
    for (const name of Object.keys(variables)) Deno.env.delete(name);
  }
});

Deno.test("startStack() refuses a folder that another process uses, and forgets one that is gone", async () => {
  await using folder = await temporaryFolder();
  const script = `
    import { takeLock } from ${JSON.stringify(import.meta.resolve("../local/lock.ts"))};
    await takeLock("${folder.path}/stack.lock", { action: "Cannot start" });
    console.log("taken");
    setTimeout(() => {}, 60_000);`;
  const other = new Deno.Command(Deno.execPath(), { args: ["eval", script], stdin: "null", stdout: "piped" }).spawn();
  const output = other.stdout.getReader();
  await output.read();
  await Deno.writeTextFile(`${folder.path}/stack.json`, JSON.stringify({ pid: other.pid, connection: {} }));
  assert.equal((await findStack(folder.path))?.pid, other.pid);
  await assert.rejects(
    startStack({ folder: folder.path }),
    new StackRunningError(`Cannot start a stack in ${folder.path}: in use by process ${other.pid}`),
  );
  other.kill("SIGKILL");
  await other.status;
  await output.cancel();
  assert.equal(await findStack(folder.path), undefined);
});

Deno.test("stack names what is missing and the ways out, where there is no Java", async () => {
  await using folder = await temporaryFolder();
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "-A", "local/stack.ts", "--folder", `${folder.path}/stack`],
    cwd: REPOSITORY,
    env: { PATH: folder.path, HOME: Deno.env.get("HOME") ?? "" },
    clearEnv: true,
    stdout: "null",
  }).output();
  assert.equal(code, 1);
  const text = new TextDecoder().decode(stderr);
  assert.match(text, /^stack: Cannot find Java \(java\), in which Kafka runs\./);
  for (const way of ["KAFKA_BOOTSTRAP_SERVERS", "POSTGRES_HOST", "compose:up", "install Java 17"]) {
    assert.ok(text.includes(way), way);
  }
});

Deno.test("stack refuses an old Java", async () => {
  await using folder = await temporaryFolder();
  await Deno.writeTextFile(`${folder.path}/java`, `#!/bin/sh\necho 'openjdk version "1.8.0_400"' >&2\n`, {
    mode: 0o755,
  });
  const { code, stderr } = await runScript("local/stack.ts", ["--folder", `${folder.path}/stack`], {
    PATH: `${folder.path}:${Deno.env.get("PATH")}`,
    JAVA_HOME: "",
  });
  assert.equal(code, 1);
  assert.match(stderr, /^stack: Cannot use Java 8 \(.*\/java\): Kafka needs 17 or newer\nWays out:/);
});

Deno.test("sql prints a table, or JSON", async () => {
  const env = postgresEnvironment();
  const text = `SELECT 1 AS n, 'a' AS t, NULL::text AS z, '{"a": [1, 2], "b, : c": 1}'::jsonb AS j, true AS yes`;
  assert.deepEqual(await runScript("local/sql.ts", [`${text}; CREATE TEMP TABLE made (n int)`], env), {
    code: 0,
    stdout: [
      " n | t | z | j                      | yes",
      "---+---+---+------------------------+------",
      ' 1 | a |   | {"a":[1,2],"b, : c":1} | true',
      "(1 row)",
      "CREATE",
      "",
    ].join("\n"),
    stderr: "",
  });
  const digits = "SELECT 12345678901234567890 AS n, 'NaN'::float8 AS x";
  assert.equal(
    (await runScript("local/sql.ts", ["--json", `${text}; ${digits}`], env)).stdout,
    '{"n":1,"t":"a","z":null,"j":{"a":[1,2],"b, : c":1},"yes":true}\n{"n":12345678901234567890,"x":"NaN"}\n',
  );
});

Deno.test("sql says what is wrong with a query, and where", async () => {
  const { code, stderr } = await runScript(
    "local/sql.ts",
    ["SELECT '€',\n  nme FROM (SELECT 1 AS name) s"],
    postgresEnvironment(),
  );
  assert.equal(code, 1);
  assert.equal(
    stderr,
    'sql: column "nme" does not exist (SQLSTATE 42703)\n' +
      "    nme FROM (SELECT 1 AS name) s\n" +
      "    ^\n" +
      'hint: Perhaps you meant to reference the column "s.name".\n',
  );
});

Deno.test("sql and stack exit 2 on wrong usage", async () => {
  for (
    const [script, args, message] of [
      ["local/sql.ts", [], "missing required argument 'query'"],
      ["local/sql.ts", ["a", "b"], "too many arguments"],
      ["local/stack.ts", ["--kafka-port", "70000"], "Expected a whole number from 1 to 65535"],
      ["local/stack.ts", ["surplus"], "too many arguments"],
    ] as const
  ) {
    const { code, stderr } = await runScript(script, args);
    assert.equal(code, 2, stderr);
    assert.ok(stderr.includes(message), stderr);
  }
});

Deno.test("sql says how to start a database where there is none", async () => {
  await using folder = await temporaryFolder();
  const { code, stderr } = await runScript("local/sql.ts", ["--folder", folder.path, "SELECT 1"]);
  assert.equal(code, 2);
  assert.match(stderr, /^sql: Cannot find a database: expected a stack that has run \(deno task stack/);
});

async function isAlive(pid: number): Promise<boolean> {
  const { stdout } = await new Deno.Command("ps", { args: ["-o", "stat=", "-p", String(pid)] }).output();
  const state = new TextDecoder().decode(stdout).trim();
  return state !== "" && !state.startsWith("Z");
}

function postgresEnvironment(): Record<string, string> {
  const { host, port, user, password, database } = testStack().postgres;
  return {
    POSTGRES_HOST: host,
    POSTGRES_PORT: String(port),
    POSTGRES_USER: user,
    POSTGRES_PASSWORD: password,
    POSTGRES_DATABASE: database,
  };
}

async function settings(postgres: Postgres): Promise<unknown> {
  const text = `SELECT current_setting('fsync') AS fsync, current_setting('server_encoding') AS server_encoding,
    datlocale, current_setting('listen_addresses') AS listen_addresses
    FROM pg_database WHERE datname = current_database()`;
  const [row] = await query(postgres, text);
  return row;
}

async function queryUrl({ url }: Postgres, text: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query(text)).rows;
  } finally {
    await client.end();
  }
}
