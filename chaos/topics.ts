import { Buffer } from "node:buffer";
import { setTimeout as delay } from "node:timers/promises";
import { Kafka, logLevel, Partitioners } from "kafkajs";
import { errorMessage } from "../lib/error.ts";
import { silenceTimeoutWarning } from "../lib/kafka.ts";

/** What Kafka holds at the end. */
export interface KafkaContent {
  /** How often each metric's id was published. */
  readonly metrics: ReadonlyMap<string, number>;
  /** Places (`topic/partition@offset`) of messages that are no metrics. */
  readonly poison: ReadonlySet<string>;
  /** Numbers of the poison messages, as {@linkcode Poisoner} gave them. */
  readonly poisonNumbers: ReadonlySet<number>;
}

const ATTEMPTS = 20;
const RETRY_WAIT_MS = 1_000;
const READ_TIMEOUT_MS = 300_000;
/** Status code that a constraint of ours makes PostgreSQL refuse. */
export const REFUSED_STATUS = 418;
/** Header that tells a poison message by its number. */
const POISON_HEADER = "poison";

function createKafka(bootstrapServers: string): Kafka {
  silenceTimeoutWarning();
  return new Kafka({
    clientId: "chaos",
    brokers: [bootstrapServers],
    logLevel: logLevel.NOTHING,
    retry: { retries: 10, initialRetryTime: 200, maxRetryTime: 2_000 },
  });
}

/** Does something that a broker that is away makes fail, a bounded number of times. */
async function insist<T>(what: string, work: () => Promise<T>): Promise<T> {
  for (let attempt = 1;; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (attempt === ATTEMPTS) throw new Error(`Cannot ${what}: ${errorMessage(error)}`, { cause: error });
      await delay(RETRY_WAIT_MS);
    }
  }
}

/** Makes a topic with several partitions, so that not all have just one. */
export async function createTopic(bootstrapServers: string, topic: string, numPartitions: number): Promise<void> {
  await insist(`make topic ${topic}`, async () => {
    const admin = createKafka(bootstrapServers).admin();
    try {
      await admin.connect();
      await admin.createTopics({ topics: [{ topic, numPartitions }] });
    } finally {
      await admin.disconnect();
    }
  });
}

/** Publishes messages that are no metrics, each with its number. */
export class Poisoner {
  readonly #bootstrapServers: string;
  /** Numbers of the messages that Kafka has acknowledged. */
  readonly acknowledged = new Set<number>();
  #count = 0;

  /** Connects for each call. */
  constructor(bootstrapServers: string) {
    this.#bootstrapServers = bootstrapServers;
  }

  /** Publishes some, one of each kind in turn; one that is sent again after a failure may come twice. */
  async publish(topic: string, messages: number): Promise<void> {
    const numbers = Array.from({ length: messages }, () => ++this.#count);
    await insist("publish poison", async () => {
      const producer = createKafka(this.#bootstrapServers).producer({
        createPartitioner: Partitioners.DefaultPartitioner,
      });
      try {
        await producer.connect();
        await producer.send({
          topic,
          messages: numbers.map((number) => ({
            key: topic,
            value: poison(number, topic),
            headers: { [POISON_HEADER]: String(number) },
          })),
        });
      } finally {
        await producer.disconnect();
      }
    });
    for (const number of numbers) this.acknowledged.add(number);
  }
}

function poison(number: number, topic: string): Buffer | null {
  const kinds: readonly (() => Buffer | null)[] = [
    () => Buffer.from(`{not json ${number}`),
    () => null,
    () => Buffer.from([0xff, 0x00, number % 256]),
    () => Buffer.from(JSON.stringify({ name: topic, number })),
    // A metric, which a constraint of ours refuses.
    () =>
      Buffer.from(JSON.stringify({
        id: crypto.randomUUID(),
        occurred_at: new Date().toISOString(),
        name: topic,
        url: "http://127.0.0.1/",
        verdict: "up",
        attempt: 1,
        final: true,
        status_code: REFUSED_STATUS,
      })),
  ];
  return kinds[number % kinds.length]!();
}

/** Messages that a group has not committed yet, over all topics of a prefix. */
export async function lag(bootstrapServers: string, groupId: string, prefix: string): Promise<number> {
  const admin = createKafka(bootstrapServers).admin();
  try {
    await admin.connect();
    const topics = (await admin.listTopics()).filter((topic) => topic.startsWith(prefix));
    const committed = new Map(
      (await admin.fetchOffsets({ groupId, topics })).flatMap(({ topic, partitions }) =>
        partitions.map(({ partition, offset }) => [`${topic}/${partition}`, Number(offset)])
      ),
    );
    let sum = 0;
    for (const topic of topics) {
      for (const { partition, low, high } of await admin.fetchTopicOffsets(topic)) {
        const at = Math.max(committed.get(`${topic}/${partition}`) ?? -1, Number(low));
        sum += Math.max(0, Number(high) - at);
      }
    }
    return sum;
  } finally {
    await admin.disconnect();
  }
}

/**
 * Reads all that topics of a prefix hold, with no code of the programs'.
 *
 * @throws {Error} when not each offset up to the ends comes.
 */
export async function readKafka(bootstrapServers: string, prefix: string): Promise<KafkaContent> {
  const kafka = createKafka(bootstrapServers);
  const admin = kafka.admin();
  await admin.connect();
  const topics = (await admin.listTopics()).filter((topic) => topic.startsWith(prefix));
  let expected = 0;
  for (const topic of topics) {
    for (const { high, low } of await admin.fetchTopicOffsets(topic)) expected += Number(high) - Number(low);
  }
  const metrics = new Map<string, number>();
  const poison = new Set<string>();
  const poisonNumbers = new Set<number>();
  const groupId = `chaos-read-${crypto.randomUUID()}`;
  const consumer = kafka.consumer({ groupId, maxWaitTimeInMs: 200 });
  const seen = new Set<string>();
  try {
    await consumer.connect();
    await consumer.subscribe({ topics, fromBeginning: true });
    const complete = Promise.withResolvers<void>();
    if (expected === 0) complete.resolve();
    await consumer.run({
      autoCommit: false,
      // deno-lint-ignore require-await -- the client wants a promise.
      eachMessage: async ({ topic, partition, message: { offset, value, headers } }) => {
        const place = `${topic}/${partition}@${offset}`;
        if (seen.has(place)) return;
        seen.add(place);
        const number = headers?.[POISON_HEADER];
        if (number !== undefined) {
          poison.add(place);
          poisonNumbers.add(Number(String(number)));
        } else {
          const { id } = JSON.parse(String(value)) as { id: string };
          metrics.set(id, (metrics.get(id) ?? 0) + 1);
        }
        if (seen.size === expected) complete.resolve();
      },
    });
    const timeUp = new AbortController();
    await Promise.race([
      complete.promise,
      delay(READ_TIMEOUT_MS, undefined, { signal: timeUp.signal }).then(() => {
        throw new Error(`Cannot read Kafka: got ${seen.size} of ${expected} messages`);
      }),
    ]).finally(() => timeUp.abort());
  } finally {
    await consumer.disconnect();
    await admin.deleteGroups([groupId]).catch(() => {});
    await admin.disconnect();
  }
  return { metrics, poison, poisonNumbers };
}
