import { relative, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { styleText } from "node:util";
import { Command } from "commander";
import pg from "pg";
import { readPostgresSettings } from "../lib/config.ts";
import { print, printError } from "../lib/log.ts";
import { poolConfig } from "../lib/database.ts";
import type { Metric } from "../lib/metric.ts";
import type { Child } from "./child.ts";
import { formatGrid } from "./grid.ts";
import { type Interruption, listenForInterruption } from "./interruption.ts";
import { REPOSITORY } from "./repository.ts";
import { type DemoSite, startDemoSites } from "./sites.ts";
import { type Connection, errorMessageLines, startStack, usageExitCode } from "./stack.ts";
import { startTask } from "./task.ts";

interface Options {
  readonly seconds?: number;
  readonly url?: string;
  readonly regex?: string;
}

/** A row, as the demo shows it. */
type Shown =
  & Pick<
    Metric,
    "id" | "name" | "verdict" | "error" | "error_message" | "status_code" | "response_time"
  >
  & { readonly occurred_at: Date };

const FOLDER = resolve(REPOSITORY, ".local/demo");
const POLL_MS = 250;
const STOP_TIMEOUT_MS = 12_000;
/** Beside rows of the demo, a site that the user named may come to anything. */
const OWN_SITE = "yours";

const SELECT_NEW_ROWS = `
  SELECT id, name, verdict, error, error_message, status_code, response_time, occurred_at
  FROM site_checker.all_checks WHERE occurred_at > $1 AND NOT id = ANY ($2) ORDER BY occurred_at, id`;
const GO_ON_WITH = "select name, verdict, error, count(*) from site_checker.all_checks group by 1, 2, 3 order by 1";

/** Widths of the table of arriving rows. */
const COLUMNS = [["time", 12], ["site", 10], ["verdict", 8], ["status", 6], ["ms", 7], ["why", 0]] as const;

async function main(args: readonly string[]): Promise<number> {
  const command = new Command("demo")
    .description(
      "Starts Kafka, PostgreSQL, web sites that behave differently, producer and consumer; shows rows as they arrive.",
    )
    .option("--seconds <n>", "end after this time (default: at Ctrl-C)", parseSeconds)
    .option("--url <url>", "one more site to check")
    .option("--regex <pattern>", "pattern that it must match")
    .exitOverride();
  try {
    command.parse(args, { from: "user" });
  } catch (error) {
    return usageExitCode(error);
  }
  const options = command.opts<Options>();
  if (options.regex !== undefined && options.url === undefined) {
    printError("demo: Cannot use --regex: expected --url beside it");
    return 2;
  }
  using interruption = listenForInterruption();
  try {
    return await demo(options, interruption);
  } catch (error) {
    if (interruption.signal.aborted) return 0;
    printError(`demo: ${errorMessageLines(error)}`);
    return 1;
  }
}

async function demo(options: Options, { signal, requested }: Interruption): Promise<number> {
  const begun = performance.now();
  await using stack = await startStack({ report: print, signal });
  await using demoSites = await startDemoSites();
  const sites = [...demoSites.sites, ...ownSite(options)];
  await Deno.remove(FOLDER, { recursive: true }).catch(() => {});
  await Deno.mkdir(FOLDER, { recursive: true });
  await Deno.writeTextFile(`${FOLDER}/ca.pem`, demoSites.authority);
  await Deno.writeTextFile(`${FOLDER}/config.ini`, configFile(sites, stack.connection), { mode: 0o600 });

  const since = new Date();
  // The producer's runtime trusts the authority of the demo's sites beside the system's.
  const run = (task: "producer" | "consumer") =>
    startTask(task, {
      args: ["--config-path", `${FOLDER}/config.ini`],
      log: `${FOLDER}/${task}.log`,
      // A spool of its own, beside the one of a producer that may run here.
      env: { DENO_CERT: `${FOLDER}/ca.pem`, SPOOL_PATH: "spool/demo.db" },
    });
  const consumer = await run("consumer");
  const producer = await run("producer");
  print(
    `producer.ts and consumer.ts are up after ${
      ((performance.now() - begun) / 1000).toFixed(1)
    } s; their log and configuration:`,
  );
  print(`  ${relative(Deno.cwd(), FOLDER)}\n`);

  const settings = await readPostgresSettings({ env: (name) => stack.connection[name] });
  await using pool = disposablePool(new pg.Pool({ ...poolConfig(settings), max: 1 }));
  const rows: Shown[] = [];
  const stop = new AbortController();
  const showing = showRows(pool.pool, { since, rows, signal: stop.signal });
  const crashed = Promise.race([producer, consumer].map(({ ended }) => ended));
  const timeUp = options.seconds === undefined
    ? undefined
    : delay(options.seconds * 1000, "time", { signal: stop.signal });
  timeUp?.catch(() => {});
  const end = await Promise.race([requested, crashed.then(() => "crashed"), ...(timeUp ? [timeUp] : [])]);

  await producer.stop("SIGTERM", STOP_TIMEOUT_MS);
  // What Kafka has now is stored before the consumer ends.
  await delay(1_000);
  await consumer.stop("SIGTERM", STOP_TIMEOUT_MS);
  stop.abort();
  await showing;
  if (end === "crashed") {
    for (const child of [producer, consumer]) printError(await (child as Child).tail());
    return 1;
  }
  return summarise(sites, rows);
}

function ownSite({ url, regex }: Options): DemoSite[] {
  if (url === undefined) return [];
  return [{ name: OWN_SITE, behaviour: "is yours", url, regex: regex ?? null, expected: () => true }];
}

function configFile(sites: readonly DemoSite[], connection: Connection): string {
  const section = (prefix: string) =>
    Object.entries(connection).filter(([name]) => name.startsWith(prefix))
      .map(([name, value]) => `${name.slice(prefix.length).toLowerCase()} = ${escapePercent(value)}`).join("\n");
  const site = ({ name, behaviour, url, regex }: DemoSite) =>
    [
      `# ${behaviour}`,
      `[website_${name}]`,
      `url = ${escapePercent(url)}`,
      ...(regex === null ? [] : [`regex = ${escapePercent(regex)}`]),
      "interval = 1s",
    ].join("\n");
  return [`[kafka]\n${section("KAFKA_")}`, `[postgres]\n${section("POSTGRES_")}`, ...sites.map(site)].join("\n\n") +
    "\n";
}

function escapePercent(text: string): string {
  return text.replaceAll("%", "%%");
}

function disposablePool(pool: pg.Pool): { readonly pool: pg.Pool } & AsyncDisposable {
  pool.on("error", () => {});
  return { pool, [Symbol.asyncDispose]: () => pool.end() };
}

/** Prints rows as they arrive, until the signal and once more. */
async function showRows(
  pool: pg.Pool,
  { since, rows, signal }: { since: Date; rows: Shown[]; signal: AbortSignal },
): Promise<void> {
  const seen = new Set<string>();
  print(styled("bold", COLUMNS.map(([name, width]) => align(name, name, width)).join("  ").trimEnd()));
  for (let last = false; !last;) {
    last = signal.aborted;
    try {
      const fresh = await pool.query<Shown>(SELECT_NEW_ROWS, [since, [...seen]]);
      for (const row of fresh.rows) {
        rows.push(row);
        seen.add(row.id);
        print(formatRow(row));
      }
    } catch (error) {
      // 42P01: the consumer makes the tables with the first message.
      if (!(error instanceof pg.DatabaseError && ["42P01", "3F000"].includes(error.code ?? ""))) throw error;
    }
    if (!last) await delay(POLL_MS, undefined, { signal }).catch(() => {});
  }
}

function formatRow({ occurred_at, name, verdict, status_code, response_time, error, error_message }: Shown): string {
  const texts = [
    occurred_at.toISOString().slice(11, 23),
    name,
    verdict,
    String(status_code ?? "–"),
    response_time === null ? "–" : response_time.toFixed(1),
    error === null ? "" : `${error}: ${error_message}`,
  ];
  const cells = COLUMNS.map(([column, width], index) => {
    const text = texts[index] ?? "";
    const cell = align(column, text, width);
    return column === "verdict" ? styled(verdict === "up" ? "green" : "red", cell) : cell;
  });
  const line = cells.join("  ").trimEnd();
  if (!Deno.stdout.isTerminal()) return line;
  // A row is a line, whatever the terminal's width.
  const room = Deno.consoleSize().columns - COLUMNS.reduce((sum, [, width]) => sum + width + 2, 0);
  const why = texts.at(-1) ?? "";
  return why.length > room ? line.slice(0, line.length - why.length + Math.max(0, room - 1)) + "…" : line;
}

function align(column: typeof COLUMNS[number][0], text: string, width: number): string {
  return column === "status" || column === "ms" ? text.padStart(width) : text.padEnd(width);
}

/** Says what came of each site. @returns 0 where each has rows, all of them as expected. */
function summarise(sites: readonly DemoSite[], rows: readonly Shown[]): number {
  const results = sites.map((site) => {
    const own = rows.filter(({ name }) => name === site.name);
    const good = own.filter(site.expected).length;
    return { site, total: own.length, good, passed: own.length > 0 && good === own.length };
  });
  print("");
  print(formatGrid(
    [{ name: "site" }, { name: "what it does" }, { name: "rows", align: "right" }, { name: "as expected" }],
    results.map(({ site, total, good, passed }) => [
      site.name,
      site.behaviour,
      String(total),
      passed ? "all" : `${good} of ${total}`,
    ]),
  ));
  const failed = results.filter(({ passed }) => !passed).length;
  print(failed === 0 ? "\nEvery check became a row." : `\n${failed} site(s) have no rows, or others than expected.`);
  print(`The rows are kept. To go on:\n\n  deno task sql "${GO_ON_WITH}"`);
  return failed === 0 ? 0 : 1;
}

function styled(style: "bold" | "green" | "red", text: string): string {
  return Deno.stdout.isTerminal() && !Deno.noColor ? styleText(style, text) : text;
}

function parseSeconds(text: string): number {
  const seconds = Number(text);
  if (!(seconds > 0 && seconds <= 86_400)) {
    throw new RangeError(`Cannot read seconds '${text}': expected a number above 0 and up to 86400`);
  }
  return seconds;
}

if (import.meta.main) Deno.exitCode = await main(Deno.args);
