import { setTimeout as delay } from "node:timers/promises";
import {
  type Admin,
  CompressionTypes,
  type ITopicConfig,
  type Kafka,
  type Message,
  Partitioners,
  type Producer,
  type TopicMessages,
} from "kafkajs";
import type { NewTopicSettings, PublishSettings } from "./config.ts";
import { errorMessage } from "./error.ts";
import { asConfigError, type ClientOptions, KafkaClient, protocolError } from "./kafka.ts";
import type { Log } from "./log.ts";
import { METRIC_VERSION } from "./metric.ts";
import type { OutgoingMessage } from "./spool.ts";

/** A broker takes 1 MB a partition and request unless told otherwise; metrics of one topic are sent in parts of this. */
const MAX_TOPIC_BYTES = 500_000;

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
    this.#kafka = new KafkaClient(settings, log);
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

function toRecord({ key, value, timestamp }: OutgoingMessage): Message {
  return {
    key,
    value,
    timestamp: String(timestamp === NOW ? Date.now() : timestamp),
    headers: HEADERS,
  };
}

const HEADERS = { "content-type": "application/json", version: String(METRIC_VERSION) };

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
