import { configure, dispose, getLogger, type LogLevel, type LogRecord } from "@logtape/logtape";

/** Levels of `--log-level`, least severe first. */
export const LOG_LEVELS = ["debug", "info", "warning", "error"] as const satisfies readonly LogLevel[];

/** Writes log lines; `{name}` in a message stands for that property. */
export interface Log {
  /** What only someone who looks for a fault wants to know. */
  debug(message: string, properties?: Record<string, unknown>): void;
  /** What an operator likes to see go by. */
  info(message: string, properties?: Record<string, unknown>): void;
  /** What may need a look. */
  warn(message: string, properties?: Record<string, unknown>): void;
  /** What needs somebody to act. */
  error(message: string, properties?: Record<string, unknown>): void;
}

/** Options of {@linkcode openLog}. */
export interface OpenLogOptions {
  /** Least severe level that is written. Default: `info`. */
  readonly level?: typeof LOG_LEVELS[number];
}

const encoder = new TextEncoder();

/**
 * Sends log lines to standard error, one a record: time in UTC, level, program, message.
 *
 * Lines are written at once, not gathered, so that none is missing when the process is killed.
 */
export async function openLog(
  program: string,
  { level = "info" }: OpenLogOptions = {},
): Promise<Log & AsyncDisposable> {
  await configure({
    reset: true,
    sinks: { stderr: (record) => writeAll(Deno.stderr, formatRecord(record)) },
    loggers: [
      { category: ["logtape"], lowestLevel: "warning", sinks: ["stderr"] },
      { category: [program], lowestLevel: level, sinks: ["stderr"] },
    ],
  });
  const logger = getLogger([program]);
  return {
    debug: (message, properties) => logger.debug(message, properties ?? {}),
    info: (message, properties) => logger.info(message, properties ?? {}),
    warn: (message, properties) => logger.warn(message, properties ?? {}),
    error: (message, properties) => logger.error(message, properties ?? {}),
    [Symbol.asyncDispose]: () => dispose(),
  };
}

/** Writes one line to standard output: what a program was asked for, as opposed to what it reports. */
export function print(line: string): void {
  writeAll(Deno.stdout, line + "\n");
}

/** Writes one line to standard error with no time and level before it: the last word of a program that ends. */
export function printError(line: string): void {
  writeAll(Deno.stderr, line + "\n");
}

function formatRecord({ timestamp, level, category, message }: LogRecord): string {
  const text = message.map((part) => typeof part === "string" ? part : Deno.inspect(part)).join("");
  return `${new Date(timestamp).toISOString()} ${level.toUpperCase().padEnd(7)} ${category.join(".")}: ${text}\n`;
}

function writeAll(stream: { writeSync(bytes: Uint8Array): number }, text: string): void {
  const bytes = encoder.encode(text);
  for (let written = 0; written < bytes.length;) written += stream.writeSync(bytes.subarray(written));
}
