import { Buffer } from "node:buffer";
import { DatabaseSync, type StatementSync } from "node:sqlite";

/** A message on its way to Kafka. */
export interface OutgoingMessage {
  /** Topic. */
  readonly topic: string;
  /** Key: the site's name. */
  readonly key: string;
  /** Value: the metric, encoded. */
  readonly value: string;
  /** Record's timestamp, in ms since 1970. */
  readonly timestamp: number;
}

/** A message in the spool. */
export interface SpooledMessage extends OutgoingMessage {
  /** Its place; later ones have greater numbers. */
  readonly sequence: number;
}

/** Options of {@linkcode Spool}. */
export interface SpoolOptions {
  /** Bytes of topics, keys and values that are kept at most. */
  readonly maxBytes?: number;
  /** Told of the oldest messages that had to go for newer ones. */
  readonly onDropped?: (messages: number) => void;
}

/** Options of {@linkcode Spool.next}. */
export interface NextOptions {
  /** Messages at most. */
  readonly limit: number;
  /** Topics to pass over. */
  readonly except: ReadonlySet<string>;
}

const DEFAULT_MAX_BYTES = 128 * 1024 * 1024;

/**
 * What has been checked and Kafka has not acknowledged yet: one path, whether the broker is there or not. Kept in memory.
 */
export class Spool implements Disposable {
  readonly #database = new DatabaseSync(":memory:");
  readonly #insert: StatementSync;
  readonly #delete: StatementSync;
  readonly #deleteOldest: StatementSync;
  readonly #maxBytes: number;
  readonly #onDropped: ((messages: number) => void) | undefined;
  #size = 0;
  #bytes = 0;
  #added = Promise.withResolvers<void>();

  /** Opens an empty spool. */
  constructor({ maxBytes = DEFAULT_MAX_BYTES, onDropped }: SpoolOptions = {}) {
    this.#maxBytes = maxBytes;
    this.#onDropped = onDropped;
    this.#database.exec(`
      CREATE TABLE message (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        topic TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, timestamp INTEGER NOT NULL, bytes INTEGER NOT NULL
      ) STRICT`);
    this.#insert = this.#database.prepare(
      "INSERT INTO message (topic, key, value, timestamp, bytes) VALUES (?, ?, ?, ?, ?)",
    );
    this.#delete = this.#database.prepare("DELETE FROM message WHERE sequence = ? RETURNING bytes");
    this.#deleteOldest = this.#database.prepare(
      "DELETE FROM message WHERE sequence = (SELECT min(sequence) FROM message) RETURNING bytes",
    );
  }

  /** Messages that are kept. */
  get size(): number {
    return this.#size;
  }

  /** Adds a message; where there is no room, the oldest go. */
  add({ topic, key, value, timestamp }: OutgoingMessage): void {
    const bytes = Buffer.byteLength(topic) + Buffer.byteLength(key) + Buffer.byteLength(value);
    this.#insert.run(topic, key, value, timestamp, bytes);
    this.#size++;
    this.#bytes += bytes;
    let dropped = 0;
    for (; this.#bytes > this.#maxBytes && this.#size > 1; dropped++) this.#removed(this.#deleteOldest.get());
    if (dropped > 0) this.#onDropped?.(dropped);
    this.#added.resolve();
    this.#added = Promise.withResolvers();
  }

  /** The oldest messages, in their order. */
  next({ limit, except }: NextOptions): SpooledMessage[] {
    return this.#database.prepare(
      `SELECT sequence, topic, key, value, timestamp FROM message
       WHERE topic NOT IN (SELECT value FROM json_each(?)) ORDER BY sequence LIMIT ?`,
    ).all(JSON.stringify([...except]), limit) as unknown as SpooledMessage[];
  }

  /** Forgets messages that Kafka has. */
  delete(messages: readonly SpooledMessage[]): void {
    this.#database.exec("BEGIN");
    for (const { sequence } of messages) this.#removed(this.#delete.get(sequence));
    this.#database.exec("COMMIT");
  }

  /** Resolves when a message is added after this call, or the signal is aborted. */
  async waitForMessage(signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    const { promise: aborted, resolve: end } = Promise.withResolvers<void>();
    const listener = () => end();
    signal.addEventListener("abort", listener);
    await Promise.race([this.#added.promise, aborted]);
    signal.removeEventListener("abort", listener);
  }

  /** Closes the spool; what is in it is gone. */
  [Symbol.dispose](): void {
    this.#database.close();
  }

  /** Counts a message that went; one that had gone before, for want of room, counts once. */
  #removed(row: unknown): void {
    if (row === undefined) return;
    this.#size--;
    this.#bytes -= (row as { bytes: number }).bytes;
  }
}
