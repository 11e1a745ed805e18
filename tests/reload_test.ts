import assert from "node:assert/strict";
import type { ProducerConfig } from "../lib/config.ts";
import { readProducerConfig } from "../lib/config.ts";
import { parseCommandLine } from "../lib/command.ts";
import { followConfig } from "../lib/reload.ts";
import { temporaryFile } from "./support.ts";

const SITE = "[website_a]\nurl = http://a/\n";

interface Followed extends AsyncDisposable {
  readonly path: string;
  /** Sites of each of the settings that came, each with its URL. */
  readonly sites: string[][];
  /** Lines of the log. */
  readonly lines: string[];
  /** Waits until so many settings have come, or lines. */
  until(holds: () => boolean): Promise<void>;
}

/** Follows a file of its own. */
async function follow(text: string, { args = [] }: { args?: readonly string[] } = {}): Promise<Followed> {
  const file = await temporaryFile("config.ini", text);
  const commandLine = parseCommandLine("producer", ["--config-path", file.path, ...args]);
  assert.ok(typeof commandLine === "object");
  const read = () => readProducerConfig(commandLine, { env: () => undefined });
  const controller = new AbortController();
  const [sites, lines]: [string[][], string[]] = [[], []];
  const tell = (level: string) => (message: string, properties: Record<string, unknown> = {}) =>
    void lines.push(
      `${level} ${message.replace(/\{(\w+)\}/g, (_, name) => String(properties[name]))}`.replaceAll(file.path, "FILE"),
    );
  const log = { debug: tell("debug"), info: tell("info"), warn: tell("warn"), error: tell("error") };
  const configs = followConfig(await read(), { read, log, signal: controller.signal, lookEveryMs: 10 });
  const done = (async () => {
    for await (const config of configs) sites.push(describe(config));
  })();
  const until = async (holds: () => boolean) => {
    while (!holds()) await Promise.race([done, new Promise((resolve) => setTimeout(resolve, 5))]);
  };
  await until(() => sites.length === 1);
  return {
    path: file.path,
    sites,
    lines,
    until,
    async [Symbol.asyncDispose]() {
      controller.abort();
      await done;
      await file[Symbol.asyncDispose]();
    },
  };
}

function describe({ sites }: ProducerConfig): string[] {
  return sites.map(({ name, url }) => `${name} ${url}`);
}

const BROKER = ["--kafka-bootstrap-servers=b:1"];

Deno.test("followConfig() yields the settings again when their file is written, replaced, or goes and comes", async () => {
  await using followed = await follow(SITE, { args: BROKER });
  const { path, sites, lines, until } = followed;
  await Deno.writeTextFile(path, SITE + "[website_b]\nurl = http://b/\n");
  await until(() => sites.length === 2);
  await Deno.writeTextFile(`${path}.new`, SITE.replace("//a", "//c"));
  await Deno.rename(`${path}.new`, path);
  await until(() => sites.length === 3);
  await Deno.remove(path);
  await until(() => lines.length === 3);
  await Deno.writeTextFile(path, SITE);
  await until(() => sites.length === 4);
  assert.deepEqual(sites, [["a http://a/"], ["a http://a/", "b http://b/"], ["a http://c/"], ["a http://a/"]]);
  assert.deepEqual(lines, [
    "info Read 'FILE' again: 2 site(s), 1 of them new, 0 gone",
    "info Read 'FILE' again: 1 site(s), 0 of them new, 1 gone",
    "error The settings of 'FILE' are wrong, those before stay in force: Cannot read configuration file 'FILE': " +
    "there is no such file",
    "info Read 'FILE' again: 1 site(s), 0 of them new, 0 gone",
  ]);
});

Deno.test("followConfig() tells what is wrong with the file and yields nothing", async () => {
  await using followed = await follow(SITE, { args: BROKER });
  const { path, sites, lines, until } = followed;
  await Deno.writeTextFile(path, SITE + "interval = often\n");
  await until(() => lines.length === 1);
  assert.deepEqual(lines, [
    "error The settings of 'FILE' are wrong, those before stay in force: Cannot read interval of website 'a' (FILE:3): " +
    "expected a duration such as 10s, got 'often'",
  ]);
  assert.equal(sites.length, 1);
});

Deno.test("followConfig() tells which settings take a restart", async () => {
  const kafka = "[kafka]\nbootstrap_servers = b:1\n";
  await using followed = await follow(SITE + kafka);
  const { path, sites, lines, until } = followed;
  await Deno.writeTextFile(path, `${SITE}${kafka}topic = all\n[producer]\nspool_max_age = 1h\n[log]\nlevel = debug\n`);
  await until(() => sites.length === 2);
  assert.deepEqual(lines.slice(1), [
    "warn Settings of [kafka] have changed, which takes a restart: those before stay in force",
    "warn Settings of the spool have changed, which takes a restart: those before stay in force",
    "warn Settings of [log] have changed, which takes a restart: those before stay in force",
  ]);
});
