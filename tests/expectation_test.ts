import assert from "node:assert/strict";
import { check, type CheckOptions, checkWithRetries } from "../lib/check.ts";
import { Inspector } from "../lib/inspector.ts";
import { createClient, DEFAULT_CLIENT } from "../lib/client.ts";
import { DEFAULT_LIMITS, type Site } from "../lib/site.ts";
import { Evaluator } from "../lib/evaluator.ts";
import {
  DEFAULT_EXPECTATIONS,
  type Expectations,
  type SeenConnection,
  type TextExpectation,
} from "../lib/expectation.ts";
import { decodeMetric, encodeMetric, type Metric } from "../lib/metric.ts";
import { readPattern as pattern } from "../lib/pattern.ts";
import { DEFAULT_REQUEST } from "../lib/request.ts";
import { runWell, startSite, temporaryFile } from "./support.ts";

const SCHEDULED_AT = new Date("2026-01-02T03:04:05.678Z");
const DAY_MS = 24 * 60 * 60 * 1000;

function siteOf(url: string, expectations: Partial<Expectations>, settings: Partial<Site> = {}): Site {
  const { texts = [] } = expectations;
  const regexes = texts.flatMap((text) => text.error === "regex" ? [text.pattern.text] : []);
  return {
    name: "site",
    url,
    host: new URL(url).host,
    hostname: new URL(url).hostname,
    request: DEFAULT_REQUEST,
    client: DEFAULT_CLIENT,
    limits: DEFAULT_LIMITS,
    regex: regexes.length === 0 ? null : regexes.join("\n"),
    expectations: { ...DEFAULT_EXPECTATIONS, ...expectations },
    retries: 0,
    retryIntervalMs: 0,
    excerptBytes: 0,
    intervalMs: 60_000,
    cron: null,
    jitterMs: 0,
    failingIntervalMs: null,
    maintenance: null,
    timeoutMs: 5_000,
    inspectIntervalMs: Infinity,
    tags: null,
    location: null,
    producer: null,
    ...settings,
  };
}

async function checkSite(site: Site, options: Partial<CheckOptions> = {}): Promise<Metric> {
  using client = createClient();
  using evaluator = new Evaluator();
  return readable(await check(site, { scheduledAt: SCHEDULED_AT, client, evaluator, ...options }));
}

/** The metric as the consumer reads it, which refuses what PostgreSQL would. */
function readable(metric: Metric): Metric {
  const value = new TextEncoder().encode(encodeMetric(metric));
  return decodeMetric({ topic: "site", partition: 0, offset: "0", timestamp: 0, key: null, value, headers: {} });
}

type Answering = () => Response | Promise<Response>;

const PAGE: Answering = () =>
  new Response("<h1>It works</h1>", { headers: { server: "nginx", "content-type": "text/html" } });
const JSON_PAGE: Answering = () => Response.json({ status: "up", queue: 12 });

/** Each expectation, met and not met: of the latter, what stands in the metric. */
const CASES: readonly {
  readonly what: string;
  readonly expectations: Partial<Expectations>;
  readonly answer: Answering;
  readonly failed: { expectation: Metric["error"]; expected: unknown; actual: unknown } | null;
  readonly message?: string;
}[] = [
  {
    what: "a status of several ranges",
    expectations: { status: [{ from: 200, to: 299 }, { from: 401, to: 401 }] },
    answer: () => new Response(null, { status: 401 }),
    failed: null,
  },
  {
    what: "a status of none of them",
    expectations: { status: [{ from: 200, to: 299 }, { from: 401, to: 401 }] },
    answer: () => new Response(null, { status: 404 }),
    failed: { expectation: "status", expected: "200-299,401", actual: 404 },
    message: "expected status 200-299,401, got 404",
  },
  {
    what: "several patterns that match",
    expectations: {
      texts: [{ error: "regex", pattern: pattern("It") }, { error: "regex", pattern: pattern("(?i)WORKS+") }],
    },
    answer: PAGE,
    failed: null,
  },
  {
    what: "several patterns of which one does not match",
    expectations: {
      texts: [{ error: "regex", pattern: pattern("It") }, { error: "regex", pattern: pattern("(?i)SLEEPS+") }],
    },
    answer: PAGE,
    failed: { expectation: "regex", expected: "(?i)SLEEPS+", actual: null },
    message: "expected a match for '(?i)SLEEPS+', got none",
  },
  {
    what: "a pattern that must not match",
    expectations: { texts: [{ error: "regex_absent", pattern: pattern("[Ee]rror") }] },
    answer: PAGE,
    failed: null,
  },
  {
    what: "a pattern that must not match, and does",
    expectations: { texts: [{ error: "regex_absent", pattern: pattern("[Ee]rror \\d+") }] },
    answer: () => new Response("Database error 17"),
    failed: { expectation: "regex_absent", expected: "[Ee]rror \\d+", actual: "error 17" },
    message: "expected no match for '[Ee]rror \\d+', got 'error 17'",
  },
  {
    what: "headers",
    expectations: {
      texts: [
        { error: "header", name: "content-type", pattern: pattern("^text/html"), wanted: true },
        { error: "header", name: "server", pattern: null, wanted: true },
        { error: "header", name: "server", pattern: pattern("\\d"), wanted: false },
        { error: "header", name: "x-powered-by", pattern: null, wanted: false },
        { error: "header", name: "x-powered-by", pattern: pattern("PHP"), wanted: false },
      ],
    },
    answer: PAGE,
    failed: null,
  },
  {
    what: "a header with another value",
    expectations: { texts: [{ error: "header", name: "content-type", pattern: pattern("^text/plain"), wanted: true }] },
    answer: PAGE,
    failed: { expectation: "header", expected: "content-type: ^text/plain", actual: "text/html" },
    message: "expected header 'content-type: ^text/plain', got 'text/html'",
  },
  {
    what: "a header that is missing",
    expectations: { texts: [{ error: "header", name: "x-cache", pattern: pattern("HIT"), wanted: true }] },
    answer: PAGE,
    failed: { expectation: "header", expected: "x-cache: HIT", actual: null },
    message: "expected header 'x-cache: HIT', got none",
  },
  {
    what: "a header that is forbidden",
    expectations: { texts: [{ error: "header", name: "server", pattern: null, wanted: false }] },
    answer: PAGE,
    failed: { expectation: "header", expected: "no server", actual: "nginx" },
    message: "expected header 'no server', got 'nginx'",
  },
  {
    what: "a value of a header that is forbidden, by a pattern that is not proven",
    expectations: { texts: [{ error: "header", name: "server", pattern: pattern("(?i)^NGIN+X"), wanted: false }] },
    answer: PAGE,
    failed: { expectation: "header", expected: "no server: (?i)^NGIN+X", actual: "nginx" },
    message: "expected header 'no server: (?i)^NGIN+X', got 'nginx'",
  },
  {
    what: "an expression that is true",
    expectations: { texts: [{ error: "json", expression: 'status = "up" and queue < 100' }] },
    answer: JSON_PAGE,
    failed: null,
  },
  {
    what: "an expression that is false",
    expectations: { texts: [{ error: "json", expression: "queue < 10" }] },
    answer: JSON_PAGE,
    failed: { expectation: "json", expected: "queue < 10", actual: false },
    message: "expected 'queue < 10' to be true, got false",
  },
  {
    what: "an expression with a value that is not true",
    expectations: { texts: [{ error: "json", expression: "queue" }] },
    answer: JSON_PAGE,
    failed: { expectation: "json", expected: "queue", actual: 12 },
    message: "expected 'queue' to be true, got 12",
  },
  {
    what: "a value that PostgreSQL does not take",
    expectations: { texts: [{ error: "json", expression: "a" }] },
    answer: () => new Response('{"a":"\\u0000\\udc00"}'),
    failed: { expectation: "json", expected: "a", actual: '"\\u0000\\udc00"' },
  },
  {
    what: "an expression on what is not JSON",
    expectations: { texts: [{ error: "json", expression: "queue" }] },
    answer: PAGE,
    failed: { expectation: "json", expected: "queue", actual: null },
    message: "expected 'queue' to be true, the body is not JSON",
  },
  { what: "a body of enough bytes", expectations: { minBytes: 17, maxBytes: 17 }, answer: PAGE, failed: null },
  {
    what: "a body of too few bytes",
    expectations: { minBytes: 18 },
    answer: PAGE,
    failed: { expectation: "too_small", expected: 18, actual: 17 },
    message: "expected a body of at least 18 bytes, got 17",
  },
  {
    what: "a body of too many bytes",
    expectations: { maxBytes: 16 },
    answer: PAGE,
    failed: { expectation: "too_big", expected: 16, actual: 17 },
    message: "expected a body of at most 16 bytes, got 17",
  },
  {
    what: "another body than the one with a hash",
    expectations: { unchanged: "0".repeat(64) },
    answer: () => new Response("abc"),
    failed: {
      expectation: "changed",
      expected: "0".repeat(64),
      actual: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    },
  },
];

Deno.test.each(CASES)("check() judges $what", async ({ expectations, answer, failed, message }) => {
  await using server = startSite(answer);
  const metric = await checkSite(siteOf(server.url, expectations));
  assert.deepEqual(metric.failed, failed === null ? null : [failed]);
  assert.equal(metric.error, failed?.expectation ?? null);
  assert.equal(metric.verdict, failed === null ? "up" : "down");
  assert.equal(metric.failed_phase, failed === null ? null : "expectation");
  if (message !== undefined) assert.equal(metric.error_message, message);
});

Deno.test("check() reports all that is not met, in the order of the classes", async () => {
  await using server = startSite(() => new Response("oops", { status: 500, headers: { server: "nginx" } }));
  const metric = await checkSite(siteOf(server.url, {
    texts: [
      { error: "regex", pattern: pattern("works") },
      { error: "regex", pattern: pattern("oops") },
      { error: "regex_absent", pattern: pattern("o+ps") },
      { error: "header", name: "server", pattern: null, wanted: false },
      { error: "json", expression: "ok" },
    ],
    maxResponseTimeMs: 0,
    minBytes: 5,
    unchanged: "0".repeat(64),
  }));
  assert.equal(metric.error, "status");
  assert.equal(metric.has_regex, false);
  assert.equal(metric.regex, "works\noops");
  assert.deepEqual(
    (metric.failed as readonly { expectation: string }[]).map(({ expectation }) => expectation),
    ["status", "regex", "regex_absent", "header", "json", "too_slow", "too_small", "changed"],
  );
  assert.equal(metric.error_message!.split("; ").length, 8);
});

Deno.test("check() ends a pattern that takes years with the check's timeout, and says which it was", async () => {
  await using server = startSite(() => new Response("ab".repeat(50)));
  const endless: TextExpectation = { error: "regex", pattern: pattern("(?i)^(?:a|b|ab)+(?=c)$") };
  const texts = [{ error: "regex", pattern: pattern("abab") } as const, endless];
  const metric = await checkSite(siteOf(server.url, { texts }, { timeoutMs: 300 }));
  assert.deepEqual([metric.verdict, metric.error, metric.failed_phase], ["down", "timeout", "expectation"]);
  assert.equal(metric.has_regex, null);
  assert.equal(metric.status_code, 200);
  assert.deepEqual(metric.failed, [{ expectation: "timeout", expected: "(?i)^(?:a|b|ab)+(?=c)$", actual: null }]);
  assert.equal(metric.error_message, "no answer from '(?i)^(?:a|b|ab)+(?=c)$' within the check's 300 ms");
});

Deno.test("check() asks a long body elsewhere, so that others do not wait for it", async () => {
  const words = "x ".repeat(500_000);
  await using server = startSite(() => new Response(`${words}needle`));
  const metric = await checkSite(siteOf(server.url, { texts: [{ error: "regex", pattern: pattern("n[e]+dle") }] }));
  assert.equal(metric.has_regex, true);
});

Deno.test.each([
  { what: "slower than degraded_after", limits: { degradedAfterMs: 0 }, verdict: "degraded", error: "too_slow" },
  { what: "quick enough", limits: { degradedAfterMs: 4_000, maxResponseTimeMs: 4_500 }, verdict: "up", error: null },
  {
    what: "slower than max_response_time",
    limits: { degradedAfterMs: 0, maxResponseTimeMs: 1 },
    verdict: "down",
    error: "too_slow",
  },
])("check() takes a site that is $what for $verdict", async ({ limits, verdict, error }) => {
  await using server = startSite(async () => {
    await new Promise((resolve) => setTimeout(resolve, 20));
    return new Response("It works");
  });
  const metric = await checkSite(siteOf(server.url, limits));
  assert.deepEqual([metric.verdict, metric.error], [verdict, error]);
  assert.equal((metric.failed as readonly unknown[] | null)?.length ?? 0, error === null ? 0 : 1);
});

Deno.test("check() takes a site that is slow and wrong for down by what is wrong", async () => {
  await using server = startSite(() => new Response("abc"));
  const metric = await checkSite(siteOf(server.url, { degradedAfterMs: 0, minBytes: 5 }));
  assert.deepEqual([metric.verdict, metric.error], ["down", "too_small"]);
  assert.equal((metric.failed as readonly unknown[]).length, 2);
});

function connectionFor(days: number, tlsVersion: string | null = "TLSv1.3"): SeenConnection {
  return { tlsVersion, certExpiresAt: new Date(Date.now() + days * DAY_MS + 60_000).toISOString() };
}

/** Looks at nothing, and knows what others saw. */
function knowing(connection: SeenConnection): Pick<Inspector, "begin" | "known"> {
  return { begin: () => null, known: () => connection };
}

Deno.test.each([
  { what: "long enough", days: 31, verdict: "up", failed: null },
  { what: "for less than the days of warning", days: 29, verdict: "degraded", failed: { expected: 30, actual: 29 } },
  { what: "for too few days", days: 6, verdict: "down", failed: { expected: 7, actual: 6 } },
  { what: "no more", days: -2, verdict: "down", failed: { expected: 7, actual: -2 } },
])("check() takes a certificate that holds $what for $verdict", async ({ days, verdict, failed }) => {
  await using server = startSite(() => new Response("abc"));
  const site = siteOf(server.url, { minCertDays: 7, warnCertDays: 30 });
  const metric = await checkSite(site, { inspector: knowing(connectionFor(days)) });
  assert.equal(metric.verdict, verdict);
  assert.deepEqual(metric.failed, failed && [{ expectation: "cert_validity", ...failed }]);
  assert.equal(metric.cert_expires_at, null, "the connection was looked at beside another check");
});

Deno.test.each(
  [
    { version: "TLSv1.3", minTlsVersion: "1.3", error: null },
    { version: "TLSv1.2", minTlsVersion: "1.3", error: "tls_version" },
    { version: "TLSv1.2", minTlsVersion: "1.2", error: null },
    { version: null, minTlsVersion: "1.3", error: null },
  ] as const,
)("check() takes $version for $error where $minTlsVersion is expected", async (given) => {
  await using server = startSite(() => new Response("abc"));
  const knownConnection = connectionFor(90, given.version);
  const inspector = knowing(knownConnection);
  const metric = await checkSite(siteOf(server.url, { minTlsVersion: given.minTlsVersion }), { inspector });
  assert.equal(metric.error, given.error);
});

Deno.test("check() has what was seen of the connection in the columns for it", async () => {
  await using server = startSite(() => new Response("abc"));
  const certificate = { subject: "CN=site", issuer: "CN=authority", validFrom: "2026-01-01T00:00:00.000Z" };
  const { certExpiresAt } = connectionFor(3);
  const inspector = new Inspector({
    inspect: () =>
      Promise.resolve({
        addresses: ["127.0.0.1"],
        attempts: [],
        ip: "127.0.0.1",
        dnsMs: 0.00049,
        connectMs: 1.23456,
        tlsMs: 2,
        tlsVersion: "TLSv1.3",
        cipher: null,
        alpn: null,
        chain: [{ ...certificate, expiresAt: certExpiresAt! }],
        failure: null,
      }),
  });
  const metric = await checkSite(siteOf(server.url, { minCertDays: 7 }, { inspectIntervalMs: 0 }), { inspector });
  const { ip, dns_ms, connect_ms, tls_ms, tls_version, cert_subject, cert_issuer, cert_expires_at } = metric;
  assert.deepEqual([ip, dns_ms, connect_ms, tls_ms, tls_version, cert_subject, cert_issuer], [
    ...["127.0.0.1", 0, 1.235, 2, "TLSv1.3"],
    ...["CN=site", "CN=authority"],
  ]);
  assert.equal(cert_expires_at, certExpiresAt);
  assert.equal(metric.error, "cert_validity");
});

// Attempts

async function attemptsOf(site: Site, bodies = new Map<string, string>()): Promise<Metric[]> {
  using client = createClient();
  using evaluator = new Evaluator();
  const metrics: Metric[] = [];
  await checkWithRetries(site, {
    attempt: (attempt) => check(site, { scheduledAt: SCHEDULED_AT, client, evaluator, bodies, attempt }),
    deliver: (metric) => metrics.push(readable(metric)),
    bodies,
  });
  return metrics;
}

function summary({ attempt, final, verdict }: Metric) {
  return [attempt, final, verdict];
}

/** Answers with these statuses in turn, the last one for ever. */
function statuses(...codes: number[]): Answering {
  let i = 0;
  return () => new Response("abc", { status: codes[Math.min(i++, codes.length - 1)]! });
}

Deno.test.each([
  { codes: [200], attempts: [[1, true, "up"]] },
  { codes: [500, 200], attempts: [[1, false, "down"], [2, true, "up"]] },
  { codes: [500], attempts: [[1, false, "down"], [2, false, "down"], [3, true, "down"]] },
])("checkWithRetries() says of statuses $codes: $attempts", async ({ codes, attempts }) => {
  await using server = startSite(statuses(...codes));
  const metrics = await attemptsOf(siteOf(server.url, {}, { retries: 2, retryIntervalMs: 20 }));
  assert.deepEqual(metrics.map(summary), attempts);
  assert.equal(server.visits, attempts.length);
  assert.ok(metrics.every(({ scheduled_at }) => scheduled_at === SCHEDULED_AT.toISOString()));
  assert.equal(new Set(metrics.map(({ id }) => id)).size, metrics.length);
  const starts = metrics.map(({ occurred_at }) => Date.parse(occurred_at));
  for (const [i, start] of starts.entries()) assert.ok(i === 0 || start - starts[i - 1]! >= 19, String(starts));
});

Deno.test("checkWithRetries() does not try again where a site is only degraded", async () => {
  await using server = startSite(() => new Response("abc"));
  const metrics = await attemptsOf(siteOf(server.url, { degradedAfterMs: 0 }, { retries: 2 }));
  assert.deepEqual(metrics.map(summary), [[1, true, "degraded"]]);
});

Deno.test("checkWithRetries() does not wait for another attempt when it is to end", async () => {
  await using server = startSite(statuses(500));
  using client = createClient();
  using evaluator = new Evaluator();
  const controller = new AbortController();
  const reason = new Error("ended");
  const site = siteOf(server.url, {}, { retries: 2, retryIntervalMs: 60_000 });
  const { signal } = controller;
  const metrics: Metric[] = [];
  const checked = checkWithRetries(site, {
    attempt: (attempt) => check(site, { scheduledAt: SCHEDULED_AT, client, evaluator, signal, attempt }),
    deliver: (metric) => {
      metrics.push(metric);
      controller.abort(reason);
    },
    signal,
  });
  await assert.rejects(checked, reason);
  assert.deepEqual(metrics.map(summary), [[1, false, "down"]]);
});

Deno.test("checkWithRetries() says once that a body has changed, however many attempts there are", async () => {
  let body = "a";
  await using server = startSite(() => new Response(body));
  const site = siteOf(server.url, { unchanged: "before" }, { retries: 1 });
  const bodies = new Map<string, string>();
  const errors = async () => (await attemptsOf(site, bodies)).map(({ error }) => error);
  assert.deepEqual(await errors(), [null], "the first body is what others are compared with");
  assert.deepEqual(await errors(), [null]);
  body = "b";
  assert.deepEqual(await errors(), ["changed", "changed"]);
  assert.deepEqual(await errors(), [null], "the new body is the one to compare with");
});

Deno.test("checkWithRetries() does not compare with the page of an error", async () => {
  let status = 200;
  await using server = startSite(() => new Response(String(status), { status }));
  const site = siteOf(server.url, { unchanged: "before" });
  const bodies = new Map<string, string>();
  const errors: Metric["error"][] = [];
  for (status of [200, 500, 200]) errors.push((await attemptsOf(site, bodies))[0]!.error);
  assert.deepEqual(errors, [null, "status", null]);
});

// Excerpts

Deno.test("check() keeps a piece of the response where it fails and that is asked for", async () => {
  const headers = { "content-type": "text/plain", "set-cookie": "id=1; secret", "x-api-key": "abc" };
  await using server = startSite(() => new Response(`It \0 ${"é".repeat(100)}`, { status: 500, headers }));
  const metric = await checkSite(siteOf(server.url, {}, { excerptBytes: 160 }));
  const [head, body] = metric.excerpt!.split("\n\n");
  assert.deepEqual(head!.split("\n").filter((line) => !line.startsWith("date: ")).sort(), [
    "500",
    "content-length: 205",
    "content-type: text/plain",
    "set-cookie: ********",
    "x-api-key: ********",
  ]);
  assert.match(body!, /^It \ufffd é*$/);
  const { length } = new TextEncoder().encode(metric.excerpt!);
  assert.ok(length === 160 || length === 159, String(length));
  assert.equal((await checkSite(siteOf(server.url, {}))).excerpt, null, "not asked for");
  const fine = siteOf(server.url, { status: [{ from: 500, to: 500 }] }, { excerptBytes: 160 });
  assert.equal((await checkSite(fine)).excerpt, null, "not failed");
});

Deno.test("producer has the permissions for all that a site may be expected to be like", async () => {
  await using endless = startSite(() => new Response("ab".repeat(50)));
  await using server = startSite(JSON_PAGE);
  await using file = await temporaryFile(
    "config.ini",
    `
[website_endless]
url = ${endless.url}
timeout = 500ms
regex = (?i)^(?:a|b|ab)+(?=c)$
[website_fine]
url = ${server.url}
regex = (?i)STATUS\\W+up
json = queue = 12
[website_wrong]
url = ${server.url}
json = queue < 10
retries = 1
retry_interval = 0
excerpt = 1K
`,
  );
  const { stdout, stderr } = await runWell("producer", ["--once", "--dry-run", "--config-path", file.path]);
  const metrics = stdout.trim().split("\n").map((line) => JSON.parse(line) as Metric);
  const outcomes = metrics.map(({ name, attempt, final, error, excerpt }) => [name, attempt, final, error, !!excerpt]);
  assert.deepEqual(outcomes.sort(), [
    ["endless", 1, true, "timeout", false],
    ["fine", 1, true, null, false],
    ["wrong", 1, false, "json", true],
    ["wrong", 2, true, "json", true],
  ]);
  assert.doesNotMatch(stderr, /error|warn/i);
});
