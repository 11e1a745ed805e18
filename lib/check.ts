import { setTimeout as delay } from "node:timers/promises";
import type { Site } from "./site.ts";
import type { Inspection } from "./connection.ts";
import { Deadline } from "./deadline.ts";
import type { Evaluator } from "./evaluator.ts";
import { exchangeOver, failedExchange, prepare } from "./exchange.ts";
import { answerTexts } from "./expectation.ts";
import { throwIfOurs } from "./failure.ts";
import type { Inspector } from "./inspector.ts";
import type { Metric } from "./metric.ts";
import { type Connection, judge } from "./verdict.ts";

/** Options of {@linkcode check}. */
export interface CheckOptions {
  /** When the check was due. */
  readonly scheduledAt: Date;
  /** Ends the check; it rejects with the reason then, since an end of ours says nothing of the site. */
  readonly signal?: AbortSignal;
  /** Client of the exchange, made with the site's settings. */
  readonly client: Deno.HttpClient;
  /** Asks what may take long. */
  readonly evaluator: Evaluator;
  /** Number of the attempt. Default: 1. */
  readonly attempt?: number;
  /** Looks at the connection when it is time to. Default: nobody does. */
  readonly inspector?: Pick<Inspector, "begin" | "known"> | null;
  /** SHA-256 in hex of the body that each site had before, by name; {@linkcode checkWithRetries} keeps it. */
  readonly bodies?: ReadonlyMap<string, string>;
  /** Does the exchange. */
  readonly fetch?: typeof globalThis.fetch;
}

/** Of a longer body, patterns and expressions see this much; all of it is read, counted and hashed. */
const MAX_TEXT_BYTES = 16 * 1024 * 1024;
/** What patterns and expressions have at least, where the response took nearly all of the time. */
const MIN_ANSWER_MS = 100;

/**
 * Checks a site once.
 *
 * @returns The metric, as that of a final attempt; a site that is down is a result, not an error.
 * @throws A fault of ours: `Deno.errors.NotCapable` for a missing permission, a proxy that is away, or the signal's
 * reason.
 */
export async function check(
  site: Site,
  {
    scheduledAt,
    signal,
    client,
    evaluator,
    attempt = 1,
    inspector = null,
    bodies,
    fetch = globalThis.fetch,
  }: CheckOptions,
): Promise<Metric> {
  const { texts } = site.expectations;
  using deadline = new Deadline(site.timeoutMs, signal);
  const clock = { occurredAt: new Date(), start: performance.now() };
  using look = inspector?.begin(site, deadline.signal) ?? null;
  const hindrance = site.limits.connectTimeoutMs === null ? null : await look?.hindrance() ?? null;
  const exchange = hindrance === null
    ? await exchangeOver(prepare(site, client), {
      signal: deadline.signal,
      fetch,
      start: performance.now(),
      keepBytes: texts.some(({ error }) => error !== "header") ? MAX_TEXT_BYTES : site.excerptBytes,
    })
    : failedExchange(hindrance);
  if (exchange.failure !== null) {
    signal?.throwIfAborted();
    throwIfOurs(exchange.failure, site.client.proxy);
  }
  const inspection = await look?.end(exchange) ?? null;
  const { headers, body } = exchange;
  const leftMs = site.timeoutMs - (performance.now() - clock.start);
  const answers = headers === null || texts.length === 0 ? [] : await answerTexts(texts, { headers, body }, {
    name: site.name,
    evaluator,
    budgetMs: Math.max(MIN_ANSWER_MS, leftMs),
    signal,
  });
  return judge(site, exchange, {
    ...clock,
    scheduledAt,
    attempt,
    answers,
    connection: inspection === null ? null : connectionOf(inspection),
    knownConnection: inspector?.known(site) ?? null,
    bodyBefore: bodies?.get(site.name) ?? null,
  });
}

function connectionOf({ ip, dnsMs, connectMs, tlsMs, tlsVersion, chain: [own] }: Inspection): Connection {
  return {
    ip,
    dnsMs,
    connectMs,
    tlsMs,
    tlsVersion,
    certSubject: own?.subject ?? null,
    certIssuer: own?.issuer ?? null,
    certExpiresAt: own?.expiresAt ?? null,
  };
}

/** Options of {@linkcode checkWithRetries}. */
export interface CheckWithRetriesOptions extends CheckOptions {
  /** Is told the SHA-256 of each site's body. */
  readonly bodies?: Map<string, string>;
  /** Makes one attempt. Default: {@linkcode check}. */
  readonly attemptOnce?: (site: Site, options: CheckOptions) => Promise<Metric>;
}

/**
 * Checks a site, and where it is down, again after a while, as often as it says. Each attempt is a metric of its own: the
 * first one that is not down is the final one, else the last.
 *
 * @throws As {@linkcode check}; the attempts before stay what they are.
 */
export async function* checkWithRetries(
  site: Site,
  { attemptOnce = check, ...options }: CheckWithRetriesOptions,
): AsyncGenerator<Metric, void> {
  for (let attempt = 1;; attempt++) {
    const metric = await attemptOnce(site, { ...options, attempt });
    if (metric.verdict !== "down" || attempt > site.retries) {
      if (site.expectations.unchanged === "before" && isGoodBody(metric)) {
        options.bodies?.set(site.name, metric.body_sha256!);
      }
      return yield metric;
    }
    yield { ...metric, final: false };
    await delay(site.retryIntervalMs, undefined, options.signal && { signal: options.signal }).catch(() => {});
    options.signal?.throwIfAborted();
  }
}

/** Whether the body is what later ones are to be compared with: nothing breaks the check but that it is another one. */
function isGoodBody({ verdict, error, body_sha256 }: Metric): boolean {
  return body_sha256 !== null && (verdict !== "down" || error === "changed");
}
