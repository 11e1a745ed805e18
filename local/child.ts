import { setTimeout as delay } from "node:timers/promises";

/** Options of {@linkcode Child.start}. */
export interface StartChildOptions {
  /** Program. */
  readonly command: string;
  /** Its arguments. */
  readonly args: readonly string[];
  /** File that its output is appended to. */
  readonly log: string;
  /** Signal at which it ends in its own time. Default: SIGTERM. */
  readonly stopSignal?: "SIGTERM" | "SIGINT";
  /** Working folder. */
  readonly cwd?: string;
  /** Environment variables beside the process's own. */
  readonly env?: Readonly<Record<string, string>>;
  /** User that it runs as. */
  readonly uid?: number;
  /** Group that it runs as. */
  readonly gid?: number;
}

/** Time that a process has to end in. */
const STOP_TIMEOUT_MS = 10_000;
/** Time that output is waited for where a process's own children still hold it. */
const OUTPUT_TIMEOUT_MS = 1_000;
/**
 * Ends process $1 by signal $2, and by force after 10 s, when standard input ends with no line before: when whoever
 * started both was killed.
 */
const GUARD = `read -r _ && exit 0
kill -s "$2" "$1" || exit 0
for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$1" || exit 0; sleep 1; done
kill -s KILL "$1"`;

/**
 * A process of ours whose output goes to a file.
 *
 * It has a process group of its own, so that Ctrl-C reaches us alone and we stop one after the other; a guard ends it where we
 * are killed.
 */
export class Child implements AsyncDisposable {
  /** Process id. */
  readonly pid: number;
  /** Its end. */
  readonly ended: Promise<Deno.CommandStatus>;
  readonly #process: Deno.ChildProcess;
  readonly #output: Promise<unknown>;
  readonly #abandonOutput: AbortController;
  readonly #log: { readonly path: string; readonly begin: number };
  readonly #stopSignal: Deno.Signal;
  #status: Deno.CommandStatus | undefined;

  private constructor(
    process: Deno.ChildProcess,
    files: readonly [Deno.FsFile, Deno.FsFile],
    { log, stopSignal }: { log: { path: string; begin: number }; stopSignal: "SIGTERM" | "SIGINT" },
  ) {
    this.#process = process;
    this.#log = log;
    this.#stopSignal = stopSignal;
    this.#abandonOutput = new AbortController();
    const { signal } = this.#abandonOutput;
    this.#output = Promise.allSettled([
      process.stdout.pipeTo(files[0].writable, { signal }),
      process.stderr.pipeTo(files[1].writable, { signal }),
    ]);
    this.pid = process.pid;
    const dismissGuard = startGuard(process.pid, stopSignal);
    this.ended = process.status.then(async (status) => {
      this.#status = status;
      await dismissGuard();
      return status;
    });
  }

  /** Starts a process. */
  static async start({ command, args, log, stopSignal = "SIGTERM", ...options }: StartChildOptions): Promise<Child> {
    const open = () => Deno.open(log, { create: true, append: true });
    const files = [await open(), await open()] as const;
    try {
      const begin = (await files[0].stat()).size;
      const process = new Deno.Command(command, {
        args: [...args],
        stdin: "null",
        stdout: "piped",
        stderr: "piped",
        detached: true,
        ...options,
      }).spawn();
      return new Child(process, files, { log: { path: log, begin }, stopSignal });
    } catch (error) {
      for (const file of files) file.close();
      throw error;
    }
  }

  /** Whether it is still there. */
  get running(): boolean {
    return this.#status === undefined;
  }

  /** The last lines of its output; of those that match a pattern, if some do. */
  async tail(count = 15, pattern?: RegExp): Promise<string> {
    const bytes = await Deno.readFile(this.#log.path).catch(() => new Uint8Array());
    const lines = new TextDecoder().decode(bytes.subarray(this.#log.begin)).trimEnd().split("\n");
    const found = pattern === undefined ? [] : lines.filter((line) => pattern.test(line));
    return (found.length > 0 ? found : lines).slice(-count).join("\n");
  }

  /** Sends a signal, if it is still there. */
  kill(signal: Deno.Signal): void {
    try {
      if (this.running) this.#process.kill(signal);
    } catch {
      // It has just ended by itself.
    }
  }

  /** Asks it to end by a signal, and ends it by force when it does not in time. */
  async stop(signal: Deno.Signal = this.#stopSignal, timeoutMs: number = STOP_TIMEOUT_MS): Promise<Deno.CommandStatus> {
    this.kill(signal);
    const timer = setTimeout(() => this.kill("SIGKILL"), timeoutMs);
    const status = await this.ended;
    clearTimeout(timer);
    const abandon = setTimeout(() => this.#abandonOutput.abort(), OUTPUT_TIMEOUT_MS);
    await this.#output;
    clearTimeout(abandon);
    return status;
  }

  /** Stops it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

/** Starts a guard for a process. @returns What dismisses it. */
function startGuard(pid: number, stopSignal: "SIGTERM" | "SIGINT"): () => Promise<void> {
  const guard = new Deno.Command("sh", {
    args: ["-c", GUARD, "sh", String(pid), stopSignal.slice("SIG".length)],
    stdin: "piped",
    stdout: "null",
    stderr: "null",
    detached: true,
  }).spawn();
  return async () => {
    const writer = guard.stdin.getWriter();
    await writer.write(new TextEncoder().encode("\n")).catch(() => {});
    await writer.close().catch(() => {});
    await guard.status;
  };
}

/** Resolves with the last lines of a process's output, as {@linkcode Child.tail} has them, when it ends; never without one. */
export async function endOf(child: Child | undefined, pattern?: RegExp): Promise<string> {
  if (child === undefined) return await new Promise(() => {});
  const { code, signal } = await child.ended;
  return `${signal ?? `exit code ${code}`}\n${await child.tail(5, pattern)}`;
}

/** Options of {@linkcode endLeftover}. */
export interface EndLeftoverOptions {
  /** Text in its command line by which it is known to be ours and no later process with the same id. */
  readonly mark: string;
  /** Signal at which it ends in its own time. */
  readonly stopSignal: Deno.Signal;
}

/** Ends a process that an earlier one of ours left behind when it was killed. */
export async function endLeftover(pid: number, { mark, stopSignal }: EndLeftoverOptions): Promise<void> {
  const begun = performance.now();
  for (let signal = stopSignal; (await commandLine(pid)).includes(mark); await delay(100)) {
    if (performance.now() - begun > STOP_TIMEOUT_MS) signal = "SIGKILL";
    Deno.kill(pid, signal);
  }
}

/** Command line of a process; empty where there is none. */
async function commandLine(pid: number): Promise<string> {
  if (!Number.isSafeInteger(pid) || pid <= 1) return "";
  if (Deno.build.os === "linux") return await Deno.readTextFile(`/proc/${pid}/cmdline`).catch(() => "");
  const { stdout } = await new Deno.Command("ps", { args: ["-ww", "-o", "command=", "-p", String(pid)] }).output();
  return new TextDecoder().decode(stdout);
}
