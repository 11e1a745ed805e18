import { createHash } from "node:crypto";
import { v7 as uuidv7 } from "uuid";
import type { Site } from "./config.ts";
import { errorMessage } from "./error.ts";
import { type CheckError, isoTime, type Json, type Metric, type Phase } from "./metric.ts";
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
const READ_BYTES = 16 * 1024;
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
    keepBytes: site.pattern === null ? 0 : MAX_PATTERN_BYTES,
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
  readonly headers: Readonly<Record<string, string>>;
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
  /** Its beginning, as far as it was to be kept. */
  readonly kept: readonly Uint8Array[];
  readonly contentType: string | null;
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
  const headers = { accept: "*/*", "user-agent": USER_AGENT, ...(authorization !== null && { authorization }) };
  return { url, headers, client };
}

interface ExchangeOptions {
  readonly signal: AbortSignal;
  readonly fetch: typeof globalThis.fetch;
  readonly start: number;
  /** Bytes of the body to keep. */
  readonly keepBytes: number;
}

/** Sends the request, follows redirects and reads the body; never throws. */
async function exchangeOver(
  request: PreparedRequest,
  { signal, fetch, start, keepBytes }: ExchangeOptions,
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
    let { headers } = request;
    let target = new URL(request.url);
    for (;;) {
      phase = "first_byte";
      const response = await fetch(target, { headers, client: request.client, signal, redirect: "manual" });
      exchange.status = response.status;
      exchange.firstByteMs = performance.now() - start;
      phase = "download";
      const location = isRedirect(response.status) ? response.headers.get("location") : null;
      if (location === null) {
        exchange.body = await readBody(response, keepBytes);
        exchange.totalMs = performance.now() - start;
        return exchange;
      }
      await response.body?.cancel();
      const next = nextTarget(location, target, exchange.redirects);
      // As browsers do: credentials are the first host's alone (Fetch standard, "HTTP-redirect fetch").
      if (next.origin !== target.origin) headers = withoutAuthorization(headers);
      target = next;
      exchange.redirects++;
      exchange.finalUrl = target.href;
    }
  } catch (error) {
    exchange.failure = { error, phase };
    return exchange;
  }
}

function withoutAuthorization(
  { authorization: _, ...headers }: Readonly<Record<string, string>>,
): Record<string, string> {
  return headers;
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
  next.username = "";
  next.password = "";
  if (next.protocol !== "http:" && next.protocol !== "https:" || isBlockedPort(Number(next.port))) {
    throw new RedirectError(
      "redirect_denied",
      `expected a redirect to http(s) on a port that fetch allows, got '${next.href.slice(0, 200)}'`,
    );
  }
  return next;
}

/** Reads a body to its end; what is done with it comes later, so that it is no part of the response time. */
async function readBody({ body, headers }: Response, keepBytes: number): Promise<Body> {
  const hash = createHash("sha256");
  const kept: Uint8Array[] = [];
  let bytes = 0;
  // One buffer for all reads: one for each, as `for await` takes, costs nearly as much as the rest of a check.
  const reader = body?.getReader({ mode: "byob" });
  for (let buffer = new Uint8Array(READ_BYTES); reader !== undefined;) {
    const { done, value: chunk } = await reader.read(buffer);
    if (done) break;
    hash.update(chunk);
    if (bytes < keepBytes) kept.push(chunk.slice(0, keepBytes - bytes));
    bytes += chunk.length;
    buffer = new Uint8Array(chunk.buffer);
  }
  return { bytes, sha256: hash.digest("hex"), kept, contentType: headers.get("content-type") };
}

/** Text in the encoding that the content type names, UTF-8 where it names none that is known. */
function decodeText({ kept, contentType }: Body): string {
  const label = /charset\s*=\s*"?(?<label>[^\s;"]+)/i.exec(contentType ?? "")?.groups?.["label"] ?? "utf-8";
  let decoder: TextDecoder;
  try {
    decoder = new TextDecoder(label);
  } catch {
    decoder = new TextDecoder();
  }
  return kept.map((chunk) => decoder.decode(chunk, { stream: true })).join("") + decoder.decode();
}

/** Turns what came into the metric. */
function judge(
  site: Site,
  exchange: Exchange,
  { occurredAt, start, scheduledAt }: { occurredAt: Date; start: number; scheduledAt: Date },
): Metric {
  const { status, body, failure } = exchange;
  const firstByteMs = round(exchange.firstByteMs);
  const totalMs = round(exchange.totalMs);
  const matches = body === null || site.pattern === null ? null : site.pattern.test(decodeText(body));
  const failed: { expectation: CheckError; expected: Json; actual: Json; message: string }[] = [];
  if (failure === null) {
    if (status !== null && (status < 200 || status > 399)) {
      failed.push({
        expectation: "status",
        expected: "200-399",
        actual: status,
        message: `expected status 200-399, got ${status}`,
      });
    }
    if (matches === false) {
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
    response_time: totalMs,
    elapsed_ms: round(performance.now() - start),
    first_byte_ms: firstByteMs,
    download_ms: totalMs === null || firstByteMs === null ? null : round(totalMs - firstByteMs),
    regex: site.regex,
    has_regex: matches,
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
 * Failures of fetch by a part of their text, first match first, since Deno gives no codes; all others are `protocol`. A
 * test pins each against a real server.
 */
const FAILURES: readonly { text: RegExp; error: CheckError; phase?: Phase }[] = [
  {
    text:
      /dns error:.*(?:Name or service not known|Name does not resolve|No address associated|nodename nor servname|No such host is known)/,
    error: "dns_not_found",
    phase: "dns",
  },
  { text: /dns error:/, error: "dns_other", phase: "dns" },
  { text: /Connection refused/, error: "refused", phase: "connect" },
  { text: /tcp connect error: Connection reset/, error: "reset", phase: "connect" },
  { text: /tcp connect error:.*timed out/, error: "connect_timeout", phase: "connect" },
  { text: /tcp connect error:/, error: "unreachable", phase: "connect" },
  { text: /certificate expired/, error: "tls_expired", phase: "tls" },
  { text: /certificate not valid yet/, error: "tls_not_yet_valid", phase: "tls" },
  { text: /certificate not valid for name|NotValidForName/, error: "tls_name", phase: "tls" },
  { text: /invalid peer certificate: (?:UnknownIssuer|Other|BadSignature)/, error: "tls_untrusted", phase: "tls" },
  { text: /client error \(Connect\): Connection reset/, error: "reset", phase: "tls" },
  {
    text: /invalid peer certificate|tls handshake|corrupt message|fatal alert|peer is incompatible|peer misbehaved/,
    error: "tls_other",
    phase: "tls",
  },
  { text: /Connection reset|connection closed before message|closed connection without|Broken pipe/, error: "reset" },
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
  return {
    error: known?.error ?? "protocol",
    phase: known?.phase ?? phase,
    message: message.replaceAll(NOISE_REGEXP, ""),
  };
}

/** What tells the classes apart, but says nothing to people. */
const NOISE_REGEXP = /client error \(\w+\): |invalid peer certificate: (?=certificate)| \(os error \d+\)/g;

/** The failure's text without what differs from check to check or stands in other columns: ports, the address, the time. */
function plainMessage(error: unknown): string {
  return errorMessage(error)
    .replace(/^fetch failed: /i, "")
    .replace(/error sending request (?:for url \(\S*\)|from \S+ for \S+(?: \(\S+\))?): /, "")
    .replace(/: verification time \d+ \(UNIX\), but certificate is (not valid \w+) (\d+) \(.*\)$/, certificateTime)
    .replace(/: https:\/\/docs\.rs\/\S+$/, "")
    .replaceAll("\0", "\ufffd")
    .slice(0, 500);
}

function certificateTime(_: string, bound: string, seconds: string): string {
  return `: ${bound} ${isoTime(Number(seconds) * 1000)}`;
}

/** Failures of this machine, by a part of their text: permissions of the system, files, ports and memory that ran out. */
const OURS_REGEXP = /tcp (?!connect error)[\w ]+ error:|\(os error (?:1|12|13|23|24|99|105)\)/;

/**
 * A missing permission is the operator's fault, in each of its disguises: it is a `NotCapable`, or stands in the cause of
 * a failed fetch when the name resolved to an address that is denied.
 */
function throwIfOurs({ error }: Failure): void {
  if (error instanceof Deno.errors.NotCapable) throw error;
  const message = errorMessage(error);
  const permission = /Requires \w+ access to .*/.exec(message);
  if (permission !== null) throw new Deno.errors.NotCapable(permission[0], { cause: error });
  if (OURS_REGEXP.test(message)) throw error;
}
