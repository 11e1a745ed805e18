import { errorCode, errorMessage } from "./error.ts";
import type { Log } from "./log.ts";
import type { SlotLimits } from "./slots.ts";

/** Files and connections that are no checks': the spool, Kafka, what is read now and then. */
const RESERVED = 100;
/** A check, and a look at the connection beside it. */
const FILES_PER_CHECK = 2;

/** Options of {@linkcode fitOpenFiles}. */
export interface FitOpenFilesOptions {
  /** Number of sites: more checks than these are never in flight. */
  readonly sites: number;
  /** Where to tell of limits that are lowered. */
  readonly log: Log;
  /** Finds what can be opened. Default: {@linkcode countOpenable}. */
  readonly count?: (wanted: number) => number | null;
}

/** Lowers the number of checks in flight to what the system's limit on open files leaves room for. */
export function fitOpenFiles(
  limits: SlotLimits,
  { sites, log, count = countOpenable }: FitOpenFilesOptions,
): SlotLimits {
  const wanted = Math.min(limits.max, sites);
  const openable = count(wanted * FILES_PER_CHECK + RESERVED);
  if (openable === null || openable >= wanted * FILES_PER_CHECK + RESERVED) return limits;
  const max = Math.max(1, Math.floor((openable - RESERVED) / FILES_PER_CHECK));
  log.warn(
    "At most {max} check(s) in flight, not {wanted}: the system lets this process open {openable} more files and " +
      "connections (ulimit -n, or LimitNOFILE= of systemd, sets how many)",
    { max, wanted, openable },
  );
  return { ...limits, max };
}

/** What to do about the limit on open files. */
export function describeOutOfFiles(): string {
  return "too many open files: raise the limit of this process (ulimit -n, or LimitNOFILE= of systemd), or lower " +
    "max_checks of [producer]";
}

/**
 * How many files and connections this process can open beside those that it has, found by opening them: Deno tells the
 * limit of the system to programs with all permissions alone.
 *
 * @param wanted Where there is room for this many, no more are opened.
 * @returns `wanted`, or the number where the limit is lower; null where it can't be told.
 */
export function countOpenable(wanted: number): number | null {
  if (Deno.build.os === "windows") return null;
  const files: Deno.FsFile[] = [];
  try {
    while (files.length < wanted) files.push(Deno.openSync("/dev/null"));
    return wanted;
  } catch (error) {
    return isOutOfFiles(error) ? files.length : null;
  } finally {
    for (const file of files) file.close();
  }
}

/** Whether a failure came of the limit on open files. */
export function isOutOfFiles(error: unknown): boolean {
  return ["EMFILE", "ENFILE"].includes(errorCode(error) ?? "") || /Too many open files/i.test(errorMessage(error));
}
