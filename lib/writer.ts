import { ConfigError } from "./error.ts";
import type { Handled, Handling } from "./subscriber.ts";
import type { Log } from "./log.ts";
import { decodeMetric, type KafkaMessage, MetricError } from "./metric.ts";
import { retryForever } from "./retry.ts";
import type { Store } from "./store.ts";
import type { DeadLetter, Row } from "./table.ts";

/** Messages, decoded. */
export interface Decoded {
  /** Those that are metrics. */
  readonly rows: readonly Row[];
  /** Those that are not. */
  readonly deadLetters: readonly DeadLetter[];
}

/** Sorts messages into rows and dead letters. */
export function decodeMessages(messages: readonly KafkaMessage[]): Decoded {
  const rows: Row[] = [];
  const deadLetters: DeadLetter[] = [];
  for (const message of messages) {
    try {
      rows.push({ message, metric: decodeMetric(message) });
    } catch (error) {
      if (!(error instanceof MetricError)) throw error;
      deadLetters.push({ message, reason: error.message });
    }
  }
  return { rows, deadLetters };
}

/** Options of {@linkcode Writer}. */
export interface WriterOptions {
  /** Where to tell of a database that is away. */
  readonly log: Log;
  /** Gives up what is not stored yet. */
  readonly signal: AbortSignal;
}

interface Pending extends Decoded {
  readonly topic: string;
  readonly size: number;
  /** Aborted when nobody wants it to be stored any more. */
  readonly signal: AbortSignal;
  readonly stored: PromiseWithResolvers<Handled>;
}

/** Messages that one transaction takes at most (more where one partition hands over more at once). */
const MAX_BATCH_MESSAGES = 5_000;
/** Messages that wait for the database at most, about 3 kB each; reading waits then. */
const MAX_QUEUED_MESSAGES = 10_000;

/**
 * Gathers what many partitions hand over while a transaction is under way into the next one, so that a thousand topics
 * with a message each cost one statement, and reading, decoding and writing overlap.
 */
export class Writer {
  readonly #store: Store;
  readonly #log: Log;
  readonly #signal: AbortSignal;
  readonly #blocked = new Map<string, string>();
  #queue: Pending[] = [];
  #queued = 0;
  #room = Promise.withResolvers<void>();
  #writing = false;
  #rows = 0;
  #deadLetters = 0;

  /** Begins with the first {@linkcode Writer.write}. */
  constructor(store: Store, { log, signal }: WriterOptions) {
    this.#store = store;
    this.#log = log;
    this.#signal = signal;
  }

  /** Rows and dead letters that were stored, redelivered ones counted again. */
  get stored(): { readonly rows: number; readonly deadLetters: number } {
    return { rows: this.#rows, deadLetters: this.#deadLetters };
  }

  /**
   * Takes messages of one topic over; they are stored in the order in which they come.
   *
   * @param signal Drops them, if they are not being stored yet: `stored` rejects with its reason.
   */
  write(messages: readonly KafkaMessage[], signal: AbortSignal): Handling {
    const stored = Promise.withResolvers<Handled>();
    const [first] = messages;
    if (first === undefined) stored.resolve("stored");
    else {
      this.#queue.push({ ...decodeMessages(messages), topic: first.topic, size: messages.length, signal, stored });
      this.#queued += messages.length;
      if (!this.#writing) void this.#run();
    }
    return { accepted: this.#untilRoom(), stored: stored.promise };
  }

  async #untilRoom(): Promise<void> {
    while (this.#queued >= MAX_QUEUED_MESSAGES) await this.#room.promise;
  }

  async #run(): Promise<void> {
    this.#writing = true;
    // What arrives in the same turn of the event loop goes along.
    await new Promise((resolve) => setTimeout(resolve, 0));
    while (this.#queue.length > 0) {
      const batch = this.#take();
      try {
        await this.#storeBatch(batch);
      } catch (error) {
        for (const { stored } of batch) stored.reject(error);
      }
      this.#room.resolve();
      this.#room = Promise.withResolvers();
    }
    this.#writing = false;
  }

  #take(): Pending[] {
    const batch: Pending[] = [];
    let messages = 0;
    let taken = 0;
    while (taken < this.#queue.length && (messages === 0 || messages < MAX_BATCH_MESSAGES)) {
      const pending = this.#queue[taken++]!;
      this.#queued -= pending.size;
      if (pending.signal.aborted) {
        pending.stored.reject(pending.signal.reason);
        continue;
      }
      messages += pending.size;
      batch.push(pending);
    }
    this.#queue = this.#queue.slice(taken);
    return batch;
  }

  async #storeBatch(batch: readonly Pending[]): Promise<void> {
    if (batch.length === 0) return;
    const blocked = await retryForever(async () => {
      const blocked = await this.#store.ensureTables(batch.map(({ topic }) => topic));
      const storable = batch.filter(({ topic }) => !blocked.has(topic));
      const rows = storable.flatMap(({ rows }) => rows);
      const deadLetters = storable.flatMap(({ deadLetters }) => deadLetters);
      if (storable.length > 0) {
        this.#count(rows.length, deadLetters.length, await this.#store.write({ rows, deadLetters }));
      }
      return blocked;
    }, {
      what: "PostgreSQL",
      log: this.#log,
      signal: this.#signal,
      isFinal: (error) => error instanceof ConfigError,
    });
    this.#report(blocked, batch);
    for (const { topic, stored } of batch) stored.resolve(blocked.has(topic) ? "blocked" : "stored");
  }

  #count(rows: number, deadLetters: number, refused: number): void {
    this.#rows += rows - refused;
    this.#deadLetters += deadLetters + refused;
    const count = deadLetters + refused;
    if (count === 0) return;
    this.#log.warn("{count} message(s) became dead letters, see site_checker.dead_letters", { count });
  }

  /** Says once that a topic waits, and once that it goes on. */
  #report(blocked: ReadonlyMap<string, string>, batch: readonly Pending[]): void {
    for (const [topic, reason] of blocked) {
      if (this.#blocked.get(topic) === reason) continue;
      this.#blocked.set(topic, reason);
      this.#log.error("Topic '{topic}' waits, others go on: {reason}", { topic, reason });
    }
    if (this.#blocked.size === 0) return;
    for (const { topic } of batch) {
      if (!blocked.has(topic) && this.#blocked.delete(topic)) this.#log.info("Topic '{topic}' goes on", { topic });
    }
  }
}
