import { setTimeout as delay } from "node:timers/promises";
import { Command } from "commander";
import { Kafka, logLevel, Partitioners } from "kafkajs";
import pg from "pg";
import { silenceTimeoutWarning } from "../lib/kafka.ts";
import { print, printError } from "../lib/log.ts";
import { decodeMetric, type KafkaMessage } from "../lib/metric.ts";
import { COPY_ROWS_SQL, copyLine } from "../lib/table.ts";
import { createMetric } from "./metric.ts";
import { processUsage } from "./usage.ts";
import { formatGrid } from "../local/grid.ts";
import { startStack } from "../local/stack.ts";
import { startTask } from "../local/task.ts";

/**
 * Measures how fast the consumer moves messages into PostgreSQL, beside a plain COPY of the same rows into the same table
 * by the server itself, in one run: a ratio holds on a shared machine, a figure alone does not.
 *
 * @module
 */

interface Options {
  readonly messages: number;
  readonly topics: number[];
}

interface Figures {
  readonly topics: number;
  readonly copyRows: number;
  readonly rows: number;
  readonly cpuMicros: number;
  readonly rssMegabytes: number;
}

/** A broker takes 1 MB a topic and request. */
const PUBLISH_BATCH = 500;
const POLL_MS = 20;

async function main(args: readonly string[]): Promise<void> {
  const { messages, topics } = new Command("store")
    .option("--messages <n>", "messages of each run", Number, 500_000)
    .option("--topics <n,…>", "numbers of topics, a run each", (text) => text.split(",").map(Number), [1, 1_000])
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
      ["topics", "COPY, rows/s", "consumer, rows/s", "ratio", "CPU, µs/row", "RSS, MB"].map((name) => ({
        name,
        align: "right" as const,
      })),
      figures.map(({ topics, copyRows, rows, cpuMicros, rssMegabytes }) => [
        String(topics),
        copyRows.toFixed(0),
        rows.toFixed(0),
        (rows / copyRows).toFixed(2),
        cpuMicros.toFixed(1),
        rssMegabytes.toFixed(0),
      ]),
    ));
  } finally {
    await Deno.remove(folder, { recursive: true }).catch(() => {});
  }
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
  await database.pool.query("TRUNCATE site_checker.all_checks");

  printError("COPY …");
  const copyBegun = performance.now();
  await database.pool.query(COPY_ROWS_SQL.replace("STDIN", `'${rowFile}'`));
  const copyRows = messages / (performance.now() - copyBegun) * 1000;
  await database.pool.query("TRUNCATE site_checker.all_checks");
  await database.pool.query("CHECKPOINT");

  printError("Consumer …");
  const child = await startTask("consumer", {
    args: args.map((arg) => arg === `bench-${topics}` ? `bench-${topics}-measured` : arg),
    log: `${folder}/consumer.log`,
    env: connection,
  });
  let first: number | undefined;
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
  await Deno.remove(rowFile);
  return {
    topics,
    copyRows,
    rows: messages / seconds,
    cpuMicros: (usage?.cpuSeconds ?? 0) / messages * 1e6,
    rssMegabytes: usage?.peakMegabytes ?? 0,
  };
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
  const kafka = new Kafka({ brokers: [broker], logLevel: logLevel.NOTHING });
  const admin = kafka.admin();
  await admin.connect();
  await admin.createTopics({ topics: names.map((topic) => ({ topic, numPartitions: 1 })), waitForLeaders: true });
  await admin.disconnect();
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
  await producer.connect();
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
    await producer.sendBatch({
      topicMessages: [...Map.groupBy(batch, ({ topic }) => topic)].map(([topic, messages]) => ({
        topic,
        messages: messages.map(({ value }) => ({ key: topic, value })),
      })),
    });
  }
  await producer.disconnect();
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

function connect(connection: Readonly<Record<string, string>>): { readonly pool: pg.Pool } & AsyncDisposable {
  const pool = new pg.Pool({
    host: connection["POSTGRES_HOST"],
    port: Number(connection["POSTGRES_PORT"]),
    user: connection["POSTGRES_USER"],
    password: connection["POSTGRES_PASSWORD"],
    database: connection["POSTGRES_DATABASE"],
    max: 2,
  });
  pool.on("error", () => {});
  return { pool, [Symbol.asyncDispose]: () => pool.end() };
}

await main(Deno.args);
