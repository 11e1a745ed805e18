/**
 * Publishing: from the spool to acknowledged by a real broker, over one topic and over many. `deno task bench:publish`
 * prints metrics a second, the CPU of this process per metric, and that of steady checks.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import type { PublishSettings } from "../lib/config.ts";
import { type Log, print, printError } from "../lib/log.ts";
import { Publishing } from "../lib/publishing.ts";
import { Spool } from "../lib/spool.ts";
import type { OutgoingMessage, SpoolSync } from "../lib/spool_file.ts";
import { startKafka } from "../local/kafka.ts";
import { createMetric } from "./metric.ts";

const BACKLOG = 100_000;
const TOPICS = 1_000;
const WARM_UPS = 5;
const STEADY_PER_SECOND = 1_000;
const STEADY_MS = 10_000;
/** No part may take longer. */
const LIMIT_MS = 120_000;

const quiet = () => {};
const log: Log = {
  debug: quiet,
  info: quiet,
  warn: (message, properties) => printError(`${message} ${JSON.stringify(properties)}`),
  error: (message, properties) => printError(`${message} ${JSON.stringify(properties)}`),
};

interface Figures {
  readonly messages: number;
  readonly ms: number;
  readonly cpuMs: number;
}

/** A metric as the producer makes it, of a size that is usual. */
function message(topic: string, index: number): OutgoingMessage {
  return { topic, key: topic, value: Buffer.from(JSON.stringify(createMetric(topic, index))), timestamp: Date.now() };
}

async function measure(messages: number, work: () => Promise<void>): Promise<Figures> {
  const cpu = process.cpuUsage();
  const begun = performance.now();
  await work();
  const { user, system } = process.cpuUsage(cpu);
  return { messages, ms: performance.now() - begun, cpuMs: (user + system) / 1000 };
}

async function drain(publishing: Publishing): Promise<void> {
  const left = await publishing.drain(LIMIT_MS);
  if (left > 0) throw new Error(`Kafka has not taken ${left} messages within ${LIMIT_MS / 1000} s`);
}

/** What is in the spool already. */
function backlog(spool: Spool, settings: PublishSettings): Promise<Figures> {
  return measure(spool.size, () => drain(new Publishing(settings, { spool, log })));
}

/** What comes while it runs, as from checks. */
async function steady(spool: Spool, settings: PublishSettings, topics: readonly string[]): Promise<Figures> {
  const publishing = new Publishing(settings, { spool, log });
  const messages = STEADY_PER_SECOND * STEADY_MS / 1000;
  const prepared = Array.from({ length: messages }, (_, i) => message(topics[i % topics.length]!, i));
  const figures = await measure(messages, async () => {
    const begun = performance.now();
    for (let i = 0; i < messages;) {
      const due = Math.min(messages, (performance.now() - begun) * STEADY_PER_SECOND / 1000);
      for (; i < due; i++) spool.add(prepared[i]!);
      await delay(2);
    }
    await drain(publishing);
  });
  return figures;
}

function row(name: string, { messages, ms, cpuMs }: Figures): void {
  const perSecond = Math.round(messages / ms * 1000).toLocaleString("en");
  const perMetric = (cpuMs * 1000 / messages).toFixed(1);
  print(`${name.padEnd(44)}${perSecond.padStart(10)} metrics/s${perMetric.padStart(8)} µs of CPU each`);
}

function fill(spool: Spool, topics: readonly string[], messages: number): void {
  for (let i = 0; i < messages; i++) {
    spool.add(message(topics[i % topics.length]!, i));
    if (i % 20 === 0) spool.flush();
  }
  spool.flush();
}

const folder = await Deno.makeTempDir({ prefix: "site_checker-bench-" });
try {
  await using kafka = await startKafka({ folder: `${folder}/kafka`, report: printError });
  const settings: PublishSettings = {
    bootstrapServers: [kafka.bootstrapServers],
    tls: null,
    sharedTopic: null,
    newTopics: { partitions: null, replicationFactor: null, retentionMs: null },
  };
  const many = Array.from({ length: TOPICS }, (_, i) => `site-${i}`);
  using spool = new Spool(`${folder}/spool.db`);
  fill(spool, [...many, "one"], TOPICS + 1);
  row(`${TOPICS + 1} topics made, a metric each`, await backlog(spool, settings));
  // A broker that has just begun, and made so many topics, stalls for some seconds now and then.
  for (let i = 0; i < WARM_UPS; i++) {
    fill(spool, [...many, "one"], BACKLOG / 5);
    await backlog(spool, settings);
  }
  for (const [name, topics] of [["1 topic", ["one"]], [`${TOPICS} topics`, many]] as const) {
    const filled = await measure(BACKLOG, () => Promise.resolve(fill(spool, topics, BACKLOG)));
    row(`${name}: into the spool, 20 at a time`, filled);
    row(`${name}: ${BACKLOG.toLocaleString("en")} from the spool to acknowledged`, await backlog(spool, settings));
    row(
      `${name}: ${STEADY_PER_SECOND.toLocaleString("en")} a second, all the way`,
      await steady(spool, settings, topics),
    );
  }
  for (const sync of ["normal", "full"] as const satisfies readonly SpoolSync[]) {
    using other = new Spool(`${folder}/${sync}.db`, { sync });
    row(`spool_sync = ${sync}: 20 at a time`, await measure(10_000, () => Promise.resolve(fill(other, many, 10_000))));
  }
} finally {
  await Deno.remove(folder, { recursive: true });
}
