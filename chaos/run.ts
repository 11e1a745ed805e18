import { DatabaseSync } from "node:sqlite";
import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";
import { SETTINGS } from "../lib/setting.ts";
import { type Kafka, startKafka } from "../local/kafka.ts";
import { freePorts } from "../local/port.ts";
import { type Postgres, startPostgres } from "../local/postgres.ts";
import { type CheckRow, type Death, type Invariant, judge } from "./judgement.ts";
import { examineLogs } from "./logs.ts";
import { Member } from "./member.ts";
import { type ChaosEvent, plan, type Target } from "./plan.ts";
import { PostgresRelay } from "./postgres_relay.ts";
import { type Gap, Progress } from "./progress.ts";
import { Relay } from "./relay.ts";
import { type CountingSites, startCountingSites } from "./sites.ts";
import { judgeSums } from "./sums.ts";
import { createTopic, lag, Poisoner, readKafka, REFUSED_STATUS } from "./topics.ts";

/** Options of {@linkcode runChaos}. */
export interface ChaosOptions {
  /** Seed of the sequence of events. */
  readonly seed: number;
  /** Events go on for at least this long. */
  readonly seconds: number;
  /** Events go on until at least so many processes were killed. */
  readonly kills: number;
  /** Folder for data and logs. */
  readonly folder: string;
  /** Told what goes on. */
  readonly report: (line: string) => void;
  /** Breaks the run off. */
  readonly signal: AbortSignal;
}

/** What came of a run. */
export interface ChaosResult {
  /** Whether all invariants held. */
  readonly passed: boolean;
  /** Seed. */
  readonly seed: number;
  /** Time in which things went wrong, in s. */
  readonly seconds: number;
  /** Number of events by kind. */
  readonly events: Readonly<Record<string, number>>;
  /** Processes that were killed (`kill -9`), by kind. */
  readonly kills: Readonly<Record<string, number>>;
  /** Figures. */
  readonly figures: Readonly<Record<string, number | string>>;
  /** What must hold. */
  readonly invariants: readonly Invariant[];
  /** Lines of the programs' logs with level WARNING, numbers left out, by how often they came. */
  readonly warnings: Readonly<Record<string, number>>;
}

const PRODUCERS = 3;
const SITES_PER_PRODUCER = 8;
const CONSUMERS = 2;
const GUESTS = 2;
const INTERVAL = "500ms";
const TIMEOUT = "500ms";
const GROUP = "chaos";
const PREFIX = "chaos-";
const PARTITIONS = 3;
const FIRST_ROW_TIMEOUT_MS = 60_000;
/** An event may have to wait for the one before on the same target; more than this do not pile up. */
const MAX_WAITING = 4;
const MOMENT_TIMEOUT_MS = 10_000;
const DRAIN_ROUNDS = 8;
const DRAIN_WAIT_MS = 5_000;
const SETTLE_TIMEOUT_MS = 120_000;
/** The end of a session (10 s), the longest wait between two tries (5 s), and a rebalance, on a machine that is busy. */
const MAX_CALM_MS = 20_000;

/** Starts a stack, sites, producers and consumers; lets go wrong what the seed says; lets all settle; and compares. */
export async function runChaos(options: ChaosOptions): Promise<ChaosResult> {
  const { seed, seconds, kills, folder, report, signal } = options;
  await using stack = new AsyncDisposableStack();
  const [kafkaRelayPort, kafkaPort, postgresRelayPort, postgresPort] = freePorts(4) as [number, number, number, number];
  const kafka = stack.use(
    await startKafka({ folder: `${folder}/kafka`, port: kafkaPort, advertisedPort: kafkaRelayPort, signal }),
  );
  const postgres = stack.use(await startPostgres({ folder: `${folder}/postgres`, port: postgresPort, signal }));
  const kafkaRelay = stack.use(await Relay.start({ port: kafkaRelayPort, target: kafkaPort }));
  const postgresRelay = stack.use(await PostgresRelay.start({ port: postgresRelayPort, target: postgresPort }));
  const sites = stack.use(startCountingSites());
  const bootstrapServers = `127.0.0.1:${kafkaRelayPort}`;
  report(`Kafka, PostgreSQL and ${PRODUCERS * SITES_PER_PRODUCER} sites are up, data and logs in ${folder}`);

  const topics = Array.from({ length: PRODUCERS }, (_, producer) => topicsOf(producer + 1));
  for (const [topic] of topics) await createTopic(bootstrapServers, topic!, PARTITIONS);
  const members = await makeMembers({ folder, sites, topics, bootstrapServers, postgres, postgresRelayPort });
  stack.defer(async () => {
    for (const member of members.values()) await member.kill();
  });
  const client: pg.ClientConfig = {
    host: postgres.host,
    port: postgres.port,
    user: postgres.user,
    password: postgres.password,
    database: postgres.database,
  };
  const progress = new Progress(client);
  stack.use(progress);
  for (const [name, member] of members) if (!isGuest(name)) await member.start();
  await until(() => progress.begun, { timeoutMs: FIRST_ROW_TIMEOUT_MS, what: "the first row", signal });
  await query(
    client,
    `ALTER TABLE site_checker.all_checks ADD CONSTRAINT chaos CHECK (status_code <> ${REFUSED_STATUS})`,
  );

  const poisoner = new Poisoner(bootstrapServers);
  const world: World = { kafka, postgres, kafkaRelay, postgresRelay, members, progress, poisoner, topics, signal };
  const counts = await letThingsGoWrong(world, { seed, seconds, kills, report, signal });

  report("Letting all settle …");
  const settled = await settle(world, { folder, bootstrapServers, report });
  report("Comparing …");
  const content = await readKafka(bootstrapServers, PREFIX);
  const rows = await query<CheckRow>(
    client,
    `SELECT id, topic, extract(epoch FROM occurred_at)::float8 * 1000 AS "occurredAt", elapsed_ms AS "elapsedMs",
      body_sha256 AS "bodySha256" FROM site_checker.all_checks`,
  );
  const letters = await query<{ place: string }>(
    client,
    `SELECT topic || '/' || "partition" || '@' || "offset" AS place FROM site_checker.dead_letters`,
  );
  const deaths = topics.flatMap((sites, index) => {
    const { killedAt, frozen } = members.get(`producer-${index + 1}`)!;
    return killedAt.map((at): Death => ({ sites, at, frozen }));
  });
  const { invariants, visits } = judge({
    kafka: content,
    poisonAcknowledged: poisoner.acknowledged,
    rows,
    deadLetters: letters.map(({ place }) => place),
    visits: sites.visits,
    deaths,
    hasSpool: HAS_SPOOL,
  });
  const logs = await examineLogs([...members.keys()].map((name) => `${folder}/${name}.log`));
  const faults = [...members.values()].flatMap(({ faults }) => faults);
  for (const { member, what } of faults) report(`${member} ${what}`);
  for (const line of logs.unexplained.slice(0, 20)) report(line);
  const published = content.metrics.values().reduce((sum, count) => sum + count, 0);
  const { gaps } = progress;
  const slowest = [...members.values()].toSorted((a, b) => b.longestStopMs - a.longestStopMs)[0]!;
  const all: Invariant[] = [
    ...invariants,
    ...await judgeSums((sql) => query(client, sql)),
    ...settled,
    {
      name: `rows move again within ${MAX_CALM_MS / 1000} s of the last start`,
      held: progress.longestCalmMs <= MAX_CALM_MS,
      figure: `longest wait ${inSeconds(progress.longestCalmMs)}`,
    },
    { name: "no program ends by itself", held: faults.length === 0, figure: `${faults.length} ended` },
    {
      name: "logs have no error and no stack that is not explained",
      held: logs.unexplained.length === 0,
      figure: `${logs.lines} lines, ${logs.unexplained.length} not explained` +
        (logs.explained > 0 ? `, ${logs.explained} explained` : ""),
    },
  ];
  return {
    passed: all.every(({ held }) => held !== false),
    seed,
    seconds: counts.seconds,
    events: counts.events,
    kills: counts.kills,
    figures: {
      rows: rows.length,
      visits: visits.answered,
      "visits of which the check was in flight when its producer was killed": visits.inFlight,
      "longest time from an answer to the kill, of those": `${visits.longestInFlightMs} ms`,
      "metrics that came to Kafka more than once": published - content.metrics.size,
      "dead letters": letters.length,
      "connections to PostgreSQL cut": counts.postgresCuts,
      "connections to Kafka cut": counts.kafkaCuts,
      "longest time from a kill to the next row, nothing else going wrong": describeGap(
        gaps.find(({ alone }) => alone),
      ),
      "longest time from a kill to the next row, other things going wrong": describeGap(
        gaps.find(({ alone }) => !alone),
      ),
      "longest end after SIGTERM": `${inSeconds(slowest.longestStopMs)} (${slowest.name})`,
    },
    invariants: all,
    warnings: logs.warnings,
  };
}

/** Whether this version keeps what Kafka has not taken on disk. */
const HAS_SPOOL = "spool_path" in SETTINGS.producer;

interface World {
  readonly kafka: Kafka;
  readonly postgres: Postgres;
  readonly kafkaRelay: Relay;
  readonly postgresRelay: PostgresRelay;
  readonly members: ReadonlyMap<Target, Member>;
  readonly progress: Progress;
  readonly poisoner: Poisoner;
  readonly topics: readonly (readonly string[])[];
  readonly signal: AbortSignal;
}

interface Counts {
  seconds: number;
  readonly events: Record<string, number>;
  readonly kills: Record<string, number>;
  postgresCuts: number;
  kafkaCuts: number;
}

function topicsOf(producer: number): string[] {
  return Array.from({ length: SITES_PER_PRODUCER }, (_, site) => `${PREFIX}${producer}-${site + 1}`);
}

function spoolPath(folder: string, name: string): string {
  return `${folder}/${name}.db`;
}

/** Metrics in the spool of a producer that has ended, those that Kafka refused among them. */
function countSpool(path: string): number {
  using database = new DatabaseSync(path, { readOnly: true });
  const row = database.prepare(
    "SELECT (SELECT coalesce(sum(size), 0) FROM batch) + (SELECT count(*) FROM refused) AS metrics",
  ).get();
  return Number(row?.["metrics"]);
}

function isGuest(name: Target): boolean {
  return name.startsWith("consumer-") && Number(name.split("-")[1]) > CONSUMERS;
}

interface MakeMembersOptions {
  readonly folder: string;
  readonly sites: CountingSites;
  readonly topics: readonly (readonly string[])[];
  readonly bootstrapServers: string;
  readonly postgres: Postgres;
  readonly postgresRelayPort: number;
}

async function makeMembers(
  { folder, sites, topics, bootstrapServers, postgres, postgresRelayPort }: MakeMembersOptions,
): Promise<Map<Target, Member>> {
  const members = new Map<Target, Member>();
  const add = async (task: "producer" | "consumer", name: Target, lines: readonly string[], args: string[] = []) => {
    const path = `${folder}/${name}.ini`;
    await Deno.writeTextFile(path, lines.join("\n") + "\n", { mode: 0o600 });
    members.set(name, new Member(name, { task, args: ["--config-path", path, ...args], log: `${folder}/${name}.log` }));
  };
  for (const [index, ofProducer] of topics.entries()) {
    const name: Target = `producer-${index + 1}`;
    await add("producer", name, [
      "[kafka]",
      `bootstrap_servers = ${bootstrapServers}`,
      ...(HAS_SPOOL ? ["[producer]", `spool_path = ${spoolPath(folder, name)}`] : []),
      ...ofProducer.flatMap((topic) => [
        `[website_${topic}]`,
        `url = ${sites.url(topic)}`,
        `interval = ${INTERVAL}`,
        `timeout = ${TIMEOUT}`,
      ]),
    ]);
  }
  for (let index = 1; index <= CONSUMERS + GUESTS; index++) {
    await add("consumer", `consumer-${index}`, [
      "[kafka]",
      `bootstrap_servers = ${bootstrapServers}`,
      `group_id = ${GROUP}`,
      "[postgres]",
      `host = ${postgres.host}`,
      `port = ${postgresRelayPort}`,
      `user = ${postgres.user}`,
      `password = ${postgres.password}`,
      `database = ${postgres.database}`,
    ], ["--kafka-topic", `/${PREFIX}.*/`]);
  }
  return members;
}

/** Does what the plan says: each target one thing after the other, different targets at once. */
async function letThingsGoWrong(
  world: World,
  { seed, seconds, kills, report, signal }: Omit<ChaosOptions, "folder">,
): Promise<Counts> {
  const counts: Counts = { seconds: 0, events: {}, kills: {}, postgresCuts: 0, kafkaCuts: 0 };
  const begun = performance.now();
  const elapsed = () => (performance.now() - begun) / 1000;
  const killed = () => Object.values(counts.kills).reduce((sum, count) => sum + count, 0);
  const tails = new Map<string, Promise<void>>();
  const waiting = new Set<Promise<void>>();
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => {});
  for (const { pauseMs, event } of plan(seed, { producers: PRODUCERS, consumers: CONSUMERS, guests: GUESTS })) {
    await Promise.race([failed.promise, delay(pauseMs, undefined, { signal })]);
    while (waiting.size >= MAX_WAITING) await Promise.race([failed.promise, ...waiting]);
    if (elapsed() >= seconds && killed() >= kills) break;
    counts.events[event.kind] = (counts.events[event.kind] ?? 0) + 1;
    const keys: string[] = "targets" in event ? [...event.targets] : [event.kind];
    const before = Promise.all(keys.map((key) => tails.get(key)));
    const task = before.then(async () => {
      report(`${elapsed().toFixed(1).padStart(7)} s  ${describe(event)}`);
      await perform(event, world, counts);
    }).catch(failed.reject).finally(() => waiting.delete(task));
    waiting.add(task);
    for (const key of keys) tails.set(key, task);
  }
  await Promise.race([failed.promise, Promise.all(waiting)]);
  counts.seconds = Math.round(elapsed());
  return counts;
}

function describe(event: ChaosEvent): string {
  switch (event.kind) {
    case "kill":
    case "terminate":
      return `${event.kind} ${event.targets.join(", ")}, start again after ${inSeconds(event.downMs)}`;
    case "freeze":
      return `freeze ${event.targets.join(", ")} for ${inSeconds(event.forMs)}`;
    case "join":
    case "leave":
      return `${event.targets.join(", ")} ${event.kind}s`;
    case "cut-postgres":
      return `cut PostgreSQL, ${event.how}`;
    case "cut-kafka":
      return "cut Kafka";
    case "hang":
      return `connections to ${event.server} hang for ${inSeconds(event.forMs)}, then ${event.then}`;
    case "poison":
      return `publish ${event.messages} poison message(s)`;
  }
}

async function perform(event: ChaosEvent, world: World, counts: Counts): Promise<void> {
  const { members, progress, kafkaRelay, postgresRelay, poisoner, topics, signal } = world;
  if (event.kind === "poison") {
    const all = topics.flat();
    for (let n = 0; n < event.messages; n++) {
      await poisoner.publish(all[(poisoner.acknowledged.size * 7) % all.length]!, 1);
    }
    return;
  }
  const calm = progress.disturb();
  try {
    switch (event.kind) {
      case "kill": {
        const started = event.targets.filter((target) => isRunning(target, world)).map((target) => {
          const kind = target.split("-")[0]!;
          counts.kills[kind] = (counts.kills[kind] ?? 0) + 1;
          return progress.killed(event.targets.length > 1 ? `${target} among ${event.targets.length}` : target);
        });
        await Promise.all(event.targets.map((target) => kill(target, world)));
        await delay(event.downMs, undefined, { signal });
        await Promise.all(event.targets.map((target) => start(target, world)));
        for (const tell of started) tell();
        break;
      }
      case "terminate":
        await Promise.all(event.targets.map((target) => terminate(target, world)));
        await delay(event.downMs, undefined, { signal });
        await Promise.all(event.targets.map((target) => start(target, world)));
        break;
      case "freeze":
        for (const target of event.targets) await freeze(target, world, "SIGSTOP");
        await delay(event.forMs, undefined, { signal });
        for (const target of event.targets) await freeze(target, world, "SIGCONT");
        break;
      case "join":
        for (const target of event.targets) await members.get(target)?.start();
        break;
      case "leave":
        for (const target of event.targets) await members.get(target)?.terminate();
        break;
      case "cut-postgres":
        if (event.how === "now") counts.postgresCuts += postgresRelay.cut();
        else if (await postgresRelay.cutAt(event.how, MOMENT_TIMEOUT_MS)) counts.postgresCuts++;
        break;
      case "cut-kafka":
        counts.kafkaCuts += kafkaRelay.cut();
        break;
      case "hang": {
        const relay = event.server === "kafka" ? kafkaRelay : postgresRelay;
        const goOn = relay.hang();
        await delay(event.forMs, undefined, { signal });
        if (event.then === "cut") counts[event.server === "kafka" ? "kafkaCuts" : "postgresCuts"] += relay.cut();
        goOn();
        break;
      }
    }
  } finally {
    calm();
  }
}

function isRunning(target: Target, { kafka, postgres, members }: World): boolean {
  if (target === "kafka") return kafka.pid !== undefined;
  if (target === "postgres") return postgres.pid !== undefined;
  return members.get(target)?.running ?? false;
}

async function kill(target: Target, { kafka, postgres, members }: World): Promise<void> {
  if (target === "kafka") await kafka.kill("SIGKILL");
  else if (target === "postgres") await postgres.kill("SIGKILL");
  else await members.get(target)?.kill();
}

async function terminate(target: Target, { kafka, postgres, members }: World): Promise<void> {
  if (target === "kafka") await kafka.stop();
  else if (target === "postgres") await postgres.stop();
  else await members.get(target)?.terminate();
}

async function start(target: Target, { kafka, postgres, members, signal }: World): Promise<void> {
  if (target === "kafka") await kafka.start({ signal });
  else if (target === "postgres") await postgres.start({ signal });
  else await members.get(target)?.start();
}

async function freeze(target: Target, { kafka, members }: World, signal: "SIGSTOP" | "SIGCONT"): Promise<void> {
  if (target === "kafka") await kafka.kill(signal);
  else if (signal === "SIGSTOP") members.get(target)?.freeze();
  else members.get(target)?.thaw();
}

/** All are alive; producers empty their spools and end; consumers read to the ends and end. */
async function settle(
  world: World,
  { folder, bootstrapServers, report }: {
    folder: string;
    bootstrapServers: string;
    report: (line: string) => void;
  },
): Promise<Invariant[]> {
  const { members, progress, signal } = world;
  for (const target of ["kafka", "postgres"] as const) await start(target, world);
  for (const [name, member] of members) if (!isGuest(name)) await member.start();
  await until(() => progress.recovered, { timeoutMs: SETTLE_TIMEOUT_MS, what: "rows after the last event", signal });
  await progress[Symbol.asyncDispose]();
  const producers = [...members].filter(([name]) => name.startsWith("producer-")).map(([, member]) => member);
  let left = producers;
  for (let round = 1; left.length > 0 && round <= DRAIN_ROUNDS; round++) {
    if (round > 1) {
      report(`Spools of ${left.map(({ name }) => name).join(", ")} are not empty yet`);
      for (const producer of left) await producer.start();
      await delay(DRAIN_WAIT_MS, undefined, { signal });
    }
    await Promise.all(left.map((producer) => producer.terminate()));
    left = left.filter(({ name, lastExitCode }) =>
      lastExitCode !== 0 || HAS_SPOOL && countSpool(spoolPath(folder, name)) > 0
    );
  }
  const begun = performance.now();
  let behind = Infinity;
  while (behind > 0 && performance.now() - begun < SETTLE_TIMEOUT_MS) {
    behind = await lag(bootstrapServers, GROUP, PREFIX);
    if (behind > 0) await delay(500, undefined, { signal });
  }
  const settledMs = performance.now() - begun;
  const consumers = [...members.values()].filter(({ name, running }) => name.startsWith("consumer-") && running);
  await Promise.all(consumers.map((consumer) => consumer.terminate()));
  const bad = consumers.filter(({ lastExitCode }) => lastExitCode !== 0);
  return [
    {
      name: "producers end with nothing left to send",
      held: left.length === 0,
      figure: `${left.length} of ${producers.length} with some left`,
    },
    { name: "consumers read to the end", held: behind === 0, figure: `lag ${behind} after ${inSeconds(settledMs)}` },
    { name: "consumers end well at SIGTERM", held: bad.length === 0, figure: `${bad.length} with another exit code` },
  ];
}

async function query<T extends pg.QueryResultRow>(config: pg.ClientConfig, sql: string): Promise<T[]> {
  const client = new pg.Client(config);
  await client.connect();
  try {
    return (await client.query<T>(sql)).rows;
  } finally {
    await client.end();
  }
}

async function until(
  holds: () => boolean,
  { timeoutMs, what, signal }: { timeoutMs: number; what: string; signal: AbortSignal },
): Promise<void> {
  for (const end = performance.now() + timeoutMs; !holds();) {
    if (performance.now() > end) throw new Error(`Waited in vain for ${what}`);
    await delay(100, undefined, { signal });
  }
}

function describeGap(gap: Gap | undefined): string {
  if (gap === undefined) return "none";
  return `${inSeconds(gap.fromKillMs)} (${gap.what}), ${inSeconds(gap.fromStartMs)} from its new start`;
}

function inSeconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}
