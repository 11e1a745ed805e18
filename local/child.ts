/** Options of {@linkcode Child.start}. */
export interface StartChildOptions {
  /** Program. */
  readonly command: string;
  /** Its arguments. */
  readonly args: readonly string[];
  /** File that its output is appended to. */
  readonly log: string;
  /** Working folder. */
  readonly cwd?: string;
  /** Environment variables beside the process's own. */
  readonly env?: Readonly<Record<string, string>>;
  /** User that it runs as. */
  readonly uid?: number;
  /** Group that it runs as. */
  readonly gid?: number;
}

/** A process of ours whose output goes to a file. */
export class Child implements AsyncDisposable {
  /** Process id. */
  readonly pid: number;
  /** Its end. */
  readonly ended: Promise<Deno.CommandStatus>;
  readonly #process: Deno.ChildProcess;
  readonly #output: Promise<unknown>;
  readonly #log: string;
  #status: Deno.CommandStatus | undefined;

  private constructor(process: Deno.ChildProcess, output: Promise<unknown>, log: string) {
    this.#process = process;
    this.#output = output;
    this.#log = log;
    this.pid = process.pid;
    this.ended = process.status.then((status) => this.#status = status);
  }

  /** Starts a process. */
  static async start({ command, args, log, ...options }: StartChildOptions): Promise<Child> {
    const process = new Deno.Command(command, {
      args: [...args],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      ...options,
    }).spawn();
    const output = [process.stdout, process.stderr].map(async (stream) => {
      using file = await Deno.open(log, { create: true, append: true, write: true });
      await stream.pipeTo(file.writable, { preventClose: true });
    });
    await Promise.resolve();
    return new Child(process, Promise.allSettled(output), log);
  }

  /** Whether it is still there. */
  get running(): boolean {
    return this.#status === undefined;
  }

  /** The last lines of its output. */
  async tail(lines = 15): Promise<string> {
    const text = await Deno.readTextFile(this.#log).catch(() => "");
    return text.trimEnd().split("\n").slice(-lines).join("\n");
  }

  /** Sends a signal, if it is still there. */
  kill(signal: Deno.Signal): void {
    if (this.running) this.#process.kill(signal);
  }

  /** Asks it to end by a signal, and ends it by force when it does not in time. */
  async stop(signal: Deno.Signal, timeoutMs = 10_000): Promise<Deno.CommandStatus> {
    this.kill(signal);
    const timer = setTimeout(() => this.kill("SIGKILL"), timeoutMs);
    const status = await this.ended;
    clearTimeout(timer);
    await this.#output;
    return status;
  }

  /** Stops it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop("SIGTERM");
  }
}
