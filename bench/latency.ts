import { setTimeout as delay } from "node:timers/promises";
import { Command } from "commander";
import type pg from "pg";
import { print, printError } from "../lib/log.ts";
import type { Child } from "../local/child.ts";
import { formatGrid } from "../local/grid.ts";
import { startStack } from "../local/stack.ts";
import { startTask } from "../local/task.ts";
import { connect } from "./database.ts";
import { processUsage } from "./usage.ts";

/**
 * Measures how long it takes from the end of a check to the visible row, with producer, Kafka, consumer and PostgreSQL
 * as users run them. The database notes when each transaction was committed (`track_commit_timestamp`); the end of a
 * check is `occurred_at` and `elapsed_ms`.
 *
 * @module
 */

interface Options {
  readonly sites: number;
  readonly seconds: number;
}

/** Tables and topics are made, and both programs compiled what they run often. */
const WARM_UP_MS = 30_000;
const TABLES_TIMEOUT_MS = 120_000;

const LATENCY_SQL = `SELECT count(*)::int AS checks, count(*) FILTER (WHERE verdict <> 'up')::int AS failed,
  percentile_cont(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY ms) AS latencies
FROM (
  SELECT verdict, extract(epoch FROM pg_xact_commit_timestamp(xmin) - occurred_at) * 1000 - elapsed_ms AS ms
  FROM site_checker.all_checks WHERE occurred_at >= $1 AND occurred_at < $2
) AS checks`;

async function main(args: readonly string[]): Promise<void> {
  const { sites, seconds } = new Command("latency")
    .option("--sites <n>", "sites, each with a topic, checked once a second", Number, 1_000)
    .option("--seconds <n>", "time that is measured, after the warm-up", Number, 30)
    .parse(args, { from: "user" }).opts<Options>();
  const folder = await Deno.makeTempDir({ prefix: "site_checker-bench-" });
  await Deno.chmod(folder, 0o755);
  try {
    await using stack = await startStack({ folder, report: printError });
    await using server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, () => new Response("fine"));
    await using database = connect(stack.connection);
    await database.pool.query("ALTER SYSTEM SET track_commit_timestamp = on");
    await stack.postgres!.stop();
    await stack.postgres!.start();

    const config = `${folder}/config.ini`;
    const url = `http://127.0.0.1:${server.addr.port}/`;
    const sections = Array.from(
      { length: sites },
      (_, index) => `[website_site-${index}]\nurl = ${url}\ninterval = 1s\n`,
    );
    await Deno.writeTextFile(config, sections.join(""));
    const env = { ...stack.connection, CONFIG_PATH: config };
    // A task may write to its own folder only.
    const spool = `spool/bench-${Deno.pid}`;
    await using consumer = await startTask("consumer", {
      args: ["--kafka-topic", "/site-.*/"],
      log: `${folder}/consumer.log`,
      env,
    });
    await using producer = await startTask("producer", {
      args: ["--spool-path", `${spool}/latency.db`],
      log: `${folder}/producer.log`,
      env,
    });
    try {
      await untilTables(database.pool, sites, [consumer, producer]);
      printError("Warming up …");
      await delay(WARM_UP_MS);
      const before = await Promise.all([processUsage(producer.pid), processUsage(consumer.pid)]);
      const from = new Date();
      await delay(seconds * 1000);
      const to = new Date();
      const after = await Promise.all([processUsage(producer.pid), processUsage(consumer.pid)]);
      // What was checked last is on its way still.
      await delay(5_000);
      const { rows: [row] } = await database.pool.query(LATENCY_SQL, [from, to]);
      printFigures(row, { seconds });
      print("");
      printUsage(before, after, { checks: row.checks, seconds });
      await producer.stop("SIGTERM");
      await consumer.stop("SIGTERM");
    } finally {
      await Deno.remove(spool, { recursive: true }).catch(() => {});
    }
  } finally {
    await Deno.remove(folder, { recursive: true }).catch(() => {});
  }
}

function printFigures(
  { checks, failed, latencies: [median, p99, max] }: { checks: number; failed: number; latencies: number[] },
  { seconds }: { seconds: number },
): void {
  print(formatGrid(
    ["checks/s", "failed", "p50, ms", "p99, ms", "max, ms"].map((name) => ({ name, align: "right" as const })),
    [[(checks / seconds).toFixed(0), String(failed), ...[median, p99, max].map((ms) => ms!.toFixed(0))]],
  ));
}

type Usages = readonly Awaited<ReturnType<typeof processUsage>>[];

function printUsage(before: Usages, after: Usages, { checks, seconds }: { checks: number; seconds: number }): void {
  const programs = ["producer", "consumer"];
  print(formatGrid(
    [
      { name: "program" },
      ...["CPU, µs/check", "CPU, % of a core", "RSS, MB"].map((name) => ({ name, align: "right" as const })),
    ],
    programs.map((name, index) => {
      const cpuSeconds = (after[index]?.cpuSeconds ?? 0) - (before[index]?.cpuSeconds ?? 0);
      return [
        name,
        (cpuSeconds / checks * 1e6).toFixed(0),
        (cpuSeconds / seconds * 100).toFixed(0),
        (after[index]?.peakMegabytes ?? 0).toFixed(0),
      ];
    }),
  ));
}

async function untilTables(pool: pg.Pool, tables: number, programs: readonly Child[]): Promise<void> {
  const until = performance.now() + TABLES_TIMEOUT_MS;
  for (;;) {
    const { rows: [found] } = await pool.query(
      "SELECT count(*)::int AS tables FROM pg_inherits WHERE inhparent = to_regclass('site_checker.all_checks')",
    );
    if (found.tables >= tables) return;
    const ended = programs.find(({ running }) => !running);
    if (ended !== undefined || performance.now() > until) {
      const tails = await Promise.all(programs.map((program) => program.tail()));
      throw new Error(`Expected ${tables} tables, got ${found.tables}:\n${tails.join("\n")}`);
    }
    await delay(500);
  }
}

await main(Deno.args);
