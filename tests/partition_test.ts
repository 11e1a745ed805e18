import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { Partitioners } from "kafkajs";
import { partitionOf } from "../lib/partition.ts";

/** Hashes that the tests of Kafka's own clients name. */
const HASHES = [
  { key: "21", hash: -973932308 },
  { key: "foobar", hash: -790332482 },
  { key: "a-little-bit-long-string", hash: -985981536 },
  { key: "a-little-bit-longer-string", hash: -1486304829 },
  { key: "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", hash: -58897971 },
  { key: "abc", hash: 479470107 },
];

Deno.test.each(HASHES)("partitionOf() is that of Kafka's own producers for '$key'", ({ key, hash }) => {
  assert.equal(partitionOf(Buffer.from(key), 1_000), (hash & 0x7fffffff) % 1_000);
});

Deno.test("partitionOf() is that of kafkajs, with which topics were filled before", () => {
  const partitioner = Partitioners.DefaultPartitioner();
  const keys = Array.from({ length: 2_000 }, (_, i) => `${"ä-site.".repeat(i % 4)}${i * 7919}`);
  for (const partitions of [1, 2, 3, 5, 12, 64]) {
    const partitionMetadata = Array.from({ length: partitions }, (_, partitionId) => ({
      partitionErrorCode: 0,
      partitionId,
      leader: 0,
      replicas: [0],
      isr: [0],
    }));
    for (const key of keys) {
      const expected = partitioner({ topic: "any", partitionMetadata, message: { key, value: "" } });
      assert.equal(partitionOf(Buffer.from(key), partitions), expected, `${key} of ${partitions}`);
    }
  }
});
