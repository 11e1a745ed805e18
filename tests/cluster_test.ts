import assert from "node:assert/strict";
import { type Cluster, Kafka, logLevel, PartitionAssigners } from "kafkajs";
import { quickenCluster } from "../lib/cluster.ts";
import { publish, testStack, uniqueName } from "./support.ts";

/** What a fetch brings, as far as it is looked at. */
interface Fetched {
  readonly responses: readonly {
    readonly topicName: string;
    readonly partitions: readonly { readonly messages: readonly unknown[] }[];
  }[];
}

Deno.test("quickenCluster() finds the partitions of topics, and drops what a fetch brought of those with nothing new", async () => {
  const [full, empty] = [uniqueName("full"), uniqueName("empty")];
  for (const topic of [full, empty]) await publish(topic, ["1", "2"]);
  let cluster: Cluster | undefined;
  const client = new Kafka({ brokers: [testStack().kafka], logLevel: logLevel.NOTHING }).consumer({
    groupId: uniqueName("group"),
    partitionAssigners: [(config) => {
      cluster = config.cluster;
      return PartitionAssigners.roundRobin(config);
    }],
  });
  quickenCluster(cluster!);
  await client.connect();
  try {
    assert.throws(() => cluster!.findTopicPartitionMetadata(full), /Topic metadata not loaded/);
    await cluster!.addMultipleTargetTopics([full, empty]);
    assert.deepEqual(cluster!.findTopicPartitionMetadata(full).map(({ partitionId }) => partitionId), [0]);
    assert.deepEqual(cluster!.findTopicPartitionMetadata("neither"), []);
    const [nodeId] = Object.keys(cluster!.findLeaderForPartitions(full, [0]));
    const broker = await cluster!.findBroker({ nodeId: nodeId! });
    // Of one from its start, of the other from its end on.
    const topics = [[full, "0"], [empty, "2"]].map(([topic, fetchOffset]) => ({
      topic: topic!,
      partitions: [{ partition: 0, fetchOffset: fetchOffset!, maxBytes: 1_000_000 }],
    }));
    const { responses }: Fetched = await broker.fetch({ isolationLevel: 1, maxWaitTime: 1_000, minBytes: 1, topics });
    const brought = responses.map(({ topicName, partitions }) => [topicName, partitions[0]?.messages.length]);
    assert.deepEqual(brought, [[full, 2]]);
    // A topic that was made later is asked for.
    const later = uniqueName("later");
    await publish(later, ["1"]);
    await cluster!.addMultipleTargetTopics([later]);
    assert.equal(cluster!.findTopicPartitionMetadata(later).length, 1);
  } finally {
    await client.disconnect();
  }
});
