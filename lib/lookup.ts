import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import pLimit from "p-limit";

/** Options of {@linkcode LookUps}. */
export interface LookUpsOptions {
  /** Look-ups at a time. Default: 12. */
  readonly atOnce?: number;
  /** Beside them, look-ups at a time of names that were slow the last time. Default: 4. */
  readonly slowAtOnce?: number;
  /** Time from which on a look-up was slow, in ms. Default: 500. */
  readonly slowMs?: number;
  /** Looks a name up. */
  readonly resolve?: (host: string, family: 0 | 4 | 6) => Promise<readonly { readonly address: string }[]>;
}

/** Options of {@linkcode LookUps.addresses}. */
export interface AddressesOptions {
  /** Kind of address. Default: both. */
  readonly ipVersion?: 4 | 6 | null;
  /** Ends the wait for the answer. The look-up can't be ended: it keeps its place until it is over. */
  readonly signal: AbortSignal;
  /** Time to wait for a place, in ms. */
  readonly placeMs: number;
  /** Told when the look-up begins. */
  readonly onStart?: () => void;
}

/**
 * Look-ups of names, few at a time: each takes one of 32 threads that all file I/O of the process shares, and one that
 * hangs keeps it. Names that were slow wait for each other alone, so that they hold up no others.
 */
export class LookUps {
  readonly #quick: ReturnType<typeof pLimit>;
  readonly #slow: ReturnType<typeof pLimit>;
  readonly #slowMs: number;
  readonly #resolve: NonNullable<LookUpsOptions["resolve"]>;
  readonly #slowNames = new Set<string>();

  /** With none under way. */
  constructor({ atOnce = 12, slowAtOnce = 4, slowMs = 500, resolve = resolveAll }: LookUpsOptions = {}) {
    this.#quick = pLimit(atOnce);
    this.#slow = pLimit(slowAtOnce);
    this.#slowMs = slowMs;
    this.#resolve = resolve;
  }

  /**
   * Addresses of a host, in the order in which they are to be tried; an address is its own.
   *
   * @returns null where no place came free in time: then nothing is known of the name.
   * @throws The error of the look-up, or the reason of the signal.
   */
  addresses(
    host: string,
    { ipVersion = null, signal, placeMs, onStart }: AddressesOptions,
  ): Promise<readonly string[] | null> {
    if (isIP(host) !== 0) {
      onStart?.();
      return Promise.resolve([host]);
    }
    const { promise, resolve, reject } = Promise.withResolvers<readonly string[] | null>();
    let state: "waiting" | "started" | "given up" = "waiting";
    const giveUp = () => {
      if (state === "started") return reject(signal.reason);
      state = "given up";
      resolve(null);
    };
    const timer = setTimeout(() => state === "waiting" && giveUp(), placeMs);
    signal.addEventListener("abort", giveUp);
    if (signal.aborted) giveUp();
    const limit = this.#slowNames.has(host) ? this.#slow : this.#quick;
    limit(async () => {
      if (state === "given up") return;
      state = "started";
      clearTimeout(timer);
      onStart?.();
      const start = performance.now();
      try {
        const found = await this.#resolve(host, ipVersion ?? 0);
        resolve([...new Set(found.map(({ address }) => address))]);
      } catch (error) {
        reject(error);
      } finally {
        if (performance.now() - start >= this.#slowMs) this.#slowNames.add(host);
        else this.#slowNames.delete(host);
      }
    });
    return promise.finally(() => {
      clearTimeout(timer);
      signal.removeEventListener("abort", giveUp);
    });
  }
}

function resolveAll(host: string, family: 0 | 4 | 6): Promise<{ address: string }[]> {
  return lookup(host, { all: true, family });
}
