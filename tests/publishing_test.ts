import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { setTimeout as delay } from "node:timers/promises";
import { Kafka, logLevel, Partitioners, type Producer } from "kafkajs";
import { Publisher } from "../lib/publisher.ts";
import { Publishing } from "../lib/publishing.ts";
import { Spool } from "../lib/spool.ts";
import { type OutgoingMessage, retryRefused } from "../lib/spool_file.ts";
import { startKafka } from "../local/kafka.ts";
import {
  administer,
  drained,
  eventually,
  logOf,
  messageOf,
  publishSettings,
  readByConsole,
  setRule,
  testStack,
  uniqueName,
} from "./support.ts";

/** Text that gzip can't make much smaller. */
function noise(bytes: number): string {
  return Buffer.from(crypto.getRandomValues(new Uint8Array(bytes))).toString("base64");
}

/** Values of a topic's messages, in their order. */
async function valuesOf(topic: string, count: number): Promise<unknown[]> {
  return (await readByConsole(topic, count)).map(({ value }) => value["value"]);
}

async function endOf(topic: string, server?: string): Promise<number> {
  const offsets = await administer((admin) => admin.fetchTopicOffsets(topic), server);
  return offsets.reduce((sum, { high }) => sum + Number(high), 0);
}

Deno.test("Publisher makes topics with partitions, replication_factor and retention", async () => {
  const topic = uniqueName("made");
  const lines: string[] = [];
  const settings = publishSettings(testStack().kafka, { partitions: 3, replicationFactor: 1, retentionMs: 86_400_000 });
  await using publisher = new Publisher(settings, { log: logOf(lines) });
  const message = messageOf(topic, "1");
  assert.deepEqual(await publisher.publish([message]), { acknowledged: [message], refused: [], delayed: new Map() });
  assert.deepEqual(lines, [`Made topics: ${topic}`]);
  const [metadata, configs] = await administer(async (admin) => [
    await admin.fetchTopicMetadata({ topics: [topic] }),
    await admin.describeConfigs({
      includeSynonyms: false,
      resources: [{ type: 2, name: topic, configNames: ["retention.ms"] }],
    }),
  ]);
  assert.equal(metadata.topics[0]?.partitions.length, 3);
  assert.equal(configs.resources[0]?.configEntries[0]?.configValue, "86400000");
});

Deno.test("Publisher puts each key where kafkajs did, in its order", async () => {
  const topic = uniqueName("partitions");
  const settings = publishSettings(testStack().kafka, { partitions: 5 });
  await using publisher = new Publisher(settings, { log: logOf([]) });
  const keys = Array.from({ length: 40 }, (_, i) => `site.${i}`);
  const messages = [1, 2, 3].flatMap((round) => keys.map((key) => ({ ...messageOf(topic, `${key} ${round}`), key })));
  assert.equal((await publisher.publish(messages)).acknowledged.length, messages.length);
  const metadata = await administer((admin) => admin.fetchTopicMetadata({ topics: [topic] }));
  const partitionMetadata = metadata.topics[0]!.partitions;
  const partitioner = Partitioners.DefaultPartitioner();
  const expected = Array(5).fill(0);
  for (const { key, value } of messages) {
    expected[partitioner({ topic, partitionMetadata, message: { key, value: Buffer.from(value) } })]++;
  }
  const offsets = await administer((admin) => admin.fetchTopicOffsets(topic));
  assert.deepEqual(offsets.toSorted((a, b) => a.partition - b.partition).map(({ high }) => Number(high)), expected);
  const values = await valuesOf(topic, messages.length);
  for (const key of keys) {
    assert.deepEqual(values.filter((value) => `${value}`.startsWith(`${key} `)), [1, 2, 3].map((n) => `${key} ${n}`));
  }
});

Deno.test("Publisher names a topic that can't be made, others go on", async () => {
  const [good, bad] = [uniqueName("good"), uniqueName("bad")];
  await administer((admin) => admin.createTopics({ topics: [{ topic: good }] }));
  await using publisher = new Publisher(publishSettings(testStack().kafka, { replicationFactor: 5 }), {
    log: logOf([]),
  });
  const { acknowledged, refused, delayed } = await publisher.publish([messageOf(good, "1"), messageOf(bad, "1")]);
  assert.deepEqual([acknowledged.map(({ topic }) => topic), refused], [[good], []]);
  assert.match(delayed.get(bad)?.reason ?? "", /^it can't be made: .*replication/i);
});

Deno.test("Publisher splits what is too large for one request, and refuses only the message that is too large", async () => {
  const [topic, other] = [uniqueName("large"), uniqueName("beside")];
  await administer((admin) =>
    admin.createTopics({ topics: [{ topic, configEntries: [{ name: "max.message.bytes", value: "20000" }] }] })
  );
  await using publisher = new Publisher(publishSettings(testStack().kafka), { log: logOf([]) });
  const values = Array.from({ length: 20 }, (_, i) => `${i} ${noise(3_000)}`);
  values[7] = `7 ${noise(40_000)}`;
  const messages = [...values.map((value) => messageOf(topic, value)), messageOf(other, "1"), messageOf(other, "2")];
  const { acknowledged, refused, delayed } = await publisher.publish(messages);
  assert.deepEqual(refused.map(({ message }) => message), [messages[7]]);
  assert.match(refused[0]!.reason, /MESSAGE_TOO_LARGE/);
  assert.equal(acknowledged.length, messages.length - 1);
  assert.equal(delayed.size, 0);
  assert.deepEqual(await valuesOf(topic, 19), values.toSpliced(7, 1));
});

Deno.test("Publisher sends messages whose timestamp is refused with that of now", async () => {
  const topic = uniqueName("old");
  await administer((admin) =>
    admin.createTopics({
      topics: [{ topic, configEntries: [{ name: "message.timestamp.before.max.ms", value: "60000" }] }],
    })
  );
  await using publisher = new Publisher(publishSettings(testStack().kafka), { log: logOf([]) });
  const old = { ...messageOf(topic, "old"), timestamp: Date.now() - 3_600_000 };
  const { acknowledged } = await publisher.publish([old]);
  assert.deepEqual(acknowledged, [old]);
  const [record] = await readByConsole(topic, 1);
  assert.ok(Date.now() - record!.timestamp < 60_000);
});

Deno.test("Publisher gives messages of one request their own times, though they are months apart", async () => {
  const topic = uniqueName("months");
  await using publisher = new Publisher(publishSettings(testStack().kafka), { log: logOf([]) });
  const now = Date.now();
  const times = [now, now - 100 * 86_400_000, now - 1];
  await publisher.publish(times.map((timestamp) => ({ ...messageOf(topic, "any"), timestamp })));
  assert.deepEqual((await readByConsole(topic, 3)).map(({ timestamp }) => timestamp), times);
});

Deno.test("Publishing holds up no topic for one that Kafka does not take now, and keeps its order when it does", async () => {
  const [slow, good] = [uniqueName("slow"), uniqueName("good")];
  await administer((admin) => admin.createTopics({ topics: [{ topic: good }] }));
  const lines: string[] = [];
  using spool = new Spool(":memory:");
  await using publishing = drained(
    new Publishing(publishSettings(testStack().kafka, { replicationFactor: 5 }), { spool, log: logOf(lines) }),
  );
  const add = (from: number) => {
    for (let i = from; i < from + 5; i++) for (const topic of [slow, good]) spool.add(messageOf(topic, `${i}`));
  };
  add(0);
  await eventually(() => spool.size === 5);
  add(5);
  await eventually(() => spool.size === 10);
  assert.equal(lines.filter((line) => line.includes(`does not take topic '${slow}'`)).length, 1, lines.join("\n"));
  await administer((admin) => admin.createTopics({ topics: [{ topic: slow }] }));
  assert.equal(await publishing.drain(20_000), 0);
  const expected = Array.from({ length: 10 }, (_, i) => `${i}`);
  for (const topic of [slow, good]) assert.deepEqual(await valuesOf(topic, await endOf(topic)), expected);
  assert.ok(lines.includes(`Kafka takes topic '${slow}' again`));
});

Deno.test("Publishing sets aside what is too large, says so once, and sends it when it is tried again", async () => {
  const topic = uniqueName("refused");
  const limit = (value: string) => [{ name: "max.message.bytes", value }];
  await administer((admin) => admin.createTopics({ topics: [{ topic, configEntries: limit("2000") }] }));
  const folder = await Deno.makeTempDir();
  try {
    const lines: string[] = [];
    using spool = new Spool(`${folder}/spool.db`);
    await using publishing = drained(
      new Publishing(publishSettings(testStack().kafka), { spool, log: logOf(lines) }),
    );
    const large = [noise(3_000), noise(3_000)];
    for (const value of ["1", large[0]!, "2", large[1]!, "3"]) spool.add(messageOf(topic, value));
    await eventually(() => spool.size === 0);
    assert.deepEqual([spool.refusedSize, publishing.refused], [2, 2]);
    assert.equal(lines.filter((line) => line.includes(`Kafka refuses metrics of topic '${topic}'`)).length, 1);
    await administer((admin) =>
      admin.alterConfigs({ validateOnly: false, resources: [{ type: 2, name: topic, configEntries: limit("20000") }] })
    );
    assert.equal(retryRefused(`${folder}/spool.db`), 2);
    // It is noticed though nothing else comes.
    await eventually(() => spool.refusedSize === 0 && spool.size === 0);
    spool.add(messageOf(topic, "4"));
    assert.equal(await publishing.drain(20_000), 0);
    const values = new Set(await valuesOf(topic, await endOf(topic)));
    assert.deepEqual(values, new Set(["1", "2", "3", ...large, "4"]));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("Publisher goes on with other topics where one is not there and topics are not made by themselves", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await using kafka = await startKafka({ folder, autoCreateTopics: false });
    await administer((admin) => admin.createTopics({ topics: [{ topic: "good" }] }), kafka.bootstrapServers);
    const settings = publishSettings(kafka.bootstrapServers, { replicationFactor: 3 });
    const lines: string[] = [];
    using spool = new Spool(":memory:");
    await using publishing = drained(new Publishing(settings, { spool, log: logOf(lines) }));
    for (let i = 0; i < 3; i++) spool.add(messageOf("bad", `${i}`)), spool.add(messageOf("good", `${i}`));
    await eventually(() => spool.size === 3);
    assert.match(lines.join("\n"), /does not take topic 'bad', trying again, others go on: it can't be made: /);
    // A topic that goes away takes no other with it.
    await administer((admin) => admin.createTopics({ topics: [{ topic: "bad" }] }), kafka.bootstrapServers);
    await eventually(() => spool.size === 0);
    await administer((admin) => admin.deleteTopics({ topics: ["bad"] }), kafka.bootstrapServers);
    for (let i = 3; i < 6; i++) spool.add(messageOf("bad", `${i}`)), spool.add(messageOf("good", `${i}`));
    await eventually(() => spool.size === 3);
    await administer((admin) => admin.createTopics({ topics: [{ topic: "bad" }] }), kafka.bootstrapServers);
    assert.equal(await publishing.drain(20_000), 0);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("Publishing sets aside what it has no right to publish, and sends it when the right is there", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await using kafka = await startKafka({ folder, accessControl: true });
    const server = kafka.bootstrapServers;
    await administer((admin) => admin.createTopics({ topics: [{ topic: "bad" }, { topic: "good" }] }), server);
    const lift = await setRule(server, { topic: "bad", operation: "WRITE", permission: "DENY" });
    const lines: string[] = [];
    using spool = new Spool(`${folder}/spool.db`);
    await using publishing = drained(new Publishing(publishSettings(server), { spool, log: logOf(lines) }));
    for (const value of ["1", "2"]) for (const topic of ["bad", "good"]) spool.add(messageOf(topic, value));
    await eventually(() => spool.size === 0);
    assert.deepEqual([spool.refusedSize, publishing.refused, await endOf("good", server)], [2, 2, 2]);
    const told = lines.filter((line) => line.includes("Kafka refuses metrics of topic 'bad'"));
    assert.equal(told.length, 1, lines.join("\n"));
    assert.match(told[0]!, /others go on: .*TOPIC_AUTHORIZATION_FAILED/);
    await lift();
    assert.equal(retryRefused(`${folder}/spool.db`), 2);
    await eventually(() => spool.refusedSize === 0 && spool.size === 0);
    assert.equal(await publishing.drain(20_000), 0);
    assert.equal(await endOf("bad", server), 2);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("Publisher sends fifty topics once beside a deleted one, one that it may not write, and a name that none may have", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await using kafka = await startKafka({ folder, accessControl: true, autoCreateTopics: false });
    const server = kafka.bootstrapServers;
    const good = Array.from({ length: 50 }, (_, i) => `good-${i}`);
    const topics = [...good, "gone", "forbidden"].map((topic) => ({ topic }));
    await administer((admin) => admin.createTopics({ topics }), server);
    await using publisher = new Publisher(publishSettings(server), { log: logOf([]) });
    const batch = (value: string) => [...good, "gone", "forbidden"].map((topic) => messageOf(topic, value));
    assert.equal((await publisher.publish(batch("1"))).acknowledged.length, 52);
    await administer((admin) => admin.deleteTopics({ topics: ["gone"] }), server);
    await setRule(server, { topic: "forbidden", operation: "WRITE", permission: "DENY" });
    const wrong = messageOf("no spaces", "2");
    const { acknowledged, refused, delayed } = await publisher.publish([...batch("2"), wrong]);
    assert.deepEqual(new Set(acknowledged.map(({ topic }) => topic)), new Set(good));
    assert.deepEqual(refused.map(({ message }) => message.topic), ["forbidden"]);
    assert.match(refused[0]!.reason, /\(TOPIC_AUTHORIZATION_FAILED\)$/);
    assert.deepEqual([...delayed.keys()].toSorted(), ["gone", "no spaces"]);
    assert.match(delayed.get("gone")!.reason, /\(UNKNOWN_TOPIC_OR_PARTITION\)$/);
    assert.match(delayed.get("no spaces")!.reason, /\(INVALID_TOPIC_EXCEPTION\)$/);
    for (const topic of good) assert.equal(await endOf(topic, server), 2, topic);
    // It is made again with the next, and takes what is sent then.
    const again = await publisher.publish([messageOf("gone", "3"), messageOf("good-0", "3")]);
    assert.equal(again.acknowledged.length, 2);
    assert.equal(await endOf("gone", server), 1);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("Publishing loses nothing and keeps each topic's order where the broker is killed and comes back", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await using kafka = await startKafka({ folder });
    const server = kafka.bootstrapServers;
    const topics = Array.from({ length: 50 }, (_, i) => `site-${i}`);
    using spool = new Spool(":memory:");
    await using publishing = drained(new Publishing(publishSettings(server), { spool, log: logOf([]) }));
    let sent = 0;
    const send = async (rounds: number) => {
      for (const end = sent + rounds; sent < end; sent++) {
        for (const topic of topics) spool.add(messageOf(topic, `${sent}`));
        await delay(20);
      }
    };
    await send(20);
    await eventually(() => spool.size === 0);
    for (let kills = 0; kills < 2; kills++) {
      // In the middle of what comes.
      const sending = send(30);
      await delay(200);
      await kafka.kill("SIGKILL");
      await sending;
      await kafka.start();
      await send(10);
    }
    assert.equal(await publishing.drain(60_000), 0);
    for (const topic of [topics[0]!, topics[25]!, topics[49]!]) {
      const values = (await readByConsole(topic, await endOf(topic, server), server)).map(({ value }) =>
        value["value"]
      );
      // What is there twice is one row, by its id.
      assert.deepEqual([...new Set(values)], Array.from({ length: sent }, (_, i) => `${i}`));
    }
    for (const topic of topics) assert.ok(await endOf(topic, server) >= sent, topic);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("Publisher says at the first try that a certificate is not trusted, the brokers' or its own", async () => {
  const { kafkaSsl, certificates } = testStack();
  const ca = await Deno.readTextFile(`${certificates}/ca.pem`);
  for (const tls of [{}, { ca }]) {
    await using publisher = new Publisher({ ...publishSettings(kafkaSsl), tls }, { log: logOf([]) });
    await assert.rejects(publisher.publish([messageOf("any", "1")]), {
      name: "ConfigError",
      message: /^Cannot connect to Kafka at 127\.0\.0\.1:\d+ over TLS: .*certificate/i,
    });
  }
});

Deno.test("Publisher can be closed while brokers say nothing, and what is under way fails", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const accepted = listener.accept();
  const publisher = new Publisher(publishSettings(`127.0.0.1:${listener.addr.port}`), { log: logOf([]) });
  const published = assert.rejects(publisher.publish([messageOf("any", "1")]));
  using connection = await accepted;
  await connection.read(new Uint8Array(100));
  await publisher[Symbol.asyncDispose]();
  await published;
});

/**
 * One of several topics fails, then others are sent to: what became of them.
 *
 * @returns Messages of the other topics that were acknowledged and are not there.
 */
async function lostAfterFailure(
  send: (messages: OutgoingMessage[]) => Promise<ReadonlySet<OutgoingMessage>>,
): Promise<number> {
  const [failing, ...others] = [uniqueName("failing"), uniqueName("b"), uniqueName("c")];
  await administer((admin) =>
    admin.createTopics({
      topics: [
        { topic: failing!, configEntries: [{ name: "max.message.bytes", value: "2000" }] },
        ...others.map((topic) => ({ topic })),
      ],
    })
  );
  const acknowledged = new Set<OutgoingMessage>();
  const attempt = async (messages: OutgoingMessage[]) => {
    for (const message of await send(messages)) acknowledged.add(message);
  };
  await attempt(others.map((topic) => messageOf(topic, "first")));
  await attempt([...others.map((topic) => messageOf(topic, "beside")), messageOf(failing!, "x".repeat(5_000))]);
  for (let i = 0; i < 3; i++) await attempt(others.map((topic) => messageOf(topic, `after ${i}`)));
  let lost = 0;
  for (const topic of others) {
    const count = await endOf(topic);
    const there = new Set(count === 0 ? [] : await valuesOf(topic, count));
    const sent = [...acknowledged].filter((message) => message.topic === topic);
    lost += sent.filter(({ value }) => !there.has(JSON.parse(String(value)).value)).length;
  }
  return lost;
}

Deno.test("kafkajs' idempotent producer loses acknowledged messages after one of several topics failed; ours loses none", async () => {
  const producer: Producer = new Kafka({ brokers: [testStack().kafka], logLevel: logLevel.NOTHING }).producer({
    idempotent: true,
    maxInFlightRequests: 1,
    createPartitioner: Partitioners.DefaultPartitioner,
    retry: { retries: 2, initialRetryTime: 100 },
  });
  await producer.connect();
  const lostByIdempotent = await lostAfterFailure(async (messages) => {
    try {
      const topicMessages = messages.map(({ topic, value }) => ({ topic, messages: [{ value: Buffer.from(value) }] }));
      await producer.sendBatch({ acks: -1, topicMessages });
      return new Set(messages);
    } catch {
      return new Set();
    }
  });
  await producer.disconnect();
  assert.ok(lostByIdempotent > 0, "kafkajs has been mended: idempotent mode may be used");
  await using publisher = new Publisher(publishSettings(testStack().kafka), { log: logOf([]) });
  const lost = await lostAfterFailure(async (messages) => new Set((await publisher.publish(messages)).acknowledged));
  assert.equal(lost, 0);
});
