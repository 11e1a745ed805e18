import { Buffer } from "node:buffer";
import { dirname } from "node:path";
import { DatabaseSync, type StatementSync } from "node:sqlite";
import { ConfigError, errorMessage } from "./error.ts";

/** Ways to write the spool: whether a power cut may cost the last moments (`normal`), or each commit waits for the disk. */
export type SpoolSync = "normal" | "full";

/** A message on its way to Kafka. */
export interface OutgoingMessage {
  /** Topic. */
  readonly topic: string;
  /** Key: the site's name. */
  readonly key: string;
  /** Value: the metric, encoded, in UTF-8. */
  readonly value: Uint8Array;
  /** Record's timestamp, in ms since 1970. */
  readonly timestamp: number;
}

/** A message in the spool. */
export interface SpooledMessage extends OutgoingMessage {
  /** Its number, which no other one has. */
  readonly sequence: number;
  /** Room that it takes. */
  readonly bytes: number;
  /** Number of the row that it is in; 0 while it is not on disk. */
  readonly row: number;
}

/** A message that is not on disk yet; its row is told to it when it is. */
export type UnsavedMessage = { -readonly [K in keyof SpooledMessage]: SpooledMessage[K] };

/** A message that Kafka will never take as it is. */
export interface RefusedMessage extends Omit<SpooledMessage, "value" | "row"> {
  /** Value: the metric, encoded. */
  readonly value: string;
  /** Why. */
  readonly reason: string;
  /** When, in ms since 1970. */
  readonly refusedAt: number;
}

/** Messages of a row, in their order. */
export type Row = readonly SpooledMessage[];

/** What became of rows of which messages went. */
export interface Removal {
  /** Messages that went. */
  messages: number;
  /** Room that they took. */
  bytes: number;
  /** What is left of each row, by its number. */
  readonly left: Map<number, Row>;
}

/** Options of {@linkcode SpoolFile.select}. */
export interface SelectOptions {
  /** Number of the first row to look at. */
  readonly from: number;
  /** Messages at most. */
  readonly limit: number;
  /** Whether one is to be among them. */
  readonly isWanted: (message: SpooledMessage) => boolean;
}

/** What is in a file. */
export interface Counts {
  /** Messages. */
  readonly size: number;
  /** Room that they take. */
  readonly bytes: number;
  /** Messages that are set aside. */
  readonly refusedSize: number;
  /** Room that these take. */
  readonly refusedBytes: number;
  /** The greatest number of a message. */
  readonly last: number;
}

/** Path of a spool that is not kept. */
export const MEMORY = ":memory:";
/** Before all rows. */
export const FIRST_ROW: number = Number.MIN_SAFE_INTEGER;

/** Messages of a row at most, and bytes of their values, unless it is one. */
const MAX_ROW_MESSAGES = 1_000;
const MAX_ROW_BYTES = 1024 * 1024;
/** A command of another process, which moves messages, is waited for. */
const BUSY_TIMEOUT_MS = 5_000;
/** Pages of the write-ahead log (16 MB) before they go to their places, which waits for the disk. */
const LOG_PAGES = 4_000;
/** Pages that are given back to the file system at a time, when the spool is empty. */
const VACUUM_PAGES = 2_000;
/** Where there is no more room, so many go at a time, unless that were more than a tenth. */
const DROP_AT_ONCE = 100;

/** A row has the messages of a commit: one for each message would cost twice as much to write and to delete. */
const SCHEMA = `
  CREATE TABLE IF NOT EXISTS batch (
    number INTEGER PRIMARY KEY,
    size INTEGER NOT NULL, bytes INTEGER NOT NULL, last INTEGER NOT NULL, heads TEXT NOT NULL, metrics BLOB NOT NULL
  ) STRICT;
  CREATE TABLE IF NOT EXISTS refused (
    sequence INTEGER PRIMARY KEY,
    topic TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, timestamp INTEGER NOT NULL, bytes INTEGER NOT NULL,
    reason TEXT NOT NULL, refusedAt INTEGER NOT NULL
  ) STRICT`;

/** What a row says of each message, before the values of all. */
type Head = [sequence: number, topic: string, key: string, timestamp: number, bytes: number, valueBytes: number];

interface StoredRow {
  readonly number: number;
  readonly heads: string;
  readonly metrics: Uint8Array<ArrayBuffer>;
}

/** The SQL of the spool; all of it throws what SQLite does. */
export class SpoolFile implements Disposable {
  readonly #database: DatabaseSync;
  readonly #insert: StatementSync;
  readonly #update: StatementSync;
  readonly #delete: StatementSync;
  readonly #row: StatementSync;
  readonly #rowFrom: StatementSync;
  readonly #refuse: StatementSync;
  readonly #version: StatementSync;
  #seenVersion: number;
  /** Numbers are not used again, though all rows be gone. */
  #lastRow: number;

  /** Opens it, or begins one. */
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
      this.#insert = this.#database.prepare("INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?)");
      this.#update = this.#database.prepare(
        "UPDATE batch SET size = ?2, bytes = ?3, last = ?4, heads = ?5, metrics = ?6 WHERE number = ?1",
      );
      this.#delete = this.#database.prepare("DELETE FROM batch WHERE number = ?");
      this.#row = this.#database.prepare("SELECT number, heads, metrics FROM batch WHERE number = ?");
      this.#rowFrom = this.#database.prepare(
        "SELECT number, heads, metrics FROM batch WHERE number >= ? ORDER BY number LIMIT 1",
      );
      this.#refuse = this.#database.prepare("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
      this.#version = this.#database.prepare("PRAGMA data_version");
      this.#seenVersion = this.#dataVersion();
      const greatest = this.#database.prepare("SELECT max(number) AS number FROM batch").get() as {
        number: number | null;
      };
      this.#lastRow = Math.max(0, greatest.number ?? 0);
    } catch (error) {
      this.#database.close();
      throw error;
    }
  }

  /** Takes over what an earlier version left, which had a row for each message. */
  adopt(): void {
    const find = this.#database.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'message'");
    if (find.get() === undefined) return;
    const select = this.#database.prepare(
      "SELECT sequence, topic, key, value, timestamp, bytes FROM message ORDER BY sequence LIMIT ?",
    );
    const forget = this.#database.prepare("DELETE FROM message WHERE sequence <= ?");
    for (;;) {
      const found = select.all(MAX_ROW_MESSAGES) as unknown as Omit<RefusedMessage, "reason" | "refusedAt">[];
      if (found.length === 0) break;
      this.#transaction(() => {
        for (const row of rowsOf(found.map(unsaved))) this.#insertRow(++this.#lastRow, row);
        forget.run(found.at(-1)!.sequence);
      });
    }
    this.#database.exec("DROP TABLE message");
  }

  /** Adds messages behind all others, and tells each its row. */
  insert(messages: readonly UnsavedMessage[]): Row[] {
    const rows = rowsOf(messages);
    const saved: [row: UnsavedMessage[], number: number, values: Uint8Array][] = [];
    this.#transaction(() => {
      for (const row of rows) {
        const number = ++this.#lastRow;
        saved.push([row, number, this.#insertRow(number, row)]);
      }
    });
    for (const [row, number, values] of saved) {
      let at = 0;
      for (const message of row) {
        message.row = number;
        // What it was encoded in is free then.
        message.value = values.subarray(at, at += message.value.length);
      }
    }
    return rows;
  }

  /** Messages in the order of the rows. */
  select({ from, limit, isWanted }: SelectOptions): SpooledMessage[] {
    const found: SpooledMessage[] = [];
    for (let next = from;;) {
      const row = this.#rowFrom.get(next) as StoredRow | undefined;
      if (row === undefined) return found;
      for (const message of messagesOf(row)) {
        if (!isWanted(message)) continue;
        found.push(message);
        if (found.length === limit) return found;
      }
      next = row.number + 1;
    }
  }

  /**
   * Deletes messages; those that are not there are passed over.
   *
   * @param sequences Their numbers, by row.
   * @param known Rows that need not be read.
   */
  delete(sequences: ReadonlyMap<number, ReadonlySet<number>>, known: ReadonlyMap<number, Row>): Removal {
    const removal = nothingRemoved();
    this.#transaction(() => this.#deleteAll(sequences, { known, removal }));
    return removal;
  }

  /** Sets messages aside. @returns What went. */
  refuse(
    messages: readonly (SpooledMessage & Pick<RefusedMessage, "reason" | "refusedAt">)[],
    known: ReadonlyMap<number, Row>,
  ): Removal {
    const removal = nothingRemoved();
    this.#transaction(() => {
      for (const { sequence, topic, key, value, timestamp, bytes, reason, refusedAt } of messages) {
        const text = Buffer.from(value.buffer, value.byteOffset, value.length).toString();
        this.#refuse.run(sequence, topic, key, text, timestamp, bytes, reason, refusedAt);
      }
      this.#deleteAll(sequencesByRow(messages), { known, removal });
    });
    return removal;
  }

  /**
   * Drops the oldest messages, as far as there is no room for them.
   *
   * @param excess Bytes that are too many, and messages that may go.
   */
  dropOldest(excess: { readonly bytes: number; readonly messages: number }): Removal {
    const atOnce = Math.min(DROP_AT_ONCE, Math.floor(excess.messages / 10));
    return this.#drop((_, gone) =>
      gone.messages < excess.messages && (gone.bytes < excess.bytes || gone.messages < atOnce)
    );
  }

  /** Drops the oldest messages that are older than a time, up to the first that is not. */
  dropOlder(time: number): Removal {
    return this.#drop(({ timestamp }) => timestamp < time);
  }

  /** Drops the oldest of what is set aside. @returns The room that it took; undefined where there is none. */
  dropRefused(): number | undefined {
    const dropped = this.#database.prepare(
      "DELETE FROM refused WHERE sequence = (SELECT min(sequence) FROM refused) RETURNING bytes",
    ).get() as { bytes: number } | undefined;
    return dropped?.bytes;
  }

  /** Counts all that is there. */
  count(): Counts {
    return this.#database.prepare(
      `SELECT waiting.size, waiting.bytes, refusedSize, refusedBytes, max(waiting.last, aside.last) AS last FROM
         (SELECT coalesce(sum(size), 0) AS size, coalesce(sum(bytes), 0) AS bytes, coalesce(max(last), 0) AS last
          FROM batch) AS waiting,
         (SELECT count(*) AS refusedSize, coalesce(sum(bytes), 0) AS refusedBytes, coalesce(max(sequence), 0) AS last
          FROM refused) AS aside`,
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

  /** What is set aside, the oldest first. */
  *refused(): Generator<RefusedMessage> {
    yield* this.#database.prepare(
      "SELECT sequence, topic, key, value, timestamp, bytes, reason, refusedAt FROM refused ORDER BY sequence",
    ).iterate() as unknown as Iterable<RefusedMessage>;
  }

  /** Puts what is set aside before all others. @returns Messages that were. */
  retryRefused(): number {
    let retried = 0;
    this.#transaction(() => {
      const rows = rowsOf([...this.refused()].map(unsaved));
      const { first } = this.#database.prepare("SELECT min(0, coalesce(min(number), 0)) AS first FROM batch").get() as {
        first: number;
      };
      rows.forEach((row, index) => this.#insertRow(first - rows.length + index, row));
      retried = Number(this.#database.prepare("DELETE FROM refused").run().changes);
    });
    return retried;
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.#database.close();
  }

  /** Writes a new row. @returns The values as they were written. */
  #insertRow(number: number, row: Row): Uint8Array<ArrayBuffer> {
    const values = valuesOf(row);
    this.#insert.run(number, ...totalsOf(row), values);
    return values;
  }

  #deleteAll(
    sequences: ReadonlyMap<number, ReadonlySet<number>>,
    { known, removal }: { readonly known: ReadonlyMap<number, Row>; readonly removal: Removal },
  ): void {
    for (const [number, gone] of sequences) {
      const row = known.get(number) ?? this.#read(number);
      this.#keep(number, { row, left: row.filter(({ sequence }) => !gone.has(sequence)), removal });
    }
  }

  /** Drops the oldest messages as long as they are to go. */
  #drop(goes: (message: SpooledMessage, gone: Removal) => boolean): Removal {
    const removal = nothingRemoved();
    this.#transaction(() => {
      for (;;) {
        const stored = this.#rowFrom.get(FIRST_ROW) as StoredRow | undefined;
        if (stored === undefined) return;
        const row = messagesOf(stored);
        const gone = { ...removal };
        const left = row.findIndex((message) => {
          if (!goes(message, gone)) return true;
          gone.messages++;
          gone.bytes += message.bytes;
          return false;
        });
        this.#keep(stored.number, { row, left: left === -1 ? [] : row.slice(left), removal });
        if (left !== -1) return;
      }
    });
    return removal;
  }

  /** Keeps of a row what is left, and writes down what went. */
  #keep(
    number: number,
    { row, left, removal }: { readonly row: Row; readonly left: Row; readonly removal: Removal },
  ): void {
    if (left.length === row.length) return;
    removal.messages += row.length - left.length;
    removal.bytes += bytesOf(row) - bytesOf(left);
    if (left.length === 0) {
      this.#delete.run(number);
      removal.left.set(number, []);
      return;
    }
    const values = valuesOf(left);
    this.#update.run(number, ...totalsOf(left), values);
    removal.left.set(number, withValues(left, values));
  }

  #read(number: number): Row {
    const row = this.#row.get(number) as StoredRow | undefined;
    return row === undefined ? [] : messagesOf(row);
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

/** Numbers of messages, by row. */
export function sequencesByRow(
  messages: Iterable<Pick<SpooledMessage, "row" | "sequence">>,
): Map<number, Set<number>> {
  const byRow = new Map<number, Set<number>>();
  let [last, ofLast] = [NaN, new Set<number>()];
  for (const { row, sequence } of messages) {
    // Mostly that of the one before.
    if (row !== last) {
      last = row;
      ofLast = byRow.getOrInsertComputed(row, () => new Set());
    }
    ofLast.add(sequence);
  }
  return byRow;
}

/** Messages by the row that they are to be in. */
function rowsOf<M extends SpooledMessage>(messages: readonly M[]): M[][] {
  const rows: M[][] = [];
  let [row, bytes]: [M[], number] = [[], 0];
  for (const message of messages) {
    bytes += message.value.length;
    if (row.length === 0 || row.length === MAX_ROW_MESSAGES || bytes > MAX_ROW_BYTES) {
      rows.push(row = []);
      bytes = message.value.length;
    }
    row.push(message);
  }
  return rows;
}

function messagesOf({ number, heads, metrics }: StoredRow): SpooledMessage[] {
  let at = 0;
  return (JSON.parse(heads) as Head[]).map(([sequence, topic, key, timestamp, bytes, valueBytes]) => {
    const value = metrics.subarray(at, at += valueBytes);
    return { sequence, topic, key, value, timestamp, bytes, row: number };
  });
}

/** The values of messages, one after the other. */
function valuesOf(row: Row): Uint8Array<ArrayBuffer> {
  const values = new Uint8Array(row.reduce((sum, { value }) => sum + value.length, 0));
  let at = 0;
  for (const { value } of row) {
    values.set(value, at);
    at += value.length;
  }
  return values;
}

/** Messages whose values are where they were written to, so that they keep no others in memory. */
function withValues(row: Row, values: Uint8Array): Row {
  let at = 0;
  return row.map((message) => ({ ...message, value: values.subarray(at, at += message.value.length) }));
}

function totalsOf(row: Row): [size: number, bytes: number, last: number, heads: string] {
  const heads = row.map(({ sequence, topic, key, timestamp, bytes, value }): Head => [
    sequence,
    topic,
    key,
    timestamp,
    bytes,
    value.length,
  ]);
  return [row.length, bytesOf(row), row.at(-1)!.sequence, JSON.stringify(heads)];
}

function bytesOf(row: Row): number {
  return row.reduce((sum, { bytes }) => sum + bytes, 0);
}

function unsaved({ sequence, topic, key, value, timestamp, bytes }: Omit<RefusedMessage, "reason" | "refusedAt">) {
  return { sequence, topic, key, value: Buffer.from(value), timestamp, bytes, row: 0 };
}

function nothingRemoved(): Removal {
  return { messages: 0, bytes: 0, left: new Map() };
}

/**
 * What a spool has set aside, the oldest first; also while a producer runs.
 *
 * @throws {ConfigError} when there is no spool, or it can't be opened.
 */
export function* listRefused(path: string): Generator<RefusedMessage> {
  using file = openExisting(path);
  yield* file.refused();
}

/**
 * Puts what a spool has set aside back among what waits; also while a producer runs, which then sends it.
 *
 * @returns Messages that were put back.
 * @throws {ConfigError} when there is no spool, or it can't be opened.
 */
export function retryRefused(path: string): number {
  using file = openExisting(path);
  return file.retryRefused();
}

function openExisting(path: string): SpoolFile {
  try {
    Deno.statSync(path);
    return new SpoolFile(path, "normal");
  } catch (error) {
    throw openError(path, error);
  }
}

/** Makes sure that one process at a time has a spool; the system lets go of it when we end, however we end. */
export function lockSpool(path: string): Disposable | undefined {
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

/** Why a spool can't be opened, for its operator. */
export function openError(path: string, error: unknown): ConfigError {
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
export function isDamage(error: unknown): boolean {
  if (error instanceof DamageError) return true;
  if (!(error instanceof Error)) return false;
  // exec() gives no code, only its text.
  const code = "errcode" in error && typeof error.errcode === "number" ? error.errcode & 0xff : undefined;
  return code === 11 || code === 26 || /malformed|not a database/.test(error.message);
}
