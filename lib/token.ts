import {
  allowInsecureRequests,
  type ClientAuth,
  clientCredentialsGrantRequest,
  ClientSecretPost,
  customFetch,
  OperationProcessingError,
  processClientCredentialsResponse,
  UnsupportedOperationError,
} from "oauth4webapi";
import { Clients, type ClientSettings } from "./client.ts";
import { FaultError } from "./error.ts";
import type { Exchange } from "./exchange.ts";
import { describeFailure, type Failure, isTimeout, throwIfOurs } from "./failure.ts";
import { basicAuthorization, type OauthSettings } from "./request.ts";
import type { Site } from "./site.ts";
import { formatBytes, formatDuration, includesStatus } from "./value.ts";

/** A request for a token may take this long, also when those who wait for it give up: the next ones find it then. */
const REQUEST_TIMEOUT_MS = 30_000;
/** Of an answer, so much is read; tokens are a few KiB. */
const MAX_ANSWER_BYTES = 1024 * 1024;
const MAX_DESCRIPTION_LENGTH = 300;
/** From this share of its life on, or this long before its end, a token is renewed while it is still used. */
const RENEWAL = { share: 0.25, ms: 60_000 } as const;
/** So long before its end it is used no more: it has a way to go, and clocks differ. */
const SAFETY = { share: 0.1, ms: 10_000 } as const;
/** Life of a token that does not say how long it lives. */
const DEFAULT_LIFE_MS = 60 * 60_000;
/** After a request that failed, others fail alike for so long, twice as long each time: that server has its limits. */
const PAUSE_MS = { first: 1_000, longest: 60_000 } as const;
/** A site to which a new token is no better than the one before is not asked with another for so long. */
const IN_VAIN_MS = 5 * 60_000;
/** A site that had less of its time than this, since the token took the rest, can't be called late. */
const FAIR_SHARE = 0.9;
/** RFC 6749, A.12 "access-token"; spaces at its ends would be lost in a header. */
const ACCESS_TOKEN_REGEXP = /^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$/;
/** RFC 6749, A.7 "error". */
const ERROR_CODE_REGEXP = /^[\x20-\x21\x23-\x5b\x5d-\x7e]{1,100}$/;

/** Options of {@linkcode Tokens}. */
export interface TokensOptions {
  /** Clock, in ms. */
  readonly now?: () => number;
}

/**
 * Tokens by which sites let checks in (OAuth 2.0, client credentials grant). They are kept in memory alone; sites with
 * the same settings share one, and checks that need it at the same time wait for the same request.
 */
export class Tokens implements Disposable {
  readonly #clients = new Clients();
  readonly #now: () => number;
  readonly #ended = new AbortController();
  readonly #holders = new Map<string, Holder>();
  readonly #keys = new WeakMap<Site, string>();

  /** With none. */
  constructor({ now = () => performance.now() }: TokensOptions = {}) {
    this.#now = now;
  }

  /**
   * What lets one check of a site in; null where the site asks for no token.
   *
   * @param signal Ends the check.
   * @throws A fault of ours: a {@linkcode FaultError} where no token is to be had, or the signal's reason.
   */
  async grant(site: Site, signal: AbortSignal): Promise<Grant | null> {
    if (site.request.oauth === null) return null;
    const grant = new Grant(site, { holder: this.#holderOf(site, site.request.oauth), signal });
    await grant.begin();
    return grant;
  }

  /** Forgets those that are for other sites, as after a reload; requests that are under way go on. */
  retain(sites: Iterable<Site>): void {
    const kept = new Set<string>();
    for (const site of sites) if (site.request.oauth !== null) kept.add(this.#keyOf(site, site.request.oauth));
    for (const key of this.#holders.keys()) if (!kept.has(key)) this.#holders.delete(key);
    this.#clients.retain([...this.#holders.values()].map(({ client }) => client));
  }

  /** Forgets them, and ends requests that are under way. */
  [Symbol.dispose](): void {
    this.#ended.abort();
    this.retain([]);
  }

  #holderOf(site: Site, oauth: OauthSettings): Holder {
    const key = this.#keyOf(site, oauth);
    const known = this.#holders.get(key);
    if (known !== undefined) return known;
    const client = clientOf(site);
    const holder = new Holder({
      oauth,
      client,
      userAgent: userAgentOf(site),
      now: this.#now,
      ended: this.#ended.signal,
      fetch: (url, init) => fetch(url, { ...init, client: this.#clients.get(client) }),
    });
    this.#holders.set(key, holder);
    return holder;
  }

  #keyOf(site: Site, oauth: OauthSettings): string {
    const known = this.#keys.get(site);
    if (known !== undefined) return known;
    const key = JSON.stringify([oauth, clientOf(site), userAgentOf(site)]);
    this.#keys.set(site, key);
    return key;
  }
}

/** The server of tokens is reached as the site is; whether HTTP/2 is spoken to that, or connections kept, is its own. */
function clientOf({ client }: Site): ClientSettings {
  return { ...client, http2: "auto", reuseConnection: false };
}

function userAgentOf({ request }: Site): string {
  return request.headers["user-agent"] ?? "";
}

/** What lets one check in. */
export class Grant {
  readonly #site: Site;
  readonly #holder: Holder;
  readonly #signal: AbortSignal;
  #token = "";
  #isRenewed = false;
  #waitedMs = 0;

  /** For a check of the site. */
  constructor(site: Site, { holder, signal }: GrantOptions) {
    this.#site = site;
    this.#holder = holder;
    this.#signal = signal;
  }

  /** Gets a token. */
  async begin(): Promise<void> {
    this.#token = await this.#wait(this.#holder.get());
  }

  /** The site, with what lets the next request in. */
  get site(): Site {
    return { ...this.#site, request: { ...this.#site.request, authorization: `Bearer ${this.#token}` } };
  }

  /**
   * Whether the request is to be sent again, with a token that this gets: once, where the site does not take the one
   * before.
   *
   * @throws As {@linkcode Tokens.grant}.
   */
  async mustRepeat({ status, finalUrl, failure }: Exchange): Promise<boolean> {
    const isRefused = status === 401 && failure === null && !includesStatus(this.#site.expectations.status, 401) &&
      this.#wasSentTo(finalUrl);
    if (!isRefused) return false;
    if (this.#isRenewed) this.#holder.pauseRenewal(this.#site);
    if (this.#isRenewed || this.#holder.isRenewalPaused(this.#site)) return false;
    this.#token = await this.#wait(this.#holder.renew(this.#token));
    return this.#isRenewed = true;
  }

  /** Throws where a site could not answer in time since the token took much of it. */
  throwIfLate({ error }: Failure): void {
    const { timeoutMs } = this.#site;
    const leftMs = timeoutMs - this.#waitedMs;
    if (!isTimeout(error) || leftMs >= timeoutMs * FAIR_SHARE) return;
    const [waited, timeout] = [Math.round(this.#waitedMs), timeoutMs].map(formatDuration);
    throw new FaultError(
      "token",
      `Cannot wait for the site: the token from ${this.#holder.place} took ${waited} of the timeout, which is ${timeout}`,
    );
  }

  /** Behind a redirect to another origin no token was sent. */
  #wasSentTo(finalUrl: string | null): boolean {
    return finalUrl === null || new URL(finalUrl).origin === new URL(this.#site.url).origin;
  }

  async #wait(token: Promise<string>): Promise<string> {
    const start = performance.now();
    const { promise, reject } = Promise.withResolvers<never>();
    const onAbort = () => reject(this.#signal.reason);
    this.#signal.addEventListener("abort", onAbort);
    if (this.#signal.aborted) onAbort();
    try {
      return await Promise.race([token, promise]);
    } catch (error) {
      if (!this.#signal.aborted || !isTimeout(error)) throw error;
      throw this.#holder.fault(`no answer within the timeout, which is ${formatDuration(this.#site.timeoutMs)}`);
    } finally {
      this.#signal.removeEventListener("abort", onAbort);
      this.#waitedMs += performance.now() - start;
    }
  }
}

interface GrantOptions {
  readonly holder: Holder;
  readonly signal: AbortSignal;
}

interface HolderOptions {
  readonly oauth: OauthSettings;
  readonly client: ClientSettings;
  readonly userAgent: string;
  readonly now: () => number;
  /** Ends a request. */
  readonly ended: AbortSignal;
  readonly fetch: (url: string, init: RequestInit) => Promise<Response>;
}

interface Token {
  readonly text: string;
  /** When it is renewed, and when it is used no more. */
  readonly renewAt: number;
  readonly deadAt: number;
}

/** One token, and how to get it. */
class Holder {
  readonly client: ClientSettings;
  readonly #options: HolderOptions;
  #token: Token | null = null;
  #request: Promise<string> | null = null;
  readonly #renewAgainAt = new WeakMap<Site, number>();
  /** What the last request failed of; until `until`, the next ones do, too. */
  #failure: { readonly error: unknown; readonly until: number; readonly pauseMs: number } | null = null;

  constructor(options: HolderOptions) {
    this.client = options.client;
    this.#options = options;
  }

  /** The token, or one that is to come. */
  get(): Promise<string> {
    const now = this.#options.now();
    const { text, renewAt, deadAt } = this.#token ?? { text: "", renewAt: 0, deadAt: 0 };
    if (this.#token !== null && now < renewAt) return Promise.resolve(text);
    const next = this.#ask();
    if (this.#token === null || now >= deadAt) return next;
    // The next one can wait for a server that is away for a while.
    next.catch(() => {});
    return Promise.resolve(text);
  }

  /** Another token than one that is not taken. */
  renew(refused: string): Promise<string> {
    if (this.#token?.text === refused) this.#token = null;
    return this.get();
  }

  /** Asks no further token for a site that does not take a new one either, for a while. */
  pauseRenewal(site: Site): void {
    this.#renewAgainAt.set(site, this.#options.now() + IN_VAIN_MS);
  }

  isRenewalPaused(site: Site): boolean {
    return this.#options.now() < (this.#renewAgainAt.get(site) ?? -Infinity);
  }

  /** Where tokens come from, without what may be secret in it. */
  get place(): string {
    const { origin, pathname } = new URL(this.#options.oauth.tokenUrl);
    return origin + pathname;
  }

  /** That no token is to be had, for a reason. */
  fault(reason: string): FaultError {
    return new FaultError("token", `Cannot get a token from ${this.place}: ${reason}`);
  }

  #ask(): Promise<string> {
    if (this.#request !== null) return this.#request;
    const { now } = this.#options;
    if (this.#failure !== null && now() < this.#failure.until) return Promise.reject(this.#failure.error);
    this.#request = this.#requestToken().then((token) => {
      this.#token = token;
      this.#failure = null;
      return token.text;
    }, (error) => {
      const pauseMs = Math.min(PAUSE_MS.longest, this.#failure === null ? PAUSE_MS.first : this.#failure.pauseMs * 2);
      this.#failure = { error, until: now() + pauseMs, pauseMs };
      throw error;
    }).finally(() => {
      this.#request = null;
    });
    // All who wait for it may have given up.
    this.#request.catch(() => {});
    return this.#request;
  }

  async #requestToken(): Promise<Token> {
    const { oauth: { tokenUrl, clientId, clientSecret, auth, parameters }, userAgent, now, ended } = this.#options;
    const server = { issuer: new URL(tokenUrl).origin, token_endpoint: tokenUrl };
    const client = { client_id: clientId };
    const authentication = auth === "basic" ? clientSecretBasic(clientSecret) : ClientSecretPost(clientSecret);
    const start = now();
    try {
      const response = await clientCredentialsGrantRequest(
        server,
        client,
        authentication,
        parameters.map((pair) => [...pair]),
        {
          // Whether it may be http:// is for the settings to say.
          [allowInsecureRequests]: true,
          [customFetch]: (url: string, init: RequestInit) => this.#exchange(url, init),
          headers: { "user-agent": userAgent },
          signal: AbortSignal.any([ended, AbortSignal.timeout(REQUEST_TIMEOUT_MS)]),
        },
      );
      const { access_token: text, token_type: type, expires_in: seconds } = await processClientCredentialsResponse(
        server,
        client,
        response,
      );
      if (type !== "bearer") throw this.fault(`expected a token of the type bearer, got ${type}`);
      if (!ACCESS_TOKEN_REGEXP.test(text)) {
        throw this.fault("expected a token that a header can hold, got one with other characters");
      }
      const lifeMs = seconds === undefined ? DEFAULT_LIFE_MS : seconds * 1000;
      const end = start + lifeMs;
      return {
        text,
        renewAt: end - Math.min(RENEWAL.ms, lifeMs * RENEWAL.share),
        deadAt: end - Math.min(SAFETY.ms, lifeMs * SAFETY.share),
      };
    } catch (error) {
      throw this.#describe(error);
    }
  }

  /** Asks the server, and gives on what there is of a token: nothing else need be as the standard says. */
  async #exchange(url: string, init: RequestInit): Promise<Response> {
    const response = await this.#options.fetch(url, init);
    const text = await readAnswer(response);
    const answer = text === null ? null : parseObject(text);
    // Some servers say what is wrong with status 200.
    const isError = typeof answer?.["error"] === "string" && answer["access_token"] === undefined;
    if (response.status !== 200 || isError) throw this.fault(this.#describeAnswer(response, answer));
    if (answer === null) {
      const type = response.headers.get("content-type") ?? "without a type";
      const got = text === null ? `more than ${formatBytes(MAX_ANSWER_BYTES)}` : `an answer that is none (${type})`;
      throw this.fault(`expected a JSON object, got ${got}`);
    }
    const wanted = ["access_token", "token_type", "expires_in"].filter((name) => (answer[name] ?? null) !== null);
    return Response.json(Object.fromEntries(wanted.map((name) => [name, answer[name]])));
  }

  #describeAnswer({ status }: Response, answer: Readonly<Record<string, unknown>> | null): string {
    const redirect = status >= 300 && status < 400 ? ", and no redirect is followed" : "";
    const got = status === 200 ? "expected a token, got an error" : `expected status 200, got ${status}${redirect}`;
    const code = answer?.["error"];
    if (typeof code !== "string" || !ERROR_CODE_REGEXP.test(code) || this.#holdsSecret(code)) return got;
    const description = answer?.["error_description"];
    if (typeof description !== "string" || this.#holdsSecret(description)) return `${code} (status ${status})`;
    const line = description.replaceAll(/[\p{C}\s]+/gu, " ").trim().slice(0, MAX_DESCRIPTION_LENGTH);
    return `${code} (status ${status}): ${line}`;
  }

  /** Whether what a server says repeats what it was told. */
  #holdsSecret(text: string): boolean {
    const { clientId, clientSecret } = this.#options.oauth;
    const basic = basicAuthorization(formEncode(clientId), formEncode(clientSecret)).slice("Basic ".length);
    return [clientSecret, formEncode(clientSecret), basic].some((form) => text.includes(form));
  }

  /** What is thrown says what is wrong, and nothing of what was sent or came: an error of the library has the token. */
  #describe(error: unknown): unknown {
    if (error instanceof FaultError || this.#options.ended.aborted) return error;
    if (error instanceof OperationProcessingError || error instanceof UnsupportedOperationError) {
      return this.fault(`expected a token, got another answer (${error.message})`);
    }
    const failure = { error, phase: "first_byte" } as const;
    try {
      throwIfOurs(failure, this.client.proxy);
    } catch (ours) {
      return ours;
    }
    return this.fault(describeFailure(failure, { timeoutMs: REQUEST_TIMEOUT_MS }).message);
  }
}

/**
 * Sends id and secret in the header (RFC 6749, 2.3.1). The library's own way escapes `-`, `_` and `.`, too, which is as
 * good to the standard, and lost on the many servers that unescape nothing.
 */
function clientSecretBasic(clientSecret: string): ClientAuth {
  return (_, { client_id: clientId }, __, headers) => {
    headers.set("authorization", basicAuthorization(formEncode(clientId), formEncode(clientSecret)));
  };
}

function formEncode(text: string): string {
  return new URLSearchParams([["", text]]).toString().slice(1);
}

/** Text of an answer, or null where it is too long. */
async function readAnswer({ body }: Response): Promise<string | null> {
  const chunks: Uint8Array<ArrayBuffer>[] = [];
  let bytes = 0;
  for await (const chunk of body ?? []) {
    chunks.push(chunk);
    bytes += chunk.length;
    // Leaving the loop cancels what is left.
    if (bytes > MAX_ANSWER_BYTES) return null;
  }
  return await new Blob(chunks).text();
}

function parseObject(text: string): Readonly<Record<string, unknown>> | null {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}
