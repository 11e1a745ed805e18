import { Buffer } from "node:buffer";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { crc32c } from "@platformatic/kafka";
import { METRIC_VERSION } from "./metric.ts";
import type { OutgoingMessage } from "./spool_file.ts";

/** Messages of one partition. */
export interface Part<M extends OutgoingMessage> {
  /** Topic. */
  readonly topic: string;
  /** Of the topic. */
  readonly partition: number;
  /** In their order. */
  readonly messages: readonly M[];
  /** Whether they are to have the time of now instead of their own. */
  readonly dated: boolean;
}

/** Options of {@linkcode encodeProduceRequest}. */
export interface ProduceRequestOptions {
  /** Whether the version of the request, 9 or later, has lengths of variable size, as KIP-482 says. */
  readonly isFlexible: boolean;
  /** Replicas that have to have it before it is answered; -1 for all that are in sync. */
  readonly acks: number;
  /** How long they may take. */
  readonly timeoutMs: number;
}

const zip = promisify(gzip) as (data: Uint8Array) => Promise<Buffer>;
/** Of a part, from which on it is compressed: what has waited, or many sites share. A few records cost less as they are. */
const MIN_GZIP_BYTES = 16_000;
/** Threads that compress; there are few cores. */
const GZIP_AT_ONCE = 4;
const GZIP = 1;
const MAGIC = 2;
const NOT_KNOWN = -1;
/** Of a batch, before its records, and where its checksum begins. */
const BATCH_HEAD_BYTES = 61;
const CHECKED_FROM = 21;
/** Before its length, where an offset and the length itself stand. */
const LENGTH_FROM = 12;
/** The most that the numbers of a record take. */
const RECORD_HEAD_BYTES = 40;
/** The most that the length of a batch takes. */
const LENGTH_BYTES = 5;
/** UTF-8 of a unit of a string, at most. */
const BYTES_PER_UNIT = 3;
const FIRST_BYTES = 64 * 1024;

/** Bytes that grow. */
class Bytes {
  at = 0;
  #buffer: Buffer;

  /** With room for so many, before it grows. */
  constructor(room: number) {
    this.#buffer = Buffer.allocUnsafe(room);
  }

  /** What was written; only until more is. */
  get written(): Buffer {
    return this.#buffer.subarray(0, this.at);
  }

  /** Makes room, and returns where to write. */
  room(bytes: number): Buffer {
    if (this.at + bytes > this.#buffer.length) {
      const grown = Buffer.allocUnsafe(Math.max(2 * this.#buffer.length, this.at + bytes));
      this.#buffer.copy(grown, 0, 0, this.at);
      this.#buffer = grown;
    }
    return this.#buffer;
  }

  int8(value: number): void {
    this.at = this.room(1).writeInt8(value, this.at);
  }

  int16(value: number): void {
    this.at = this.room(2).writeInt16BE(value, this.at);
  }

  int32(value: number): void {
    this.at = this.room(4).writeInt32BE(value, this.at);
  }

  /** Unsigned, of variable size. */
  varint(value: number): void {
    this.at = writeVarint(this.room(10), value, this.at);
  }

  append(bytes: Uint8Array): void {
    this.room(bytes.length).set(bytes, this.at);
    this.at += bytes.length;
  }

  /** Moves what was written from a place on to another one before it. */
  move(from: number, to: number): void {
    this.#buffer.copyWithin(to, from, this.at);
    this.at -= from - to;
  }
}

/** Headers of each record, with their number before them. */
const HEADERS = ((): Uint8Array => {
  const bytes = new Bytes(FIRST_BYTES);
  const headers = [["content-type", "application/json"], ["version", String(METRIC_VERSION)]];
  bytes.varint(zigzag(headers.length));
  for (const text of headers.flat()) {
    bytes.varint(zigzag(Buffer.byteLength(text)));
    bytes.append(Buffer.from(text));
  }
  return Uint8Array.from(bytes.written);
})();

/**
 * Body of a request `Produce` of Kafka's protocol, its batches compressed (gzip) where that pays. It is not
 * `@platformatic/kafka` that encodes it: that takes three times as long, and writes wrong times where messages of a batch
 * are more than 24 days apart.
 */
export async function encodeProduceRequest(
  parts: readonly Part<OutgoingMessage>[],
  { isFlexible, acks, timeoutMs }: ProduceRequestOptions,
): Promise<Buffer> {
  const zipped = await zipParts(parts);
  // At once: what grows to megabytes costs as much again in memory that the system clears.
  const bytes = new Bytes(parts.reduce((sum, part) => sum + roomOf(part), FIRST_BYTES));
  const length = (of: number) => isFlexible ? bytes.varint(of + 1) : bytes.int32(of);
  const endOfFields = () => isFlexible && bytes.varint(0);
  // No transaction.
  if (isFlexible) bytes.varint(0);
  else bytes.int16(NOT_KNOWN);
  bytes.int16(acks);
  bytes.int32(timeoutMs);
  const byTopic = Map.groupBy(parts, ({ topic }) => topic);
  length(byTopic.size);
  for (const [topic, ofTopic] of byTopic) {
    const name = Buffer.from(topic);
    if (isFlexible) bytes.varint(name.length + 1);
    else bytes.int16(name.length);
    bytes.append(name);
    length(ofTopic.length);
    for (const part of ofTopic) {
      bytes.int32(part.partition);
      const batch = zipped.get(part);
      if (batch !== undefined) {
        length(batch.length);
        bytes.append(batch);
      } else {
        // Its length stands before it, and takes as many bytes as it needs.
        const begin = bytes.at;
        bytes.room(LENGTH_BYTES);
        bytes.at += LENGTH_BYTES;
        writeBatch(bytes, part);
        const end = bytes.at;
        bytes.at = begin;
        length(end - begin - LENGTH_BYTES);
        const to = bytes.at;
        bytes.at = end;
        bytes.move(begin + LENGTH_BYTES, to);
      }
      endOfFields();
    }
    endOfFields();
  }
  endOfFields();
  return bytes.written;
}

/** Batches of those parts of which compressing pays. */
async function zipParts(parts: readonly Part<OutgoingMessage>[]): Promise<Map<Part<OutgoingMessage>, Buffer>> {
  const zipped = new Map<Part<OutgoingMessage>, Buffer>();
  const left = parts.filter(({ messages }) => messages.length > 1 && sizeOf(messages) >= MIN_GZIP_BYTES).values();
  const work = async () => {
    for (const part of left) {
      const bytes = new Bytes(roomOf(part));
      writeBatch(bytes, part);
      const batch = bytes.written;
      const records = await zip(batch.subarray(BATCH_HEAD_BYTES));
      zipped.set(part, finishBatch(Buffer.concat([batch.subarray(0, BATCH_HEAD_BYTES), records]), GZIP));
    }
  };
  await Promise.all(Array.from({ length: GZIP_AT_ONCE }, work));
  return zipped;
}

/** Bytes of a part, at most. */
function roomOf({ topic, messages }: Part<OutgoingMessage>): number {
  const head = BYTES_PER_UNIT * topic.length + 2 * LENGTH_BYTES + BATCH_HEAD_BYTES;
  return head + sizeOf(messages) + messages.length * (RECORD_HEAD_BYTES + HEADERS.length);
}

function sizeOf(messages: readonly OutgoingMessage[]): number {
  let size = 0;
  for (const { key, value } of messages) size += BYTES_PER_UNIT * key.length + value.length;
  return size;
}

/** A batch of records in version 2 of their format, not compressed. */
function writeBatch(bytes: Bytes, { messages, dated }: Part<OutgoingMessage>): void {
  const begin = bytes.at;
  const now = dated ? Date.now() : 0;
  const first = dated ? now : messages[0]!.timestamp;
  let last = first;
  bytes.room(BATCH_HEAD_BYTES);
  bytes.at += BATCH_HEAD_BYTES;
  // Those of one topic mostly have one key.
  let [key, keyBytes] = ["", Buffer.alloc(0)];
  for (let i = 0; i < messages.length; i++) {
    const message = messages[i]!;
    const timestamp = dated ? now : message.timestamp;
    if (timestamp > last) last = timestamp;
    if (message.key !== key) {
      key = message.key;
      keyBytes = Buffer.from(key);
    }
    writeRecord(bytes, { key: keyBytes, value: message.value, offset: i, since: timestamp - first });
  }
  const head = bytes.room(0).subarray(begin, bytes.at);
  head.writeInt32BE(NOT_KNOWN, LENGTH_FROM);
  head.writeInt8(MAGIC, 16);
  head.writeInt32BE(messages.length - 1, 23);
  writeInt64(head, first, 27);
  writeInt64(head, last, 35);
  // No producer's id, epoch and sequence: nothing is idempotent here.
  head.fill(0xff, 43, 57);
  head.writeInt32BE(messages.length, 57);
  finishBatch(head, 0);
}

/** Writes what depends on the records as they are sent. */
function finishBatch(batch: Buffer, attributes: number): Buffer {
  writeInt64(batch, 0, 0);
  batch.writeInt32BE(batch.length - LENGTH_FROM, 8);
  batch.writeInt16BE(attributes, CHECKED_FROM);
  batch.writeUInt32BE(crc32c(batch.subarray(CHECKED_FROM)), 17);
  return batch;
}

function writeRecord(
  bytes: Bytes,
  { key, value, offset, since }: { key: Uint8Array; value: Uint8Array; offset: number; since: number },
): void {
  const buffer = bytes.room(RECORD_HEAD_BYTES + key.length + value.length + HEADERS.length);
  const sinceZigzag = zigzag(since);
  const offsetZigzag = zigzag(offset);
  const keyZigzag = zigzag(key.length);
  const valueZigzag = zigzag(value.length);
  const length = 1 + varintBytes(sinceZigzag) + varintBytes(offsetZigzag) + varintBytes(keyZigzag) + key.length +
    varintBytes(valueZigzag) + value.length + HEADERS.length;
  let at = writeVarint(buffer, zigzag(length), bytes.at);
  buffer[at++] = 0;
  at = writeVarint(buffer, sinceZigzag, at);
  at = writeVarint(buffer, offsetZigzag, at);
  at = writeVarint(buffer, keyZigzag, at);
  buffer.set(key, at);
  at = writeVarint(buffer, valueZigzag, at + key.length);
  buffer.set(value, at);
  at += value.length;
  buffer.set(HEADERS, at);
  bytes.at = at + HEADERS.length;
}

function zigzag(value: number): number {
  return value < 0 ? -2 * value - 1 : 2 * value;
}

function varintBytes(value: number): number {
  let bytes = 1;
  for (let left = value; left >= 0x80; left = Math.floor(left / 0x80)) bytes++;
  return bytes;
}

function writeVarint(buffer: Buffer, value: number, at: number): number {
  let left = value;
  let next = at;
  for (; left >= 0x80; left = Math.floor(left / 0x80)) buffer[next++] = (left % 0x80) | 0x80;
  buffer[next++] = left;
  return next;
}

function writeInt64(buffer: Buffer, value: number, at: number): void {
  buffer.writeInt32BE(Math.floor(value / 2 ** 32), at);
  buffer.writeUInt32BE(value >>> 0, at + 4);
}
