import assert from "node:assert/strict";
import { type OutgoingMessage, Spool } from "../lib/spool.ts";

const NONE: ReadonlySet<string> = new Set();

function messageOf(value: string, topic = "a"): OutgoingMessage {
  return { topic, key: topic, value, timestamp: 1_767_323_045_678 };
}

function values(spool: Spool, limit = 100, except = NONE): string[] {
  return spool.next({ limit, except }).map(({ value }) => value);
}

Deno.test("Spool gives messages back as they were added, the oldest first, again and again until they are deleted", () => {
  using spool = new Spool();
  const messages = [messageOf("é\u{1f600}"), messageOf("", "b"), messageOf("{}")];
  for (const message of messages) spool.add(message);
  assert.equal(spool.size, 3);
  for (let i = 0; i < 2; i++) {
    const next = spool.next({ limit: 100, except: NONE });
    assert.deepEqual(next.map(({ sequence: _, ...message }) => ({ ...message })), messages);
    assert.ok(next.every(({ sequence }, i) => i === 0 || sequence > next[i - 1]!.sequence));
  }
  const [first, , third] = spool.next({ limit: 100, except: NONE });
  spool.delete([first!, third!]);
  assert.deepEqual(values(spool), [""]);
  assert.equal(spool.size, 1);
});

Deno.test("Spool.next() keeps to the limit and passes over topics", () => {
  using spool = new Spool();
  for (let i = 0; i < 6; i++) spool.add(messageOf(`${i}`, `topic${i % 3}`));
  assert.deepEqual(values(spool, 2), ["0", "1"]);
  assert.deepEqual(values(spool, 3, new Set(["topic0"])), ["1", "2", "4"]);
  assert.deepEqual(values(spool, 3, new Set(["topic0", "topic1", "topic2", "'"])), []);
});

Deno.test("Spool.add() drops the oldest messages when there is no room, and tells how many", () => {
  const dropped: number[] = [];
  using spool = new Spool({ maxBytes: 10, onDropped: (messages) => dropped.push(messages) });
  for (const value of ["1", "2", "3"]) spool.add(messageOf(value));
  assert.deepEqual(dropped, []);
  spool.add(messageOf("4"));
  assert.deepEqual(values(spool), ["2", "3", "4"]);
  spool.add(messageOf("567890"));
  assert.deepEqual(values(spool), ["567890"]);
  assert.deepEqual(dropped, [1, 3]);
  assert.equal(spool.size, 1);
});

Deno.test("Spool.add() keeps a message that is larger than all the room", () => {
  using spool = new Spool({ maxBytes: 10 });
  spool.add(messageOf("1"));
  spool.add(messageOf("x".repeat(100)));
  assert.deepEqual(values(spool), ["x".repeat(100)]);
  spool.add(messageOf("2"));
  assert.deepEqual(values(spool), ["2"]);
});

Deno.test("Spool.add() counts bytes, not characters", () => {
  const dropped: number[] = [];
  using spool = new Spool({ maxBytes: 10, onDropped: (messages) => dropped.push(messages) });
  spool.add(messageOf("ééé"));
  spool.add(messageOf("1"));
  assert.deepEqual(values(spool), ["1"]);
});

Deno.test("Spool.delete() passes over a message that was dropped meanwhile", () => {
  using spool = new Spool({ maxBytes: 6 });
  spool.add(messageOf("1"));
  spool.add(messageOf("2"));
  const sent = spool.next({ limit: 100, except: NONE });
  spool.add(messageOf("3"));
  assert.deepEqual(values(spool), ["2", "3"]);
  spool.delete(sent);
  spool.delete(sent);
  assert.deepEqual(values(spool), ["3"]);
  assert.equal(spool.size, 1);
  spool.add(messageOf("4"));
  assert.deepEqual(values(spool), ["3", "4"], "the room is counted once");
});

Deno.test("Spool.waitForMessage() resolves for all who wait when a message is added", async () => {
  using spool = new Spool();
  spool.add(messageOf("before"));
  const { signal } = new AbortController();
  let resolved = 0;
  const waits = [spool.waitForMessage(signal), spool.waitForMessage(signal)].map((wait) => wait.then(() => resolved++));
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(resolved, 0);
  spool.add(messageOf("after"));
  await Promise.all(waits);
});

Deno.test("Spool.waitForMessage() resolves when the signal is aborted, for nobody else", async () => {
  using spool = new Spool();
  const controller = new AbortController();
  let other = false;
  const waits = [
    spool.waitForMessage(controller.signal),
    spool.waitForMessage(new AbortController().signal).then(() => other = true),
  ];
  controller.abort();
  await waits[0];
  assert.equal(other, false);
  await spool.waitForMessage(controller.signal);
  spool.add(messageOf("1"));
  await waits[1];
});
