import { Buffer } from "node:buffer";
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { type Admin, AssignerProtocol, type Batch, type Consumer, type Kafka, type PartitionAssigner } from "kafkajs";
import { assignPartitions, type Member } from "./assignment.ts";
import { quickenCluster } from "./cluster.ts";
import type { KafkaSettings, OffsetPlace, TopicSelection } from "./config.ts";
import { ConfigError, errorMessage } from "./error.ts";
import { type ClientOptions, KafkaClient } from "./kafka.ts";
import type { Log } from "./log.ts";
import type { KafkaMessage } from "./metric.ts";
import { retryForever } from "./retry.ts";
import { Rights } from "./rights.ts";
import { sleepUntilAborted, whenAborted } from "./schedule.ts";
import { asConfigError } from "./trust.ts";

/** Time after which a member that says nothing has left its group: rows move again soon after a `kill -9`. */
const SESSION_TIMEOUT_MS = 10_000;

const HEARTBEAT_INTERVAL_MS = 2_000;
/** What a fetch brings at most: enough for a transaction, and little that waits in memory. */
const MAX_FETCH_BYTES = 4 * 1024 * 1024;
const MAX_FETCH_PARTITION_BYTES = 2 * 1024 * 1024;
/** How long a broker may hold an empty fetch; stopping waits for it, and so does each change of topics. */
const MAX_FETCH_WAIT_MS = 500;
/**
 * Where a partition was read to its end, the next fetch waits this long: a request names every partition, so that one a
 * message would cost with a thousand topics more than all the rest.
 */
const FETCH_LINGER_MS = 100;
/** Leaving a group takes an answer of brokers, which may be away. */
const DISCONNECT_TIMEOUT_MS = 3_000;
/**
 * How a member waits for brokers: as long as its session lasts, since a new one would have to wait until the group has
 * given it up.
 */
const MEMBER_RETRY = { retries: 20, maxRetryTime: 1_000 } as const;
/** New topics are looked for this often. */
const DISCOVERY_INTERVAL_MS = 3_000;
/** A failure that comes again and again is told this often. */
const REPORT_EVERY_MS = 15_000;
/** A topic that can't be stored or published now is tried again after this. */
const BLOCKED_TOPIC_WAIT_MS = 10_000;
const PARTITIONS_IN_FLIGHT = 200;
const TOPICS_PER_CLIENT = 50;

/** A group of which another live member holds partitions. */
export class GroupBusyError extends Error {
  /** Tells this class apart. */
  override readonly name = "GroupBusyError" as const;
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

/** Messages of a partition that lie together; the offsets are in decimal digits. */
interface Span {
  readonly topic: string;
  readonly partition: number;
  readonly first: string;
  readonly last: string;
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
  readonly #rights: Rights;
  #connected = false;
  /** The last failure that was told of. */
  #told = { reason: "", at: -Infinity };
  /** What the last membership read, by topic. */
  #owned: Readonly<Record<string, readonly number[]>> = {};

  /** Connects with the first call. */
  constructor(settings: KafkaSettings, { log, groupId, topics }: SubscriberOptions) {
    this.#settings = settings;
    this.#log = log;
    this.#kafka = new KafkaClient(settings, log, MEMBER_RETRY);
    this.#admin = new KafkaClient(settings, log).admin({ retry: { retries: 2 } });
    this.#groupId = groupId ?? `site_checker-dry-run-${randomUUID()}`;
    this.#commits = groupId !== null;
    this.#topics = topics;
    this.#rights = new Rights(this.#kafka, { log });
  }

  /** Reads until the signal is aborted. Topics that appear later are joined; while brokers are away, it waits. */
  async run({ handle, signal }: RunOptions): Promise<void> {
    let waiting = false;
    let topics: string[] = [];
    while (!signal.aborted) {
      try {
        topics = await this.#reach(() => this.#findTopics(), signal);
        if (topics.length === 0) {
          if (!waiting) this.#log.info("No topic to read is there yet, waiting");
          waiting = true;
          await sleepUntilAborted(DISCOVERY_INTERVAL_MS, signal);
          continue;
        }
        waiting = false;
        await this.#read({ topics, handle, signal });
      } catch (error) {
        await this.#waitAfter(error, { topics, signal });
      }
    }
  }

  /**
   * Reads from the committed offsets to the ends of the topics as they are now; while brokers are away, it waits.
   *
   * @returns Whether all of them could be read.
   * @throws {GroupBusyError} when another member of the group holds partitions.
   */
  async runToEnd({ handle, signal }: RunOptions): Promise<boolean> {
    const topics = await this.#reach(() => this.#findTopics(), signal);
    await this.#reach(() => this.#waitForEmptyGroup(signal), signal);
    const targets = await this.#reach(() => this.#findTargets(topics), signal);
    while (targets.size > 0 && !signal.aborted) {
      try {
        await this.#read({ topics: [...targets.keys()], handle, signal, targets });
        break;
      } catch (error) {
        await this.#waitAfter(error, { topics, signal });
        for (const topic of this.#rights.denied) targets.delete(topic);
        // The membership that broke still counts for a while.
        await this.#reach(() => this.#waitForEmptyGroup(signal), signal);
      }
    }
    return this.#rights.denied.size === 0;
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

  /** Waits a moment after a failure; one that can't pass by itself is thrown. */
  async #waitAfter(
    error: unknown,
    { topics, signal }: { topics: readonly string[]; signal: AbortSignal },
  ): Promise<void> {
    if (signal.aborted) return;
    if (error instanceof ConfigError || error instanceof GroupBusyError || error instanceof Deno.errors.NotCapable) {
      throw error;
    }
    if (Rights.isDenial(error)) await this.#reach(() => this.#rights.ask(topics), signal);
    else this.#tell(errorMessage(error));
    await sleepUntilAborted(1_000, signal);
  }

  /** Tells of a failure, of one that comes again and again only now and then. */
  #tell(reason: string): void {
    const now = performance.now();
    if (reason === this.#told.reason && now - this.#told.at < REPORT_EVERY_MS) return;
    this.#log.warn("Reading failed, trying again: {reason}", { reason });
    this.#told = { reason, at: now };
  }

  async #findTopics(): Promise<string[]> {
    const { patterns } = this.#topics;
    const names = new Set(this.#topics.names);
    const existing = await this.#admin.listTopics();
    return await this.#rights.readable(
      existing.filter((topic) =>
        names.has(topic) || (!topic.startsWith("__") && patterns.some((pattern) => pattern.test(topic)))
      ).sort(),
    );
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
    // Of all that is committed: asked for some topics, the client now and then leaves one out where there are several
    // brokers.
    const committed = this.#commits ? await this.#admin.fetchOffsets({ groupId: this.#groupId }) : [];
    const offsets = new Map(
      committed.flatMap(({ topic, partitions }) =>
        partitions.map((p) => [`${topic}:${p.partition}`, BigInt(p.offset)])
      ),
    );
    const targets: Targets = new Map();
    const ends = await this.#askOfEach(topics, (admin, topic) => admin.fetchTopicOffsets(topic));
    for (const [topic, partitionEnds] of ends) {
      for (const { partition, low, high } of partitionEnds) {
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

  async #findPlace(place: OffsetPlace, topics: readonly string[]): Promise<TopicPartitionOffset[]> {
    const places = await this.#askOfEach(topics, async (admin, topic) => {
      if (place instanceof Date) return await admin.fetchTopicOffsetsByTimestamp(topic, place.getTime());
      const ends = await admin.fetchTopicOffsets(topic);
      return ends.map(({ partition, low, high }) => ({ partition, offset: place === "earliest" ? low : high }));
    });
    return [...places].flatMap(([topic, partitions]) =>
      partitions.map(({ partition, offset }) => ({ topic, partition, offset }))
    );
  }

  /**
   * Asks something of each topic. A client asks for the metadata of all topics that it has ever asked for whenever it
   * asks for one more, so that one client for all of a thousand topics takes seconds.
   */
  async #askOfEach<T>(
    topics: readonly string[],
    ask: (admin: Admin, topic: string) => Promise<T>,
  ): Promise<Map<string, T>> {
    const answers = new Map<string, T>();
    for (let first = 0; first < topics.length; first += TOPICS_PER_CLIENT) {
      const admin = this.#kafka.admin({ retry: { retries: 2 } });
      await admin.connect();
      try {
        for (const topic of topics.slice(first, first + TOPICS_PER_CLIENT)) answers.set(topic, await ask(admin, topic));
      } finally {
        await admin.disconnect();
      }
    }
    return answers;
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
          if (batch.offsetLag() === "0") await reading.linger();
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
  #linger: Promise<void> | undefined;

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
    const { topic, partition } = batch;
    // Not the batch itself: it would keep all of the client's own records until they are stored.
    const span = { topic, partition, first: batch.firstOffset() ?? "0", last: batch.lastOffset() };
    const settled = stored.then(
      (handled) => signal.aborted ? undefined : this.#settle(span, handled),
      // Dropped, it is read again; else reading must not go on beyond it.
      (error) => signal.aborted ? undefined : this.#options.onFailed(error),
    ).finally(() => this.#underWay.delete(settled));
    this.#underWay.add(settled);
    return accepted;
  }

  /** Lets some messages gather; one wait for all that ask within it. */
  linger(): Promise<void> {
    return this.#linger ??= delay(FETCH_LINGER_MS).then(() => {
      this.#linger = undefined;
    });
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

  async #settle(span: Span, handled: Handled): Promise<void> {
    const { topic, partition, last } = span;
    const key = `${topic}:${partition}`;
    // Those behind the first one that waits are read again with it, though they be stored.
    if (this.#blocked.has(key)) return;
    if (handled === "blocked") return this.#block(span);
    const next = BigInt(last) + 1n;
    if (this.#options.commits) {
      this.#offsets.set(key, { topic, partition, offset: String(next) });
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
  #block({ topic, partition, first }: Span): void {
    const key = `${topic}:${partition}`;
    this.#consumer.pause([{ topic, partitions: [partition] }]);
    this.#consumer.seek({ topic, partition, offset: first });
    this.#blocked.set(
      key,
      setTimeout(() => {
        this.#blocked.delete(key);
        this.#consumer.resume([{ topic, partitions: [partition] }]);
      }, BLOCKED_TOPIC_WAIT_MS),
    );
  }
}

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
  return ({ cluster }) => {
    // The one place where the client hands it out.
    quickenCluster(cluster);
    return ({
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
        // An answer that was under way, for fewer topics, may have come behind that one.
        if (topics.some((topic) => cluster.findTopicPartitionMetadata(topic).length === 0)) {
          await cluster.refreshMetadata();
        }
        const partitions = new Map(
          topics.map((
            topic,
          ) => [topic, cluster.findTopicPartitionMetadata(topic).map(({ partitionId }) => partitionId)]),
        );
        return assignPartitions(decoded, partitions).map(({ id, assignment }) => ({
          memberId: id,
          memberAssignment: AssignerProtocol.MemberAssignment.encode({ version: 0, assignment, userData: EMPTY }),
        }));
      },
    });
  };
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
