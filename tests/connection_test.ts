import assert from "node:assert/strict";
import type { AddressInfo, Socket } from "node:net";
import { createServer } from "node:tls";
import { inspectConnection, type InspectConnectionOptions, type Inspection } from "../lib/connection.ts";
import { LookUps } from "../lib/lookup.ts";
import { createAuthority } from "../local/certificate.ts";
import { freePorts } from "../local/port.ts";
import { listenDeaf, send, serve, serveRaw } from "./servers.ts";

const DAY_MS = 24 * 60 * 60 * 1000;
const LONG_AGO = new Date("2025-01-01T00:00:00Z");
const authority = await createAuthority("site_checker tests");
const trusting = { tls: { ca: authority.certificate } };

async function inspect(url: string, options: Partial<InspectConnectionOptions> = {}): Promise<Inspection> {
  const inspection = await inspectConnection(url, { timeoutMs: 5_000, ...options });
  assert.ok(inspection !== null, "a place is free");
  return inspection;
}

function outcome({ ip, dnsMs, connectMs, tlsMs, failure }: Inspection) {
  const reached = { dns: dnsMs !== null, connect: connectMs !== null, tls: tlsMs !== null };
  return { ip, reached, error: failure?.error ?? null, phase: failure?.phase ?? null };
}

async function certified(issue: { names: readonly string[]; notBefore?: Date; notAfter?: Date }) {
  const { certificate, key } = await authority.issue({ commonName: "site", ...issue });
  return { cert: certificate, key };
}

Deno.test("inspectConnection() looks at a connection without TLS", async () => {
  await using server = serve(() => new Response());
  const inspection = await inspect(server.url);
  assert.deepEqual(outcome(inspection), {
    ip: "127.0.0.1",
    reached: { dns: true, connect: true, tls: false },
    error: null,
    phase: null,
  });
  assert.deepEqual(inspection.addresses, ["127.0.0.1"]);
  assert.equal(inspection.dnsMs, 0);
  assert.deepEqual(inspection.chain, []);
});

Deno.test("inspectConnection() says whose certificate a server has, who issued it and how long it holds", async () => {
  const [notBefore, notAfter] = [new Date("2026-01-01T00:00:00Z"), new Date(Date.now() + 9 * DAY_MS)];
  await using server = serve(() => new Response(), await certified({ names: ["localhost"], notBefore, notAfter }));
  const inspection = await inspect(`https://localhost:${server.port}/`, trusting);
  assert.equal(inspection.failure, null);
  assert.match(inspection.tlsVersion!, /^TLSv1\.[23]$/);
  assert.match(inspection.cipher!, /^TLS_/);
  assert.equal(inspection.alpn, "h2");
  assert.ok(inspection.tlsMs! > 0);
  const [own, issuer] = inspection.chain;
  const toSecond = (time: Date) => new Date(Math.floor(time.getTime() / 1000) * 1000).toISOString();
  assert.deepEqual(own, {
    subject: "CN=site",
    issuer: "CN=site_checker tests",
    validFrom: toSecond(notBefore),
    expiresAt: toSecond(notAfter),
  });
  assert.equal(issuer?.subject, "CN=site_checker tests");
  assert.equal(inspection.chain.length, 2, "the last one's issuer is itself");
});

Deno.test.each([
  {
    what: "has expired",
    issue: { names: ["localhost"], notBefore: LONG_AGO, notAfter: new Date(LONG_AGO.getTime() + DAY_MS) },
    error: "tls_expired",
    message: /^certificate expired: not valid after 2025-01-02T00:00:00.000Z$/,
  },
  {
    what: "is not valid yet",
    issue: {
      names: ["localhost"],
      notBefore: new Date("2100-01-01T00:00:00Z"),
      notAfter: new Date("2100-01-02T00:00:00Z"),
    },
    error: "tls_not_yet_valid",
    message: /^certificate not valid yet: not valid before 2100-01-01T00:00:00.000Z$/,
  },
  {
    what: "is for another name",
    issue: { names: ["other.example"] },
    error: "tls_name",
    message: /localhost.* is not in the cert's altnames: DNS:other.example$/,
  },
  {
    what: "is of an authority that nobody knows",
    issue: { names: ["localhost"] },
    options: {},
    error: "tls_untrusted",
    message: /^certificate not trusted \(UNABLE_TO_VERIFY_LEAF_SIGNATURE\)$/,
  },
])(
  "inspectConnection() looks at a certificate that $what, too: $error",
  async ({ issue, options = trusting, error, message }) => {
    await using server = serve(() => new Response(), await certified(issue));
    const inspection = await inspect(`https://localhost:${server.port}/`, options);
    assert.deepEqual(outcome(inspection), {
      ip: "127.0.0.1",
      reached: { dns: true, connect: true, tls: true },
      error,
      phase: "tls",
    });
    assert.match(inspection.failure!.message, message);
    assert.equal(inspection.chain[0]?.subject, "CN=site");
  },
);

Deno.test.each([
  { names: ["127.0.0.1"], error: null },
  { names: ["localhost"], error: "tls_name" },
])("inspectConnection() holds a certificate for $names against an address: $error", async ({ names, error }) => {
  await using server = serve(() => new Response(), await certified({ names }));
  const { failure } = await inspect(`https://127.0.0.1:${server.port}/`, trusting);
  assert.equal(failure?.error ?? null, error);
});

Deno.test("inspectConnection() takes a name with a dot at its end for the name", async () => {
  await using server = serve(() => new Response(), await certified({ names: ["localhost"] }));
  const lookUps = new LookUps({ resolve: () => Promise.resolve([{ address: "127.0.0.1" }]) });
  assert.equal((await inspect(`https://localhost.:${server.port}/`, { ...trusting, lookUps })).failure, null);
});

Deno.test.each([
  {
    what: "a closed port",
    port: () => freePorts(1)[0],
    error: "refused",
    message: "connection refused (ECONNREFUSED)",
  },
])("inspectConnection() takes $what for $error", async ({ port, error, message }) => {
  const { failure, ip, connectMs } = await inspect(`http://localhost:${port()}/`);
  assert.deepEqual({ failure, ip, connectMs }, {
    failure: { error, phase: "connect", message, timedOut: false },
    ip: "127.0.0.1",
    connectMs: null,
  });
});

Deno.test("inspectConnection() takes an address without a route for unreachable", async () => {
  const { failure } = await inspect("http://255.255.255.255/");
  assert.deepEqual(failure, {
    error: "unreachable",
    phase: "connect",
    message: "network unreachable (ENETUNREACH)",
    timedOut: false,
  });
});

Deno.test("inspectConnection() takes a name that is not there for dns_not_found", async () => {
  const inspection = await inspect("https://nowhere.invalid/");
  assert.deepEqual(outcome(inspection), {
    ip: null,
    reached: { dns: false, connect: false, tls: false },
    error: "dns_not_found",
    phase: "dns",
  });
  assert.equal(inspection.failure?.message, "no address of that name (ENOTFOUND)");
});

Deno.test("inspectConnection() ends a connection that nobody takes after its time", async () => {
  await using server = await listenDeaf();
  assert.deepEqual((await inspect(server.url, { timeoutMs: 50 })).failure, {
    error: "connect_timeout",
    phase: "connect",
    message: "no connection within 50ms",
    timedOut: true,
  });
});

Deno.test("inspectConnection() ends a TLS handshake without an answer after its time", async () => {
  await using server = await serveRaw(() => {});
  assert.deepEqual((await inspect(`https://127.0.0.1:${server.port}/`, { timeoutMs: 50 })).failure, {
    error: "connect_timeout",
    phase: "tls",
    message: "no end of the TLS handshake within 50ms",
    timedOut: true,
  });
});

Deno.test("inspectConnection() ends a look-up without an answer after its time", async () => {
  const lookUps = new LookUps({ resolve: () => new Promise(() => {}) });
  assert.deepEqual((await inspect("http://x.example/", { timeoutMs: 20, lookUps })).failure, {
    error: "connect_timeout",
    phase: "dns",
    message: "no answer to the look-up of the name within 20ms",
    timedOut: true,
  });
});

Deno.test.each([
  { what: "a reset", answer: (socket: Socket) => void socket.resetAndDestroy(), error: "reset" },
  { what: "its end", answer: (socket: Socket) => void socket.destroy(), error: "reset" },
  { what: "plain HTTP", answer: send("HTTP/1.1 400 Bad Request\r\n\r\n"), error: "tls_other" },
  { what: "a fatal alert", answer: send(new Uint8Array([21, 3, 3, 0, 2, 2, 40])), error: "tls_other" },
])("inspectConnection() takes $what in the TLS handshake for $error", async ({ answer, error }) => {
  await using server = await serveRaw(answer);
  const inspection = await inspect(`https://127.0.0.1:${server.port}/`);
  assert.deepEqual(outcome(inspection), {
    ip: "127.0.0.1",
    reached: { dns: true, connect: true, tls: false },
    error,
    phase: "tls",
  });
});

Deno.test("inspectConnection() shows its client certificate", async () => {
  const own = await authority.issue({ commonName: "checker" });
  const shown = Promise.withResolvers<string | undefined>();
  const identity = await certified({ names: ["localhost"] });
  const server = createServer(
    { ...identity, ca: authority.certificate, requestCert: true, rejectUnauthorized: false },
    (socket) => {
      shown.resolve(socket.getPeerCertificate().subject?.CN?.toString());
      socket.destroy();
    },
  );
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const tls = { ca: authority.certificate, cert: own.certificate, key: own.key };
  assert.equal((await inspect(`https://localhost:${port}/`, { tls })).failure, null);
  assert.equal(await shown.promise, "checker");
  await new Promise((resolve) => server.close(resolve));
});

Deno.test("inspectConnection() tries the next address where one refuses or stays silent", async () => {
  await using deaf = await listenDeaf();
  const resolve = () => Promise.resolve(["127.0.0.2", "127.0.0.1"].map((address) => ({ address })));
  await using server = serve(() => new Response());
  const refused = await inspect(`http://x.example:${server.port}/`, { lookUps: new LookUps({ resolve }) });
  assert.deepEqual({ ip: refused.ip, failure: refused.failure }, { ip: "127.0.0.1", failure: null });
  assert.deepEqual(refused.addresses, ["127.0.0.2", "127.0.0.1"]);
  assert.deepEqual(refused.attempts, [
    { address: "127.0.0.2", failure: "connection refused (ECONNREFUSED)" },
    { address: "127.0.0.1", failure: null },
  ]);

  using other = Deno.listen({ hostname: "127.0.0.2", port: deaf.port });
  const behind = () => Promise.resolve(["127.0.0.1", "127.0.0.2"].map((address) => ({ address })));
  const silent = await inspect(`http://x.example:${deaf.port}/`, { lookUps: new LookUps({ resolve: behind }) });
  assert.deepEqual({ ip: silent.ip, failure: silent.failure }, { ip: other.addr.hostname, failure: null });
  assert.deepEqual(silent.attempts, [
    { address: "127.0.0.1", failure: "no answer" },
    { address: "127.0.0.2", failure: null },
  ]);
});

Deno.test("inspectConnection() names the failure of the address that was reached, not of a network that is not there", async () => {
  const resolve = () => Promise.resolve(["127.0.0.1", "255.255.255.255"].map((address) => ({ address })));
  const { ip, failure } = await inspect(`http://x.example:${freePorts(1)[0]}/`, { lookUps: new LookUps({ resolve }) });
  assert.deepEqual({ ip, error: failure?.error }, { ip: "127.0.0.1", error: "refused" });
});

Deno.test("inspectConnection() keeps to the version of IP", async () => {
  const { failure } = await inspect("http://127.0.0.1:8080/", { ipVersion: 6 });
  assert.deepEqual([failure?.error, failure?.phase], ["unreachable", "connect"]);
  const families: unknown[] = [];
  const resolve = (_: string, family: 0 | 4 | 6) => {
    families.push(family);
    return Promise.resolve([{ address: "127.0.0.1" }]);
  };
  await inspect(`http://x.example:${freePorts(1)[0]}/`, { ipVersion: 4, lookUps: new LookUps({ resolve }) });
  assert.deepEqual(families, [4]);
});

Deno.test("inspectConnection() finds nothing where no look-up has a place in time", async () => {
  const { promise, resolve } = Promise.withResolvers<{ address: string }[]>();
  const lookUps = new LookUps({ atOnce: 1, resolve: () => promise });
  const first = inspectConnection("http://a.example:9/", { timeoutMs: 5_000, lookUps });
  assert.equal(await inspectConnection("http://b.example/", { timeoutMs: 10, lookUps }), null);
  const ended = AbortSignal.abort(new DOMException("", "TimeoutError"));
  assert.equal(await inspectConnection("http://b.example/", { timeoutMs: 5_000, signal: ended, lookUps }), null);
  resolve([{ address: "255.255.255.255" }]);
  assert.equal((await first)?.failure?.error, "unreachable");
});

Deno.test("inspectConnection() rejects with the reason of the signal that ends it", async () => {
  await using server = await listenDeaf();
  const controller = new AbortController();
  const reason = new Error("ended");
  const looking = inspectConnection(server.url, { timeoutMs: 5_000, signal: controller.signal });
  setTimeout(() => controller.abort(reason), 20);
  await assert.rejects(looking, reason);
  await assert.rejects(inspectConnection(server.url, { timeoutMs: 5_000, signal: controller.signal }), reason);
});

Deno.test("inspectConnection() says that the check's time is up, where that ends it", async () => {
  await using server = await listenDeaf();
  const { failure } = await inspect(server.url, { signal: AbortSignal.timeout(30) });
  assert.deepEqual([failure?.error, failure?.message], [
    "connect_timeout",
    "no connection within the time of the check",
  ]);
});
