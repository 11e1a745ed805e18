import type { Handled } from "./kafka.ts";
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
  readonly resolve: (handled: Handled) => void;
  readonly reject: (reason: unknown) => void;
}

/** Messages that one transaction takes at most (more where one partition hands over more at once). */
const MAX_BATCH_MESSAGES = 5_000;

/**
 * Gathers what many partitions hand over while a transaction is under way into the next one, so that a thousand topics
 * with a message each cost one statement.
 */
export class Writer {
  readonly #store: Store;
  readonly #log: Log;
  readonly #signal: AbortSignal;
  readonly #queue: Pending[] = [];
  readonly #blocked = new Map<string, string>();
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

  /** Topics whose tables can't be made, with the reason. */
  get blocked(): ReadonlyMap<string, string> {
    return this.#blocked;
  }

  /**
   * Stores messages of one topic.
   *
   * @returns "blocked" where the topic's table can't be made, and nothing was stored.
   * @throws The signal's reason.
   */
  write(messages: readonly KafkaMessage[]): Promise<Handled> {
    const [first] = messages;
    if (first === undefined) return Promise.resolve("stored");
    const { promise, resolve, reject } = Promise.withResolvers<Handled>();
    this.#queue.push({ ...decodeMessages(messages), topic: first.topic, resolve, reject });
    if (!this.#writing) void this.#run();
    return promise;
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
        for (const { reject } of batch) reject(error);
      }
    }
    this.#writing = false;
  }

  #take(): Pending[] {
    let messages = 0;
    let count = 0;
    while (count < this.#queue.length && (count === 0 || messages < MAX_BATCH_MESSAGES)) {
      const { rows, deadLetters } = this.#queue[count++]!;
      messages += rows.length + deadLetters.length;
    }
    return this.#queue.splice(0, count);
  }

  async #storeBatch(batch: readonly Pending[]): Promise<void> {
    const { blocked, refused, stored } = await retryForever(async () => {
      const blocked = await this.#store.ensureTables(batch.map(({ topic }) => topic));
      const stored = batch.filter(({ topic }) => !blocked.has(topic));
      const rows = stored.flatMap(({ rows }) => rows);
      const deadLetters = stored.flatMap(({ deadLetters }) => deadLetters);
      const refused = await this.#store.write({ rows, deadLetters });
      this.#rows += rows.length - refused;
      this.#deadLetters += deadLetters.length + refused;
      return { blocked, refused: refused + deadLetters.length, stored };
    }, { what: "PostgreSQL", log: this.#log, signal: this.#signal });
    if (refused > 0) {
      this.#log.warn("{count} message(s) became dead letters, see site_checker.dead_letters", { count: refused });
    }
    this.#report(blocked, stored);
    for (const { topic, resolve } of batch) resolve(blocked.has(topic) ? "blocked" : "stored");
  }

  /** Says once that a topic waits, and once that it goes on. */
  #report(blocked: ReadonlyMap<string, string>, stored: readonly Pending[]): void {
    for (const [topic, reason] of blocked) {
      if (this.#blocked.get(topic) === reason) continue;
      this.#blocked.set(topic, reason);
      this.#log.error("Topic '{topic}' waits, others go on: {reason}", { topic, reason });
    }
    for (const { topic } of stored) {
      if (this.#blocked.delete(topic)) this.#log.info("Topic '{topic}' goes on", { topic });
    }
  }
}
