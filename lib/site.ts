import { unescape } from "node:querystring";
import { type ClientSettings, readClientSettings } from "./client.ts";
import type { Expectations } from "./expectation.ts";
import { MAINTENANCE_TAG } from "./maintenance.ts";
import { basicAuthorization, readRequest, type RequestSettings } from "./request.ts";
import { HIDDEN } from "./secret.ts";
import { SETTINGS } from "./setting.ts";
import type { SiteSource } from "./site_source.ts";
import { readTiming, type Timing } from "./timing.ts";
import { formatBytes, formatDuration, type StatusRange } from "./value.ts";

/** A site to check. */
export interface Site extends Timing {
  /** Name, which is also the topic's and (nearly always) the table's. */
  readonly name: string;
  /** Address, without user and password. */
  readonly url: string;
  /** Its host, with the port where that is another than usual. */
  readonly host: string;
  /** Its host alone. */
  readonly hostname: string;
  /** What is asked of it. */
  readonly request: RequestSettings;
  /** How it is connected to. */
  readonly client: ClientSettings;
  /** What is not waited for, read or followed. */
  readonly limits: Limits;
  /** Patterns that the body must match, as written, one a line. */
  readonly regex: string | null;
  /** What it is expected to be like. */
  readonly expectations: Expectations;
  /** Attempts after a first one that finds it down. */
  readonly retries: number;
  /** Time from the end of one attempt to the start of the next, in ms. */
  readonly retryIntervalMs: number;
  /** Bytes of the response to keep where it fails. */
  readonly excerptBytes: number;
  /** Time that a check may take, in ms. */
  readonly timeoutMs: number;
  /** Time between looks at the connection, in ms; 0 beside every check, Infinity for never. */
  readonly inspectIntervalMs: number;
  /** What is known of it, by key; null where that is nothing. */
  readonly tags: Readonly<Record<string, string>> | null;
  /** Where the producer that checks it stands; null where that is not configured. */
  readonly location: string | null;
  /** Which producer it is; null where that is not configured. */
  readonly producer: string | null;
}

/** What is not waited for, read or followed. */
export interface Limits {
  /** Time until the connection stands, in ms; null for the timeout of the check. */
  readonly connectTimeoutMs: number | null;
  /** Time until the head of the response is there, redirects included, in ms; null for the timeout of the check. */
  readonly firstByteTimeoutMs: number | null;
  /** Bytes of the body, decompressed. */
  readonly readBytes: number;
  /** Redirects; 0: none is followed, and its status is judged. */
  readonly maxRedirects: number;
}

/** What holds where nothing is said. */
export const DEFAULT_LIMITS: Limits = {
  connectTimeoutMs: null,
  firstByteTimeoutMs: null,
  readBytes: SETTINGS.website.read_limit.initial,
  maxRedirects: SETTINGS.website.max_redirects.initial,
};

const DEFAULT_TIMEOUT_MS = 10_000;
/** A timeout equal to the interval would make a site that hangs miss every second check. */
const DEFAULT_TIMEOUT_SHARE = 0.8;
/** Keys that look for something in the body. */
const BODY_KEYS = ["regex", "regex_absent", "json", "min_bytes", "max_bytes", "unchanged"] as const;
const REDIRECT_STATUSES: readonly number[] = [301, 302, 303, 307, 308];

/** What the producer says of itself in each metric. */
export type Identity = Pick<Site, "location" | "producer">;

/**
 * Reads a site.
 *
 * @throws {ConfigError} for a value or a file that can't be read, and for settings that contradict each other.
 */
export async function createSite(site: SiteSource, identity: Identity): Promise<Site> {
  const url = site.take("url")!;
  const { address, authorization } = splitCredentials(url);
  site.show("url", authorization === null ? address : address.replace("://", `://${HIDDEN}@`));
  const timing = readTiming(site);
  const intervalMs = timing.cron === null ? timing.intervalMs : Infinity;
  const timeoutMs = site.take("timeout") ??
    Math.min(DEFAULT_TIMEOUT_MS, Math.floor(intervalMs * DEFAULT_TIMEOUT_SHARE));
  site.show("timeout", formatDuration(timeoutMs));
  if (timeoutMs > intervalMs && !site.once) {
    site.warn(
      `timeout of website '${site.name}' (${formatDuration(timeoutMs)}) is longer than its interval ` +
        `(${formatDuration(intervalMs)}): while it hangs, checks are left out`,
    );
  }
  const { failingIntervalMs } = timing;
  if (failingIntervalMs !== null && timeoutMs > failingIntervalMs && !site.once) {
    site.warn(
      `timeout of website '${site.name}' (${formatDuration(timeoutMs)}) is longer than its failing_interval ` +
        `(${formatDuration(failingIntervalMs)}): while it hangs, checks are left out`,
    );
  }
  const request = await readRequest(site, authorization);
  const expectations = readExpectations(site, { url, timeoutMs });
  const ofBody = BODY_KEYS.find((key) => site.has(key) && (key !== "unchanged" || expectations.unchanged !== null));
  if (request.method === "HEAD" && ofBody !== undefined) {
    throw site.refuse(ofBody, "expected a method other than HEAD beside it, whose answer has no body");
  }
  const limits = readRequestLimits(site, timeoutMs);
  if (expectations.minBytes !== null && expectations.minBytes > limits.readBytes) {
    throw site.refuse(
      "min_bytes",
      `expected at most read_limit, which is ${formatBytes(limits.readBytes)}, got ${
        formatBytes(expectations.minBytes)
      }`,
    );
  }
  if (expectations.maxBytes !== null && expectations.maxBytes > limits.readBytes) {
    site.warnOfNoEffect("max_bytes", `a body longer than read_limit, ${formatBytes(limits.readBytes)}, is not read`);
  }
  if (limits.maxRedirects > 0 && expectations.status.every(isOfRedirects)) {
    site.warn(`${site.label("expected_status")} has redirects alone, which are followed: set max_redirects = 0`);
  }
  const client = await readClientSettings(site, url);
  warnOfPlainHttp(site, { url, client, request, limits });
  const patterns = expectations.texts.flatMap((text) => text.error === "regex" ? [text.pattern.text] : []);
  return {
    name: site.name,
    url: address,
    host: url.host,
    hostname: url.hostname,
    request,
    client,
    limits,
    inspectIntervalMs: readInspectInterval(site),
    regex: patterns.length === 0 ? null : patterns.join("\n"),
    expectations,
    ...readRetries(site, { intervalMs, timeoutMs }),
    excerptBytes: site.take("excerpt") ?? 0,
    ...timing,
    timeoutMs,
    tags: readTags(site, timing),
    ...identity,
  };
}

function isOfRedirects({ from, to }: StatusRange): boolean {
  for (let status = from; status <= to; status++) if (!REDIRECT_STATUSES.includes(status)) return false;
  return true;
}

/** Says which settings of TLS change nothing, or only what comes later. */
function warnOfPlainHttp(
  site: SiteSource,
  { url, client, request, limits }: Pick<Site, "client" | "request" | "limits"> & { readonly url: URL },
): void {
  const others = [client.proxy?.url, request.oauth?.tokenUrl];
  if (url.protocol === "https:" || others.some((other) => other?.startsWith("https:"))) return;
  const but = limits.maxRedirects > 0 ? " until a redirect leads to https://" : "";
  for (const key of ["tls_ca", "tls_cert"] as const) {
    if (site.has(key)) site.warnOfNoEffect(key, `the address is http://${but}`);
  }
}

/** What is not waited for, read or followed. */
function readRequestLimits(site: SiteSource, timeoutMs: number): Limits {
  const within = (key: "connect_timeout" | "first_byte_timeout") => {
    const limitMs = site.take(key) ?? null;
    if (limitMs !== null && limitMs > timeoutMs) {
      throw site.refuse(
        key,
        `expected at most the timeout, which is ${formatDuration(timeoutMs)}, got ${formatDuration(limitMs)}`,
      );
    }
    return limitMs;
  };
  return {
    connectTimeoutMs: within("connect_timeout"),
    firstByteTimeoutMs: within("first_byte_timeout"),
    readBytes: site.take("read_limit"),
    maxRedirects: site.take("max_redirects"),
  };
}

/** Settings that need looks at the connection. */
const CONNECTION_KEYS = ["connect_timeout", "min_cert_days", "warn_cert_days", "min_tls_version"] as const;

/** Time between looks at the connection, in ms. */
function readInspectInterval(site: SiteSource): number {
  const inspectIntervalMs = site.take("inspect_interval");
  for (const key of CONNECTION_KEYS) {
    if (!site.has(key)) continue;
    if (site.has("proxy")) {
      throw site.refuse(key, "expected no proxy beside it: the connection behind one can't be looked at");
    }
    if (inspectIntervalMs === Infinity && key !== "connect_timeout") {
      throw site.refuse(key, "expected looks at the connection, got inspect_interval = never");
    }
  }
  if (site.has("proxy")) site.warnOfNoEffect("inspect_interval", "the connection behind a proxy can't be looked at");
  return inspectIntervalMs;
}

/** What the site is expected to be like. */
function readExpectations(site: SiteSource, { url, timeoutMs }: { url: URL; timeoutMs: number }): Expectations {
  const regex = site.take("regex");
  const absent = site.take("regex_absent");
  const expectedHeader = site.take("expected_header");
  const forbiddenHeader = site.take("forbidden_header");
  const json = site.take("json");
  const twin = absent.find(({ text }) => regex.some((other) => other.text === text));
  if (twin !== undefined) {
    throw site.refuse("regex_absent", `expected a pattern that is not in regex, got '${twin.text}'`);
  }
  const headerTwin = forbiddenHeader.find((header) =>
    expectedHeader.some((other) => other.name === header.name && other.pattern?.text === header.pattern?.text)
  );
  if (headerTwin !== undefined) {
    throw site.refuse("forbidden_header", `expected a header that is not in expected_header, got '${headerTwin.name}'`);
  }
  const texts = [
    ...regex.map((pattern) => ({ error: "regex", pattern } as const)),
    ...absent.map((pattern) => ({ error: "regex_absent", pattern } as const)),
    ...expectedHeader.map((header) => ({ error: "header", ...header, wanted: true } as const)),
    ...forbiddenHeader.map((header) => ({ error: "header", ...header, wanted: false } as const)),
    ...json.map((expression) => ({ error: "json", expression } as const)),
  ];
  const status = site.take("expected_status");
  const unchanged = site.take("unchanged");
  return { status, texts, unchanged, ...readLimits(site, timeoutMs), ...readConnectionExpectations(site, url) };
}

type LimitExpectations = Pick<Expectations, "maxResponseTimeMs" | "degradedAfterMs" | "minBytes" | "maxBytes">;

function readLimits(site: SiteSource, timeoutMs: number): LimitExpectations {
  const maxResponseTimeMs = site.take("max_response_time") ?? null;
  const degradedAfterMs = site.take("degraded_after") ?? null;
  const minBytes = site.take("min_bytes") ?? null;
  const maxBytes = site.take("max_bytes") ?? null;
  for (const [key, ms] of [["max_response_time", maxResponseTimeMs], ["degraded_after", degradedAfterMs]] as const) {
    if (ms !== null && ms >= timeoutMs) {
      throw site.refuse(
        key,
        `expected less than timeout, which is ${formatDuration(timeoutMs)}, got ${formatDuration(ms)}`,
      );
    }
  }
  if (maxResponseTimeMs !== null && degradedAfterMs !== null && degradedAfterMs >= maxResponseTimeMs) {
    const limit = formatDuration(maxResponseTimeMs);
    const got = formatDuration(degradedAfterMs);
    throw site.refuse("degraded_after", `expected less than max_response_time, which is ${limit}, got ${got}`);
  }
  if (minBytes !== null && maxBytes !== null && minBytes > maxBytes) {
    const got = formatBytes(minBytes);
    throw site.refuse("min_bytes", `expected at most max_bytes, which is ${formatBytes(maxBytes)}, got ${got}`);
  }
  return { maxResponseTimeMs, degradedAfterMs, minBytes, maxBytes };
}

type ConnectionExpectations = Pick<Expectations, "minCertDays" | "warnCertDays" | "minTlsVersion">;

function readConnectionExpectations(site: SiteSource, { protocol }: URL): ConnectionExpectations {
  const minCertDays = site.take("min_cert_days") ?? null;
  const warnCertDays = site.take("warn_cert_days") ?? null;
  const minTlsVersion = site.take("min_tls_version") ?? null;
  if (minCertDays !== null && warnCertDays !== null && warnCertDays <= minCertDays) {
    throw site.refuse(
      "warn_cert_days",
      `expected more than min_cert_days, which is ${minCertDays}, got ${warnCertDays}`,
    );
  }
  for (const key of ["min_cert_days", "warn_cert_days", "min_tls_version"] as const) {
    if (protocol === "http:" && site.has(key)) site.warnOfNoEffect(key, "the address is http://");
  }
  return { minCertDays, warnCertDays, minTlsVersion };
}

/** Further attempts. */
function readRetries(
  site: SiteSource,
  { intervalMs, timeoutMs }: Pick<Site, "intervalMs" | "timeoutMs">,
): Pick<Site, "retries" | "retryIntervalMs"> {
  const retries = site.take("retries");
  const retryIntervalMs = site.take("retry_interval");
  if (retries === 0 && site.has("retry_interval")) site.warnOfNoEffect("retry_interval", "retries is 0");
  const longestMs = timeoutMs + retries * (retryIntervalMs + timeoutMs);
  if (retries > 0 && longestMs > intervalMs && !site.once) {
    site.warn(
      `retries of website '${site.name}' may take ${formatDuration(longestMs)}, longer than its interval ` +
        `(${formatDuration(intervalMs)}): while it is down, checks are left out`,
    );
  }
  return { retries, retryIntervalMs };
}

/** Tags by key. */
function readTags(site: SiteSource, { maintenance }: Timing): Record<string, string> | null {
  const pairs = site.take("tags");
  if (maintenance !== null && pairs.some(([key]) => key === MAINTENANCE_TAG)) {
    throw site.refuse("tags", `expected keys other than ${MAINTENANCE_TAG}, which is set within maintenance`);
  }
  const twin = pairs.find(([key], index) => pairs.findIndex(([other]) => other === key) < index);
  if (twin !== undefined) throw site.refuse("tags", `expected each key once, got '${twin[0]}' twice`);
  return pairs.length === 0 ? null : Object.fromEntries(pairs);
}

function splitCredentials(url: URL): { address: string; authorization: string | null } {
  if (url.username === "" && url.password === "") return { address: url.href, authorization: null };
  const bare = new URL(url);
  bare.username = "";
  bare.password = "";
  // Unlike decodeURIComponent(), it takes a percent sign that encodes nothing as it stands.
  return { address: bare.href, authorization: basicAuthorization(unescape(url.username), unescape(url.password)) };
}
