import { createHash, hash } from "node:crypto";
import type { Limits, Site } from "./site.ts";
import type { ClientSettings } from "./client.ts";
import type { EncodedText } from "./evaluation.ts";
import type { Answer, Fetch } from "./fetch.ts";
import { hideUserInfo } from "./secret.ts";
import { type Failure, LimitError, RedirectError } from "./failure.ts";
import type { Phase } from "./metric.ts";
import { Timer } from "./timer.ts";
import { isBlockedPort } from "./value.ts";

/** A body of no more is read at once, which costs less than by its stream. */
const WHOLE_BYTES = 256 * 1024;
/** Headers that tell no host what is meant for another. */
const COMMON_HEADERS: readonly string[] = ["accept", "accept-encoding", "accept-language", "user-agent"];

type HeaderRecord = Readonly<Record<string, string>>;

/** What is sent to a site. */
export interface PreparedRequest {
  /** Address. */
  readonly url: string;
  /** Method. */
  readonly method: string;
  /** Headers, the names in lower case. */
  readonly headers: Readonly<Record<string, string>>;
  /** Body, if it has one. */
  readonly body: Uint8Array<ArrayBuffer> | null;
  /** Client that sends it. */
  readonly client: Deno.HttpClient;
  /** How the site is connected to. */
  readonly settings: ClientSettings;
  /** What is not waited for, read or followed. */
  readonly limits: Limits;
}

/** What came of it; `null` for what was not reached. */
export interface Exchange {
  /** Status of the last response. */
  status: number | null;
  /** Headers of the last response; null also where that is a redirect that was followed or refused. */
  headers: Headers | null;
  /** Redirects that were followed. */
  redirects: number;
  /** Address that they led to. */
  finalUrl: string | null;
  /** Time from the start to the last response's head, in ms. */
  firstByteMs: number | null;
  /** Time from the start to the end of the body, in ms. */
  totalMs: number | null;
  /** The last response's body. */
  body: Body | null;
  /** What was thrown, and the phase that it was thrown in. */
  failure: Failure | null;
}

/** A body that was read to its end; its beginning is kept, as far as it was to be. */
export interface Body extends EncodedText {
  /** Its length, in bytes. */
  readonly bytes: number;
  /** Its SHA-256, in hex. */
  readonly sha256: string;
}

/** What is to be sent to a site. */
export function prepare({ url, request, client: settings, limits }: Site, client: Deno.HttpClient): PreparedRequest {
  const { method, headers, body, authorization } = request;
  return {
    url,
    method,
    headers: authorization === null ? headers : { ...headers, authorization },
    body,
    client,
    settings,
    limits,
  };
}

/** Options of {@linkcode exchangeOver}. */
export interface ExchangeOptions {
  /** Ends the exchange. */
  readonly signal: AbortSignal;
  /** Does it. */
  readonly fetch: Fetch;
  /** Bytes of the body to keep. */
  readonly keepBytes: number;
}

/** An exchange of which nothing came. */
export function failedExchange(failure: Failure | null): Exchange {
  return {
    status: null,
    headers: null,
    redirects: 0,
    finalUrl: null,
    firstByteMs: null,
    totalMs: null,
    body: null,
    failure,
  };
}

/** Sends the request, follows redirects and reads the body; never throws. */
export async function exchangeOver(
  request: PreparedRequest,
  { signal, fetch, keepBytes }: ExchangeOptions,
): Promise<Exchange> {
  const start = performance.now();
  const exchange = failedExchange(null);
  const { limits } = request;
  let phase: Phase = "first_byte";
  const head = limitHead(limits, signal);
  try {
    for (let hop = request;;) {
      phase = "first_byte";
      const response = await fetch(hop.url, { ...hop, signal: head?.signal ?? signal });
      exchange.status = response.status;
      exchange.firstByteMs = performance.now() - start;
      phase = "download";
      const follow = limits.maxRedirects > 0 && isRedirect(response.status);
      const location = follow ? response.headers.get("location") : null;
      if (location === null) {
        head?.clear();
        exchange.headers = response.headers;
        const body = isToldShort(response, limits.readBytes)
          ? await response.bytes()
          : await readParts(response, { keepBytes, maxBytes: limits.readBytes });
        exchange.totalMs = performance.now() - start;
        exchange.body = body instanceof Uint8Array ? wholeBody(response, { body, keepBytes }) : body;
        return exchange;
      }
      await response.cancel();
      hop = redirected(hop, { status: response.status, location, redirects: exchange.redirects });
      exchange.redirects++;
      exchange.finalUrl = hop.url;
    }
  } catch (error) {
    exchange.failure = { error, phase };
    return exchange;
  } finally {
    head?.clear();
  }
}

interface Redirect {
  readonly status: number;
  readonly location: string;
  /** Those before it. */
  readonly redirects: number;
}

/** What is to be sent after a redirect. */
function redirected(request: PreparedRequest, { status, location, redirects }: Redirect): PreparedRequest {
  const { url, method, limits: { maxRedirects } } = request;
  const from = new URL(url);
  const to = nextTarget(location, from, { redirects, maxRedirects });
  const isGet = becomesGet(status, method);
  const headers = isGet ? filterHeaders(request.headers, (name) => !name.startsWith("content-")) : request.headers;
  return {
    ...request,
    url: to.href,
    headers: headersBehind(headers, from, to),
    ...(isGet && { method: "GET", body: null }),
  };
}

/** Signal that is aborted, too, when the head of the response takes too long; null where that has no limit. */
function limitHead(
  { firstByteTimeoutMs }: Limits,
  signal: AbortSignal,
): { readonly signal: AbortSignal; readonly clear: () => void } | null {
  if (firstByteTimeoutMs === null) return null;
  const controller = new AbortController();
  const end = () =>
    controller.abort(new LimitError("first_byte_timeout", `no head of a response within ${firstByteTimeoutMs} ms`));
  const timer = new Timer(firstByteTimeoutMs, end);
  return { signal: AbortSignal.any([signal, controller.signal]), clear: () => timer[Symbol.dispose]() };
}

/** Whether a redirect makes a GET of a request (Fetch standard, "HTTP-redirect fetch"). */
function becomesGet(status: number, method: string): boolean {
  return status === 303 ? method !== "HEAD" : method === "POST" && (status === 301 || status === 302);
}

/**
 * Headers for the place that a redirect leads to. As browsers do, credentials are the first origin's alone (Fetch
 * standard, "HTTP-redirect fetch"); what the settings add may be secret too, and does not go to another host.
 */
function headersBehind(headers: HeaderRecord, from: URL, to: URL): HeaderRecord {
  if (to.origin === from.origin) return headers;
  const away = to.hostname !== from.hostname || to.protocol === "http:" && from.protocol === "https:";
  return filterHeaders(
    headers,
    (name) => away ? COMMON_HEADERS.includes(name) : name !== "authorization" && name !== "host",
  );
}

function filterHeaders(headers: HeaderRecord, keep: (name: string) => boolean): HeaderRecord {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => keep(name)));
}

function isRedirect(status: number): boolean {
  return status === 301 || status === 302 || status === 303 || status === 307 || status === 308;
}

function nextTarget(
  location: string,
  target: URL,
  { redirects, maxRedirects }: { redirects: number; maxRedirects: number },
): URL {
  if (redirects >= maxRedirects) {
    throw new RedirectError("redirect_loop", `expected at most ${maxRedirects} redirects, got another`);
  }
  if (!URL.canParse(location, target)) {
    const got = hideUserInfo(location).slice(0, 200);
    throw new RedirectError("redirect_denied", `expected a URL to be redirected to, got '${got}'`);
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

/**
 * Whether the body may be read at once: the length of one that is not decoded is what its head says, or it is an error,
 * so that it needs no bounds.
 */
function isToldShort({ headers }: Answer, maxBytes: number): boolean {
  return Number(headers.get("content-length") ?? NaN) <= Math.min(WHOLE_BYTES, maxBytes) &&
    !headers.has("content-encoding") && !headers.has("transfer-encoding");
}

function wholeBody({ headers }: Answer, { body, keepBytes }: { body: Uint8Array; keepBytes: number }): Body {
  return {
    bytes: body.length,
    // A copy: what is handed to another thread takes the whole memory of a view with it.
    kept: keepBytes > 0 ? [body.slice(0, keepBytes)] : [],
    sha256: hash("sha256", body),
    contentType: headers.get("content-type"),
  };
}

interface ReadOptions {
  readonly keepBytes: number;
  readonly maxBytes: number;
}

/** Reads a body piece by piece, as long as it may be. */
async function readParts(answer: Answer, { keepBytes, maxBytes }: ReadOptions): Promise<Body> {
  const sum = createHash("sha256");
  const kept: Uint8Array[] = [];
  let bytes = 0;
  for await (const piece of answer.pieces()) {
    sum.update(piece);
    if (bytes < keepBytes) kept.push(piece.slice(0, keepBytes - bytes));
    bytes += piece.length;
    if (bytes > maxBytes) {
      throw new LimitError("body_too_large", `expected a body of at most ${maxBytes} bytes, got more`);
    }
  }
  return { bytes, kept, sha256: sum.digest("hex"), contentType: answer.headers.get("content-type") };
}
