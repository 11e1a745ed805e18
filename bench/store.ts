import { createReadStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import { setTimeout as delay } from "node:timers/promises";
import { Command } from "commander";
import { Kafka, logLevel, Partitioners } from "kafkajs";
import type pg from "pg";
import { from as copyFrom } from "pg-copy-streams";
import { silenceTimeoutWarning } from "../lib/kafka.ts";
import { print, printError } from "../lib/log.ts";
import { decodeMetric, type KafkaMessage } from "../lib/metric.ts";
import { COPY_ROWS_SQL, copyLine } from "../lib/table.ts";
import { connect } from "./database.ts";
import { createMetric } from "./metric.ts";
import { processUsage } from "./usage.ts";
import { formatGrid } from "../local/grid.ts";
import { startStack } from "../local/stack.ts";
import { startTask } from "../local/task.ts";

/**
 * Measures how fast the consumer moves messages into PostgreSQL, beside a plain COPY of the same rows into the same
 * table, by a client over its connection and by the server itself from its disk, in one run: a ratio holds on a shared
 * machine, a figure alone does not. Then what the consumer takes while 1,000 rows a second trickle in.
 *
 * @module
 */

interface Options {
  readonly messages: number;
  readonly topics: number[];
  readonly steadySeconds: number;
}

interface Figures {
  readonly topics: number;
  /** Rows a second of COPY by a client. */
  readonly clientRows: number;
  /** Rows a second of COPY by the server. */
  readonly serverRows: number;
  /** Rows a second of the consumer. */
  readonly rows: number;
  /** Bytes of the write-ahead log a row, of COPY and of the consumer. */
  readonly copyWal: number;
  readonly wal: number;
  readonly cpuMicros: number;
  readonly rssMegabytes: number;
}

/** A broker takes 1 MB a topic and request. */
const PUBLISH_BATCH = 500;
const POLL_MS = 20;
const READ_BYTES = 256 * 1024;
/** Rows a second while nothing is to be caught up with, in so many portions. */
const STEADY_ROWS = 1_000;
const STEADY_PORTIONS = 50;
const STEADY_WARM_UP_SECONDS = 8;

async function main(args: readonly string[]): Promise<void> {
  const { messages, topics, steadySeconds } = new Command("store")
    .option("--messages <n>", "messages of each run", Number, 500_000)
    .option("--topics <n,…>", "numbers of topics, a run each", (text) => text.split(",").map(Number), [1, 1_000])
    .option("--steady-seconds <n>", "time that rows trickle in for, 0 for not at all", Number, 20)
    .parse(args, { from: "user" }).opts<Options>();
  silenceTimeoutWarning();
  const folder = await Deno.makeTempDir({ prefix: "site_checker-bench-" });
  await Deno.chmod(folder, 0o755);
  try {
    await using stack = await startStack({ folder, report: printError });
    const figures: Figures[] = [];
    for (const count of topics) {
      figures.push(await measure(stack.connection, { folder, messages, topics: count }));
    }
    print(formatGrid(
      [
        "topics",
        "COPY by a client, rows/s",
        "by the server",
        "consumer, rows/s",
        "of the client's",
        "of the server's",
        "CPU, µs/row",
        "RSS, MB",
        "WAL, bytes/row",
        "of COPY",
      ].map((name) => ({ name, align: "right" as const })),
      figures.map(({ topics, clientRows, serverRows, rows, copyWal, wal, cpuMicros, rssMegabytes }) => [
        String(topics),
        clientRows.toFixed(0),
        serverRows.toFixed(0),
        rows.toFixed(0),
        (rows / clientRows).toFixed(2),
        (rows / serverRows).toFixed(2),
        cpuMicros.toFixed(1),
        rssMegabytes.toFixed(0),
        wal.toFixed(0),
        copyWal.toFixed(0),
      ]),
    ));
    if (steadySeconds === 0) return;
    const steady: SteadyFigures[] = [];
    for (const count of topics) {
      steady.push(await measureSteady(stack.connection, { folder, topics: count, seconds: steadySeconds }));
    }
    print("");
    print(formatGrid(
      ["topics", "rows/s", "CPU, µs/row", "CPU, % of a core", "RSS, MB", "most"]
        .map((name) => ({ name, align: "right" as const })),
      steady.map(({ topics, rows, cpuMicros, megabytes, peakMegabytes }) => [
        String(topics),
        rows.toFixed(0),
        cpuMicros.toFixed(0),
        (cpuMicros * rows / 1e4).toFixed(0),
        megabytes.toFixed(0),
        peakMegabytes.toFixed(0),
      ]),
    ));
  } finally {
    await Deno.remove(folder, { recursive: true }).catch(() => {});
  }
}

interface SteadyFigures {
  readonly topics: number;
  readonly rows: number;
  readonly cpuMicros: number;
  readonly megabytes: number;
  readonly peakMegabytes: number;
}

/** What the consumer takes where it has to wait for rows. */
async function measureSteady(
  connection: Readonly<Record<string, string>>,
  { folder, topics, seconds }: { folder: string; topics: number; seconds: number },
): Promise<SteadyFigures> {
  const names = Array.from({ length: topics }, (_, index) => `steady-${topics}-${index}`);
  const prefix = `steady-${topics}-`;
  await using database = connect(connection);
  await using producer = await createProducer(connection["KAFKA_BOOTSTRAP_SERVERS"]!, names);
  let sent = 0;
  const send = (count: number) =>
    producer.send(Array.from({ length: count }, () => {
      const topic = names[sent % names.length]!;
      return { topic, value: JSON.stringify(createMetric(topic, sent++)) };
    }));
  await send(topics);
  await using child = await startTask("consumer", {
    args: ["--kafka-topic", `/${prefix}.*/`, "--kafka-group-id", prefix],
    log: `${folder}/consumer.log`,
    env: connection,
  });
  const stored = async () => {
    const { rows: [row] } = await database.pool.query(
      "SELECT coalesce(sum(checks), 0)::int AS rows FROM site_checker.daily WHERE starts_with(name, $1)",
      [prefix],
    );
    return row.rows as number;
  };
  while (await stored().catch(() => 0) < topics) {
    if (!child.running) throw new Error(`The consumer ended:\n${await child.tail()}`);
    await delay(200);
  }
  const trickle = async (seconds: number) => {
    const begun = performance.now();
    for (let portion = 1; portion <= seconds * STEADY_PORTIONS; portion++) {
      await send(STEADY_ROWS / STEADY_PORTIONS);
      await delay(Math.max(0, begun + portion * 1_000 / STEADY_PORTIONS - performance.now()));
    }
    return (performance.now() - begun) / 1_000;
  };
  printError(`A trickle into ${topics} topic(s) …`);
  await trickle(STEADY_WARM_UP_SECONDS);
  const [before, usage] = [await stored(), await processUsage(child.pid)];
  const took = await trickle(seconds);
  const [after, usageAfter] = [await stored(), await processUsage(child.pid)];
  await child.stop("SIGTERM");
  return {
    topics,
    rows: (after - before) / took,
    cpuMicros: (usageAfter!.cpuSeconds - usage!.cpuSeconds) / (after - before) * 1e6,
    megabytes: usageAfter!.megabytes,
    peakMegabytes: usageAfter!.peakMegabytes,
  };
}

async function measure(
  connection: Readonly<Record<string, string>>,
  { folder, messages, topics }: { folder: string; messages: number; topics: number },
): Promise<Figures> {
  const names = Array.from({ length: topics }, (_, index) => `bench-${topics}-${index}`);
  printError(`Publishing ${messages} messages to ${topics} topic(s) …`);
  const rowFile = `${folder}/rows-${topics}`;
  await publish(connection["KAFKA_BOOTSTRAP_SERVERS"]!, { names, messages, rowFile });
  await using database = connect(connection);

  const args = ["--once", "--kafka-topic", `/bench-${topics}-.*/`, "--kafka-group-id", `bench-${topics}`];
  // Tables, so that both ways find them there: the first message of each topic makes them.
  await startTask("consumer", { args, log: `${folder}/consumer.log`, env: connection }).then((child) =>
    warmUp(child, database.pool, topics)
  );
  printError("COPY …");
  const byServer = () => database.pool.query(COPY_ROWS_SQL.replace("STDIN", `'${rowFile}'`));
  // Whichever is first finds files that the server has to make; so neither counts the first time.
  await measureCopy(database.pool, byServer);
  const server = await measureCopy(database.pool, byServer);
  const client = await measureCopy(database.pool, () => copyByClient(database.pool, rowFile));
  await empty(database.pool);

  printError("Consumer …");
  const child = await startTask("consumer", {
    args: args.map((arg) => arg === `bench-${topics}` ? `bench-${topics}-measured` : arg),
    log: `${folder}/consumer.log`,
    env: connection,
  });
  let first: number | undefined;
  const wal = await walPosition(database.pool);
  let usage = await processUsage(child.pid);
  for (let running = true; running;) {
    running = await Promise.race([child.ended.then(() => false), delay(POLL_MS, true)]);
    if (running) usage = await processUsage(child.pid) ?? usage;
    if (first === undefined) {
      const { rows } = await database.pool.query("SELECT FROM site_checker.all_checks LIMIT 1");
      if (rows.length > 0) first = performance.now();
    }
  }
  const seconds = (performance.now() - (first ?? 0)) / 1000;
  const { rows: [counted] } = await database.pool.query("SELECT count(*)::int AS rows FROM site_checker.all_checks");
  if (counted.rows !== messages) {
    throw new Error(`Expected ${messages} rows, got ${counted.rows}:\n${await child.tail()}`);
  }
  const walEnd = await walPosition(database.pool);
  await Deno.remove(rowFile);
  return {
    topics,
    clientRows: messages / client.seconds,
    serverRows: messages / server.seconds,
    rows: messages / seconds,
    copyWal: client.walBytes / messages,
    wal: (walEnd - wal) / messages,
    cpuMicros: (usage?.cpuSeconds ?? 0) / messages * 1e6,
    rssMegabytes: usage?.peakMegabytes ?? 0,
  };
}

async function measureCopy(
  pool: pg.Pool,
  copy: () => Promise<unknown>,
): Promise<{ readonly seconds: number; readonly walBytes: number }> {
  await empty(pool);
  const wal = await walPosition(pool);
  const begun = performance.now();
  await copy();
  const seconds = (performance.now() - begun) / 1000;
  return { seconds, walBytes: await walPosition(pool) - wal };
}

/** Pages that are written after a checkpoint go into the write-ahead log as a whole: it counts for all alike. */
async function empty(pool: pg.Pool): Promise<void> {
  await pool.query("TRUNCATE site_checker.all_checks");
  await pool.query("CHECKPOINT");
}

async function walPosition(pool: pg.Pool): Promise<number> {
  const { rows: [row] } = await pool.query("SELECT (pg_current_wal_lsn() - '0/0')::float8 AS bytes");
  return row.bytes;
}

/** COPY of a file through a connection, in one transaction, as `psql` does it. */
async function copyByClient(pool: pg.Pool, file: string): Promise<void> {
  const client = await pool.connect();
  try {
    await pipeline(createReadStream(file, { highWaterMark: READ_BYTES }), client.query(copyFrom(COPY_ROWS_SQL)));
  } finally {
    client.release();
  }
}

/** Lets a consumer make the tables, and ends it. */
async function warmUp(child: Awaited<ReturnType<typeof startTask>>, pool: pg.Pool, topics: number): Promise<void> {
  for (;;) {
    await delay(200);
    const { rows: [found] } = await pool.query(
      "SELECT count(*)::int AS tables FROM pg_inherits WHERE inhparent = to_regclass('site_checker.all_checks')",
    );
    if (found.tables >= topics) break;
    if (!child.running) throw new Error(`The consumer ended:\n${await child.tail()}`);
  }
  await child.stop("SIGKILL");
}

/** Publishes metrics to topics in turn, and writes the same rows to a file as COPY takes them. */
async function publish(
  broker: string,
  { names, messages, rowFile }: { names: readonly string[]; messages: number; rowFile: string },
): Promise<void> {
  await using producer = await createProducer(broker, names);
  using file = await Deno.open(rowFile, { write: true, create: true });
  const encoder = new TextEncoder();
  for (let sent = 0; sent < messages; sent += PUBLISH_BATCH) {
    const batch = Array.from({ length: Math.min(PUBLISH_BATCH, messages - sent) }, (_, index) => {
      const topic = names[(sent + index) % names.length]!;
      return { topic, value: JSON.stringify(createMetric(topic, sent + index)) };
    });
    const lines = batch.map(({ topic, value }) => copyLine(row(topic, value))).join("");
    const bytes = encoder.encode(lines);
    for (let written = 0; written < bytes.length;) written += await file.write(bytes.subarray(written));
    await producer.send(batch);
  }
}

interface Producer extends AsyncDisposable {
  send(messages: readonly { readonly topic: string; readonly value: string }[]): Promise<void>;
}

/** Makes topics, and sends messages to them, each with its topic as key. */
async function createProducer(broker: string, topics: readonly string[]): Promise<Producer> {
  const kafka = new Kafka({ brokers: [broker], logLevel: logLevel.NOTHING });
  const admin = kafka.admin();
  await admin.connect();
  await admin.createTopics({ topics: topics.map((topic) => ({ topic, numPartitions: 1 })), waitForLeaders: true });
  await admin.disconnect();
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
  await producer.connect();
  return {
    async send(messages) {
      await producer.sendBatch({
        topicMessages: [...Map.groupBy(messages, ({ topic }) => topic)].map(([topic, messages]) => ({
          topic,
          messages: messages.map(({ value }) => ({ key: topic, value })),
        })),
      });
    },
    [Symbol.asyncDispose]: () => producer.disconnect(),
  };
}

function row(topic: string, value: string): { message: KafkaMessage; metric: ReturnType<typeof decodeMetric> } {
  const message: KafkaMessage = {
    topic,
    partition: 0,
    offset: "0",
    timestamp: 0,
    key: null,
    value: new TextEncoder().encode(value),
    headers: {},
  };
  return { message, metric: decodeMetric(message) };
}

await main(Deno.args);
