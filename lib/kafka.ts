import { randomUUID } from "node:crypto";
import { Buffer } from "node:buffer";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import {
  type Admin,
  AssignerProtocol,
  type Batch,
  CompressionTypes,
  type Consumer,
  type ITopicConfig,
  Kafka,
  logLevel,
  type Message,
  type PartitionAssigner,
  Partitioners,
  type Producer,
  type RetryOptions,
  type TopicMessages,
} from "kafkajs";
import { assignPartitions, type Member } from "./assignment.ts";
import type { KafkaSettings, NewTopicSettings, OffsetPlace, PublishSettings, TopicSelection } from "./config.ts";
import { ConfigError, errorCode, errorMessage } from "./error.ts";
import type { Log } from "./log.ts";
import { type KafkaMessage, METRIC_VERSION } from "./metric.ts";
import { retryForever } from "./retry.ts";
import { sleepUntilAborted, whenAborted } from "./schedule.ts";
import type { OutgoingMessage } from "./spool.ts";

/** Time after which a member that says nothing has left its group: rows move again soon after a `kill -9`. */
export const SESSION_TIMEOUT_MS = 10_000;

const HEARTBEAT_INTERVAL_MS = 2_000;
/** What a fetch brings at most: enough for a transaction or two, and little that waits in memory. */
const MAX_FETCH_BYTES = 8 * 1024 * 1024;
const MAX_FETCH_PARTITION_BYTES = 4 * 1024 * 1024;
/** How long a broker may hold an empty fetch; stopping waits for it, and so does each change of topics. */
const MAX_FETCH_WAIT_MS = 500;
/** Leaving a group takes an answer of brokers, which may be away. */
const DISCONNECT_TIMEOUT_MS = 3_000;
/**
 * How a member waits for brokers: as long as its session lasts, since a new one would have to wait until the group has
 * given it up.
 */
const MEMBER_RETRY = { retries: 20, maxRetryTime: 1_000 } as const;
/** New topics are looked for this often. */
const DISCOVERY_INTERVAL_MS = 3_000;
/** A topic that can't be stored or published now is tried again after this. */
const BLOCKED_TOPIC_WAIT_MS = 10_000;
const PARTITIONS_IN_FLIGHT = 200;
const TOPICS_PER_CLIENT = 50;
/** A broker takes 1 MB a partition and request unless told otherwise; metrics of one topic are sent in parts of this. */
const MAX_TOPIC_BYTES = 500_000;
const UNTRUSTED_REGEXP = /CERT|UNABLE_TO_|ERR_TLS_|ERR_SSL_/;

/** A group of which another live member holds partitions. */
export class GroupBusyError extends Error {
  /** Tells this class apart. */
  override readonly name = "GroupBusyError" as const;
}

/** Options of all clients. */
export interface ClientOptions {
  /** Where to tell what goes on. */
  readonly log: Log;
}

/** A message that Kafka will never take as it is. */
export interface Refusal<M extends OutgoingMessage> {
  /** It. */
  readonly message: M;
  /** Why. */
  readonly reason: string;
}

/** What became of messages; those of a topic that is named in `delayed` and in no list are still to be published. */
export interface PublishResult<M extends OutgoingMessage> {
  /** All in-sync replicas have these. */
  readonly acknowledged: M[];
  /** Kafka will never take these as they are. */
  readonly refused: Refusal<M>[];
  /** Reasons by topic, of topics that Kafka does not take now. */
  readonly delayed: Map<string, string>;
}

/** What Kafka says of messages that it will never take as they are. */
const REFUSALS: ReadonlySet<string> = new Set([
  "MESSAGE_TOO_LARGE",
  "RECORD_LIST_TOO_LARGE",
  "INVALID_RECORD",
  "INVALID_TOPIC_EXCEPTION",
  "TOPIC_AUTHORIZATION_FAILED",
]);
/** Of these, one message may be the cause, and the topic's others be fine. */
const REFUSALS_OF_ONE: ReadonlySet<string> = new Set(["MESSAGE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_RECORD"]);
/** All topics together, a broker takes 100 MB a request unless told otherwise. */
const MAX_REQUEST_BYTES = 16_000_000;
const TOPICS_PER_LANE = 200;
/** A thousand topics at once take a while. */
const CREATE_TIMEOUT_MS = 30_000;
/** Brokers lead a new topic a while after they say so; a batch that comes too early is appended in part, and again. */
const LEADER_DELAY_MS = 3;
const MAX_LEADER_DELAY_MS = 5_000;
/** Of a topic's part, from which on compressing costs less than sending: a few records that are alike. */
const MIN_GZIP_BYTES = 4_000;

/** Publishes messages. */
export class Publisher implements AsyncDisposable {
  readonly #settings: PublishSettings;
  readonly #log: Log;
  readonly #kafka: Kafka;
  readonly #admin: Admin;
  readonly #lanes: Lane[] = [];
  readonly #laneOf = new Map<string, Lane>();
  /** Topics that need not be made. */
  readonly #known = new Set<string>();
  #connected = false;

  /** Connects with the first call of {@linkcode Publisher.publish}. */
  constructor(settings: PublishSettings, { log }: ClientOptions) {
    this.#settings = settings;
    this.#log = log;
    this.#kafka = createKafka(settings, log);
    this.#admin = this.#kafka.admin({ retry: { retries: 2 } });
  }

  /**
   * Publishes messages of any topics, each topic's in their order, and waits until all in-sync replicas have them.
   *
   * @throws {ConfigError} when the brokers' certificates are not trusted or they don't trust ours, at the first try.
   * @throws What the client throws, when no broker can be reached; any of the messages may have arrived. Where some can
   * be, what these have is acknowledged.
   */
  async publish<M extends OutgoingMessage>(messages: readonly M[]): Promise<PublishResult<M>> {
    await this.#connect();
    const result: PublishResult<M> = { acknowledged: [], refused: [], delayed: new Map() };
    await this.#createTopics(new Set(messages.map(({ topic }) => topic)), result.delayed);
    const lanes = [...Map.groupBy(messages, ({ topic }) => this.#findLane(topic))];
    const sent = await Promise.allSettled(lanes.map(async ([lane, ofLane]) => {
      for (const { round, compression } of rounds(ofLane)) await this.#send(round, { lane, compression, result });
    }));
    const failed = sent.find(({ status }) => status === "rejected");
    if (failed?.status === "rejected" && result.acknowledged.length === 0) throw failed.reason;
    return result;
  }

  /** Closes the connections. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled([this.#admin.disconnect(), ...this.#lanes.map((lane) => lane[Symbol.asyncDispose]())]);
  }

  #findLane(topic: string): Lane {
    const known = this.#laneOf.get(topic);
    if (known !== undefined) return known;
    let lane = this.#lanes.at(-1);
    if (lane === undefined || this.#laneOf.size >= this.#lanes.length * TOPICS_PER_LANE) {
      this.#lanes.push(lane = new Lane(this.#kafka));
    }
    this.#laneOf.set(topic, lane);
    return lane;
  }

  async #connect(): Promise<void> {
    if (this.#connected) return;
    try {
      await this.#admin.connect();
    } catch (error) {
      throw asConfigError(error, this.#settings);
    }
    this.#connected = true;
  }

  /** Makes topics that are not there; where the broker does not allow us to, it may make them itself. */
  async #createTopics(topics: ReadonlySet<string>, delayed: Map<string, string>): Promise<void> {
    const unknown = [...topics].filter((topic) => !this.#known.has(topic));
    if (unknown.length === 0) return;
    const existing = await this.#listTopics();
    const missing = unknown.filter((topic) => !existing.has(topic));
    const failed = new Map<string, string>();
    if (missing.length > 0) {
      try {
        const settings = topicSettings(this.#settings.newTopics);
        await this.#admin.createTopics({
          topics: missing.map((topic) => ({ topic, ...settings })),
          waitForLeaders: true,
          timeout: CREATE_TIMEOUT_MS,
        });
      } catch (error) {
        if (!(error instanceof Error && "errors" in error && Array.isArray(error.errors))) throw error;
        for (const one of error.errors as (Error & { type?: string; topic?: string })[]) {
          if (one.topic !== undefined) failed.set(one.topic, one.type ?? errorMessage(one));
          if (one.topic === undefined || LEFT_TO_BROKER_REGEXP.test(one.type ?? "")) continue;
          delayed.set(one.topic, `it can't be made: ${errorMessage(one)}`);
        }
      }
      const made = missing.filter((topic) => !failed.has(topic));
      if (made.length > 0) {
        this.#log.info("Made {topics}", { topics: shorten(made) });
        await delay(Math.min(made.length * LEADER_DELAY_MS, MAX_LEADER_DELAY_MS));
      }
    }
    for (const topic of unknown) if (!delayed.has(topic)) this.#known.add(topic);
  }

  async #listTopics(): Promise<ReadonlySet<string>> {
    try {
      return new Set(await this.#admin.listTopics());
    } catch (error) {
      // Of any topic, be it none of ours: making ours tells which are there.
      if (protocolError(error) === undefined) throw error;
      return new Set();
    }
  }

  async #send<M extends OutgoingMessage>(
    messages: readonly M[],
    { lane, compression, result }: SendOptions<M>,
  ): Promise<void> {
    const byTopic = Map.groupBy(messages.filter(({ topic }) => !result.delayed.has(topic)), ({ topic }) => topic);
    if (byTopic.size === 0) return;
    try {
      await lane.send(byTopic, compression);
      for (const ofTopic of byTopic.values()) result.acknowledged.push(...ofTopic);
    } catch (error) {
      const answer = protocolError(error);
      if (answer === undefined) throw error;
      await lane.startOver();
      // One of the topics failed; which one, only sending parts of them tells.
      const parts = halves([...byTopic.values()]);
      if (parts !== undefined) {
        for (const part of parts) await this.#send(part.flat(), { lane, compression, result });
        return;
      }
      const [[topic, ofTopic]] = byTopic as Iterable<[string, M[]]> as [[string, M[]]];
      await this.#sendTopic(topic, ofTopic, { answer, lane, compression, result });
    }
  }

  /** Deals with a topic whose messages failed together. */
  async #sendTopic<M extends OutgoingMessage>(
    topic: string,
    messages: readonly M[],
    { answer, lane, compression, result }: SendOptions<M> & { readonly answer: Error & { type: string } },
  ): Promise<void> {
    const { type } = answer;
    if (type === "INVALID_TIMESTAMP" && messages.some(({ timestamp }) => timestamp !== NOW)) {
      // The messages themselves are handed back as they came.
      const dated = messages.map((message) => ({ ...message, timestamp: NOW }));
      const again: PublishResult<M> = { acknowledged: [], refused: [], delayed: result.delayed };
      await this.#send(dated, { lane, compression, result: again });
      const original = (message: M) => messages[dated.indexOf(message)] ?? message;
      result.acknowledged.push(...again.acknowledged.map(original));
      result.refused.push(...again.refused.map(({ message, reason }) => ({ message: original(message), reason })));
      return;
    }
    const parts = REFUSALS_OF_ONE.has(type) ? halves(messages) : undefined;
    if (parts !== undefined) {
      for (const part of parts) await this.#send(part, { lane, compression, result });
      return;
    }
    this.#known.delete(topic);
    const reason = `${errorMessage(answer)} (${type})`;
    if (REFUSALS.has(type)) result.refused.push(...messages.map((message) => ({ message, reason })));
    else result.delayed.set(topic, reason);
  }
}

interface SendOptions<M extends OutgoingMessage> {
  readonly lane: Lane;
  readonly compression: CompressionTypes;
  readonly result: PublishResult<M>;
}

/** A client for some of the topics: kafkajs looks each of its topics up among all of them, each time that it sends. */
class Lane implements AsyncDisposable {
  readonly #kafka: Kafka;
  #producer: Producer;
  #connected = false;

  constructor(kafka: Kafka) {
    this.#kafka = kafka;
    this.#producer = createProducer(kafka);
  }

  async send(byTopic: ReadonlyMap<string, readonly OutgoingMessage[]>, compression: CompressionTypes): Promise<void> {
    if (!this.#connected) await this.#producer.connect();
    this.#connected = true;
    const topicMessages = [...byTopic].map(([topic, messages]): TopicMessages => ({
      topic,
      messages: messages.map(toRecord),
    }));
    await this.#producer.sendBatch({ acks: -1, compression, topicMessages });
  }

  /** A client asks for all topics that it ever sent to, and fails for all where one is gone or has no leader. */
  async startOver(): Promise<void> {
    this.#connected = false;
    await this.#producer.disconnect();
    this.#producer = createProducer(this.#kafka);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#producer.disconnect();
  }
}

function createProducer(kafka: Kafka): Producer {
  return kafka.producer({
    // Not idempotent: kafkajs loses messages that way when one of several topics fails; ids make doubles harmless.
    idempotent: false,
    maxInFlightRequests: 1,
    allowAutoTopicCreation: true,
    createPartitioner: Partitioners.DefaultPartitioner,
    // Those who call retry; here, for a connection that the broker has closed meanwhile, and leaders that change.
    retry: { retries: 3, initialRetryTime: 300, maxRetryTime: 2_000 },
  });
}

/** Timestamp of a message whose own is refused. */
const NOW = -1;
/** Of making topics: it is there, or we may not. */
const LEFT_TO_BROKER_REGEXP = /^TOPIC_ALREADY_EXISTS$|AUTHORIZATION_FAILED$/;

function topicSettings({ partitions, replicationFactor, retentionMs }: NewTopicSettings): Partial<ITopicConfig> {
  return {
    ...(partitions !== null && { numPartitions: partitions }),
    ...(replicationFactor !== null && { replicationFactor }),
    ...(retentionMs !== null && { configEntries: [{ name: "retention.ms", value: String(retentionMs) }] }),
  };
}

/** The two halves of several, undefined for one. */
function halves<T>(items: readonly T[]): [T[], T[]] | undefined {
  if (items.length < 2) return undefined;
  const middle = Math.ceil(items.length / 2);
  return [items.slice(0, middle), items.slice(middle)];
}

/** Names some topics of many. */
function shorten(topics: readonly string[]): string {
  const shown = topics.slice(0, 10).join(", ");
  return topics.length > 10 ? `topics ${shown} and ${topics.length - 10} more` : `topics: ${shown}`;
}

/** What became of the messages that were handed over. */
export type Handled = "stored" | "blocked";

/** What is under way with messages that were handed over. */
export interface Handling {
  /** Resolves once there is room for more. */
  readonly accepted: Promise<void>;
  /** Resolves once they are stored, or can't be for now; rejects where they were dropped. */
  readonly stored: Promise<Handled>;
}

/**
 * Takes messages of one partition. The signal is aborted when they will be read again, as after the group shared its
 * partitions out anew: they can be dropped then.
 */
export type HandleMessages = (messages: KafkaMessage[], signal: AbortSignal) => Handling;

/** Options of {@linkcode Subscriber}. */
export interface SubscriberOptions extends ClientOptions {
  /** Consumer group; null for one of its own that is not kept, with nothing committed. */
  readonly groupId: string | null;
  /** What to read. */
  readonly topics: TopicSelection;
}

/** Options of {@linkcode Subscriber.run}. */
export interface RunOptions {
  /** Takes the messages. */
  readonly handle: HandleMessages;
  /** Ends the reading: what was handed over is waited for. */
  readonly signal: AbortSignal;
}

/** Place in a partition; the offset is in decimal digits. */
interface TopicPartitionOffset {
  readonly topic: string;
  readonly partition: number;
  readonly offset: string;
}

/** Partition → offset to reach, per topic. */
type Targets = Map<string, Map<number, bigint>>;

/** Reads topics as a member of a consumer group. */
export class Subscriber implements AsyncDisposable {
  readonly #settings: KafkaSettings;
  readonly #log: Log;
  readonly #kafka: Kafka;
  readonly #admin: Admin;
  readonly #groupId: string;
  readonly #commits: boolean;
  readonly #topics: TopicSelection;
  #connected = false;
  /** What the last membership read, by topic. */
  #owned: Readonly<Record<string, readonly number[]>> = {};

  /** Connects with the first call. */
  constructor(settings: KafkaSettings, { log, groupId, topics }: SubscriberOptions) {
    this.#settings = settings;
    this.#log = log;
    this.#kafka = createKafka(settings, log, MEMBER_RETRY);
    this.#admin = createKafka(settings, log).admin({ retry: { retries: 2 } });
    this.#groupId = groupId ?? `site_checker-dry-run-${randomUUID()}`;
    this.#commits = groupId !== null;
    this.#topics = topics;
  }

  /** Reads until the signal is aborted. Topics that appear later are joined; while brokers are away, it waits. */
  async run({ handle, signal }: RunOptions): Promise<void> {
    let waiting = false;
    while (!signal.aborted) {
      try {
        const topics = await this.#reach(() => this.#findTopics(), signal);
        if (topics.length === 0) {
          if (!waiting) this.#log.info("No topic to read is there yet, waiting");
          waiting = true;
          await sleepUntilAborted(DISCOVERY_INTERVAL_MS, signal);
          continue;
        }
        waiting = false;
        await this.#read({ topics, handle, signal });
      } catch (error) {
        if (signal.aborted) break;
        if (error instanceof ConfigError || error instanceof Deno.errors.NotCapable) throw error;
        this.#log.warn("Reading failed, trying again: {reason}", { reason: errorMessage(error) });
        await sleepUntilAborted(1_000, signal);
      }
    }
  }

  /**
   * Reads from the committed offsets to the ends of the topics as they are now.
   *
   * @throws {GroupBusyError} when another member of the group holds partitions.
   */
  async runToEnd({ handle, signal }: RunOptions): Promise<void> {
    const topics = await this.#reach(() => this.#findTopics(), signal);
    await this.#reach(() => this.#waitForEmptyGroup(signal), signal);
    const targets = await this.#reach(() => this.#findTargets(topics), signal);
    if (targets.size > 0) await this.#read({ topics: [...targets.keys()], handle, signal, targets });
  }

  /**
   * Commits a place as the one where reading begins, for all partitions of the topics that are there.
   *
   * @throws {GroupBusyError} when another member of the group holds partitions.
   */
  async resetOffsets(place: OffsetPlace, signal: AbortSignal): Promise<void> {
    const topics = await this.#reach(() => this.#findTopics(), signal);
    await this.#reach(() => this.#waitForEmptyGroup(signal), signal);
    const offsets = await this.#reach(() => this.#findPlace(place, topics), signal);
    if (offsets.length > 0) await this.#reach(() => this.#commitAs(topics, offsets), signal);
    this.#log.info("Group {group} begins anew at {place} in {topics} topic(s)", {
      group: this.#groupId,
      place: place instanceof Date ? place.toISOString() : place,
      topics: topics.length,
    });
  }

  /** Leaves nothing behind. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#connected) return;
    if (!this.#commits) await this.#admin.deleteGroups([this.#groupId]).catch(() => {});
    await this.#admin.disconnect();
  }

  /** Asks the brokers something, for as long as it takes. */
  #reach<T>(ask: () => Promise<T>, signal: AbortSignal): Promise<T> {
    return retryForever(async () => {
      try {
        if (!this.#connected) await this.#admin.connect();
        this.#connected = true;
        return await ask();
      } catch (error) {
        throw asConfigError(error, this.#settings);
      }
    }, {
      what: `Kafka at ${this.#settings.bootstrapServers.join(",")}`,
      log: this.#log,
      signal,
      isFinal: (error) => error instanceof ConfigError || error instanceof GroupBusyError,
    });
  }

  async #findTopics(): Promise<string[]> {
    const { names, patterns } = this.#topics;
    const existing = await this.#admin.listTopics();
    return existing.filter((topic) =>
      names.includes(topic) || (!topic.startsWith("__") && patterns.some((pattern) => pattern.test(topic)))
    ).sort();
  }

  /** A member that was killed still counts until its session has timed out; one that lives counts longer. */
  async #waitForEmptyGroup(signal: AbortSignal): Promise<void> {
    if (!this.#commits) return;
    const until = performance.now() + SESSION_TIMEOUT_MS + 2_000;
    for (let told = false;;) {
      const { groups } = await this.#admin.describeGroups([this.#groupId]);
      const members = groups.flatMap(({ members }) => members);
      if (members.length === 0) return;
      if (performance.now() > until || signal.aborted) throw busy(this.#groupId, members.length);
      if (!told) {
        this.#log.info("Group {group} has {members} other member(s), waiting whether they are still alive", {
          group: this.#groupId,
          members: members.length,
        });
      }
      told = true;
      await sleepUntilAborted(500, signal);
    }
  }

  /** Ends of the partitions of which something is not committed yet. */
  async #findTargets(topics: readonly string[]): Promise<Targets> {
    const committed = this.#commits && topics.length > 0
      ? await this.#admin.fetchOffsets({ groupId: this.#groupId, topics: [...topics] })
      : [];
    const offsets = new Map(
      committed.flatMap(({ topic, partitions }) =>
        partitions.map((p) => [`${topic}:${p.partition}`, BigInt(p.offset)])
      ),
    );
    const targets: Targets = new Map();
    for (const [topic, ends] of await this.#fetchEnds(topics)) {
      for (const { partition, low, high } of ends) {
        const from = offsets.get(`${topic}:${partition}`) ?? -1n;
        // Beyond the end, as after the topic was made again, reading starts over.
        const start = from < BigInt(low) || from > BigInt(high) ? BigInt(low) : from;
        if (start >= BigInt(high)) continue;
        const partitions = targets.get(topic) ?? new Map<number, bigint>();
        targets.set(topic, partitions.set(partition, BigInt(high)));
      }
    }
    return targets;
  }

  /**
   * First and last offsets of topics. A client asks for the metadata of all topics that it has ever asked for whenever it
   * asks for one more, so that one client for all of a thousand topics takes seconds.
   */
  async #fetchEnds(
    topics: readonly string[],
  ): Promise<Map<string, { partition: number; low: string; high: string }[]>> {
    const ends = new Map<string, { partition: number; low: string; high: string }[]>();
    for (let first = 0; first < topics.length; first += TOPICS_PER_CLIENT) {
      const admin = this.#kafka.admin({ retry: { retries: 2 } });
      await admin.connect();
      try {
        for (const topic of topics.slice(first, first + TOPICS_PER_CLIENT)) {
          ends.set(topic, await admin.fetchTopicOffsets(topic));
        }
      } finally {
        await admin.disconnect();
      }
    }
    return ends;
  }

  async #findPlace(place: OffsetPlace, topics: readonly string[]): Promise<TopicPartitionOffset[]> {
    const offsets: TopicPartitionOffset[] = [];
    for (const [topic, ends] of await this.#fetchEnds(topics)) {
      const partitions = place instanceof Date
        ? await this.#admin.fetchTopicOffsetsByTimestamp(topic, place.getTime())
        : ends.map(({ partition, low, high }) => ({ partition, offset: place === "earliest" ? low : high }));
      offsets.push(...partitions.map(({ partition, offset }) => ({ topic, partition, offset })));
    }
    return offsets;
  }

  /** Commits offsets as a member of the group: the client's own way takes five seconds a topic. */
  async #commitAs(topics: readonly string[], offsets: TopicPartitionOffset[]): Promise<void> {
    const consumer = this.#createConsumer();
    const joined = Promise.withResolvers<void>();
    consumer.on("consumer.group_join", () => joined.resolve());
    consumer.on("consumer.crash", ({ payload }) => joined.reject(payload.error));
    try {
      await consumer.connect();
      await consumer.subscribe({ topics: [...topics], fromBeginning: true });
      await consumer.run({ autoCommit: false, eachBatchAutoResolve: false, eachBatch: () => Promise.resolve() });
      await joined.promise;
      await consumer.commitOffsets(offsets);
    } finally {
      await consumer.disconnect();
    }
  }

  #createConsumer(): Consumer {
    return this.#kafka.consumer({
      groupId: this.#groupId,
      sessionTimeout: SESSION_TIMEOUT_MS,
      rebalanceTimeout: SESSION_TIMEOUT_MS,
      heartbeatInterval: HEARTBEAT_INTERVAL_MS,
      maxWaitTimeInMs: MAX_FETCH_WAIT_MS,
      maxBytes: MAX_FETCH_BYTES,
      maxBytesPerPartition: MAX_FETCH_PARTITION_BYTES,
      allowAutoTopicCreation: false,
      partitionAssigners: [subscriptionAssigner(() => this.#owned)],
      // After a failure a new member is made here, one way for all of them.
      retry: { ...MEMBER_RETRY, restartOnFailure: () => Promise.resolve(false) },
    });
  }

  /** One membership: until the signal, the targets, a change of topics (without targets), or a failure, which is thrown. */
  async #read(
    { topics, handle, signal, targets }: RunOptions & { topics: readonly string[]; targets?: Targets },
  ): Promise<void> {
    const consumer = this.#createConsumer();
    const ended = new AbortController();
    const over = AbortSignal.any([signal, ended.signal]);
    const reading = new Reading(consumer, {
      commits: this.#commits,
      targets,
      onDone: () => ended.abort(),
      onFailed: (error) => ended.abort(error),
    });
    consumer.on("consumer.crash", ({ payload }) => ended.abort(payload.error));
    consumer.on("consumer.group_join", ({ payload }) => {
      reading.beginGeneration();
      this.#owned = payload.memberAssignment;
      this.#log.info("Joined group {group}: {partitions} partitions", {
        group: this.#groupId,
        partitions: Object.values(payload.memberAssignment).flat().length,
      });
      if (targets !== undefined && !covers(payload.memberAssignment, targets)) ended.abort(busy(this.#groupId, 1));
    });
    consumer.on("consumer.end_batch_process", ({ payload: { topic, partition, batchSize, lastOffset } }) => {
      // Batches of control records alone never come to the handler.
      if (batchSize === 0) reading.reached(topic, partition, BigInt(lastOffset) + 1n);
    });
    try {
      await consumer.connect();
      await consumer.subscribe({ topics: [...topics], fromBeginning: true });
      const running = consumer.run({
        autoCommit: false,
        eachBatchAutoResolve: false,
        partitionsConsumedConcurrently: PARTITIONS_IN_FLIGHT,
        eachBatch: async ({ batch, resolveOffset, heartbeat, isRunning, isStale }) => {
          if (over.aborted || !isRunning() || isStale()) return;
          const accepted = reading.handOver(batch, handle);
          // Where the next fetch begins; what is committed is another matter.
          resolveOffset(batch.lastOffset());
          await withHeartbeats(accepted, heartbeat);
        },
      });
      running.catch(() => {});
      // Joining takes as long as the session of a member that was killed; a signal does not wait for it.
      await Promise.race([running, whenAborted(over)]);
      if (targets === undefined) await this.#untilTopicsChange(topics, over);
      else await whenAborted(over);
      if (!(ended.signal.reason instanceof Error) || signal.aborted) await reading.finish(topics);
    } finally {
      reading.end();
      await Promise.race([consumer.disconnect(), delay(DISCONNECT_TIMEOUT_MS, undefined, { ref: false })]);
    }
    if (!signal.aborted && ended.signal.aborted && ended.signal.reason instanceof Error) {
      const { reason } = ended.signal;
      if (!(reason instanceof DOMException)) throw reason;
    }
  }

  async #untilTopicsChange(topics: readonly string[], signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await sleepUntilAborted(DISCOVERY_INTERVAL_MS, signal);
      if (signal.aborted) return;
      try {
        const now = await this.#findTopics();
        if (now.length === topics.length && now.every((topic, index) => topic === topics[index])) continue;
        this.#log.info("Topics to read changed: {topics}", { topics: now.join(", ") });
        return;
      } catch (error) {
        this.#log.debug("Looking for topics failed: {reason}", { reason: errorMessage(error) });
      }
    }
  }
}

interface ReadingOptions {
  /** Whether offsets are committed. */
  readonly commits: boolean;
  /** What is to be reached, if there is an end. */
  readonly targets: Targets | undefined;
  /** Told when all of it is reached. */
  readonly onDone: () => void;
  /** Told when what was handed over is not stored, and reading can't go on. */
  readonly onFailed: (error: unknown) => void;
}

/** What one membership has handed over: commits it once it is stored, and reads it again where it can't be. */
class Reading {
  readonly #consumer: Consumer;
  readonly #options: ReadingOptions;
  readonly #underWay = new Set<Promise<void>>();
  /** Timers of partitions that wait. */
  readonly #blocked = new Map<string, ReturnType<typeof setTimeout>>();
  #generation = new AbortController();
  #offsets = new Map<string, TopicPartitionOffset>();
  #commit: Promise<void> | undefined;

  constructor(consumer: Consumer, options: ReadingOptions) {
    this.#consumer = consumer;
    this.#options = options;
  }

  /** The group has shared its partitions out anew: reading begins where they are committed. */
  beginGeneration(): void {
    this.#generation.abort(new DOMException("The group shared its partitions out anew", "AbortError"));
    this.#generation = new AbortController();
    this.#offsets.clear();
    // They are read from where they are committed, too, and block again if they must.
    for (const [key, timer] of this.#blocked) {
      clearTimeout(timer);
      const [topic, partition] = key.split(":") as [string, string];
      this.#consumer.resume([{ topic, partitions: [Number(partition)] }]);
    }
    this.#blocked.clear();
  }

  /** Hands messages over; resolves once there is room for more. */
  handOver(batch: Batch, handle: HandleMessages): Promise<void> {
    const { signal } = this.#generation;
    const { accepted, stored } = handle(toMessages(batch), signal);
    const settled = stored.then(
      (handled) => signal.aborted ? undefined : this.#settle(batch, handled),
      // Dropped, it is read again; else reading must not go on beyond it.
      (error) => signal.aborted ? undefined : this.#options.onFailed(error),
    ).finally(() => this.#underWay.delete(settled));
    this.#underWay.add(settled);
    return accepted;
  }

  /** Notes that a partition is stored up to an offset. */
  reached(topic: string, partition: number, next: bigint): void {
    const { targets, onDone } = this.#options;
    const partitions = targets?.get(topic);
    const target = partitions?.get(partition);
    if (targets === undefined || target === undefined || next < target) return;
    partitions?.delete(partition);
    if (partitions?.size === 0) targets.delete(topic);
    if (targets.size === 0) onDone();
  }

  /** Reads no more, and waits until what was handed over is stored and committed. */
  async finish(topics: readonly string[]): Promise<void> {
    this.#consumer.pause(topics.map((topic) => ({ topic })));
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay);
    await this.#commit?.catch(() => {});
  }

  /** Forgets what is not stored. */
  end(): void {
    this.#generation.abort(new DOMException("Reading ended", "AbortError"));
    for (const timer of this.#blocked.values()) clearTimeout(timer);
  }

  async #settle(batch: Batch, handled: Handled): Promise<void> {
    const { topic, partition } = batch;
    if (handled === "blocked") return this.#block(batch);
    const next = BigInt(batch.lastOffset()) + 1n;
    if (this.#options.commits) {
      this.#offsets.set(`${topic}:${partition}`, { topic, partition, offset: String(next) });
      // A commit that fails is made up for by the next one, or the rows are read again.
      await (this.#commit ??= this.#commitSoon()).catch(() => {});
    }
    this.reached(topic, partition, next);
  }

  /** Commits what many partitions have to commit in one request. */
  async #commitSoon(): Promise<void> {
    // Those that were stored by the same transaction come in the same turn of the event loop.
    await new Promise((resolve) => setTimeout(resolve, 0));
    const offsets = [...this.#offsets.values()];
    this.#offsets.clear();
    this.#commit = undefined;
    if (offsets.length > 0) await this.#consumer.commitOffsets(offsets);
  }

  /** Goes back to a batch that can't be stored now, after a while. */
  #block(batch: Batch): void {
    const { topic, partition } = batch;
    const key = `${topic}:${partition}`;
    // Those behind the first one are read again with it.
    if (this.#blocked.has(key)) return;
    this.#consumer.pause([{ topic, partitions: [partition] }]);
    this.#consumer.seek({ topic, partition, offset: batch.firstOffset() ?? "0" });
    this.#blocked.set(
      key,
      setTimeout(() => {
        this.#blocked.delete(key);
        this.#consumer.resume([{ topic, partitions: [partition] }]);
      }, BLOCKED_TOPIC_WAIT_MS),
    );
  }
}

function createKafka({ bootstrapServers, tls }: KafkaSettings, log: Log, retry: RetryOptions = {}): Kafka {
  silenceTimeoutWarning();
  return new Kafka({
    clientId: "site_checker",
    brokers: [...bootstrapServers],
    ...(tls && {
      ssl: { ...(tls.ca && { ca: [tls.ca] }), ...(tls.cert && { cert: tls.cert }), ...(tls.key && { key: tls.key }) },
    }),
    connectionTimeout: 3_000,
    retry: { retries: 3, initialRetryTime: 200, maxRetryTime: 2_000, ...retry },
    logLevel: logLevel.INFO,
    // What matters is said by those who call; the client reports each rebalance as an error.
    logCreator: () => ({ namespace, log: { message, error, ...properties } }) => {
      log.debug("{namespace}: {message} {error}", { namespace, message, error: error ?? "" });
      if (!message.startsWith("Offset out of range, resetting")) return;
      const { topic, partition } = properties;
      log.warn(
        "What is committed of '{topic}', partition {partition}, is not there: the topic was made again, or its messages " +
          "have expired; reading from its start",
        { topic, partition },
      );
    },
  });
}

let silenced = false;

/** kafkajs 2.2.4 sets a timer with a negative time, of which the runtime warns on standard error; only that is kept back. */
export function silenceTimeoutWarning(): void {
  if (silenced) return;
  silenced = true;
  const emitWarning = process.emitWarning.bind(process) as (...args: unknown[]) => void;
  process.emitWarning = ((warning: unknown, ...rest: unknown[]) => {
    const [type] = rest;
    const name = warning instanceof Error
      ? warning.name
      : typeof type === "object" && type !== null && "type" in type
      ? type.type
      : type;
    if (name !== "TimeoutNegativeWarning") emitWarning(warning, ...rest);
  }) as typeof process.emitWarning;
}

function toRecord({ key, value, timestamp }: OutgoingMessage): Message {
  return {
    key,
    value,
    timestamp: String(timestamp === NOW ? Date.now() : timestamp),
    headers: HEADERS,
  };
}

const HEADERS = { "content-type": "application/json", version: String(METRIC_VERSION) };

function toMessages({ topic, partition, messages }: Batch): KafkaMessage[] {
  return messages.map(({ key, value, offset, timestamp, headers }) => ({
    topic,
    partition,
    offset,
    timestamp: Number(timestamp),
    key,
    value,
    headers: Object.fromEntries(
      Object.entries(headers ?? {}).map((
        [name, value],
      ) => [name, Array.isArray(value) ? value.join(",") : `${value ?? ""}`]),
    ),
  }));
}

/** Messages of one request. */
interface Round<M> {
  readonly round: M[];
  readonly compression: CompressionTypes;
}

/**
 * Parts of which each has no more, of one topic and of all, than a broker takes in a request; each topic's stay in their
 * order. Those of topics with little to compress go by themselves.
 */
function rounds<M extends OutgoingMessage>(messages: readonly M[]): Round<M>[] {
  const plain: M[][] = [];
  const zipped: M[][] = [];
  const bytesOf = ({ key, value }: M) => key.length + value.length;
  const filled = new Map<M[], number>();
  for (const ofTopic of Map.groupBy(messages, ({ topic }) => topic).values()) {
    const total = ofTopic.reduce((sum, message) => sum + bytesOf(message), 0);
    const target = ofTopic.length > 1 && total >= MIN_GZIP_BYTES ? zipped : plain;
    let at = 0;
    let ofThis = 0;
    for (const message of ofTopic) {
      const bytes = bytesOf(message);
      let part = target[at] ??= [];
      const full = (filled.get(part) ?? 0) + bytes > MAX_REQUEST_BYTES || ofThis + bytes > MAX_TOPIC_BYTES;
      if (full && part.length > 0) {
        part = target[++at] ??= [];
        ofThis = 0;
      }
      part.push(message);
      ofThis += bytes;
      filled.set(part, (filled.get(part) ?? 0) + bytes);
    }
  }
  return [
    ...plain.map((round) => ({ round, compression: CompressionTypes.None })),
    ...zipped.map((round) => ({ round, compression: CompressionTypes.GZIP })),
  ];
}

/** A broker's answer (kafkajs gives it a `type`, KafkaJSProtocolError is not exported) among the causes, if one answered. */
function protocolError(error: unknown): Error & { type: string } | undefined {
  for (let e = error, depth = 0; e instanceof Error && depth < 8; e = e.cause, depth++) {
    if ("type" in e && typeof e.type === "string") return e as Error & { type: string };
    // A topic of which the brokers say nothing.
    if (/MetadataNotLoaded$/.test(e.name)) return Object.assign(e, { type: "METADATA_NOT_LOADED" });
  }
  return undefined;
}

function asConfigError(error: unknown, { bootstrapServers, tls }: KafkaSettings): unknown {
  if (tls === null || !UNTRUSTED_REGEXP.test(errorCode(error) ?? "")) return error;
  return new ConfigError(`Cannot connect to Kafka at ${bootstrapServers.join(",")} over TLS: ${errorMessage(error)}`, {
    cause: error,
  });
}

function busy(groupId: string, members: number): GroupBusyError {
  return new GroupBusyError(
    `Cannot read all partitions: ${members} other member(s) of consumer group '${groupId}' are alive; stop them, or ` +
      `choose another group by --kafka-group-id`,
  );
}

function covers(assignment: Record<string, number[]>, targets: Targets): boolean {
  return [...targets].every(([topic, partitions]) =>
    [...partitions.keys()].every((partition) => assignment[topic]?.includes(partition))
  );
}

/** Keeps a member of a group alive while it waits; rejects at once when the group rebalances. */
async function withHeartbeats<T>(work: Promise<T>, heartbeat: () => Promise<void>): Promise<T> {
  const lost = Promise.withResolvers<never>();
  const timer = setInterval(() => heartbeat().catch(lost.reject), HEARTBEAT_INTERVAL_MS);
  try {
    return await Promise.race([work, lost.promise]);
  } finally {
    clearInterval(timer);
  }
}

/**
 * Gives each partition to a member that subscribed to its topic; kafkajs' own assigner does not look, and leaves
 * partitions unread while members know different topics.
 *
 * @param owned What this member has read so far.
 */
function subscriptionAssigner(owned: () => Readonly<Record<string, readonly number[]>>): PartitionAssigner {
  return ({ cluster }) => ({
    name: "site_checker",
    version: 0,
    protocol({ topics }) {
      const userData = Buffer.from(JSON.stringify({ owned: owned() }));
      return {
        name: this.name,
        metadata: AssignerProtocol.MemberMetadata.encode({ version: this.version, topics, userData }),
      };
    },
    async assign({ members }) {
      const decoded = members.map(({ memberId, memberMetadata }): Member => {
        const metadata = AssignerProtocol.MemberMetadata.decode(memberMetadata);
        return { id: memberId, topics: metadata?.topics ?? [], owned: ownedPartitions(metadata?.userData) };
      });
      const topics = [...new Set(decoded.flatMap((member) => member.topics))].sort();
      await cluster.addMultipleTargetTopics(topics);
      const partitions = new Map(
        topics.map((topic) => [topic, cluster.findTopicPartitionMetadata(topic).map(({ partitionId }) => partitionId)]),
      );
      return assignPartitions(decoded, partitions).map(({ id, assignment }) => ({
        memberId: id,
        memberAssignment: AssignerProtocol.MemberAssignment.encode({ version: 0, assignment, userData: EMPTY }),
      }));
    },
  });
}

/** What a member says that it has read so far; nothing where another version says it in another way. */
function ownedPartitions(userData: Uint8Array | undefined): Record<string, number[]> {
  try {
    const { owned } = JSON.parse(new TextDecoder().decode(userData));
    return owned ?? {};
  } catch {
    return {};
  }
}

const EMPTY = Buffer.alloc(0);
