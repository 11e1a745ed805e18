import assert from "node:assert/strict";
import { type CommandLine, parseCommandLine } from "../lib/command.ts";
import { type Setting, SETTINGS } from "../lib/setting.ts";
import { runProgram } from "./support.ts";

function parse(program: "producer" | "consumer", ...args: string[]): CommandLine {
  const commandLine = parseCommandLine(program, args);
  assert.ok(typeof commandLine === "object", `${args.join(" ")} is refused`);
  return commandLine;
}

Deno.test("parseCommandLine() finds nothing in nothing", () => {
  assert.deepEqual(parse("producer"), {
    flags: new Map(),
    lists: new Map(),
    topics: [],
    configPath: undefined,
    once: false,
    dryRun: false,
    checkConfig: false,
    resetOffsets: undefined,
  });
});

Deno.test("parseCommandLine() takes values behind a space and behind =", () => {
  const { flags, lists, once, dryRun, checkConfig, configPath } = parse(
    "producer",
    ...["--url", "http://a/?b=c", "--regex=^--x=1", "--once", "--dry-run", "--check-config", "--config-path", "a.ini"],
  );
  assert.equal(flags.get("url"), "http://a/?b=c");
  assert.deepEqual(lists.get("regex"), ["^--x=1"]);
  assert.deepEqual({ once, dryRun, checkConfig, configPath }, {
    once: true,
    dryRun: true,
    checkConfig: true,
    configPath: "a.ini",
  });
});

Deno.test("parseCommandLine() takes a value that begins with a dash, and an empty one", () => {
  const { flags, lists } = parse("producer", "--interval", "-5", "--regex", "-x", "--name", "");
  assert.deepEqual([...flags].sort(), [["interval", "-5"], ["name", ""]]);
  assert.deepEqual([...lists], [["regex", ["-x"]]]);
});

Deno.test("parseCommandLine() takes a flag's name for a value behind = only", () => {
  assert.equal(parse("producer", "--name=--once").flags.get("name"), "--once");
  assert.equal(parse("producer", "--name=--once").once, false);
});

Deno.test("parseCommandLine() gathers --kafka-topic", () => {
  assert.deepEqual(parse("consumer", "--kafka-topic", "a,b", "--kafka-topic=/c,d/").topics, ["a,b", "/c,d/"]);
});

Deno.test.each([
  { args: ["--trace"], trace: { name: null, json: false } },
  { args: ["--trace", "apache"], trace: { name: "apache", json: false } },
  { args: ["--trace=apache", "--json"], trace: { name: "apache", json: true } },
  { args: ["--json", "--trace", "--url", "http://a/"], trace: { name: null, json: true } },
])("parseCommandLine() takes a name behind $args where there is one", ({ args, trace }) => {
  const commandLine = parse("producer", ...args);
  assert.deepEqual(commandLine.trace, trace);
  assert.ok(!commandLine.flags.has("trace"));
});

Deno.test("parseCommandLine() has a flag for each setting of the program", () => {
  for (const section of Object.values(SETTINGS)) {
    for (const { flag, programs, several } of Object.values<Setting<unknown>>(section)) {
      for (const program of programs) {
        const { flags, lists } = parse(program, `--${flag}=x`);
        assert.deepEqual(several ? lists.get(flag) : flags.get(flag), several ? ["x"] : "x");
      }
    }
  }
});

Deno.test.each(["producer", "consumer"] as const)("%s --help shows every flag", async (program, t) => {
  const { code, stdout, stderr } = await runProgram(program, ["--help"]);
  assert.deepEqual({ code, stderr }, { code: 0, stderr: "" });
  await t.assertSnapshot(stdout, { serializer: String });
});

const REFUSED: readonly { args: readonly string[]; message: string }[] = [
  { args: ["--intervall", "5"], message: "unknown option '--intervall' (Did you mean --interval?)" },
  { args: ["--pooling_interval=5"], message: "unknown option '--pooling_interval' (Did you mean --pooling-interval?)" },
  { args: ["--onec"], message: "unknown option '--onec' (Did you mean --once?)" },
  { args: ["-url", "http://a/"], message: "unknown option '-url' (Did you mean --url?)" },
  { args: ["--xyz"], message: "unknown option '--xyz'" },
  { args: ["-x"], message: "unknown option '-x'" },
  {
    args: ["--kafka-ssl-keyfil=hunter2"],
    message: "unknown option '--kafka-ssl-keyfil' (Did you mean --kafka-ssl-keyfile?)",
  },
  { args: ["--once=1"], message: "unknown option '--once=1' (Did you mean --once?)" },
  { args: ["--trace", "--once"], message: "--once can't be used beside --trace" },
  { args: ["--dry-run", "--trace", "a"], message: "--dry-run can't be used beside --trace" },
  { args: ["--trace", "--check-config"], message: "--check-config can't be used beside --trace" },
  { args: ["--trace", "--list-refused"], message: "--list-refused can't be used beside --trace" },
  { args: ["--trace", "--retry-refused"], message: "--retry-refused can't be used beside --trace" },
  { args: ["--json"], message: "--json is a form of --trace: expected that beside it" },
  { args: ["--once", "--json"], message: "--json is a form of --trace: expected that beside it" },
  { args: ["--trace", "a", "b"], message: "too many arguments. Expected 0 arguments but got 1: b." },
  {
    args: ["--trace", "https://me:hunter2@a/"],
    message: "--trace takes the name of a site: for an address, expected --trace --url <url>",
  },
  { args: ["--url"], message: "option '--url <url>' argument missing" },
  { args: ["--name", "--once"], message: "option '--name <name>' argument missing before --once" },
  { args: ["--regex", "--url=http://a/"], message: "option '--regex <pattern>' argument missing before --url" },
  {
    args: ["--url=http://a/", "--url", "http://b/"],
    message: "option '--url <url>' given twice: several sites are for a file, see --config-path",
  },
  { args: ["http://a/"], message: "too many arguments. Expected 0 arguments but got 1: http://a/." },
];

Deno.test.each(REFUSED)("producer $args exits 2 with a line that says why", async ({ args, message }) => {
  assert.deepEqual(await runProgram("producer", args), { code: 2, stdout: "", stderr: `producer: ${message}\n` });
});
