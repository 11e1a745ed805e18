import { isDeepStrictEqual } from "node:util";
import type { ProducerConfig } from "./config.ts";
import { ConfigError } from "./error.ts";
import type { Log } from "./log.ts";
import { sleepUntilAborted } from "./schedule.ts";

/** Options of {@linkcode followConfig}. */
export interface FollowConfigOptions {
  /** Reads the settings anew. */
  readonly read: () => Promise<ProducerConfig>;
  /** Where to tell what has changed, and what is wrong with it. */
  readonly log: Log;
  /** Ends it. */
  readonly signal: AbortSignal;
  /** Time from look to look at the file, in ms. Default: 1 s. */
  readonly lookEveryMs?: number;
}

const LOOK_EVERY_MS = 1_000;
/** What is opened once. */
const FOR_A_RESTART = { kafka: "[kafka]", spool: "the spool", logLevel: "[log]" } as const;

/**
 * Settings as they are, and again each time that SIGHUP comes or their file has changed and stayed so for one look more,
 * so that none is read which is still being written. It is looked at by its path: editors put another file in its place,
 * and so does Kubernetes. Settings that are wrong are told of, and those before stay in force.
 */
export async function* followConfig(
  first: ProducerConfig,
  { read, log, signal, lookEveryMs = LOOK_EVERY_MS }: FollowConfigOptions,
): AsyncGenerator<ProducerConfig, void> {
  using hangUp = listenToHangUp();
  const { path } = first;
  let current = first;
  let known = stateOf(path);
  let seen = known;
  yield current;
  for (;;) {
    const woken = AbortSignal.any([signal, hangUp.signal]);
    await sleepUntilAborted(lookEveryMs, woken);
    if (signal.aborted) return;
    const state = stateOf(path);
    const isSettled = state === seen;
    seen = state;
    const isAsked = hangUp.take();
    if (!isAsked && (state === known || !isSettled)) continue;
    known = state;
    if (path === null) {
      log.warn("SIGHUP: there is no file of settings to be read again");
      continue;
    }
    try {
      const next = await read();
      tellOf(current, next, log);
      yield current = next;
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      log.error("The settings of '{path}' are wrong, those before stay in force: {reason}", {
        path,
        reason: error.message,
      });
    }
  }
}

function tellOf(before: ProducerConfig, after: ProducerConfig, log: Log): void {
  const [old, now] = [before, after].map(({ sites }) => new Set(sites.map(({ name }) => name))) as [
    Set<string>,
    Set<string>,
  ];
  log.info("Read '{path}' again: {sites} site(s), {begin} of them new, {end} gone", {
    path: after.path,
    sites: now.size,
    begin: now.difference(old).size,
    end: old.difference(now).size,
  });
  for (const warning of after.warnings) log.warn("{warning}", { warning });
  for (const [key, name] of Object.entries(FOR_A_RESTART) as [keyof typeof FOR_A_RESTART, string][]) {
    if (!isDeepStrictEqual(before[key], after[key])) {
      log.warn("Settings of {name} have changed, which takes a restart: those before stay in force", { name });
    }
  }
}

/** What tells a file from another, or from itself before a change. */
function stateOf(path: string | null): string | null {
  if (path === null) return null;
  try {
    // Not the asynchronous way: it waits where look-ups of names have taken all threads.
    const { mtime, size, ino } = Deno.statSync(path);
    return `${mtime?.getTime()} ${size} ${ino}`;
  } catch {
    return "none";
  }
}

interface HangUp extends Disposable {
  /** Aborted by SIGHUP. */
  readonly signal: AbortSignal;
  /** Whether SIGHUP has come since the last call. */
  take(): boolean;
}

function listenToHangUp(): HangUp {
  let controller = new AbortController();
  const listener = () => controller.abort();
  Deno.addSignalListener("SIGHUP", listener);
  return {
    get signal() {
      return controller.signal;
    },
    take() {
      const { aborted } = controller.signal;
      if (aborted) controller = new AbortController();
      return aborted;
    },
    [Symbol.dispose]: () => Deno.removeSignalListener("SIGHUP", listener),
  };
}
