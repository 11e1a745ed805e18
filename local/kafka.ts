import { connect } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { Child } from "./child.ts";
import type { CertificateFiles } from "./certificate.ts";
import { freePorts } from "./port.ts";
import { findProgram, REPOSITORY, waysOut } from "./repository.ts";

/** Options of {@linkcode startKafka}. */
export interface StartKafkaOptions {
  /** Folder of its data, kept from start to start. */
  readonly folder: string;
  /** Port for plain text. Default: a free one. */
  readonly port?: number;
  /** Certificates for a second listener over TLS that asks for a client certificate. */
  readonly tls?: KafkaTls;
  /** Whether topics are made when somebody writes to them. Default: true. */
  readonly autoCreateTopics?: boolean;
  /** Told what goes on. */
  readonly report?: (line: string) => void;
}

/** Certificates of a broker. */
export interface KafkaTls extends CertificateFiles {
  /** Certificate of the authority that client certificates must come from, in PEM. */
  readonly authority: string;
}

/** Longest time that a broker may take to come up. */
const START_TIMEOUT_MS = 60_000;
const JARS_NOTE = "54 MB, once";
const JVM_FLAGS = ["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];
/** Any will do: a cluster of one. */
const CLUSTER_ID = "c2l0ZV9jaGVja2VyX2xvYw";

/** Folder with Kafka's jars; Maven brings them when they are not there. */
export async function kafkaJars(report: (line: string) => void = () => {}): Promise<string> {
  const pom = await Deno.readTextFile(`${REPOSITORY}/pom.xml`);
  const version = /<kafka\.version>(?<version>.+?)</.exec(pom)?.groups?.["version"] ?? "unknown";
  const folder = `${REPOSITORY}/.local/kafka-${version}`;
  const complete = `${folder}/.complete`;
  if (await Deno.readTextFile(complete).catch(() => "") === pom) return folder;

  await checkJava();
  const maven = await findProgram("mvn");
  if (maven === undefined) throw new Error(`Cannot find Maven (mvn), which brings Kafka ${version}.\n${waysOut()}`);
  report(`Downloading Kafka ${version} by Maven (${JARS_NOTE}) …`);
  await Deno.mkdir(folder, { recursive: true });
  const { success, stdout } = await new Deno.Command(maven, {
    args: ["-B", "-ntp", "dependency:copy-dependencies", `-DoutputDirectory=${folder}`],
    cwd: REPOSITORY,
    stdin: "null",
    stderr: "inherit",
  }).output();
  if (!success) {
    const lines = new TextDecoder().decode(stdout).trimEnd().split("\n").filter((line) => line.includes("ERROR"));
    throw new Error(`Cannot bring Kafka ${version} by Maven:\n${lines.slice(0, 10).join("\n")}\n${waysOut()}`);
  }
  await Deno.writeTextFile(complete, pom);
  return folder;
}

/** Runs one of Kafka's own tools, such as `org.apache.kafka.tools.consumer.ConsoleConsumer`, and returns what it printed. */
export async function runKafkaTool(mainClass: string, args: readonly string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command("java", {
    args: [...JVM_FLAGS, "-cp", `${await kafkaJars()}/*`, mainClass, ...args],
    stdin: "null",
  }).output();
  if (!success) throw new Error(`${mainClass} failed: ${new TextDecoder().decode(stderr)}`);
  return new TextDecoder().decode(stdout);
}

/** A real Kafka broker, which is its own controller (KRaft). */
export class Kafka implements AsyncDisposable {
  /** `host:port` for plain text. */
  readonly bootstrapServers: string;
  /** `host:port` over TLS, if it has certificates. */
  readonly sslBootstrapServers: string | undefined;
  readonly #properties: string;
  readonly #folder: string;
  readonly #jars: string;
  readonly #port: number;
  #child: Child | undefined;

  /** Use {@linkcode startKafka}. */
  constructor(folder: string, jars: string, { port, sslPort }: { port: number; sslPort: number | undefined }) {
    this.#folder = folder;
    this.#jars = jars;
    this.#port = port;
    this.#properties = `${folder}/server.properties`;
    this.bootstrapServers = `127.0.0.1:${port}`;
    this.sslBootstrapServers = sslPort === undefined ? undefined : `127.0.0.1:${sslPort}`;
  }

  /** Process id, while it runs. */
  get pid(): number | undefined {
    return this.#child?.running ? this.#child.pid : undefined;
  }

  /** Starts it, on the same ports and data as before. */
  async start(): Promise<void> {
    this.#child = await Child.start({
      command: "java",
      args: [
        ...JVM_FLAGS,
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-cp",
        `${this.#jars}/*`,
        "kafka.Kafka",
        this.#properties,
      ],
      log: `${this.#folder}/kafka.log`,
      cwd: this.#folder,
    });
    await Deno.writeTextFile(`${this.#folder}/kafka.pid`, String(this.#child.pid));
    const until = performance.now() + START_TIMEOUT_MS;
    while (!await answers(this.#port)) {
      if (!this.#child.running || performance.now() > until) {
        const tail = await this.#child.tail();
        await this.#child.stop("SIGKILL");
        throw new Error(`Cannot start Kafka, its log in ${this.#folder}/kafka.log ends with:\n${tail}`);
      }
      await delay(100);
    }
  }

  /** Sends it a signal; with `SIGKILL` it is waited for. */
  async kill(signal: Deno.Signal): Promise<void> {
    this.#child?.kill(signal);
    if (signal === "SIGKILL") await this.#child?.stop("SIGKILL");
  }

  /** Stops it in its own time. */
  async stop(): Promise<void> {
    await this.#child?.stop("SIGTERM");
    await Deno.remove(`${this.#folder}/kafka.pid`).catch(() => {});
  }

  /** Stops it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }
}

/** Starts a broker, and waits until it answers. */
export async function startKafka(
  { folder, port, tls, autoCreateTopics = true, report = () => {} }: StartKafkaOptions,
): Promise<Kafka> {
  await checkJava();
  const jars = await kafkaJars(report);
  await Deno.mkdir(folder, { recursive: true });
  await killLeftover(`${folder}/kafka.pid`, `${folder}/server.properties`);
  const [freePort, sslPort, controllerPort] = freePorts(3) as [number, number, number];
  const plainPort = port ?? freePort;
  await Deno.writeTextFile(
    `${folder}/server.properties`,
    serverProperties({ folder, plainPort, sslPort, controllerPort, tls, autoCreateTopics }),
  );
  await Deno.chmod(`${folder}/server.properties`, 0o600);
  if (!await Deno.stat(`${folder}/data/meta.properties`).then(() => true, () => false)) {
    await runKafkaTool("kafka.tools.StorageTool", ["format", "-t", CLUSTER_ID, "-c", `${folder}/server.properties`]);
  }
  const kafka = new Kafka(folder, jars, { port: plainPort, sslPort: tls === undefined ? undefined : sslPort });
  await kafka.start();
  return kafka;
}

interface Properties {
  readonly folder: string;
  readonly plainPort: number;
  readonly sslPort: number;
  readonly controllerPort: number;
  readonly tls: KafkaTls | undefined;
  readonly autoCreateTopics: boolean;
}

function serverProperties(
  { folder, plainPort, sslPort, controllerPort, tls, autoCreateTopics }: Properties,
): string {
  const listeners = [`PLAINTEXT://127.0.0.1:${plainPort}`, ...(tls ? [`SSL://127.0.0.1:${sslPort}`] : [])];
  const pem = (text: string) => text.trim().replaceAll("\n", "\\n");
  return Object.entries({
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.quorum.voters": `1@127.0.0.1:${controllerPort}`,
    "controller.listener.names": "CONTROLLER",
    "listeners": [...listeners, `CONTROLLER://127.0.0.1:${controllerPort}`].join(","),
    "advertised.listeners": listeners.join(","),
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SSL:SSL,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "log.dirs": `${folder}/data`,
    "auto.create.topics.enable": String(autoCreateTopics),
    "num.partitions": "1",
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    // A cluster of one: after a kill -9 it need not wait long for itself.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    "log.cleaner.dedupe.buffer.size": "16777216",
    ...(tls && {
      "ssl.client.auth": "required",
      "ssl.keystore.type": "PEM",
      "ssl.keystore.certificate.chain": pem(tls.certificate),
      "ssl.keystore.key": pem(tls.key),
      "ssl.truststore.type": "PEM",
      "ssl.truststore.certificates": pem(tls.authority),
    }),
  }).map(([key, value]) => `${key}=${value}\n`).join("");
}

/** Ends a broker that an earlier process of ours left behind when it was killed. */
async function killLeftover(pidFile: string, properties: string): Promise<void> {
  const pid = Number(await Deno.readTextFile(pidFile).catch(() => "0"));
  if (pid <= 0) return;
  const commandLine = await Deno.readTextFile(`/proc/${pid}/cmdline`).catch(() => "");
  if (commandLine.includes(properties)) {
    Deno.kill(pid, "SIGKILL");
    await delay(500);
  }
  await Deno.remove(pidFile).catch(() => {});
}

/** Whether a broker answers a request for its API versions (Kafka protocol, ApiVersions v0). */
function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: "127.0.0.1", port });
    const end = (result: boolean) => {
      socket.destroy();
      resolve(result);
    };
    socket.setTimeout(1_000, () => end(false));
    socket.on("error", () => end(false));
    socket.on("close", () => resolve(false));
    socket.on("data", () => end(true));
    // Length 10, API key 18, version 0, correlation id 1, client id null.
    socket.on("connect", () => socket.write(new Uint8Array([0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 255, 255])));
  });
}

const MIN_JAVA = 17;

async function checkJava(): Promise<void> {
  const java = await findProgram("java");
  if (java === undefined) throw new Error(`Cannot find Java (java), in which Kafka runs.\n${waysOut()}`);
  const { stderr } = await new Deno.Command(java, { args: ["-version"], stdin: "null" }).output();
  const version = /version "(?<major>\d+)/.exec(new TextDecoder().decode(stderr))?.groups?.["major"];
  if (Number(version) < MIN_JAVA) {
    throw new Error(`Cannot use Java ${version}: Kafka needs ${MIN_JAVA} or newer.\n${waysOut()}`);
  }
}
