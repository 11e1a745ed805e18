import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import { Publishing } from "../lib/publishing.ts";
import { Spool } from "../lib/spool.ts";
import { type Kafka, startKafka } from "../local/kafka.ts";
import {
  administer,
  drained,
  eventually,
  logOf,
  makeDatabase,
  messageOf,
  publishSettings,
  readByConsole,
  runWell,
  startProgram,
  startSite,
  temporaryFile,
} from "./support.ts";

interface Cluster extends AsyncDisposable {
  /** The first broker, which is the controller. */
  readonly first: Kafka;
  readonly second: Kafka;
}

/** Two brokers, which have a copy each of what has two. */
async function startCluster(): Promise<Cluster> {
  await using stack = new AsyncDisposableStack();
  const folder = await Deno.makeTempDir();
  stack.defer(() => Deno.remove(folder, { recursive: true }));
  const first = stack.use(await startKafka({ folder: `${folder}/1`, replicas: 2 }));
  const joins = { controller: first, node: 2 };
  const second = stack.use(await startKafka({ folder: `${folder}/2`, replicas: 2, joins }));
  const all = stack.move();
  return { first, second, [Symbol.asyncDispose]: () => all[Symbol.asyncDispose]() };
}

Deno.test("Publishing goes on with other topics while the broker that leads some is killed, or says nothing", async () => {
  await using cluster = await startCluster();
  const { first, second } = cluster;
  const server = first.bootstrapServers;
  // By the brokers that have a copy; the first of them leads.
  const brokers = { first: [1], second: [2], both: [2, 1] };
  const topics = Object.keys(brokers) as (keyof typeof brokers)[];
  await administer((admin) =>
    admin.createTopics({
      topics: topics.map((topic) => ({
        topic,
        replicaAssignment: [{ partition: 0, replicas: brokers[topic] }],
      })),
    }), server);
  const lines: string[] = [];
  using spool = new Spool(":memory:");
  await using publishing = drained(new Publishing(publishSettings(server), { spool, log: logOf(lines) }));
  let sent = 0;
  const send = () => {
    for (const topic of topics) spool.add(messageOf(topic, `${sent}`));
    sent++;
  };
  /** Sends for a second, and waits until all have arrived but those of one broker. */
  const sendPastSecond = async (timeoutMs: number) => {
    for (let i = 0; i < 10; i++) {
      send();
      await delay(100);
    }
    await eventually(() => {
      const left = new Set(spool.next({ limit: 1_000 }).map(({ topic }) => topic));
      return left.size === 1 && left.has("second");
    }, { timeoutMs });
  };
  const isTold = (text: RegExp) => lines.some((line) => text.test(line));
  send();
  await eventually(() => spool.size === 0);

  await second.kill("SIGKILL");
  await sendPastSecond(20_000);
  assert.ok(isTold(/does not take topic 'second', trying again, others go on: /), lines.join("\n"));
  send();
  await eventually(() => spool.size === 11, { timeoutMs: 2_000 });
  await second.start();
  await eventually(() => spool.size === 0, { timeoutMs: 40_000 });
  assert.ok(isTold(/takes topic 'second' again/), lines.join("\n"));

  await second.kill("SIGSTOP");
  lines.length = 0;
  await sendPastSecond(40_000);
  assert.ok(
    isTold(/others go on: .* no answer from 127\.0\.0\.1:\d+ within 1[05]s \(REQUEST_TIMED_OUT\)/),
    lines.join("\n"),
  );
  await second.kill("SIGCONT");
  assert.equal(await publishing.drain(60_000), 0);

  for (const topic of topics) {
    const [offsets] = await administer((admin) => admin.fetchTopicOffsets(topic), server);
    const records = await readByConsole(topic, Number(offsets!.high), server);
    // What is there twice is one row, by its id.
    const values = [...new Set(records.map(({ value }) => value["value"]))];
    assert.deepEqual(values, Array.from({ length: sent }, (_, i) => `${i}`), topic);
  }
});

Deno.test("producer and consumer lose nothing and double nothing where one of two brokers is killed and comes back", async () => {
  await using cluster = await startCluster();
  await using site = startSite(() => new Response("hello"));
  await using database = await makeDatabase();
  const { first, second } = cluster;
  const names = Array.from({ length: 24 }, (_, i) => `site-${i}`);
  await using file = await temporaryFile(
    "config.ini",
    [
      `[kafka]\nbootstrap_servers = ${first.bootstrapServers}\ngroup_id = cluster`,
      "partitions = 2\nreplication_factor = 2",
      "[defaults]\ninterval = 500ms\ninspect_interval = never",
      ...names.map((name) => `[website_${name}]\nurl = ${site.url}${name}`),
    ].join("\n"),
  );
  const args = ["--config-path", file.path];
  const countRows = async () => {
    const [row] = await database.query<{ rows: number; ids: number; topics: number }>(
      "SELECT count(*)::int AS rows, count(DISTINCT id)::int AS ids, count(DISTINCT topic)::int AS topics " +
        "FROM site_checker.all_checks",
    ).catch(() => []);
    return row ?? { rows: 0, ids: 0, topics: 0 };
  };
  const topics = names.map((name) => `--kafka-topic=${name}`);
  await using producer = startProgram("producer", args);
  await using consumer = startProgram("consumer", [...args, ...topics, ...database.flags]);
  await eventually(async () => (await countRows()).topics === names.length, { timeoutMs: 60_000 });
  const leaders = await administer((admin) => admin.fetchTopicMetadata({ topics: names }), first.bootstrapServers);
  const led = leaders.topics.flatMap(({ partitions }) => partitions.map(({ leader }) => leader));
  assert.deepEqual(new Set(led), new Set([1, 2]), "both lead some");
  await second.kill("SIGKILL");
  const { rows } = await countRows();
  await eventually(async () => (await countRows()).rows > rows + 200, { timeoutMs: 60_000 });
  await second.start();
  await delay(2_000);
  const { code, stderr } = await producer.stop("SIGTERM");
  assert.equal(code, 0, stderr);
  assert.doesNotMatch(stderr, /ERROR/);
  await eventually(async () => (await countRows()).rows >= site.visits, { timeoutMs: 60_000 });
  const ended = await consumer.stop("SIGTERM");
  assert.equal(ended.code, 0, ended.stderr);
  await runWell("consumer", ["--once", ...args, ...topics, ...database.flags]);
  assert.deepEqual(await countRows(), { rows: site.visits, ids: site.visits, topics: names.length });
});
