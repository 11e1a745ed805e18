import assert from "node:assert/strict";
import { decodeMetric, type KafkaMessage } from "../lib/metric.ts";
import { decodeMessages } from "../lib/writer.ts";

const OLD = JSON.stringify({
  name: "apache",
  url: "https://www.apache.org/",
  regex: "",
  has_regex: false,
  status_code: 200,
  response_time: 0.25,
  ocurred_at: "2020-05-06T07:08:09",
});

function messageOf(offset: number, value: string | null): KafkaMessage {
  return {
    topic: "apache",
    partition: 0,
    offset: `${offset}`,
    timestamp: 0,
    key: null,
    value: value === null ? null : new TextEncoder().encode(value),
    headers: {},
  };
}

Deno.test("decodeMessages() sorts messages into rows and dead letters, each in its order", () => {
  const messages = [OLD, "no JSON", OLD, null, "{}"].map((value, offset) => messageOf(offset, value));
  const { rows, deadLetters } = decodeMessages(messages);
  assert.deepEqual(
    rows.map(({ message, metric }) => ({ message, metric })),
    [messages[0]!, messages[2]!].map((message) => ({ message, metric: decodeMetric(message) })),
  );
  assert.deepEqual(deadLetters, [
    { message: messages[1], reason: "expected JSON" },
    { message: messages[3], reason: "expected a metric, got a message without a value" },
    { message: messages[4], reason: "expected a UUID as id, got nothing" },
  ]);
});

Deno.test("decodeMessages() makes nothing of nothing", () => {
  assert.deepEqual(decodeMessages([]), { rows: [], deadLetters: [] });
});
