/**
 * The worker of lib/outbox.ts: has the spool, and publishes what is in it.
 *
 * @module
 */

import { ConfigError } from "./error.ts";
import type { Log } from "./log.ts";
import type { Order, OutboxSettings, Report } from "./outbox.ts";
import { Publishing } from "./publishing.ts";
import { openSpool, type Spool } from "./spool.ts";

const worker = self as unknown as {
  onmessage: (event: MessageEvent<Order>) => void;
  postMessage(report: Report): void;
};

const log = Object.fromEntries(
  (["debug", "info", "warn", "error"] as const).map((level) => [
    level,
    (...line: Parameters<Log["info"]>) => worker.postMessage({ kind: "log", level, line }),
  ]),
) as unknown as Log;

let spool: Spool;
let publishing: Publishing;

function open({ spool: spoolSettings, kafka }: OutboxSettings): void {
  spool = openSpool(spoolSettings, { log });
  publishing = new Publishing(kafka, { spool, log });
  publishing.failed.catch(fail);
  worker.postMessage({ kind: "opened" });
}

function add({ heads, values }: Extract<Order, { kind: "add" }>): void {
  let at = 0;
  for (const [topic, key, timestamp, valueBytes] of heads) {
    spool.add({ topic, key, value: values.subarray(at, at += valueBytes), timestamp });
  }
  spool.flush();
}

async function drain(timeoutMs: number): Promise<void> {
  const left = await publishing.drain(timeoutMs);
  spool[Symbol.dispose]();
  worker.postMessage({ kind: "drained", leftovers: { left, refused: publishing.refused } });
}

function fail(error: unknown): void {
  const { message, stack } = error instanceof Error ? error : new Error(String(error));
  worker.postMessage({ kind: "failed", isConfig: error instanceof ConfigError, message, stack });
}

worker.onmessage = async ({ data: order }) => {
  try {
    if (order.kind === "open") open(order.settings);
    else if (order.kind === "add") add(order);
    else await drain(order.timeoutMs);
  } catch (error) {
    fail(error);
  }
};
worker.postMessage({ kind: "ready" });
