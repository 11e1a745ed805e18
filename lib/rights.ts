import { type Cluster, type Kafka, PartitionAssigners } from "kafkajs";
import { type ClientOptions, protocolError } from "./kafka.ts";
import type { Log } from "./log.ts";

/** What the brokers answer who has no right to read a topic. */
const DENIED = "TOPIC_AUTHORIZATION_FAILED";
/** Topics that could not be read are asked for again after this. */
const ASK_AGAIN_MS = 30_000;
/** Beyond every end: the broker looks at the right first, and has nothing to send then. */
const NO_OFFSET = "9223372036854775806";

/**
 * Topics that can be seen, but that the brokers do not let us read: a fetch that names one of them fails as a whole, and
 * does not say which it is.
 */
export class Rights {
  readonly #kafka: Kafka;
  readonly #log: Log;
  readonly #denied = new Set<string>();
  #askedAt = -Infinity;

  /** None is known to be denied. */
  constructor(kafka: Kafka, { log }: ClientOptions) {
    this.#kafka = kafka;
    this.#log = log;
  }

  /** Whether an error says that some topic can't be read. */
  static isDenial(error: unknown): boolean {
    return protocolError(error)?.type === DENIED;
  }

  /** Topics that can't be read. */
  get denied(): ReadonlySet<string> {
    return this.#denied;
  }

  /** Those of some topics that can be read, as far as is known; now and then, the others are asked for again. */
  async readable(topics: readonly string[]): Promise<string[]> {
    const denied = topics.filter((topic) => this.#denied.has(topic));
    if (denied.length > 0 && performance.now() - this.#askedAt >= ASK_AGAIN_MS) await this.ask(denied);
    return topics.filter((topic) => !this.#denied.has(topic));
  }

  /** Asks the brokers whether topics can be read, and tells what has changed. */
  async ask(topics: readonly string[]): Promise<void> {
    this.#askedAt = performance.now();
    const denied = new Set(await findDenied(this.#kafka, topics));
    for (const topic of topics) {
      if (denied.has(topic) && !this.#denied.has(topic)) {
        this.#denied.add(topic);
        this.#log.error(
          "Topic '{topic}' can't be read, others go on: the brokers give no right to (the operation Read on the topic)",
          { topic },
        );
      }
      if (!denied.has(topic) && this.#denied.delete(topic)) {
        this.#log.info("Topic '{topic}' can be read now", { topic });
      }
    }
  }
}

/** Fetches nothing from a partition of each topic, one by one. */
async function findDenied(kafka: Kafka, topics: readonly string[]): Promise<string[]> {
  let cluster: Cluster | undefined;
  // A client that joins no group; this is how it hands out what it asks brokers by.
  const client = kafka.consumer({
    groupId: "site_checker-rights",
    partitionAssigners: [(config) => {
      cluster = config.cluster;
      return PartitionAssigners.roundRobin(config);
    }],
  });
  await client.connect();
  try {
    await cluster!.addMultipleTargetTopics([...topics]);
    const denied: string[] = [];
    for (const topic of topics) if (!await mayRead(cluster!, topic)) denied.push(topic);
    return denied;
  } finally {
    await client.disconnect();
  }
}

async function mayRead(cluster: Cluster, topic: string): Promise<boolean> {
  const [first] = cluster.findTopicPartitionMetadata(topic);
  if (first === undefined) return true;
  const partition = first.partitionId;
  const [nodeId] = Object.keys(cluster.findLeaderForPartitions(topic, [partition]));
  const broker = await cluster.findBroker({ nodeId: nodeId! });
  const partitions = [{ partition, fetchOffset: NO_OFFSET, maxBytes: 1 }];
  try {
    await broker.fetch({
      isolationLevel: 1,
      maxWaitTime: 0,
      minBytes: 0,
      maxBytes: 1,
      topics: [{ topic, partitions }],
    });
  } catch (error) {
    const answer = protocolError(error);
    if (answer === undefined) throw error;
    return answer.type !== DENIED;
  }
  return true;
}
