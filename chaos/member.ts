import { dirname } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Child } from "../local/child.ts";
import { REPOSITORY } from "../local/repository.ts";
import { taskCommand } from "../local/task.ts";

/** Options of {@linkcode Member}. */
export interface MemberOptions {
  /** Program. */
  readonly task: "producer" | "consumer";
  /** Its arguments. */
  readonly args: readonly string[];
  /** File that its output is appended to. */
  readonly log: string;
}

/** An end that nobody asked for, or a bad one. */
export interface Fault {
  /** Who. */
  readonly member: string;
  /** What happened, with the last lines of the log. */
  readonly what: string;
}

/** A time in which a process was halted, in ms since 1970. */
export interface Frozen {
  /** Its beginning. */
  readonly from: number;
  /** Its end; Infinity while it lasts. */
  to: number;
}

/** Time between SIGTERM and the end that both programs promise to keep, and some more on a machine that is busy. */
const STOP_TIMEOUT_MS = 20_000;
const RESTART_WAIT_MS = 1_000;

/** A producer or a consumer that is killed and started again and again. */
export class Member {
  /** Name. */
  readonly name: string;
  /** What went wrong with it by itself. */
  readonly faults: Fault[] = [];
  /** When it was killed, in ms since 1970. */
  readonly killedAt: number[] = [];
  /** When it was halted, and when it went on. */
  readonly frozen: Frozen[] = [];
  /** Longest time between SIGTERM and its end, in ms. */
  longestStopMs = 0;
  /** Exit code of its last end by SIGTERM. */
  lastExitCode: number | undefined;
  readonly #options: MemberOptions;
  #child: Child | undefined;
  #wanted = false;

  /** Not started yet. */
  constructor(name: string, options: MemberOptions) {
    this.name = name;
    this.#options = options;
  }

  /** Whether it runs. */
  get running(): boolean {
    return this.#child?.running ?? false;
  }

  /** Starts it, if it does not run; from now on, an end by itself is a fault, and it is started again. */
  async start(): Promise<void> {
    if (this.running) return;
    this.#wanted = true;
    const { task, args, log } = this.#options;
    const { command, args: own } = taskCommand(task);
    // As its task runs it, but for the folder that the spool is in.
    const flags = own.map((arg) => arg.startsWith("--allow-write=") ? `--allow-write=${dirname(log)}` : arg);
    const child = this.#child = await Child.start({ command, args: [...flags, ...args], log, cwd: REPOSITORY });
    void child.ended.then(async ({ code, signal }) => {
      if (!this.#wanted || this.#child !== child) return;
      this.faults.push({
        member: this.name,
        what: `ended by itself: ${signal ?? `exit code ${code}`}\n${await child.tail(5)}`,
      });
      await delay(RESTART_WAIT_MS, undefined, { ref: false });
      if (this.#wanted) await this.start();
    });
  }

  /** `kill -9`. */
  async kill(): Promise<void> {
    if (!this.running) return;
    this.#wanted = false;
    this.killedAt.push(Date.now());
    await this.#child?.stop("SIGKILL");
  }

  /** SIGTERM, and waits for its end. */
  async terminate(): Promise<void> {
    const child = this.#child;
    if (child === undefined || !this.running) return;
    this.#wanted = false;
    const begun = performance.now();
    const { code, signal } = await child.stop("SIGTERM", STOP_TIMEOUT_MS);
    this.longestStopMs = Math.max(this.longestStopMs, performance.now() - begun);
    this.lastExitCode = code;
    if (signal === "SIGKILL") this.faults.push({ member: this.name, what: "did not end in 20 s after SIGTERM" });
  }

  /** SIGSTOP. */
  freeze(): void {
    if (!this.running) return;
    this.frozen.push({ from: Date.now(), to: Infinity });
    this.#child?.kill("SIGSTOP");
  }

  /** SIGCONT. */
  thaw(): void {
    this.#child?.kill("SIGCONT");
    const last = this.frozen.at(-1);
    if (last?.to === Infinity) last.to = Date.now();
  }
}
