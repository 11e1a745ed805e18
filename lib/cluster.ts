import type { Broker, Cluster, PartitionMetadata } from "kafkajs";

/**
 * What makes a client with a thousand topics cheap: kafkajs 2.2.4 looks each of them up among all of them, several times a
 * fetch, and hands on an empty batch of each that had nothing.
 *
 * @module
 */

/** Parts of the client that its types do not tell of. */
interface Inside {
  readonly brokerPool: {
    readonly metadata: Metadata | null;
    readonly metadataExpireAt: number | null;
    refreshMetadataIfNecessary(topics: readonly string[]): Promise<unknown>;
  };
}

interface Metadata {
  readonly topicMetadata: readonly { readonly topic: string; readonly partitionMetadata: PartitionMetadata[] }[];
}

type FetchRequest = Parameters<Broker["fetch"]>[0];

interface FetchResponse {
  readonly responses: readonly {
    readonly topicName: string;
    readonly partitions: readonly FetchedPartition[];
  }[];
}

interface FetchedPartition {
  readonly messages: readonly unknown[];
  readonly preferredReadReplica?: number;
}

/**
 * Gives a consumer's client an index of its topics, and takes from what it fetched what is empty.
 *
 * @internal
 */
export function quickenCluster(cluster: Cluster): void {
  const { brokerPool } = cluster as Cluster & Inside;
  const indexes = new WeakMap<Metadata, ReadonlyMap<string, PartitionMetadata[]>>();
  /** Partitions by topic, as the brokers said last; null where they were not asked yet. */
  function partitionsByTopic(): ReadonlyMap<string, PartitionMetadata[]> | null {
    const { metadata } = brokerPool;
    if (!metadata?.topicMetadata) return null;
    let index = indexes.get(metadata);
    if (index === undefined) {
      index = new Map(metadata.topicMetadata.map(({ topic, partitionMetadata }) => [topic, partitionMetadata]));
      indexes.set(metadata, index);
    }
    return index;
  }

  const find = cluster.findTopicPartitionMetadata.bind(cluster);
  cluster.findTopicPartitionMetadata = (topic) => {
    const index = partitionsByTopic();
    return index === null ? find(topic) : index.get(topic) ?? [];
  };

  const refresh = brokerPool.refreshMetadataIfNecessary.bind(brokerPool);
  brokerPool.refreshMetadataIfNecessary = async (topics) => {
    const index = partitionsByTopic();
    const isFresh = index !== null && Date.now() <= (brokerPool.metadataExpireAt ?? 0) &&
      topics.every((topic) => index.has(topic));
    return isFresh ? undefined : await refresh(topics);
  };

  const quickened = new WeakSet<Broker>();
  const findBroker = cluster.findBroker.bind(cluster);
  cluster.findBroker = async (node) => {
    const broker = await findBroker(node);
    if (quickened.has(broker)) return broker;
    quickened.add(broker);
    const fetch = broker.fetch.bind(broker);
    broker.fetch = async (request: FetchRequest) => withoutEmpty(await fetch(request));
    return broker;
  };
}

/** What has messages, or names another broker to read from. */
function withoutEmpty<Response extends FetchResponse>(response: Response): Response {
  const responses = response.responses.map((topic) => ({
    ...topic,
    partitions: topic.partitions.filter(({ messages, preferredReadReplica = -1 }) =>
      messages.length > 0 || preferredReadReplica >= 0
    ),
  }));
  return { ...response, responses: responses.filter(({ partitions }) => partitions.length > 0) };
}
