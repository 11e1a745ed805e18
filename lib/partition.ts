import type { Buffer } from "node:buffer";

const SEED = 0x9747b28c;
const M = 0x5bd1e995;
const R = 24;

/**
 * Partition of a key, as Kafka's own producers choose it: messages of a key stay in one, whoever sends them.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { Buffer } from "node:buffer";
 *
 * assert.equal(partitionOf(Buffer.from("abc"), 10), 7);
 * ```
 */
export function partitionOf(key: Buffer, partitions: number): number {
  return partitions === 1 ? 0 : (murmur2(key) & 0x7fffffff) % partitions;
}

/** MurmurHash2 in the variant of `org.apache.kafka.common.utils.Utils.murmur2`. */
function murmur2(data: Buffer): number {
  const { length } = data;
  const whole = length & ~3;
  let h = SEED ^ length;
  for (let at = 0; at < whole; at += 4) {
    let k = Math.imul(data.readInt32LE(at), M);
    k = Math.imul(k ^ (k >>> R), M);
    h = Math.imul(h, M) ^ k;
  }
  if (whole < length) {
    for (let at = length - 1; at >= whole; at--) h ^= data[at]! << (8 * (at - whole));
    h = Math.imul(h, M);
  }
  h = Math.imul(h ^ (h >>> 13), M);
  return h ^ (h >>> 15);
}
