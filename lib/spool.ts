import { Buffer } from "node:buffer";
import { dirname } from "node:path";
import { DatabaseSync, type StatementSync } from "node:sqlite";
import type { SpoolSettings } from "./config.ts";
import { ConfigError, errorMessage } from "./error.ts";
import type { Log } from "./log.ts";

/** Ways to write the spool: what a power cut may cost, see {@linkcode SpoolOptions.sync}. */
export type SpoolSync = "normal" | "full";

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
  /** Room that it takes. */
  readonly bytes: number;
}

/** A message that Kafka will never take as it is. */
export interface RefusedMessage extends SpooledMessage {
  /** Why. */
  readonly reason: string;
  /** When, in ms since 1970. */
  readonly refusedAt: number;
}

/** Options of {@linkcode Spool}. */
export interface SpoolOptions {
  /** Bytes of topics, keys and values that are kept at most. Default: 1 GiB. */
  readonly maxBytes?: number;
  /** Age, by the timestamp, beyond which messages are not kept, in ms. Default: none. */
  readonly maxAgeMs?: number;
  /** `normal`: a power cut may cost the last moments; `full`: it costs nothing, each commit waits for the disk. */
  readonly sync?: SpoolSync;
  /** Told of messages that had to go, the oldest first. */
  readonly onDropped?: (messages: number, why: "full" | "old") => void;
  /** Told when the spool can't be written; messages are kept in memory until it can. */
  readonly onProblem?: (reason: string) => void;
  /** Told of a damaged file that was set aside under another name, and why. */
  readonly onDamaged?: (path: string, reason: string) => void;
  /** Clock, in ms since 1970. */
  readonly now?: () => number;
}

/** Options of {@linkcode Spool.next}. */
export interface NextOptions {
  /** Messages at most. */
  readonly limit: number;
  /** Topics to pass over. Default: none. */
  readonly except?: ReadonlySet<string>;
  /** Topics to keep to. Default: all. */
  readonly only?: ReadonlySet<string>;
}

/** Options of {@linkcode openSpool}. */
export interface OpenSpoolOptions {
  /** Where to tell what becomes of it. */
  readonly log: Log;
}

const DEFAULT_MAX_BYTES = 1024 ** 3;
/** What is set aside may take this share of the room; beyond it, the oldest of that go. */
const REFUSED_SHARE = 0.1;
/** What is kept in memory while the disk can't be written. */
const MAX_PENDING_BYTES = 64 * 1024 * 1024;
/** What is on disk is kept in memory too up to these, so that what was just written need not be read again. */
const MAX_NEWEST = 10_000;
const MAX_NEWEST_BYTES = 8 * 1024 * 1024;
/** Checks that end within this time share a transaction. */
const COMMIT_DELAY_MS = 5;
/** A command of another process, which moves messages, is waited for. */
const BUSY_TIMEOUT_MS = 5_000;
const EXPIRY_INTERVAL_MS = 1_000;
/** Pages of the write-ahead log (16 MB) before they go to their places, which waits for the disk, and all checks with it. */
const LOG_PAGES = 4_000;
/** Pages that are given back to the file system at a time, when the spool is empty. */
const VACUUM_PAGES = 2_000;
/** While something goes on, a line every so often. */
const REPORT_EVERY_MS = 15_000;
const MEMORY = ":memory:";
const NONE: ReadonlySet<string> = new Set();

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS message (
    sequence INTEGER PRIMARY KEY,
    topic TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, timestamp INTEGER NOT NULL, bytes INTEGER NOT NULL
  ) STRICT;
  CREATE TABLE IF NOT EXISTS refused (
    sequence INTEGER PRIMARY KEY,
    topic TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, timestamp INTEGER NOT NULL, bytes INTEGER NOT NULL,
    reason TEXT NOT NULL, refusedAt INTEGER NOT NULL
  ) STRICT`;

/**
 * What has been checked and Kafka has not acknowledged yet: one path, whether the broker is there or not. On disk
 * (SQLite, write-ahead log) before it is sent, gone when it is acknowledged; a `kill -9` loses nothing of it.
 *
 * While the disk can't be written, messages are kept in memory. A file that is damaged is set aside, a new one begun.
 */
export class Spool implements Disposable {
  readonly #path: string;
  readonly #options: SpoolOptions;
  readonly #maxBytes: number;
  readonly #now: () => number;
  #file: SpoolFile;
  #lock: Disposable | undefined;
  /** Messages that are not on disk yet. */
  #pending: SpooledMessage[] = [];
  #pendingBytes = 0;
  readonly #newest = new Newest();
  /** Acknowledged messages that could not be deleted yet. */
  readonly #gone = new Set<number>();
  #commitTimer: ReturnType<typeof setTimeout> | undefined;
  #size = 0;
  #bytes = 0;
  #refusedSize = 0;
  #refusedBytes = 0;
  #last = 0;
  /** Of messages up to it, some may have been dropped. */
  #droppedTo = 0;
  /** All before it are of topics that are passed over. */
  #from = 0;
  #except: ReadonlySet<string> = NONE;
  #expiredAt = 0;
  #added = Promise.withResolvers<void>();

  /**
   * Opens a spool, or begins one.
   *
   * @param path File, in a folder that is made where it is not there; `:memory:` for one that is not kept.
   * @throws {ConfigError} when it can't be opened, or another process has it.
   */
  constructor(path: string, options: SpoolOptions = {}) {
    this.#path = path;
    this.#options = options;
    this.#maxBytes = options.maxBytes ?? DEFAULT_MAX_BYTES;
    this.#now = options.now ?? Date.now;
    this.#lock = lockSpool(path);
    try {
      this.#file = this.#open();
      this.#count();
    } catch (error) {
      this.#lock?.[Symbol.dispose]();
      throw error;
    }
  }

  /** Messages that wait. */
  get size(): number {
    return this.#size - this.#gone.size;
  }

  /** Messages that are set aside. */
  get refusedSize(): number {
    return this.#refusedSize;
  }

  /** Adds a message, which is on disk a moment later; where there is no room, the oldest go. */
  add({ topic, key, value, timestamp }: OutgoingMessage): void {
    const bytes = Buffer.byteLength(topic) + Buffer.byteLength(key) + Buffer.byteLength(value);
    this.#pending.push({ sequence: ++this.#last, topic, key, value, timestamp, bytes });
    this.#pendingBytes += bytes;
    this.#size++;
    this.#bytes += bytes;
    this.#commitTimer ??= setTimeout(() => this.flush(), COMMIT_DELAY_MS);
  }

  /** Writes what was added. */
  flush(): void {
    clearTimeout(this.#commitTimer);
    this.#commitTimer = undefined;
    if (this.#pending.length === 0) return;
    this.#attempt(() => {
      this.#file.insert(this.#pending);
      this.#newest.add(this.#pending, this.#pendingBytes);
      this.#pending = [];
      this.#pendingBytes = 0;
    });
    this.#makeRoom();
    this.#added.resolve();
    this.#added = Promise.withResolvers();
  }

  /** The oldest messages, in their order; the same again until they are deleted. */
  next(options: NextOptions): SpooledMessage[] {
    this.flush();
    this.#expire();
    this.#attempt(() => {
      if (this.#file.changed()) this.#count();
    });
    const inMemory = this.#newest.messages.length + this.#pending.length === this.#size && this.#gone.size === 0;
    const found = inMemory ? choose(this.#newest.messages, options) : this.#read(options);
    if (found.length === options.limit || this.#pending.length === 0) return found;
    return [...found, ...choose(this.#pending, { ...options, limit: options.limit - found.length })];
  }

  /** Forgets messages that Kafka has. */
  delete(messages: readonly SpooledMessage[]): void {
    if (messages.length === 0) return;
    const sequences = new Set(messages.map(({ sequence }) => sequence));
    if (this.#pending.length > 0) this.#forgetPending(sequences);
    this.#attempt(() => {
      this.#deleteFromFile(messages, sequences);
      this.#newest.delete(sequences);
      if (this.#gone.size > 0) this.#newest.delete(this.#gone);
      this.#gone.clear();
      if (this.#size === 0) this.#file.shrink();
    }, () => {
      for (const sequence of sequences) this.#gone.add(sequence);
      if (this.#gone.size === this.#size - this.#pending.length && this.#refusedSize === 0) this.#beginAnew();
    });
  }

  /** Sets messages aside that Kafka will never take as they are. */
  refuse(messages: readonly { readonly message: SpooledMessage; readonly reason: string }[]): void {
    if (messages.length === 0) return;
    const refusedAt = this.#now();
    this.#attempt(() => {
      this.#file.refuse(messages.map(({ message, reason }) => ({ ...message, reason, refusedAt })));
      const refused = new Set(messages.map(({ message }) => message.sequence));
      this.#pending = this.#pending.filter(({ sequence }) => !refused.has(sequence));
      this.#pendingBytes = this.#pending.reduce((sum, { bytes }) => sum + bytes, 0);
      this.#count();
    });
    let dropped = 0;
    for (; this.#refusedBytes > this.#maxBytes * REFUSED_SHARE && this.#refusedSize > 1; dropped++) {
      const bytes = this.#file.dropRefused();
      if (bytes === undefined) break;
      this.#refusedSize--;
      this.#refusedBytes -= bytes;
    }
    if (dropped > 0) this.#options.onDropped?.(dropped, "full");
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

  /** Closes the spool; what is in it stays. */
  [Symbol.dispose](): void {
    this.flush();
    if (this.#gone.size > 0) this.#attempt(() => this.#file.delete([...this.#gone]));
    this.#file.close();
    this.#lock?.[Symbol.dispose]();
    this.#lock = undefined;
  }

  #open(): SpoolFile {
    const sync = this.#options.sync ?? "normal";
    try {
      return new SpoolFile(this.#path, sync);
    } catch (error) {
      if (!isDamage(error)) throw openError(this.#path, error);
      this.#setAside(error);
      return new SpoolFile(this.#path, sync);
    }
  }

  #read({ limit, except = NONE, only }: NextOptions): SpooledMessage[] {
    if (only === undefined) {
      if (!this.#except.isSubsetOf(except)) this.#from = 0;
      this.#except = new Set(except);
    }
    let found: SpooledMessage[] = [];
    this.#attempt(() => {
      found = this.#file.select({ from: only === undefined ? this.#from : 0, limit, except, only, gone: this.#gone });
    });
    if (only === undefined && found[0] !== undefined) this.#from = found[0].sequence;
    return found;
  }

  /** @param sequences Those of the messages, but for some that were not in the file. */
  #deleteFromFile(messages: readonly SpooledMessage[], sequences: ReadonlySet<number>): void {
    let [first, last, bytes] = [Infinity, 0, 0];
    for (const message of messages) {
      if (message.sequence < first) first = message.sequence;
      if (message.sequence > last) last = message.sequence;
      bytes += message.bytes;
    }
    const isRun = sequences.size === messages.length && last - first + 1 === messages.length;
    if (!isRun || first <= this.#droppedTo || this.#gone.size > 0) {
      this.#removed(this.#file.delete([...this.#gone, ...sequences]));
    } else if (this.#file.deleteRun(first, last) === messages.length) {
      this.#size -= messages.length;
      this.#bytes -= bytes;
    } else {
      this.#count();
    }
  }

  /** Does something with the file. Where it is damaged, a new one is begun; where it can't be written, that is told. */
  #attempt(work: () => void, onProblem: () => void = () => {}): void {
    try {
      work();
    } catch (error) {
      if (isDamage(error)) {
        this.#file.close();
        this.#setAside(error);
        this.#file = new SpoolFile(this.#path, this.#options.sync ?? "normal");
        this.#gone.clear();
        this.#count();
        return;
      }
      onProblem();
      this.#options.onProblem?.(errorMessage(error));
      let dropped = 0;
      while (this.#pendingBytes > MAX_PENDING_BYTES && this.#pending.length > 1) {
        const { bytes } = this.#pending.shift()!;
        this.#pendingBytes -= bytes;
        this.#removed([bytes]);
        dropped++;
      }
      if (dropped > 0) this.#options.onDropped?.(dropped, "full");
    }
  }

  /** A full disk does not even take that something goes. With nothing left in the file that counts, it goes itself. */
  #beginAnew(): void {
    this.#file.close();
    for (const suffix of ["", "-wal", "-shm"]) {
      try {
        Deno.removeSync(this.#path + suffix);
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      }
    }
    this.#file = new SpoolFile(this.#path, this.#options.sync ?? "normal");
    this.#gone.clear();
    this.#count();
  }

  #setAside(error: unknown): void {
    const aside = `${this.#path}.damaged-${new Date(this.#now()).toISOString().replaceAll(/[:.]/g, "-")}`;
    try {
      Deno.renameSync(this.#path, aside);
      for (const suffix of ["-wal", "-shm"]) {
        try {
          Deno.renameSync(this.#path + suffix, aside + suffix);
        } catch (error) {
          if (!(error instanceof Deno.errors.NotFound)) throw error;
        }
      }
    } catch (failure) {
      throw openError(this.#path, new Error(errorMessage(error), { cause: failure }));
    }
    this.#options.onDamaged?.(aside, errorMessage(error));
  }

  #count(): void {
    const { size, bytes, refusedSize, refusedBytes, last } = this.#file.count();
    this.#size = size + this.#pending.length;
    this.#bytes = bytes + this.#pendingBytes;
    this.#refusedSize = refusedSize;
    this.#refusedBytes = refusedBytes;
    this.#last = Math.max(this.#last, last);
    this.#from = 0;
    this.#newest.clear();
  }

  /** Drops the oldest beyond the room there is. */
  #makeRoom(): void {
    let dropped = 0;
    this.#attempt(() => {
      while (this.#bytes + this.#refusedBytes > this.#maxBytes && this.#size > 1) {
        const removed = this.#file.dropOldest(Math.max(1, Math.min(100, Math.floor(this.#size / 10))));
        if (removed.length === 0) return;
        this.#droppedOldest(removed);
        dropped += removed.length;
      }
    });
    if (dropped > 0) this.#options.onDropped?.(dropped, "full");
  }

  /** Drops what is older than messages may be. */
  #expire(): void {
    const now = this.#now();
    if (this.#options.maxAgeMs === undefined || now - this.#expiredAt < EXPIRY_INTERVAL_MS) return;
    this.#expiredAt = now;
    const { maxAgeMs } = this.#options;
    this.#attempt(() => {
      const removed = this.#file.dropOlder(now - maxAgeMs);
      if (removed.length === 0) return;
      this.#droppedOldest(removed);
      this.#options.onDropped?.(removed.length, "old");
    });
  }

  #droppedOldest(bytes: readonly number[]): void {
    this.#removed(bytes);
    this.#droppedTo = this.#last;
    this.#newest.keep(this.#size - this.#pending.length);
  }

  /** Takes those that were acknowledged before they were on disk out of both lists. */
  #forgetPending(sequences: Set<number>): void {
    this.#pending = this.#pending.filter(({ sequence, bytes }) => {
      if (!sequences.delete(sequence)) return true;
      this.#removed([bytes]);
      this.#pendingBytes -= bytes;
      return false;
    });
  }

  /** Counts messages that went; one that had gone before, for want of room, counts once. */
  #removed(bytes: readonly number[]): void {
    this.#size -= bytes.length;
    for (const one of bytes) this.#bytes -= one;
  }
}

/** The newest messages of the file, in memory; none that is newer than one of them is missing. */
class Newest {
  #messages: SpooledMessage[] = [];
  #bytes = 0;

  /** In their order. */
  get messages(): readonly SpooledMessage[] {
    return this.#messages;
  }

  /** Adds what is newer than all others; where that is too much, none is kept. */
  add(messages: readonly SpooledMessage[], bytes: number): void {
    if (this.#messages.length + messages.length > MAX_NEWEST || this.#bytes + bytes > MAX_NEWEST_BYTES) {
      this.clear();
      return;
    }
    this.#messages.push(...messages);
    this.#bytes += bytes;
  }

  delete(sequences: ReadonlySet<number>): void {
    this.#messages = this.#messages.filter(({ sequence, bytes }) => {
      if (!sequences.has(sequence)) return true;
      this.#bytes -= bytes;
      return false;
    });
  }

  /** Forgets the oldest, until there are this many at most. */
  keep(size: number): void {
    const surplus = this.#messages.length - size;
    if (surplus <= 0) return;
    for (const { bytes } of this.#messages.splice(0, surplus)) this.#bytes -= bytes;
  }

  clear(): void {
    this.#messages = [];
    this.#bytes = 0;
  }
}

function choose(messages: readonly SpooledMessage[], { limit, except = NONE, only }: NextOptions): SpooledMessage[] {
  if (except.size === 0 && only === undefined) return messages.slice(0, limit);
  return messages.filter(({ topic }) => !except.has(topic) && (only?.has(topic) ?? true)).slice(0, limit);
}

/**
 * Opens the spool of the settings, and tells the log, now and then, what an operator has to know of it.
 *
 * @throws {ConfigError} when it can't be opened, or another process has it.
 */
export function openSpool({ path, maxBytes, maxAgeMs, sync }: SpoolSettings, { log }: OpenSpoolOptions): Spool {
  const dropped = { full: 0, old: 0 };
  const tellDropped = nowAndThen(() => {
    const reasons = { full: "there is no more room (spool_max_bytes)", old: "they are too old (spool_max_age)" };
    for (const why of ["full", "old"] as const) {
      if (dropped[why] > 0) {
        log.error("Dropped the oldest {messages} metric(s) that Kafka does not have: {reason}", {
          messages: dropped[why],
          reason: reasons[why],
        });
      }
      dropped[why] = 0;
    }
  });
  const tellProblem = nowAndThen((reason) =>
    log.error("Cannot write the spool '{path}', metrics are kept in memory meanwhile: {reason}", { path, reason })
  );
  const spool = new Spool(path, {
    maxBytes,
    maxAgeMs,
    sync,
    onDropped: (messages, why) => {
      dropped[why] += messages;
      tellDropped("");
    },
    onProblem: tellProblem,
    onDamaged: (aside, reason) =>
      log.error(
        "The spool '{path}' is damaged: what waited in it is set aside as '{aside}', a new one begun: {reason}",
        {
          path,
          aside,
          reason,
        },
      ),
  });
  if (spool.size > 0) log.info("{size} metric(s) wait in the spool for Kafka", { size: spool.size });
  if (spool.refusedSize > 0) {
    log.warn("{size} metric(s) that Kafka refused are set aside: --list-refused shows them", {
      size: spool.refusedSize,
    });
  }
  return spool;
}

/** Tells something at once, then at most every so often; what comes between is told at the end of that time. */
function nowAndThen(tell: (text: string) => void): (text: string) => void {
  let quietUntil = -Infinity;
  let last: string | undefined;
  return (text) => {
    const waitMs = quietUntil - performance.now();
    if (waitMs > 0) {
      if (last === undefined) {
        // Nothing waits for it: a program that ends does not.
        Deno.unrefTimer(setTimeout(() => {
          const told = last;
          last = undefined;
          if (told !== undefined) tell(told);
        }, waitMs));
      }
      last = text;
      return;
    }
    quietUntil = performance.now() + REPORT_EVERY_MS;
    tell(text);
  };
}

interface SelectOptions {
  readonly from: number;
  readonly limit: number;
  readonly except: ReadonlySet<string>;
  readonly only: ReadonlySet<string> | undefined;
  readonly gone: ReadonlySet<number>;
}

interface Counts {
  readonly size: number;
  readonly bytes: number;
  readonly refusedSize: number;
  readonly refusedBytes: number;
  readonly last: number;
}

const COLUMNS = "sequence, topic, key, value, timestamp, bytes";

/** The SQL of the spool; all of it throws what SQLite does. */
class SpoolFile {
  readonly #database: DatabaseSync;
  readonly #insert: StatementSync;
  readonly #select: StatementSync;
  readonly #selectSome: StatementSync;
  readonly #delete: StatementSync;
  readonly #deleteRun: StatementSync;
  readonly #refuse: StatementSync;
  readonly #version: StatementSync;
  #seenVersion: number;

  constructor(path: string, sync: SpoolSync) {
    if (path !== MEMORY && dirname(path) !== ".") Deno.mkdirSync(dirname(path), { recursive: true });
    this.#database = new DatabaseSync(path, { timeout: BUSY_TIMEOUT_MS });
    try {
      this.#database.exec(`
        PRAGMA auto_vacuum = INCREMENTAL;
        PRAGMA journal_mode = WAL;
        PRAGMA synchronous = ${sync};
        PRAGMA wal_autocheckpoint = ${LOG_PAGES}`);
      // It reads every page: a quarter of a second for 400 MB, and better now than in the middle.
      const check = this.#database.prepare("PRAGMA quick_check(1)").get() as { quick_check: string };
      if (check.quick_check !== "ok") throw new DamageError(check.quick_check);
      this.#database.exec(SCHEMA);
      this.#insert = this.#database.prepare("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?)");
      this.#select = this.#database.prepare(
        `SELECT ${COLUMNS} FROM message WHERE sequence >= ? ORDER BY sequence LIMIT ?`,
      );
      this.#selectSome = this.#database.prepare(
        `SELECT ${COLUMNS} FROM message WHERE sequence >= ?1 AND topic NOT IN (SELECT value FROM json_each(?2))
           AND (?3 IS NULL OR topic IN (SELECT value FROM json_each(?3)))
           AND sequence NOT IN (SELECT value FROM json_each(?4))
         ORDER BY sequence LIMIT ?5`,
      );
      this.#delete = this.#database.prepare(
        "DELETE FROM message WHERE sequence IN (SELECT value FROM json_each(?)) RETURNING bytes",
      );
      this.#deleteRun = this.#database.prepare("DELETE FROM message WHERE sequence BETWEEN ? AND ?");
      this.#refuse = this.#database.prepare("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
      this.#version = this.#database.prepare("PRAGMA data_version");
      this.#seenVersion = this.#dataVersion();
    } catch (error) {
      this.#database.close();
      throw error;
    }
  }

  insert(messages: readonly SpooledMessage[]): void {
    this.#transaction(() => {
      for (const { sequence, topic, key, value, timestamp, bytes } of messages) {
        this.#insert.run(sequence, topic, key, value, timestamp, bytes);
      }
    });
  }

  select({ from, limit, except, only, gone }: SelectOptions): SpooledMessage[] {
    const rows = except.size === 0 && only === undefined && gone.size === 0
      ? this.#select.all(from, limit)
      : this.#selectSome.all(from, json(except), only === undefined ? null : json(only), json(gone), limit);
    return rows as unknown as SpooledMessage[];
  }

  /** Deletes messages. @returns Bytes of each that was there. */
  delete(sequences: readonly number[]): number[] {
    return bytesOf(this.#delete.all(JSON.stringify(sequences)));
  }

  /** Deletes all messages from one to another. @returns How many there were. */
  deleteRun(first: number, last: number): number {
    return Number(this.#deleteRun.run(first, last).changes);
  }

  refuse(messages: readonly RefusedMessage[]): void {
    this.#transaction(() => {
      for (const message of messages) this.#refuse.run(...valuesOf(message), message.reason, message.refusedAt);
      this.#delete.all(JSON.stringify(messages.map(({ sequence }) => sequence)));
    });
  }

  dropOldest(messages: number): number[] {
    return bytesOf(
      this.#database.prepare(
        "DELETE FROM message WHERE sequence IN (SELECT sequence FROM message ORDER BY sequence LIMIT ?) RETURNING bytes",
      ).all(messages),
    );
  }

  /** Drops the oldest that are older than a time, up to the first that is not. */
  dropOlder(timestamp: number): number[] {
    return bytesOf(
      this.#database.prepare(
        `DELETE FROM message WHERE sequence < coalesce(
           (SELECT sequence FROM message WHERE timestamp >= ? ORDER BY sequence LIMIT 1),
           (SELECT max(sequence) + 1 FROM message)) RETURNING bytes`,
      ).all(timestamp),
    );
  }

  dropRefused(): number | undefined {
    const [bytes] = bytesOf(
      this.#database.prepare(
        "DELETE FROM refused WHERE sequence = (SELECT min(sequence) FROM refused) RETURNING bytes",
      ).all(),
    );
    return bytes;
  }

  count(): Counts {
    return this.#database.prepare(
      `SELECT waiting.*, aside.*, max(waiting_last, aside_last) AS last FROM
         (SELECT count(*) AS size, coalesce(sum(bytes), 0) AS bytes, coalesce(max(sequence), 0) AS waiting_last
          FROM message) AS waiting,
         (SELECT count(*) AS refusedSize, coalesce(sum(bytes), 0) AS refusedBytes,
            coalesce(max(sequence), 0) AS aside_last FROM refused) AS aside`,
    ).get() as unknown as Counts;
  }

  /** Whether another process has written since the last call. */
  changed(): boolean {
    const version = this.#dataVersion();
    const changed = version !== this.#seenVersion;
    this.#seenVersion = version;
    return changed;
  }

  /** Gives room back to the file system, a part at a time. */
  shrink(): void {
    this.#database.prepare(`PRAGMA incremental_vacuum(${VACUUM_PAGES})`).all();
  }

  *refused(): Generator<RefusedMessage> {
    yield* this.#database.prepare(
      `SELECT ${COLUMNS}, reason, refusedAt FROM refused ORDER BY sequence`,
    ).iterate() as unknown as Iterable<RefusedMessage>;
  }

  retryRefused(): number {
    let retried = 0;
    this.#transaction(() => {
      this.#database.exec(`INSERT INTO message SELECT ${COLUMNS} FROM refused`);
      retried = Number(this.#database.prepare("DELETE FROM refused").run().changes);
    });
    return retried;
  }

  close(): void {
    this.#database.close();
  }

  #dataVersion(): number {
    return (this.#version.get() as { data_version: number }).data_version;
  }

  #transaction(work: () => void): void {
    this.#database.exec("BEGIN IMMEDIATE");
    try {
      work();
      this.#database.exec("COMMIT");
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec("ROLLBACK");
      throw error;
    }
  }
}

/**
 * What a spool has set aside, the oldest first; also while a producer runs.
 *
 * @throws {ConfigError} when there is no spool, or it can't be opened.
 */
export function* listRefused(path: string): Generator<RefusedMessage> {
  using file = openExisting(path);
  yield* file.file.refused();
}

/**
 * Puts what a spool has set aside back among what waits; also while a producer runs, which then sends it.
 *
 * @returns Messages that were put back.
 * @throws {ConfigError} when there is no spool, or it can't be opened.
 */
export function retryRefused(path: string): number {
  using file = openExisting(path);
  return file.file.retryRefused();
}

function openExisting(path: string): Disposable & { readonly file: SpoolFile } {
  try {
    Deno.statSync(path);
    const file = new SpoolFile(path, "normal");
    return { file, [Symbol.dispose]: () => file.close() };
  } catch (error) {
    throw openError(path, error);
  }
}

/** Makes sure that one process at a time has a spool; the system lets go of it when we end, however we end. */
function lockSpool(path: string): Disposable | undefined {
  if (path === MEMORY) return undefined;
  try {
    if (dirname(path) !== ".") Deno.mkdirSync(dirname(path), { recursive: true });
    const file = Deno.openSync(`${path}.lock`, { create: true, read: true, write: true });
    if (file.tryLockSync(true)) {
      file.truncateSync();
      file.writeSync(new TextEncoder().encode(`${Deno.pid}\n`));
      return file;
    }
    file.close();
  } catch (error) {
    throw openError(path, error);
  }
  throw new ConfigError(
    `Cannot open the spool '${path}': process ${Deno.readTextFileSync(`${path}.lock`).trim()} uses it; expected one ` +
      `producer at a time, or another spool_path of [producer], --spool-path or SPOOL_PATH`,
  );
}

function openError(path: string, error: unknown): ConfigError {
  const reason = error instanceof Deno.errors.NotCapable
    ? `expected a path in the folder that the program may write to (./spool), or to be started with ` +
      `--allow-write=${dirname(path)}; ${error.message.replace(/, run again.*/s, "")}`
    : error instanceof Deno.errors.NotFound
    ? "there is no such file"
    : errorMessage(error).replace(/ \(os error \d+\)/, "");
  return new ConfigError(`Cannot open the spool '${path}' (spool_path of [producer]): ${reason}`, { cause: error });
}

class DamageError extends Error {}

/** SQLite's result codes of a file that is damaged (SQLITE_CORRUPT) or none of its own (SQLITE_NOTADB). */
function isDamage(error: unknown): boolean {
  if (error instanceof DamageError) return true;
  if (!(error instanceof Error)) return false;
  // exec() gives no code, only its text.
  const code = "errcode" in error && typeof error.errcode === "number" ? error.errcode & 0xff : undefined;
  return code === 11 || code === 26 || /malformed|not a database/.test(error.message);
}

function valuesOf(message: SpooledMessage): [number, string, string, string, number, number] {
  const { sequence, topic, key, value, timestamp, bytes } = message;
  return [sequence, topic, key, value, timestamp, bytes];
}

function bytesOf(rows: unknown[]): number[] {
  return (rows as { bytes: number }[]).map(({ bytes }) => bytes);
}

function json(set: ReadonlySet<unknown>): string {
  return JSON.stringify([...set]);
}
