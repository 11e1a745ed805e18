import { setTimeout as delay } from "node:timers/promises";
import type { KafkaSettings } from "./config.ts";
import { ConfigError } from "./error.ts";
import { Publisher } from "./kafka.ts";
import type { Log } from "./log.ts";
import { retryForever } from "./retry.ts";
import { sleepUntilAborted } from "./schedule.ts";
import type { Spool } from "./spool.ts";

/** Options of {@linkcode Publishing}. */
export interface PublishingOptions {
  /** What is to be published. */
  readonly spool: Spool;
  /** Where to tell of brokers that are away. */
  readonly log: Log;
}

/** Metrics that are checked within this time go in one request. */
const LINGER_MS = 10;
const MESSAGES_PER_REQUEST = 2_000;
/** Connections to brokers that are away are not closed in order. */
const CLOSE_TIMEOUT_MS = 1_000;
/** A topic that Kafka refuses is tried again after this; others go on. */
const REFUSED_WAIT_MS = 10_000;

/** Moves the spool to Kafka, for as long as it takes. */
export class Publishing {
  /** Rejects when brokers refuse us for good; never resolves. */
  readonly failed: Promise<never>;
  readonly #spool: Spool;
  readonly #log: Log;
  readonly #publisher: Publisher;
  readonly #where: string;
  readonly #stop = new AbortController();
  readonly #drained = new AbortController();
  /** Times until which refused topics wait. */
  readonly #refused = new Map<string, number>();
  readonly #done: Promise<void>;

  /** Begins at once. */
  constructor(settings: KafkaSettings, { spool, log }: PublishingOptions) {
    this.#spool = spool;
    this.#log = log;
    this.#where = `Kafka at ${settings.bootstrapServers.join(",")}`;
    this.#publisher = new Publisher(settings, { log });
    this.#done = this.#run().catch((error) => {
      if (!this.#stop.signal.aborted) throw error;
    });
    const failed = Promise.withResolvers<never>();
    this.failed = failed.promise;
    // Where nobody waits for it, it is no unhandled rejection.
    this.failed.catch(() => {});
    this.#done.catch(failed.reject);
  }

  /**
   * Waits until the spool is empty, and ends.
   *
   * @param timeoutMs Longest wait.
   * @returns Messages that are left.
   * @throws {ConfigError} when brokers refuse us for good.
   */
  async drain(timeoutMs: number): Promise<number> {
    const timer = setTimeout(() => this.#stop.abort(), timeoutMs);
    this.#drained.abort();
    try {
      await Promise.race([this.#done, whenAborted(this.#stop.signal)]);
      return this.#spool.size;
    } finally {
      clearTimeout(timer);
      this.#stop.abort();
      await Promise.race([this.#publisher[Symbol.asyncDispose](), delay(CLOSE_TIMEOUT_MS)]);
    }
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const batch = this.#spool.next({ limit: MESSAGES_PER_REQUEST, except: this.#waiting() });
      if (batch.length === 0) {
        if (this.#drained.signal.aborted && this.#spool.size === 0) return;
        await this.#waitForWork();
        continue;
      }
      const { refused } = await retryForever(() => this.#publisher.publish(batch), {
        what: this.#where,
        log: this.#log,
        signal,
        isFinal: (error) => error instanceof ConfigError,
      });
      this.#spool.delete(batch.filter(({ topic }) => !refused.has(topic)));
      for (const [topic, reason] of refused) {
        this.#refused.set(topic, performance.now() + REFUSED_WAIT_MS);
        this.#log.error("Kafka refuses topic '{topic}', others go on: {reason}", { topic, reason });
      }
    }
  }

  /** Waits for messages, or for a refused topic's turn. */
  async #waitForWork(): Promise<void> {
    const { signal } = this.#stop;
    const turn = Math.min(...this.#refused.values()) - performance.now();
    if (this.#drained.signal.aborted) return await sleepUntilAborted(Math.max(10, Math.min(turn, 1_000)), signal);
    const wake = new AbortController();
    const any = AbortSignal.any([signal, this.#drained.signal, wake.signal]);
    const timer = Number.isFinite(turn) ? setTimeout(() => wake.abort(), Math.max(10, turn)) : undefined;
    await this.#spool.waitForMessage(any);
    clearTimeout(timer);
    await sleepUntilAborted(LINGER_MS, AbortSignal.any([signal, this.#drained.signal]));
  }

  #waiting(): ReadonlySet<string> {
    const now = performance.now();
    for (const [topic, until] of this.#refused) if (until <= now) this.#refused.delete(topic);
    return new Set(this.#refused.keys());
  }
}

function whenAborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}
