import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";
import { ConfigError } from "../lib/error.ts";
import { Spool } from "../lib/spool.ts";
import { listRefused, type OutgoingMessage, retryRefused, type SpooledMessage } from "../lib/spool_file.ts";

const NONE: ReadonlySet<string> = new Set();

function messageOf(value: string, topic = "a"): OutgoingMessage {
  return { topic, key: topic, value: new TextEncoder().encode(value), timestamp: 1_767_323_045_678 };
}

function values(spool: Spool, limit = 100, except = NONE): string[] {
  return spool.next({ limit, except }).map(textOf);
}

function textOf({ value }: SpooledMessage): string {
  return new TextDecoder().decode(value);
}

Deno.test("Spool gives messages back as they were added, the oldest first, again and again until they are deleted", () => {
  using spool = new Spool(":memory:");
  const messages = [messageOf("é\u{1f600}"), messageOf("", "b"), messageOf("{}")];
  for (const message of messages) spool.add(message);
  assert.equal(spool.size, 3);
  for (let i = 0; i < 2; i++) {
    const next = spool.next({ limit: 100 });
    assert.deepEqual(
      next.map(({ topic, key, value, timestamp }) => ({ topic, key, value: new Uint8Array(value), timestamp })),
      messages,
    );
    assert.ok(next.every(({ sequence }, i) => i === 0 || sequence > next[i - 1]!.sequence));
  }
  const [first, , third] = spool.next({ limit: 100 });
  spool.delete([first!, third!]);
  assert.deepEqual(values(spool), [""]);
  assert.equal(spool.size, 1);
});

Deno.test("Spool.next() keeps to the limit and passes over topics", () => {
  using spool = new Spool(":memory:");
  for (let i = 0; i < 6; i++) spool.add(messageOf(`${i}`, `topic${i % 3}`));
  assert.deepEqual(values(spool, 2), ["0", "1"]);
  assert.deepEqual(values(spool, 3, new Set(["topic0"])), ["1", "2", "4"]);
  assert.deepEqual(values(spool, 3, new Set(["topic0", "topic1", "topic2", "'"])), []);
});

Deno.test("Spool.add() drops the oldest messages when there is no room, and tells how many", () => {
  const dropped: number[] = [];
  using spool = new Spool(":memory:", {
    maxBytes: 10,
    onDropped: (messages, why) => {
      assert.equal(why, "full");
      dropped.push(messages);
    },
  });
  for (const value of ["1", "2", "3"]) spool.add(messageOf(value));
  spool.flush();
  assert.deepEqual(dropped, []);
  spool.add(messageOf("4"));
  spool.flush();
  assert.deepEqual(values(spool), ["2", "3", "4"]);
  spool.add(messageOf("567890"));
  assert.deepEqual(values(spool), ["567890"]);
  assert.deepEqual(dropped, [1, 3]);
  assert.equal(spool.size, 1);
});

Deno.test("Spool.add() keeps a message that is larger than all the room", () => {
  using spool = new Spool(":memory:", { maxBytes: 10 });
  spool.add(messageOf("1"));
  spool.add(messageOf("x".repeat(100)));
  assert.deepEqual(values(spool), ["x".repeat(100)]);
  spool.add(messageOf("2"));
  assert.deepEqual(values(spool), ["2"]);
});

Deno.test("Spool.add() counts bytes, not characters", () => {
  const dropped: number[] = [];
  using spool = new Spool(":memory:", { maxBytes: 10, onDropped: (messages) => dropped.push(messages) });
  spool.add(messageOf("ééé"));
  spool.add(messageOf("1"));
  assert.deepEqual(values(spool), ["1"]);
});

Deno.test("Spool.delete() passes over a message that was dropped meanwhile", () => {
  using spool = new Spool(":memory:", { maxBytes: 6 });
  spool.add(messageOf("1"));
  spool.add(messageOf("2"));
  const sent = spool.next({ limit: 100 });
  spool.add(messageOf("3"));
  assert.deepEqual(values(spool), ["2", "3"]);
  spool.delete(sent);
  spool.delete(sent);
  assert.deepEqual(values(spool), ["3"]);
  assert.equal(spool.size, 1);
  spool.add(messageOf("4"));
  assert.deepEqual(values(spool), ["3", "4"], "the room is counted once");
});

Deno.test("Spool.delete() counts once what is deleted twice, in parts and in any order", () => {
  using spool = new Spool(":memory:", { maxBytes: 18 });
  for (let i = 0; i < 5; i++) spool.add(messageOf(`${i}`));
  const [zero, one, two, three, four] = spool.next({ limit: 100 });
  spool.delete([one!, zero!]);
  assert.deepEqual(values(spool), ["2", "3", "4"]);
  spool.delete([two!, zero!, one!]);
  spool.delete([four!, four!]);
  spool.delete([two!, two!, four!]);
  assert.deepEqual(values(spool), ["3"]);
  assert.equal(spool.size, 1);
  for (let i = 5; i < 10; i++) spool.add(messageOf(`${i}`));
  spool.flush();
  spool.delete([three!]);
  assert.deepEqual(values(spool), ["5", "6", "7", "8", "9"], "there is room for six");
  assert.equal(spool.size, 5);
});

Deno.test("Spool gives the same from memory and from the file, whatever is added, deleted and dropped", async () => {
  await using folder = await temporaryFolder();
  let dropped = 0;
  let state = 2026;
  const random = (below: number) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return (state >>> 8) % below;
  };
  const options = { maxBytes: 40 * 1024 * 1024, onDropped: (messages: number) => dropped += messages };
  let spool = new Spool(`${folder.path}/spool.db`, options);
  const large = "x".repeat(3 * 1024 * 1024);
  let expected: string[] = [];
  let handedOut: SpooledMessage[] = [];
  for (let added = 0, i = 0; i < 600; i++) {
    for (let count = random(5); count > 0; count--) {
      const value = `${added++} ${random(40) === 0 ? large : ""}`;
      spool.add(messageOf(value, `topic${random(3)}`));
      expected.push(value);
    }
    spool.flush();
    expected = expected.slice(dropped);
    dropped = 0;
    if (random(30) === 0) {
      spool[Symbol.dispose]();
      spool = new Spool(`${folder.path}/spool.db`, options);
    }
    const topics = new Set(random(3) === 0 ? [`topic${random(3)}`] : []);
    const isOnly = topics.size > 0 && random(2) === 0;
    const limit = 1 + random(40);
    const next = spool.next(isOnly ? { limit, only: topics } : { limit, except: topics });
    assert.ok(next.every(({ topic }) => topics.has(topic) === isOnly));
    assert.ok(next.every(({ sequence }, i) => i === 0 || sequence > next[i - 1]!.sequence));
    if (topics.size === 0) assert.deepEqual(next.map(textOf), expected.slice(0, limit));
    assert.equal(spool.size, expected.length);
    // What was handed out before is acknowledged later, all or a part of it.
    if (random(2) === 0) {
      const part = random(3) === 0 ? handedOut.filter(() => random(2) === 0) : handedOut;
      spool.delete(part);
      const deleted = new Set(part.map(textOf));
      expected = expected.filter((value) => !deleted.has(value));
    }
    handedOut = next;
  }
  assert.equal(spool.size, expected.length);
  spool[Symbol.dispose]();
  using again = new Spool(`${folder.path}/spool.db`);
  assert.deepEqual(values(again, 10_000), expected);
});

Deno.test("Spool.waitForMessage() resolves for all who wait when a message is added", async () => {
  using spool = new Spool(":memory:");
  spool.add(messageOf("before"));
  spool.flush();
  const { signal } = new AbortController();
  let resolved = 0;
  const waits = [spool.waitForMessage(signal), spool.waitForMessage(signal)].map((wait) => wait.then(() => resolved++));
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(resolved, 0);
  spool.add(messageOf("after"));
  await Promise.all(waits);
});

Deno.test("Spool.waitForMessage() resolves when the signal is aborted, for nobody else", async () => {
  using spool = new Spool(":memory:");
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

/** A folder for a spool. */
async function temporaryFolder(): Promise<{ readonly path: string } & AsyncDisposable> {
  const path = await Deno.makeTempDir();
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

Deno.test("Spool keeps messages from one process to the next, in a folder that it makes", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/a/b/spool.db`;
  {
    using spool = new Spool(path);
    for (const value of ["1", "2", "3"]) spool.add(messageOf(value));
    spool.delete(spool.next({ limit: 1 }));
    spool.add(messageOf("added a moment before the end"));
  }
  using spool = new Spool(path, { sync: "full" });
  assert.equal(spool.size, 3);
  assert.deepEqual(values(spool), ["2", "3", "added a moment before the end"]);
});

/** Runs a program that finds the class Spool and a folder's `path`. */
async function runWithSpool(program: string, { path, flags = [] }: RunOptions): Promise<Deno.CommandOutput> {
  const module = new URL("../lib/spool.ts", import.meta.url);
  await Deno.writeTextFile(
    `${path}/program.ts`,
    `import { Spool } from ${JSON.stringify(module.href)};\nconst path = ${JSON.stringify(path)};\n${program}`,
  );
  const config = fileURLToPath(new URL("../deno.json", import.meta.url));
  const args = ["run", "--quiet", "-A", "--no-check", "--config", config, ...flags, `${path}/program.ts`];
  return await new Deno.Command(Deno.execPath(), { args }).output();
}

interface RunOptions {
  readonly path: string;
  readonly flags?: readonly string[];
}

Deno.test("Spool.next() gives nothing that a kill would lose", async () => {
  await using folder = await temporaryFolder();
  const { signal } = await runWithSpool(
    `
      const spool = new Spool(path + "/spool.db");
      const add = (value) => {
        spool.add({ topic: "a", key: "a", value: new TextEncoder().encode(String(value)), timestamp: 0 });
      };
      for (let i = 0; i < 100; i++) add(i);
      spool.delete(spool.next({ limit: 10 }));
      add(100);
      const given = spool.next({ limit: 1000 }).map(({ value }) => new TextDecoder().decode(value));
      Deno.writeTextFileSync(path + "/given.json", JSON.stringify(given));
      add("not given");
      Deno.kill(Deno.pid, "SIGKILL");
    `,
    folder,
  );
  assert.equal(signal, "SIGKILL");
  const given = JSON.parse(await Deno.readTextFile(`${folder.path}/given.json`));
  assert.deepEqual(given, Array.from({ length: 91 }, (_, i) => `${i + 10}`));
  using spool = new Spool(`${folder.path}/spool.db`);
  assert.deepEqual(values(spool), given);
});

Deno.test("Spool keeps a few MB in memory at most, however much waits for Kafka", async () => {
  await using folder = await temporaryFolder();
  const { code, stderr } = await runWithSpool(
    `
      using spool = new Spool(path + "/spool.db");
      for (const [messages, length] of [[20_000, 10_000], [100_000, 10], [40, 4_000_000]]) {
        for (let i = 0; i < messages; i++) {
          spool.add({ topic: "a", key: "a", value: new TextEncoder().encode(String(i).padEnd(length)), timestamp: 0 });
          if (length > 1e6 || i % 20 === 0) spool.flush();
        }
        for (let seen = 0; spool.size > 0;) {
          const next = spool.next({ limit: length > 1e6 ? 2 : 500 });
          if (next.length === 0 || next.some(({ value }, i) => Number(new TextDecoder().decode(value)) !== seen + i)) Deno.exit(1);
          spool.delete(next);
          seen += next.length;
        }
      }
    `,
    // What waits is some 200 MB, 1 MB and 160 MB.
    { path: folder.path, flags: ["--v8-flags=--max-old-space-size=64"] },
  );
  assert.equal(code, 0, new TextDecoder().decode(stderr));
});

Deno.test("Spool is opened once at a time", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/spool.db`;
  const first = new Spool(path);
  assert.throws(
    () => new Spool(path),
    (error) => error instanceof ConfigError && error.message.includes(`process ${Deno.pid} uses it`),
  );
  first[Symbol.dispose]();
  new Spool(path)[Symbol.dispose]();
});

Deno.test.each([
  { name: "a file that is no database", damage: (path: string) => Deno.writeTextFileSync(path, "x".repeat(20_000)) },
  {
    name: "a page that is overwritten",
    damage: (path: string) => {
      const file = Deno.openSync(path, { write: true });
      file.seekSync(2 * 4096, Deno.SeekMode.Start);
      file.writeSync(new Uint8Array(4096 * 20).fill(0xa5));
      file.close();
    },
  },
])("Spool sets $name aside, says so, and begins a new one", async ({ damage }) => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/spool.db`;
  {
    using spool = new Spool(path);
    for (let i = 0; i < 500; i++) spool.add(messageOf("x".repeat(500)));
  }
  damage(path);
  const asides: string[] = [];
  using spool = new Spool(path, { onDamaged: (aside) => asides.push(aside) });
  assert.equal(asides.length, 1);
  assert.ok(asides[0]!.startsWith(`${path}.damaged-20`));
  assert.ok((await Deno.stat(asides[0]!)).size >= 20_000);
  assert.equal(spool.size, 0);
  spool.add(messageOf("new"));
  assert.deepEqual(values(spool), ["new"]);
});

Deno.test("Spool sets a file aside that is damaged while it is open, and keeps what is new", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/spool.db`;
  const asides: string[] = [];
  using spool = new Spool(path, { onDamaged: (aside) => asides.push(aside) });
  for (let i = 0; i < 5_000; i++) spool.add(messageOf("x".repeat(500)));
  spool.flush();
  // Moves all into the file itself.
  using other = new DatabaseSync(path);
  other.exec("PRAGMA wal_checkpoint(TRUNCATE)");
  const file = await Deno.open(path, { write: true });
  await file.seek(4096, Deno.SeekMode.Start);
  await file.write(new Uint8Array(4096 * 600).fill(0xa5));
  file.close();
  spool.add(messageOf("new"));
  for (let i = 0; i < 3 && asides.length === 0; i++) spool.next({ limit: 10_000 });
  assert.equal(asides.length, 1);
  spool.add(messageOf("newer"));
  assert.deepEqual(values(spool).slice(-1), ["newer"]);
  assert.equal(spool.size, values(spool).length);
});

Deno.test("Spool goes on in memory while the disk is full, and loses nothing", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/disk/spool.db`;
  await Deno.mkdir(`${folder.path}/disk`);
  const mounted = await succeeds("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", `${folder.path}/disk`);
  // Only root can make a disk that small.
  if (!mounted) return;
  try {
    const problems: string[] = [];
    const asides: string[] = [];
    const added: string[] = [];
    {
      using spool = new Spool(path, {
        onProblem: (reason) => problems.push(reason),
        onDamaged: (aside) => asides.push(aside),
      });
      const add = (count: number) => {
        for (let i = 0; i < count; i++) {
          added.push(`${added.length}`.padEnd(1_000, "."));
          spool.add(messageOf(added.at(-1)!));
          if (i % 10 === 0) spool.flush();
        }
      };
      add(20_000);
      assert.match(problems[0]!, /full|disk I\/O/);
      assert.equal(spool.size, 20_000);
      const seen: string[] = [];
      for (let batch = spool.next({ limit: 500 }); batch.length > 0; batch = spool.next({ limit: 500 })) {
        seen.push(...batch.map(textOf));
        spool.delete(batch);
        if (seen.length < 20_000) add(10);
      }
      assert.deepEqual(seen, added);
      assert.equal(spool.size, 0);
      add(5);
    }
    using spool = new Spool(path);
    // What could not be deleted is there again, as after a crash; nothing else is.
    const left = values(spool, 10_000);
    assert.deepEqual(left.slice(-5), added.slice(-5));
    assert.ok(new Set(left).isSubsetOf(new Set(added)));
    assert.deepEqual(asides, []);
  } finally {
    await succeeds("umount", `${folder.path}/disk`);
  }
});

async function succeeds(command: string, ...args: string[]): Promise<boolean> {
  try {
    const { success } = await new Deno.Command(command, { args, stdout: "null", stderr: "null" }).output();
    return success;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

Deno.test("Spool.next() drops what is older than spool_max_age, up to the first that is not", () => {
  const dropped: string[] = [];
  let now = 1_767_323_045_678;
  using spool = new Spool(":memory:", {
    maxAgeMs: 60_000,
    now: () => now,
    onDropped: (messages, why) => dropped.push(`${messages} ${why}`),
  });
  spool.add(messageOf("1"));
  spool.add(messageOf("2"));
  spool.add({ ...messageOf("3"), timestamp: now + 30_000 });
  assert.deepEqual(values(spool), ["1", "2", "3"]);
  now += 60_001;
  assert.deepEqual(values(spool), ["3"]);
  assert.deepEqual(dropped, ["2 old"]);
  assert.equal(spool.size, 1);
  now += 60_000;
  assert.deepEqual(values(spool), []);
});

Deno.test("Spool.next() keeps to topics, and finds those again that were passed over", () => {
  using spool = new Spool(":memory:");
  for (let i = 0; i < 6; i++) spool.add(messageOf(`${i}`, `topic${i % 2}`));
  assert.deepEqual(values(spool, 9, new Set(["topic0"])), ["1", "3", "5"]);
  assert.deepEqual(spool.next({ limit: 2, only: new Set(["topic0"]) }).map(textOf), ["0", "2"]);
  assert.deepEqual(values(spool, 9, new Set(["topic0", "topic1"])), []);
  spool.add(messageOf("6"));
  assert.deepEqual(values(spool, 9), ["0", "1", "2", "3", "4", "5", "6"]);
});

Deno.test("Spool.refuse() sets aside what listRefused() shows and retryRefused() puts back, while it is open", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/spool.db`;
  using spool = new Spool(path, { now: () => 1_767_323_099_000 });
  for (const value of ["1", "2", "3"]) spool.add(messageOf(value));
  const [, second] = spool.next({ limit: 10 });
  spool.refuse([{ message: second!, reason: "too large" }]);
  assert.deepEqual([spool.size, spool.refusedSize], [2, 1]);
  assert.deepEqual(values(spool), ["1", "3"]);
  assert.deepEqual([...listRefused(path)].map((row) => ({ ...row })), [
    {
      ...{ sequence: second!.sequence, topic: "a", key: "a", value: "2", timestamp: second!.timestamp, bytes: 3 },
      ...{ reason: "too large", refusedAt: 1_767_323_099_000 },
    },
  ]);
  assert.equal(retryRefused(path), 1);
  assert.deepEqual(values(spool), ["2", "1", "3"]);
  assert.deepEqual([spool.size, spool.refusedSize], [3, 0]);
  assert.throws(() => retryRefused(`${folder.path}/none.db`), /there is no such file/);
});

Deno.test("Spool.next() sees what retryRefused() puts back while what is new is in memory", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/spool.db`;
  using spool = new Spool(path);
  for (const value of ["1", "2", "3"]) spool.add(messageOf(value));
  const [first, second, third] = spool.next({ limit: 10 });
  spool.refuse([{ message: first!, reason: "no" }, { message: second!, reason: "no" }]);
  spool.delete([third!]);
  for (const value of ["4", "5"]) spool.add(messageOf(value));
  const handedOut = spool.next({ limit: 10 });
  assert.deepEqual(handedOut.map(textOf), ["4", "5"]);
  assert.equal(retryRefused(path), 2);
  spool.add(messageOf("6"));
  spool.delete(handedOut);
  assert.deepEqual(spool.next({ limit: 10, only: new Set(["a"]) }).map(textOf), ["1", "2", "6"]);
  assert.deepEqual(values(spool), ["1", "2", "6"]);
  assert.deepEqual([spool.size, spool.refusedSize], [3, 0]);
  spool.delete(spool.next({ limit: 2 }));
  spool.add(messageOf("7"));
  assert.deepEqual(values(spool), ["6", "7"]);
});

Deno.test("Spool.refuse() keeps a tenth of the room at most", () => {
  const dropped: number[] = [];
  using spool = new Spool(":memory:", { maxBytes: 1_000, onDropped: (messages) => dropped.push(messages) });
  for (let i = 0; i < 3; i++) spool.add(messageOf("x".repeat(48)));
  spool.refuse(spool.next({ limit: 10 }).map((message) => ({ message, reason: "no" })));
  assert.deepEqual([spool.size, spool.refusedSize], [0, 2]);
  assert.deepEqual(dropped, [1]);
});

Deno.test("Spool takes over what a version left that had a row for each message", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/spool.db`;
  const expected = Array.from({ length: 2_500 }, (_, i) => `${i} é${i % 1_000 === 7 ? "x".repeat(800_000) : ""}`);
  {
    using old = new DatabaseSync(path);
    old.exec(`
      PRAGMA auto_vacuum = INCREMENTAL;
      CREATE TABLE message (
        sequence INTEGER PRIMARY KEY,
        topic TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, timestamp INTEGER NOT NULL, bytes INTEGER NOT NULL
      ) STRICT;
      CREATE TABLE refused (
        sequence INTEGER PRIMARY KEY,
        topic TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, timestamp INTEGER NOT NULL, bytes INTEGER NOT NULL,
        reason TEXT NOT NULL, refusedAt INTEGER NOT NULL
      ) STRICT;
      INSERT INTO refused VALUES (3, 'a', 'key', 'refused', 1, 11, 'too large', 2)`);
    const insert = old.prepare("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?)");
    old.exec("BEGIN");
    for (const [i, value] of expected.entries()) {
      insert.run(
        10 + i,
        `topic${i % 2}`,
        "key",
        value,
        1_767_323_045_000 + i,
        9 + new TextEncoder().encode(value).length,
      );
    }
    old.exec("COMMIT");
  }
  using spool = new Spool(path);
  assert.deepEqual([spool.size, spool.refusedSize], [2_500, 1]);
  spool.add(messageOf("new"));
  const found = spool.next({ limit: 10_000 });
  assert.deepEqual(found.map(textOf), [...expected, "new"]);
  const [, second] = found;
  assert.deepEqual(
    { ...second!, value: textOf(second!) },
    {
      ...{ sequence: 11, topic: "topic1", key: "key", value: "1 é", timestamp: 1_767_323_045_001, bytes: 13 },
      row: found[0]!.row,
    },
  );
  assert.equal(retryRefused(path), 1);
  assert.deepEqual(values(spool, 2), ["refused", "0 é"]);
  spool.delete(spool.next({ limit: 10_000 }));
  assert.equal(spool.size, 0);
  spool.add(messageOf("newer"));
  assert.deepEqual(values(spool), ["newer"]);
});
