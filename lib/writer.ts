import { ConfigError } from "./error.ts";
import type { Handled, Handling } from "./subscriber.ts";
import type { Log } from "./log.ts";
import { type KafkaMessage, type Metric, MetricError, metricText, parseMetric } from "./metric.ts";
import { type Brief, type PlainMetric, readPlainMetric } from "./plain_metric.ts";
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
      rows.push(decodeRow(message));
    } catch (error) {
      if (!(error instanceof MetricError)) throw error;
      deadLetters.push({ message, reason: error.message });
    }
  }
  return { rows, deadLetters };
}

/** A row that is read again where what was read is forgotten: much that is in memory waits for the database. */
class PlainRow implements Row {
  readonly message: KafkaMessage;
  #read: PlainMetric | null;

  constructor(message: KafkaMessage, read: PlainMetric) {
    this.message = message;
    this.#read = read;
  }

  get metric(): Metric {
    return parseMetric(metricText(this.message), this.message);
  }

  get brief(): Brief {
    return this.#plain.brief;
  }

  get fields(): string {
    return this.#plain.fields;
  }

  forget(): void {
    this.#read = null;
  }

  get #plain(): PlainMetric {
    return this.#read ??= readPlainMetric(metricText(this.message))!;
  }
}

function decodeRow(message: KafkaMessage): Row {
  const text = metricText(message);
  const plain = readPlainMetric(text);
  if (plain !== null) return new PlainRow(message, plain);
  const metric = parseMetric(text, message);
  return { message, metric, brief: metric };
}

/** Options of {@linkcode Writer}. */
export interface WriterOptions {
  /** Where to tell of a database that is away. */
  readonly log: Log;
  /** Gives up what is not stored yet. */
  readonly signal: AbortSignal;
  /** Transactions under way at a time, each with a connection of its own. Default: 1. */
  readonly transactions?: number;
}

interface Pending {
  readonly messages: readonly KafkaMessage[];
  readonly topic: string;
  /** Length of their values. */
  readonly bytes: number;
  /** Aborted when nobody wants it to be stored any more. */
  readonly signal: AbortSignal;
  readonly stored: PromiseWithResolvers<Handled>;
}

/** Messages that a transaction takes (more where one partition hands over more at once). */
const MAX_BATCH_MESSAGES = 4_000;
/** Messages that wait for the database, about 1.5 kB each; reading waits then. What is read at once comes on top. */
const MAX_QUEUED_MESSAGES = 4_000;
/** The same for messages that are longer than most: bytes of their values, in a transaction and waiting. */
const MAX_BATCH_BYTES = 8 * 1024 * 1024;
const MAX_QUEUED_BYTES = 8 * 1024 * 1024;

/**
 * Gathers what many partitions hand over while a transaction is under way into the next one, so that a thousand topics
 * with a message each cost one statement, and reading, decoding and writing overlap.
 */
export class Writer {
  readonly #store: Store;
  readonly #log: Log;
  readonly #signal: AbortSignal;
  readonly #blocked = new Map<string, string>();
  readonly #transactions: number;
  #queue: Pending[] = [];
  #queued = 0;
  #queuedBytes = 0;
  #room = Promise.withResolvers<void>();
  #gathering = false;
  #underWay = 0;
  /** Whether all batches up to the last one that was begun were stored, once that is known. */
  #settled: Promise<boolean> = Promise.resolve(true);
  #rows = 0;
  #deadLetters = 0;

  /** Begins with the first {@linkcode Writer.write}. */
  constructor(store: Store, { log, signal, transactions = 1 }: WriterOptions) {
    this.#store = store;
    this.#log = log;
    this.#signal = signal;
    this.#transactions = transactions;
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
      const bytes = messages.reduce((sum, { value }) => sum + (value?.length ?? 0), 0);
      this.#queue.push({ messages, topic: first.topic, bytes, signal, stored });
      this.#queued += messages.length;
      this.#queuedBytes += bytes;
      this.#gather();
    }
    return { accepted: this.#untilRoom(), stored: stored.promise };
  }

  async #untilRoom(): Promise<void> {
    while (this.#queued >= MAX_QUEUED_MESSAGES || this.#queuedBytes >= MAX_QUEUED_BYTES) await this.#room.promise;
  }

  /** What arrives in the same turn of the event loop goes along. */
  #gather(): void {
    if (this.#gathering) return;
    this.#gathering = true;
    setTimeout(() => {
      this.#gathering = false;
      this.#begin();
    }, 0);
  }

  #begin(): void {
    while (this.#queue.length > 0 && this.#mayBegin()) {
      const batch = this.#take();
      this.#room.resolve();
      this.#room = Promise.withResolvers();
      if (batch.length === 0) continue;
      this.#underWay++;
      this.#settled = this.#finish(batch, this.#settled);
    }
  }

  /** Little that waits is for the next transaction: each has a price of its own. */
  #mayBegin(): boolean {
    if (this.#underWay === 0) return true;
    return this.#underWay < this.#transactions &&
      (this.#queued >= MAX_BATCH_MESSAGES || this.#queuedBytes >= MAX_BATCH_BYTES);
  }

  /**
   * Stores a batch, and says so once those before it are stored: an offset that is committed stands for all before it. Once
   * one was given up, none behind it is said to be stored; it is read again.
   */
  async #finish(batch: readonly Pending[], before: Promise<boolean>): Promise<boolean> {
    let handled: ReadonlyMap<string, string> | undefined;
    let failure: unknown;
    try {
      handled = await this.#storeBatch(batch);
    } catch (error) {
      failure = error;
    }
    this.#underWay--;
    this.#begin();
    if (!await before) {
      handled = undefined;
      failure ??= new DOMException("What comes before it is not stored", "AbortError");
    }
    if (handled === undefined) {
      for (const { stored } of batch) stored.reject(failure);
      return false;
    }
    for (const { topic, stored } of batch) stored.resolve(handled.has(topic) ? "blocked" : "stored");
    return true;
  }

  #take(): Pending[] {
    const batch: Pending[] = [];
    let messages = 0;
    let bytes = 0;
    let taken = 0;
    while (taken < this.#queue.length && messages < MAX_BATCH_MESSAGES && bytes < MAX_BATCH_BYTES) {
      const pending = this.#queue[taken++]!;
      this.#queued -= pending.messages.length;
      this.#queuedBytes -= pending.bytes;
      if (pending.signal.aborted) {
        pending.stored.reject(pending.signal.reason);
        continue;
      }
      messages += pending.messages.length;
      bytes += pending.bytes;
      batch.push(pending);
    }
    this.#queue = this.#queue.slice(taken);
    return batch;
  }

  /** @returns Reasons by topic, of topics that can't be stored now. */
  async #storeBatch(batch: readonly Pending[]): Promise<ReadonlyMap<string, string>> {
    const blocked = await retryForever(async () => {
      const blocked = await this.#store.ensureTables(batch.map(({ topic }) => topic));
      const storable = batch.filter(({ topic }) => !blocked.has(topic));
      // Not before: decoded, they take several times the memory.
      const { rows, deadLetters } = decodeMessages(storable.flatMap(({ messages }) => messages));
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
    return blocked;
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
