import { Command, CommanderError, Option } from "commander";
import project from "../deno.json" with { type: "json" };
import { print, printError } from "./log.ts";
import { nearest } from "./nearest.ts";
import { flagNames, type ProgramName, type Setting, SETTINGS, variableNames } from "./setting.ts";

/** What the consumer does instead of reading topics. */
export const TASKS = ["dead-letters", "replay-dead-letters", "rebuild-summaries"] as const;

/** What a command line says. */
export interface CommandLine {
  /** Texts of the settings' flags, by the flag's name without dashes. */
  readonly flags: ReadonlyMap<string, string>;
  /** Texts of the flags that may be repeated, in order. */
  readonly lists: ReadonlyMap<string, readonly string[]>;
  /** Texts of `--kafka-topic`, in order. */
  readonly topics: readonly string[];
  /** `--config-path` */
  readonly configPath: string | undefined;
  /** `--once` */
  readonly once: boolean;
  /** `--dry-run` */
  readonly dryRun: boolean;
  /** `--check-config` */
  readonly checkConfig: boolean;
  /** `--reset-offsets` */
  readonly resetOffsets?: string | undefined;
  /** `--trace [name]` of the producer, and whether `--json` stands beside it. */
  readonly trace?: { readonly name: string | null; readonly json: boolean };
  /** `--list-refused`, `--retry-refused` of the producer. */
  readonly refused?: "list" | "retry";
  /** `--dead-letters` and so on */
  readonly task?: typeof TASKS[number];
}

/** What the command line asks for beside settings, by program. */
const MODES: Record<ProgramName, { summary: string; once: string; dryRun: string; examples: readonly string[] }> = {
  producer: {
    summary: "Checks web sites and publishes every result to Kafka, a topic per site.",
    once: "check every site once, wait until Kafka has all results, and end",
    dryRun: "print each result as a line of JSON instead of publishing it; needs no broker",
    examples: [
      "deno task producer --once --dry-run --url https://example.com/ --regex Example",
      "deno task producer --config-path example/example.config.ini",
      "deno task producer --config-path example/example.config.ini --trace apache",
    ],
  },
  consumer: {
    summary: "Moves the results of checks from Kafka into PostgreSQL, a table per topic.",
    once: "store what the topics hold now, and end",
    dryRun: "print each row as a line of JSON instead of storing it; needs no database, commits nothing",
    examples: [
      "deno task consumer --config-path example/example.config.ini",
      "deno task consumer --once --dry-run --kafka-bootstrap-servers localhost:9092 --kafka-topic apache",
    ],
  },
};

/**
 * Reads a program's command line.
 *
 * @returns What it says, or the exit code where nothing is left to do: 0 after `--help` and `--version`, 2 after an
 * error, which has been written to standard error.
 */
export function parseCommandLine(program: ProgramName, args: readonly string[]): CommandLine | number {
  const command = createCommand(program);
  try {
    checkArguments(command, args);
    command.parse(args, { from: "user" });
    checkTasks(command);
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    return error.exitCode === 0 ? 0 : 2;
  }
  const options = command.opts<Record<string, unknown>>();
  const [task] = givenFlags(command, TASKS);
  const flags = new Map<string, string>();
  const lists = new Map<string, readonly string[]>();
  for (const option of command.options) {
    const value = options[option.attributeName()];
    if (typeof value === "string" && option.name() !== "trace") flags.set(option.name(), value);
    if (Array.isArray(value) && option.name() !== "kafka-topic") lists.set(option.name(), value);
  }
  const topics = options["kafkaTopic"];
  const trace = options["trace"];
  return {
    flags,
    lists,
    topics: Array.isArray(topics) ? topics : [],
    configPath: flags.get("config-path"),
    once: options["once"] === true,
    dryRun: options["dryRun"] === true,
    checkConfig: options["checkConfig"] === true,
    resetOffsets: flags.get("reset-offsets"),
    ...(trace !== undefined && {
      trace: { name: typeof trace === "string" ? trace : null, json: options["json"] === true },
    }),
    ...(options["listRefused"] === true && { refused: "list" }),
    ...(options["retryRefused"] === true && { refused: "retry" }),
    ...(task && { task }),
  };
}

/** Those of some flags that are given. */
function givenFlags<T extends string>(command: Command, flags: readonly T[]): T[] {
  const options = command.opts<Record<string, unknown>>();
  return flags.filter((flag) => {
    const option = command.options.find(({ long }) => long === `--${flag}`);
    return option !== undefined && options[option.attributeName()] !== undefined;
  });
}

/** Refuses flags that mean nothing together. */
function checkTasks(command: Command): void {
  const tasks = givenFlags(command, TASKS);
  const [other] = [...tasks.slice(1), ...givenFlags(command, ["once", "dry-run"])];
  if (tasks.length > 0 && other !== undefined) command.error(`--${other} can't be used beside --${tasks[0]}`);
  const [beside] = givenFlags(command, ["once", "dry-run", "check-config", "list-refused", "retry-refused"]);
  const [trace] = givenFlags(command, ["trace"]);
  if (/:\/\//.test(String(command.opts()["trace"]))) {
    command.error("--trace takes the name of a site: for an address, expected --trace --url <url>");
  }
  if (trace !== undefined && beside !== undefined) command.error(`--${beside} can't be used beside --trace`);
  const [json] = givenFlags(command, ["json"]);
  if (json !== undefined && trace === undefined) command.error("--json is a form of --trace: expected that beside it");
  const [filter] = givenFlags(command, ["topic", "reason"]);
  if (filter !== undefined && !tasks.some((task) => task.endsWith("dead-letters"))) {
    command.error(`--${filter} picks dead letters: expected --dead-letters or --replay-dead-letters beside it`);
  }
}

/**
 * Refuses what commander takes or says too much of: `--name --once`, a forgotten name, with which a site would be checked
 * for ever and not once (`--name=--once` is taken), and `--unknown=value`, whose value may be a password.
 */
function checkArguments(command: Command, args: readonly string[]): void {
  const options = new Map<string | undefined, Option>(command.options.map((option) => [option.long, option]));
  const long = [...command.options.map(({ long }) => long ?? ""), "--help"];
  const known = [...long, "-h", "-V", "--"];
  let open: Option | undefined;
  let urls = 0;
  for (const arg of args) {
    const [flag = arg] = arg.split("=", 1);
    if (open === undefined && flag === "--url" && ++urls > 1) {
      command.error("option '--url <url>' given twice: several sites are for a file, see --config-path");
    }
    if (open !== undefined && flag.startsWith("--") && known.includes(flag)) {
      command.error(`option '${open.flags}' argument missing before ${flag}`);
    }
    if (open === undefined && flag.startsWith("-") && !known.includes(flag)) {
      const meant = nearest(flag, long);
      command.error(`unknown option '${flag}'${meant === undefined ? "" : ` (Did you mean ${meant}?)`}`);
    }
    open = open === undefined && options.get(arg)?.required === true ? options.get(arg) : undefined;
  }
}

function gather(value: string, previous: string[] | undefined): string[] {
  return [...previous ?? [], value];
}

function createCommand(program: ProgramName): Command {
  const { summary, once, dryRun, examples } = MODES[program];
  const command = new Command(program)
    .description(
      `${summary}\n\nEach setting is taken from its flag, else the environment, else the file, else the default.`,
    )
    .helpOption("-h, --help", "show this page")
    .version(project.version, "-V, --version", "show the version")
    .configureHelp({ showGlobalOptions: true, helpWidth: 100 })
    .configureOutput({
      writeOut: (text) => print(text.trimEnd()),
      writeErr: (text) => printError(text.trimEnd()),
      outputError: (text, write) => write(`${program}: ${text.replace(/^error: /, "").trim().replaceAll(/\s+/g, " ")}`),
    })
    .exitOverride()
    .addHelpText("after", `\nExamples:\n${examples.map((example) => `  $ ${example}`).join("\n")}`);

  command.addOption(
    new Option("--config-path <file>", "file with all settings, see example/example.config.ini [env: CONFIG_PATH]"),
  );
  if (program === "producer") {
    command.addOption(
      new Option("--name <name>", "name of the site and its topic (default: host of the URL) [env: NAME]"),
    );
  } else {
    command.addOption(
      new Option(
        "--kafka-topic <topic>",
        "topic to read; repeatable, comma-separated, or /regex/ (default: sites of the file) [env: KAFKA_TOPIC]",
      ).argParser(gather),
    );
  }
  for (const section of Object.values(SETTINGS)) {
    for (const [key, setting] of Object.entries<Setting<unknown>>(section)) {
      if (!setting.programs.includes(program)) continue;
      const variables = variableNames(key, setting);
      for (const [index, flag] of flagNames(key, setting).entries()) {
        const meaning = index === 0
          ? `${setting.meaning}${setting.several ? "; repeatable" : ""} (default: ${setting.fallback})`
          : `the same as --${setting.flag}`;
        const variable = variables[index] === undefined ? "" : ` [env: ${variables[index]}]`;
        const option = new Option(`--${flag} <${setting.placeholder}>`, meaning + variable);
        command.addOption(setting.several ? option.argParser(gather) : option);
      }
    }
  }
  if (program === "consumer") {
    command
      .option(
        "--reset-offsets <where>",
        "begin anew at earliest, latest or a time (2026-01-31T00:00Z); rows that are there stay single",
      )
      .option("--dead-letters", "print messages that could not be rows as lines of JSON, and end")
      .option("--replay-dead-letters", "try them again, and end; those that are rows now are marked")
      .option("--topic <topic>", "with these two: those of one topic")
      .option("--reason <text>", "with these two: those with this in the reason")
      .option("--rebuild-summaries", "make latest and daily anew from all rows, and end; other consumers may go on");
  }
  command.option("--once", once).option("--dry-run", dryRun);
  if (program === "producer") {
    command
      .option(
        "--trace [name]",
        "check one site, of the file or of --url, tell it step by step, and end; needs no broker",
      )
      .option("--json", "with --trace: as one JSON object, see docs/trace.md")
      .option("--list-refused", "print each result that Kafka will never take, with the reason, as JSON, and end")
      .option("--retry-refused", "put these back among those that wait for Kafka, and end");
  }
  return command
    .option("--check-config", "validate the settings, print them with secrets hidden, and end");
}
