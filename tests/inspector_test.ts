import assert from "node:assert/strict";
import { check, type CheckOptions } from "../lib/check.ts";
import { type ClientSettings, createClient, DEFAULT_CLIENT } from "../lib/client.ts";
import { DEFAULT_LIMITS, type Site } from "../lib/site.ts";
import { inspectConnection } from "../lib/connection.ts";
import { Evaluator } from "../lib/evaluator.ts";
import { DEFAULT_EXPECTATIONS } from "../lib/expectation.ts";
import { Inspector, type InspectorOptions } from "../lib/inspector.ts";
import { LookUps } from "../lib/lookup.ts";
import type { Metric } from "../lib/metric.ts";
import { DEFAULT_REQUEST } from "../lib/request.ts";
import { createAuthority } from "../local/certificate.ts";
import { freePorts } from "../local/port.ts";
import { listenDeaf, serve, serveRaw } from "./servers.ts";

const DAY_MS = 24 * 60 * 60 * 1000;
const authority = await createAuthority("site_checker tests");
const trusting: ClientSettings = { ...DEFAULT_CLIENT, ca: authority.certificate };

function siteOf(
  url: string,
  { connectTimeoutMs = null, ...settings }: Partial<Site> & { connectTimeoutMs?: number | null } = {},
): Site {
  return {
    name: "site",
    url,
    host: new URL(url).host,
    hostname: new URL(url).hostname,
    request: DEFAULT_REQUEST,
    client: DEFAULT_CLIENT,
    limits: { ...DEFAULT_LIMITS, connectTimeoutMs },
    regex: null,
    expectations: DEFAULT_EXPECTATIONS,
    retries: 0,
    retryIntervalMs: 0,
    excerptBytes: 0,
    intervalMs: 60_000,
    cron: null,
    jitterMs: 0,
    failingIntervalMs: null,
    maintenance: null,
    timeoutMs: 5_000,
    inspectIntervalMs: 60_000,
    tags: null,
    location: null,
    producer: null,
    ...settings,
  };
}

async function checkSite(site: Site, inspector: Inspector, options: Partial<CheckOptions> = {}): Promise<Metric> {
  using client = createClient(site.client);
  using evaluator = new Evaluator();
  return await check(site, { scheduledAt: new Date(), client, evaluator, inspector, ...options });
}

/** An inspector that counts its looks. */
function counting(options: InspectorOptions = {}) {
  const looks: string[] = [];
  const inspector = new Inspector({
    ...options,
    inspect: (url, options) => {
      looks.push(url);
      return inspectConnection(url, options);
    },
  });
  return { inspector, looks };
}

function outcome({ error, failed_phase, error_message, ip }: Metric) {
  return { error, failed_phase, error_message, ip };
}

Deno.test("check() has the connection in its metric beside whose very check it was looked at, and no other", async () => {
  await using server = serve(() => new Response("It works"));
  let now = 0;
  const { inspector } = counting({ now: () => now });
  const site = siteOf(server.url);
  const ips: (string | null)[] = [];
  for (const time of [0, 20_000, 40_000, 60_000, 80_000]) {
    now = time;
    const { ip, connect_ms, dns_ms, error } = await checkSite(site, inspector);
    assert.equal(error, null);
    assert.equal(connect_ms === null, ip === null);
    assert.equal(dns_ms === null, ip === null);
    ips.push(ip);
  }
  assert.deepEqual(ips, ["127.0.0.1", null, null, "127.0.0.1", null]);
});

Deno.test.each([
  { what: "beside every check", inspectIntervalMs: 0, looks: 3 },
  { what: "beside the first", inspectIntervalMs: 60_000, looks: 1 },
  { what: "never", inspectIntervalMs: Infinity, looks: 0 },
  { what: "before every check", inspectIntervalMs: Infinity, connectTimeoutMs: 1_000, looks: 3 },
  { what: "never behind a proxy", inspectIntervalMs: 0, proxy: true, looks: 0 },
])("check() looks at the connection $what", async ({ looks: expected, proxy = false, ...settings }) => {
  await using server = serve(() => new Response("It works"));
  const { inspector, looks } = counting();
  const client = { ...DEFAULT_CLIENT, proxy: proxy ? { url: server.url } : null };
  const site = siteOf(server.url, { ...settings, client });
  for (let i = 0; i < 3; i++) assert.equal((await checkSite(site, inspector)).verdict, "up");
  assert.equal(looks.length, expected);
});

Deno.test("check() has the certificate of a site with TLS, and knows it beside later checks", async () => {
  const { certificate, key } = await authority.issue({ commonName: "site", names: ["localhost"] });
  await using server = serve(() => new Response("It works"), { cert: certificate, key });
  const { inspector } = counting();
  const site = siteOf(`https://localhost:${server.port}/`, { client: trusting });
  const metric = await checkSite(site, inspector);
  assert.deepEqual([metric.cert_subject, metric.cert_issuer], ["CN=site", "CN=site_checker tests"]);
  assert.match(metric.tls_version!, /^TLSv1\.\d$/);
  assert.deepEqual(inspector.known(site), { tlsVersion: metric.tls_version, certExpiresAt: metric.cert_expires_at });
  assert.equal((await checkSite(site, inspector)).cert_expires_at, null);
});

Deno.test("check() has the certificate of a site that is down because of it, with connect_timeout too", async () => {
  const { certificate, key } = await authority.issue({
    commonName: "site",
    names: ["localhost"],
    notBefore: new Date("2025-01-01T00:00:00Z"),
    notAfter: new Date("2025-01-02T00:00:00Z"),
  });
  await using server = serve(() => new Response("It works"), { cert: certificate, key });
  for (const connectTimeoutMs of [null, 2_000]) {
    const { inspector, looks } = counting();
    const site = siteOf(`https://localhost:${server.port}/`, {
      client: trusting,
      connectTimeoutMs,
      inspectIntervalMs: Infinity,
    });
    const metric = await checkSite(site, inspector);
    assert.deepEqual([metric.error, metric.failed_phase], ["tls_expired", "tls"]);
    assert.equal(metric.cert_expires_at, "2025-01-02T00:00:00.000Z");
    assert.equal(metric.error_message, "certificate expired: not valid after 2025-01-02T00:00:00.000Z");
    assert.equal(looks.length, 1);
  }
});

Deno.test.each([
  {
    what: "a port that is closed",
    url: () => `http://localhost:${freePorts(1)[0]}/`,
    expected: ["refused", "connect", "connection refused (ECONNREFUSED)", "127.0.0.1"],
  },
  {
    what: "a name that is not there",
    url: () => "http://nowhere.invalid/",
    expected: ["dns_not_found", "dns", "no address of that name (ENOTFOUND)", null],
  },
  {
    what: "an address without a route",
    url: () => "http://255.255.255.255/",
    expected: ["unreachable", "connect", "network unreachable (ENETUNREACH)", "255.255.255.255"],
  },
])("check() names $what as the look at once after it does", async ({ url, expected }) => {
  const { inspector, looks } = counting();
  const metric = await checkSite(siteOf(url(), { inspectIntervalMs: Infinity }), inspector);
  assert.deepEqual(Object.values(outcome(metric)), expected);
  assert.equal(looks.length, 1);
});

Deno.test("check() takes a connection that nobody takes for connect_timeout, and does not last longer for it", async () => {
  await using server = await listenDeaf();
  const { inspector } = counting();
  const site = siteOf(server.url, { inspectIntervalMs: Infinity, timeoutMs: 200 });
  assert.deepEqual(outcome(await checkSite(site, inspector)), {
    error: "connect_timeout",
    failed_phase: "connect",
    error_message: "no connection within the time of the check",
    ip: "127.0.0.1",
  });
});

Deno.test("check() ends at connect_timeout, without a request, where there is no connection by then", async () => {
  await using server = await listenDeaf();
  const { inspector } = counting();
  const fetch = () => assert.fail("a request");
  const site = siteOf(server.url, { connectTimeoutMs: 50 });
  const metric = await checkSite(site, inspector, { fetch });
  assert.deepEqual(outcome(metric), {
    error: "connect_timeout",
    failed_phase: "connect",
    error_message: "no connection within 50ms",
    ip: "127.0.0.1",
  });
  assert.deepEqual([metric.status_code, metric.response_time, metric.redirects], [null, null, null]);
});

Deno.test("check() says that the connection is good where a response does not come", async () => {
  await using server = await serveRaw(() => {});
  const { inspector } = counting();
  const metric = await checkSite(siteOf(server.url, { inspectIntervalMs: Infinity, timeoutMs: 200 }), inspector);
  assert.deepEqual([metric.error, metric.failed_phase, metric.ip], ["timeout", "first_byte", "127.0.0.1"]);
});

Deno.test("check() does not look where a redirect led", async () => {
  await using server = serve(() => Response.redirect(`http://127.0.0.1:${freePorts(1)[0]}/`));
  const { inspector, looks } = counting();
  const metric = await checkSite(siteOf(server.url, { inspectIntervalMs: Infinity }), inspector);
  assert.deepEqual([metric.error, metric.ip], ["refused", null]);
  assert.deepEqual(looks, []);
});

Deno.test("check() keeps what fetch says where the look finds the site well", async () => {
  await using server = serve(() => new Response("It works"));
  const { inspector } = counting();
  const cause = new Error("client error (Connect): tcp connect error: Connection refused (os error 111)");
  const fetch = () => Promise.reject(new TypeError("fetch failed", { cause }));
  const metric = await checkSite(siteOf(server.url), inspector, { fetch });
  assert.deepEqual(outcome(metric), {
    error: "refused",
    failed_phase: "connect",
    error_message: "tcp connect error: Connection refused",
    ip: "127.0.0.1",
  });
});

Deno.test("check() goes on where no look-up has a place in time", async () => {
  await using server = serve(() => new Response("It works"));
  const { promise, resolve } = Promise.withResolvers<{ address: string }[]>();
  const lookUps = new LookUps({ atOnce: 1, resolve: () => promise });
  const taken = lookUps.addresses("x.example", { signal: AbortSignal.timeout(60_000), placeMs: 60_000 });
  const { inspector } = counting({ lookUps });
  const url = `http://localhost:${server.port}/`;
  const metric = await checkSite(siteOf(url, { connectTimeoutMs: 30 }), inspector);
  assert.deepEqual([metric.verdict, metric.ip], ["up", null]);
  resolve([]);
  await taken;
});

Deno.test("check() makes a result of a check whose look failed for a reason of ours, and tells of it", async () => {
  await using server = serve(() => new Response("It works"));
  const error = new Deno.errors.NotCapable("Requires net access");
  const told: unknown[] = [];
  const inspector = new Inspector({
    inspect: () => Promise.reject(error),
    onFault: (site, error) => told.push(site.name, error),
  });
  assert.equal((await checkSite(siteOf(server.url), inspector)).verdict, "up");
  assert.deepEqual(told, ["site", error]);
  const site = siteOf(`http://127.0.0.1:${freePorts(1)[0]}/`);
  await assert.rejects(checkSite(site, inspector), error);
  await assert.rejects(checkSite(siteOf(server.url, { connectTimeoutMs: 1_000 }), inspector), error);
});

Deno.test("check() rejects with the reason of the signal while it looks", async () => {
  await using server = await listenDeaf();
  const reason = new Error("ended");
  const controller = new AbortController();
  const { inspector } = counting();
  const checking = checkSite(siteOf(server.url, { connectTimeoutMs: 2_000 }), inspector, { signal: controller.signal });
  setTimeout(() => controller.abort(reason), 30);
  await assert.rejects(checking, reason);
});

Deno.test("check() degrades a site by a certificate that was looked at beside another check", async () => {
  const { certificate, key } = await authority.issue({
    commonName: "site",
    names: ["localhost"],
    notAfter: new Date(Date.now() + 5 * DAY_MS),
  });
  await using server = serve(() => new Response("It works"), { cert: certificate, key });
  const { inspector } = counting();
  const site = siteOf(`https://localhost:${server.port}/`, {
    client: trusting,
    expectations: { ...DEFAULT_EXPECTATIONS, warnCertDays: 30 },
  });
  for (let i = 0; i < 2; i++) {
    const { verdict, error } = await checkSite(site, inspector);
    assert.deepEqual([verdict, error], ["degraded", "cert_validity"]);
  }
});
