import type { Buffer } from "node:buffer";
import { connect } from "node:net";
import { resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { CertificateFiles } from "./certificate.ts";
import { Child, endLeftover, endOf } from "./child.ts";
import { takeLock } from "./lock.ts";
import { freePorts } from "./port.ts";
import { findProgram, REPOSITORY, waysOut } from "./repository.ts";

/** Options of {@linkcode startKafka}. */
export interface StartKafkaOptions {
  /** Folder of its data, kept from start to start. */
  readonly folder: string;
  /** Port for plain text. Default: a free one. */
  readonly port?: number;
  /** Port that clients are told to come to, as that of a relay before the broker. Default: {@linkcode StartKafkaOptions.port}. */
  readonly advertisedPort?: number;
  /** Certificates for a second listener over TLS that asks for a client certificate. */
  readonly tls?: KafkaTls;
  /** Port of that listener. Default: a free one. */
  readonly sslPort?: number;
  /** Whether topics are made when somebody writes to them. Default: true. */
  readonly autoCreateTopics?: boolean;
  /** Whether it looks at access control lists; where a topic has none, everybody may do all. Default: false. */
  readonly accessControl?: boolean;
  /** Copies of a partition, unless who makes the topic says otherwise. Default: 1. */
  readonly replicas?: number;
  /** Cluster that it joins. Default: one of its own, which it controls. */
  readonly joins?: KafkaCluster;
  /** Told what goes on. */
  readonly report?: (line: string) => void;
  /** Gives up the start. */
  readonly signal?: AbortSignal | undefined;
}

/** A cluster to join. */
export interface KafkaCluster {
  /** Its first broker, node 1. */
  readonly controller: Kafka;
  /** Number of the one that joins, from 2. */
  readonly node: number;
}

/** Certificates of a broker. */
export interface KafkaTls extends CertificateFiles {
  /** Certificate of the authority that client certificates must come from, in PEM. */
  readonly authority: string;
}

/** Options of {@linkcode kafkaJars}. */
export interface KafkaJarsOptions {
  /** Told what goes on. */
  readonly report?: (line: string) => void;
  /** Gives up. */
  readonly signal?: AbortSignal | undefined;
}

/** Options of {@linkcode runKafkaTool}. */
export interface RunKafkaToolOptions {
  /** What the tool reads. Default: nothing. */
  readonly stdin?: string;
  /** Working folder. */
  readonly cwd?: string;
  /** Ends the tool. */
  readonly signal?: AbortSignal | undefined;
}

/** Longest time that a broker may take to come up. */
const START_TIMEOUT_MS = 60_000;
/** Longest time to wait for another process that brings the jars. */
const DOWNLOAD_TIMEOUT_MS = 600_000;
const DOWNLOAD_REPORT_MS = 5_000;
const JARS_NOTE = "54 MB, once";
const JVM_FLAGS = ["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];
/** Any will do: no cluster meets another. */
const CLUSTER_ID = "c2l0ZV9jaGVja2VyX2xvYw";
const PROPERTIES = "server.properties";
/** Node that is the controller of its cluster. */
const CONTROLLER = 1;
/** Lines of its log that say why it ends; what it lets go of at the end comes behind them. */
const LOG_ERROR_REGEXP = / (?:ERROR|FATAL) |^Caused by|^Exception in|^[\w.]+(?:Exception|Error): /;

/** Folder with Kafka's jars; Maven brings them when they are not there. */
export async function kafkaJars({ report = () => {}, signal }: KafkaJarsOptions = {}): Promise<string> {
  const pom = await Deno.readTextFile(`${REPOSITORY}/pom.xml`);
  const version = /<kafka\.version>(?<version>.+?)</.exec(pom)?.groups?.["version"] ?? "unknown";
  const folder = `${REPOSITORY}/.local/kafka-${version}`;
  // The pom itself marks a folder that is complete: another pom, or none, and it is made again.
  const isComplete = async () => await Deno.readTextFile(`${folder}/.complete`).catch(() => "") === pom;
  if (await isComplete()) return folder;

  await checkJava();
  const maven = await findProgram("mvn");
  if (maven === undefined) throw new Error(`Cannot find Maven (mvn), which brings Kafka ${version}\n${waysOut()}`);
  await Deno.mkdir(`${REPOSITORY}/.local`, { recursive: true });
  using _ = await takeLock(`${folder}.lock`, {
    action: `Cannot download Kafka ${version}`,
    timeoutMs: DOWNLOAD_TIMEOUT_MS,
    signal,
  });
  if (await isComplete()) return folder;

  report(`Downloading Kafka ${version} by Maven (${JARS_NOTE}) …`);
  await Deno.remove(folder, { recursive: true }).catch(() => {});
  const begun = performance.now();
  const elapsed = () => `${((performance.now() - begun) / 1000).toFixed(0)} s`;
  const timer = setInterval(() => report(`  … ${elapsed()}`), DOWNLOAD_REPORT_MS);
  try {
    const { success, stdout, stderr } = await new Deno.Command(maven, {
      args: ["-B", "-ntp", "dependency:copy-dependencies", `-DoutputDirectory=${folder}`],
      cwd: REPOSITORY,
      stdin: "null",
      ...(signal && { signal }),
    }).output();
    signal?.throwIfAborted();
    if (!success) {
      const lines = (decode(stdout) + decode(stderr)).split("\n").filter((line) => line.includes("ERROR"));
      throw new Error(`Cannot download Kafka ${version} by Maven:\n${lines.slice(0, 10).join("\n")}\n${waysOut()}`);
    }
  } finally {
    clearInterval(timer);
  }
  await Deno.writeTextFile(`${folder}/.complete`, pom);
  report(`Downloaded in ${elapsed()}`);
  return folder;
}

/**
 * Runs one of Kafka's own tools, such as `org.apache.kafka.tools.consumer.ConsoleConsumer`, and returns what it printed.
 *
 * @throws {Error} when it fails, with what it printed to standard error.
 */
export async function runKafkaTool(
  mainClass: string,
  args: readonly string[],
  { stdin, cwd, signal }: RunKafkaToolOptions = {},
): Promise<string> {
  const tool = new Deno.Command(await findJava(), {
    args: [...JVM_FLAGS, "-cp", `${await kafkaJars({ signal })}/*`, mainClass, ...args],
    stdin: stdin === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
    ...(cwd !== undefined && { cwd }),
    ...(signal && { signal }),
  }).spawn();
  // A tool that ends before it has read all says by its exit code whether that is a fault.
  const written = stdin === undefined ? undefined : new Blob([stdin]).stream().pipeTo(tool.stdin).catch(() => {});
  const { success, stdout, stderr } = await tool.output();
  await written;
  signal?.throwIfAborted();
  if (!success) throw new Error(`${mainClass} failed: ${decode(stderr).slice(0, 500)}`);
  return decode(stdout);
}

/** What a {@linkcode Kafka} is made of. */
export interface KafkaParts {
  /** Folder of the jars. */
  readonly jars: string;
  /** Keeps others from the folder of the data. */
  readonly lock: Disposable;
  /** Number within the cluster. */
  readonly node: number;
  /** Port for plain text. */
  readonly port: number;
  /** Port for TLS, if it has certificates. */
  readonly sslPort: number | undefined;
  /** Port of the cluster's controller. */
  readonly controllerPort: number;
}

/** A real Kafka broker; the first of a cluster is its controller too (KRaft). */
export class Kafka implements AsyncDisposable {
  /** `host:port` for plain text. */
  readonly bootstrapServers: string;
  /** `host:port` over TLS, if it has certificates. */
  readonly sslBootstrapServers: string | undefined;
  /** Port of its cluster's controller. */
  readonly controllerPort: number;
  readonly #folder: string;
  readonly #jars: string;
  readonly #port: number;
  readonly #node: number;
  readonly #lock: Disposable;
  #child: Child | undefined;

  /** Use {@linkcode startKafka}. */
  constructor(
    folder: string,
    { jars, lock, node, port, sslPort, controllerPort }: KafkaParts,
  ) {
    this.#folder = folder;
    this.#jars = jars;
    this.#lock = lock;
    this.#node = node;
    this.#port = port;
    this.controllerPort = controllerPort;
    this.bootstrapServers = `127.0.0.1:${port}`;
    this.sslBootstrapServers = sslPort === undefined ? undefined : `127.0.0.1:${sslPort}`;
  }

  /** Process id, while it runs. */
  get pid(): number | undefined {
    return this.#child?.running ? this.#child.pid : undefined;
  }

  /** Resolves with the end of its log when it ends, for whatever reason. */
  get ended(): Promise<string> {
    return endOf(this.#child, LOG_ERROR_REGEXP);
  }

  /** Starts it, on the same ports and data as before, and waits until it answers. */
  async start({ signal }: { signal?: AbortSignal | undefined } = {}): Promise<void> {
    if (this.pid !== undefined) return;
    const child = this.#child = await Child.start({
      command: await findJava(),
      args: [
        ...JVM_FLAGS,
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
        "-cp",
        `${this.#jars}/*`,
        "kafka.Kafka",
        `${this.#folder}/${PROPERTIES}`,
      ],
      log: `${this.#folder}/kafka.log`,
      cwd: this.#folder,
    });
    try {
      await Deno.writeTextFile(`${this.#folder}/kafka.pid`, String(child.pid));
      const until = performance.now() + START_TIMEOUT_MS;
      while (!await answers(this.#port, this.#node)) {
        if (!child.running || performance.now() > until) {
          const end = await child.tail(15, LOG_ERROR_REGEXP);
          throw new Error(`Cannot start Kafka, its log in ${this.#folder}/kafka.log ends with:\n${end}`);
        }
        await delay(50, undefined, signal === undefined ? {} : { signal });
      }
    } catch (error) {
      await child.stop("SIGKILL");
      throw error;
    }
  }

  /** Sends it a signal; with `SIGKILL` it is waited for. */
  async kill(signal: Deno.Signal): Promise<void> {
    if (signal === "SIGKILL") await this.#child?.stop("SIGKILL");
    else this.#child?.kill(signal);
  }

  /** Stops it in its own time, and by force when it takes too long. */
  async stop(): Promise<void> {
    await this.#child?.stop();
    await Deno.remove(`${this.#folder}/kafka.pid`).catch(() => {});
  }

  /** Stops it for good. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    this.#lock[Symbol.dispose]();
  }
}

/**
 * Starts a broker, and waits until it answers.
 *
 * @throws {LockedError} when another process runs one in the folder.
 */
export async function startKafka(
  {
    folder: wanted,
    port,
    advertisedPort,
    sslPort,
    tls,
    autoCreateTopics = true,
    accessControl = false,
    replicas = 1,
    joins,
    report = () => {},
    signal,
  }: StartKafkaOptions,
): Promise<Kafka> {
  await checkJava();
  const jars = await kafkaJars({ report, signal });
  const folder = resolve(wanted);
  await Deno.mkdir(folder, { recursive: true });
  const lock = await takeLock(`${folder}/lock`, { action: `Cannot start Kafka in ${folder}`, signal });
  try {
    const pid = Number(await Deno.readTextFile(`${folder}/kafka.pid`).catch(() => "0"));
    await endLeftover(pid, { mark: `${folder}/${PROPERTIES}`, stopSignal: "SIGTERM" });
    const [freePort, freeSslPort, freeControllerPort] = freePorts(3) as [number, number, number];
    const plainPort = port ?? freePort;
    const ports = {
      plainPort,
      advertisedPort: advertisedPort ?? plainPort,
      sslPort: sslPort ?? freeSslPort,
      controllerPort: joins?.controller.controllerPort ?? freeControllerPort,
    };
    const node = joins?.node ?? CONTROLLER;
    await Deno.remove(`${folder}/kafka.log`).catch(() => {});
    await Deno.writeTextFile(
      `${folder}/${PROPERTIES}`,
      serverProperties({ ...ports, node, replicas, tls, autoCreateTopics, accessControl }),
      {
        mode: 0o600,
      },
    );
    if (!await Deno.stat(`${folder}/data/meta.properties`).then(() => true, () => false)) {
      report("Making a Kafka broker …");
      const args = ["format", "-t", CLUSTER_ID, "-c", PROPERTIES];
      await runKafkaTool("kafka.tools.StorageTool", args, { cwd: folder, signal });
    }
    const kafka = new Kafka(folder, {
      jars,
      lock,
      node,
      port: ports.plainPort,
      sslPort: tls === undefined ? undefined : ports.sslPort,
      controllerPort: ports.controllerPort,
    });
    await kafka.start({ signal });
    return kafka;
  } catch (error) {
    lock[Symbol.dispose]();
    throw error;
  }
}

interface Properties {
  readonly node: number;
  readonly replicas: number;
  readonly plainPort: number;
  readonly advertisedPort: number;
  readonly sslPort: number;
  readonly controllerPort: number;
  readonly tls: KafkaTls | undefined;
  readonly autoCreateTopics: boolean;
  readonly accessControl: boolean;
}

function serverProperties(
  { node, replicas, plainPort, advertisedPort, sslPort, controllerPort, tls, autoCreateTopics, accessControl }:
    Properties,
): string {
  const at = (port: number) => [`PLAINTEXT://127.0.0.1:${port}`, ...(tls ? [`SSL://127.0.0.1:${sslPort}`] : [])];
  const pem = (text: string) => text.trim().replaceAll("\n", "\\n");
  const isController = node === CONTROLLER;
  return Object.entries({
    "process.roles": isController ? "broker,controller" : "broker",
    "node.id": String(node),
    "controller.quorum.voters": `${CONTROLLER}@127.0.0.1:${controllerPort}`,
    "controller.listener.names": "CONTROLLER",
    "listeners": [...at(plainPort), ...(isController ? [`CONTROLLER://127.0.0.1:${controllerPort}`] : [])].join(","),
    "advertised.listeners": at(advertisedPort).join(","),
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SSL:SSL,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    // From the working folder: here, a path would have to be escaped.
    "log.dirs": "data",
    "auto.create.topics.enable": String(autoCreateTopics),
    "num.partitions": "1",
    "default.replication.factor": String(replicas),
    "offsets.topic.replication.factor": String(replicas),
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    // A cluster of one: after a kill -9 it need not wait long for itself.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    "log.cleaner.dedupe.buffer.size": "16777216",
    ...(accessControl && {
      "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
      "allow.everyone.if.no.acl.found": "true",
    }),
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

/**
 * Whether a broker answers, and knows of itself as one that takes requests: until then, topics can't be made (Kafka
 * protocol, Metadata v1 with no topics).
 */
function answers(port: number, node: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: "127.0.0.1", port });
    const end = (result: boolean) => {
      socket.destroy();
      resolve(result);
    };
    socket.setTimeout(1_000, () => end(false));
    socket.on("error", () => end(false));
    socket.on("close", () => resolve(false));
    socket.on("data", (bytes: Buffer) => end(nodesOf(bytes).includes(node)));
    // Length 14, API key 3, version 1, correlation id 1, client id null, topics none.
    const request = [0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 1, 255, 255, 0, 0, 0, 0];
    socket.on("connect", () => socket.write(new Uint8Array(request)));
  });
}

/** Nodes that an answer names: length, correlation id, number of brokers, then number, host, port and rack of each. */
function nodesOf(answer: Buffer): number[] {
  const nodes: number[] = [];
  const count = answer.length < 12 ? 0 : answer.readInt32BE(8);
  for (let at = 12; nodes.length < count;) {
    nodes.push(answer.readInt32BE(at));
    const hostBytes = answer.readInt16BE(at + 4);
    const rackBytes = answer.readInt16BE(at + 6 + hostBytes + 4);
    at += 6 + hostBytes + 4 + 2 + Math.max(0, rackBytes);
  }
  return nodes;
}

const MIN_JAVA = 17;

/** The `java` of JAVA_HOME, else that of PATH. */
async function findJava(): Promise<string> {
  const home = Deno.env.get("JAVA_HOME");
  const own = home ? `${home}/bin/java` : undefined;
  if (own !== undefined && await Deno.stat(own).then(({ isFile }) => isFile, () => false)) return own;
  const java = await findProgram("java");
  if (java === undefined) throw new Error(`Cannot find Java (java), in which Kafka runs.\n${waysOut()}`);
  return java;
}

async function checkJava(): Promise<void> {
  const java = await findJava();
  const { stderr } = await new Deno.Command(java, { args: ["-version"], stdin: "null" }).output();
  const version = /version "(?:1\.)?(?<major>\d+)/.exec(decode(stderr))?.groups?.["major"];
  // Where it has none, such as macOS' stand-in, it says so itself.
  if (version === undefined) throw new Error(`Cannot run Java (${java}): ${decode(stderr).trim()}\n${waysOut()}`);
  if (Number(version) < MIN_JAVA) {
    throw new Error(`Cannot use Java ${version} (${java}): Kafka needs ${MIN_JAVA} or newer\n${waysOut()}`);
  }
}

function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
