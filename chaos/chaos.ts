import { Command, InvalidArgumentError } from "commander";
import { print, printError } from "../lib/log.ts";
import { formatGrid } from "../local/grid.ts";
import { listenForInterruption } from "../local/interruption.ts";
import { errorMessageLines, usageExitCode } from "../local/stack.ts";
import type { Invariant } from "./judgement.ts";
import { type ChaosResult, runChaos } from "./run.ts";

interface Options {
  readonly seed?: number;
  readonly seconds: number;
  readonly kills: number;
  readonly json?: string;
  readonly keep?: true;
}

const DEFAULT_SECONDS = 60;
/** Seeds that chance chooses from: short ones, to be typed again. */
const SEEDS = 1_000_000;
const MAX_WIDTH = 160;
/** Exit code of a run that was broken off, as shells count. */
const INTERRUPTED = 130;

async function main(args: readonly string[]): Promise<number> {
  const command = new Command("chaos")
    .description(
      "Kills, freezes and cuts off producers, consumers, Kafka and PostgreSQL of its own, and compares then what " +
        "sites, Kafka and PostgreSQL have counted. Exit code 0: nothing lost, nothing twice.",
    )
    .option("--seed <n>", "seed of the sequence of events (default: by chance)", parseInteger)
    .option("--seconds <n>", "things go wrong for at least this long", parseInteger, DEFAULT_SECONDS)
    .option("--kills <n>", "and until at least so many processes were killed", parseInteger, 0)
    .option("--json <file>", "write the figures there, too")
    .option("--keep", "keep data and logs (they are kept where something did not hold)")
    .allowExcessArguments(false)
    .exitOverride();
  let options: Options;
  try {
    options = command.parse(args, { from: "user" }).opts();
  } catch (error) {
    return usageExitCode(error);
  }
  using interruption = listenForInterruption();
  const folder = await Deno.makeTempDir({ prefix: "site_checker-chaos-" });
  // The database's user has to pass.
  await Deno.chmod(folder, 0o755);
  let keep = options.keep ?? false;
  try {
    const seed = options.seed ?? Math.floor(Math.random() * SEEDS);
    print(`Seed ${seed}: the same seed brings the same events and pauses`);
    const result = await runChaos({ ...options, seed, folder, report: print, signal: interruption.signal });
    printResult(result);
    if (options.json !== undefined) await Deno.writeTextFile(options.json, JSON.stringify(result, null, 2) + "\n");
    keep ||= !result.passed;
    return result.passed ? 0 : 1;
  } catch (error) {
    if (interruption.signal.aborted) return INTERRUPTED;
    printError(`chaos: ${errorMessageLines(error)}`);
    keep = true;
    return 1;
  } finally {
    if (keep) print(`Data and logs are in ${folder}`);
    else await Deno.remove(folder, { recursive: true }).catch(() => {});
  }
}

function printResult({ passed, seed, seconds, events, kills, figures, invariants, warnings }: ChaosResult): void {
  const list = (record: Readonly<Record<string, number>>) =>
    Object.entries(record).map(([name, count]) => `${count} ${name}`).join(", ");
  const total = Object.values(kills).reduce((sum, count) => sum + count, 0);
  const rows = (entries: Readonly<Record<string, number | string>>) =>
    Object.entries(entries).map(([name, value]) => [name, String(value)]);
  print("");
  print(formatGrid([{ name: "figure" }, { name: "value" }], [
    ["seed", String(seed)],
    ["time in which things went wrong", `${seconds} s`],
    ["events", list(events)],
    ["processes killed", `${total}: ${list(kills)}`],
    ...rows(figures),
  ], { maxWidth: MAX_WIDTH }));
  print("");
  print(formatGrid([{ name: "held" }, { name: "invariant" }, { name: "figure" }], invariants.map(formatInvariant), {
    maxWidth: MAX_WIDTH,
  }));
  print("");
  const ranked = Object.entries(warnings).toSorted(([, a], [, b]) => b - a);
  if (ranked.length > 0) print("Warnings in the logs, numbers left out:");
  for (const [text, count] of ranked) print(`${String(count).padStart(6)}  ${text}`);
  print(passed ? "\nNothing lost, nothing twice." : "\nNot all of it held.");
}

function formatInvariant({ name, held, figure }: Invariant): string[] {
  return [held === null ? "skipped" : held ? "yes" : "NO", name, figure];
}

function parseInteger(text: string): number {
  const number = Number(text);
  if (!Number.isSafeInteger(number) || number < 0 || number > 2 ** 32) {
    throw new InvalidArgumentError("Expected a whole number from 0.");
  }
  return number;
}

if (import.meta.main) Deno.exitCode = await main(Deno.args);
