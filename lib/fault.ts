import { errorMessage, FaultError } from "./error.ts";
import type { Log } from "./log.ts";
import { describeOutOfFiles, isOutOfFiles } from "./open_files.ts";

/** Options of {@linkcode Faults}. */
export interface FaultsOptions {
  /** Where they are told. */
  readonly log: Log;
  /** The first of a kind is told at once, what follows in one line every so often, in ms. Default: a minute. */
  readonly gatherMs?: number;
}

/** Faults of one kind that are not told yet. */
interface Gathering {
  readonly sites: Set<string>;
  readonly timer: ReturnType<typeof setInterval>;
  checks: number;
  reason: string;
}

/**
 * Checks that could not be made for a reason of ours, such as a missing permission: they are no results, so this is where
 * they are counted and told. A thousand sites with one trouble make two lines, not a thousand.
 */
export class Faults implements Disposable {
  readonly #log: Log;
  readonly #gatherMs: number;
  readonly #kinds = new Map<string, Gathering>();

  /** With none. */
  constructor({ log, gatherMs = 60_000 }: FaultsOptions) {
    this.#log = log;
    this.#gatherMs = gatherMs;
  }

  /** Tells of a check that could not be made, at once or later. */
  tell(name: string, error: unknown): void {
    const outOfFiles = isOutOfFiles(error);
    const reason = outOfFiles ? describeOutOfFiles() : errorMessage(error);
    const kind = outOfFiles
      ? "open files"
      : error instanceof FaultError
      ? error.kind
      : error instanceof Error
      ? error.name
      : "other";
    const gathering = this.#kinds.get(kind);
    if (gathering !== undefined) {
      gathering.sites.add(name);
      gathering.checks++;
      gathering.reason = reason;
      return;
    }
    this.#log.error("Cannot check '{name}', which says nothing of the site: {reason}", { name, reason });
    const timer = setInterval(() => this.#flush(kind), this.#gatherMs);
    this.#kinds.set(kind, { sites: new Set(), checks: 0, reason, timer });
  }

  /** Tells what is left. */
  [Symbol.dispose](): void {
    for (const kind of [...this.#kinds.keys()]) {
      this.#flush(kind);
      clearInterval(this.#kinds.get(kind)?.timer);
    }
    this.#kinds.clear();
  }

  #flush(kind: string): void {
    const { sites, checks, reason, timer } = this.#kinds.get(kind)!;
    if (checks === 0) {
      clearInterval(timer);
      this.#kinds.delete(kind);
      return;
    }
    this.#log.error(
      "Cannot check {sites} site(s), '{name}' among them: {checks} more check(s) that say nothing of the sites; the last: {reason}",
      { sites: sites.size, name: [...sites][0], checks, reason },
    );
    this.#kinds.set(kind, { sites: new Set(), checks: 0, reason, timer });
  }
}
