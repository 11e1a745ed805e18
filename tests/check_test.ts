import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import type { Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { version as uuidVersion } from "uuid";
import { check, type CheckOptions } from "../lib/check.ts";
import { type ClientSettings, createClient, DEFAULT_CLIENT } from "../lib/client.ts";
import { DEFAULT_LIMITS, type Site } from "../lib/site.ts";
import { DEFAULT_REQUEST } from "../lib/request.ts";
import { Evaluator } from "../lib/evaluator.ts";
import { DEFAULT_EXPECTATIONS, type Expectations } from "../lib/expectation.ts";
import { readPattern } from "../lib/pattern.ts";
import type { Metric } from "../lib/metric.ts";
import { createAuthority } from "../local/certificate.ts";
import { freePorts } from "../local/port.ts";
import { send, serveRaw } from "./servers.ts";

const DAY_MS = 24 * 60 * 60 * 1000;
const SCHEDULED_AT = new Date("2026-01-02T03:04:05.678Z");
const HEAD = "HTTP/1.1 200 OK\r\n";
const authority = await createAuthority("site_checker tests");

/** What a test wants to be different of a site. */
type SiteChanges = Omit<Partial<Site>, "expectations"> & { readonly expectations?: Partial<Expectations> };

function siteOf(url: string, { regex = null, expectations, ...settings }: SiteChanges = {}): Site {
  return {
    name: "site",
    url,
    host: new URL(url).host,
    hostname: new URL(url).hostname,
    request: DEFAULT_REQUEST,
    client: DEFAULT_CLIENT,
    limits: DEFAULT_LIMITS,
    regex,
    expectations: {
      ...DEFAULT_EXPECTATIONS,
      texts: regex === null ? [] : [{ error: "regex", pattern: readPattern(regex) }],
      ...expectations,
    },
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

async function checkUrl(url: string, settings?: SiteChanges, options?: Partial<CheckOptions>): Promise<Metric> {
  using client = createClient();
  using evaluator = new Evaluator();
  return await check(siteOf(url, settings), { scheduledAt: SCHEDULED_AT, client, evaluator, ...options });
}

function serve(handler: Deno.ServeHandler<Deno.NetAddr>, tls: Deno.TlsCertifiedKeyPem | object = {}) {
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {}, ...tls }, handler);
  const { port } = server.addr;
  return { port, url: `http://127.0.0.1:${port}/`, [Symbol.asyncDispose]: () => server.shutdown() };
}

function withBody(head: string, body: Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from(`${head}content-length: ${body.length}\r\n\r\n`), body]);
}

type Outcome = Pick<Metric, "verdict" | "error" | "failed_phase" | "status_code">;

function outcome({ verdict, error, failed_phase, status_code }: Metric): Outcome {
  return { verdict, error, failed_phase, status_code };
}

function down(error: Metric["error"], failed_phase: Metric["failed_phase"], status_code: number | null): Outcome {
  return { verdict: "down", error, failed_phase, status_code };
}

function assertConsistent(metric: Metric): void {
  const { response_time, first_byte_ms, download_ms, elapsed_ms } = metric;
  assert.ok(elapsed_ms! >= (response_time ?? first_byte_ms ?? 0), `elapsed_ms ${elapsed_ms} of ${response_time}`);
  assert.equal(response_time === null, download_ms === null);
  if (response_time !== null) assert.ok(Math.abs(first_byte_ms! + download_ms! - response_time) < 1e-6);
  assert.equal(metric.body_bytes === null, response_time === null);
  assert.equal(metric.body_sha256 === null, response_time === null);
  assert.equal(metric.redirects === null, metric.status_code === null);
  assert.equal(first_byte_ms === null, metric.status_code === null);
  assert.equal(metric.error === null, metric.verdict === "up");
  assert.equal(metric.error === null, metric.error_message === null);
  assert.equal(metric.error === null, metric.failed_phase === null);
}

Deno.test("check() says what came of a site that answers", async () => {
  await using server = serve((request) =>
    request.headers.get("user-agent") === "site_checker"
      ? new Response("It works")
      : new Response(null, { status: 400 })
  );
  const before = Date.now();
  const metric = await checkUrl(server.url, { regex: "w[o]rks" });
  assertConsistent(metric);
  const { id, occurred_at, response_time, elapsed_ms, first_byte_ms, download_ms, ...rest } = metric;
  assert.equal(uuidVersion(id), 7);
  assert.ok(Date.parse(occurred_at) >= before && Date.parse(occurred_at) <= Date.now());
  assert.ok([response_time, elapsed_ms, first_byte_ms, download_ms].every((ms) => ms !== null && ms >= 0));
  assert.deepEqual(rest, {
    scheduled_at: "2026-01-02T03:04:05.678Z",
    name: "site",
    url: server.url,
    method: "GET",
    location: null,
    producer: null,
    verdict: "up",
    error: null,
    failed_phase: null,
    error_message: null,
    attempt: 1,
    final: true,
    status_code: 200,
    regex: "w[o]rks",
    has_regex: true,
    ip: null,
    dns_ms: null,
    connect_ms: null,
    tls_ms: null,
    tls_version: null,
    cert_subject: null,
    cert_issuer: null,
    cert_expires_at: null,
    redirects: 0,
    final_url: null,
    body_bytes: 8,
    body_sha256: createHash("sha256").update("It works").digest("hex"),
    failed: null,
    tags: null,
    excerpt: null,
  });
});

Deno.test.each(
  [
    { status: 200, error: null },
    { status: 204, error: null },
    { status: 304, error: null },
    { status: 399, error: null },
    { status: 101, error: "status" },
    { status: 400, error: "status" },
    { status: 404, error: "status" },
    { status: 500, error: "status" },
    { status: 600, error: "status" },
  ] as const,
)("check() takes status $status for $error", async ({ status, error }) => {
  await using server = await serveRaw(send(`HTTP/1.1 ${status} X\r\n\r\n`));
  const metric = await checkUrl(server.url);
  assertConsistent(metric);
  assert.deepEqual(
    outcome(metric),
    error === null
      ? { verdict: "up", error, failed_phase: null, status_code: status }
      : down(error, "expectation", status),
  );
  assert.deepEqual(
    metric.failed,
    error === null ? null : [{ expectation: "status", expected: "200-399", actual: status }],
  );
});

Deno.test("check() reports each expectation that is not met, the first as the error", async () => {
  await using server = serve(() => new Response("no", { status: 500 }));
  const metric = await checkUrl(server.url, { regex: "yes" });
  assert.deepEqual(outcome(metric), down("status", "expectation", 500));
  assert.equal(metric.error_message, "expected status 200-399, got 500; expected a match for 'yes', got none");
  assert.equal(metric.has_regex, false);
  assert.deepEqual(metric.failed, [
    { expectation: "status", expected: "200-399", actual: 500 },
    { expectation: "regex", expected: "yes", actual: null },
  ]);
});

Deno.test("check() judges status and headers of a response whose body is cut", async () => {
  const head = "HTTP/1.1 500 X\r\nserver: nginx\r\ncontent-length: 9\r\n\r\n";
  await using server = await serveRaw(send(`${head}abc`));
  const header = { error: "header", name: "server", pattern: null, wanted: false } as const;
  const regex = { error: "regex", pattern: readPattern("yes") } as const;
  const metric = await checkUrl(server.url, { expectations: { texts: [regex, header], minBytes: 10 } });
  assert.deepEqual(outcome(metric), down("protocol", "download", 500));
  assert.equal(metric.has_regex, null);
  assert.deepEqual(metric.failed, [
    { expectation: "status", expected: "200-399", actual: 500 },
    { expectation: "header", expected: "no server", actual: "nginx" },
  ]);
});

Deno.test("check() finds that a pattern does not match", async () => {
  await using server = serve(() => new Response("no"));
  const metric = await checkUrl(server.url, { regex: "yes" });
  assert.deepEqual(outcome(metric), down("regex", "expectation", 200));
  assert.equal(metric.has_regex, false);
});

const GZIP = gzipSync("site_checker ".repeat(100));

Deno.test.each(
  [
    { what: "garbage", response: "garbage\r\n\r\n", phase: "first_byte", status: null },
    { what: "a page without a head", response: "<h1>It works</h1>", phase: "first_byte", status: null },
    { what: "a bad status", response: "HTTP/1.1 abc OK\r\n\r\n", phase: "first_byte", status: null },
    {
      what: "a bad header",
      response: `${HEAD}content-length: 1\r\ncontent-length: 2\r\n\r\nab`,
      phase: "first_byte",
      status: null,
    },
    { what: "too many headers", response: `${HEAD}${"x: y\r\n".repeat(200)}\r\n`, phase: "first_byte", status: null },
    {
      what: "a body that is too short",
      response: `${HEAD}content-length: 9\r\n\r\nabc`,
      phase: "download",
      status: 200,
    },
    {
      what: "a bad chunk",
      response: `${HEAD}transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n`,
      phase: "download",
      status: 200,
    },
    {
      what: "a chunk that is cut",
      response: `${HEAD}transfer-encoding: chunked\r\n\r\n5\r\nab`,
      phase: "download",
      status: 200,
    },
    {
      what: "no gzip",
      response: withBody(`${HEAD}content-encoding: gzip\r\n`, Buffer.from("abc".repeat(10))),
      phase: "download",
      status: 200,
    },
    {
      what: "gzip that is cut",
      response: withBody(`${HEAD}content-encoding: gzip\r\n`, GZIP.subarray(0, 20)),
      phase: "download",
      status: 200,
    },
    {
      what: "brotli that is cut",
      response: withBody(`${HEAD}content-encoding: br\r\n`, Buffer.from([0x0b])),
      phase: "download",
      status: 200,
    },
  ] as const,
)("check() takes $what for protocol", async ({ response, phase, status }) => {
  await using server = await serveRaw(send(response));
  const metric = await checkUrl(server.url);
  assertConsistent(metric);
  assert.deepEqual(outcome(metric), down("protocol", phase, status));
});

Deno.test("check() takes a connection that is reset in the body for reset", async () => {
  await using server = await serveRaw((socket) =>
    void socket.write(`${HEAD}content-length: 9\r\n\r\nabc`, () => socket.resetAndDestroy())
  );
  assert.deepEqual(outcome(await checkUrl(server.url)), down("reset", "download", 200));
});

Deno.test("check() takes plain HTTP to a TLS port for protocol", async () => {
  await using server = serve(() => new Response(), await certificateFor(["localhost"]));
  assert.deepEqual(outcome(await checkUrl(server.url)), down("protocol", "first_byte", null));
});

Deno.test.each([
  { what: "reset", end: (socket: Socket) => void socket.resetAndDestroy() },
  { what: "closed", end: (socket: Socket) => void socket.destroy() },
  { what: "closed amid the head", end: send("HTTP/1.1 200") },
])("check() takes a connection that is $what for reset", async ({ end }) => {
  await using server = await serveRaw(end);
  const metric = await checkUrl(server.url);
  assertConsistent(metric);
  assert.deepEqual(outcome(metric), down("reset", "first_byte", null));
});

Deno.test("check() takes a connection that is reset in the TLS handshake for reset", async () => {
  await using server = await serveRaw((socket) => void socket.resetAndDestroy());
  assert.deepEqual(outcome(await checkUrl(`https://127.0.0.1:${server.port}/`)), down("reset", "tls", null));
});

Deno.test.each(["127.0.0.1", "localhost"])(
  "check() takes a port of %s that is closed for refused",
  async (host) => {
    const metric = await checkUrl(`http://${host}:${freePorts(1)[0]}/`);
    assertConsistent(metric);
    assert.deepEqual(outcome(metric), down("refused", "connect", null));
  },
);

Deno.test("check() takes an address without a route for unreachable", async () => {
  // No TCP connection goes to the broadcast address, and no packet is sent.
  const metric = await checkUrl("http://255.255.255.255/");
  assert.deepEqual(outcome(metric), down("unreachable", "connect", null));
});

Deno.test("check() takes a name that is not there for dns_not_found", async () => {
  const metric = await checkUrl("http://nowhere.invalid/");
  assert.deepEqual(outcome(metric), down("dns_not_found", "dns", null));
});

Deno.test.each(
  [
    { what: "before the head", response: "", error: "timeout", phase: "first_byte", status: null },
    { what: "amid the head", response: HEAD, error: "timeout", phase: "first_byte", status: null },
    {
      what: "in the body",
      response: `${HEAD}content-length: 99\r\n\r\nabc`,
      error: "body_timeout",
      phase: "download",
      status: 200,
    },
  ] as const,
)("check() takes silence $what for $error", async ({ response, error, phase, status }) => {
  await using server = await serveRaw((socket) => void socket.write(response));
  const metric = await checkUrl(server.url, { timeoutMs: 150, regex: "abc" });
  assertConsistent(metric);
  assert.deepEqual(outcome(metric), down(error, phase, status));
  assert.equal(metric.error_message, "no complete response within 150 ms");
  assert.ok(metric.elapsed_ms! >= 145 && metric.elapsed_ms! < 1_000, `${metric.elapsed_ms}`);
  assert.equal(metric.has_regex, null);
});

Deno.test("check() takes a body that drips for ever for body_timeout", async () => {
  await using server = await serveRaw((socket) => {
    socket.write(`${HEAD}\r\n`);
    const timer = setInterval(() => socket.write("drip"), 5);
    socket.on("close", () => clearInterval(timer));
  });
  const metric = await checkUrl(server.url, { timeoutMs: 150 });
  assertConsistent(metric);
  assert.deepEqual(outcome(metric), down("body_timeout", "download", 200));
});

Deno.test("check() takes a TLS handshake without an answer for timeout", async () => {
  await using server = await serveRaw(() => {});
  const metric = await checkUrl(`https://127.0.0.1:${server.port}/`, { timeoutMs: 150 });
  assert.deepEqual(outcome(metric), down("timeout", "first_byte", null));
});

async function certificateFor(names: readonly string[], notBefore?: Date, notAfter?: Date) {
  const { certificate, key } = await authority.issue({
    commonName: "site",
    names,
    ...(notBefore && { notBefore }),
    ...(notAfter && { notAfter }),
  });
  return { cert: certificate, key };
}

const LONG_AGO = new Date("2025-01-01T00:00:00Z");

Deno.test.each([
  { what: "a good certificate", names: ["localhost"], error: null, message: null },
  {
    what: "an expired certificate",
    names: ["localhost"],
    notBefore: LONG_AGO,
    notAfter: new Date(LONG_AGO.getTime() + DAY_MS),
    error: "tls_expired",
    message: /^.*certificate expired: not valid after 2025-01-02T00:00:00.000Z$/,
  },
  {
    what: "a certificate of tomorrow",
    names: ["localhost"],
    notBefore: new Date(Date.now() + DAY_MS),
    error: "tls_not_yet_valid",
    message: /^.*certificate not valid yet: not valid before \d{4}-\d\d-\d\dT.*Z$/,
  },
  {
    what: "a certificate of another name",
    names: ["other.example"],
    error: "tls_name",
    message: /certificate not valid for name "localhost"; certificate is only valid for DnsName\("other.example"\)$/,
  },
  {
    what: "a certificate of an authority that it does not know",
    names: ["localhost"],
    trusted: false,
    error: "tls_untrusted",
    message: /UnknownIssuer$/,
  },
])("check() takes $what for $error", async ({ names, notBefore, notAfter, trusted = true, error, message }) => {
  await using server = serve(() => new Response("It works"), await certificateFor(names, notBefore, notAfter));
  using client = trusted
    ? Deno.createHttpClient({ caCerts: [authority.certificate], poolMaxIdlePerHost: 0 })
    : createClient();
  const metric = await checkUrl(`https://localhost:${server.port}/`, {}, { client });
  assertConsistent(metric);
  assert.deepEqual(
    outcome(metric),
    error === null
      ? { verdict: "up", error, failed_phase: null, status_code: 200 }
      : down(error as Metric["error"], "tls", null),
  );
  if (message === null) assert.equal(metric.error_message, null);
  else assert.match(metric.error_message!, message);
});

Deno.test.each([
  { what: "plain HTTP on a TLS port", answer: send("HTTP/1.1 400 Bad Request\r\n\r\n") },
  { what: "the end of the connection in the TLS handshake", answer: (socket: Socket) => void socket.destroy() },
])("check() takes $what for tls_other", async ({ answer }) => {
  await using server = await serveRaw(answer);
  const metric = await checkUrl(`https://127.0.0.1:${server.port}/`);
  assert.deepEqual(outcome(metric), down("tls_other", "tls", null));
});

/** Failures that need another system, or minutes: the text alone, as the runtime has it there. */
Deno.test.each(
  [
    ["tcp connect error: Connection timed out (os error 110)", "connect_timeout", "connect"],
    ["tcp connect error: No route to host (os error 113)", "unreachable", "connect"],
    ["dns error: failed to lookup address information: Temporary failure in name resolution", "dns_other", "dns"],
    ["dns error: failed to lookup address information: Name does not resolve", "dns_not_found", "dns"],
    ["dns error: failed to lookup address information: nodename nor servname provided", "dns_not_found", "dns"],
  ] as const,
)("check() takes '%s' for %s", async (text, error, phase) => {
  const cause = new Error(`error sending request for url (http://x.example/): client error (Connect): ${text}`);
  const fetch = () => Promise.reject(new TypeError("fetch failed", { cause }));
  const metric = await checkUrl("http://x.example/", {}, { fetch });
  assert.deepEqual(outcome(metric), down(error, phase, null));
  assert.equal(metric.error_message, text.replace(/ \(os error \d+\)$/, ""));
});

Deno.test("check() leaves addresses and ports out of the message, which differ from check to check", async () => {
  await using server = await serveRaw((socket) => void socket.destroy());
  const { error_message } = await checkUrl(server.url);
  assert.equal(error_message, "connection closed before message completed");
});

Deno.test("check() follows redirects, counts them and says where it came to", async () => {
  await using server = serve(async (request) => {
    await delay(30);
    const { pathname } = new URL(request.url);
    return pathname === "/end"
      ? new Response("It works")
      : new Response("moved", { status: 302, headers: { location: pathname === "/" ? "/next" : "end" } });
  });
  const metric = await checkUrl(server.url, { regex: "works" });
  assertConsistent(metric);
  assert.equal(metric.verdict, "up");
  assert.equal(metric.url, server.url);
  assert.equal(metric.final_url, `${server.url}end`);
  assert.equal(metric.redirects, 2);
  assert.equal(metric.body_bytes, 8);
  assert.ok(metric.first_byte_ms! >= 80, "redirects are part of the time");
});

Deno.test("check() follows ten redirects and no eleventh", async () => {
  await using server = serve((request) => {
    const left = Number(new URL(request.url).searchParams.get("left"));
    return left === 0
      ? new Response("It works")
      : new Response(null, { status: 301, headers: { location: `/?left=${left - 1}` } });
  });
  const ten = await checkUrl(`${server.url}?left=10`);
  assert.equal(ten.verdict, "up");
  assert.equal(ten.redirects, 10);
  const eleven = await checkUrl(`${server.url}?left=11`);
  assertConsistent(eleven);
  assert.deepEqual(outcome(eleven), down("redirect_loop", "first_byte", 301));
  assert.equal(eleven.redirects, 10);
});

Deno.test("check() does not wait for the body of a redirect", async () => {
  await using server = await serveRaw((socket) =>
    void socket.write("HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 99\r\n\r\nabc")
  );
  assert.equal((await checkUrl(server.url)).error, "redirect_loop");
});

Deno.test("check() takes a redirect without a location as it is", async () => {
  await using server = serve(() => new Response("It works", { status: 302 }));
  const metric = await checkUrl(server.url, { regex: "works" });
  assert.equal(metric.verdict, "up");
  assert.equal(metric.final_url, null);
});

Deno.test.each([
  ["file:///etc/passwd", "expected a redirect to http(s) on a port that fetch allows, got 'file:///etc/passwd'"],
  ["data:,x", "expected a redirect to http(s) on a port that fetch allows, got 'data:,x'"],
  [
    "//user:secret@x.example:25/",
    "expected a redirect to http(s) on a port that fetch allows, got 'http://x.example:25/'",
  ],
  ["http://[", "expected a URL to be redirected to, got 'http://['"],
])("check() does not follow a redirect to %s", async (location, message) => {
  await using server = serve(() => new Response(null, { status: 307, headers: { location } }));
  const metric = await checkUrl(server.url);
  assertConsistent(metric);
  assert.deepEqual(outcome(metric), down("redirect_denied", "first_byte", 307));
  assert.equal(metric.error_message, message);
});

Deno.test("check() tells of the redirect when the site behind it is down", async () => {
  const [port] = freePorts(1);
  await using server = serve(() => Response.redirect(`http://127.0.0.1:${port}/`));
  const metric = await checkUrl(server.url);
  assert.deepEqual(outcome(metric), down("refused", "connect", 302));
  assert.equal(metric.redirects, 1);
  assert.equal(metric.final_url, `http://127.0.0.1:${port}/`);
});

Deno.test("check() sends user and password to the site, and to no other origin", async () => {
  const seen: (string | null)[] = [];
  const see = (request: Request) => void seen.push(request.headers.get("authorization"));
  await using other = serve((request) => {
    see(request);
    return new Response("It works");
  });
  await using server = serve((request) => {
    see(request);
    return Response.redirect(new URL(request.url).pathname === "/" ? `${server.url}again` : other.url);
  });
  const metric = await checkUrl(server.url, { request: { ...DEFAULT_REQUEST, authorization: "Basic eDp5" } });
  assert.equal(metric.verdict, "up");
  assert.deepEqual(seen, ["Basic eDp5", "Basic eDp5", null]);
});

Deno.test("check() follows a location with user and password without them", async () => {
  await using server = serve((request) => {
    assert.equal(request.headers.get("authorization"), null);
    const { pathname, port } = new URL(request.url);
    return pathname === "/end"
      ? new Response("It works")
      : new Response(null, { status: 302, headers: { location: `http://user:secret@127.0.0.1:${port}/end` } });
  });
  const metric = await checkUrl(server.url);
  assert.equal(metric.verdict, "up");
  assert.equal(metric.final_url, `${server.url}end`);
});

Deno.test.each([
  { type: "text/html; charset=latin1", body: [0xe9], hasRegex: true },
  { type: 'text/html;Charset="ISO-8859-1"', body: [0xe9], hasRegex: true },
  { type: "text/html; charset=utf-8", body: [0xc3, 0xa9], hasRegex: true },
  { type: "text/html", body: [0xc3, 0xa9], hasRegex: true },
  { type: "text/html", body: [0xe9], hasRegex: false },
  { type: "text/html; charset=klingon", body: [0xc3, 0xa9], hasRegex: true },
])("check() reads $type as its encoding says: $hasRegex for $body", async ({ type, body, hasRegex }) => {
  await using server = serve(() => new Response(new Uint8Array(body), { headers: { "content-type": type } }));
  const metric = await checkUrl(server.url, { regex: "^é$" });
  assert.equal(metric.has_regex, hasRegex);
  assert.equal(metric.body_bytes, body.length);
});

Deno.test("check() matches across the pieces of a body, and counts and hashes all of it", async () => {
  const text = "é".repeat(100_000) + "needle" + "é".repeat(100_000);
  await using server = serve(() => new Response(text));
  const metric = await checkUrl(server.url, { regex: "éneedleé" });
  assert.equal(metric.has_regex, true);
  assert.equal(metric.body_bytes, 400_006);
  assert.equal(metric.body_sha256, createHash("sha256").update(text).digest("hex"));
});

Deno.test("check() counts, hashes and matches the decoded body", async () => {
  const response = withBody(`${HEAD}content-encoding: gzip\r\n`, GZIP);
  await using server = await serveRaw(send(response));
  const metric = await checkUrl(server.url, { regex: "(?:site_checker ){100}" });
  assert.equal(metric.has_regex, true);
  assert.equal(metric.body_bytes, 1_300);
  assert.equal(metric.body_sha256, createHash("sha256").update("site_checker ".repeat(100)).digest("hex"));
});

Deno.test("check() has no hash but that of nothing for an empty body", async () => {
  await using server = serve(() => new Response(null, { status: 204 }));
  const metric = await checkUrl(server.url, { regex: "x" });
  assert.equal(metric.has_regex, false);
  assert.equal(metric.body_bytes, 0);
  assert.equal(metric.body_sha256, createHash("sha256").digest("hex"));
});

Deno.test("check() does not count the pattern's time as the site's", async () => {
  await using server = serve(() => new Response("It works"));
  const regexp = /works/;
  regexp.exec = () => {
    const until = performance.now() + 200;
    while (performance.now() < until);
    return null;
  };
  const texts = [{ error: "regex", pattern: { text: "works", regexp, linear: true } }] as const;
  const { response_time, elapsed_ms } = await checkUrl(server.url, { expectations: { texts } });
  assert.ok(response_time! < 150, `response_time ${response_time}`);
  assert.ok(elapsed_ms! >= 195, `elapsed_ms ${elapsed_ms}`);
});

Deno.test("check() makes a new connection each time", async () => {
  const ports = new Set<number>();
  await using server = serve((_request, { remoteAddr }) => {
    ports.add(remoteAddr.port);
    return new Response("It works");
  });
  using client = createClient();
  for (let i = 0; i < 3; i++) await checkUrl(server.url, {}, { client });
  assert.equal(ports.size, 3);
});

Deno.test("check() rejects with the reason of the signal that ends it", async () => {
  await using server = await serveRaw(() => {});
  const controller = new AbortController();
  const reason = new Error("ended");
  const checking = checkUrl(server.url, {}, { signal: controller.signal });
  await delay(50);
  controller.abort(reason);
  await assert.rejects(checking, reason);
  await assert.rejects(checkUrl(server.url, {}, { signal: controller.signal }), reason);
});

Deno.test("check() rejects when a signal with a timeout of its own ends it", async () => {
  await using server = await serveRaw(() => {});
  await assert.rejects(checkUrl(server.url, {}, { signal: AbortSignal.timeout(50) }), { name: "TimeoutError" });
});

Deno.test("check() throws what is this machine's fault", async () => {
  await using server = serve(() => new Response("It works"));
  // An address of a documentation network, which this machine does not have.
  using client = Deno.createHttpClient({ localAddress: "203.0.113.77", poolMaxIdlePerHost: 0 });
  const settings: ClientSettings = { ...DEFAULT_CLIENT, ipVersion: "4" };
  await assert.rejects(checkUrl(server.url, { client: settings }, { client }), TypeError);
});

Deno.test.each([
  "tcp open error: Too many open files (os error 24)",
  "tcp connect error: Cannot assign requested address (os error 99)",
  "tcp connect error: Operation not permitted (os error 1)",
])("check() throws '%s', which is this machine's fault", async (text) => {
  const error = new TypeError("fetch failed", { cause: new Error(`client error (Connect): ${text}`) });
  await assert.rejects(checkUrl("http://x.example/", {}, { fetch: () => Promise.reject(error) }), error);
});

Deno.test.each([
  { what: "an address", flags: ["--allow-net=example.com"], host: "127.0.0.1", denied: "127.0.0.1" },
  { what: "a name", flags: ["--allow-net=example.com"], host: "localhost", denied: "localhost" },
  {
    what: "a name whose address is denied",
    flags: ["--allow-net", "--deny-net=127.0.0.0/8,[::1]"],
    host: "localhost",
    denied: "(?:127.0.0.1|\\[::1\\])",
  },
])("check() throws where the permission for $what is missing", async ({ flags, host, denied }) => {
  const script = `
    import { check } from ${JSON.stringify(import.meta.resolve("../lib/check.ts"))};
    import { createClient } from ${JSON.stringify(import.meta.resolve("../lib/client.ts"))};
    import { Evaluator } from ${JSON.stringify(import.meta.resolve("../lib/evaluator.ts"))};
    using client = createClient();
    using evaluator = new Evaluator();
    try {
      const metric = await check(${
    JSON.stringify(siteOf(`http://${host}:8080/`))
  }, { scheduledAt: new Date(), client, evaluator });
      console.log("metric", metric.error);
    } catch (error) {
      console.log(error.name, error.message);
    }`;
  const process = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-prompt", ...flags, "-"],
    cwd: new URL("..", import.meta.url),
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const writer = process.stdin.getWriter();
  await writer.write(new TextEncoder().encode(script));
  await writer.close();
  const { stdout } = await process.output();
  assert.match(
    new TextDecoder().decode(stdout),
    new RegExp(`^NotCapable Requires net access to "${denied}:8080", run again with the --allow-net flag\n$`),
  );
});
