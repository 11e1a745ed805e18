import { Buffer } from "node:buffer";
import type { SpoolSettings } from "./config.ts";
import { errorMessage } from "./error.ts";
import type { Log } from "./log.ts";
import {
  FIRST_ROW,
  isDamage,
  lockSpool,
  openError,
  type OutgoingMessage,
  type Removal,
  type Row,
  sequencesByRow,
  type SpooledMessage,
  SpoolFile,
  type SpoolSync,
  type UnsavedMessage,
} from "./spool_file.ts";

/** Options of {@linkcode Spool}. */
export interface SpoolOptions {
  /** Bytes of topics, keys and values that are kept at most. Default: 1 GiB. */
  readonly maxBytes?: number;
  /** Age, by the timestamp, beyond which messages are not kept, in ms. Default: none. */
  readonly maxAgeMs?: number;
  /** `normal`: a power cut may cost the last moments; `full`: it costs nothing, each commit waits for the disk. */
  readonly sync?: SpoolSync;
  /** Told of messages that had to go, the oldest first. */
  readonly onDropped?: (messages: number, why: "full" | "old") => void;
  /** Told when the spool can't be written; messages are kept in memory until it can. */
  readonly onProblem?: (reason: string) => void;
  /** Told of a damaged file that was set aside under another name, and why. */
  readonly onDamaged?: (path: string, reason: string) => void;
  /** Clock, in ms since 1970. */
  readonly now?: () => number;
}

/** Options of {@linkcode Spool.next}. */
export interface NextOptions {
  /** Messages at most. */
  readonly limit: number;
  /** Topics to pass over. Default: none. */
  readonly except?: ReadonlySet<string>;
  /** Topics to keep to. Default: all. */
  readonly only?: ReadonlySet<string>;
}

/** Options of {@linkcode openSpool}. */
export interface OpenSpoolOptions {
  /** Where to tell what becomes of it. */
  readonly log: Log;
}

const DEFAULT_MAX_BYTES = 1024 ** 3;
/** What is set aside may take this share of the room; beyond it, the oldest of that go. */
const REFUSED_SHARE = 0.1;
/** What is kept in memory while the disk can't be written. */
const MAX_PENDING_BYTES = 64 * 1024 * 1024;
/** What is on disk is kept in memory too up to these, so that what was just written need not be read again. */
const MAX_NEWEST = 10_000;
const MAX_NEWEST_BYTES = 8 * 1024 * 1024;
/** Checks that end within this time share a transaction. */
const COMMIT_DELAY_MS = 5;
const EXPIRY_INTERVAL_MS = 1_000;
/** While something goes on, a line every so often. */
const REPORT_EVERY_MS = 15_000;
const NONE: ReadonlySet<string> = new Set();

/**
 * What has been checked and Kafka has not acknowledged yet: one path, whether the broker is there or not. On disk
 * (SQLite, write-ahead log) before it is sent, gone when it is acknowledged; a `kill -9` loses nothing of it.
 *
 * While the disk can't be written, messages are kept in memory. A file that is damaged is set aside, a new one begun.
 */
export class Spool implements Disposable {
  readonly #path: string;
  readonly #options: SpoolOptions;
  readonly #maxBytes: number;
  readonly #now: () => number;
  #file: SpoolFile;
  #lock: Disposable | undefined;
  /** Messages that are not on disk yet. */
  #pending: UnsavedMessage[] = [];
  #pendingBytes = 0;
  readonly #newest = new Newest();
  /** Acknowledged messages that could not be deleted yet, by their numbers. */
  readonly #gone = new Map<number, Pick<SpooledMessage, "row" | "sequence">>();
  #commitTimer: ReturnType<typeof setTimeout> | undefined;
  #size = 0;
  #bytes = 0;
  #refusedSize = 0;
  #refusedBytes = 0;
  #last = 0;
  /** All in the rows before it are of topics that are passed over. */
  #from = FIRST_ROW;
  #except: ReadonlySet<string> = NONE;
  #expiredAt = 0;
  #added = Promise.withResolvers<void>();

  /**
   * Opens a spool, or begins one.
   *
   * @param path File, in a folder that is made where it is not there; `:memory:` for one that is not kept.
   * @throws {ConfigError} when it can't be opened, or another process has it.
   */
  constructor(path: string, options: SpoolOptions = {}) {
    this.#path = path;
    this.#options = options;
    this.#maxBytes = options.maxBytes ?? DEFAULT_MAX_BYTES;
    this.#now = options.now ?? Date.now;
    this.#lock = lockSpool(path);
    try {
      this.#file = this.#open();
      this.#count();
    } catch (error) {
      this.#lock?.[Symbol.dispose]();
      throw error;
    }
  }

  /** Messages that wait. */
  get size(): number {
    return this.#size - this.#gone.size;
  }

  /** Messages that are set aside. */
  get refusedSize(): number {
    return this.#refusedSize;
  }

  /** Adds a message, which is on disk a moment later; where there is no room, the oldest go. */
  add({ topic, key, value, timestamp }: OutgoingMessage): void {
    const bytes = Buffer.byteLength(topic) + Buffer.byteLength(key) + value.length;
    this.#pending.push({ sequence: ++this.#last, topic, key, value, timestamp, bytes, row: 0 });
    this.#pendingBytes += bytes;
    this.#size++;
    this.#bytes += bytes;
    this.#commitTimer ??= setTimeout(() => this.flush(), COMMIT_DELAY_MS);
  }

  /** Writes what was added. */
  flush(): void {
    clearTimeout(this.#commitTimer);
    this.#commitTimer = undefined;
    if (this.#pending.length === 0) return;
    this.#attempt(() => {
      this.#newest.add(this.#file.insert(this.#pending));
      this.#pending = [];
      this.#pendingBytes = 0;
    });
    this.#makeRoom();
    this.#added.resolve();
    this.#added = Promise.withResolvers();
  }

  /**
   * The oldest messages, in their order; the same again until they are deleted. What was set aside and is to be tried again
   * comes first.
   */
  next(options: NextOptions): SpooledMessage[] {
    this.flush();
    this.#expire();
    this.#attempt(() => {
      if (this.#file.changed()) this.#count();
    });
    const isWanted = this.#filterOf(options);
    const { limit } = options;
    const inMemory = this.#newest.size + this.#pending.length === this.#size;
    const found = inMemory
      ? this.#newest.messages().filter(isWanted).take(limit).toArray()
      : this.#read(options, isWanted);
    if (found.length === limit || this.#pending.length === 0) return found;
    return [...found, ...this.#pending.filter(isWanted).slice(0, limit - found.length)];
  }

  /** Forgets messages that Kafka has. */
  delete(messages: readonly SpooledMessage[]): void {
    if (messages.length === 0) return;
    const sequences = sequencesByRow(messages);
    this.#forgetPending(sequences.get(0));
    sequences.delete(0);
    this.#attempt(() => {
      this.#settle(this.#file.delete(this.#gone.size === 0 ? sequences : this.#withGone(messages), this.#newest.rows));
      this.#gone.clear();
      if (this.#size === 0) this.#file.shrink();
    }, () => {
      for (const { row, sequence } of messages) if (row !== 0) this.#gone.set(sequence, { row, sequence });
      if (this.#gone.size === this.#size - this.#pending.length && this.#refusedSize === 0) this.#beginAnew();
    });
  }

  /** Sets messages aside that Kafka will never take as they are. */
  refuse(messages: readonly { readonly message: SpooledMessage; readonly reason: string }[]): void {
    if (messages.length === 0) return;
    const refusedAt = this.#now();
    this.#attempt(() => {
      const aside = messages.map(({ message, reason }) => ({ ...message, reason, refusedAt }));
      this.#settle(this.#file.refuse(aside, this.#newest.rows));
      this.#forgetPending(new Set(aside.filter(({ row }) => row === 0).map(({ sequence }) => sequence)));
      const { refusedSize, refusedBytes } = this.#file.count();
      this.#refusedSize = refusedSize;
      this.#refusedBytes = refusedBytes;
    });
    let dropped = 0;
    for (; this.#refusedBytes > this.#maxBytes * REFUSED_SHARE && this.#refusedSize > 1; dropped++) {
      const bytes = this.#file.dropRefused();
      if (bytes === undefined) break;
      this.#refusedSize--;
      this.#refusedBytes -= bytes;
    }
    if (dropped > 0) this.#options.onDropped?.(dropped, "full");
  }

  /** Resolves when a message is added after this call, or the signal is aborted. */
  async waitForMessage(signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    const { promise: aborted, resolve: end } = Promise.withResolvers<void>();
    const listener = () => end();
    signal.addEventListener("abort", listener);
    await Promise.race([this.#added.promise, aborted]);
    signal.removeEventListener("abort", listener);
  }

  /** Closes the spool; what is in it stays. */
  [Symbol.dispose](): void {
    this.flush();
    if (this.#gone.size > 0) this.#attempt(() => this.#file.delete(this.#withGone([]), this.#newest.rows));
    this.#file[Symbol.dispose]();
    this.#lock?.[Symbol.dispose]();
    this.#lock = undefined;
  }

  #open(): SpoolFile {
    try {
      return openFile(this.#path, this.#options);
    } catch (error) {
      if (!isDamage(error)) throw openError(this.#path, error);
      this.#setAside(error);
      return openFile(this.#path, this.#options);
    }
  }

  /** Whether a message is to be sent now. */
  #filterOf({ except = NONE, only }: NextOptions): (message: SpooledMessage) => boolean {
    return ({ topic, sequence }) =>
      !except.has(topic) && (only === undefined || only.has(topic)) && !this.#gone.has(sequence);
  }

  #read({ limit, except = NONE, only }: NextOptions, isWanted: (message: SpooledMessage) => boolean): SpooledMessage[] {
    if (only === undefined) {
      if (!this.#except.isSubsetOf(except)) this.#from = FIRST_ROW;
      this.#except = new Set(except);
    }
    let found: SpooledMessage[] = [];
    this.#attempt(() => {
      found = this.#file.select({ from: only === undefined ? this.#from : FIRST_ROW, limit, isWanted });
    });
    if (only === undefined && found[0] !== undefined) this.#from = found[0].row;
    return found;
  }

  /** Numbers of messages, and of those that could not be deleted, by row. */
  #withGone(messages: readonly SpooledMessage[]): Map<number, Set<number>> {
    return sequencesByRow([...this.#gone.values(), ...messages.filter(({ row }) => row !== 0)]);
  }

  /** Does something with the file. Where it is damaged, a new one is begun; where it can't be written, that is told. */
  #attempt(work: () => void, onProblem: () => void = () => {}): void {
    try {
      work();
    } catch (error) {
      if (isDamage(error)) {
        this.#file[Symbol.dispose]();
        this.#setAside(error);
        this.#file = openFile(this.#path, this.#options);
        this.#gone.clear();
        this.#count();
        return;
      }
      onProblem();
      this.#options.onProblem?.(errorMessage(error));
      let dropped = 0;
      while (this.#pendingBytes > MAX_PENDING_BYTES && this.#pending.length > 1) {
        const { bytes } = this.#pending.shift()!;
        this.#pendingBytes -= bytes;
        this.#size--;
        this.#bytes -= bytes;
        dropped++;
      }
      if (dropped > 0) this.#options.onDropped?.(dropped, "full");
    }
  }

  /** A full disk does not even take that something goes. With nothing left in the file that counts, it goes itself. */
  #beginAnew(): void {
    this.#file[Symbol.dispose]();
    for (const suffix of ["", "-wal", "-shm"]) {
      try {
        Deno.removeSync(this.#path + suffix);
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      }
    }
    this.#file = openFile(this.#path, this.#options);
    this.#gone.clear();
    this.#count();
  }

  #setAside(error: unknown): void {
    const aside = `${this.#path}.damaged-${new Date(this.#now()).toISOString().replaceAll(/[:.]/g, "-")}`;
    try {
      Deno.renameSync(this.#path, aside);
      for (const suffix of ["-wal", "-shm"]) {
        try {
          Deno.renameSync(this.#path + suffix, aside + suffix);
        } catch (error) {
          if (!(error instanceof Deno.errors.NotFound)) throw error;
        }
      }
    } catch (failure) {
      throw openError(this.#path, new Error(errorMessage(error), { cause: failure }));
    }
    this.#options.onDamaged?.(aside, errorMessage(error));
  }

  #count(): void {
    const { size, bytes, refusedSize, refusedBytes, last } = this.#file.count();
    this.#size = size + this.#pending.length;
    this.#bytes = bytes + this.#pendingBytes;
    this.#refusedSize = refusedSize;
    this.#refusedBytes = refusedBytes;
    this.#last = Math.max(this.#last, last);
    this.#from = FIRST_ROW;
    this.#newest.clear();
  }

  /** Drops the oldest beyond the room there is. */
  #makeRoom(): void {
    let dropped = 0;
    this.#attempt(() => {
      for (;;) {
        const bytes = this.#bytes + this.#refusedBytes - this.#maxBytes;
        if (bytes <= 0 || this.#size < 2) return;
        const removal = this.#file.dropOldest({ bytes, messages: this.#size - 1 });
        if (removal.messages === 0) return;
        this.#settle(removal);
        dropped += removal.messages;
      }
    });
    if (dropped > 0) this.#options.onDropped?.(dropped, "full");
  }

  /** Drops what is older than messages may be. */
  #expire(): void {
    const now = this.#now();
    if (this.#options.maxAgeMs === undefined || now - this.#expiredAt < EXPIRY_INTERVAL_MS) return;
    this.#expiredAt = now;
    const { maxAgeMs } = this.#options;
    this.#attempt(() => {
      const removal = this.#file.dropOlder(now - maxAgeMs);
      if (removal.messages === 0) return;
      this.#settle(removal);
      this.#options.onDropped?.(removal.messages, "old");
    });
  }

  /** Takes those that were acknowledged before they were on disk off the list. */
  #forgetPending(sequences: ReadonlySet<number> = new Set()): void {
    if (sequences.size === 0) return;
    this.#pending = this.#pending.filter(({ sequence, bytes }) => {
      if (!sequences.has(sequence)) return true;
      this.#size--;
      this.#bytes -= bytes;
      this.#pendingBytes -= bytes;
      return false;
    });
  }

  /** Counts what went from the file. */
  #settle({ messages, bytes, left }: Removal): void {
    this.#size -= messages;
    this.#bytes -= bytes;
    this.#newest.replace(left);
  }
}

function openFile(path: string, { sync = "normal" }: SpoolOptions): SpoolFile {
  const file = new SpoolFile(path, sync);
  try {
    file.adopt();
    return file;
  } catch (error) {
    file[Symbol.dispose]();
    throw error;
  }
}

/** The newest rows of the file, in memory; none that is newer than one of them is missing. */
class Newest {
  readonly #rows = new Map<number, Row>();
  #size = 0;
  #bytes = 0;

  /** By their numbers. */
  get rows(): ReadonlyMap<number, Row> {
    return this.#rows;
  }

  /** Messages in them. */
  get size(): number {
    return this.#size;
  }

  /** Messages in their order. */
  messages(): IteratorObject<SpooledMessage, undefined> {
    return this.#rows.values().flatMap((row) => row);
  }

  /** Adds what is newer than all others; where that is too much, none is kept. */
  add(rows: readonly Row[]): void {
    for (const row of rows) {
      this.#rows.set(row[0]!.row, row);
      this.#count(row, 1);
    }
    if (this.#size > MAX_NEWEST || this.#bytes > MAX_NEWEST_BYTES) this.clear();
  }

  /** Keeps of rows what is left of them. */
  replace(left: ReadonlyMap<number, Row>): void {
    for (const [number, row] of left) {
      const before = this.#rows.get(number);
      if (before === undefined) continue;
      this.#count(before, -1);
      this.#count(row, 1);
      if (row.length === 0) this.#rows.delete(number);
      else this.#rows.set(number, row);
    }
  }

  clear(): void {
    this.#rows.clear();
    this.#size = this.#bytes = 0;
  }

  #count(row: Row, times: 1 | -1): void {
    this.#size += times * row.length;
    for (const { bytes } of row) this.#bytes += times * bytes;
  }
}

/**
 * Opens the spool of the settings, and tells the log, now and then, what an operator has to know of it.
 *
 * @throws {ConfigError} when it can't be opened, or another process has it.
 */
export function openSpool({ path, maxBytes, maxAgeMs, sync }: SpoolSettings, { log }: OpenSpoolOptions): Spool {
  const dropped = { full: 0, old: 0 };
  const tellDropped = nowAndThen(() => {
    const reasons = { full: "there is no more room (spool_max_bytes)", old: "they are too old (spool_max_age)" };
    for (const why of ["full", "old"] as const) {
      if (dropped[why] > 0) {
        log.error("Dropped the oldest {messages} metric(s) that Kafka does not have: {reason}", {
          messages: dropped[why],
          reason: reasons[why],
        });
      }
      dropped[why] = 0;
    }
  });
  const tellProblem = nowAndThen((reason) =>
    log.error("Cannot write the spool '{path}', metrics are kept in memory meanwhile: {reason}", { path, reason })
  );
  const spool = new Spool(path, {
    maxBytes,
    maxAgeMs,
    sync,
    onDropped: (messages, why) => {
      dropped[why] += messages;
      tellDropped("");
    },
    onProblem: tellProblem,
    onDamaged: (aside, reason) =>
      log.error(
        "The spool '{path}' is damaged: what waited in it is set aside as '{aside}', a new one begun: {reason}",
        {
          path,
          aside,
          reason,
        },
      ),
  });
  if (spool.size > 0) log.info("{size} metric(s) wait in the spool for Kafka", { size: spool.size });
  if (spool.refusedSize > 0) {
    log.warn("{size} metric(s) that Kafka refused are set aside: --list-refused shows them", {
      size: spool.refusedSize,
    });
  }
  return spool;
}

/** Tells something at once, then at most every so often; what comes between is told at the end of that time. */
function nowAndThen(tell: (text: string) => void): (text: string) => void {
  let quietUntil = -Infinity;
  let last: string | undefined;
  return (text) => {
    const waitMs = quietUntil - performance.now();
    if (waitMs > 0) {
      if (last === undefined) {
        // Nothing waits for it: a program that ends does not.
        Deno.unrefTimer(setTimeout(() => {
          const told = last;
          last = undefined;
          if (told !== undefined) tell(told);
        }, waitMs));
      }
      last = text;
      return;
    }
    quietUntil = performance.now() + REPORT_EVERY_MS;
    tell(text);
  };
}
