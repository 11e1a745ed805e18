import { setTimeout as delay } from "node:timers/promises";

/** Options of {@linkcode takeLock}. */
export interface TakeLockOptions {
  /** What for, as in "Cannot start PostgreSQL". */
  readonly action: string;
  /** Longest time to wait for who has it. Default: 2 s, enough for one who looks whether it is taken. */
  readonly timeoutMs?: number;
  /** Gives up. */
  readonly signal?: AbortSignal | undefined;
}

/** Somebody else has the lock. */
export class LockedError extends Error {
  /** Tells this class apart. */
  override readonly name = "LockedError" as const;
}

const POLL_MS = 50;

/**
 * Takes a lock that the operating system lets go of when we end, however we end.
 *
 * @throws {LockedError} when somebody else keeps it; the message names the process.
 */
export async function takeLock(
  path: string,
  { action, timeoutMs = 2_000, signal }: TakeLockOptions,
): Promise<Disposable> {
  const file = await Deno.open(path, { create: true, read: true, write: true });
  try {
    for (const until = performance.now() + timeoutMs; !await file.tryLock(true);) {
      if (performance.now() > until) {
        throw new LockedError(`${action}: in use by process ${(await Deno.readTextFile(path)).trim()}`);
      }
      await delay(POLL_MS, undefined, signal === undefined ? {} : { signal });
    }
    await file.truncate();
    await file.write(new TextEncoder().encode(`${Deno.pid}\n`));
    return file;
  } catch (error) {
    file.close();
    throw error;
  }
}

/** Whether somebody, be it ourselves, has a lock. */
export async function isLocked(path: string): Promise<boolean> {
  try {
    using file = await Deno.open(path);
    return !await file.tryLock(false);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
