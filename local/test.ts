import { errorMessage } from "../lib/error.ts";
import { printError } from "../lib/log.ts";
import { createAuthority } from "./certificate.ts";
import { REPOSITORY } from "./repository.ts";
import { startStack } from "./stack.ts";

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
}

/** Environment variable by which tests find the stack. */
export const TEST_STACK = "SITE_CHECKER_TEST_STACK";

/** Flags of `deno test`: examples in doc comments are run too. */
const TEST_FLAGS = ["-A", "--doc"];
const TEST_PATHS = ["tests", "lib", "local"];

/** Starts a stack with TLS on free ports, runs the tests, and leaves nothing behind. */
async function main(args: readonly string[]): Promise<number> {
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
    });
    const { host, port, user, password, database } = stack.postgres!;
    const found: TestStack = {
      kafka: stack.kafka!.bootstrapServers,
      kafkaSsl: stack.kafka!.sslBootstrapServers!,
      postgres: { host, port, user, password, database },
      certificates: folder,
    };
    return await runTests(args.length > 0 ? args : TEST_PATHS, found);
  } catch (error) {
    printError(`test: ${errorMessage(error)}`);
    return 1;
  } finally {
    await Deno.remove(folder, { recursive: true }).catch(() => {});
  }
}

async function runTests(args: readonly string[], stack: TestStack): Promise<number> {
  const tests = new Deno.Command(Deno.execPath(), {
    args: ["test", ...TEST_FLAGS, ...args],
    cwd: REPOSITORY,
    env: { [TEST_STACK]: JSON.stringify(stack) },
  }).spawn();
  const stop = () => tests.kill("SIGTERM");
  Deno.addSignalListener("SIGINT", stop);
  Deno.addSignalListener("SIGTERM", stop);
  const { code } = await tests.status;
  Deno.removeSignalListener("SIGINT", stop);
  Deno.removeSignalListener("SIGTERM", stop);
  return code;
}

if (import.meta.main) Deno.exitCode = await main(Deno.args);
