import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";

/** Time without a row after a disturbance. */
export interface Gap {
  /** What was killed. */
  readonly what: string;
  /** From the kill to the next row, in ms. */
  readonly fromKillMs: number;
  /** From the new start to the next row, in ms; 0 where rows went on meanwhile. */
  readonly fromStartMs: number;
  /** Whether nothing else went wrong meanwhile. */
  readonly alone: boolean;
}

interface Open {
  readonly what: string;
  readonly at: number;
  startedAt: number | undefined;
  alone: boolean;
}

const POLL_MS = 250;
const QUERY_TIMEOUT_MS = 5_000;
/** Rows older than this are not counted again and again. */
const WINDOW_MS = 180_000;
const COUNT_SQL = "SELECT count(*)::int AS rows FROM site_checker.all_checks WHERE occurred_at > $1";

/** Watches rows arrive, past the relay. */
export class Progress implements AsyncDisposable {
  readonly #config: pg.ClientConfig;
  readonly #stop = new AbortController();
  readonly #done: Promise<void>;
  readonly #open = new Set<Open>();
  readonly #gaps: Gap[] = [];
  #since = new Date(Date.now() - WINDOW_MS);
  #rows: number | undefined;
  #lastRowAt: number | undefined;
  #disturbances = 0;
  #calmSince = performance.now();
  #longestCalmMs = 0;

  /** Begins at once. */
  constructor(config: pg.ClientConfig) {
    this.#config = config;
    this.#done = this.#run();
  }

  /** Times without a row after kills, the longest first. */
  get gaps(): Gap[] {
    return this.#gaps.toSorted((a, b) => b.fromKillMs - a.fromKillMs);
  }

  /** The longest time without a row while nothing was down, frozen or just cut, in ms. */
  get longestCalmMs(): number {
    return this.#longestCalmMs;
  }

  /** Whether a row has come. */
  get begun(): boolean {
    return this.#lastRowAt !== undefined;
  }

  /** Whether a row has come since all was well again. */
  get recovered(): boolean {
    return this.#disturbances === 0 && (this.#lastRowAt ?? 0) > this.#calmSince;
  }

  /** Something begins to go wrong. @returns What to call when it is over. */
  disturb(): () => void {
    this.#disturbances++;
    for (const open of this.#open) open.alone = false;
    return () => {
      this.#disturbances--;
      this.#calmSince = performance.now();
    };
  }

  /** Something is killed now, as part of a disturbance. @returns What to call when it was started again. */
  killed(what: string): () => void {
    const open: Open = { what, at: performance.now(), startedAt: undefined, alone: this.#disturbances === 1 };
    this.#open.add(open);
    return () => {
      open.startedAt = performance.now();
    };
  }

  /** Ends the watch: from now on there may be no new rows. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#done;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const client = new pg.Client({ ...this.#config, query_timeout: QUERY_TIMEOUT_MS });
      client.on("error", () => {});
      try {
        await client.connect();
        while (!signal.aborted) {
          await this.#look(client);
          await delay(POLL_MS, undefined, { signal });
        }
      } catch {
        // Away, or there is no table yet.
        await delay(POLL_MS, undefined, { signal }).catch(() => {});
      } finally {
        // On a connection that broke it may never resolve.
        void client.end().catch(() => {});
      }
    }
  }

  async #look(client: pg.Client): Promise<void> {
    const askedAt = performance.now();
    const count = async () => (await client.query<{ rows: number }>(COUNT_SQL, [this.#since])).rows[0]?.rows ?? 0;
    const rows = await count();
    const now = performance.now();
    if (rows > (this.#rows ?? 0)) {
      this.#lastRowAt = now;
      for (const open of this.#open) {
        if (open.at > askedAt) continue;
        this.#open.delete(open);
        const fromStartMs = open.startedAt === undefined ? 0 : now - open.startedAt;
        this.#gaps.push({ what: open.what, fromKillMs: now - open.at, fromStartMs, alone: open.alone });
      }
    }
    this.#rows = rows;
    if (this.#disturbances === 0 && this.#lastRowAt !== undefined) {
      this.#longestCalmMs = Math.max(this.#longestCalmMs, now - Math.max(this.#lastRowAt, this.#calmSince));
    }
    if (Date.now() - this.#since.getTime() > 2 * WINDOW_MS) {
      this.#since = new Date(Date.now() - WINDOW_MS);
      this.#rows = await count();
    }
  }
}
