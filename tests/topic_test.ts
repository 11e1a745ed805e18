import assert from "node:assert/strict";
import { checkTopicName, parseTopics } from "../lib/topic.ts";

Deno.test.each(["a", "a.b-c_D", "...", "x".repeat(249), "__my"])("checkTopicName() takes '%s'", (name) => {
  assert.equal(checkTopicName(name, "name", "here"), name);
});

Deno.test.each(["", ".", "..", "a b", "a/b", "ü", "a\n", "x".repeat(250)])("checkTopicName() refuses '%s'", (name) => {
  assert.throws(() => checkTopicName(name, "name", "here"), {
    name: "ConfigError",
    message:
      "Cannot use name (here): expected 1 to 249 letters, digits, dots, dashes and underscores, as Kafka takes " +
      "for a topic",
  });
});

Deno.test.each(["__consumer_offsets", "__transaction_state", "__share_group_state"])(
  "checkTopicName() refuses Kafka's own %s",
  (name) => {
    assert.throws(() => checkTopicName(name, "name", "here"), /expected a name other than that of a topic of Kafka's/);
  },
);

Deno.test("parseTopics() keeps the commas of a /regex/", () => {
  const { names, patterns } = parseTopics("a, /b{1,2}/ ,c,/d\\/,e/", "here");
  assert.deepEqual(names, ["a", "c"]);
  assert.deepEqual([...patterns], [["/b{1,2}/", /^(?:b{1,2})$/], ["/d\\/,e/", /^(?:d\/,e)$/]]);
});

Deno.test("parseTopics() lets a /regex/ match whole names only", () => {
  const [pattern] = parseTopics("/(?i)a|b/", "here").patterns.values();
  assert.deepEqual(["a", "B", "ab", "xa"].filter((name) => pattern?.test(name)), ["a", "B"]);
});
