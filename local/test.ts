import { printError } from "../lib/log.ts";
import { createAuthority } from "./certificate.ts";
import { listenForInterruption } from "./interruption.ts";
import { kafkaJars } from "./kafka.ts";
import { REPOSITORY } from "./repository.ts";
import { errorMessageLines, startStack } from "./stack.ts";

/** What tests find in the variable {@linkcode TEST_STACK}, as JSON. */
export interface TestStack {
  /** `host:port` of Kafka, in plain text. */
  readonly kafka: string;
  /** `host:port` of Kafka over TLS, which asks for a client certificate. */
  readonly kafkaSsl: string;
  /** PostgreSQL; it takes connections with and without TLS. */
  readonly postgres: {
    readonly host: string;
    readonly port: number;
    readonly user: string;
    readonly password: string;
    readonly database: string;
  };
  /** Folder with `ca.pem`, `service.cert` and `service.key`. */
  readonly certificates: string;
  /** Folder of Kafka's jars. */
  readonly jars: string;
}

/** Environment variable by which tests find the stack. */
export const TEST_STACK = "SITE_CHECKER_TEST_STACK";

/** Flags of `deno test`: examples in doc comments are run too. */
const TEST_FLAGS = ["-A", "--doc"];
const TEST_PATHS = ["tests", "lib", "local"];

/** Exit code of a run that was broken off, as shells count. */
const INTERRUPTED = 130;

/** Starts a stack with TLS on free ports, runs the tests, and leaves nothing behind. */
async function main(args: readonly string[]): Promise<number> {
  using interruption = listenForInterruption();
  const folder = await Deno.makeTempDir({ prefix: "site_checker-test-" });
  // The server's user has to pass.
  await Deno.chmod(folder, 0o755);
  try {
    const authority = await createAuthority("site_checker tests");
    const { certificate, key } = await authority.issue({ commonName: "localhost", names: ["localhost", "127.0.0.1"] });
    await Deno.writeTextFile(`${folder}/ca.pem`, authority.certificate);
    await Deno.writeTextFile(`${folder}/service.cert`, certificate);
    await Deno.writeTextFile(`${folder}/service.key`, key);
    // Tests never run against an existing broker or database: they would write there.
    for (const name of ["KAFKA_BOOTSTRAP_SERVERS", "POSTGRES_HOST"]) Deno.env.delete(name);
    await using stack = await startStack({
      folder: `${folder}/stack`,
      tls: { certificate, key, authority: authority.certificate },
      report: (line) => printError(line),
      signal: interruption.signal,
    });
    const { host, port, user, password, database } = stack.postgres!;
    const found: TestStack = {
      kafka: stack.kafka!.bootstrapServers,
      kafkaSsl: stack.kafka!.sslBootstrapServers!,
      postgres: { host, port, user, password, database },
      certificates: folder,
      jars: await kafkaJars(),
    };
    return await runTests(args.length > 0 ? args : TEST_PATHS, found, interruption.signal);
  } catch (error) {
    if (interruption.signal.aborted) return INTERRUPTED;
    printError(`test: ${errorMessageLines(error)}`);
    return 1;
  } finally {
    await Deno.remove(folder, { recursive: true }).catch(() => {});
  }
}

async function runTests(args: readonly string[], stack: TestStack, signal: AbortSignal): Promise<number> {
  const tests = new Deno.Command(Deno.execPath(), {
    args: ["test", ...TEST_FLAGS, ...args],
    cwd: REPOSITORY,
    env: { [TEST_STACK]: JSON.stringify(stack) },
    // Ends it by SIGTERM.
    signal,
  }).spawn();
  const { code } = await tests.status;
  return code;
}

if (import.meta.main) Deno.exitCode = await main(Deno.args);
