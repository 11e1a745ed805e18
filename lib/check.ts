import type { Site } from "./config.ts";
import { exchangeOver, prepare } from "./exchange.ts";
import { throwIfOurs } from "./failure.ts";
import type { Metric } from "./metric.ts";
import { judge } from "./verdict.ts";

/** Options of {@linkcode check}. */
export interface CheckOptions {
  /** When the check was due. */
  readonly scheduledAt: Date;
  /** Ends the check; it rejects with the reason then, since an end of ours says nothing of the site. */
  readonly signal?: AbortSignal;
  /** Client of the exchange, made with the site's settings. */
  readonly client: Deno.HttpClient;
  /** Does the exchange. */
  readonly fetch?: typeof globalThis.fetch;
}

/** Of a longer body, the pattern sees this much; all of it is read, counted and hashed. */
const MAX_PATTERN_BYTES = 16 * 1024 * 1024;

/**
 * Checks a site once.
 *
 * @returns The metric; a site that is down is a result, not an error.
 * @throws A fault of ours: `Deno.errors.NotCapable` for a missing permission, a proxy that is away, or the signal's
 * reason.
 */
export async function check(
  site: Site,
  { scheduledAt, signal, client, fetch = globalThis.fetch }: CheckOptions,
): Promise<Metric> {
  const request = prepare(site, client);
  const timeout = AbortSignal.timeout(site.timeoutMs);
  const clock = { occurredAt: new Date(), start: performance.now() };
  const exchange = await exchangeOver(request, {
    signal: signal === undefined ? timeout : AbortSignal.any([signal, timeout]),
    fetch,
    start: clock.start,
    keepBytes: site.pattern === null ? 0 : MAX_PATTERN_BYTES,
  });
  if (exchange.failure !== null) {
    signal?.throwIfAborted();
    throwIfOurs(exchange.failure, site);
  }
  return judge(site, exchange, { ...clock, scheduledAt });
}
