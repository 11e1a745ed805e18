import assert from "node:assert/strict";
import { COLUMN_NAMES, COLUMNS, type KafkaMessage, type Metric } from "../lib/metric.ts";
import * as table from "../lib/table.ts";
import {
  copyLine,
  deadLetterArrays,
  quoteIdentifier,
  quoteLiteral,
  RESERVED_NAMES,
  rowArrays,
  tableName,
} from "../lib/table.ts";

const LONGEST_TOPIC = "x".repeat(249);
const METRIC = {
  ...Object.fromEntries(COLUMN_NAMES.map((name) => [name, null])) as unknown as Metric,
  id: "0195b1c2-7d4e-7abc-8def-0123456789ab",
  occurred_at: "2026-01-02T03:04:05.678Z",
  name: "apache",
  url: "https://www.apache.org/",
  verdict: "up",
  attempt: 1,
  final: true,
} satisfies Metric;

function messageOf(properties: Partial<KafkaMessage> = {}): KafkaMessage {
  return {
    topic: "a.b-c_D",
    partition: 0,
    offset: "42",
    timestamp: 0,
    key: null,
    value: null,
    headers: {},
    ...properties,
  };
}

Deno.test.each([
  ...Object.entries(table).filter(([what]) => what.endsWith("_SQL")).map(([what, sql]) => ({ what, sql })),
  { what: "createParentSql()", sql: table.createParentSql() },
  { what: "createDeadLettersSql()", sql: table.createDeadLettersSql() },
  { what: "createPartitionSql() of a topic with dots", sql: table.createPartitionSql("a.b-c_D") },
  { what: "createPartitionSql() of a reserved name", sql: table.createPartitionSql("latest") },
  { what: "createPartitionSql() of the longest topic", sql: table.createPartitionSql(LONGEST_TOPIC) },
  { what: "changeOwnerSql()", sql: table.changeOwnerSql("all_checks", 'a "role"') },
  { what: "renameSql()", sql: table.renameSql("apache") },
  { what: "adoptSql()", sql: table.adoptSql("apache") },
])("$what is this", async ({ sql }, t) => await t.assertSnapshot(sql));

Deno.test("renameSql() and adoptSql() agree on a name that fits and is no topic's", () => {
  for (const topic of ["apache", "x".repeat(60), "x".repeat(63)]) {
    const name = /RENAME TO "(?<name>.*)"$/.exec(table.renameSql(topic))?.groups?.["name"];
    assert.match(name!, /^.{1,59}~old$/);
    assert.ok(table.adoptSql(topic).includes(` FROM site_checker."${name}" `));
  }
});

Deno.test.each([
  ["a", '"a"'],
  ["a.b-c_D", '"a.b-c_D"'],
  ['a"b', '"a""b"'],
  ['"', '""""'],
])("quoteIdentifier(%j) is %s", (name, quoted) => {
  assert.equal(quoteIdentifier(name), quoted);
});

Deno.test.each([
  ["a", "'a'"],
  ["it's", "'it''s'"],
  ["\\", "'\\'"],
])("quoteLiteral(%j) is %s", (text, quoted) => {
  assert.equal(quoteLiteral(text), quoted);
});

Deno.test.each([
  "apache",
  "a.b-c_D",
  "a_pkey",
  "LATEST",
  "latest_",
  "x".repeat(63),
  "__proto__",
])("tableName() keeps the topic %s", (topic) => {
  assert.equal(tableName(topic), topic);
});

Deno.test.each(["x".repeat(64), LONGEST_TOPIC])("tableName() cuts the topic %s to 63 bytes", (topic) => {
  assert.match(tableName(topic), /^x{50}~[0-9a-f]{12}$/);
});

Deno.test.each([...RESERVED_NAMES])("tableName() puts a hash behind the reserved name %s", (topic) => {
  assert.match(tableName(topic), new RegExp(`^${topic}~[0-9a-f]{12}$`));
});

Deno.test("tableName() keeps topics apart that differ only behind byte 63", () => {
  const topics = Array.from({ length: 1_000 }, (_, i) => "x".repeat(63) + i);
  assert.equal(new Set(topics.map(tableName)).size, topics.length);
});

Deno.test("createPartitionSql() names a key that is no topic's table and no other's key, in 63 bytes", () => {
  const topics = ["a", "a_pkey", "latest", ..."yz".split("").map((end) => LONGEST_TOPIC + end)];
  for (let length = 45; length < 70; length++) topics.push("x".repeat(length));
  const keys = topics.map((topic) =>
    /CONSTRAINT "(?<key>[^"]+)"/.exec(table.createPartitionSql(topic))!.groups!["key"]!
  );
  const parentKey = /CONSTRAINT "(?<key>[^"]+)"/.exec(table.createParentSql())!.groups!["key"]!;
  const names = [...topics.map(tableName), ...keys, parentKey];
  assert.equal(new Set(names).size, names.length);
  for (const key of keys) assert.match(key, /^.{1,58}~pkey$/);
  for (const name of names) assert.ok(new TextEncoder().encode(name).length <= 63, name);
});

/** Fields of a line as PostgreSQL reads COPY's text format; null for `\N`. */
function parseLine(line: string): (string | null)[] {
  assert.ok(line.endsWith("\n") && !line.slice(0, -1).includes("\n"), "one line");
  const escapes: Record<string, string> = { n: "\n", r: "\r", t: "\t", "\\": "\\" };
  return line.slice(0, -1).split("\t").map((field) =>
    field === "\\N" ? null : field.replace(/\\(.)/gs, (_, character) => escapes[character] ?? assert.fail(field))
  );
}

Deno.test.each([
  ["", ""],
  ["plain", "plain"],
  ["a\tb\nc\rd\\e", "a\\tb\\nc\\rd\\\\e"],
  ["\\N", "\\\\N"],
  ["\\.", "\\\\."],
  ["\b\f\v'\"", "\b\f\v'\""],
])("copyLine() writes %j as %s", (excerpt, field) => {
  assert.equal(copyLine({ message: messageOf(), metric: { ...METRIC, excerpt } }).split("\t").at(-1), `${field}\n`);
});

Deno.test("copyLine() writes the topic and all columns in the order of COPY_ROWS_SQL", () => {
  const columns = /\((?<columns>.*)\)/.exec(table.COPY_ROWS_SQL)!.groups!["columns"]!.split(", ");
  const fields = parseLine(copyLine({ message: messageOf(), metric: METRIC }));
  assert.deepEqual(columns, ["topic", ...COLUMN_NAMES].map(quoteIdentifier));
  assert.deepEqual(fields, [
    "a.b-c_D",
    ...COLUMN_NAMES.map((name) => METRIC[name] === null ? null : String(METRIC[name])),
  ]);
});

Deno.test.each([
  ["a", '"a"'],
  [1.5, "1.5"],
  [false, "false"],
  [{ a: ["\n"] }, '{"a":["\\\\n"]}'],
  [[], "[]"],
])("copyLine() writes %j as JSON in a column of that", (tags, field) => {
  const fields = copyLine({ message: messageOf(), metric: { ...METRIC, tags } }).split("\t");
  assert.equal(fields[COLUMN_NAMES.indexOf("tags") + 1], field);
});

/** Numbers from 0 to 1, always the same for a seed (mulberry32). */
function randomNumbers(seed: number): () => number {
  return () => {
    seed = seed + 0x6d2b79f5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
}

Deno.test("copyLine() writes fields from which PostgreSQL reads what was put in, whatever it was", () => {
  const seed = Date.now() % 2 ** 32;
  const random = randomNumbers(seed);
  const pick = <T>(values: readonly T[]): T => values[Math.floor(random() * values.length)]!;
  const text = () =>
    Array.from(
      { length: Math.floor(random() * 12) },
      () =>
        pick([
          "\\",
          "\n",
          "\r",
          "\t",
          "N",
          ".",
          "n",
          "é",
          "\u{1f600}",
          "'",
          '"',
          ",",
          String.fromCharCode(1 + random() * 0xd7fe),
        ]),
    ).join("");
  for (let i = 0; i < 2_000; i++) {
    const values = {
      name: text(),
      error_message: text(),
      excerpt: text(),
      tags: { [text()]: [text(), null] },
      elapsed_ms: random() * 1e6,
    };
    const fields = parseLine(copyLine({ message: messageOf(), metric: { ...METRIC, ...values } }));
    for (const [name, value] of Object.entries(values)) {
      const field = fields[COLUMN_NAMES.indexOf(name as keyof Metric) + 1]!;
      const type = COLUMNS[name as keyof Metric].type;
      const read = type === "jsonb" ? JSON.parse(field) : type === "text" ? field : Number(field);
      assert.deepEqual(read, value, `seed ${seed}, run ${i}`);
    }
  }
});

Deno.test("rowArrays() has an array for the topic and for each column", () => {
  const rows = [
    { message: messageOf(), metric: METRIC },
    { message: messageOf({ topic: "b" }), metric: { ...METRIC, tags: "text", failed: [null], status_code: 200 } },
  ];
  const [topics, ...columns] = rowArrays(rows);
  assert.deepEqual(topics, ["a.b-c_D", "b"]);
  assert.equal(columns.length, COLUMN_NAMES.length);
  const column = (name: keyof Metric) => columns[COLUMN_NAMES.indexOf(name)];
  assert.deepEqual(column("name"), ["apache", "apache"]);
  assert.deepEqual(column("status_code"), [null, 200]);
  assert.deepEqual(column("tags"), [null, '"text"']);
  assert.deepEqual(column("failed"), [null, "[null]"]);
});

Deno.test("deadLetterArrays() has an array for each parameter, with bytes in hexadecimal and nothing that PostgreSQL refuses", () => {
  const message = messageOf({
    partition: 3,
    timestamp: -1,
    value: new Uint8Array([0, 1, 0xff]),
    headers: { "a\0": "b\0", path: "C:\\u0000" },
  });
  assert.deepEqual(deadLetterArrays([{ message, reason: "expected\0 JSON" }, { message: messageOf(), reason: "" }]), [
    ["a.b-c_D", "a.b-c_D"],
    [3, 0],
    ["42", "42"],
    ["1970-01-01T00:00:00.000Z", "1970-01-01T00:00:00.000Z"],
    [null, null],
    ["\\x0001ff", null],
    [JSON.stringify({ "a\ufffd": "b\ufffd", path: "C:\\u0000" }), "{}"],
    ["expected\ufffd JSON", ""],
  ]);
});
