import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import pg from "pg";
import { from as copyFrom } from "pg-copy-streams";
import type { PostgresSettings } from "./config.ts";
import { ConfigError, errorCode, errorMessage } from "./error.ts";
import type { Log } from "./log.ts";
import { retryForever } from "./retry.ts";
import {
  adoptSql,
  changeOwnerSql,
  COPY_ROWS_SQL,
  copyLine,
  CREATE_SCHEMA_SQL,
  createDeadLettersSql,
  createParentSql,
  createPartitionSql,
  DEAD_LETTERS,
  type DeadLetter,
  deadLetterArrays,
  FIND_SCHEMA_SQL,
  FIND_TABLES_SQL,
  INSERT_DEAD_LETTERS_SQL,
  INSERT_ROWS_SQL,
  LOCK_SCHEMA_SQL,
  PARENT,
  partitionBound,
  qualifiedName,
  renameSql,
  type Row,
  rowArrays,
  tableName,
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

/** SQLSTATEs of a connection that will never be let in, however often it tries. */
const REFUSED_CONNECTION_REGEXP = /^(?:28|3D000$)/;
/** Codes of a server whose certificate is not trusted. */
const UNTRUSTED_REGEXP = /^(?:.*CERT.*|UNABLE_TO_.*|ERR_TLS_.*|ERR_SSL_.*)$/;
/** SQLSTATE classes of a row that can't be stored: data exception, constraint violation, limit exceeded. */
const REFUSED_ROW_REGEXP = /^(?:22|23|54)/;
const CHECK_VIOLATION = "23514";
const UNDEFINED_TABLE = "42P01";
const NO_PRIVILEGE = "42501";
const CONNECT_TIMEOUT_MS = 10_000;

/** The tables in PostgreSQL. */
export class Store implements AsyncDisposable {
  readonly #pool: pg.Pool;
  readonly #settings: PostgresSettings;
  readonly #log: Log;
  /** Topics whose tables are known to be there. */
  readonly #ready = new Set<string>();

  private constructor(settings: PostgresSettings, log: Log) {
    this.#settings = settings;
    this.#log = log;
    this.#pool = new pg.Pool(poolConfig(settings));
    this.#pool.on("error", (error) => log.debug("An idle connection ended: {reason}", { reason: errorMessage(error) }));
  }

  /**
   * Connects, and waits for a server that is away.
   *
   * @throws {ConfigError} when the server is there and refuses the role, the database or the certificates.
   */
  static async open(settings: PostgresSettings, { log, signal }: OpenStoreOptions): Promise<Store> {
    const store = new Store(settings, log);
    try {
      await retryForever(() => store.#pool.query("SELECT 1"), {
        what: `PostgreSQL at ${settings.host}:${settings.port}`,
        log,
        ...(signal && { signal }),
        isFinal: (error) => isRefusal(error),
      });
    } catch (error) {
      await store[Symbol.asyncDispose]();
      if (!isRefusal(error)) throw error;
      throw new ConfigError(
        `Cannot connect to PostgreSQL at ${settings.host}:${settings.port} as '${settings.user}' to database ` +
          `'${settings.database}' (sslmode ${settings.sslmode}): ${errorMessage(error)}`,
        { cause: error },
      );
    }
    return store;
  }

  /**
   * Makes sure that schema, parent and the topics' tables are there.
   *
   * @returns Reasons by topic, of topics whose tables can't be made because a foreign table has the name.
   * @throws What the driver throws, a missing privilege among it, with the statement that mends it.
   */
  async ensureTables(topics: Iterable<string>): Promise<ReadonlyMap<string, string>> {
    const missing = [...new Set(topics)].filter((topic) => !this.#ready.has(topic));
    if (missing.length === 0) return new Map();
    try {
      return await this.#transaction((client) => this.#createTables(client, missing));
    } catch (error) {
      throw this.#explain(error);
    }
  }

  /**
   * Stores rows and dead letters in one transaction. A row that is there stays as it is; one that PostgreSQL refuses
   * becomes a dead letter.
   *
   * @returns How many rows became dead letters.
   * @throws What the driver throws, when all of it can be tried again.
   */
  async write({ rows, deadLetters }: Batch): Promise<number> {
    try {
      if (rows.length === 0 || await this.#copy(rows, deadLetters)) {
        if (rows.length === 0 && deadLetters.length > 0) {
          await this.#pool.query(INSERT_DEAD_LETTERS_SQL, deadLetterArrays(deadLetters));
        }
        return 0;
      }
      return await this.#transaction(async (client) => {
        const refused: DeadLetter[] = [];
        await insert(client, rows, refused);
        const letters = [...deadLetters, ...refused];
        if (letters.length > 0) await client.query(INSERT_DEAD_LETTERS_SQL, deadLetterArrays(letters));
        return refused.length;
      });
    } catch (error) {
      if (isMissingTable(error)) this.#ready.clear();
      throw this.#explain(error);
    }
  }

  /** Closes all connections. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pool.end();
  }

  /** The fast way; false where a row is there already or is refused, and nothing was stored. */
  async #copy(rows: readonly Row[], deadLetters: readonly DeadLetter[]): Promise<boolean> {
    try {
      await this.#transaction(async (client) => {
        await pipeline(Readable.from([rows.map(copyLine).join("")]), client.query(copyFrom(COPY_ROWS_SQL)));
        if (deadLetters.length > 0) await client.query(INSERT_DEAD_LETTERS_SQL, deadLetterArrays(deadLetters));
      });
      return true;
    } catch (error) {
      if (isMissingTable(error) || !REFUSED_ROW_REGEXP.test(errorCode(error) ?? "")) throw error;
      return false;
    }
  }

  async #transaction<T>(work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
    const client = await this.#pool.connect();
    const onError = (error: Error) => this.#log.debug("A connection broke: {reason}", { reason: errorMessage(error) });
    client.on("error", onError);
    let broken = true;
    try {
      await client.query("BEGIN");
      try {
        const result = await work(client);
        await client.query("COMMIT");
        broken = false;
        return result;
      } catch (error) {
        await client.query("ROLLBACK");
        broken = false;
        throw error;
      }
    } finally {
      client.off("error", onError);
      client.release(broken);
    }
  }

  async #createTables(client: pg.PoolClient, topics: readonly string[]): Promise<ReadonlyMap<string, string>> {
    await client.query(LOCK_SCHEMA_SQL);
    // `CREATE SCHEMA IF NOT EXISTS` asks for the right to make one even where it is there.
    if ((await client.query(FIND_SCHEMA_SQL)).rowCount === 0) await client.query(CREATE_SCHEMA_SQL);
    const names = [PARENT, DEAD_LETTERS, ...topics.map(tableName)];
    const found = await client.query<FoundTable>(FIND_TABLES_SQL, [names]);
    const tables = new Map(found.rows.map((table) => [table.name, table]));
    const parent = tables.get(PARENT);
    if (parent === undefined) await client.query(createParentSql());
    else if (parent.kind !== "p") throw new ForeignTableError(PARENT);
    if (!tables.has(DEAD_LETTERS)) await client.query(createDeadLettersSql());

    const blocked = new Map<string, string>();
    const created: string[] = [];
    for (const topic of topics) {
      const table = tables.get(tableName(topic));
      if (table === undefined) created.push(topic);
      else if (table.parent !== PARENT || table.bound !== partitionBound(topic)) {
        blocked.set(topic, foreignTable(topic));
      }
    }
    if (created.length > 0 && parent !== undefined && !parent.owned) {
      throw new OwnerError(parent.owner, this.#settings.user);
    }
    for (const topic of created) await client.query(createPartitionSql(topic));
    if (created.length > 0) this.#log.info("Made tables for topics: {topics}", { topics: created.join(", ") });
    for (const topic of topics) if (!blocked.has(topic)) this.#ready.add(topic);
    return blocked;
  }

  /** Adds to a missing privilege the statement that gives it. */
  #explain(error: unknown): unknown {
    if (errorCode(error) !== NO_PRIVILEGE) return error;
    const { user, database } = this.#settings;
    const message = errorMessage(error);
    const object = /permission denied for (?<kind>database|schema|table) (?<name>.+)/.exec(message)?.groups;
    const role = `"${user}"`;
    const cure = object?.["kind"] === "database"
      ? `GRANT CREATE ON DATABASE "${database}" TO ${role}`
      : object?.["kind"] === "schema"
      ? `GRANT USAGE, CREATE ON SCHEMA site_checker TO ${role}`
      : object?.["kind"] === "table"
      ? `GRANT SELECT, INSERT ON ${qualifiedName(object["name"]!.replace(/^"|"$/g, ""))} TO ${role}`
      : undefined;
    return cure === undefined ? error : new Error(`${message}; to mend it: ${cure};`, { cause: error });
  }
}

interface FoundTable {
  readonly name: string;
  readonly kind: string;
  readonly parent: string | null;
  readonly bound: string | null;
  readonly owned: boolean;
  readonly owner: string;
}

class ForeignTableError extends Error {
  constructor(table: string) {
    super(
      `Cannot use ${qualifiedName(table)}: it is not the partitioned table of site_checker; to make room for that: ` +
        `ALTER TABLE ${qualifiedName(table)} RENAME TO "${table}~old";`,
    );
  }
}

class OwnerError extends Error {
  constructor(owner: string, user: string) {
    super(
      `Cannot add a table to ${qualifiedName(PARENT)}, which belongs to ${owner}: only its owner can; to mend it: ` +
        `GRANT ${owner} TO "${user}"; or ${changeOwnerSql(PARENT, user)};`,
    );
  }
}

function foreignTable(topic: string): string {
  return `its table ${
    qualifiedName(tableName(topic))
  } is there and is not one of site_checker's, so it is left alone. ` +
    `To make room: ${renameSql(topic)}; and, once the new table is there, to bring over the rows of the Python ` +
    `program: ${adoptSql(topic)};`;
}

/** Inserts rows within a transaction; halves find those that PostgreSQL refuses. */
async function insert(client: pg.PoolClient, rows: readonly Row[], refused: DeadLetter[]): Promise<void> {
  await client.query("SAVEPOINT rows");
  try {
    await client.query(INSERT_ROWS_SQL, rowArrays(rows));
    await client.query("RELEASE SAVEPOINT rows");
  } catch (error) {
    if (isMissingTable(error) || !REFUSED_ROW_REGEXP.test(errorCode(error) ?? "")) throw error;
    await client.query("ROLLBACK TO SAVEPOINT rows");
    if (rows.length === 1) {
      refused.push({ message: rows[0]!.message, reason: `${errorMessage(error)} (SQLSTATE ${errorCode(error)})` });
      return;
    }
    const half = Math.ceil(rows.length / 2);
    await insert(client, rows.slice(0, half), refused);
    await insert(client, rows.slice(half), refused);
  }
}

/** Whether a table went away under us. A row without a partition is a check violation that names no constraint. */
function isMissingTable(error: unknown): boolean {
  const code = errorCode(error);
  return code === UNDEFINED_TABLE ||
    code === CHECK_VIOLATION && error instanceof pg.DatabaseError && error.constraint === undefined;
}

function isRefusal(error: unknown): boolean {
  const code = errorCode(error) ?? "";
  return REFUSED_CONNECTION_REGEXP.test(code) || UNTRUSTED_REGEXP.test(code) ||
    /server does not support SSL|no password supplied|client password must be a string/i.test(errorMessage(error));
}

/** Settings as the driver takes them; see its own documentation. */
export interface DriverOptions {
  /** Host. */
  readonly host: string;
  /** Port. */
  readonly port: number;
  /** Role. */
  readonly user: string;
  /** Password. */
  readonly password: string;
  /** Database. */
  readonly database: string;
  /** Connections kept open. */
  readonly min: number;
  /** Connections at most. */
  readonly max: number;
  /** TLS, false for none. */
  readonly ssl: false | TlsOptions;
  /** Longest wait for a connection, in ms. */
  readonly connectionTimeoutMillis: number;
  /** Whether the system looks after idle connections. */
  readonly keepAlive: boolean;
  /** Name in `pg_stat_activity`. */
  readonly application_name: string;
}

/** TLS as the driver takes it. */
export interface TlsOptions {
  /** Authorities in PEM. */
  readonly ca?: string;
  /** Whether the certificate is looked at. */
  readonly rejectUnauthorized?: boolean;
  /** Compares the host's name with the certificate; undefined is good. */
  readonly checkServerIdentity?: () => undefined;
}

/** Settings as the driver takes them. */
export function poolConfig(settings: PostgresSettings): DriverOptions {
  const { host, port, user, password, database, minConnection, maxConnection } = settings;
  return {
    host,
    port,
    user,
    // An empty one keeps the driver from looking for a file of passwords.
    password: password ?? "",
    database,
    min: minConnection,
    max: maxConnection,
    ssl: sslOptions(settings),
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    keepAlive: true,
    application_name: "site_checker",
  };
}

/**
 * TLS as libpq's `sslmode` means it: `require` does not look at the certificate unless authorities are given, `verify-ca`
 * looks at who issued it, `verify-full` also at the host's name.
 *
 * @see https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION
 */
function sslOptions({ sslmode, ca }: PostgresSettings): DriverOptions["ssl"] {
  const authorities = ca === null ? {} : { ca };
  switch (sslmode) {
    case "disable":
      return false;
    case "require":
      return ca === null ? { rejectUnauthorized: false } : { ...authorities, checkServerIdentity: () => undefined };
    case "verify-ca":
      return { ...authorities, checkServerIdentity: () => undefined };
    case "verify-full":
      return { ...authorities };
  }
}
