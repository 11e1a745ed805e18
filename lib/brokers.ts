import { isIP } from "node:net";
import {
  apiVersionsV3,
  Connection,
  createTopicsV2,
  createTopicsV4,
  createTopicsV7,
  metadataV12,
  metadataV4,
  metadataV9,
  produceV3,
  produceV8,
  produceV9,
  protocolErrors,
  protocolErrorsCodesById,
  ResponseError,
  Writer,
} from "@platformatic/kafka";
import type { KafkaSettings, NewTopicSettings } from "./config.ts";
import { encodeProduceRequest, type Part } from "./produce_request.ts";
import type { OutgoingMessage } from "./spool_file.ts";
import { Timer } from "./timer.ts";
import { formatDuration } from "./value.ts";

/** What a broker says of a topic or partition that it does not take. */
export interface Answer {
  /** Name of the error's code, such as `TOPIC_AUTHORIZATION_FAILED`. */
  readonly code: string;
  /** What that means. */
  readonly message: string;
  /** Whether it may pass by itself, in a moment. */
  readonly canRetry: boolean;
}

/** Nodes that lead a topic's partitions, by partition; -1 where none does. */
export type Leaders = readonly number[];

/** A broker said nothing for so long that its connection was closed. */
export class SilenceError extends Error {
  /** Tells this class apart. */
  override readonly name = "SilenceError" as const;
}

interface Address {
  readonly host: string;
  readonly port: number;
}

/** Versions of a request that a broker takes. */
interface Versions {
  readonly minVersion: number;
  readonly maxVersion: number;
}

/** A connection that is used. */
interface Link {
  /** `host:port`. */
  readonly name: string;
  readonly connection: Connection;
  /** By request. */
  versions: ReadonlyMap<number, Versions>;
  /** Why it ended. */
  failure?: Error;
}

/** The newest first; the first that a broker takes too is used. */
const PRODUCE = [produceV9, produceV8, produceV3];
const METADATA = [metadataV12, metadataV9, metadataV4];
const CREATE_TOPICS = [createTopicsV7, createTopicsV4, createTopicsV2];
/** From this version on of a request to produce. */
const FLEXIBLE_PRODUCE = 9;

const CLIENT_ID = "site_checker";
const CONNECT_TIMEOUT_MS = 3_000;
const REQUEST_TIMEOUT_MS = 30_000;
/** Where there are other brokers, one that says nothing is not waited for as long. */
const LOOK_UP_PATIENCE_MS = 10_000;
/** Replicas that are away hold up an answer for 9 s, until the cluster leaves them out (broker.session.timeout.ms). */
const PRODUCE_PATIENCE_MS = 15_000;
/** Of replicas that are slow. */
const PRODUCE_TIMEOUT_MS = 25_000;
/** A thousand topics at once take a while. */
const CREATE_TIMEOUT_MS = 25_000;
const ALL_REPLICAS = -1;
/** Of partitions, copies: the broker's own. */
const DEFAULT = -1;
const DONE = 0;

/**
 * Connections to the brokers, for those who publish. It knows `@platformatic/kafka` (and so does `produce_request.ts`, its
 * checksum alone): connection and requests rather than its producer, which tries all topics again where one fails, and
 * names a wrong one where a topic is gone.
 */
export class Brokers implements AsyncDisposable {
  readonly #settings: KafkaSettings;
  /** By `host:port`. */
  readonly #links = new Map<string, Promise<Link>>();
  /** All that are not closed. */
  readonly #open = new Set<Link>();
  #nodes = new Map<number, Address>();
  #controller = DEFAULT;
  #closed = false;

  /** Connects when it is used. */
  constructor(settings: KafkaSettings) {
    this.#settings = settings;
  }

  /** Whether it knows several addresses, of which one may do what another does not. */
  get areSeveral(): boolean {
    return this.#addresses().size > 1;
  }

  /**
   * Connects to any broker.
   *
   * @throws What the last of them answered, when none can be reached.
   */
  async connect(): Promise<void> {
    await this.#any();
  }

  /**
   * Asks which nodes lead the topics' partitions, or what is wrong with a topic.
   *
   * @param make Whether brokers may make what is not there, if they are set to do that.
   */
  async lookUp(topics: readonly string[], { make }: { make: boolean }): Promise<Map<string, Leaders | Answer>> {
    const link = await this.#any();
    const { api } = pick(METADATA, link);
    const { brokers, controllerId, topics: found } = await ask(
      link,
      (connection) => api.async(connection, [...topics], make),
      this.#patience(LOOK_UP_PATIENCE_MS),
    );
    this.#nodes = new Map(brokers.map(({ nodeId, host, port }) => [nodeId, { host, port }]));
    this.#controller = controllerId;
    const result = new Map<string, Leaders | Answer>();
    for (const { name, errorCode, partitions } of found) {
      if (typeof name !== "string") continue;
      if (errorCode !== DONE) {
        result.set(name, answerOf(errorCode));
        continue;
      }
      const leaders: number[] = Array(partitions.length).fill(-1);
      for (const { partitionIndex, leaderId } of partitions) leaders[partitionIndex] = leaderId;
      result.set(name, leaders);
    }
    return result;
  }

  /**
   * Makes topics.
   *
   * @returns What was answered of those that were not made.
   */
  async createTopics(
    topics: readonly string[],
    { partitions, replicationFactor, retentionMs }: NewTopicSettings,
  ): Promise<Map<string, Answer>> {
    const link = await this.#node(this.#controller);
    const { api } = pick(CREATE_TOPICS, link);
    const wanted = topics.map((name) => ({
      name,
      numPartitions: partitions ?? DEFAULT,
      replicationFactor: replicationFactor ?? DEFAULT,
      assignments: [],
      configs: retentionMs === null ? [] : [{ name: "retention.ms", value: String(retentionMs) }],
    }));
    const { topics: made } = await ask(link, (connection) => api.async(connection, wanted, CREATE_TIMEOUT_MS, false));
    const failed = new Map<string, Answer>();
    for (const { name, errorCode, errorMessage } of made) {
      if (errorCode !== DONE) failed.set(name, answerOf(errorCode, errorMessage));
    }
    return failed;
  }

  /**
   * Sends parts, each of another partition, to the node that leads them, and waits until all in-sync replicas have them.
   *
   * @returns What was answered of those that were not appended.
   * @throws What the connection failed of, {@linkcode SilenceError} where the node does not answer; any of them may have
   * been appended.
   */
  async produce<M extends OutgoingMessage>(node: number, parts: readonly Part<M>[]): Promise<Map<Part<M>, Answer>> {
    const link = await this.#node(node);
    const { api: { key, version }, parseResponse } = pick(PRODUCE, link);
    const isFlexible = version >= FLEXIBLE_PRODUCE;
    const body = await encodeProduceRequest(parts, { isFlexible, acks: ALL_REPLICAS, timeoutMs: PRODUCE_TIMEOUT_MS });
    const request = (connection: Connection) =>
      new Promise<ReturnType<typeof parseResponse>>((resolve, reject) => {
        connection.send(
          key,
          version,
          () => Writer.create().append(body),
          parseResponse as typeof produceV9.parseResponse,
          isFlexible,
          isFlexible,
          (error, answer) => error ? reject(error) : resolve(answer!),
        );
      });
    const answer = await ask(link, request, this.#patience(PRODUCE_PATIENCE_MS));
    const failed = new Map<Part<M>, Answer>();
    for (const { name, partitionResponses } of answer.responses) {
      for (const partition of partitionResponses) {
        if (partition.errorCode === DONE) continue;
        const part = parts.find((part) => part.topic === name && part.partition === partition.index);
        if (part === undefined) continue;
        failed.set(part, answerOf(partition.errorCode, "errorMessage" in partition ? partition.errorMessage : null));
      }
    }
    return failed;
  }

  /** Closes the connections at once, whatever is under way. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#open].map(close));
  }

  /** A connection to any broker, rather one that is there. */
  async #any(): Promise<Link> {
    const addresses = this.#addresses();
    const open = [...this.#links.keys()].filter((key) => addresses.has(key));
    let failure: unknown;
    for (const key of new Set([...open, ...addresses.keys()])) {
      try {
        return await this.#link(addresses.get(key)!);
      } catch (error) {
        failure = error;
      }
    }
    throw failure;
  }

  /** Those that are told of by the settings and by the brokers, by `host:port`. */
  #addresses(): Map<string, Address> {
    const all = [...this.#settings.bootstrapServers.map(addressOf), ...this.#nodes.values()];
    return new Map(all.map((address) => [keyOf(address), address]));
  }

  #patience(ms: number): number {
    return this.areSeveral ? ms : REQUEST_TIMEOUT_MS;
  }

  async #node(node: number): Promise<Link> {
    const address = this.#nodes.get(node);
    return address === undefined ? await this.#any() : await this.#link(address);
  }

  #link(address: Address): Promise<Link> {
    const key = keyOf(address);
    const known = this.#links.get(key);
    if (known !== undefined) return known;
    const forget = () => void (this.#links.get(key) === link && this.#links.delete(key));
    const link = this.#connect(address, forget);
    this.#links.set(key, link);
    link.catch(forget);
    return link;
  }

  async #connect({ host, port }: Address, onClosed: () => void): Promise<Link> {
    if (this.#closed) throw new Error("The connections to the brokers are closed");
    const { tls } = this.#settings;
    const connection = new Connection(CLIENT_ID, {
      connectTimeout: CONNECT_TIMEOUT_MS,
      requestTimeout: REQUEST_TIMEOUT_MS,
      maxInflights: 1,
      ...(tls !== null && {
        tls: { ...(tls.ca && { ca: [tls.ca] }), ...(tls.cert && { cert: tls.cert }), ...(tls.key && { key: tls.key }) },
        tlsServerName: isIP(host) === 0,
      }),
    });
    const link: Link = { name: keyOf({ host, port }), connection, versions: new Map() };
    this.#open.add(link);
    const end = () => {
      this.#open.delete(link);
      onClosed();
    };
    connection.on("error", (error) => {
      // A request that is under way is told only that its connection is closed.
      link.failure ??= innermost(error);
      end();
    });
    connection.on("close", end);
    try {
      await connection.connect(host, port);
      // Brokers of a cluster may be of different versions while they are renewed.
      link.versions = await versionsOf(link, this.#patience(LOOK_UP_PATIENCE_MS));
      return link;
    } catch (error) {
      await close(link);
      end();
      throw link.failure ?? innermost(error);
    }
  }
}

/** The newest version of a request that is known here and there. */
function pick<R extends { readonly api: { readonly key: number; readonly version: number } }>(
  requests: readonly R[],
  { versions }: Link,
): R {
  for (const request of requests) {
    const { key, version } = request.api;
    const { minVersion, maxVersion } = versions.get(key) ?? { minVersion: 0, maxVersion: -1 };
    if (minVersion <= version && version <= maxVersion) return request;
  }
  throw new Error("The brokers' version of Kafka is not supported");
}

async function versionsOf(link: Link, patienceMs: number): Promise<Map<number, Versions>> {
  const request = (connection: Connection) => apiVersionsV3.api.async(connection, "site-checker", "1");
  const { apiKeys } = await ask(link, request, patienceMs);
  return new Map(apiKeys.map(({ apiKey, ...versions }) => [apiKey, versions]));
}

/** What is answered, errors of single topics among it; closes a connection that says nothing. */
async function ask<T>(
  link: Link,
  request: (connection: Connection) => Promise<T>,
  patienceMs: number = REQUEST_TIMEOUT_MS,
): Promise<T> {
  using _patience = new Timer(patienceMs, () => {
    link.failure ??= new SilenceError(`no answer from ${link.name} within ${formatDuration(patienceMs)}`);
    close(link);
  });
  try {
    return await request(link.connection);
  } catch (error) {
    if (error instanceof ResponseError) return error["response"] as T;
    throw link.failure ?? innermost(error);
  }
}

/** Closes at once: closing in order waits for a broker that may never take what was sent. */
async function close({ connection }: Link): Promise<void> {
  const { socket } = connection;
  connection.close(() => {});
  if (socket === undefined || socket.closed) return;
  const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()));
  socket.on("error", () => {});
  socket.destroy();
  await closed;
}

/** What the client wraps, several times. */
function innermost(error: unknown): Error {
  let inner = error;
  for (let depth = 0; depth < 8 && inner instanceof Error && inner.cause instanceof Error; depth++) inner = inner.cause;
  return inner instanceof Error ? inner : new Error(String(inner));
}

function answerOf(errorCode: number, said: string | null = null): Answer {
  const code = protocolErrorsCodesById[errorCode] ?? `error ${errorCode}`;
  const known = protocolErrors[code];
  return { code, message: (said || known?.message || code).replace(/\.$/, ""), canRetry: known?.canRetry ?? false };
}

function addressOf(server: string): Address {
  const colon = server.lastIndexOf(":");
  return { host: server.slice(0, colon), port: Number(server.slice(colon + 1)) };
}

function keyOf({ host, port }: Address): string {
  return `${host}:${port}`;
}
