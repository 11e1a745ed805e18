import { setTimeout as delay } from "node:timers/promises";
import { Command } from "commander";
import { Kafka, logLevel } from "kafkajs";
import { silenceTimeoutWarning } from "../lib/kafka.ts";
import { print, printError } from "../lib/log.ts";
import type { Metric } from "../lib/metric.ts";
import { createAuthority } from "../local/certificate.ts";
import { Child } from "../local/child.ts";
import { formatGrid } from "../local/grid.ts";
import { startKafka } from "../local/kafka.ts";
import { freePorts } from "../local/port.ts";
import { REPOSITORY } from "../local/repository.ts";
import { startTask } from "../local/task.ts";
import { processUsage } from "./usage.ts";

/**
 * Measures checks as users run them, the whole producer with a real broker, in parts: what a check costs beside a bare
 * loop of `fetch` on the same server, how late checks begin, how far response times are off, and what a look at the
 * connection costs. Each part is short by default; `--long` takes a quarter of an hour.
 *
 * @module
 */

interface Options {
  readonly cost?: boolean;
  readonly lateness?: boolean;
  readonly honesty?: boolean;
  readonly inspection?: boolean;
  readonly long?: boolean;
}

/** What all parts use. */
interface Bench {
  readonly folder: string;
  /** Broker. */
  readonly broker: string;
  /** Address of the site, see bench/site.ts. */
  readonly site: string;
  /** The same over TLS. */
  readonly secureSite: string;
  /** File of the authority that its certificate is from. */
  readonly authority: string;
  readonly long: boolean;
}

/** A producer that runs, and where it publishes. */
interface Load {
  /** Lines of `[defaults]`. */
  readonly defaults: readonly string[];
  /** Lines of `[producer]`. */
  readonly producer?: readonly string[];
  readonly sites: number;
  /** Path on the site. */
  readonly path: string;
  /** Beginning of the sites' names, which are their topics'. Default: `site`. */
  readonly name?: string;
  /** Topic of all sites; undefined for a topic per site. */
  readonly topic?: string;
  /** Time that is measured. */
  readonly seconds: number;
  /** Time before that, in which code is compiled and each site checked once. */
  readonly warmUpSeconds: number;
}

interface LoadFigures {
  readonly from: number;
  readonly to: number;
  readonly cpuSeconds: number;
  readonly megabytes: readonly [begin: number, end: number, peak: number];
  /** Last lines of its log. */
  readonly tail: string;
}

const AT_ONCE = 50;
/** Sites that are checked at least, each with a topic. */
const COST_SITES = 1_000;
/** Checks that are asked for, of what the bare loop did right before: more than can be done, so that it bounds no rate. */
const COST_SHARE = 1.1;
const SHORTEST_INTERVAL_MS = 100;
const COST_SECONDS = 15;
/** Machines are noisy: turns of both, of which the middle counts. */
const COST_ROUNDS = 5;
/** A broker that makes a thousand topics does little else for as long, and is itself compiled meanwhile. */
const COST_TOPICS_SECONDS = 60;
const COST_WARM_UP_SECONDS = 10;
const INSPECTION_SITES = 200;
const SITE_TRIES = 100;
const SITE_WAIT_MS = 100;

async function main(args: readonly string[]): Promise<void> {
  const options = new Command("check")
    .option("--cost", "CPU and rate of whole checks beside a bare loop of fetch")
    .option("--lateness", "how late checks of 5,000 and 10,000 sites begin, and memory")
    .option("--honesty", "error of response_time at 1, 100 and 1,000 checks a second")
    .option("--inspection", "cost of a look at the connection with every check")
    .option("--long", "10,000 sites for ten minutes instead of one")
    .addHelpText("after", "\nWithout any of the first four: all of them.")
    .parse(args, { from: "user" }).opts<Options>();
  const { cost, lateness, honesty, inspection, long = false } = options;
  const all = !(cost || lateness || honesty || inspection);
  silenceTimeoutWarning();
  const folder = await Deno.makeTempDir({ prefix: "site_checker-bench-" });
  try {
    await using kafka = await startKafka({ folder: `${folder}/kafka`, report: printError });
    const [port, securePort] = freePorts(2);
    const authority = await createAuthority("site_checker bench");
    const { certificate, key } = await authority.issue({ commonName: "127.0.0.1", names: ["127.0.0.1"] });
    const files = { authority: authority.certificate, certificate, key };
    for (const [name, text] of Object.entries(files)) await Deno.writeTextFile(`${folder}/${name}.pem`, text);
    const siteArgs = [String(port), String(securePort), `${folder}/certificate.pem`, `${folder}/key.pem`];
    await using _site = await startScript("site", siteArgs, folder);
    const bench: Bench = {
      folder,
      broker: kafka.bootstrapServers,
      site: `http://127.0.0.1:${port}`,
      secureSite: `https://127.0.0.1:${securePort}`,
      authority: `${folder}/authority.pem`,
      long,
    };
    await untilUp(bench);
    if (all || cost) await measureCost(bench);
    if (all || lateness) await measureLateness(bench);
    if (all || honesty) await measureHonesty(bench);
    if (all || inspection) await measureInspection(bench);
  } finally {
    await Deno.remove(folder, { recursive: true }).catch(() => {});
  }
}

/** A bare loop of `fetch` and the whole producer, as many at once, in turns, over http and over https. */
async function measureCost(bench: Bench): Promise<void> {
  const rows: string[][] = [];
  for (const site of [bench.site, bench.secureSite]) {
    const scheme = site.split(":")[0]!;
    const ofScheme = { ...bench, site };
    const bare = await runLoop(ofScheme, COST_SECONDS);
    const sites = Math.max(COST_SITES, Math.ceil(COST_SHARE * bare.perSecond * SHORTEST_INTERVAL_MS / 1000));
    const load = ({ perSecond }: Cost) => ({
      defaults: [
        `interval = ${Math.max(SHORTEST_INTERVAL_MS, Math.floor(sites / (COST_SHARE * perSecond) * 1000))}ms`,
        `tls_ca = ${bench.authority}`,
      ],
      producer: [`max_checks = ${AT_ONCE}`],
      sites,
      path: "/0",
      name: scheme,
      seconds: COST_SECONDS,
      warmUpSeconds: COST_WARM_UP_SECONDS,
    });
    printError(`Cost: ${scheme}: topics …`);
    await runLoad(ofScheme, { ...load(bare), seconds: 0, warmUpSeconds: COST_TOPICS_SECONDS });
    const rounds: { readonly loop: Cost; readonly load: LoadFigures }[] = [];
    for (let round = 1; round <= COST_ROUNDS; round++) {
      printError(`Cost: ${scheme}: ${round} of ${COST_ROUNDS}: fetch, producer …`);
      const loop = await runLoop(ofScheme, COST_SECONDS);
      rounds.push({ loop, load: await runLoad(ofScheme, load(loop)) });
    }
    const checks = rounds.map(() => 0);
    await readMetrics(bench, Array.from({ length: sites }, (_, index) => `${scheme}-${index}`), (metric) => {
      rounds.forEach(({ load: { from, to } }, round) => within(from, to)(metric) && checks[round]!++);
      return false;
    });
    const costs = rounds.map(({ loop, load: { cpuSeconds } }, round) => {
      const whole = costOf({ count: checks[round]!, cpuSeconds });
      return { loop, whole, rate: whole.perSecond / loop.perSecond, cpu: whole.cpuMs / loop.cpuMs };
    });
    const middle = (of: (cost: typeof costs[number]) => number) => quantile(costs.map(of), 0.5);
    const spread = (of: (cost: typeof costs[number]) => number) =>
      `${Math.min(...costs.map(of)).toFixed(2)}–${Math.max(...costs.map(of)).toFixed(2)}`;
    for (const [what, of] of [["bare loop of fetch", "loop"], [`whole checks, ${sites} topics`, "whole"]] as const) {
      const [perSecond, cpuMs] = [middle((cost) => cost[of].perSecond), middle((cost) => cost[of].cpuMs)];
      rows.push([`${scheme}: ${what}`, perSecond.toFixed(0), cpuMs.toFixed(3)]);
    }
    rows.push(
      [`${scheme}: ratio`, middle(({ rate }) => rate).toFixed(2), middle(({ cpu }) => cpu).toFixed(2)],
      [`${scheme}: ratios of the turns`, spread(({ rate }) => rate), spread(({ cpu }) => cpu)],
    );
  }
  printGrid(["what, the middle of the turns", "a second", "CPU each, ms"], rows);
}

interface Cost {
  readonly perSecond: number;
  readonly cpuMs: number;
}

function costOf({ count, cpuSeconds }: { readonly count: number; readonly cpuSeconds: number }): Cost {
  return { perSecond: count / COST_SECONDS, cpuMs: cpuSeconds / count * 1000 };
}

async function measureLateness(bench: Bench): Promise<void> {
  const rows: string[][] = [];
  for (
    const { sites, interval, seconds } of [
      { sites: 5_000, interval: 5, seconds: 60 },
      { sites: 10_000, interval: 30, seconds: bench.long ? 600 : 60 },
    ]
  ) {
    printError(`Lateness: ${sites} sites at ${interval} s for ${seconds} s …`);
    const topic = `lateness-${sites}`;
    const { from, to, megabytes, tail } = await runLoad(bench, {
      defaults: [`interval = ${interval}s`],
      sites,
      path: "/5",
      topic,
      seconds,
      warmUpSeconds: interval,
    });
    const metrics = (await readMetrics(bench, [topic])).filter(within(from, to));
    const late = metrics.map(({ occurred_at, scheduled_at }) => Date.parse(occurred_at) - Date.parse(scheduled_at!));
    const expected = sites * seconds / interval;
    rows.push([
      `${sites} at ${interval} s, ${seconds} s`,
      ...[0.5, 0.99, 1].map((share) => quantile(late, share).toFixed(0)),
      // Those that fall on the ends are counted or not, one a site.
      String(Math.max(0, Math.round(expected) - metrics.length)),
      String(metrics.filter(({ verdict }) => verdict !== "up").length),
      ...megabytes.map((size) => size.toFixed(0)),
    ]);
    printError(tail);
  }
  printGrid(
    ["sites", "late p50, ms", "p99", "max", "missed", "not up", "RSS at begin, MB", "at end", "most"],
    rows,
  );
}

async function measureHonesty(bench: Bench): Promise<void> {
  const delayMs = 100;
  const rows: string[][] = [];
  for (const perSecond of [1, 100, 1_000]) {
    printError(`Honesty: ${perSecond} checks a second …`);
    const topic = `honesty-${perSecond}`;
    // What it did before is no part of it.
    await serverFigures(bench);
    const { from, to } = await runLoad(bench, {
      defaults: ["interval = 1s"],
      // Waiting for a place is no part of the times, but the rate is to be what it says.
      producer: ["max_checks_per_host = 1000"],
      sites: perSecond,
      path: `/${delayMs}`,
      topic,
      seconds: perSecond === 1 ? 30 : 20,
      warmUpSeconds: 10,
    });
    const metrics = (await readMetrics(bench, [topic])).filter(within(from, to));
    const errors = metrics.map(({ response_time }) => (response_time ?? Infinity) - delayMs);
    const server = await serverFigures(bench);
    rows.push([
      String(perSecond),
      String(metrics.length),
      ...[0.5, 0.99, 1].map((share) => quantile(errors, share).toFixed(1)),
      ...[0.5, 0.99].map((share) => quantile(server, share).toFixed(1)),
    ]);
  }
  printGrid(
    ["checks a second", "checks", "error p50, ms", "p99", "max", "of which the server p50", "p99"],
    rows,
  );
}

/** Waits until the site answers. */
async function untilUp(bench: Bench): Promise<void> {
  for (let tries = SITE_TRIES;; tries--) {
    try {
      return void await serverFigures(bench);
    } catch (error) {
      if (tries === 0) throw error;
      await delay(SITE_WAIT_MS);
    }
  }
}

/** How much later than asked for the site has answered since this was last asked, in ms. */
async function serverFigures({ site }: Bench): Promise<number[]> {
  return await (await fetch(`${site}/figures`)).json();
}

/** Looks beside every check, beside those of the usual interval, which fall into the warm-up, at a rate that both keep. */
async function measureInspection(bench: Bench): Promise<void> {
  const seconds = 20;
  const rows: string[][] = [];
  for (const site of [bench.site, bench.secureSite]) {
    const scheme = site.split(":")[0]!;
    const costs: number[] = [];
    for (const inspectInterval of ["1m", "0"]) {
      printError(`Inspection: ${scheme}, inspect_interval = ${inspectInterval} …`);
      const topic = `inspection-${scheme}-${inspectInterval}`;
      const { from, to, cpuSeconds } = await runLoad({ ...bench, site }, {
        defaults: ["interval = 500ms", `inspect_interval = ${inspectInterval}`, `tls_ca = ${bench.authority}`],
        sites: INSPECTION_SITES,
        path: "/5",
        topic,
        seconds,
        warmUpSeconds: 10,
      });
      const metrics = (await readMetrics(bench, [topic])).filter(within(from, to));
      const looks = metrics.filter(({ ip }) => ip !== null).length;
      const times = metrics.map(({ response_time }) => response_time ?? Infinity);
      costs.push(cpuSeconds / metrics.length * 1000);
      rows.push([
        `${scheme}, inspect_interval = ${inspectInterval}`,
        String(metrics.length),
        String(looks),
        costs.at(-1)!.toFixed(3),
        (costs.at(-1)! / costs[0]!).toFixed(2),
        ...[0.5, 0.99].map((share) => quantile(times, share).toFixed(1)),
      ]);
    }
  }
  printGrid(
    ["what", "checks", "with a look", "CPU each, ms", "ratio", "response_time p50, ms", "p99"],
    rows,
  );
}

/** Runs the producer's task for a while. */
async function runLoad({ folder, broker, site }: Bench, load: Load): Promise<LoadFigures> {
  const { defaults, producer = [], sites, path, name = "site", topic, seconds, warmUpSeconds } = load;
  const config = `${folder}/config.ini`;
  await Deno.writeTextFile(
    config,
    [
      ...["[kafka]", `bootstrap_servers = ${broker}`, "partitions = 1", ...(topic ? [`topic = ${topic}`] : [])],
      ...["[producer]", ...producer, "[defaults]", ...defaults],
      ...Array.from({ length: sites }, (_, index) => `[website_${name}-${index}]\nurl = ${site}${path}`),
    ].join("\n"),
  );
  // A task may write to its own folder only.
  const spool = `spool/bench-${Deno.pid}`;
  try {
    const log = `${folder}/producer.log`;
    await using child = await startTask("producer", {
      args: ["--config-path", config, "--spool-path", `${spool}/check.db`],
      log,
    });
    await delay(warmUpSeconds * 1000);
    const before = await processUsage(child.pid);
    const from = Date.now();
    await delay(seconds * 1000);
    const after = await processUsage(child.pid);
    const to = Date.now();
    if (before === undefined || after === undefined) throw new Error(`The producer ended:\n${await child.tail()}`);
    await child.stop("SIGTERM");
    return {
      from,
      to,
      cpuSeconds: after.cpuSeconds - before.cpuSeconds,
      megabytes: [before.megabytes, after.megabytes, after.peakMegabytes],
      tail: await child.tail(3),
    };
  } finally {
    await Deno.remove(`${REPOSITORY}/${spool}`, { recursive: true }).catch(() => {});
  }
}

async function runLoop({ folder, site, authority }: Bench, seconds: number): Promise<Cost> {
  const args = [`${site}/0`, String(AT_ONCE), String(seconds), authority];
  await using child = await startScript("fetch_loop", args, folder);
  let usage = await processUsage(child.pid);
  while (child.running) {
    await Promise.race([delay(50), child.ended]);
    usage = await processUsage(child.pid) ?? usage;
  }
  return costOf({ count: Number(await child.tail(1)), cpuSeconds: usage?.cpuSeconds ?? NaN });
}

async function startScript(name: string, args: readonly string[], folder: string): Promise<Child> {
  return await Child.start({
    command: Deno.execPath(),
    args: ["run", "--quiet", "--allow-net", "--allow-read", `bench/${name}.ts`, ...args],
    log: `${folder}/${name}.log`,
    cwd: REPOSITORY,
  });
}

/** What is in some topics. */
async function readMetrics(
  { broker }: Bench,
  topics: readonly string[],
  isWanted: (metric: Metric) => boolean = () => true,
): Promise<Metric[]> {
  const kafka = new Kafka({ brokers: [broker], logLevel: logLevel.NOTHING });
  const admin = kafka.admin();
  await admin.connect();
  const offsets = await Promise.all(topics.map((topic) => admin.fetchTopicOffsets(topic)));
  const count = offsets.flat().reduce((sum, { high }) => sum + Number(high), 0);
  await admin.disconnect();
  const consumer = kafka.consumer({ groupId: crypto.randomUUID(), maxWaitTimeInMs: 500 });
  await consumer.connect();
  await consumer.subscribe({ topics: [...topics], fromBeginning: true });
  const metrics: Metric[] = [];
  let read = 0;
  const all = Promise.withResolvers<void>();
  if (count === 0) all.resolve();
  await consumer.run({
    eachBatch: ({ batch: { messages } }) => {
      for (const { value } of messages) {
        const metric = JSON.parse(String(value)) as Metric;
        if (isWanted(metric)) metrics.push(metric);
      }
      read += messages.length;
      if (read >= count) all.resolve();
      return Promise.resolve();
    },
  });
  await all.promise;
  await consumer.disconnect();
  return metrics;
}

function within(from: number, to: number): (metric: Metric) => boolean {
  return ({ scheduled_at }) => Date.parse(scheduled_at!) >= from && Date.parse(scheduled_at!) < to;
}

function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? NaN;
}

function printGrid(names: readonly string[], rows: readonly (readonly string[])[]): void {
  print(formatGrid(names.map((name, index) => ({ name, align: index === 0 ? "left" : "right" })), rows));
  print("");
}

await main(Deno.args);
