import type { Site } from "./site.ts";
import { inspectConnection, type InspectConnectionOptions, type Inspection } from "./connection.ts";
import type { Exchange } from "./exchange.ts";
import type { SeenConnection } from "./expectation.ts";
import { ConnectionError, describeFailure, type Failure } from "./failure.ts";
import type { LookUps } from "./lookup.ts";
import { Timer } from "./timer.ts";

/** Options of {@linkcode Inspector}. */
export interface InspectorOptions {
  /** Looks names up. */
  readonly lookUps?: LookUps;
  /** Told of a look that could not be made for a reason of ours beside a check that could. */
  readonly onFault?: (site: Site, error: unknown) => void;
  /** Clock, in ms. */
  readonly now?: () => number;
  /** Looks at a connection. */
  readonly inspect?: (url: string, options: InspectConnectionOptions) => Promise<Inspection | null>;
}

/** A check without a response after this share of its time has its connection looked at, to tell what it waits for. */
const LATE_SHARE = 0.5;
const IP_VERSIONS = { any: null, 4: 4, 6: 6 } as const;

/** Knows when the connection of a site is to be looked at, and what the last look found. */
export class Inspector {
  readonly #options: InspectorOptions;
  readonly #lookedAt = new WeakMap<Site, number>();
  readonly #known = new WeakMap<Site, SeenConnection>();

  /** With no site known. */
  constructor(options: InspectorOptions = {}) {
    this.#options = options;
  }

  /**
   * Looks at a site's connection beside one check: at once where it is due, else when the check takes long or fails below
   * HTTP.
   *
   * @param signal Ends the check.
   * @returns null for a site behind a proxy: what is behind it can't be looked at.
   */
  begin(site: Site, signal: AbortSignal): Look | null {
    if (site.client.proxy !== null) return null;
    const { now = () => performance.now() } = this.#options;
    const last = this.#lookedAt.get(site);
    // A tenth early: checks do not start to the millisecond.
    const isDue = site.limits.connectTimeoutMs !== null ||
      site.inspectIntervalMs !== Infinity && (last === undefined || now() - last >= site.inspectIntervalMs * 0.9);
    return new Look(site, { isDue, signal, inspector: this });
  }

  /** Looks at a site's connection. */
  async inspect(site: Site, signal: AbortSignal): Promise<Inspection | null> {
    const { lookUps, now = () => performance.now(), inspect = inspectConnection } = this.#options;
    this.#lookedAt.set(site, now());
    const { client: { ca, identity, ipVersion, http2 }, limits, timeoutMs } = site;
    const inspection = await inspect(site.url, {
      timeoutMs: limits.connectTimeoutMs ?? timeoutMs,
      signal,
      ipVersion: IP_VERSIONS[ipVersion],
      tls: { ...(ca !== null && { ca }), ...identity },
      http2,
      ...(lookUps !== undefined && { lookUps }),
    });
    if (inspection !== null && inspection.tlsMs !== null) {
      const { tlsVersion, chain: [own] } = inspection;
      this.#known.set(site, { tlsVersion, certExpiresAt: own?.expiresAt ?? null });
    }
    return inspection;
  }

  /** Tells of a look that could not be made for a reason of ours beside a check that could. */
  tellFault(site: Site, error: unknown): void {
    this.#options.onFault?.(site, error);
  }

  /** What is known of a site's connection, from the last look that came to its certificate. */
  known(site: Site): SeenConnection | null {
    return this.#known.get(site) ?? null;
  }
}

/** What a {@linkcode Look} is made of. */
export interface LookOptions {
  /** Whether it is to begin at once. */
  readonly isDue: boolean;
  /** Ends the check. */
  readonly signal: AbortSignal;
  /** Does it, and is told of a fault of ours where the check itself had none. */
  readonly inspector: Pick<Inspector, "inspect" | "tellFault">;
}

/** A look at the connection beside one check. */
export class Look implements Disposable {
  readonly #site: Site;
  readonly #options: LookOptions;
  readonly #timer: Timer | undefined;
  #inspection: Promise<Inspection | null> | null = null;
  /** Ends the look while one is under way: an abort makes an error with a stack, which costs more than the rest of it. */
  #abandoned: AbortController | null = null;

  /** Begins it, or sees to it that it begins when the check takes long. */
  constructor(site: Site, options: LookOptions) {
    this.#site = site;
    this.#options = options;
    if (options.isDue) this.#start();
    else this.#timer = new Timer(site.timeoutMs * LATE_SHARE, () => this.#start());
  }

  /**
   * Waits for it to end: for sites that are looked at before each check.
   *
   * @returns What keeps a request from being sent, or null. A bad certificate does not: fetch says what is wrong with it.
   * @throws A fault of ours.
   */
  async hindrance(): Promise<{ readonly error: ConnectionError; readonly phase: "dns" | "connect" | "tls" } | null> {
    const inspection = await this.#start();
    if (inspection === null || inspection.failure === null || inspection.tlsMs !== null) return null;
    const { failure } = inspection;
    return { error: new ConnectionError(failure.error, failure.message), phase: failure.phase };
  }

  /**
   * Ends it together with the check, whose failure below HTTP it names where it knows more.
   *
   * @returns What it found; null where there was no reason to look: most checks have nothing to wait for.
   * @throws A fault of ours, where the check itself failed.
   */
  end(exchange: Exchange): Promise<Inspection | null> | null {
    this.#timer?.[Symbol.dispose]();
    const { failure, status, redirects } = exchange;
    // Where a redirect led, nobody looks.
    const belowHttp = status === null && redirects === 0 ? failure : null;
    if (belowHttp !== null && !this.#options.signal.aborted) this.#start();
    else if (belowHttp === null && !this.#options.isDue) {
      this.#abandoned?.abort();
      return null;
    }
    return this.#endWith(exchange, belowHttp);
  }

  /** Ends it. */
  [Symbol.dispose](): void {
    this.#timer?.[Symbol.dispose]();
    this.#abandoned?.abort();
  }

  async #endWith(exchange: Exchange, belowHttp: Failure | null): Promise<Inspection | null> {
    try {
      const inspection = await this.#inspection;
      if (belowHttp !== null && inspection !== null) exchange.failure = named(belowHttp, inspection, this.#site);
      return inspection;
    } catch (error) {
      if (exchange.failure !== null) throw error;
      this.#options.inspector.tellFault(this.#site, error);
      return null;
    }
  }

  #start(): Promise<Inspection | null> {
    if (this.#inspection === null) {
      const abandoned = this.#abandoned = new AbortController();
      const { inspector, signal } = this.#options;
      this.#inspection = inspector.inspect(this.#site, AbortSignal.any([signal, abandoned.signal]));
      // Whoever waits for it gets the error, too; nobody does where it is abandoned.
      this.#inspection.catch(() => {}).finally(() => this.#abandoned = null);
    }
    return this.#inspection;
  }
}

/** The failure of a check as a look beside it names it, where that says more than fetch does. */
function named(
  failure: NonNullable<Exchange["failure"]>,
  { failure: seen }: Inspection,
  site: Site,
): Exchange["failure"] {
  if (seen === null) return failure;
  const { error, phase } = describeFailure(failure, site);
  const isTimeout = error === "timeout" || error === "first_byte_timeout";
  const saysMore = isTimeout
    ? true
    : seen.timedOut
    ? false
    : phase === "dns" || phase === "connect"
    ? seen.phase === phase
    : error === "tls_other" && seen.phase === "tls";
  return saysMore ? { error: new ConnectionError(seen.error, seen.message), phase: seen.phase } : failure;
}
