import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { dirname } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import {
  AclOperationTypes,
  AclPermissionTypes,
  AclResourceTypes,
  type Admin,
  Kafka,
  logLevel,
  Partitioners,
  ResourcePatternTypes,
} from "kafkajs";
import pg from "pg";
import type { PublishSettings } from "../lib/config.ts";
import { silenceTimeoutWarning } from "../lib/kafka.ts";
import type { Log } from "../lib/log.ts";
import type { Publishing } from "../lib/publishing.ts";
import { type Setting, SETTINGS, variableNames } from "../lib/setting.ts";
import type { OutgoingMessage } from "../lib/spool_file.ts";
import { runKafkaTool } from "../local/kafka.ts";
import { REPOSITORY } from "../local/repository.ts";
import { taskCommand } from "../local/task.ts";
import { TEST_STACK, type TestStack } from "../local/test.ts";

/** The broker and the database of this test run. */
export function testStack(): TestStack {
  const text = Deno.env.get(TEST_STACK);
  if (text === undefined) throw new Error("Cannot find the tests' stack: run them by deno task test [file]");
  return JSON.parse(text);
}

/** Name that no other test has. */
export function uniqueName(prefix: string): string {
  return `${prefix}-${crypto.randomUUID().slice(0, 8)}`;
}

/** Waits until something holds. */
export async function eventually<T>(
  probe: () => Promise<T | undefined | false> | T | undefined | false,
  { timeoutMs = 20_000, what = "what the test waits for" }: { timeoutMs?: number; what?: string } = {},
): Promise<T> {
  const until = performance.now() + timeoutMs;
  for (;;) {
    const value = await probe();
    if (value !== undefined && value !== false) return value;
    if (performance.now() > until) throw new Error(`Waited in vain for ${what}`);
    await delay(50);
  }
}

/** Options of {@linkcode startProgram}. */
export interface ProgramOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** The system's limit on its open files. Default: that of the tests. */
  readonly openFiles?: number;
}

/** What a program printed, and its exit code. */
export interface Result {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** A program that runs. */
export interface Running extends AsyncDisposable {
  readonly pid: number;
  /** What it has printed so far. */
  readonly output: { stdout: string; stderr: string };
  /** Its end. */
  readonly ended: Promise<Result>;
  /** Sends a signal, and waits for its end. */
  stop(signal: Deno.Signal): Promise<Result>;
  /** Waits for a line on standard error. */
  waitFor(text: string | RegExp, timeoutMs?: number): Promise<void>;
}

/** The tests' own environment (where caches are, say) without the variables of any setting. */
export function cleanEnvironment(): Record<string, string> {
  const variables = new Set([
    ...["NAME", "CONFIG_PATH", "KAFKA_TOPIC"],
    ...Object.values(SETTINGS).flatMap((section) =>
      Object.entries<Setting<unknown>>(section).flatMap(([key, setting]) => variableNames(key, setting))
    ),
  ]);
  return {
    ...Object.fromEntries(Object.entries(Deno.env.toObject()).filter(([name]) => !variables.has(name))),
    NO_COLOR: "1",
  };
}

/** Starts producer.ts or consumer.ts as its task does. */
export function startProgram(
  task: "producer" | "consumer",
  args: readonly string[],
  { env = {}, cwd = REPOSITORY, openFiles }: ProgramOptions = {},
): Running {
  const { command, args: own } = taskCommand(task);
  // Each producer has a spool of its own, unless the test names one.
  const folder = env["SPOOL_PATH"] === undefined ? Deno.makeTempDirSync() : undefined;
  const spool = env["SPOOL_PATH"] ?? `${folder}/spool.db`;
  const script = own.map((arg) =>
    arg === `${task}.ts`
      ? `${REPOSITORY}/${arg}`
      : arg === "--allow-write=spool"
      ? `--allow-write=${dirname(spool)}`
      : arg
  );
  const limited = openFiles === undefined ? [] : ["-c", `ulimit -n ${openFiles}; exec "$0" "$@"`, command];
  const child = new Deno.Command(openFiles === undefined ? command : "sh", {
    args: [...limited, ...script, ...args],
    cwd,
    env: { ...cleanEnvironment(), SPOOL_PATH: spool, ...env },
    clearEnv: true,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const output = { stdout: "", stderr: "" };
  const reading = (["stdout", "stderr"] as const).map(async (name) => {
    for await (const text of child[name].pipeThrough(new TextDecoderStream())) output[name] += text;
  });
  let over = false;
  const ended = Promise.all([child.status, ...reading]).then(([{ code }]) => {
    over = true;
    if (folder !== undefined) Deno.removeSync(folder, { recursive: true });
    return { code, ...output };
  });
  return {
    pid: child.pid,
    output,
    ended,
    stop(signal) {
      if (!over) child.kill(signal);
      return ended;
    },
    async waitFor(text, timeoutMs = 20_000) {
      await eventually(
        () => {
          const found = typeof text === "string" ? output.stderr.includes(text) : text.test(output.stderr);
          if (!found && over) throw new Error(`The program ended without "${text}":\n${output.stderr}`);
          return found;
        },
        { timeoutMs, what: `"${text}" in:\n${output.stderr}` },
      );
    },
    async [Symbol.asyncDispose]() {
      if (!over) child.kill("SIGKILL");
      await ended;
    },
  };
}

/** Runs producer.ts or consumer.ts to its end. */
export function runProgram(
  task: "producer" | "consumer",
  args: readonly string[],
  options?: ProgramOptions,
): Promise<Result> {
  return startProgram(task, args, options).ended;
}

/** Runs a program, and fails where it does. */
export async function runWell(
  task: "producer" | "consumer",
  args: readonly string[],
  options?: ProgramOptions,
): Promise<Result> {
  const result = await runProgram(task, args, options);
  assert.equal(result.code, 0, `${task} ${args.join(" ")} exits ${result.code}:\n${result.stderr}`);
  return result;
}

/** A file in a folder of its own. */
export async function temporaryFile(name: string, text: string): Promise<{ readonly path: string } & AsyncDisposable> {
  const folder = await Deno.makeTempDir();
  await Deno.writeTextFile(`${folder}/${name}`, text);
  return { path: `${folder}/${name}`, [Symbol.asyncDispose]: () => Deno.remove(folder, { recursive: true }) };
}

/** A web server on a free port. */
export interface TestSite extends AsyncDisposable {
  readonly url: string;
  /** Requests that came. */
  visits: number;
}

/** Starts a web server. */
export function startSite(answer: (request: Request) => Response | Promise<Response>): TestSite {
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, (request) => {
    site.visits++;
    return answer(request);
  });
  const site: TestSite = {
    url: `http://127.0.0.1:${server.addr.port}/`,
    visits: 0,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
  return site;
}

/** A database of a test's own. */
export interface TestDatabase extends AsyncDisposable {
  readonly name: string;
  /** Flags with which the consumer reaches it. */
  readonly flags: readonly string[];
  query<T extends pg.QueryResultRow>(sql: string, values?: unknown[]): Promise<T[]>;
}

/** Makes a database, which is dropped at the end. */
export async function makeDatabase(): Promise<TestDatabase> {
  const { host, port, user, password } = testStack().postgres;
  const name = `test_${crypto.randomUUID().replaceAll("-", "").slice(0, 12)}`;
  const admin = async (sql: string) => {
    const client = new pg.Client({ ...testStack().postgres });
    await client.connect();
    await client.query(sql);
    await client.end();
  };
  await admin(`CREATE DATABASE ${name}`);
  const pool = new pg.Pool({ host, port, user, password, database: name, max: 2 });
  pool.on("error", () => {});
  return {
    name,
    flags: [
      `--postgres-host=${host}`,
      `--postgres-port=${port}`,
      `--postgres-user=${user}`,
      `--postgres-password=${password}`,
      `--postgres-database=${name}`,
    ],
    query: async <T extends pg.QueryResultRow>(sql: string, values: unknown[] = []) =>
      (await pool.query<T>(sql, values)).rows,
    async [Symbol.asyncDispose]() {
      await pool.end();
      await admin(`DROP DATABASE ${name} WITH (FORCE)`);
    },
  };
}

/** Flags with which both programs reach the tests' broker in plain text. */
export function kafkaFlags(): string[] {
  return [`--kafka-bootstrap-servers=${testStack().kafka}`];
}

/** A message for {@linkcode publish}. */
export interface TestMessage {
  readonly value: string | Uint8Array | null;
  readonly key?: string;
  readonly timestamp?: string;
}

/** kafkajs sets a timer with a negative time, see lib/kafka.ts; tests need not show it. */
silenceTimeoutWarning();

/** Publishes messages as they are, in one request. */
export async function publish(
  topic: string,
  messages: readonly (TestMessage | string)[],
  broker: string = testStack().kafka,
): Promise<void> {
  const kafka = new Kafka({ brokers: [broker], logLevel: logLevel.NOTHING });
  await administer((admin) => admin.createTopics({ topics: [{ topic }] }), broker);
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
  await producer.connect();
  await producer.send({
    topic,
    messages: messages.map((message) => {
      const { value, ...rest } = typeof message === "string" ? { value: message } : message;
      return { ...rest, value: value instanceof Uint8Array ? Buffer.from(value) : value };
    }),
  });
  await producer.disconnect();
}

/** Does something with an administrator of a broker. */
export async function administer<T>(
  work: (admin: Admin) => Promise<T>,
  server: string = testStack().kafka,
): Promise<T> {
  const admin = new Kafka({ brokers: [server], logLevel: logLevel.NOTHING }).admin();
  await admin.connect();
  try {
    return await work(admin);
  } finally {
    await admin.disconnect();
  }
}

/** What everybody may or may not do with a topic. */
export interface Rule {
  readonly topic: string;
  readonly operation: "READ" | "WRITE" | "DESCRIBE";
  readonly permission: "ALLOW" | "DENY";
}

/**
 * Sets a rule at a broker that looks at them (`accessControl`); what a topic's rules do not allow is denied then.
 *
 * @returns What lifts the rule.
 */
export async function setRule(server: string, { topic, operation, permission }: Rule): Promise<() => Promise<void>> {
  const rule = {
    resourceType: AclResourceTypes.TOPIC,
    resourceName: topic,
    resourcePatternType: ResourcePatternTypes.LITERAL,
    principal: "User:ANONYMOUS",
    host: "*",
    operation: AclOperationTypes[operation],
    permissionType: AclPermissionTypes[permission],
  };
  await administer((admin) => admin.createAcls({ acl: [rule] }), server);
  return async () => void await administer((admin) => admin.deleteAcls({ filters: [rule] }), server);
}

/** Committed offsets of a group, by topic; −1 where nothing is committed. */
export async function committedOffset(groupId: string, topic: string): Promise<number> {
  const [offsets] = await administer((admin) => admin.fetchOffsets({ groupId, topics: [topic] }));
  return Number(offsets?.partitions[0]?.offset ?? -1);
}

/** Commits an offset of partition 0 for a group without members. */
export async function commitOffset(groupId: string, topic: string, offset: number): Promise<void> {
  await administer((admin) =>
    admin.setOffsets({ groupId, topic, partitions: [{ partition: 0, offset: String(offset) }] })
  );
}

/** Consumer groups that there are. */
export async function groups(): Promise<string[]> {
  const { groups } = await administer((admin) => admin.listGroups());
  return groups.map(({ groupId }) => groupId);
}

/** A record as Kafka's own console consumer prints it. */
export interface ConsoleRecord {
  readonly timestamp: number;
  readonly headers: string;
  readonly key: string;
  readonly value: Record<string, unknown>;
}

/** Reads a topic by Kafka's own console consumer, which is no client of ours. */
export async function readByConsole(
  topic: string,
  messages: number,
  server: string = testStack().kafka,
): Promise<ConsoleRecord[]> {
  const properties = ["timestamp", "headers", "key"].flatMap((name) => ["--property", `print.${name}=true`]);
  const text = await runKafkaTool("org.apache.kafka.tools.consumer.ConsoleConsumer", [
    "--bootstrap-server",
    server,
    "--topic",
    topic,
    "--from-beginning",
    "--max-messages",
    String(messages),
    "--timeout-ms",
    "20000",
    ...properties,
  ]);
  return text.trim().split("\n").map((line) => {
    const [timestamp = "", headers = "", key = "", ...value] = line.split("\t");
    return {
      timestamp: Number(timestamp.replace("CreateTime:", "")),
      headers,
      key,
      value: JSON.parse(value.join("\t")),
    };
  });
}

/** A log whose lines a test can read. */
export function logOf(lines: string[]): Log {
  const line = (message: string, properties: Record<string, unknown> = {}) =>
    void lines.push(message.replaceAll(/\{(\w+)\}/g, (_, name) => String(properties[name])));
  return { debug: () => {}, info: line, warn: line, error: line };
}

/** Settings of a producer for a broker without TLS. */
export function publishSettings(
  bootstrapServers: string,
  newTopics: Partial<PublishSettings["newTopics"]> = {},
): PublishSettings {
  return {
    bootstrapServers: [bootstrapServers],
    tls: null,
    sharedTopic: null,
    newTopics: { partitions: null, replicationFactor: null, retentionMs: null, ...newTopics },
  };
}

/** A message whose value says no more than some text. */
export function messageOf(topic: string, value: string): OutgoingMessage {
  return { topic, key: topic, value: Buffer.from(JSON.stringify({ value })), timestamp: Date.now() };
}

/** Ends it with the test, however that ends. */
export function drained(publishing: Publishing): Publishing & AsyncDisposable {
  return Object.assign(publishing, { [Symbol.asyncDispose]: async () => void await publishing.drain(0) });
}

/** A message of the producer, for a check of a site at a time. */
export function metricMessage(name: string, changes: Record<string, unknown> = {}): string {
  return JSON.stringify({
    id: crypto.randomUUID(),
    occurred_at: new Date().toISOString(),
    name,
    url: "http://127.0.0.1/",
    verdict: "up",
    attempt: 1,
    final: true,
    status_code: 200,
    ...changes,
  });
}
