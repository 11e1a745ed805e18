import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";
import { type Evidence, judge } from "../chaos/judgement.ts";
import { examineLogs } from "../chaos/logs.ts";
import { type ChaosEvent, plan, POSTGRES_CUTS, type Step } from "../chaos/plan.ts";
import { PostgresRelay } from "../chaos/postgres_relay.ts";
import type { ChaosResult } from "../chaos/run.ts";
import { judgeSums } from "../chaos/sums.ts";
import project from "../deno.json" with { type: "json" };
import { freePorts } from "../local/port.ts";
import { REPOSITORY } from "../local/repository.ts";
import { makeDatabase, temporaryFile, testStack } from "./support.ts";

/** In 20 s it kills each kind of process and cuts both kinds of connections, with short times between. */
const SHORT_SEED = 113447;
const PLAN = { producers: 3, consumers: 2, guests: 2 };

function steps(seed: number, count: number): Step[] {
  return plan(seed, PLAN).take(count).toArray();
}

Deno.test("plan() brings the same events and pauses for the same seed, others for another", () => {
  assert.deepEqual(steps(1, 200), steps(1, 200));
  assert.notDeepEqual(steps(1, 200), steps(2, 200));
});

Deno.test("plan() brings every kind of event soon, each target among them", () => {
  const events = steps(3, 120).map(({ event }) => event);
  const kinds: ChaosEvent["kind"][] = [
    "kill",
    "freeze",
    "terminate",
    "join",
    "leave",
    "cut-postgres",
    "cut-kafka",
    "hang",
    "poison",
  ];
  assert.deepEqual(new Set(events.map(({ kind }) => kind)), new Set(kinds));
  const killed = new Set(events.flatMap((event) => event.kind === "kill" ? event.targets : []));
  for (const target of ["kafka", "postgres", "producer-1", "producer-3", "consumer-1", "consumer-2"] as const) {
    assert.ok(killed.has(target), target);
  }
  const cuts = new Set(events.flatMap((event) => event.kind === "cut-postgres" ? [event.how] : []));
  assert.deepEqual(cuts, new Set(POSTGRES_CUTS));
});

Deno.test("plan() lets a consumer leave only after it joined, and kills none that is not there", () => {
  const present = new Set(["consumer-1", "consumer-2"]);
  for (const { event } of steps(4, 500)) {
    if (event.kind === "join") { for (const target of event.targets) present.add(target); }
    for (const target of "targets" in event ? event.targets : []) {
      if (target.startsWith("consumer-")) assert.ok(present.has(target), `${event.kind} ${target}`);
    }
    if (event.kind === "leave") { for (const target of event.targets) present.delete(target); }
  }
});

/** One visit that became one row, one poison message that became a dead letter. */
const GOOD: Evidence = {
  kafka: { metrics: new Map([["id-1", 1]]), poison: new Set(["a/0@5"]), poisonNumbers: new Set([1]) },
  poisonAcknowledged: new Set([1]),
  rows: [{ id: "id-1", topic: "a", occurredAt: 1_000, elapsedMs: 50, bodySha256: "one" }],
  deadLetters: ["a/0@5"],
  visits: [{ site: "a", sha256: "one", begunAt: 1_010, answeredAt: 1_020 }],
  deaths: [],
  hasSpool: true,
};
const VISIT = { site: "a", sha256: "two", begunAt: 5_010, answeredAt: 5_020 };
const DEATH = { sites: ["a"], at: 5_100 };

Deno.test.each<[string, Partial<Evidence>, RegExp | undefined]>([
  ["all is well", {}, undefined],
  ["a metric of Kafka is no row", {
    kafka: { ...GOOD.kafka, metrics: new Map([["id-1", 1], ["id-2", 1]]) },
  }, /every metric in Kafka is a row/],
  ["an id is twice", { rows: [GOOD.rows[0]!, { ...GOOD.rows[0]!, bodySha256: null }] }, /no id is twice/],
  ["a row is of no metric", {
    rows: [GOOD.rows[0]!, { ...GOOD.rows[0]!, id: "id-2", bodySha256: null }],
  }, /every row is a metric/],
  ["a visit is two rows", {
    kafka: { ...GOOD.kafka, metrics: new Map([["id-1", 1], ["id-2", 1]]) },
    rows: [GOOD.rows[0]!, { ...GOOD.rows[0]!, id: "id-2" }],
  }, /no visit is two rows/],
  ["a visit is another site's row", { rows: [{ ...GOOD.rows[0]!, topic: "b" }] }, /a visit of its site/],
  ["a visit is no row", { visits: [...GOOD.visits, VISIT] }, /every visit is a row/],
  ["its producer was killed while it was in flight", { visits: [...GOOD.visits, VISIT], deaths: [DEATH] }, undefined],
  ["its producer was halted, and killed soon after it went on", {
    visits: [...GOOD.visits, VISIT],
    deaths: [{ ...DEATH, at: 9_000, frozen: [{ from: 5_015, to: 8_900 }] }],
  }, undefined],
  ["its producer was halted, and killed long after it went on", {
    visits: [...GOOD.visits, VISIT],
    deaths: [{ ...DEATH, at: 9_000, frozen: [{ from: 5_015, to: 7_900 }] }],
  }, /every visit is a row/],
  ["its producer was killed long after it", {
    visits: [...GOOD.visits, VISIT],
    deaths: [{ ...DEATH, at: 9_000 }],
  }, /every visit is a row/],
  ["its producer had only its memory", {
    visits: [...GOOD.visits, VISIT],
    deaths: [{ ...DEATH, at: 9_000 }],
    hasSpool: false,
  }, undefined],
  ["another producer was killed", {
    visits: [...GOOD.visits, VISIT],
    deaths: [{ ...DEATH, sites: ["b"] }],
  }, /every visit is a row/],
  ["its check timed out, which is a row", {
    visits: [...GOOD.visits, VISIT],
    kafka: { ...GOOD.kafka, metrics: new Map([["id-1", 1], ["id-2", 1]]) },
    rows: [GOOD.rows[0]!, { id: "id-2", topic: "a", occurredAt: 5_000, elapsedMs: 500, bodySha256: null }],
  }, undefined],
  ["its check timed out long before a busy site answered", {
    visits: [...GOOD.visits, { ...VISIT, begunAt: 9_000, answeredAt: 9_010 }],
    kafka: { ...GOOD.kafka, metrics: new Map([["id-1", 1], ["id-2", 1]]) },
    rows: [GOOD.rows[0]!, { id: "id-2", topic: "a", occurredAt: 5_000, elapsedMs: 500, bodySha256: null }],
  }, undefined],
  ["a check that timed out came before that of the visit before", {
    visits: [{ ...GOOD.visits[0]!, begunAt: 6_010, answeredAt: 6_020 }, {
      ...VISIT,
      begunAt: 7_000,
      answeredAt: 7_010,
    }],
    kafka: { ...GOOD.kafka, metrics: new Map([["id-1", 1], ["id-2", 1]]) },
    rows: [
      { ...GOOD.rows[0]!, occurredAt: 6_000 },
      { id: "id-2", topic: "a", occurredAt: 5_000, elapsedMs: 500, bodySha256: null },
    ],
  }, /every visit is a row/],
  ["one check that timed out stands for two visits", {
    visits: [...GOOD.visits, VISIT, { ...VISIT, sha256: "three" }],
    kafka: { ...GOOD.kafka, metrics: new Map([["id-1", 1], ["id-2", 1]]) },
    rows: [GOOD.rows[0]!, { id: "id-2", topic: "a", occurredAt: 5_000, elapsedMs: 500, bodySha256: null }],
  }, /every visit is a row/],
  ["one death stands for two visits", {
    visits: [...GOOD.visits, VISIT, { ...VISIT, sha256: "three" }],
    deaths: [DEATH],
  }, /every visit is a row/],
  ["a poison message is no dead letter", { deadLetters: [] }, /every poison message/],
  ["a poison message is two dead letters", { deadLetters: ["a/0@5", "a/0@5"] }, /every poison message/],
  ["a good message is a dead letter", { deadLetters: ["a/0@5", "a/0@6"] }, /every poison message/],
  ["a poison message is away", { poisonAcknowledged: new Set([1, 2]) }, /every poison message/],
])("judge() tells when %s", (_, changes, broken) => {
  const { invariants } = judge({ ...GOOD, ...changes });
  const names = invariants.filter(({ held }) => held !== true).map(({ name }) => name);
  if (broken === undefined) assert.deepEqual(names, []);
  else assert.ok(names.some((name) => broken.test(name)), names.join("\n"));
});

Deno.test("examineLogs() finds errors and stacks, and counts warnings", async () => {
  await using log = await temporaryFile(
    "producer.log",
    `2026-01-01T00:00:00.000Z INFO    producer: Checking 8 site(s)
2026-01-01T00:00:00.000Z WARNING producer: Cannot use Kafka at 127.0.0.1:9092
2026-01-01T00:00:01.000Z WARNING producer: Cannot use Kafka at 127.0.0.1:9093
2026-01-01T00:00:02.000Z ERROR   producer: Kafka has not taken 3 metric(s), which are lost
2026-01-01T00:00:03.000Z ERROR   producer: something else
producer: Unexpected failure: TypeError: x
    at file:///producer.ts:1:2
`,
  );
  const { unexplained, explained, warnings } = await examineLogs([log.path]);
  assert.equal(unexplained.length, 3, unexplained.join("\n"));
  assert.equal(explained, 1);
  assert.deepEqual(warnings, { "producer: Cannot use Kafka at N.N.N.N:N": 2 });
});

Deno.test("judgeSums() tells whether latest and daily say what all rows say", async () => {
  await using database = await makeDatabase();
  await database.query("CREATE SCHEMA site_checker");
  const skipped = await judgeSums(database.query);
  assert.deepEqual(skipped.map(({ held, figure }) => [held, figure]), [[null, "not there yet"], [
    null,
    "not there yet",
  ]]);
  const id = (n: number) => `00000000-0000-7000-8000-00000000000${n}`;
  await database.query(`
    CREATE TABLE site_checker.all_checks (topic text, id uuid, occurred_at timestamptz, name text, location text, url text,
      verdict text, error text, error_message text, final boolean, status_code integer, response_time double precision);
    INSERT INTO site_checker.all_checks VALUES
      ('a', '${id(1)}', '2026-01-01 23:00Z', 'a', NULL, 'u', 'up', NULL, NULL, true, 200, 2),
      ('a', '${id(2)}', '2026-01-01 23:10Z', 'a', NULL, 'u', 'down', 'status', 'm', true, 500, 0.5),
      ('a', '${id(3)}', '2026-01-01 23:10Z', 'a', NULL, 'u', 'up', NULL, NULL, true, 200, 1.4994),
      ('a', '${id(4)}', '2026-01-02 00:00Z', 'a', NULL, 'u', 'up', NULL, NULL, true, 200, 70000),
      ('a', '${id(5)}', '2026-01-02 00:10Z', 'a', NULL, 'u', 'down', 'timeout', 'm', false, NULL, NULL),
      ('b', '${id(6)}', '2026-01-02 00:00Z', 'b', 'x', 'u', 'down', 'timeout', 'm', true, NULL, NULL);
    CREATE TABLE site_checker.latest (name text, location text, verdict text, since timestamptz, checked_at timestamptz,
      id uuid, previous_at timestamptz, previous_id uuid, url text, status_code integer, error text, error_message text,
      response_time double precision, topics text[]);
    INSERT INTO site_checker.latest VALUES
      ('a', NULL, 'up', '2026-01-01 23:10Z', '2026-01-02 00:00Z', '${id(4)}', '2026-01-01 23:10Z', '${id(2)}', 'u', 200,
        NULL, NULL, 70000, '{a}'),
      ('b', 'x', 'down', '2026-01-02 00:00Z', '2026-01-02 00:00Z', '${
    id(6)
  }', NULL, NULL, 'u', NULL, 'timeout', 'm', NULL,
        '{b}');
    CREATE TABLE site_checker.daily (name text, location text, day date, checks integer, up integer, degraded integer,
      down integer, responses integer, response_us bigint, histogram integer[]);
    INSERT INTO site_checker.daily VALUES
      ('a', NULL, '2026-01-01', 3, 2, 0, 1, 3, 3999, '{1,1,0,1}'::integer[] || array_fill(0, ARRAY[27])),
      ('a', NULL, '2026-01-02', 1, 1, 0, 0, 1, 70000000, array_fill(0, ARRAY[30]) || 1),
      ('b', 'x', '2026-01-02', 1, 0, 0, 1, 0, 0, array_fill(0, ARRAY[31]))`);
  assert.deepEqual(await judgeSums(database.query), [
    { name: "site_checker.latest equals what all rows say", held: true, figure: "2 rows, 0 different" },
    { name: "site_checker.daily equals what all rows say", held: true, figure: "3 rows, 0 different" },
  ]);
  await database.query("UPDATE site_checker.latest SET since = checked_at WHERE name = 'a'");
  await database.query("UPDATE site_checker.daily SET up = up + 1, checks = checks + 1 WHERE day = '2026-01-01'");
  assert.deepEqual((await judgeSums(database.query)).map(({ held }) => held), [false, false]);
});

Deno.test.each(
  [
    ["in-transaction", false],
    ["before-commit", false],
    ["after-commit", true],
  ] as const,
)("PostgresRelay cuts %s, and the row is there: %s", async (moment, stored) => {
  await using database = await makeDatabase();
  await database.query("CREATE TABLE t (n int)");
  const { port: target, host, user, password } = testStack().postgres;
  const [port] = freePorts(1) as [number];
  await using relay = await PostgresRelay.start({ port, target });
  const client = new pg.Client({ host, port, user, password, database: database.name, ssl: false });
  client.on("error", () => {});
  await client.connect();
  await client.query("BEGIN");
  await client.query("INSERT INTO t VALUES ($1)", [1]);
  await client.query("COMMIT");
  const cut = relay.cutAt(moment, 5_000);
  await assert.rejects(async () => {
    await client.query("BEGIN");
    await client.query("INSERT INTO t VALUES ($1)", [2]);
    await client.query("COMMIT");
  });
  assert.equal(await cut, true);
  await client.end().catch(() => {});
  const rows = await database.query("SELECT n FROM t ORDER BY n");
  assert.deepEqual(rows.map(({ n }) => n), stored ? [1, 2] : [1]);
});

Deno.test("PostgresRelay lets a connection hang, and go on", async () => {
  const [port] = freePorts(1) as [number];
  const { port: target, host, user, password, database } = testStack().postgres;
  await using relay = await PostgresRelay.start({ port, target });
  const client = new pg.Client({ host, port, user, password, database, ssl: false });
  await client.connect();
  const goOn = relay.hang();
  const answer = client.query("SELECT 1 AS one").then(({ rows }) => rows);
  assert.equal(await Promise.race([answer, delay(200, "hangs")]), "hangs");
  goOn();
  assert.deepEqual(await answer, [{ one: 1 }]);
  await client.end();
});

Deno.test("PostgresRelay says when the moment did not come", async () => {
  const [port] = freePorts(1) as [number];
  await using relay = await PostgresRelay.start({ port, target: testStack().postgres.port });
  assert.equal(await relay.cutAt("before-commit", 50), false);
});

/** Runs `deno task chaos` to its end. */
async function runTask(flags: readonly string[]): Promise<{ code: number; text: string }> {
  const [, ...args] = project.tasks.chaos.command.split(" ");
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [...args, ...flags],
    cwd: REPOSITORY,
    stdin: "null",
  }).output();
  return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

Deno.test("chaos exits 2 at a flag that it does not understand", async () => {
  const { code, text } = await runTask(["--kills", "many"]);
  assert.equal(code, 2, text);
  assert.match(text, /'many' is invalid.*Expected a whole number from 0/);
});

Deno.test("chaos: nothing is lost and nothing is twice in a short run", async () => {
  await using file = await temporaryFile("chaos.json", "");
  const { code, text } = await runTask([`--seed=${SHORT_SEED}`, "--seconds=20", `--json=${file.path}`]);
  assert.equal(code, 0, text);
  const { passed, kills, figures }: ChaosResult = JSON.parse(await Deno.readTextFile(file.path));
  assert.ok(passed, text);
  for (const kind of ["producer", "consumer", "kafka", "postgres"]) assert.ok((kills[kind] ?? 0) > 0, text);
  assert.ok(Number(figures["rows"]) > 0, text);
});
