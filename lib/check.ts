import { createHash } from "node:crypto";
import { v7 as uuidv7 } from "uuid";
import type { Site } from "./config.ts";
import { errorMessage } from "./error.ts";
import type { CheckError, Json, Metric, Phase } from "./metric.ts";
import { isBlockedPort } from "./value.ts";

/** Options of {@linkcode check}. */
export interface CheckOptions {
  /** When the check was due. */
  readonly scheduledAt: Date;
  /** Ends the check; it rejects with the reason then, since an end of ours says nothing of the site. */
  readonly signal?: AbortSignal;
  /** Client of the exchange, see {@linkcode createCheckClient}. */
  readonly client: Deno.HttpClient;
  /** Does the exchange. */
  readonly fetch?: typeof globalThis.fetch;
}

/** Redirects that are followed. */
const MAX_REDIRECTS = 10;
/** Of a longer body, the pattern sees this much; all of it is read, counted and hashed. */
const MAX_PATTERN_BYTES = 16 * 1024 * 1024;
const USER_AGENT = "site_checker";

/**
 * Client that makes a new connection for each request: a check over a kept one would say nothing of the name, the port
 * or the certificate.
 */
export function createCheckClient(): Deno.HttpClient {
  return Deno.createHttpClient({ poolMaxIdlePerHost: 0 });
}

/**
 * Checks a site once.
 *
 * @returns The metric; a site that is down is a result, not an error.
 * @throws A fault of ours: `Deno.errors.NotCapable` for a missing permission, or the signal's reason.
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
    pattern: site.pattern,
  });
  if (exchange.failure !== null) {
    signal?.throwIfAborted();
    throwIfOurs(exchange.failure);
  }
  return judge(site, exchange, { ...clock, scheduledAt });
}

/** What is sent to a site. */
interface PreparedRequest {
  readonly url: string;
  readonly headers: Headers;
  readonly client: Deno.HttpClient;
}

/** What came of it; `null` for what was not reached. */
interface Exchange {
  status: number | null;
  redirects: number;
  finalUrl: string | null;
  firstByteMs: number | null;
  totalMs: number | null;
  body: Body | null;
  /** What was thrown, and the phase that it was thrown in. */
  failure: Failure | null;
}

interface Body {
  readonly bytes: number;
  readonly sha256: string;
  readonly matches: boolean | null;
}

interface Failure {
  readonly error: unknown;
  readonly phase: Phase;
}

/** A redirect that is not followed. */
class RedirectError extends Error {
  constructor(readonly kind: Extract<CheckError, "redirect_loop" | "redirect_denied">, message: string) {
    super(message);
  }
}

function prepare({ url, authorization }: Site, client: Deno.HttpClient): PreparedRequest {
  const headers = new Headers({ accept: "*/*", "user-agent": USER_AGENT });
  if (authorization !== null) headers.set("authorization", authorization);
  return { url, headers, client };
}

interface ExchangeOptions {
  readonly signal: AbortSignal;
  readonly fetch: typeof globalThis.fetch;
  readonly start: number;
  readonly pattern: RegExp | null;
}

/** Sends the request, follows redirects and reads the body; never throws. */
async function exchangeOver(
  { url, headers, client }: PreparedRequest,
  { signal, fetch, start, pattern }: ExchangeOptions,
): Promise<Exchange> {
  const exchange: Exchange = {
    status: null,
    redirects: 0,
    finalUrl: null,
    firstByteMs: null,
    totalMs: null,
    body: null,
    failure: null,
  };
  let phase: Phase = "first_byte";
  try {
    let target = new URL(url);
    for (;;) {
      phase = "first_byte";
      const response = await fetch(target, { headers, client, signal, redirect: "manual" });
      exchange.status = response.status;
      exchange.firstByteMs = performance.now() - start;
      phase = "download";
      const location = isRedirect(response.status) ? response.headers.get("location") : null;
      if (location === null) {
        exchange.body = await readBody(response, pattern);
        exchange.totalMs = performance.now() - start;
        return exchange;
      }
      await response.body?.cancel();
      const next = nextTarget(location, target, exchange.redirects);
      // As browsers do: credentials are the first host's alone (Fetch standard, "HTTP-redirect fetch").
      if (next.origin !== target.origin) headers.delete("authorization");
      target = next;
      exchange.redirects++;
      exchange.finalUrl = target.href;
    }
  } catch (error) {
    exchange.failure = { error, phase };
    return exchange;
  }
}

function isRedirect(status: number): boolean {
  return status === 301 || status === 302 || status === 303 || status === 307 || status === 308;
}

function nextTarget(location: string, target: URL, redirects: number): URL {
  if (redirects >= MAX_REDIRECTS) {
    throw new RedirectError("redirect_loop", `expected at most ${MAX_REDIRECTS} redirects, got another`);
  }
  if (!URL.canParse(location, target)) {
    throw new RedirectError("redirect_denied", `expected a URL to be redirected to, got '${location.slice(0, 200)}'`);
  }
  const next = new URL(location, target);
  if (next.protocol !== "http:" && next.protocol !== "https:" || isBlockedPort(Number(next.port))) {
    throw new RedirectError(
      "redirect_denied",
      `expected a redirect to http(s) on a port that fetch allows, got ${next.origin}`,
    );
  }
  next.username = "";
  next.password = "";
  return next;
}

/** Reads a body to its end; keeps of it what the pattern may see. */
async function readBody(response: Response, pattern: RegExp | null): Promise<Body> {
  const hash = createHash("sha256");
  const kept: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.body ?? []) {
    hash.update(chunk);
    if (pattern !== null && bytes < MAX_PATTERN_BYTES) kept.push(chunk.subarray(0, MAX_PATTERN_BYTES - bytes));
    bytes += chunk.length;
  }
  const matches = pattern === null ? null : pattern.test(decodeText(kept, response.headers.get("content-type")));
  return { bytes, sha256: hash.digest("hex"), matches };
}

/** Text in the encoding that the content type names, UTF-8 where it names none that is known. */
function decodeText(chunks: readonly Uint8Array[], contentType: string | null): string {
  const label = /charset\s*=\s*"?(?<label>[^\s;"]+)/i.exec(contentType ?? "")?.groups?.["label"] ?? "utf-8";
  let decoder: TextDecoder;
  try {
    decoder = new TextDecoder(label);
  } catch {
    decoder = new TextDecoder();
  }
  return chunks.map((chunk) => decoder.decode(chunk, { stream: true })).join("") + decoder.decode();
}

/** Turns what came into the metric. */
function judge(
  site: Site,
  exchange: Exchange,
  { occurredAt, start, scheduledAt }: { occurredAt: Date; start: number; scheduledAt: Date },
): Metric {
  const { status, firstByteMs, totalMs, body, failure } = exchange;
  const failed: { expectation: CheckError; expected: Json; actual: Json; message: string }[] = [];
  if (failure === null) {
    if (status !== null && (status < 200 || status > 399)) {
      failed.push({ expectation: "status", expected: "200-399", actual: status, message: `status ${status}` });
    }
    if (body?.matches === false) {
      failed.push({ expectation: "regex", expected: site.regex, actual: null, message: "no match for the pattern" });
    }
  }
  const described = failure === null ? null : describeFailure(failure, site);
  const [first] = failed;
  const error = described?.error ?? first?.expectation ?? null;
  return {
    id: uuidv7({ msecs: occurredAt.getTime() }),
    occurred_at: occurredAt.toISOString(),
    scheduled_at: scheduledAt.toISOString(),
    name: site.name,
    url: site.url,
    method: "GET",
    location: null,
    producer: null,
    verdict: error === null ? "up" : "down",
    error,
    failed_phase: described?.phase ?? (first === undefined ? null : "expectation"),
    error_message: described?.message ?? (first === undefined ? null : failed.map(({ message }) => message).join("; ")),
    attempt: 1,
    final: true,
    status_code: status,
    response_time: round(totalMs),
    elapsed_ms: round(performance.now() - start),
    first_byte_ms: round(firstByteMs),
    download_ms: totalMs === null || firstByteMs === null ? null : round(totalMs - firstByteMs),
    regex: site.regex,
    has_regex: body?.matches ?? null,
    ip: null,
    dns_ms: null,
    connect_ms: null,
    tls_ms: null,
    tls_version: null,
    cert_subject: null,
    cert_issuer: null,
    cert_expires_at: null,
    redirects: status === null ? null : exchange.redirects,
    final_url: exchange.finalUrl,
    body_bytes: body?.bytes ?? null,
    body_sha256: body?.sha256 ?? null,
    failed: failed.length === 0
      ? null
      : failed.map(({ expectation, expected, actual }) => ({ expectation, expected, actual })),
    tags: null,
    excerpt: null,
  };
}

function round(ms: number | null): number | null {
  return ms === null ? null : Math.round(ms * 1000) / 1000;
}

/**
 * Failures of fetch by a part of their text, first match first: Deno gives no codes. A test pins each against a real
 * server.
 */
const FAILURES: readonly { text: RegExp; error: CheckError; phase?: Phase }[] = [
  {
    text: /dns error:.*(?:Name or service not known|No address associated|nodename nor servname|not found)/i,
    error: "dns_not_found",
    phase: "dns",
  },
  { text: /dns error:/, error: "dns_other", phase: "dns" },
  { text: /Connection refused/, error: "refused", phase: "connect" },
  { text: /(?:Network|Host|No route to host).*(?:unreachable|os error 113)/i, error: "unreachable", phase: "connect" },
  { text: /certificate expired/, error: "tls_expired", phase: "tls" },
  { text: /certificate not valid yet/, error: "tls_not_yet_valid", phase: "tls" },
  { text: /certificate not valid for name|NotValidForName/, error: "tls_name", phase: "tls" },
  { text: /invalid peer certificate: (?:UnknownIssuer|Other|BadSignature)/, error: "tls_untrusted", phase: "tls" },
  {
    text: /invalid peer certificate|corrupt message|fatal alert|HandshakeFailure|peer is incompatible/i,
    error: "tls_other",
    phase: "tls",
  },
  { text: /Connection reset|connection closed before message completed|unexpected eof|Broken pipe/i, error: "reset" },
  {
    text:
      /invalid HTTP|invalid content-length|message head is too large|error reading a body|unexpected end of file|reached unexpected EOF|http2 error|client error \(SendRequest\)/i,
    error: "protocol",
  },
];

function describeFailure(
  { error, phase }: Failure,
  { timeoutMs }: Site,
): { error: CheckError; phase: Phase; message: string } {
  if (error instanceof RedirectError) return { error: error.kind, phase: "first_byte", message: error.message };
  if (error instanceof DOMException && error.name === "TimeoutError") {
    return { error: "timeout", phase, message: `no complete response within ${timeoutMs} ms` };
  }
  const message = plainMessage(error);
  const known = FAILURES.find(({ text }) => text.test(message));
  return { error: known?.error ?? "protocol", phase: known?.phase ?? phase, message };
}

/** The failure's text without what differs from check to check or stands in other columns: ports, the address. */
function plainMessage(error: unknown): string {
  return errorMessage(error)
    .replace(/^fetch failed: /i, "")
    .replace(/error sending request (?:from \S+ )?for url? ?\S+(?: \(\S+\))?: /i, "")
    .replace(/error sending request from \S+ for \S+(?: \(\S+\))?: /i, "")
    .replaceAll("\0", "\ufffd")
    .slice(0, 500);
}

/**
 * A missing permission is the operator's fault, in each of its disguises: it is a `NotCapable`, or stands in the cause of
 * a failed fetch when the name resolved to an address that is denied.
 */
function throwIfOurs({ error }: Failure): void {
  if (error instanceof Deno.errors.NotCapable) throw error;
  if (error instanceof TypeError && /Requires \w+ access to/.test(errorMessage(error))) {
    throw new Deno.errors.NotCapable(errorMessage(error));
  }
  if (/Too many open files|os error 24/.test(errorMessage(error))) throw error;
}
