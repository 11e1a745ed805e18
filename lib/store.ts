import pg from "pg";
import type { PostgresSettings } from "./config.ts";
import { Database, eachError, type Session } from "./database.ts";
import { ConfigError, errorCode, errorMessage } from "./error.ts";
import type { Log } from "./log.ts";
import type { KafkaMessage } from "./metric.ts";
import { retryForever } from "./retry.ts";
import { checkVersion, createPartitions, cureOf, fillSummaries, prepareSchema } from "./schema.ts";
import {
  ADD_DAILY_SQL,
  dailyArrays,
  latestArrays,
  MERGE_LATEST_SQL,
  RESOLVE_GONE_SQL,
  RESOLVE_SINCE_SQL,
  rowIdentity,
  summarize,
  type SummaryChanges,
} from "./summary.ts";
import {
  COPY_ROWS_SQL,
  copyLine,
  COUNT_DEAD_LETTERS_SQL,
  type DeadLetter,
  deadLetterArrays,
  FIND_LIMITS_SQL,
  FIND_ROWS_SQL,
  INSERT_DEAD_LETTERS_SQL,
  INSERT_ROWS_SQL,
  keyArrays,
  LIST_DEAD_LETTERS_SQL,
  MARK_DEAD_LETTERS_SQL,
  markArrays,
  type Row,
  rowArrays,
} from "./table.ts";

/** What a transaction stores. */
export interface Batch {
  /** Rows of any topics whose tables are there. */
  readonly rows: readonly Row[];
  /** Messages that are no rows. */
  readonly deadLetters: readonly DeadLetter[];
}

/** Options of {@linkcode Store.open}. */
export interface OpenStoreOptions {
  /** Where to tell of a database that is away. */
  readonly log: Log;
  /** Ends the waiting. */
  readonly signal?: AbortSignal;
}

/** Which dead letters are meant; those that were put back are not. */
export interface DeadLetterFilter {
  /** Those of one topic. */
  readonly topic?: string | undefined;
  /** Those whose reason has this in it, in upper or lower case. */
  readonly reason?: string | undefined;
}

/** A dead letter that was kept. */
export interface StoredDeadLetter extends DeadLetter {
  /** When it was received first. */
  readonly receivedAt: Date;
}

/** What a server has room for. */
interface Limits {
  readonly locks: number;
  readonly transactions: number;
  readonly partitions: number;
}

/** The oldest PostgreSQL that has all that is needed (`NULLS NOT DISTINCT`). */
const MIN_SERVER_VERSION = 15;
/** SQLSTATEs of a connection that will never be let in, however often it tries. */
const REFUSED_CONNECTION_REGEXP = /^(?:28|3D000$)/;
/** Codes of a server whose certificate is not trusted. */
const UNTRUSTED_REGEXP = /^(?:CERT_.*|.*_CERT(?:_.*)?|UNABLE_TO_.*|ERR_TLS_.*|ERR_SSL_.*)$/;
/** SQLSTATE classes of a row that can't be stored: data exception, constraint violation, limit exceeded. */
const REFUSED_ROW_REGEXP = /^(?:22|23|54)/;
const UNIQUE_VIOLATION = "23505";
const CHECK_VIOLATION = "23514";
const NO_PRIVILEGE = "42501";
/** SQLSTATEs of a table, a column or the schema that is not there. */
const MISSING_REGEXP = /^(?:42P01|42703|3F000)$/;
/** A table, what belongs to it and their names in the catalog take some locks each. */
const MAX_CREATED_TOPICS = 200;
/** A topic in a transaction takes a lock on its table and one on the key; several consumers have some at a time. */
const TOPICS_PER_LOCK = 1 / 16;
/** Topics that one transaction writes to, where the server's limits are not known. */
const DEFAULT_MAX_TOPICS = 400;
const MAX_TOPICS = 2_000;
/** A query over all topics takes a lock on each table and one on its key. */
const LOCKS_PER_TOPIC = 2;
const DEAD_LETTER_PAGE = 500;

/** The tables in PostgreSQL. */
export class Store implements AsyncDisposable {
  readonly #database: Database;
  readonly #settings: PostgresSettings;
  readonly #log: Log;
  /** Topics whose tables are known to be there. */
  readonly #ready = new Set<string>();
  /** Whether all other tables are known to be there. */
  #prepared = false;
  #maxTopics = DEFAULT_MAX_TOPICS;
  /** Whether the last batch had rows that were there. */
  #redelivered = false;
  /** Number of topics' tables beyond which the server's limits are looked at again. */
  #checkLimitsAt = 0;

  private constructor(settings: PostgresSettings, log: Log) {
    this.#settings = settings;
    this.#log = log;
    this.#database = new Database(settings, { log });
  }

  /**
   * Connects, and waits for a server that is away.
   *
   * @throws {ConfigError} when the server is there and refuses the role, the database or the certificates, is too old, or
   * has tables that need a newer program.
   */
  static async open(settings: PostgresSettings, { log, signal }: OpenStoreOptions): Promise<Store> {
    const store = new Store(settings, log);
    const servers = settings.servers.map(({ host, port }) => `${host}:${port}`).join(", ");
    try {
      await retryForever(() => store.#check(), {
        what: `PostgreSQL at ${servers}`,
        log,
        ...(signal && { signal }),
        isFinal: (error) => error instanceof ConfigError || isRefusal(error),
      });
    } catch (error) {
      await store[Symbol.asyncDispose]();
      if (!isRefusal(error)) throw error;
      throw new ConfigError(
        `Cannot connect to PostgreSQL at ${servers} as '${settings.user}' to database '${settings.database}' ` +
          `(sslmode ${settings.sslmode}): ${errorMessage(error)}`,
        { cause: error },
      );
    }
    return store;
  }

  /**
   * Makes sure that the topics' tables and all others are there.
   *
   * @returns Reasons by topic, of topics whose tables can't be made because a foreign table has the name.
   * @throws What the driver throws, a missing privilege among it, with the statement that mends it.
   */
  async ensureTables(topics: Iterable<string>): Promise<ReadonlyMap<string, string>> {
    const missing = [...new Set(topics)].filter((topic) => !this.#ready.has(topic));
    const blocked = new Map<string, string>();
    if (missing.length === 0 && this.#prepared) return blocked;
    const options = { log: this.#log, user: this.#settings.user };
    try {
      if (!this.#prepared) await this.#database.transaction((client) => prepareSchema(client, options));
      this.#prepared = true;
      for (let i = 0; i < missing.length; i += MAX_CREATED_TOPICS) {
        const some = missing.slice(i, i + MAX_CREATED_TOPICS);
        const reasons = await this.#database.transaction((client) => createPartitions(client, some, options));
        for (const topic of some) if (!reasons.has(topic)) this.#ready.add(topic);
        for (const [topic, reason] of reasons) blocked.set(topic, reason);
      }
      if (this.#ready.size > this.#checkLimitsAt) await this.#checkLimits();
    } catch (error) {
      throw this.#explain(error);
    }
    return blocked;
  }

  /**
   * Stores rows and dead letters, and brings `latest` and `daily` up to date, in one transaction (one for some hundred
   * topics). A row that is there stays as it is; one that PostgreSQL refuses becomes a dead letter.
   *
   * @returns How many rows became dead letters.
   * @throws What the driver throws, when all of it can be tried again.
   */
  async write({ rows, deadLetters }: Batch): Promise<number> {
    let refused = 0;
    try {
      for (const [index, some] of splitByTopics(rows, this.#maxTopics).entries()) {
        refused += await this.#writeOnce({ rows: some, deadLetters: index === 0 ? deadLetters : [] });
      }
    } catch (error) {
      this.#forgetMissing(error);
      throw this.#explain(error);
    }
    return refused;
  }

  /**
   * Makes `latest` and `daily` say what all rows say, those too that were brought in by hand. Consumers may go on: they
   * wait until it is done.
   */
  async rebuildSummaries(): Promise<void> {
    await this.ensureTables([]);
    try {
      await this.#database.transaction(fillSummaries);
    } catch (error) {
      throw this.#explain(error);
    }
  }

  /** How many dead letters there are for each reason, most frequent first. */
  async countDeadLetters({ topic, reason }: DeadLetterFilter): Promise<ReadonlyMap<string, number>> {
    await this.ensureTables([]);
    const { rows } = await this.#database.query<{ reason: string; count: number }>(
      COUNT_DEAD_LETTERS_SQL,
      [topic ?? null, reason ?? null],
    );
    return new Map(rows.map(({ reason, count }) => [reason, count]));
  }

  /** Dead letters in the order of topic, partition and offset, some at a time. */
  async *deadLetters({ topic, reason }: DeadLetterFilter): AsyncGenerator<readonly StoredDeadLetter[]> {
    await this.ensureTables([]);
    let after: unknown[] = ["", 0, 0, "-infinity"];
    for (;;) {
      const { rows } = await this.#database.query<KafkaMessage & { reason: string; received_at: Date }>(
        LIST_DEAD_LETTERS_SQL,
        [topic ?? null, reason ?? null, ...after, DEAD_LETTER_PAGE],
      );
      if (rows.length === 0) return;
      yield rows.map(({ reason, received_at, ...message }) => ({ message, reason, receivedAt: received_at }));
      const last = rows.at(-1)!;
      after = [last.topic, last.partition, last.offset, new Date(last.timestamp).toISOString()];
    }
  }

  /**
   * Stores what was a dead letter and is a row now, and notes that; those that are none get their new reason.
   *
   * @returns How many are rows now.
   */
  async replay({ rows, deadLetters }: Batch): Promise<number> {
    let replayed = 0;
    try {
      const chunks = splitByTopics(rows, this.#maxTopics);
      for (const [index, some] of chunks.entries()) {
        replayed += await this.#database.transaction(async (client) => {
          const { refused } = await storeNew(client, some);
          const refusedMessages = new Set(refused.map(({ message }) => message));
          const stored = some.filter(({ message }) => !refusedMessages.has(message));
          const failed = [...refused, ...index === 0 ? deadLetters : []];
          await client.query(MARK_DEAD_LETTERS_SQL, markArrays(stored, failed));
          return stored.length;
        });
      }
    } catch (error) {
      this.#forgetMissing(error);
      throw this.#explain(error);
    }
    return replayed;
  }

  /** Closes all connections. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#database[Symbol.asyncDispose]();
  }

  /** What can't pass by itself is found before anything is read. */
  async #check(): Promise<void> {
    const { rows: [row] } = await this.#database.query<{ server_version: string }>("SHOW server_version");
    const version = row?.server_version ?? "";
    if (Number.parseInt(version) < MIN_SERVER_VERSION) {
      throw new ConfigError(`Cannot use PostgreSQL ${version}: expected version ${MIN_SERVER_VERSION} or later`);
    }
    try {
      await checkVersion(this.#database, { log: this.#log });
    } catch (error) {
      // The first write tells which right is missing.
      if (errorCode(error) !== NO_PRIVILEGE) throw error;
    }
  }

  async #writeOnce({ rows, deadLetters }: Batch): Promise<number> {
    if (rows.length === 0) {
      if (deadLetters.length > 0) {
        await this.#database.query(INSERT_DEAD_LETTERS_SQL, deadLetterArrays(deadLetters));
      }
      return 0;
    }
    if (await this.#copy(rows, deadLetters)) return 0;
    return await this.#database.transaction(async (client) => {
      const { refused } = await storeNew(client, rows);
      const letters = [...deadLetters, ...refused];
      if (letters.length > 0) await client.query(INSERT_DEAD_LETTERS_SQL, deadLetterArrays(letters));
      return refused.length;
    });
  }

  /**
   * The fast ways: all of it by COPY, else what is not there yet, since COPY takes no row that is there. A redelivery
   * rarely comes alone, so that the next batch is looked up at once.
   *
   * @returns Whether it is stored; nothing is, where a row is refused.
   */
  async #copy(rows: readonly Row[], deadLetters: readonly DeadLetter[]): Promise<boolean> {
    for (const looksUp of this.#redelivered ? [true] : [false, true]) {
      try {
        // Before the first wait, so that what each row comes to is gone again by then.
        const all = looksUp ? null : prepare(rows);
        await this.#database.transaction(async (client) => {
          const missing = looksUp ? await findMissing(client, rows) : rows;
          this.#redelivered = missing.length < rows.length;
          const { lines, changes } = all ?? prepare(missing);
          if (missing.length > 0) {
            await client.copy(COPY_ROWS_SQL, lines);
            await applyChanges(client, changes);
          }
          if (deadLetters.length > 0) await client.query(INSERT_DEAD_LETTERS_SQL, deadLetterArrays(deadLetters));
        });
        return true;
      } catch (error) {
        if (!isRefusedRow(error)) throw error;
        if (errorCode(error) !== UNIQUE_VIOLATION) return false;
      }
    }
    return false;
  }

  async #checkLimits(): Promise<void> {
    const { rows: [limits] } = await this.#database.query<Limits>(FIND_LIMITS_SQL);
    const { locks, transactions, partitions } = limits!;
    const room = locks * transactions;
    this.#checkLimitsAt = 2 * this.#ready.size;
    this.#maxTopics = Math.max(1, Math.min(MAX_TOPICS, Math.floor(room * TOPICS_PER_LOCK)));
    const needed = partitions * LOCKS_PER_TOPIC;
    if (needed <= room / 2) return;
    this.#log.warn(
      "{partitions} topics have tables, and a query over all of them takes {needed} of the {room} locks that the " +
        "server has room for: set max_locks_per_transaction = {wanted} (it is {locks}) and restart the server, or " +
        "use one topic for many sites",
      { partitions, needed, room, locks, wanted: Math.ceil(4 * needed / transactions / 64) * 64 },
    );
  }

  /** What went away under us is made again by the next {@linkcode Store.ensureTables}. */
  #forgetMissing(error: unknown): void {
    if (!isMissing(error)) return;
    this.#ready.clear();
    this.#prepared = false;
  }

  /** Adds to an error the statement that mends it. */
  #explain(error: unknown): unknown {
    const cure = cureOf(error, this.#settings);
    return cure === null ? error : new Error(`${errorMessage(error)}; to mend it: ${cure}`, { cause: error });
  }
}

/** Rows in parts of so many topics at most. */
function splitByTopics(rows: readonly Row[], maxTopics: number): (readonly Row[])[] {
  const topics = new Set(rows.map(({ message }) => message.topic));
  if (topics.size <= maxTopics) return [rows];
  const parts = Math.ceil(topics.size / maxTopics);
  const partOf = new Map([...topics].map((topic, index) => [topic, index % parts]));
  return Array.from(
    { length: parts },
    (_, part) => rows.filter(({ message }) => partOf.get(message.topic) === part),
  );
}

/** What rows come to, as COPY and the summaries take it. */
function prepare(rows: readonly Row[]): { readonly lines: string; readonly changes: SummaryChanges } {
  const lines: string[] = [];
  function* read(): Generator<Row> {
    for (const row of rows) {
      lines.push(copyLine(row));
      yield row;
      row.forget?.();
    }
  }
  const changes = summarize(read());
  return { lines: lines.join(""), changes };
}

/** Rows that are not there, each once. */
async function findMissing(client: Session, rows: readonly Row[]): Promise<readonly Row[]> {
  const there = await client.query<{ index: number }>(FIND_ROWS_SQL, keyArrays(rows));
  const indexes = new Set(there.rows.map(({ index }) => index));
  const identities = new Set<string>();
  return rows.filter((row, index) => {
    if (indexes.has(index)) return false;
    const { size } = identities;
    return identities.add(rowIdentity(row)).size > size;
  });
}

/** Stores those rows that are not there; halves find those that PostgreSQL refuses. */
async function storeNew(client: Session, rows: readonly Row[]): Promise<{ readonly refused: DeadLetter[] }> {
  if (rows.length === 0) return { refused: [] };
  await client.query("SAVEPOINT rows");
  try {
    const stored = await client.query<{ identity: string }>(INSERT_ROWS_SQL, rowArrays(rows));
    const identities = new Set(stored.rows.map(({ identity }) => identity));
    // Of rows that are twice in here, the first was stored.
    await applyChanges(client, summarize(rows.filter((row) => identities.delete(rowIdentity(row)))));
    await client.query("RELEASE SAVEPOINT rows");
    return { refused: [] };
  } catch (error) {
    if (!isRefusedRow(error)) throw error;
    await client.query("ROLLBACK TO SAVEPOINT rows");
    if (rows.length === 1) {
      const reason = `${errorMessage(error)} (SQLSTATE ${errorCode(error)})`;
      return { refused: [{ message: rows[0]!.message, reason }] };
    }
    const half = Math.ceil(rows.length / 2);
    const first = await storeNew(client, rows.slice(0, half));
    const second = await storeNew(client, rows.slice(half));
    return { refused: [...first.refused, ...second.refused] };
  }
}

/** Brings `latest` and `daily` up to date with rows that were not there before this transaction. */
async function applyChanges(client: Session, { latest, daily }: SummaryChanges): Promise<void> {
  if (latest.length === 0) return;
  const { rows: unknown } = await client.query<UnknownSince>(MERGE_LATEST_SQL, latestArrays(latest));
  if (unknown.length > 0) await resolveSince(client, unknown);
  await client.query(ADD_DAILY_SQL, dailyArrays(daily));
}

interface UnknownSince {
  readonly name: string;
  readonly location: string | null;
  readonly topics: readonly string[];
}

/** Looks up, topic by topic, since when it is what it is: only a late check makes this needed. */
async function resolveSince(client: Session, unknown: readonly UnknownSince[]): Promise<void> {
  const byTopic = new Map<string, UnknownSince[]>();
  for (const key of unknown) {
    for (const topic of key.topics) {
      const keys = byTopic.get(topic);
      if (keys === undefined) byTopic.set(topic, [key]);
      else keys.push(key);
    }
  }
  const arrays = (
    keys: readonly UnknownSince[],
  ) => [keys.map(({ name }) => name), keys.map(({ location }) => location)];
  for (const [topic, keys] of byTopic) await client.query(RESOLVE_SINCE_SQL, [topic, ...arrays(keys)]);
  await client.query(RESOLVE_GONE_SQL, arrays(unknown));
}

/** Whether PostgreSQL refuses a row, and will again. */
function isRefusedRow(error: unknown): boolean {
  return error instanceof pg.DatabaseError && REFUSED_ROW_REGEXP.test(error.code ?? "") && !isMissing(error);
}

/** Whether a table went away under us. A row without a partition is a check violation that names no constraint. */
function isMissing(error: unknown): boolean {
  if (!(error instanceof pg.DatabaseError)) return false;
  return MISSING_REGEXP.test(error.code ?? "") || error.code === CHECK_VIOLATION && error.constraint === undefined;
}

function isRefusal(error: unknown): boolean {
  return eachError(error).some((error) => {
    const code = errorCode(error) ?? "";
    return REFUSED_CONNECTION_REGEXP.test(code) || UNTRUSTED_REGEXP.test(code) ||
      /server does not support SSL|no password supplied|client password must be a string/i.test(errorMessage(error));
  });
}
