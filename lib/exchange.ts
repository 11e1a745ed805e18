import { createHash } from "node:crypto";
import type { Site } from "./config.ts";
import type { EncodedText } from "./evaluation.ts";
import { type Failure, RedirectError } from "./failure.ts";
import type { Phase } from "./metric.ts";
import { isBlockedPort } from "./value.ts";

/** Redirects that are followed. */
const MAX_REDIRECTS = 10;
const READ_BYTES = 16 * 1024;
const USER_AGENT = "site_checker";

/** What is sent to a site. */
export interface PreparedRequest {
  /** Address. */
  readonly url: string;
  /** Headers. */
  readonly headers: Readonly<Record<string, string>>;
  /** Client that sends it. */
  readonly client: Deno.HttpClient;
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
export function prepare({ url, authorization }: Site, client: Deno.HttpClient): PreparedRequest {
  const headers = { accept: "*/*", "user-agent": USER_AGENT, ...(authorization !== null && { authorization }) };
  return { url, headers, client };
}

/** Options of {@linkcode exchangeOver}. */
export interface ExchangeOptions {
  /** Ends the exchange. */
  readonly signal: AbortSignal;
  /** Does it. */
  readonly fetch: typeof globalThis.fetch;
  /** When it began, on the clock of `performance.now()`. */
  readonly start: number;
  /** Bytes of the body to keep. */
  readonly keepBytes: number;
}

/** Sends the request, follows redirects and reads the body; never throws. */
export async function exchangeOver(
  request: PreparedRequest,
  { signal, fetch, start, keepBytes }: ExchangeOptions,
): Promise<Exchange> {
  const exchange: Exchange = {
    status: null,
    headers: null,
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
        exchange.headers = response.headers;
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
