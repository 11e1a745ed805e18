import assert from "node:assert/strict";
import type { PostgresSettings } from "../lib/config.ts";
import type { Log } from "../lib/log.ts";
import { Store } from "../lib/store.ts";
import { decodeMessages } from "../lib/writer.ts";
import { makeDatabase, metricMessage, runProgram, runWell, type TestDatabase, testStack } from "./support.ts";

const SILENT: Log = { debug() {}, info() {}, warn() {}, error() {} };

function settings({ name }: TestDatabase): PostgresSettings {
  const { host, port, user, password } = testStack().postgres;
  const connection = { servers: [{ host, port }], user, password, database: name };
  return { ...connection, sslmode: "disable", ca: null, minConnection: 1, maxConnection: 2 };
}

Deno.test("consumer --dead-letters lists what could not be a row, and --replay-dead-letters puts it back once it can", async () => {
  await using database = await makeDatabase();
  const values = [
    metricMessage("a", { status_code: 418 }),
    "poison",
    metricMessage("a"),
    "\xff\0",
    metricMessage("b", { verdict: "?" }),
  ];
  const messages = values.map((value, index) => ({
    topic: index === 4 ? "b" : "a",
    partition: 0,
    offset: String(index),
    timestamp: Date.UTC(2026, 0, 1) + index,
    key: new TextEncoder().encode("a"),
    value: index === 3 ? new Uint8Array([0xff, 0]) : new TextEncoder().encode(value),
    headers: { "content-type": "application/json" },
  }));
  {
    await using store = await Store.open(settings(database), { log: SILENT });
    await store.ensureTables(["a", "b"]);
    await database.query("ALTER TABLE site_checker.all_checks ADD CONSTRAINT no_teapot CHECK (status_code <> 418)");
    for (let i = 0; i < 3; i++) await store.write(decodeMessages(messages));
  }
  const listed = await runWell("consumer", ["--dead-letters", ...database.flags]);
  const letters = listed.stdout.trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(letters.map(({ topic, offset }) => [topic, offset]), [["a", "0"], ["a", "1"], ["a", "3"], [
    "b",
    "4",
  ]]);
  assert.deepEqual([letters[1].value, letters[2].value_base64, letters[1].key], ["poison", "/wA=", "a"]);
  assert.match(listed.stderr, /4 dead letter\(s\)\n[^]*1 × expected JSON\n/);

  const filtered = await runWell("consumer", ["--dead-letters", "--topic=a", "--reason=json", ...database.flags]);
  assert.equal(filtered.stdout.trim().split("\n").length, 1);

  await database.query("ALTER TABLE site_checker.all_checks DROP CONSTRAINT no_teapot");
  const args = ["--replay-dead-letters", ...database.flags];
  const replayed = await runProgram("consumer", [...args, "--topic=a"]);
  assert.equal(replayed.code, 1);
  assert.match(replayed.stderr, /1 dead letter\(s\) are rows now, 2 stay/);
  await runWell("consumer", [...args, "--topic=none"]);
  assert.deepEqual(
    await database.query(
      `SELECT "offset"::int, replayed_at IS NOT NULL AS replayed FROM site_checker.dead_letters ORDER BY 1`,
    ),
    [0, 1, 3, 4].map((offset) => ({ offset, replayed: offset === 0 })),
  );
  assert.deepEqual(
    await database.query(`SELECT (SELECT count(*)::int FROM site_checker.a) AS rows, checks FROM site_checker.daily`),
    [{ rows: 2, checks: 2 }],
  );
  const rest = await runWell("consumer", ["--dead-letters", ...database.flags]);
  assert.equal(rest.stdout.trim().split("\n").length, 3);
  await runWell("consumer", ["--rebuild-summaries", ...database.flags]);
});

Deno.test.each([
  [["--topic=a"], "--topic picks dead letters: expected --dead-letters or --replay-dead-letters beside it"],
  [["--dead-letters", "--rebuild-summaries"], "--rebuild-summaries can't be used beside --dead-letters"],
  [["--dead-letters", "--once"], "--once can't be used beside --dead-letters"],
])("consumer %j is refused", async (args, message) => {
  const { code, stderr } = await runProgram("consumer", args);
  assert.equal(code, 2);
  assert.equal(stderr, `consumer: ${message}\n`);
});
