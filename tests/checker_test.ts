import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import { Checker } from "../lib/checker.ts";
import { parseCommandLine } from "../lib/command.ts";
import { readProducerConfig } from "../lib/config.ts";
import type { Metric } from "../lib/metric.ts";
import { REPOSITORY } from "../local/repository.ts";
import { logOf, startSite, temporaryFile } from "./support.ts";

/** Checks many sites at once that answer late, and prints results and lines of the log. */
const SCRIPT = `
import { Checker } from "${REPOSITORY}/lib/checker.ts";
import { readProducerConfig } from "${REPOSITORY}/lib/config.ts";
import { parseCommandLine } from "${REPOSITORY}/lib/command.ts";
Deno.addSignalListener("SIGHUP", () => {});
const { sites } = await readProducerConfig(parseCommandLine("producer", ["--dry-run", "--config-path", Deno.args[0]]));
const tell = (message, properties) => console.log(JSON.stringify({ message, ...properties }));
const log = { debug: tell, info: tell, warn: tell, error: tell };
const signal = new AbortController().signal;
using checker = new Checker({ limits: { max: 1000, maxPerHost: 1000 }, log, signal, once: false });
const now = { scheduledAt: new Date(), dueAt: performance.now() };
const deliver = ({ verdict, error }) => console.log(JSON.stringify({ verdict, error }));
await Promise.all(sites.map((item) => checker.check({ item, ...now }, deliver)));
setTimeout(() => Deno.exit(), 100);
`;

Deno.test.each(["127.0.0.1", "localhost"])(
  "Checker.check() at %s says that files have run out, and nothing of the sites",
  async (host) => {
    await using site = startSite(async () => {
      await delay(500);
      return new Response("hello");
    });
    const url = site.url.replace("127.0.0.1", host);
    const sections = Array.from({ length: 150 }, (_, i) => `[website_s${i}]\nurl = ${url}${i}\n`);
    await using file = await temporaryFile("config.ini", sections.join("\n"));
    await using script = await temporaryFile("check.js", SCRIPT);
    const { stdout, stderr } = await new Deno.Command("sh", {
      args: [
        "-c",
        'ulimit -n 100; exec "$0" "$@"',
        Deno.execPath(),
        "run",
        "-A",
        "--quiet",
        "--config=deno.json",
        script.path,
        file.path,
      ],
      cwd: REPOSITORY,
    }).output();
    const lines = new TextDecoder().decode(stdout).trim().split("\n").map((line) => JSON.parse(line));
    const verdicts = lines.filter(({ verdict }) => verdict !== undefined);
    assert.ok(verdicts.length > 20 && verdicts.length < 150, `${verdicts.length}`);
    assert.deepEqual(verdicts.filter(({ verdict }) => verdict !== "up"), []);
    const told = lines.filter(({ message }) => message?.startsWith("Cannot check"));
    assert.deepEqual([...new Set(told.map(({ reason }) => reason))], [
      "too many open files: raise the limit of this process (ulimit -n, or LimitNOFILE= of systemd), or lower max_checks " +
      "of [producer]",
    ], new TextDecoder().decode(stderr));
    const report = lines.find(({ message }) => message?.startsWith("Began"));
    assert.equal(report.failed + verdicts.length, 150);
  },
);

Deno.test("Checker.check() that waits for room while its name turns slow takes one slot, and gives it back", async () => {
  // The second visit takes all of its check's time, so that the name is no longer known to be quick.
  await using site = startSite(async () => {
    if (site.visits === 2) await delay(600);
    return new Response("hello");
  });
  const url = site.url.replace("127.0.0.1", "localhost");
  await using file = await temporaryFile(
    "config.ini",
    `[defaults]\ntimeout = 300ms\ninspect_interval = 1h\n${
      ["one", "other"].map((name) => `[website_${name}]\nurl = ${url}\n`).join("")
    }`,
  );
  const commandLine = parseCommandLine("producer", ["--dry-run", "--config-path", file.path]);
  assert.ok(typeof commandLine === "object");
  const [one, other] = (await readProducerConfig(commandLine)).sites;
  const signal = new AbortController().signal;
  using checker = new Checker({ limits: { max: 1, maxPerHost: 1 }, log: logOf([]), signal, once: false });
  const delivered: string[] = [];
  const deliver = ({ name, verdict, error }: Metric) => delivered.push(`${name} ${verdict} ${error}`);
  const check = (item = one!) => checker.check({ item, scheduledAt: new Date(), dueAt: performance.now() }, deliver);
  await check();
  await Promise.all([check(), check(other)]);
  await check();
  assert.deepEqual(delivered, ["one up null", "one down timeout", "other up null", "one up null"]);
});
