import { Buffer } from "node:buffer";
import { check, type CheckObserver } from "./check.ts";
import { Clients } from "./client.ts";
import {
  type ConnectionAttempt,
  inspectConnection,
  type InspectConnectionOptions,
  type Inspection,
} from "./connection.ts";
import { errorMessage } from "./error.ts";
import { decodeText } from "./evaluation.ts";
import { Evaluator } from "./evaluator.ts";

import type { Exchange } from "./exchange.ts";
import type { TextAnswers } from "./expectation.ts";
import { type Answer, type Fetch, fetchAnswer, type FetchOptions } from "./fetch.ts";
import { Inspector } from "./inspector.ts";
import { isWithin } from "./maintenance.ts";
import type { CheckError, Metric } from "./metric.ts";
import { type Reviewed, reviewExpectations } from "./review.ts";
import { HIDDEN, hideAll, isSecretHeader, secretsOf, shownHeader } from "./secret.ts";
import type { Site } from "./site.ts";
import { Tokens } from "./token.ts";
import { round } from "./verdict.ts";

/** One check, step by step: what `--trace --json` prints. Times begin at the start of the check; secrets are hidden. */
export interface Trace {
  /** Version of this shape. */
  readonly version: 1;
  /** Name of the site. */
  readonly name: string;
  /** Proxy that it is checked through, without user and password; null for none. */
  readonly proxy: string | null;
  /** What else there is to know. */
  readonly notes: readonly string[];
  /** Each request, in order: redirects lead from one to the next. */
  readonly hops: readonly TracedHop[];
  /** What the site is expected to be like, with what came of it. */
  readonly expectations: readonly Reviewed[];
  /** The metric, as it would be published. */
  readonly metric: Metric;
}

/** A request and what came of it. */
export interface TracedHop {
  /** Address, without user and password. */
  readonly url: string;
  /** When it began, in ms from the start of the check. */
  readonly start_ms: number;
  /** Time to the head of the response, on a connection of its own, in ms; null where none came. */
  readonly first_byte_ms: number | null;
  /** Time from there to the end of the body, in ms; null where that was not read, or not to its end. */
  readonly download_ms: number | null;
  /** Time to its end, or to its failure, in ms. */
  readonly elapsed_ms: number;
  /** What was sent; null where no connection came about to send it over. */
  readonly request: TracedRequest | null;
  /** What a look at the connection found, the first time that a host is asked; null for later ones and behind a proxy. */
  readonly connection: TracedConnection | null;
  /** What came; null for nothing. */
  readonly response: TracedResponse | null;
}

/** What was sent. */
export interface TracedRequest {
  /** Method. */
  readonly method: string;
  /** Headers, those left out that fetch itself adds. */
  readonly headers: readonly TracedHeader[];
  /** Length of the body, in bytes; null without one. */
  readonly body_bytes: number | null;
}

/** A header. */
export interface TracedHeader {
  /** Name, in lower case. */
  readonly name: string;
  /** Value. */
  readonly value: string;
}

/** What a look at a connection found; null for what it did not come to. */
export interface TracedConnection {
  /** Addresses of the host, in the order in which they are tried. */
  readonly addresses: readonly string[];
  /** Port. */
  readonly port: number;
  /** Those that were tried, and why there is no connection to them; null for the one that was connected to. */
  readonly attempts: readonly ConnectionAttempt[];
  /** When it began, in ms from the start of the check. */
  readonly start_ms: number;
  /** Time of the look-up, in ms. */
  readonly dns_ms: number | null;
  /** Time to connect over TCP, in ms. */
  readonly connect_ms: number | null;
  /** Time of the TLS handshake, in ms. */
  readonly tls_ms: number | null;
  /** Time to its end, or to its failure, in ms. */
  readonly elapsed_ms: number;
  /** Version of TLS. */
  readonly tls_version: string | null;
  /** Cipher suite. */
  readonly cipher: string | null;
  /** Protocol that was agreed on with TLS. */
  readonly alpn: string | null;
  /** Certificates, the server's own first. */
  readonly certificates: readonly TracedCertificate[];
  /** Why there is no good connection, or null. */
  readonly failure: {
    /** Class. */
    readonly error: CheckError;
    /** Phase: dns, connect or tls. */
    readonly phase: string;
    /** In words. */
    readonly message: string;
  } | null;
}

/** A certificate of a chain. */
export interface TracedCertificate {
  /** Whom it is for. */
  readonly subject: string;
  /** Who issued it. */
  readonly issuer: string;
  /** Its beginning, ISO 8601 in UTC. */
  readonly valid_from: string;
  /** Its end, ISO 8601 in UTC. */
  readonly expires_at: string;
}

/** What came. */
export interface TracedResponse {
  /** Status. */
  readonly status_code: number;
  /** Its text; empty with HTTP/2. */
  readonly status_text: string;
  /** Headers. */
  readonly headers: readonly TracedHeader[];
  /** Beginning of the body, where it was read and the site is not up; else null. */
  readonly body_start: string | null;
}

/** Options of {@linkcode traceSite}. */
export interface TraceSiteOptions {
  /** Ends it; it rejects with the reason then. */
  readonly signal?: AbortSignal;
  /** Looks at connections. */
  readonly inspect?: (url: string, options: InspectConnectionOptions) => Promise<Inspection | null>;
  /** Does the exchange. */
  readonly fetch?: Fetch;
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** Bytes of the body's beginning that are looked at; what is shown of them is shorter, so that no secret is cut in two. */
const BODY_BYTES = 4 * 1_024;
const BODY_LENGTH = 1_000;
/** A look at another host that is still under way at the end of the check has this much more time. */
const LOOK_GRACE_MS = 1_000;

/**
 * Checks a site once, and tells how it went. It is the check that the producer makes, {@linkcode check}, with a look at
 * the connection beside it.
 *
 * @throws As `check()`: a fault of ours, or the signal's reason.
 */
export async function traceSite(site: Site, options: TraceSiteOptions = {}): Promise<Trace> {
  using clients = new Clients();
  using evaluator = new Evaluator();
  using tokens = new Tokens();
  const client = clients.get(site.client);
  using tracer = new Tracer(site, options);
  const metric = await check({ ...site, inspectIntervalMs: 0 }, {
    scheduledAt: new Date(),
    client,
    evaluator,
    tokens,
    inspector: new Inspector({
      inspect: (url, options) => tracer.inspect(url, options),
      onFault: (_, error) => tracer.tellFault(site.url, error),
    }),
    fetch: (url, options) => tracer.fetch(url, options),
    observer: tracer,
    ...(options.signal && { signal: options.signal }),
  });
  return await tracer.end(metric);
}

/** Stands between a check and what it does, and writes down what goes through. */
class Tracer implements CheckObserver, Disposable {
  readonly keepBytes = BODY_BYTES;
  readonly #site: Site;
  readonly #start = performance.now();
  readonly #inspect: NonNullable<TraceSiteOptions["inspect"]>;
  readonly #fetch: Fetch;
  readonly #hops: Mutable<TracedHop>[] = [];
  /** Looks by origin, each to be shown with the first request there. */
  readonly #looks = new Map<string, Promise<TracedConnection | null>>();
  readonly #notes: string[] = [];
  /** Values of headers that were sent and may not be shown. */
  readonly #secrets = new Set<string>();
  readonly #ended = new AbortController();
  readonly #signal: AbortSignal;
  #lookOptions: InspectConnectionOptions | undefined;
  #basis: { readonly exchange: Exchange; readonly answers: TextAnswers } | undefined;

  constructor(
    site: Site,
    { signal, inspect = inspectConnection, fetch = fetchAnswer }: TraceSiteOptions,
  ) {
    this.#site = site;
    this.#inspect = inspect;
    this.#fetch = fetch;
    this.#signal = signal === undefined ? this.#ended.signal : AbortSignal.any([signal, this.#ended.signal]);
  }

  /** Looks at the connection of the first request, as the check wants it. */
  async inspect(url: string, options: InspectConnectionOptions): Promise<Inspection | null> {
    this.#lookOptions = options;
    const startMs = this.#now();
    const looking = this.#inspect(url, options);
    // Its error is the check's, or told of by the inspector.
    this.#looks.set(new URL(url).origin, this.#traced(looking, { url, startMs }).catch(() => null));
    return await looking;
  }

  /** Sends a request of the check, and looks at the connection beside it where it leads to another host. */
  async fetch(url: string, options: FetchOptions): Promise<Answer> {
    const { method = "GET", headers, body } = options;
    const hop = this.#begin(url, {
      method,
      headers: this.#sentHeaders(new Headers(headers)),
      body_bytes: body?.length ?? null,
    });
    this.#lookBeside(url);
    try {
      const response = await this.#fetch(url, options);
      hop.first_byte_ms = this.#now() - hop.start_ms;
      const { status, statusText, headers } = response;
      hop.response = {
        status_code: status,
        status_text: statusText,
        headers: tracedHeaders(headers),
        body_start: null,
      };
      return response;
    } finally {
      hop.elapsed_ms = this.#now() - hop.start_ms;
    }
  }

  judging(exchange: Exchange, answers: TextAnswers): void {
    this.#basis = { exchange, answers };
    const hop = this.#hops.at(-1);
    if (hop === undefined || hop.response === null || exchange.headers === null) return;
    const { firstByteMs, totalMs } = exchange;
    hop.download_ms = totalMs === null || firstByteMs === null ? null : totalMs - firstByteMs;
    hop.elapsed_ms = hop.download_ms === null ? this.#now() - hop.start_ms : hop.first_byte_ms! + hop.download_ms;
  }

  /** A look that could not be made beside a check that could. */
  tellFault(url: string, error: unknown): void {
    this.#notes.push(`the connection to ${new URL(url).host} could not be looked at: ${errorMessage(error)}`);
  }

  /** What there is to tell of the check, whose metric this is. */
  async end(metric: Metric): Promise<Trace> {
    const { name, url, client: { proxy }, expectations, maintenance } = this.#site;
    // Nothing was sent: there was no connection.
    if (this.#hops.length === 0) this.#begin(url, null).elapsed_ms = this.#now();
    const grace = setTimeout(() => this.#ended.abort(new DOMException("Time is up", "TimeoutError")), LOOK_GRACE_MS);
    for (const hop of this.#hops) {
      const { origin } = new URL(hop.url);
      hop.connection = await this.#looks.get(origin) ?? null;
      this.#looks.delete(origin);
    }
    clearTimeout(grace);
    const { exchange, answers } = this.#basis!;
    const last = this.#hops.at(-1)!;
    if (last.response === null && ["dns", "connect", "tls"].includes(metric.failed_phase ?? "")) last.request = null;
    const secrets = secretsOf(this.#site, this.#secrets);
    if (last.response !== null && exchange.body !== null && metric.verdict !== "up") {
      const bodyStart = hideAll(beginningOf(exchange.body), secrets).slice(0, BODY_LENGTH).toWellFormed();
      last.response = { ...last.response, body_start: bodyStart };
    }
    if (proxy !== null) this.#notes.push("behind a proxy, connections are not looked at");
    if (maintenance !== null && isWithin(maintenance, Date.parse(metric.occurred_at))) {
      this.#notes.push(`the site is maintained now: maintenance_checks = ${maintenance.checks}`);
    }
    return hideAll({
      version: 1,
      name,
      proxy: proxy?.url ?? null,
      notes: this.#notes,
      hops: this.#hops.map(roundTimes),
      expectations: reviewExpectations(expectations, { metric, answers, headers: exchange.headers }),
      metric,
    }, secrets);
  }

  /** Gives up what is under way. */
  [Symbol.dispose](): void {
    this.#ended.abort();
  }

  #now(): number {
    return performance.now() - this.#start;
  }

  #begin(url: string, request: TracedRequest | null): Mutable<TracedHop> {
    const hop = {
      url,
      start_ms: request === null ? 0 : this.#now(),
      first_byte_ms: null,
      download_ms: null,
      elapsed_ms: 0,
      request,
      connection: null,
      response: null,
    };
    this.#hops.push(hop);
    return hop;
  }

  #sentHeaders(headers: Headers): TracedHeader[] {
    const { secretHeaders } = this.#site.request;
    const isSecret = (name: string) => isSecretHeader(name) || secretHeaders.includes(name);
    for (const [name, value] of headers) if (isSecret(name)) this.#secrets.add(value);
    return [...headers].map(([name, value]) => ({ name, value: isSecret(name) ? HIDDEN : shownHeader(name, value) }));
  }

  /** Looks at the connection to an origin that was not looked at yet. */
  #lookBeside(url: string): void {
    const { origin } = new URL(url);
    const options = this.#lookOptions;
    if (options === undefined || this.#looks.has(origin)) return;
    const startMs = this.#now();
    const looking = this.#inspect(url, { ...options, signal: this.#signal });
    const traced = this.#traced(looking, { url, startMs }).catch((error) => {
      this.tellFault(url, error);
      return null;
    });
    this.#looks.set(origin, traced);
  }

  async #traced(
    looking: Promise<Inspection | null>,
    { url, startMs }: { url: string; startMs: number },
  ): Promise<TracedConnection | null> {
    const inspection = await looking;
    if (inspection === null) return null;
    const { protocol, port } = new URL(url);
    const { failure } = inspection;
    return {
      addresses: inspection.addresses,
      port: Number(port) || (protocol === "https:" ? 443 : 80),
      attempts: inspection.attempts,
      start_ms: startMs,
      dns_ms: inspection.dnsMs,
      connect_ms: inspection.connectMs,
      tls_ms: inspection.tlsMs,
      elapsed_ms: this.#now() - startMs,
      tls_version: inspection.tlsVersion,
      cipher: inspection.cipher,
      alpn: inspection.alpn,
      certificates: inspection.chain.map(({ subject, issuer, validFrom, expiresAt }) => ({
        subject,
        issuer,
        valid_from: validFrom,
        expires_at: expiresAt,
      })),
      failure: failure && { error: failure.error, phase: failure.phase, message: failure.message },
    };
  }
}

function tracedHeaders(headers: Headers): TracedHeader[] {
  return [...headers].map(([name, value]) => ({ name, value: shownHeader(name, value) }));
}

function beginningOf({ kept, contentType }: NonNullable<Exchange["body"]>): string {
  const start = Buffer.concat(kept.slice(0, BODY_BYTES)).subarray(0, BODY_BYTES);
  return decodeText({ kept: [start], contentType });
}

function roundTimes(hop: TracedHop): TracedHop {
  const { connection } = hop;
  return { ...rounded(hop), connection: connection && rounded(connection) };
}

/** The same with its times in whole microseconds, as those of the metric. */
function rounded<T extends object>(value: T): T {
  return Object.fromEntries(
    Object.entries(value).map(([key, value]) => [key, key.endsWith("_ms") ? round(value) : value]),
  ) as T;
}

/** Characters that are none to look at, and that terminals may act on. */
const UNPRINTABLE_REGEXP = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;

/** The text with escapes in place of all that is not printable, as JSON writes them. */
export function printable(text: string): string {
  return text.replaceAll(
    UNPRINTABLE_REGEXP,
    (character) =>
      Array.from({ length: character.length }, (_, i) => `\\u${character.charCodeAt(i).toString(16).padStart(4, "0")}`)
        .join(""),
  );
}

/** The value as JSON on one line, of printable characters alone. */
export function encodePrintable(value: object): string {
  return printable(JSON.stringify(value));
}
