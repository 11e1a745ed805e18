import project from "../deno.json" with { type: "json" };
import { Child } from "./child.ts";
import { REPOSITORY } from "./repository.ts";

/** Options of {@linkcode startTask}. */
export interface StartTaskOptions {
  /** Arguments behind the task's own. */
  readonly args: readonly string[];
  /** File that its output is appended to. */
  readonly log: string;
  /** Environment variables beside the process's own. */
  readonly env?: Readonly<Record<string, string>>;
}

/** Command line of a task of `deno.json`, with this Deno for `deno`, so that it runs what users run. */
export function taskCommand(task: "producer" | "consumer"): { command: string; args: string[] } {
  const [, ...args] = project.tasks[task].command.split(" ");
  return { command: Deno.execPath(), args };
}

/** Starts a program as its task does. */
export function startTask(task: "producer" | "consumer", { args, ...options }: StartTaskOptions): Promise<Child> {
  const { command, args: own } = taskCommand(task);
  return Child.start({ command, args: [...own, ...args], cwd: REPOSITORY, ...options });
}
