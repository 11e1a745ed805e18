import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import { decodeMetric, type Metric } from "../lib/metric.ts";
import { REPOSITORY } from "../local/repository.ts";
import { type Misbehaviour, MISBEHAVIOURS, type SitePorts } from "./misbehaving_sites.ts";
import { startProgram, temporaryFile } from "./support.ts";

const INTERVAL_MS = 5_000;
const TIMEOUT_MS = 2_000;
/** What a busy machine may take on top. */
const MARGIN_MS = 2_500;
const GOOD_SITES = 1_000;
/** Of the good sites, those with a pattern that is not proven linear, as those of sites that misbehave are not. */
const PATTERN_EVERY = 50;
/** So long that each good site is checked three times. */
const RUN_MS = 3.2 * INTERVAL_MS;
/** Less than what comes in a second, were it kept; nearly half of it is what the program and its threads take anyway. */
const MAX_RSS_KIB = 768 * 1024;

/** Serves the sites in a process of their own. */
async function startSites(): Promise<SitePorts & AsyncDisposable> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--quiet", `${REPOSITORY}/tests/misbehaving_sites.ts`],
    stdout: "piped",
  }).spawn();
  const reader = child.stdout.getReader();
  const { value } = await reader.read();
  return {
    ...JSON.parse(new TextDecoder().decode(value)),
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await reader.cancel();
      await child.status;
    },
  };
}

/** Ways in which requests are made, and what in `[defaults]` makes it so (lib/fetch.ts). */
const WAYS = [{ way: "directly over TCP", line: "" }, { way: "by the runtime's fetch", line: "ip_version = 4\n" }];

/** The sites that misbehave, by name, in as far as requests that are made so are to deal with them. */
function misbehavioursFor(line: string): [string, Misbehaviour][] {
  return Object.entries(MISBEHAVIOURS).filter(([, { holdsUpRuntime = false }]) => line === "" || !holdsUpRuntime);
}

function configOf({ good, bad }: SitePorts, line: string): string {
  const goodSites = Array.from(
    { length: GOOD_SITES },
    (_, i) =>
      `[website_good_${i}]\nurl = http://127.0.0.1:${good}/${i}\n` +
      (i % PATTERN_EVERY === 0 ? "regex = (?i)^IT\\s+works(?=!)\n" : ""),
  );
  const badSites = misbehavioursFor(line).map(([name, { settings = "" }]) =>
    `[website_${name}]\nurl = http://127.0.0.1:${bad}/${name}\n${settings}\n`
  );
  return `[defaults]\ninterval = ${INTERVAL_MS}ms\ntimeout = ${TIMEOUT_MS}ms\n${line}\n${
    [...goodSites, ...badSites].join("\n")
  }`;
}

/** Most memory that a process ever had, in KiB. */
async function peakRss(pid: number): Promise<number> {
  const status = await Deno.readTextFile(`/proc/${pid}/status`);
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]);
}

/** A line as the consumer reads it, which refuses what PostgreSQL would. */
function readMetric(line: string): Metric {
  const value = new TextEncoder().encode(line);
  return decodeMetric({ topic: "sites", partition: 0, offset: "0", timestamp: 0, key: null, value, headers: {} });
}

Deno.test.each(WAYS)(
  "producer gives sites that misbehave their class in time and in bounded memory, and 1,000 others stay on time: $way",
  async ({ line }, t) => {
    await using sites = await startSites();
    await using file = await temporaryFile("config.ini", configOf(sites, line));
    await using producer = startProgram("producer", ["--dry-run", "--config-path", file.path]);
    await producer.waitFor("Checking");
    await delay(RUN_MS);
    const rss = Deno.build.os === "linux" ? await peakRss(producer.pid) : 0;
    const { code, stdout, stderr } = await producer.stop("SIGTERM");
    assert.equal(code, 0, stderr);
    const metrics = stdout.trim().split("\n").map(readMetric);
    const byName = Map.groupBy(metrics, ({ name }) => name);
    const checksOf = (name: string) => byName.get(name) ?? [];

    for (const [name, { error: ofPlain, errorOfRuntime = ofPlain, phase }] of misbehavioursFor(line)) {
      const error = line === "" ? ofPlain : errorOfRuntime;
      await t.step(`${name} is ${error ?? "up"}`, () => {
        const checks = checksOf(name);
        assert.ok(checks.length >= 2, `${checks.length} checks`);
        for (const check of checks) {
          assert.deepEqual([check.error, check.failed_phase], [error, phase], check.error_message ?? "");
          assert.ok(check.elapsed_ms! <= TIMEOUT_MS + MARGIN_MS, `${check.elapsed_ms} ms`);
        }
      });
    }

    await t.step("each good site is up, and all of its checks are made", () => {
      for (let i = 0; i < GOOD_SITES; i++) {
        const checks = checksOf(`good_${i}`);
        assert.ok(checks.length >= 3, `${checks.length} checks of good_${i}`);
        for (const { verdict, error_message } of checks) assert.equal(verdict, "up", error_message ?? "");
        const due = checks.map(({ scheduled_at }) => Date.parse(scheduled_at!)).sort((a, b) => a - b);
        const gaps = due.slice(1).map((time, j) => Math.round((time - due[j]!) / INTERVAL_MS));
        assert.ok(gaps.every((gap) => gap === 1), `a check of good_${i} is missing: ${gaps}`);
        for (const { occurred_at, scheduled_at } of checks) {
          const late = Date.parse(occurred_at) - Date.parse(scheduled_at!);
          assert.ok(late < INTERVAL_MS, `good_${i} is ${late} ms late`);
        }
      }
    });

    await t.step("memory is bounded", () => assert.ok(rss <= MAX_RSS_KIB, `${rss} KiB`));
  },
);
