import { Buffer } from "node:buffer";
import { setTimeout as delay } from "node:timers/promises";
import { type Answer, Brokers, type Leaders, SilenceError } from "./brokers.ts";
import type { PublishSettings } from "./config.ts";
import { errorMessage } from "./error.ts";
import type { Log } from "./log.ts";
import { partitionOf } from "./partition.ts";
import type { Part } from "./produce_request.ts";
import type { OutgoingMessage } from "./spool_file.ts";
import { asConfigError } from "./trust.ts";

/** A broker takes 1 MB a partition and request unless told otherwise; metrics of one topic are sent in parts of this. */
const MAX_TOPIC_BYTES = 500_000;

/** A message that Kafka will never take as it is. */
export interface Refusal<M extends OutgoingMessage> {
  /** It. */
  readonly message: M;
  /** Why. */
  readonly reason: string;
}

/** Why Kafka does not take a topic now. */
export interface Delay {
  /** What it answered. */
  readonly reason: string;
  /** Whether that passes by itself as a rule, as where a broker that was restarted does not lead its topics yet. */
  readonly isPassing: boolean;
}

/** What became of messages; those of a topic that is named in `delayed` and in no list are still to be published. */
export interface PublishResult<M extends OutgoingMessage> {
  /** All in-sync replicas have these. */
  readonly acknowledged: M[];
  /** Kafka will never take these as they are. */
  readonly refused: Refusal<M>[];
  /** Topics that Kafka does not take now. */
  readonly delayed: Map<string, Delay>;
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
/** Brokers lead a new topic a while after they say so; a batch that comes too early is sent in part, and again. */
const LEADER_DELAY_MS = 3;
const MAX_LEADER_DELAY_MS = 5_000;
/** Those who call retry; here, for a connection that the broker has closed meanwhile, and leaders that change. */
const RETRIES = 3;
const FIRST_RETRY_MS = 300;
/** Partitions that came to a topic meanwhile are found after this; leaders that change are at once. */
const LEADERS_MAX_AGE_MS = 300_000;

/** Options of {@linkcode Publisher}. */
export interface PublisherOptions {
  /** Where to tell what goes on. */
  readonly log: Log;
}

/** Publishes messages. */
export class Publisher implements AsyncDisposable {
  readonly #settings: PublishSettings;
  readonly #log: Log;
  readonly #brokers: Brokers;
  /** Topics that need not be made. */
  readonly #known = new Set<string>();
  readonly #leaders = new Map<string, Leaders>();
  readonly #closing = new AbortController();
  #leadersFrom = 0;
  #connected = false;

  /** Connects with the first call of {@linkcode Publisher.publish}. */
  constructor(settings: PublishSettings, { log }: PublisherOptions) {
    this.#settings = settings;
    this.#log = log;
    this.#brokers = new Brokers(settings);
  }

  /**
   * Publishes messages of any topics, each topic's in their order, and waits until all in-sync replicas have them.
   *
   * @throws {ConfigError} when the brokers' certificates are not trusted or they don't trust ours, at the first try.
   * @throws What the client throws, when no broker can be reached; any of the messages may have arrived. Where some can
   * be, what these have is acknowledged, and the topics of the others are delayed.
   */
  async publish<M extends OutgoingMessage>(messages: readonly M[]): Promise<PublishResult<M>> {
    await this.#connect();
    const result: PublishResult<M> = { acknowledged: [], refused: [], delayed: new Map() };
    await this.#createTopics(new Set(messages.map(({ topic }) => topic)), result.delayed);
    const stuck = new Map<string, Error>();
    for (const round of rounds(messages)) await this.#send(round, { result, stuck });
    const [failure] = stuck.values();
    const { acknowledged, refused, delayed } = result;
    if (failure !== undefined && acknowledged.length + refused.length + delayed.size === 0) throw failure;
    return result;
  }

  /** Closes the connections; what is under way fails. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    await this.#brokers[Symbol.asyncDispose]();
  }

  async #connect(): Promise<void> {
    if (this.#connected) return;
    try {
      await this.#brokers.connect();
    } catch (error) {
      throw asConfigError(error, this.#settings);
    }
    this.#connected = true;
  }

  /** Makes topics that are not there; where the broker does not allow us to, it may make them itself. */
  async #createTopics(topics: ReadonlySet<string>, delayed: Map<string, Delay>): Promise<void> {
    const unknown = [...topics].filter((topic) => !this.#known.has(topic));
    if (unknown.length === 0) return;
    const existing = await this.#brokers.lookUp(unknown, { make: false });
    const missing = unknown.filter((topic) => {
      const found = existing.get(topic);
      return found === undefined || "code" in found && found.code !== NO_LEADER.code;
    });
    if (missing.length > 0) {
      const failed = await this.#brokers.createTopics(missing, this.#settings.newTopics);
      for (const [topic, { code, message }] of failed) {
        if (LEFT_TO_BROKER_REGEXP.test(code)) continue;
        delayed.set(topic, { reason: `it can't be made: ${message} (${code})`, isPassing: false });
      }
      const made = missing.filter((topic) => !failed.has(topic));
      if (made.length > 0) {
        this.#log.info("Made {topics}", { topics: shorten(made) });
        await this.#wait(Math.min(made.length * LEADER_DELAY_MS, MAX_LEADER_DELAY_MS));
      }
    }
    for (const topic of unknown) if (!delayed.has(topic)) this.#known.add(topic);
  }

  /** Sends batches of different topics; those that fail for a moment are sent again, by themselves. */
  async #send<M extends OutgoingMessage>(batches: readonly Batch<M>[], context: SendContext<M>): Promise<void> {
    const { result, stuck } = context;
    let left = batches.filter(({ topic }) => !result.delayed.has(topic) && !stuck.has(topic));
    for (let tries = 0; left.length > 0; tries++) {
      if (tries > 0) await this.#wait(FIRST_RETRY_MS * 2 ** (tries - 1));
      const again = new Map<string, Batch<M>>();
      for (const [batch, failure] of await this.#attempt(left, context)) {
        this.#leaders.delete(batch.topic);
        const isPassing = failure instanceof Error || failure.canRetry;
        if (isPassing && tries < RETRIES) again.set(batch.topic, join(again.get(batch.topic), batch));
        else if (failure instanceof Error) stuck.set(batch.topic, failure);
        else await this.#giveUp(batch, failure, context);
      }
      left = [...again.values()];
    }
  }

  /** Sends batches once, and returns those that failed, which may be parts of those that were given. */
  async #attempt<M extends OutgoingMessage>(
    batches: readonly Batch<M>[],
    { result }: SendContext<M>,
  ): Promise<Map<Batch<M>, Answer | Error>> {
    const failed = new Map<Batch<M>, Answer | Error>();
    try {
      await this.#lookUp(batches, failed);
    } catch (error) {
      if (this.#closing.signal.aborted) throw error;
      return new Map(batches.map((batch) => [batch, asError(error)]));
    }
    const byNode = new Map<number, Part<M>[]>();
    for (const batch of batches) {
      if (failed.has(batch)) continue;
      const leaders = this.#leaders.get(batch.topic)!;
      for (const part of partsOf(batch, leaders.length)) {
        const leader = leaders[part.partition]!;
        if (leader < 0) failed.set(part, NO_LEADER);
        else if (byNode.has(leader)) byNode.get(leader)!.push(part);
        else byNode.set(leader, [part]);
      }
    }
    await Promise.all(
      [...byNode].map(async ([node, parts]) => {
        try {
          const refused = await this.#brokers.produce(node, parts);
          for (const part of parts) {
            const answer = refused.get(part);
            if (answer !== undefined) failed.set(part, answer);
            else for (const message of part.messages) result.acknowledged.push(message);
          }
        } catch (error) {
          // Others may be there: then it is these topics' trouble, and not that of all.
          const failure = this.#brokers.areSeveral ? leaderAway(error) : asError(error);
          for (const part of parts) failed.set(part, failure);
        }
      }),
    );
    this.#closing.signal.throwIfAborted();
    return failed;
  }

  /** Finds the leaders of topics. */
  async #lookUp<M extends OutgoingMessage>(
    batches: readonly Batch<M>[],
    failed: Map<Batch<M>, Answer | Error>,
  ): Promise<void> {
    const now = performance.now();
    if (now - this.#leadersFrom > LEADERS_MAX_AGE_MS) {
      this.#leaders.clear();
      this.#leadersFrom = now;
    }
    const unknown = batches.filter(({ topic }) => !this.#leaders.has(topic));
    if (unknown.length === 0) return;
    const found = await this.#brokers.lookUp(unknown.map(({ topic }) => topic), { make: true });
    for (const batch of unknown) {
      const answer = found.get(batch.topic) ?? NO_LEADER;
      if ("code" in answer) failed.set(batch, answer);
      else if (answer.length === 0) failed.set(batch, NO_LEADER);
      else this.#leaders.set(batch.topic, answer);
    }
  }

  /** Deals with messages of a topic that failed together. */
  async #giveUp<M extends OutgoingMessage>(
    batch: Batch<M>,
    { code, message }: Answer,
    context: SendContext<M>,
  ): Promise<void> {
    const { topic, messages, dated } = batch;
    const { refused, delayed } = context.result;
    if (code === "INVALID_TIMESTAMP" && !dated) return await this.#send([{ topic, messages, dated: true }], context);
    const parts = REFUSALS_OF_ONE.has(code) ? halves(messages) : undefined;
    if (parts !== undefined) {
      for (const part of parts) await this.#send([{ topic, messages: part, dated }], context);
      return;
    }
    this.#known.delete(topic);
    const reason = `${message} (${code})`;
    if (REFUSALS.has(code)) { for (const message of messages) refused.push({ message, reason }); }
    else delayed.set(topic, { reason, isPassing: LEADERLESS.has(code) });
  }

  async #wait(ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.#closing.signal });
  }
}

/** Messages of one topic. */
type Batch<M extends OutgoingMessage> = Omit<Part<M>, "partition">;

interface SendContext<M extends OutgoingMessage> {
  readonly result: PublishResult<M>;
  /** Topics whose leader can't be reached, with what the connection failed of. */
  readonly stuck: Map<string, Error>;
}

/** Of making topics: it is there, or we may not. */
const LEFT_TO_BROKER_REGEXP = /^TOPIC_ALREADY_EXISTS$|AUTHORIZATION_FAILED$/;
/** Of a topic that is there. */
const NO_LEADER: Answer = { code: "LEADER_NOT_AVAILABLE", message: "No broker leads it now", canRetry: true };

/** What stands for no answer from the leader, as Kafka's own clients name it. */
const NO_ANSWER = { closed: "NETWORK_EXCEPTION", silent: "REQUEST_TIMED_OUT" } as const;

function leaderAway(error: unknown): Answer {
  const isSilent = error instanceof SilenceError;
  return {
    code: isSilent ? NO_ANSWER.silent : NO_ANSWER.closed,
    message: `the broker that leads it can't be used: ${errorMessage(error)}`,
    // Once more would be as long a silence, in which all others wait.
    canRetry: !isSilent,
  };
}

/** What is answered while a topic has no leader that can be used, or another than a moment ago. */
const LEADERLESS: ReadonlySet<string> = new Set([
  NO_LEADER.code,
  NO_ANSWER.closed,
  NO_ANSWER.silent,
  "NOT_LEADER_OR_FOLLOWER",
  "FENCED_LEADER_EPOCH",
  "UNKNOWN_LEADER_EPOCH",
]);

/** Messages by partition. */
function partsOf<M extends OutgoingMessage>({ topic, messages, dated }: Batch<M>, partitions: number): Part<M>[] {
  if (partitions === 1) return [{ topic, partition: 0, messages, dated }];
  return [...Map.groupBy(messages, ({ key }) => partitionOf(Buffer.from(key), partitions))]
    .map(([partition, messages]) => ({ topic, partition, messages, dated }));
}

/** Two parts of a topic: a request must not name a partition twice, and there may be others by now. */
function join<M extends OutgoingMessage>(one: Batch<M> | undefined, other: Batch<M>): Batch<M> {
  return one === undefined ? other : { ...one, messages: [...one.messages, ...other.messages] };
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
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

/**
 * What goes in one request after the other: of each topic and of all together no more than a broker takes, and each
 * topic's messages in their order.
 */
function rounds<M extends OutgoingMessage>(messages: readonly M[]): Batch<M>[][] {
  const rounds: Batch<M>[][] = [];
  const filled: number[] = [];
  for (const [topic, ofTopic] of Map.groupBy(messages, ({ topic }) => topic)) {
    let at = 0;
    let bytes = 0;
    let part: M[] = [];
    const end = () => {
      (rounds[at] ??= []).push({ topic, messages: part, dated: false });
      filled[at] = (filled[at] ?? 0) + bytes;
      at++;
      bytes = 0;
      part = [];
    };
    for (const message of ofTopic) {
      const size = message.key.length + message.value.length;
      if (part.length > 0 && (bytes + size > MAX_TOPIC_BYTES || (filled[at] ?? 0) + bytes + size > MAX_REQUEST_BYTES)) {
        end();
      }
      // A request that others have filled is left to them.
      while (part.length === 0 && (filled[at] ?? 0) > 0 && filled[at]! + size > MAX_REQUEST_BYTES) at++;
      part.push(message);
      bytes += size;
    }
    end();
  }
  return rounds;
}
