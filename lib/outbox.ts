import type { PublishSettings, SpoolSettings } from "./config.ts";
import { ConfigError } from "./error.ts";
import type { Log } from "./log.ts";
import type { OutgoingMessage } from "./spool_file.ts";

/** Where metrics wait for Kafka, and where they go. */
export interface OutboxSettings {
  /** The spool. */
  readonly spool: SpoolSettings;
  /** Kafka. */
  readonly kafka: PublishSettings;
}

/** A message for the outbox: its value, the metric, in text. */
export type NewMessage = Omit<OutgoingMessage, "value"> & { readonly value: string };

/** Options of {@linkcode Outbox.open}. */
export interface OpenOutboxOptions {
  /** Where to tell what becomes of it. */
  readonly log: Log;
}

/** What Kafka has not taken. */
export interface Leftovers {
  /** Messages that stay in the spool for the next start. */
  readonly left: number;
  /** Messages that it refused for good since the start. */
  readonly refused: number;
}

/** What stands before the values of some messages, which follow each other. */
export type Head = readonly [topic: string, key: string, timestamp: number, valueBytes: number];

/** What the thread is told. */
export type Order =
  | { readonly kind: "open"; readonly settings: OutboxSettings }
  | { readonly kind: "add"; readonly heads: readonly Head[]; readonly values: Uint8Array }
  | { readonly kind: "drain"; readonly timeoutMs: number };

/** What it tells. */
export type Report =
  | { readonly kind: "ready" }
  | { readonly kind: "opened" }
  | { readonly kind: "log"; readonly level: keyof Log; readonly line: Parameters<Log["info"]> }
  | {
    readonly kind: "failed";
    readonly isConfig: boolean;
    readonly message: string;
    readonly stack: string | undefined;
  }
  | { readonly kind: "drained"; readonly leftovers: Leftovers };

/** Metrics of this time are handed over together, and written to the disk then. */
const GATHER_MS = 5;
const CHUNK_BYTES = 64 * 1024;
/** Bytes of a unit of a string in UTF-8, at most. */
const BYTES_PER_UNIT = 3;

const utf8 = new TextEncoder();

/**
 * The way of metrics from here to Kafka: spool and publisher, on a thread of their own, so that neither the disk nor the
 * brokers are in the way of checks, nor a part of their times.
 */
export class Outbox implements Disposable {
  /** Rejects when brokers refuse us for good; never resolves. */
  readonly failed: Promise<never>;
  readonly #worker = new Worker(new URL("./outbox_worker.ts", import.meta.url), { type: "module" });
  readonly #ready = Promise.withResolvers<void>();
  readonly #opened = Promise.withResolvers<void>();
  readonly #drained = Promise.withResolvers<Leftovers>();
  readonly #failed = Promise.withResolvers<never>();
  readonly #log: Log;
  #heads: Head[] = [];
  #chunk = new Uint8Array(CHUNK_BYTES);
  #used = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  private constructor({ log }: OpenOutboxOptions) {
    this.#log = log;
    this.failed = this.#failed.promise;
    // Where nobody waits for it, it is no unhandled rejection.
    this.failed.catch(() => {});
    this.#worker.onmessage = ({ data }: MessageEvent<Report>) => this.#take(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#failed.reject(new Error(`Cannot go on with the spool: ${event.message}`));
    };
  }

  /**
   * Opens the spool, and begins to publish what is in it.
   *
   * @throws {ConfigError} when it can't be opened, or another process has it.
   */
  static async open(settings: OutboxSettings, options: OpenOutboxOptions): Promise<Outbox> {
    const outbox = new Outbox(options);
    try {
      await Promise.race([outbox.#ready.promise, outbox.failed]);
      outbox.#tell({ kind: "open", settings });
      await Promise.race([outbox.#opened.promise, outbox.failed]);
      return outbox;
    } catch (error) {
      outbox[Symbol.dispose]();
      throw error;
    }
  }

  /** Adds a message, which is on disk a moment later. */
  add({ topic, key, value, timestamp }: NewMessage): void {
    const most = BYTES_PER_UNIT * value.length;
    if (this.#used + most > this.#chunk.length) {
      this.#flush();
      if (most > this.#chunk.length) this.#chunk = new Uint8Array(most);
    }
    const { written } = utf8.encodeInto(value, this.#chunk.subarray(this.#used));
    this.#heads.push([topic, key, timestamp, written]);
    this.#used += written;
    this.#timer ??= setTimeout(() => this.#flush(), GATHER_MS);
  }

  /**
   * Waits until Kafka has all, and ends.
   *
   * @param timeoutMs Longest wait.
   * @throws {ConfigError} when brokers refuse us for good.
   */
  async drain(timeoutMs: number): Promise<Leftovers> {
    this.#flush();
    this.#tell({ kind: "drain", timeoutMs });
    return await Promise.race([this.#drained.promise, this.failed]);
  }

  /** Ends the thread; what is in the spool stays. */
  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#worker.terminate();
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#heads.length === 0) return;
    const values = this.#chunk.slice(0, this.#used);
    this.#tell({ kind: "add", heads: this.#heads, values }, [values.buffer]);
    this.#heads = [];
    this.#used = 0;
    // It had grown for one that is larger than others.
    if (this.#chunk.length > CHUNK_BYTES) this.#chunk = new Uint8Array(CHUNK_BYTES);
  }

  #tell(order: Order, transfer: Transferable[] = []): void {
    this.#worker.postMessage(order, transfer);
  }

  #take(report: Report): void {
    switch (report.kind) {
      case "ready":
        return this.#ready.resolve();
      case "opened":
        return this.#opened.resolve();
      case "log":
        return this.#log[report.level](...report.line);
      case "drained":
        return this.#drained.resolve(report.leftovers);
      case "failed": {
        const { isConfig, message, stack } = report;
        const error = isConfig ? new ConfigError(message) : new Error(message);
        if (stack !== undefined) error.stack = stack;
        return this.#failed.reject(error);
      }
    }
  }
}
