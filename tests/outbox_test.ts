import assert from "node:assert/strict";
import { ConfigError } from "../lib/error.ts";
import { type NewMessage, Outbox, type OutboxSettings } from "../lib/outbox.ts";
import { Spool } from "../lib/spool.ts";
import { freePorts } from "../local/port.ts";
import { logOf, publishSettings, readByConsole, temporaryFile, testStack, uniqueName } from "./support.ts";

function settingsOf(path: string, server: string = testStack().kafka): OutboxSettings {
  return {
    spool: { path, maxBytes: 1024 ** 3, maxAgeMs: 86_400_000, sync: "normal" },
    kafka: publishSettings(server),
  };
}

function messageOf(topic: string, value: string): NewMessage {
  return { topic, key: `key of ${topic}`, value: JSON.stringify({ value }), timestamp: 1_767_323_045_678 };
}

async function temporarySpool(): Promise<{ readonly path: string } & AsyncDisposable> {
  const file = await temporaryFile("empty", "");
  return { path: file.path.replace(/empty$/, "spool.db"), [Symbol.asyncDispose]: () => file[Symbol.asyncDispose]() };
}

Deno.test("Outbox publishes what is added, each topic's in its order, long and short and of any characters", async () => {
  await using spool = await temporarySpool();
  const topics = [uniqueName("outbox"), uniqueName("outbox")];
  const lines: string[] = [];
  // Those of 30,000 characters in three bytes each are larger than what values are gathered in.
  const values = Array.from({ length: 500 }, (_, i) => `${i} ${i % 100 === 7 ? "€".repeat(30_000) : "ä😀\ud800x"}`);
  using outbox = await Outbox.open(settingsOf(spool.path), { log: logOf(lines) });
  for (const [i, value] of values.entries()) {
    for (const topic of topics) outbox.add(messageOf(topic, value));
    if (i % 150 === 0) await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.deepEqual(await outbox.drain(30_000), { left: 0, refused: 0 });
  for (const topic of topics) {
    const records = await readByConsole(topic, values.length);
    assert.deepEqual(records.map(({ value }) => value["value"]), values);
    assert.deepEqual(
      records.map(({ key, timestamp }) => ({ key, timestamp })),
      values.map(() => ({ key: `key of ${topic}`, timestamp: 1_767_323_045_678 })),
    );
  }
  assert.deepEqual(lines.map((line) => line.replace(/: .*/, "")), ["Made topics"], "the thread's lines come here");
});

Deno.test("Outbox.drain() tells how many are left in the spool where Kafka is away", async () => {
  await using spool = await temporarySpool();
  const [port] = freePorts(1);
  const lines: string[] = [];
  {
    using outbox = await Outbox.open(settingsOf(spool.path, `127.0.0.1:${port}`), { log: logOf(lines) });
    for (let i = 0; i < 3; i++) outbox.add(messageOf("any", `${i}`));
    assert.deepEqual(await outbox.drain(500), { left: 3, refused: 0 });
  }
  assert.match(lines.join("\n"), new RegExp(`Kafka at 127\\.0\\.0\\.1:${port}`));
  using left = new Spool(spool.path);
  assert.deepEqual(
    left.next({ limit: 10 }).map(({ value }) => new TextDecoder().decode(value)),
    [0, 1, 2].map((i) => `{"value":"${i}"}`),
  );
});

Deno.test("Outbox.open() says why a spool can't be opened", async () => {
  await using spool = await temporarySpool();
  using _other = new Spool(spool.path);
  await assert.rejects(
    Outbox.open(settingsOf(spool.path), { log: logOf([]) }),
    (error) => error instanceof ConfigError && error.message.includes(`process ${Deno.pid} uses it`),
  );
});

Deno.test("Outbox.failed rejects with what keeps us from ever publishing", async () => {
  await using spool = await temporarySpool();
  const { spool: spoolSettings, kafka } = settingsOf(spool.path, testStack().kafkaSsl);
  // Whose authority is not the system's.
  const settings = { spool: spoolSettings, kafka: { ...kafka, tls: {} } };
  using outbox = await Outbox.open(settings, { log: logOf([]) });
  outbox.add(messageOf("any", "1"));
  await assert.rejects(outbox.failed, ConfigError);
  await assert.rejects(outbox.drain(1_000), ConfigError);
});
