import { Checker } from "./lib/checker.ts";
import { type ProducerConfig, readProducerConfig } from "./lib/config.ts";
import { Faults } from "./lib/fault.ts";
import { type Log, print } from "./lib/log.ts";
import { encodeMetric, type Metric } from "./lib/metric.ts";
import { Outbox } from "./lib/outbox.ts";
import { type Context, runProgram } from "./lib/program.ts";
import { followConfig } from "./lib/reload.ts";
import { afterAbort, type Due, runOnce, runSchedule } from "./lib/schedule.ts";
import type { Site } from "./lib/site.ts";
import { listRefused, retryRefused } from "./lib/spool_file.ts";
import { encodePrintable, type Trace, traceSite } from "./lib/trace.ts";
import { formatTrace, styleOfOutput } from "./lib/trace_text.ts";

/** After a signal, checks that are under way may take this long; they are given up then, and say nothing of the site. */
const GRACE_MS = 2_500;
/** After a signal, Kafka may take this long for what was checked. */
const SHUTDOWN_DRAIN_MS = 4_500;

/** Checks sites and publishes every result, by way of the spool. */
async function produce({ config, commandLine, log, signal }: Context<ProducerConfig>): Promise<number> {
  if (commandLine.refused !== undefined) return dealWithRefused(commandLine.refused, config.spool.path);
  if (commandLine.trace !== undefined) return await trace(config.sites[0]!, { ...commandLine.trace, log, signal });
  const { once } = commandLine;
  using checker = new Checker({ limits: config.limits, log, signal: afterAbort(signal, GRACE_MS), once });
  const { kafka, spool } = config;
  using outbox = kafka === null ? null : await Outbox.open({ kafka, spool }, { log });

  async function* sites(): AsyncGenerator<readonly Site[]> {
    for await (
      const { sites, limits } of followConfig(config, { read: () => readProducerConfig(commandLine), log, signal })
    ) {
      checker.resize(sites, limits);
      yield sites;
    }
  }

  function deliver(metric: Metric): void {
    if (outbox === null) return print(encodeMetric(metric));
    outbox.add({
      topic: kafka?.sharedTopic ?? metric.name,
      key: metric.name,
      value: encodeMetric(metric),
      timestamp: Date.parse(metric.occurred_at),
    });
  }

  const checkSite = (due: Due<Site>) => checker.check(due, deliver);
  log.info("Checking {count} site(s)", { count: config.sites.length });
  const checks = once
    ? runOnce(config.sites, checkSite, { signal, atOnce: config.limits.max })
    : runSchedule(sites(), checkSite, { signal, onSkipped: (name, runs) => checker.skip(name, runs) });
  // A broker that will never let us in ends the program; one that is away does not.
  await Promise.race([checks, outbox?.failed ?? checks]);
  if (outbox === null) return 0;
  const { left, refused } = await outbox.drain(once && !signal.aborted ? config.drainTimeoutMs : SHUTDOWN_DRAIN_MS);
  if (left > 0) {
    log.warn("Kafka has not taken {left} metric(s): they stay in '{path}' for the next start", {
      left,
      path: spool.path,
    });
  }
  return once && left + refused > 0 ? 1 : 0;
}

/** Prints one check, step by step. */
async function trace(
  site: Site,
  { json, log, signal }: { json: boolean; log: Log; signal: AbortSignal },
): Promise<number> {
  let traced: Trace;
  try {
    traced = await traceSite(site, { signal });
  } catch (error) {
    if (signal.aborted || error instanceof Deno.errors.NotCapable) throw error;
    using faults = new Faults({ log });
    faults.tell(site.name, error);
    return 1;
  }
  print(json ? encodePrintable(traced) : formatTrace(traced, styleOfOutput()));
  return 0;
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

Deno.exitCode = await runProgram("producer", Deno.args, { readConfig: readProducerConfig, run: produce });
