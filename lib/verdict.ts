import { hideAll, secretsOf } from "./secret.ts";
import type { Site } from "./site.ts";
import { excerptOf } from "./excerpt.ts";
import type { Exchange } from "./exchange.ts";
import { findUnmet, type SeenConnection, type TextAnswers } from "./expectation.ts";
import { describeFailure } from "./failure.ts";
import { isoTime, type Metric, metricId } from "./metric.ts";

/** A connection that was looked at beside a check; null for what it did not come to. */
export interface Connection extends SeenConnection {
  /** Address of the server. */
  readonly ip: string | null;
  /** Time to look the host up, in ms. */
  readonly dnsMs: number | null;
  /** Time to connect over TCP, in ms. */
  readonly connectMs: number | null;
  /** Time of the TLS handshake, in ms. */
  readonly tlsMs: number | null;
  /** Subject of the server's certificate. */
  readonly certSubject: string | null;
  /** Its issuer. */
  readonly certIssuer: string | null;
}

/** Options of {@linkcode judge}. */
export interface JudgeOptions {
  /** When the check began. */
  readonly occurredAt: Date;
  /** The same on the clock of `performance.now()`. */
  readonly start: number;
  /** Time in which this process stood still since then, in ms: no site is slow for that. */
  readonly stoodMs: number;
  /** When it was due. */
  readonly scheduledAt: Date;
  /** Number of the attempt, from 1. */
  readonly attempt: number;
  /** What the texts said. */
  readonly answers: TextAnswers;
  /** The connection, where it was looked at beside this very check. */
  readonly connection: Connection | null;
  /** What is known of it, from this check or one before. */
  readonly knownConnection: SeenConnection | null;
  /** SHA-256 of the body that the site had before, in hex. */
  readonly bodyBefore: string | null;
}

/** Turns what came into the metric. */
export function judge(site: Site, exchange: Exchange, options: JudgeOptions): Metric {
  const { occurredAt, start, stoodMs, scheduledAt, attempt, answers, connection, knownConnection, bodyBefore } =
    options;
  const { status, headers, body, failure } = exchange;
  const firstByteMs = round(exchange.firstByteMs);
  const totalMs = round(exchange.totalMs);
  const responseTimeMs = totalMs === null ? null : Math.max(0, totalMs - stoodMs);
  const seen = status === null || headers === null
    ? null
    : { status, headers, body, responseTimeMs, connection: knownConnection, bodyBefore, at: occurredAt };
  const unmet = seen === null ? [] : findUnmet(site.expectations, seen, { answers, timeoutMs: site.timeoutMs });
  // What breaks the check comes before what only degrades it; both are in the order of their classes.
  const first = unmet.find(({ degrades }) => degrades !== true) ?? unmet[0];
  const described = failure === null ? null : describeFailure(failure, site);
  const isWell = described === null && unmet.length === 0;
  // A site may quote what it was sent.
  const secrets = isWell ? [] : secretsOf(site);
  const messages = [...(described === null ? [] : [described.message]), ...unmet.map(({ message }) => message)];
  return {
    id: metricId(occurredAt.getTime()),
    occurred_at: isoTime(occurredAt.getTime()),
    scheduled_at: isoTime(scheduledAt.getTime()),
    name: site.name,
    url: site.url,
    method: site.request.method,
    location: site.location,
    producer: site.producer,
    verdict: described !== null ? "down" : first === undefined ? "up" : first.degrades === true ? "degraded" : "down",
    error: described?.error ?? first?.expectation ?? null,
    failed_phase: described?.phase ?? (first === undefined ? null : "expectation"),
    error_message: isWell ? null : hideAll(messages.join("; "), secrets),
    attempt,
    final: true,
    status_code: status,
    response_time: totalMs,
    elapsed_ms: round(performance.now() - start),
    first_byte_ms: firstByteMs,
    download_ms: totalMs === null || firstByteMs === null ? null : round(totalMs - firstByteMs),
    regex: site.regex,
    has_regex: hasRegex(site, answers),
    ip: connection?.ip ?? null,
    dns_ms: round(connection?.dnsMs ?? null),
    connect_ms: round(connection?.connectMs ?? null),
    tls_ms: round(connection?.tlsMs ?? null),
    tls_version: connection?.tlsVersion ?? null,
    cert_subject: connection?.certSubject ?? null,
    cert_issuer: connection?.certIssuer ?? null,
    cert_expires_at: connection?.certExpiresAt ?? null,
    redirects: status === null ? null : exchange.redirects,
    final_url: exchange.finalUrl,
    body_bytes: body?.bytes ?? null,
    body_sha256: body?.sha256 ?? null,
    failed: unmet.length === 0
      ? null
      : hideAll(unmet.map(({ expectation, expected, actual }) => ({ expectation, expected, actual })), secrets),
    tags: site.tags,
    excerpt: seen !== null && site.excerptBytes > 0 && !isWell
      ? excerptOf(seen, { maxBytes: site.excerptBytes, secrets })
      : null,
  };
}

/** Whether all patterns matched; null without a pattern, without a body and where one gave no answer in time. */
function hasRegex({ regex, expectations: { texts } }: Site, answers: TextAnswers): boolean | null {
  if (regex === null) return null;
  const own = texts.flatMap(({ error }, i) => error === "regex" ? [answers[i]?.holds] : []);
  return own.includes(false) ? false : own.includes(undefined) ? null : true;
}

/** Time in ms, to the microsecond. */
export function round(ms: number | null): number | null {
  return ms === null ? null : Math.round(ms * 1000) / 1000;
}
