import { resolve } from "node:path";
import { Command, CommanderError, InvalidArgumentError } from "commander";
import { errorMessage } from "../lib/error.ts";
import { print, printError } from "../lib/log.ts";
import { listenForInterruption } from "./interruption.ts";
import { type Kafka, type KafkaTls, startKafka } from "./kafka.ts";
import { isLocked, LockedError, takeLock } from "./lock.ts";
import { type Postgres, startPostgres } from "./postgres.ts";
import { REPOSITORY } from "./repository.ts";

/** Default folder of the stack's data. */
export const STACK_FOLDER: string = resolve(REPOSITORY, ".local/stack");

/** Somebody else uses the folder. */
export class StackRunningError extends Error {
  /** Tells this class apart. */
  override readonly name = "StackRunningError" as const;
}

/** How to reach a broker and a database: the environment variables of both programs. */
export type Connection = Readonly<Record<string, string>>;

/** Options of {@linkcode startStack}. */
export interface StartStackOptions {
  /** Folder of the data. Default: {@linkcode STACK_FOLDER}. */
  readonly folder?: string;
  /** Port of Kafka. Default: a free one. */
  readonly kafkaPort?: number;
  /** Port of PostgreSQL. Default: a free one. */
  readonly postgresPort?: number;
  /** Certificates of both servers. Default: plain text alone. */
  readonly tls?: KafkaTls;
  /** Told what goes on. */
  readonly report?: (line: string) => void;
  /** Gives up the start. */
  readonly signal?: AbortSignal | undefined;
}

/** A broker and a database, while they run. */
export interface Stack extends AsyncDisposable {
  /** Variables with which `producer.ts` and `consumer.ts` reach them. */
  readonly connection: Connection;
  /** The broker; undefined where an existing one is used. */
  readonly kafka: Kafka | undefined;
  /** The database; undefined where an existing one is used. */
  readonly postgres: Postgres | undefined;
}

/** What a running stack leaves in its folder, for others to find it. */
export interface StackFile {
  /** Process that runs it. */
  readonly pid: number;
  /** Process id of the broker; null where an existing one is used. */
  readonly kafkaPid: number | null;
  /** Process id of the database; null where an existing one is used. */
  readonly postgresPid: number | null;
  /** As in {@linkcode Stack}. */
  readonly connection: Connection;
}

const KAFKA_VARIABLES = [
  "KAFKA_BOOTSTRAP_SERVERS",
  "KAFKA_SECURITY_PROTOCOL",
  "KAFKA_SSL_CAFILE",
  "KAFKA_SSL_CERTFILE",
  "KAFKA_SSL_KEYFILE",
];
const POSTGRES_VARIABLES = [
  "POSTGRES_HOST",
  "POSTGRES_PORT",
  "POSTGRES_USER",
  "POSTGRES_PASSWORD",
  "POSTGRES_DATABASE",
  "POSTGRES_SSLMODE",
  "POSTGRES_SSLROOTCERT",
];

/**
 * Starts Kafka and PostgreSQL, each unless the environment names an existing one (`KAFKA_BOOTSTRAP_SERVERS`,
 * `POSTGRES_HOST`).
 *
 * @throws {StackRunningError} when another process runs a stack in the folder.
 */
export async function startStack(
  { folder: wanted = STACK_FOLDER, kafkaPort, postgresPort, tls, report = () => {}, signal }: StartStackOptions = {},
): Promise<Stack> {
  const folder = resolve(wanted);
  const existingKafka = environment(KAFKA_VARIABLES, "KAFKA_BOOTSTRAP_SERVERS");
  const existingPostgres = environment(POSTGRES_VARIABLES, "POSTGRES_HOST");
  await Deno.mkdir(folder, { recursive: true });
  await using stack = new AsyncDisposableStack();
  stack.use(await lockFolder(folder, signal));
  // One that was killed left it.
  await Deno.remove(`${folder}/stack.json`).catch(() => {});

  const kafka = existingKafka !== undefined ? undefined : stack.use(
    await startKafka({
      folder: `${folder}/kafka`,
      report,
      signal,
      ...(kafkaPort && { port: kafkaPort }),
      ...(tls && { tls }),
    }),
  );
  report(
    kafka ? `Kafka is up at ${kafka.bootstrapServers}` : `Using Kafka at ${existingKafka?.["KAFKA_BOOTSTRAP_SERVERS"]}`,
  );
  const postgres = existingPostgres !== undefined ? undefined : stack.use(
    await startPostgres({
      folder: `${folder}/postgres`,
      report,
      signal,
      ...(postgresPort && { port: postgresPort }),
      ...(tls && { tls }),
    }),
  );
  report(
    postgres
      ? `PostgreSQL is up at ${postgres.host}:${postgres.port}`
      : `Using PostgreSQL at ${existingPostgres?.["POSTGRES_HOST"]}`,
  );
  const connection: Connection = {
    ...existingKafka ?? { KAFKA_BOOTSTRAP_SERVERS: kafka!.bootstrapServers, KAFKA_SECURITY_PROTOCOL: "PLAINTEXT" },
    ...existingPostgres ?? postgresVariables(postgres!),
  };
  const file: StackFile = {
    pid: Deno.pid,
    kafkaPid: kafka?.pid ?? null,
    postgresPid: postgres?.pid ?? null,
    connection,
  };
  await Deno.writeTextFile(`${folder}/stack.json`, JSON.stringify(file, null, 2), { mode: 0o600 });
  stack.defer(() => Deno.remove(`${folder}/stack.json`).catch(() => {}));
  const started = stack.move();
  return { connection, kafka, postgres, [Symbol.asyncDispose]: () => started.disposeAsync() };
}

/** The stack that runs in a folder, if one does. */
export async function findStack(folder: string = STACK_FOLDER): Promise<StackFile | undefined> {
  if (!await isLocked(lockPath(folder))) return undefined;
  try {
    return JSON.parse(await Deno.readTextFile(`${folder}/stack.json`));
  } catch (error) {
    // It is starting, or has just stopped.
    if (error instanceof Deno.errors.NotFound || error instanceof SyntaxError) return undefined;
    throw error;
  }
}

async function lockFolder(folder: string, signal: AbortSignal | undefined): Promise<Disposable> {
  try {
    return await takeLock(lockPath(folder), { action: `Cannot start a stack in ${folder}`, signal });
  } catch (error) {
    throw error instanceof LockedError ? new StackRunningError(error.message, { cause: error }) : error;
  }
}

function lockPath(folder: string): string {
  return `${folder}/stack.lock`;
}

/** Variables with which to reach a server. */
export function postgresVariables({ host, port, user, password, database }: Postgres): Connection {
  return {
    POSTGRES_HOST: host,
    POSTGRES_PORT: String(port),
    POSTGRES_USER: user,
    POSTGRES_PASSWORD: password,
    POSTGRES_DATABASE: database,
    POSTGRES_SSLMODE: "disable",
  };
}

function environment(names: readonly string[], decisive: string): Connection | undefined {
  if (!Deno.env.get(decisive)) return undefined;
  return Object.fromEntries(names.flatMap((name) => {
    const value = Deno.env.get(name);
    return value ? [[name, value]] : [];
  }));
}

async function main(args: readonly string[]): Promise<number> {
  const command = new Command("stack")
    .description("Starts a real Kafka and a real PostgreSQL on this machine, until Ctrl-C.")
    .option("--kafka-port <port>", "port of Kafka (default: a free one)", parsePort)
    .option("--postgres-port <port>", "port of PostgreSQL (default: a free one)", parsePort)
    .option("--folder <folder>", "where the data is kept (default: .local/stack)")
    .allowExcessArguments(false)
    .exitOverride();
  let options: { kafkaPort?: number; postgresPort?: number; folder?: string };
  try {
    options = command.parse(args, { from: "user" }).opts();
  } catch (error) {
    return usageExitCode(error);
  }
  using interruption = listenForInterruption();
  const begun = performance.now();
  try {
    await using stack = await startStack({ ...options, report: print, signal: interruption.signal });
    print(`\nUp after ${((performance.now() - begun) / 1000).toFixed(1)} s. To connect, in another terminal:\n`);
    for (const line of connectionLines(stack)) print(line === "" ? "" : `  ${line}`);
    print(`\nCtrl-C stops ${stack.kafka && stack.postgres ? "both" : "what was started"}.`);
    const failure = await Promise.race([
      interruption.requested,
      stack.kafka?.ended.then((end) => `Kafka has ended: ${end}`),
      stack.postgres?.ended.then((end) => `PostgreSQL has ended: ${end}`),
    ].filter((end) => end !== undefined));
    if (failure !== undefined) printError(`stack: ${failure}`);
    print("\nStopping …");
    return failure === undefined ? 0 : 1;
  } catch (error) {
    if (interruption.signal.aborted) return 0;
    printError(`stack: ${errorMessageLines(error)}`);
    return error instanceof StackRunningError ? 2 : 1;
  }
}

/** What to copy into a terminal to use the stack. */
function connectionLines({ connection, kafka, postgres }: Stack): string[] {
  return [
    ...(kafka ? [`Kafka        ${kafka.bootstrapServers}`] : []),
    ...(postgres ? [`PostgreSQL   ${postgres.url}`, ""] : []),
    // Who brought a database of their own knows its password.
    ...Object.entries(connection).filter(([name]) => postgres !== undefined || name !== "POSTGRES_PASSWORD")
      .map(([name, value]) => `export ${name}=${quote(value)}`),
    "",
    "deno task producer --url https://example.com/ --interval 5s",
    "deno task consumer --kafka-topic example.com",
    'deno task sql "select occurred_at, verdict, response_time from site_checker.all_checks order by 1"',
  ];
}

/** Quotes a word for a shell where it needs to be. */
function quote(text: string): string {
  return /^[\w.,:/@%+-]*$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Exit code for what the parser of the command line throws, which has said what is wrong; `--help` is no fault. */
export function usageExitCode(error: unknown): number {
  if (!(error instanceof CommanderError)) throw error;
  return error.exitCode === 0 ? 0 : 2;
}

/** Message with its line feeds: errors here quote logs. */
export function errorMessageLines(error: unknown): string {
  return error instanceof Error && error.message !== "" ? error.message : errorMessage(error);
}

function parsePort(text: string): number {
  const port = Number(text);
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new InvalidArgumentError("Expected a whole number from 1 to 65535.");
  }
  return port;
}

if (import.meta.main) Deno.exitCode = await main(Deno.args);
