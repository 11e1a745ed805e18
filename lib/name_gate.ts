import { isIP } from "node:net";
import pLimit from "p-limit";
import { LookUps } from "./lookup.ts";
import type { Metric } from "./metric.ts";

/** Options of {@linkcode NameGate}. */
export interface NameGateOptions {
  /** Looks names up. Default: one of its own. */
  readonly lookUps?: LookUps;
  /** Checks at a time of names that are not known to be quick. Default: 4. */
  readonly atOnce?: number;
}

/** Options of {@linkcode NameGate.pass}. */
export interface PassOptions {
  /** Time that a look-up may take, in ms; the check finds for itself what becomes of the name then. */
  readonly timeoutMs: number;
  /** Ends the wait. */
  readonly signal: AbortSignal;
}

/** A look-up that takes longer is slow, in ms. */
const SLOW_MS = 500;
const FOREVER_MS = 2 ** 31 - 1;

/**
 * Keeps names whose look-up takes seconds from holding up all others: fetch looks names up on the threads of
 * `getaddrinfo`, of which there are 32 for the whole process, which file I/O needs too, and which a check that gives up
 * leaves busy. So a name that is not known to be quick is looked up by itself before its check, few at a time, and where
 * that is slow its check waits for others like it. None of that is part of the check's times.
 */
export class NameGate {
  readonly #lookUps: LookUps;
  readonly #slow: ReturnType<typeof pLimit>;
  /** Hosts that are addresses and not names, as far as they were asked for. */
  readonly #addresses = new Set<string>();
  /** Names whose last check came as far as a connection. */
  readonly #quick = new Set<string>();

  /** With no name known. */
  constructor({ lookUps = new LookUps(), atOnce = 4 }: NameGateOptions = {}) {
    this.#lookUps = lookUps;
    this.#slow = pLimit(atOnce);
  }

  /** Whether a check of a host need not wait. */
  isOpen(host: string): boolean {
    return this.#quick.has(host) || this.#isAddress(host);
  }

  /** Makes a check of a host as soon as its name holds up no others. */
  pass(host: string, check: () => Promise<Metric>, options: PassOptions): Promise<Metric> {
    return !this.#quick.has(host) && this.#isAddress(host) ? check() : this.#passName(host, check, options);
  }

  #isAddress(host: string): boolean {
    if (this.#addresses.has(host)) return true;
    if (isIP(host.replace(/^\[|\]$/g, "")) === 0) return false;
    this.#addresses.add(host);
    return true;
  }

  async #passName(name: string, check: () => Promise<Metric>, options: PassOptions): Promise<Metric> {
    const isQuick = this.#quick.has(name) || await this.#isQuick(name, options);
    const metric = await (isQuick ? check() : this.#slow(check));
    this.learn(name, metric);
    return metric;
  }

  /** Learns from a check that was made without it, since the host was open. */
  learn(host: string, metric: Metric): void {
    if (this.#addresses.has(host)) return;
    if (cameToConnection(metric)) this.#quick.add(host);
    else this.#quick.delete(host);
  }

  async #isQuick(name: string, { timeoutMs, signal }: PassOptions): Promise<boolean> {
    const late = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    let start = 0;
    try {
      await this.#lookUps.addresses(name, {
        signal: AbortSignal.any([signal, late.signal]),
        placeMs: FOREVER_MS,
        onStart: () => {
          start = performance.now();
          timer = setTimeout(() => late.abort(), timeoutMs);
        },
      });
    } catch {
      // The check will say what is wrong with the name.
    } finally {
      clearTimeout(timer);
    }
    signal.throwIfAborted();
    return !late.signal.aborted && performance.now() - start < SLOW_MS;
  }
}

/** Whether the name was no trouble. */
function cameToConnection({ status_code, error, failed_phase }: Metric): boolean {
  return status_code !== null || failed_phase !== "dns" && error !== "timeout";
}
