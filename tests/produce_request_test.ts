import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { type MessageRecord, produceV8, produceV9 } from "@platformatic/kafka";
import { encodeProduceRequest, type Part } from "../lib/produce_request.ts";
import type { OutgoingMessage } from "../lib/spool_file.ts";

const HEADERS = new Map([["content-type", "application/json"], ["version", "1"]].map(([name, value]) => [
  Buffer.from(name!),
  Buffer.from(value!),
]));

const REQUESTS = [
  { isFlexible: true, name: "version 9", request: produceV9 },
  { isFlexible: false, name: "version 8", request: produceV8 },
];

function partOf(topic: string, partition: number, messages: readonly [value: string, timestamp: number][]) {
  return {
    topic,
    partition,
    dated: false,
    messages: messages.map(([value, timestamp], i) => ({
      topic,
      key: `${topic} ${i}`,
      value: Buffer.from(value),
      timestamp,
    })),
  } satisfies Part<OutgoingMessage>;
}

function recordsOf({ topic, partition, messages }: Part<OutgoingMessage>): MessageRecord[] {
  return messages.map(({ key, value, timestamp }) => ({
    topic,
    partition,
    key: Buffer.from(key),
    value: Buffer.from(value),
    headers: HEADERS,
    timestamp: BigInt(timestamp),
  }));
}

/** What the library makes of it, given the numbers of a producer that is not idempotent. */
async function encodeByLibrary(
  parts: readonly Part<OutgoingMessage>[],
  { request, compression }: { request: typeof produceV9 | typeof produceV8; compression: "none" | "gzip" },
): Promise<Buffer> {
  const options = {
    compression,
    partitionLeaderEpoch: -1,
    producerEpoch: -1,
    sequences: Object.assign(new Map(), { getWithDefault: () => -1 }),
  };
  const writer = await request.createRequestAsync(-1, 25_000, parts.flatMap(recordsOf), options as never);
  return writer.buffer;
}

Deno.test.each(REQUESTS)("encodeProduceRequest() writes $name as the library does", async ({ isFlexible, request }) => {
  const now = Date.UTC(2026, 0, 1);
  const plain = [
    partOf("one", 0, [["x", now]]),
    partOf("größe", 0, [["äöü € 😀", now], ["", now - 5], ["y".repeat(200), now + 20 * 86_400_000]]),
    partOf("größe", 7, [["z".repeat(3_000), now + 63], ["64", now + 127], ["half \ud800", now - 20 * 86_400_000]]),
  ];
  const options = { isFlexible, acks: -1, timeoutMs: 25_000 };
  assert.deepEqual(
    await encodeProduceRequest(plain, options),
    await encodeByLibrary(plain, { request, compression: "none" }),
  );
  // Compressed.
  const large = [partOf("large", 0, Array.from({ length: 5 }, (_, i) => [`${i} ${"x".repeat(50_000)}`, now]))];
  assert.deepEqual(
    await encodeProduceRequest(large, options),
    await encodeByLibrary(large, { request, compression: "gzip" }),
  );
});
