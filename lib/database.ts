import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import pg, { type PoolClient } from "pg";
import { from as copyFrom } from "pg-copy-streams";
import type { PostgresServer, PostgresSettings } from "./config.ts";
import { errorMessage } from "./error.ts";
import type { Log } from "./log.ts";

/** Options of {@linkcode Database}. */
export interface DatabaseOptions {
  /** Where to tell of connections that break, and of another server that is used. */
  readonly log: Log;
}

const CONNECT_TIMEOUT_MS = 10_000;
/** A connection that nothing is heard of is asked whether it lives: a server that vanished closes none. */
const KEEP_ALIVE_MS = 10_000;
/** SQLSTATE of a write to a server that takes none. */
const READ_ONLY = "25006";
/** SQLSTATEs behind which a connection is of no more use: class 08, the server's end, a server that takes no writes. */
const LOST_REGEXP = /^(?:08|57P0|25006$)/;
const IS_READ_ONLY_SQL = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS read_only";

/** One connection, within a transaction. */
export interface Session {
  /** Runs a statement. */
  query<T extends object = Record<string, unknown>>(text: string, values?: readonly unknown[]): Promise<QueryResult<T>>;
  /** Sends rows as COPY takes them. */
  copy(statement: string, rows: string): Promise<void>;
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
  /** Whether the system looks after connections that nothing is heard of. */
  readonly keepAlive: boolean;
  /** When it begins to, in ms. */
  readonly keepAliveInitialDelayMillis: number;
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

/** What a statement gives. */
export interface QueryResult<T> {
  /** Rows. */
  readonly rows: T[];
  /** Rows that were found or changed. */
  readonly rowCount: number | null;
}

interface Server extends PostgresServer {
  readonly pool: pg.Pool;
}

/** Connections to the one of several servers that takes writes (libpq's `target_session_attrs=read-write`). */
export class Database implements AsyncDisposable {
  readonly #servers: readonly Server[];
  readonly #log: Log;
  /** Connections that were found to take writes. */
  readonly #writable = new WeakSet<PoolClient>();
  #current = 0;

  /** Connects when it is first used. */
  constructor(settings: PostgresSettings, { log }: DatabaseOptions) {
    this.#log = log;
    this.#servers = settings.servers.map((server) => {
      const pool = new pg.Pool(poolConfig(settings, server));
      const tell = (error: Error) => log.debug("A connection broke: {reason}", { reason: errorMessage(error) });
      pool.on("error", tell);
      // From its first moment to its last: a server that dies may say so in one packet with its readiness, before
      // whoever waits for the connection has it, and an error event that nobody listens to ends the process.
      pool.on("connect", (client) => client.on("error", tell));
      return { ...server, pool };
    });
  }

  /** Runs one statement. */
  query<T extends object>(sql: string, values: unknown[] = []): Promise<QueryResult<T>> {
    return this.#use((client) => client.query<T>(sql, values));
  }

  /** Runs statements in a transaction, which is rolled back when the work throws. */
  transaction<T>(work: (session: Session) => Promise<T>): Promise<T> {
    return this.#use(async (client) => {
      await client.query("BEGIN");
      const result = await work(createSession(client));
      await client.query("COMMIT");
      return result;
    }, "ROLLBACK");
  }

  /** Closes all connections. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#servers.map(({ pool }) => pool.end()));
  }

  /** Lends a connection; after an error that leaves it in doubt, it is not used again. */
  async #use<T>(work: (client: PoolClient) => Promise<T>, undo?: string): Promise<T> {
    const client = await this.#connect();
    let broken = true;
    try {
      const result = await work(client);
      broken = false;
      return result;
    } catch (error) {
      if (error instanceof pg.DatabaseError && !LOST_REGEXP.test(error.code ?? "")) {
        // The first error is the one to tell of, also where the connection breaks over this.
        broken = undo !== undefined && await client.query(undo).then(() => false, () => true);
      }
      throw error;
    } finally {
      client.release(broken);
    }
  }

  /** Takes the server that was used last, else the next one that takes writes. */
  async #connect(): Promise<PoolClient> {
    const errors: Error[] = [];
    for (let i = 0; i < this.#servers.length; i++) {
      const index = (this.#current + i) % this.#servers.length;
      const { host, port, pool } = this.#servers[index]!;
      try {
        const client = await pool.connect();
        if (this.#servers.length > 1) await this.#checkWritable(client);
        if (index !== this.#current) this.#log.info("Using PostgreSQL at {host}:{port} now", { host, port });
        this.#current = index;
        return client;
      } catch (error) {
        errors.push(this.#servers.length === 1 ? error as Error : new Error(`${host}:${port}`, { cause: error }));
      }
    }
    throw errors.length === 1 ? errors[0] : new AggregateError(errors, "");
  }

  async #checkWritable(client: PoolClient): Promise<void> {
    if (this.#writable.has(client)) return;
    try {
      const { rows: [row] } = await client.query<{ read_only: boolean }>(IS_READ_ONLY_SQL);
      if (row?.read_only) throw Object.assign(new Error("it takes no writes"), { code: READ_ONLY });
      this.#writable.add(client);
    } catch (error) {
      client.release(true);
      throw error;
    }
  }
}

/** Errors that an error is made of: one a server, where several were tried. */
export function eachError(error: unknown): readonly unknown[] {
  return error instanceof AggregateError ? error.errors : [error];
}

/** Settings as the driver takes them. */
export function poolConfig(
  settings: PostgresSettings,
  { host, port }: PostgresServer = settings.servers[0]!,
): DriverOptions {
  const { user, password, database, minConnection, maxConnection } = settings;
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
    keepAliveInitialDelayMillis: KEEP_ALIVE_MS,
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

function createSession(client: PoolClient): Session {
  return {
    query: (text, values) => client.query(text, values && [...values]),
    copy: (statement, rows) => pipeline(Readable.from([rows]), client.query(copyFrom(statement))),
  };
}
