import { setTimeout as delay } from "node:timers/promises";
import type { Site } from "./site.ts";
import type { Inspection } from "./connection.ts";
import { Deadline } from "./deadline.ts";
import type { Evaluator } from "./evaluator.ts";
import { type Exchange, exchangeOver, failedExchange, prepare } from "./exchange.ts";
import { answerTexts, type TextAnswers } from "./expectation.ts";
import { throwIfOurs } from "./failure.ts";
import { type Fetch, fetchAnswer } from "./fetch.ts";
import type { Inspector } from "./inspector.ts";
import type { Metric } from "./metric.ts";
import type { Tokens } from "./token.ts";
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
  /** Gets the tokens of sites that take one. Default: nobody does. */
  readonly tokens?: Pick<Tokens, "grant"> | null;
  /** SHA-256 in hex of the body that each site had before, by name; {@linkcode checkWithRetries} keeps it. */
  readonly bodies?: ReadonlyMap<string, string>;
  /** Is told for how long the process stood still meanwhile, in ms, if it did. */
  readonly onStandstill?: (stoodMs: number) => void;
  /** Does the exchange. */
  readonly fetch?: Fetch;
  /** Is told what the verdict is made from, see lib/trace.ts. */
  readonly observer?: CheckObserver;
}

/** Looks on at a check. */
export interface CheckObserver {
  /** Bytes of the body that it wants to see. */
  readonly keepBytes: number;
  /** Takes what came, and what the texts said; nobody else needs them any more. */
  judging(exchange: Exchange, answers: TextAnswers): void;
}

/** Of a longer body, patterns and expressions see this much; all of it is read, counted and hashed. */
const MAX_TEXT_BYTES = 16 * 1024 * 1024;
/** What an excerpt sees beyond its end, so that no secret is cut in two there. */
const SECRET_BYTES = 4 * 1024;
/** What patterns and expressions have at least, where the response took nearly all of the time. */
const MIN_ANSWER_MS = 100;

/**
 * Checks a site once.
 *
 * @returns The metric, as that of a final attempt; a site that is down is a result, not an error.
 * @throws A fault of ours: `Deno.errors.NotCapable` for a missing permission, a proxy that is away, a token that is not
 * to be had, or the signal's reason.
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
    tokens = null,
    bodies,
    onStandstill,
    fetch = fetchAnswer,
    observer,
  }: CheckOptions,
): Promise<Metric> {
  const { texts } = site.expectations;
  using deadline = new Deadline(site.timeoutMs, signal);
  const until = performance.now() + site.timeoutMs;
  // Within the timeout, yet no part of any time that is told of the site.
  const grant = site.request.oauth === null ? null : await tokens?.grant(site, deadline.signal) ?? null;
  let clock = now(deadline);
  using look = inspector?.begin(site, deadline.signal) ?? null;
  const hindrance = site.limits.connectTimeoutMs === null ? null : await look?.hindrance() ?? null;
  const keepBytes = texts.some(({ error }) => error !== "header")
    ? MAX_TEXT_BYTES
    : Math.max(site.excerptBytes > 0 ? site.excerptBytes + SECRET_BYTES : 0, observer?.keepBytes ?? 0);
  const options = { signal: deadline.signal, fetch, keepBytes };
  let exchange = hindrance === null
    ? await exchangeOver(prepare(grant?.site ?? site, client), options)
    : failedExchange(hindrance);
  while (grant !== null && await grant.mustRepeat(exchange)) {
    clock = now(deadline);
    exchange = await exchangeOver(prepare(grant.site, client), options);
  }
  if (exchange.failure !== null) {
    signal?.throwIfAborted();
    throwIfOurs(exchange.failure, site.client.proxy);
    grant?.throwIfLate(exchange.failure);
  }
  const ending = look?.end(exchange) ?? null;
  const inspection = ending === null ? null : await ending;
  const { headers, body } = exchange;
  const answers = headers === null || texts.length === 0 ? [] : await answerTexts(texts, { headers, body }, {
    name: site.name,
    evaluator,
    budgetMs: Math.max(MIN_ANSWER_MS, until - performance.now()),
    signal,
  });
  observer?.judging(exchange, answers);
  const stoodMs = deadline.stoodMs - clock.stoodMs;
  if (stoodMs > 0) onStandstill?.(stoodMs);
  return judge(grant?.site ?? site, exchange, {
    ...clock,
    stoodMs,
    scheduledAt,
    attempt,
    answers,
    connection: inspection === null ? null : connectionOf(inspection),
    knownConnection: inspector?.known(site) ?? null,
    bodyBefore: bodies?.get(site.name) ?? null,
  });
}

function now({ stoodMs }: Deadline): { occurredAt: Date; start: number; stoodMs: number } {
  return { occurredAt: new Date(), start: performance.now(), stoodMs };
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
export interface CheckWithRetriesOptions {
  /** Makes an attempt, as {@linkcode check} does. */
  readonly attempt: (number: number) => Promise<Metric>;
  /** Takes the metric of each. */
  readonly deliver: (metric: Metric) => void;
  /** Is told the SHA-256 of each site's body. */
  readonly bodies?: Map<string, string>;
  /** Ends the wait for the next attempt. */
  readonly signal?: AbortSignal;
}

/**
 * Checks a site, and where it is down, again after a while, as often as it says. Each attempt is a metric of its own: the
 * first one that is not down is the final one, else the last.
 *
 * @returns The final one.
 * @throws As {@linkcode check}; the attempts before stay what they are.
 */
export async function checkWithRetries(
  site: Site,
  { attempt, deliver, bodies, signal }: CheckWithRetriesOptions,
): Promise<Metric> {
  for (let number = 1;; number++) {
    const metric = await attempt(number);
    if (metric.verdict !== "down" || number > site.retries) {
      if (site.expectations.unchanged === "before" && isGoodBody(metric)) bodies?.set(site.name, metric.body_sha256!);
      deliver(metric);
      return metric;
    }
    deliver({ ...metric, final: false });
    await delay(site.retryIntervalMs, undefined, signal && { signal }).catch(() => {});
    signal?.throwIfAborted();
  }
}

/** Whether the body is what later ones are to be compared with: nothing breaks the check but that it is another one. */
function isGoodBody({ verdict, error, body_sha256 }: Metric): boolean {
  return body_sha256 !== null && (verdict !== "down" || error === "changed");
}
