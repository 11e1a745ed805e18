import pLimit from "p-limit";
import { checkWithRetries } from "./lib/check.ts";
import { Clients } from "./lib/client.ts";
import { type ProducerConfig, readProducerConfig, type Site } from "./lib/config.ts";
import { Evaluator } from "./lib/evaluator.ts";
import { print } from "./lib/log.ts";
import { encodeMetric, type Metric } from "./lib/metric.ts";
import { type Context, runProgram } from "./lib/program.ts";
import { Publishing } from "./lib/publishing.ts";
import { afterAbort, type Due, runSchedule } from "./lib/schedule.ts";
import { listRefused, openSpool, retryRefused } from "./lib/spool.ts";

/** With `--once`, checks at a time: more would take the CPU from each other and distort the times. */
const CHECKS_AT_ONCE = 50;
/** After a signal, checks that are under way may take this long; they are given up then, and say nothing of the site. */
const GRACE_MS = 2_500;
/** After a signal, Kafka may take this long for what was checked. */
const SHUTDOWN_DRAIN_MS = 4_500;

/** Checks sites and publishes every result, by way of the spool. */
async function produce({ config, commandLine, log, signal }: Context<ProducerConfig>): Promise<number> {
  if (commandLine.refused !== undefined) return dealWithRefused(commandLine.refused, config.spool.path);
  using clients = new Clients();
  using evaluator = new Evaluator();
  const bodies = new Map<string, string>();
  using spool = config.kafka === null ? null : openSpool(config.spool, { log });
  const publishing = spool === null ? null : new Publishing(config.kafka!, { spool, log });
  const givenUp = afterAbort(signal, GRACE_MS);

  function deliver(metric: Metric): void {
    if (spool === null) return print(encodeMetric(metric));
    spool.add({
      topic: config.kafka?.sharedTopic ?? metric.name,
      key: metric.name,
      value: encodeMetric(metric),
      timestamp: Date.parse(metric.occurred_at),
    });
  }

  async function checkSite({ item: site, scheduledAt }: Due<Site>): Promise<void> {
    try {
      const options = { scheduledAt, signal: givenUp, client: clients.get(site.client), evaluator, bodies };
      for await (const metric of checkWithRetries(site, options)) deliver(metric);
    } catch (error) {
      if (error instanceof Deno.errors.BrokenPipe) throw error;
      if (givenUp.aborted) return log.info("Gave up the check of '{name}'", { name: site.name });
      log.error("Cannot check '{name}', which says nothing of the site: {error}", {
        name: site.name,
        error: String(error),
      });
      if (commandLine.once) throw error;
    }
  }

  log.info("Checking {count} site(s)", { count: config.sites.length });
  const checks = commandLine.once ? checkOnce(config.sites, checkSite, signal) : runSchedule(config.sites, checkSite, {
    signal,
    onSkipped: (name, runs) =>
      log.warn("Left out {runs} check(s) of '{name}': the one before had not ended", { runs, name }),
  });
  // A broker that will never let us in ends the program; one that is away does not.
  await Promise.race([checks, publishing?.failed ?? checks]);
  if (publishing === null) return 0;
  const left = await publishing.drain(commandLine.once && !signal.aborted ? config.drainTimeoutMs : SHUTDOWN_DRAIN_MS);
  if (left > 0) {
    log.warn("Kafka has not taken {left} metric(s): they stay in '{path}' for the next start", {
      left,
      path: config.spool.path,
    });
  }
  return commandLine.once && left + publishing.refused > 0 ? 1 : 0;
}

/** Prints what Kafka will never take, or lets it be tried again. */
function dealWithRefused(wanted: "list" | "retry", path: string): number {
  if (wanted === "retry") {
    print(`${retryRefused(path)} metric(s) wait for Kafka again: a producer that runs, or the next, sends them`);
    return 0;
  }
  for (const { topic, reason, refusedAt, value } of listRefused(path)) {
    print(
      `{"refused_at":"${new Date(refusedAt).toISOString()}",${
        JSON.stringify({ topic, reason }).slice(1, -1)
      },"metric":${value}}`,
    );
  }
  return 0;
}

/** Checks each site once, some at a time. */
async function checkOnce(
  sites: readonly Site[],
  checkSite: (due: Due<Site>) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const limit = pLimit(CHECKS_AT_ONCE);
  await Promise.all(sites.map((item) =>
    limit(async () => {
      if (!signal.aborted) await checkSite({ item, scheduledAt: new Date() });
    })
  ));
}

Deno.exitCode = await runProgram("producer", Deno.args, { readConfig: readProducerConfig, run: produce });
