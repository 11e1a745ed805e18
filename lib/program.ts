import { type CommandLine, parseCommandLine } from "./command.ts";
import type { CommonConfig } from "./config.ts";
import { ConfigError, FaultError } from "./error.ts";
import { GroupBusyError } from "./subscriber.ts";
import { type Log, openLog, print, printError } from "./log.ts";
import { afterAbort, whenAborted } from "./schedule.ts";
import type { ProgramName } from "./setting.ts";

/** What a program has when it begins. */
export interface Context<Config> {
  /** Settings. */
  readonly config: Config;
  /** What the command line asks for. */
  readonly commandLine: CommandLine;
  /** Log. */
  readonly log: Log;
  /** Aborted by the first SIGINT or SIGTERM. */
  readonly signal: AbortSignal;
}

/** Options of {@linkcode runProgram}. */
export interface ProgramOptions<Config> {
  /** Reads the settings. */
  readonly readConfig: (commandLine: CommandLine) => Promise<Config>;
  /** Does the work. @returns The exit code. */
  readonly run: (context: Context<Config>) => Promise<number>;
}

const SIGNALS = ["SIGINT", "SIGTERM"] as const;
/** Time from a signal to the end. */
const END_TIMEOUT_MS = 9_000;
/** Time that libraries have to let go of sockets and timers at the end. */
const LINGER_MS = 500;
/** Exit code of a process that a signal ended, as shells count. */
const SIGNAL_EXIT_CODES = { SIGINT: 130, SIGTERM: 143 } as const;

/**
 * Frame of both programs: command line, settings, log, signals, exit code (0 done, 1 failed while running, 2 wrong usage
 * or configuration).
 */
export async function runProgram<Config extends CommonConfig>(
  program: ProgramName,
  args: readonly string[],
  { readConfig, run }: ProgramOptions<Config>,
): Promise<number> {
  try {
    const commandLine = parseCommandLine(program, args);
    if (typeof commandLine === "number") return commandLine;
    const config = await readConfig(commandLine);
    if (commandLine.checkConfig) {
      for (const line of config.effective) print(line);
      for (const warning of config.warnings) printError(`${program}: Warning: ${warning}`);
      return 0;
    }
    await using log = await openLog(program, { level: config.logLevel });
    for (const warning of config.warnings) log.warn("{warning}", { warning });
    using signals = listenToSignals(log);
    try {
      const { signal } = signals;
      return await Promise.race([run({ config, commandLine, log, signal }), giveUp(signal, log)]);
    } catch (error) {
      // A wait that the signal ended, as for a database that is away.
      if (signals.signal.aborted && error === signals.signal.reason) return 0;
      throw error;
    }
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) return 0;
    const known = error instanceof ConfigError || error instanceof FaultError || error instanceof GroupBusyError ||
      error instanceof Deno.errors.NotCapable;
    printError(`${program}: ${known ? error.message : `Unexpected failure: ${describe(error)}`}`);
    return error instanceof ConfigError || error instanceof Deno.errors.NotCapable ? 2 : 1;
  } finally {
    // All of ours is closed by now; what a library still waits for is not waited for.
    Deno.unrefTimer(setTimeout(() => Deno.exit(), LINGER_MS));
  }
}

/** The end of the wait for an orderly end: servers that hang can hold it up. Nothing is lost: it is done again at the next start. */
async function giveUp(signal: AbortSignal, log: Log): Promise<number> {
  await whenAborted(afterAbort(signal, END_TIMEOUT_MS));
  log.warn("Ending though Kafka or PostgreSQL does not answer; what is not done is done at the next start");
  return 0;
}

/** A bug of ours: the stack is wanted. */
function describe(error: unknown): string {
  return error instanceof Error ? error.stack ?? error.message : String(error);
}

/** Aborts at the first signal; at the second, the process ends at once. */
function listenToSignals(log: Log): Disposable & { readonly signal: AbortSignal } {
  const controller = new AbortController();
  const listeners = SIGNALS.map((name) => {
    const listener = () => {
      if (controller.signal.aborted) Deno.exit(SIGNAL_EXIT_CODES[name]);
      log.info("{name}: ending; once more ends at once", { name });
      controller.abort();
    };
    Deno.addSignalListener(name, listener);
    return { name, listener };
  });
  return {
    signal: controller.signal,
    [Symbol.dispose]() {
      for (const { name, listener } of listeners) Deno.removeSignalListener(name, listener);
    },
  };
}
