import { resolve } from "node:path";
import { Command } from "commander";
import { errorMessage } from "../lib/error.ts";
import { print, printError } from "../lib/log.ts";
import { type Kafka, type KafkaTls, startKafka } from "./kafka.ts";
import { type Postgres, startPostgres } from "./postgres.ts";
import { REPOSITORY } from "./repository.ts";

/** Default folder of the stack's data. */
export const STACK_FOLDER: string = resolve(REPOSITORY, ".local/stack");

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
interface StackFile {
  readonly pid: number;
  readonly connection: Connection;
}

/** Somebody else uses the folder. */
export class StackRunningError extends Error {
  /** Tells this class apart. */
  override readonly name = "StackRunningError" as const;
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
  { folder = STACK_FOLDER, kafkaPort, postgresPort, tls, report = () => {} }: StartStackOptions = {},
): Promise<Stack> {
  const running = await findStack(folder);
  if (running !== undefined) {
    throw new StackRunningError(`Cannot start a stack in ${folder}: process ${running.pid} runs one there`);
  }
  const existingKafka = environment(KAFKA_VARIABLES, "KAFKA_BOOTSTRAP_SERVERS");
  const existingPostgres = environment(POSTGRES_VARIABLES, "POSTGRES_HOST");
  await Deno.mkdir(folder, { recursive: true });
  await using stack = new AsyncDisposableStack();

  const kafka = existingKafka !== undefined ? undefined : stack.use(
    await startKafka({ folder: `${folder}/kafka`, report, ...(kafkaPort && { port: kafkaPort }), ...(tls && { tls }) }),
  );
  report(
    kafka ? `Kafka is up at ${kafka.bootstrapServers}` : `Using Kafka at ${existingKafka?.["KAFKA_BOOTSTRAP_SERVERS"]}`,
  );
  const postgres = existingPostgres !== undefined ? undefined : stack.use(
    await startPostgres({
      folder: `${folder}/postgres`,
      report,
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
  const file: StackFile = { pid: Deno.pid, connection };
  await Deno.writeTextFile(`${folder}/stack.json`, JSON.stringify(file, null, 2), { mode: 0o600 });
  stack.defer(() => Deno.remove(`${folder}/stack.json`).catch(() => {}));
  const started = stack.move();
  return { connection, kafka, postgres, [Symbol.asyncDispose]: () => started.disposeAsync() };
}

/** The stack that runs in a folder, if one does. */
export async function findStack(folder: string = STACK_FOLDER): Promise<StackFile | undefined> {
  try {
    const file: StackFile = JSON.parse(await Deno.readTextFile(`${folder}/stack.json`));
    // Signal 0 is not to be had from Deno; SIGCONT does nothing to a process that runs.
    Deno.kill(file.pid, "SIGCONT");
    return file.pid === Deno.pid ? undefined : file;
  } catch {
    return undefined;
  }
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

/** Resolves at the first SIGINT or SIGTERM; at the second, the process ends by it. */
export function untilSignal(): Promise<Deno.Signal> {
  const { promise, resolve } = Promise.withResolvers<Deno.Signal>();
  const listeners = (["SIGINT", "SIGTERM"] as const).map((name) => {
    const listener = () => {
      for (const [name, listener] of listeners) Deno.removeSignalListener(name, listener);
      resolve(name);
    };
    Deno.addSignalListener(name, listener);
    return [name, listener] as const;
  });
  return promise;
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
    .exitOverride();
  let options: { kafkaPort?: number; postgresPort?: number; folder?: string };
  try {
    options = command.parse(args, { from: "user" }).opts();
  } catch (error) {
    return (error as { exitCode?: number }).exitCode === 0 ? 0 : 2;
  }
  const signal = untilSignal();
  const begun = performance.now();
  try {
    await using stack = await startStack({ ...options, report: print });
    print(`\nUp after ${((performance.now() - begun) / 1000).toFixed(1)} s. To connect, in another terminal:\n`);
    for (const [name, value] of Object.entries(stack.connection)) print(`  export ${name}=${value}`);
    print(`\n  deno task producer --url https://example.com/ --interval 5s`);
    print(`  deno task consumer --kafka-topic example.com`);
    print(`  deno task sql "select occurred_at, verdict, response_time from site_checker.all_checks order by 1"`);
    print(`\nCtrl-C stops both.`);
    await signal;
    print("\nStopping …");
    return 0;
  } catch (error) {
    printError(`stack: ${errorMessageLines(error)}`);
    return error instanceof StackRunningError ? 2 : 1;
  }
}

/** Message with its line feeds: errors here quote logs. */
export function errorMessageLines(error: unknown): string {
  return error instanceof Error && error.message !== "" ? error.message : errorMessage(error);
}

function parsePort(text: string): number {
  const port = Number(text);
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new RangeError(`Cannot read port '${text}': expected a whole number from 1 to 65535`);
  }
  return port;
}

if (import.meta.main) Deno.exitCode = await main(Deno.args);
