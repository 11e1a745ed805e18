import assert from "node:assert/strict";
import { check } from "../lib/check.ts";
import { Clients } from "../lib/client.ts";
import { parseCommandLine } from "../lib/command.ts";
import { readProducerConfig } from "../lib/config.ts";
import { inspectConnection } from "../lib/connection.ts";
import { Evaluator } from "../lib/evaluator.ts";
import type { Site } from "../lib/site.ts";
import { Tokens } from "../lib/token.ts";
import { encodePrintable, type Trace, traceSite } from "../lib/trace.ts";
import { formatTrace } from "../lib/trace_text.ts";
import { createAuthority } from "../local/certificate.ts";
import { freePorts } from "../local/port.ts";
import { REPOSITORY } from "../local/repository.ts";
import { listenDeaf, send, serve, serveRaw, type TestServer } from "./servers.ts";
import { runProgram, temporaryFile } from "./support.ts";

const authority = await createAuthority("site_checker tests");

/** The site of some lines of a section, as the producer reads it; the tests' authority is trusted. */
async function siteOf(lines: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Site> {
  await using file = await temporaryFile("config.ini", ["[website_site]", ...lines].join("\n"));
  const commandLine = parseCommandLine("producer", ["--trace", "--config-path", file.path]);
  assert.ok(typeof commandLine === "object");
  const { sites: [site] } = await readProducerConfig(commandLine, { env: (name) => env[name] });
  return { ...site!, client: { ...site!.client, ca: authority.certificate } };
}

async function trace(...lines: string[]): Promise<Trace> {
  return await traceSite(await siteOf(lines));
}

/** A server with TLS on the loopback address. */
async function serveSecurely(handler: Deno.ServeHandler, issue: { notAfter?: Date; commonName?: string } = {}) {
  const { certificate, key } = await authority.issue({
    commonName: "site",
    names: ["localhost"],
    notBefore: new Date("2025-01-01T00:00:00Z"),
    ...issue,
  });
  return serve(handler, { cert: certificate, key });
}

/** What the rows of the timeline say, without times and bars. */
function timelineOf(trace: Trace): string[] {
  const lines = formatTrace(trace).split("\n");
  const from = lines.findIndex((line) => line.startsWith("Timeline")) + 1;
  return lines.slice(from, lines.indexOf("", from)).filter((line) => /^\S/.test(line))
    .map((line) => line.replace(/\s+[\d.]+ m?s.*$/, ""));
}

Deno.test("traceSite() tells what was asked, what came, and what was expected of it", async () => {
  await using server = serve(() => new Response("It works", { headers: { server: "nginx" } }));
  const traced = await trace(`url = ${server.url}a?b=c`, "regex = w.rks", "headers = accept: text/html");
  const [hop] = traced.hops;
  assert.equal(traced.hops.length, 1);
  assert.equal(hop!.url, `${server.url}a?b=c`);
  assert.deepEqual(hop!.request, {
    method: "GET",
    headers: [{ name: "accept", value: "text/html" }, { name: "user-agent", value: "site_checker" }],
    body_bytes: null,
  });
  assert.deepEqual([hop!.response!.status_code, hop!.response!.status_text], [200, "OK"]);
  assert.ok(hop!.response!.headers.some(({ name, value }) => name === "server" && value === "nginx"));
  assert.equal(hop!.response!.body_start, null, "the site is up");
  assert.ok(hop!.first_byte_ms! > 0 && hop!.download_ms! >= 0 && hop!.elapsed_ms >= hop!.first_byte_ms!);
  const { addresses, attempts, dns_ms, connect_ms, tls_ms, certificates, failure } = hop!.connection!;
  assert.deepEqual(addresses, ["127.0.0.1"]);
  assert.deepEqual(attempts, [{ address: "127.0.0.1", failure: null }]);
  assert.deepEqual({ dns_ms, tls_ms, certificates, failure }, {
    dns_ms: 0,
    tls_ms: null,
    certificates: [],
    failure: null,
  });
  assert.ok(connect_ms! > 0);
  assert.deepEqual(
    traced.expectations.map(({ setting, expected, actual, held }) => [setting, expected, actual, held]),
    [
      ["expected_status", "200-399", 200, true],
      ["regex", "w.rks", "works", true],
    ],
  );
  const { verdict, ip, attempt, final } = traced.metric;
  assert.deepEqual([verdict, ip, attempt, final], ["up", "127.0.0.1", 1, true]);
  assert.deepEqual(timelineOf(traced), [
    ...["ok dns", "ok connect", "ok first byte", "ok download", "ok expectations"],
  ]);
});

Deno.test("traceSite() follows redirects hop by hop, and looks at the connection to each host once", async () => {
  await using secure = await serveSecurely((request) =>
    request.url.endsWith("/end")
      ? new Response("It works")
      : new Response(null, { status: 302, headers: { location: "/end" } })
  );
  await using plain = serve(() => Response.redirect(`https://localhost:${secure.port}/middle`, 301));
  const traced = await trace(`url = ${plain.url}`, "headers = x-plain: a");
  assert.deepEqual(
    traced.hops.map(({ url, request, response, connection }) => ({
      url,
      sent: request!.headers.map(({ name }) => name),
      status: response!.status_code,
      tls: connection?.tls_version ?? null,
    })),
    [
      { url: plain.url, sent: ["accept", "user-agent", "x-plain"], status: 301, tls: null },
      { url: `https://localhost:${secure.port}/middle`, sent: ["accept", "user-agent"], status: 302, tls: "TLSv1.3" },
      { url: `https://localhost:${secure.port}/end`, sent: ["accept", "user-agent"], status: 200, tls: null },
    ],
  );
  assert.deepEqual(traced.hops.map(({ connection }) => connection === null), [false, false, true]);
  const { cipher, alpn, certificates } = traced.hops[1]!.connection!;
  assert.match(cipher!, /^TLS_/);
  assert.equal(alpn, "h2");
  assert.deepEqual(certificates.map(({ subject, issuer }) => [subject, issuer]), [
    ["CN=site", "CN=site_checker tests"],
    ["CN=site_checker tests", "CN=site_checker tests"],
  ]);
  assert.ok(traced.hops.every(({ start_ms }, i) => i === 0 || start_ms >= traced.hops[i - 1]!.start_ms));
  assert.equal(traced.metric.redirects, 2);
  assert.deepEqual(timelineOf(traced), [
    ...["ok 1 dns", "ok 1 connect", "ok 1 first byte", "ok 2 dns", "ok 2 connect", "ok 2 tls", "ok 2 first byte"],
    ...["ok 3 first byte", "ok 3 download", "ok 3 expectations"],
  ]);
});

Deno.test("traceSite() shows the certificate that breaks the check", async () => {
  const notAfter = new Date("2025-01-02T00:00:00Z");
  await using server = await serveSecurely(() => new Response("It works"), { notAfter });
  const traced = await trace(`url = https://localhost:${server.port}/`);
  assert.equal(traced.metric.error, "tls_expired");
  const { request, response, connection } = traced.hops[0]!;
  assert.deepEqual({ request, response }, { request: null, response: null });
  assert.deepEqual([connection!.failure!.error, connection!.failure!.phase], ["tls_expired", "tls"]);
  assert.deepEqual(connection!.certificates[0], {
    subject: "CN=site",
    issuer: "CN=site_checker tests",
    valid_from: "2025-01-01T00:00:00.000Z",
    expires_at: "2025-01-02T00:00:00.000Z",
  });
  assert.deepEqual(timelineOf(traced), ["ok dns", "ok connect", "x  tls"]);
  assert.match(formatTrace(traced), /2025-01-01 to 2025-01-02, expired \d+ days ago\n/);
});

Deno.test.each([
  {
    what: "a port that is closed",
    url: () => `http://localhost:${freePorts(1)[0]}/`,
    error: "refused",
    rows: ["ok dns", "x  connect"],
  },
  { what: "a name that is not there", url: () => "http://nowhere.invalid/", error: "dns_not_found", rows: ["x  dns"] },
])("traceSite() shows how far it came with $what", async ({ url, error, rows }) => {
  const traced = await trace(`url = ${url()}`, "regex = a");
  assert.equal(traced.metric.error, error);
  assert.equal(traced.hops[0]!.request, null);
  assert.equal(traced.hops[0]!.connection!.failure!.error, error);
  assert.deepEqual(timelineOf(traced), rows);
  assert.deepEqual(traced.expectations.map(({ held, note }) => [held, note]), [
    [null, "not reached"],
    [null, "not reached"],
  ]);
  assert.match(formatTrace(traced).split("\n").at(-1)!, new RegExp(`^DOWN  site  ${error}: `));
});

Deno.test("traceSite() sends nothing where connect_timeout finds no connection", async () => {
  await using server = await listenDeaf();
  const traced = await trace(`url = ${server.url}`, "connect_timeout = 50ms");
  const { url, request, connection } = traced.hops[0]!;
  assert.deepEqual({ url, request }, { url: server.url, request: null });
  assert.deepEqual(connection!.attempts, [{ address: "127.0.0.1", failure: "no answer" }]);
  assert.deepEqual(timelineOf(traced), ["ok dns", "x  connect"]);
});

Deno.test("traceSite() shows a head whose body does not come to its end", async () => {
  await using server = await serveRaw((socket) => void socket.write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nIt "));
  const traced = await trace(`url = ${server.url}`, "timeout = 200ms", "regex = works");
  const { response, download_ms, elapsed_ms, first_byte_ms } = traced.hops[0]!;
  assert.equal(traced.metric.error, "body_timeout");
  assert.equal(response!.status_code, 200);
  assert.equal(download_ms, null);
  assert.ok(elapsed_ms > first_byte_ms!);
  assert.deepEqual(traced.expectations.map(({ setting, held }) => [setting, held]), [
    ["expected_status", true],
    ["regex", null],
  ]);
  assert.deepEqual(timelineOf(traced).slice(-2), ["ok first byte", "x  download"]);
});

Deno.test.each([
  { what: "no head", answer: () => {}, lines: ["timeout = 200ms"], error: "timeout", rows: ["x  first byte"] },
  {
    what: "no HTTP",
    answer: send("hello\r\n\r\n"),
    lines: [],
    error: "protocol",
    rows: ["x  first byte"],
  },
  {
    what: "a redirect that is not followed",
    answer: send("HTTP/1.1 302 Found\r\nlocation: ftp://a/\r\ncontent-length: 0\r\n\r\n"),
    lines: [],
    error: "redirect_denied",
    rows: ["x  first byte"],
  },
])("traceSite() shows where $what breaks the check: $error", async ({ answer, lines, error, rows }) => {
  await using server = await serveRaw(answer);
  const traced = await trace(`url = ${server.url}`, ...lines);
  assert.equal(traced.metric.error, error);
  assert.deepEqual(timelineOf(traced), ["ok dns", "ok connect", ...rows]);
  assert.ok(formatTrace(traced).includes(traced.metric.error_message!));
});

Deno.test("traceSite() has each expectation with what came of it, and where the body begins", async () => {
  await using server = serve(() =>
    new Response('{"ok": false}', { headers: { "content-type": "application/json", server: "nginx/1.29" } })
  );
  const traced = await trace(
    ...[`url = ${server.url}`, "expected_status = 200", "regex = ok", "  missing", "regex_absent = false"],
    ...["expected_header = server: nginx", "  content-type", "  x-none", "forbidden_header = x-powered-by"],
    ...["json = ok = false", "max_response_time = 5s", "degraded_after = 4s", "min_bytes = 100"],
    ...["max_bytes = 1kB", "min_cert_days = 3", "min_tls_version = 1.2", "unchanged = yes"],
  );
  assert.deepEqual(traced.expectations.map(({ setting, expected, held }) => [setting, expected, held]), [
    ["expected_status", "200", true],
    ["regex", "ok", true],
    ["regex", "missing", false],
    ["regex_absent", "false", false],
    ["expected_header", "server: nginx", true],
    ["expected_header", "content-type", true],
    ["expected_header", "x-none", false],
    ["forbidden_header", "no x-powered-by", true],
    ["json", "ok = false", true],
    ["max_response_time", 5_000, true],
    ["degraded_after", 4_000, true],
    ["min_bytes", 100, false],
    ["max_bytes", 1_024, true],
    ["min_cert_days", 3, null],
    ["min_tls_version", "1.2", null],
    ["unchanged", "the body of the check before", null],
  ]);
  assert.deepEqual(traced.expectations.map(({ actual }) => actual).slice(0, 9), [
    ...[200, "ok", null, "false", "nginx/1.29", "application/json", null, null, true],
  ]);
  assert.equal(traced.hops[0]!.response!.body_start, '{"ok": false}');
  const unmet = traced.expectations.filter(({ held }) => held === false).map(({ expectation }) => expectation);
  const failed = traced.metric.failed as { expectation: string }[];
  assert.deepEqual(unmet, failed.map(({ expectation }) => expectation), "the verdict says the same");
});

Deno.test("traceSite() says of both bounds that the time is over them, and why an expression has no value", async () => {
  await using server = serve(async () => {
    await new Promise((resolve) => setTimeout(resolve, 30));
    return new Response("text");
  });
  const traced = await trace(`url = ${server.url}`, "max_response_time = 20ms", "degraded_after = 10ms", "json = ok");
  assert.deepEqual(traced.expectations.slice(1).map(({ setting, held, note }) => [setting, held, note]), [
    ["json", false, "the body is not JSON"],
    ["max_response_time", false, null],
    ["degraded_after", false, null],
  ]);
});

Deno.test("traceSite() tells of a look that can't be made beside a check that can", async () => {
  await using end = serve(() => new Response("It works"));
  await using server = serve(() => Response.redirect(`http://localhost:${end.port}/`));
  const site = await siteOf([`url = ${server.url}`]);
  const traced = await traceSite(site, {
    inspect: (url, options) =>
      url.includes("localhost")
        ? Promise.reject(new Deno.errors.NotCapable("Requires net access"))
        : inspectConnection(url, options),
  });
  assert.deepEqual(traced.notes, [
    `the connection to localhost:${end.port} could not be looked at: Requires net access`,
  ]);
  assert.equal(traced.metric.verdict, "up");
  assert.equal(traced.hops[1]!.connection, null);
});

Deno.test("traceSite() says that a site is maintained", async () => {
  await using server = serve(() => new Response("It works"));
  const { notes } = await trace(`url = ${server.url}`, "maintenance = * * * * * 1h", "maintenance_checks = skip");
  assert.deepEqual(notes, ["the site is maintained now: maintenance_checks = skip"]);
});

Deno.test("traceSite() rejects with the reason of the signal, and with a fault of ours", async () => {
  await using server = await listenDeaf();
  const site = await siteOf([`url = ${server.url}`]);
  const reason = new Error("ended");
  const controller = new AbortController();
  setTimeout(() => controller.abort(reason), 30);
  await assert.rejects(traceSite(site, { signal: controller.signal }), reason);
  const proxied = await siteOf([`url = ${server.url}`, `proxy = http://127.0.0.1:${freePorts(1)[0]}`]);
  await assert.rejects(traceSite(proxied), /Cannot reach the proxy/);
});

// Secrets

/** Answers with all that it was sent, twice: in headers and in the body; gives a token, too. */
async function echo(request: Request): Promise<Response> {
  if (request.url.endsWith("/token")) {
    return Response.json({ access_token: "canary-token", token_type: "bearer", scope: "canary-scope" });
  }
  const sent = [...request.headers].map(([, value]) => value);
  const body = await request.text();
  return new Response([...sent, body, JSON.stringify({ sent, body }), encodeURIComponent(body)].join("\n"), {
    status: 500,
    headers: { "x-echo": sent.join(" "), "set-cookie": "sid=canary-set-cookie", "x-api-key": "canary-response-key" },
  });
}

const SECRETS: readonly { what: string; lines: readonly string[] | ((port: number) => readonly string[]) }[] = [
  { what: "the URL", lines: (port) => [`url = http://me:canary-url@127.0.0.1:${port}/`] },
  { what: "basic_password", lines: ["basic_user = me", "basic_password = canary-basic"] },
  { what: "bearer_token", lines: ["bearer_token = canary-bearer"] },
  { what: "a variable in bearer_token", lines: ["bearer_token = ${SITE_CHECKER_CANARY}"] },
  {
    what: "headers",
    lines: ["headers = authorization: Token canary-header", "  cookie: id=canary-cookie", "  x-api-key: canary-key"],
  },
  { what: "a variable in a header", lines: ["headers = x-plain: a ${SITE_CHECKER_CANARY} b"] },
  { what: "the body", lines: ["method = POST", 'body = {"password": "canary-body"}'] },
  { what: "a variable in the body", lines: ["method = POST", "body = p=${SITE_CHECKER_CANARY}"] },
  {
    what: "a token",
    lines: (port) => [
      `oauth_token_url = http://127.0.0.1:${port}/token`,
      "oauth_client_id = me",
      "oauth_client_secret = canary-client",
    ],
  },
  { what: "an expected header", lines: ["expected_header = set-cookie: x", "  x-api-key: x", "excerpt = 1kB"] },
  { what: "an answer with excerpt", lines: ["bearer_token = canary-bearer", "max_redirects = 0"] },
  { what: "a proxy", lines: (port) => [`proxy = http://me:canary-proxy@127.0.0.1:${port}`] },
];

Deno.test.each(SECRETS)("traceSite() shows no secret of $what", async ({ lines }) => {
  await using server = serve(echo);
  const own = typeof lines === "function" ? lines(server.port) : lines;
  const url = own.some((line) => line.startsWith("url")) ? [] : [`url = ${server.url}`];
  const site = await siteOf([...url, ...own], { SITE_CHECKER_CANARY: "canary-variable" });
  const traced = await traceSite(site);
  assert.equal(traced.metric.status_code, 500);
  for (const page of [formatTrace(traced), encodePrintable(traced)]) {
    assert.ok(!/canary/.test(page), page);
    assert.ok(!page.includes(new TextEncoder().encode("me:canary").toBase64().slice(0, 8)), page);
  }
});

Deno.test.each(SECRETS)("check() brings no secret of $what into its metric", async ({ lines }) => {
  await using server = serve(echo);
  const own = typeof lines === "function" ? lines(server.port) : lines;
  const url = own.some((line) => line.startsWith("url")) ? [] : [`url = ${server.url}`];
  const found = ["regex_absent = (?s).+", ...(own.some((line) => /excerpt/.test(line)) ? [] : ["excerpt = 4kB"])];
  const site = await siteOf([...url, ...own, ...found], { SITE_CHECKER_CANARY: "canary-variable" });
  using clients = new Clients();
  using evaluator = new Evaluator();
  using tokens = new Tokens();
  const metric = await check(site, { scheduledAt: new Date(), client: clients.get(site.client), evaluator, tokens });
  assert.notEqual(metric.excerpt, null);
  assert.doesNotMatch(JSON.stringify(metric), /canary/);
});

Deno.test("traceSite() shows no user and password of an address that a redirect leads to", async () => {
  for (const address of ["http://me:canary@127.0.0.1:1/", "//me:canary@127.0.0.1:1/", "http://me:canary@[x/"]) {
    await using server = await serveRaw(
      send(`HTTP/1.1 302 Found\r\nlocation: ${address}\r\ncontent-length: 0\r\n\r\n`),
    );
    const traced = await trace(`url = ${server.url}`);
    assert.equal(traced.metric.error, "redirect_denied");
    for (const page of [formatTrace(traced), encodePrintable(traced)]) assert.ok(!page.includes("canary"), page);
  }
});

// The page

/** What gives text a colour, or makes it bold. */
const STYLE_REGEXP = new RegExp(String.raw`\x1b\[\d+m`, "g");
/** Characters that a terminal may act on. */
const CONTROL_REGEXP = /[^\P{Cc}\n]|\p{Cf}/u;

Deno.test("formatTrace() and encodePrintable() write nothing that a terminal acts on", async () => {
  const commonName = "evil \u001b[31m\u202e\u009b31m";
  await using secure = await serveSecurely(() => new Response("It works"), { commonName });
  const head = `HTTP/1.1 302 \x9b31m\r\nx-evil: \x9b31m\x85\r\nlocation: https://localhost:${secure.port}/\x9b2J\r\n`;
  await using server = await serveRaw(
    send(new Uint8Array(Array.from(`${head}content-length: 0\r\n\r\n`, (c) => c.charCodeAt(0)))),
  );
  await using odd = serve(() => new Response("\u001b]0;title\u0007\u202e\u009b2J\r\u0008", { status: 500 }));
  const traces = [
    await trace(`url = ${server.url}`),
    await trace(`url = https://localhost:${secure.port}/`),
    await trace(`url = ${odd.url}`, "excerpt = 1kB", "regex_absent = [\\s\\S]+"),
  ];
  assert.equal(traces[1]!.hops[0]!.connection!.certificates[0]!.subject, `CN=${commonName}`);
  for (const traced of traces) {
    const pages = [formatTrace(traced), encodePrintable(traced)];
    for (const page of pages) assert.ok(!CONTROL_REGEXP.test(page), JSON.stringify(page));
    const colored = formatTrace(traced, { width: 100, color: true, unicode: true });
    assert.ok(!CONTROL_REGEXP.test(colored.replaceAll(STYLE_REGEXP, "")), JSON.stringify(colored));
    assert.ok(!colored.includes("\u001b[31m\u202e"));
    assert.deepEqual(JSON.parse(encodePrintable(traced)), JSON.parse(JSON.stringify(traced)));
  }
  assert.match(formatTrace(traces[2]!), /\| \\u001b\]0;title\\u0007\\u202e\\u009b2J/);
});

/** The trace with what differs from run to run made equal: times, addresses, ids. */
function normalised(trace: Trace, { plain, secure }: { plain?: TestServer; secure: TestServer }): Trace {
  const names: readonly (readonly [string, string])[] = [
    [`127.0.0.1:${plain?.port}/`, "example.com/"],
    [`localhost:${secure.port}/`, "www.example.com/"],
    [`"port":${plain?.port}`, '"port":80'],
    [`"port":${secure.port}`, '"port":443'],
    ["127.0.0.1", "192.0.2.1"],
    ['"name":"site"', '"name":"example"'],
    ["CN=site_checker tests", "CN=Example CA"],
    ["CN=site", "CN=www.example.com"],
  ];
  const text = names.reduce((text, [from, to]) => text.replaceAll(from, to), JSON.stringify(trace));
  const times: Record<string, number> = { dns_ms: 2, connect_ms: 8, tls_ms: 20, first_byte_ms: 45, download_ms: 5 };
  let hop = 0;
  return JSON.parse(text, (key, value) => {
    if (key === "id") return "01a20c00-0000-7000-8000-000000000000";
    if (key === "occurred_at" || key === "scheduled_at") return "2026-01-31T03:00:00.000Z";
    if (key === "valid_from") return "2025-01-01T00:00:00.000Z";
    if (key === "expires_at" && !value.startsWith("2025")) return "2026-03-01T00:00:00.000Z";
    if (/GMT$/.test(value)) return "Sat, 31 Jan 2026 03:00:00 GMT";
    if (key === "hops") return value.map((one: object) => withStart(one, 45 * hop++));
    if (key === "elapsed_ms" || key === "response_time") return value && 100;
    return value === null ? null : times[key] ?? value;
  });
}

/** A hop, and the look beside it, that begin at a time. */
function withStart(hop: { connection?: object | null; download_ms?: number | null }, startMs: number): object {
  const elapsedMs = hop.download_ms === null ? 45 : 50;
  const connection = hop.connection && { ...hop.connection, start_ms: startMs, elapsed_ms: 30 };
  return { ...hop, start_ms: startMs, elapsed_ms: elapsedMs, connection };
}

Deno.test("formatTrace() is a page that reads well, as docs/trace.md shows it", async (t) => {
  await using secure = await serveSecurely(() =>
    new Response("<h1>Under construction</h1>\n", { headers: { "content-type": "text/html" } })
  );
  await using plain = serve(() => Response.redirect(`https://localhost:${secure.port}/home`, 301));
  const lines = [`url = ${plain.url}`, "regex = (?i)welcome", "bearer_token = canary", "min_cert_days = 14"];
  const traced = normalised(await trace(...lines), { plain, secure });
  const page = formatTrace(traced);
  await t.assertSnapshot(page, { serializer: String });
  await t.assertSnapshot(formatTrace(traced, { width: 100, color: false, unicode: true }), { serializer: String });
  const docs = await Deno.readTextFile(`${REPOSITORY}/docs/trace.md`);
  assert.ok(docs.includes(page.replace(/^\{.*\}$/m, '{"id":"01a20c00-0000-7000-8000-000000000000", …}')));

  const notAfter = new Date("2025-03-01T00:00:00Z");
  await using broken = await serveSecurely(() => new Response(), { notAfter });
  const expired = normalised(await trace(`url = https://localhost:${broken.port}/`), { secure: broken });
  await t.assertSnapshot(formatTrace(expired), { serializer: String });
});

Deno.test("formatTrace() keeps within the width, has colours only where they are wanted, and else is ASCII", async () => {
  await using server = serve(() => new Response("no", { status: 500 }));
  const traced = await trace(`url = ${server.url}`);
  assert.match(formatTrace(traced), /^[\x20-\x7e\n]*$/);
  const colored = formatTrace(traced, { width: 120, color: true, unicode: true });
  assert.ok(colored.match(STYLE_REGEXP));
  for (const width of [20, 60, 80, 120, 1_000]) {
    const page = formatTrace(traced, { width, color: false, unicode: true });
    const lines = page.split("\n");
    const from = lines.findIndex((line) => line.startsWith("Timeline"));
    const widest = Math.max(...lines.slice(from, lines.indexOf("", from)).map((line) => line.length));
    assert.equal(widest, Math.min(Math.max(width, 60), 160));
  }
});

// The program

Deno.test("producer --trace tells of a check of --url, needs no broker and writes no spool", async () => {
  await using server = serve(() => new Response("gone", { status: 404 }));
  const folder = await Deno.makeTempDir();
  const env = { SPOOL_PATH: `${folder}/spool.db` };
  const { code, stdout, stderr } = await runProgram("producer", ["--trace", "--url", server.url], { env });
  assert.deepEqual({ code, stderr }, { code: 0, stderr: "" });
  assert.match(stdout, /^127\.0\.0\.1 {2}GET http:\/\/127\.0\.0\.1:\d+\/\n/);
  assert.match(stdout, /\nDOWN {2}127\.0\.0\.1 {2}status: expected status 200-399, got 404\n$/);
  assert.deepEqual(await Array.fromAsync(Deno.readDir(folder)), []);
  await Deno.remove(folder);
});

Deno.test("producer --trace NAME --json prints one JSON object of a site of the file, which is not enabled", async () => {
  await using server = serve(() => new Response("It works"));
  const sites = `[website_a]\nurl = ${server.url}\nenabled = no\n\n[website_b]\nurl = ftp://b/\n`;
  await using file = await temporaryFile("config.ini", `[kafka]\nbootstrap_servers = :::\n\n${sites}`);
  const { code, stdout, stderr } = await runProgram("producer", [
    ...["--trace", "a", "--json", "--config-path", file.path],
  ]);
  assert.equal(code, 0);
  assert.match(stderr, /^\S+ WARNING producer: website 'a' is not enabled: the producer does not check it\n$/);
  const traced: Trace = JSON.parse(stdout);
  assert.equal(stdout.trim().split("\n").length, 1);
  assert.equal(Object.keys(traced).at(-1), "metric");
  assert.deepEqual([traced.name, traced.metric.verdict, traced.hops.length], ["a", "up", 1]);
});

Deno.test("producer --trace exits 1 with a line where the fault is ours", async () => {
  const proxy = `http://127.0.0.1:${freePorts(1)[0]}`;
  const args = ["--trace", "--url", "http://127.0.0.1:18080/", "--proxy", proxy];
  const { code, stdout, stderr } = await runProgram("producer", args);
  assert.deepEqual({ code, stdout }, { code: 1, stdout: "" });
  assert.match(stderr, /Cannot check '127\.0\.0\.1', which says nothing of the site: Cannot reach the proxy/);
});

Deno.test("docs/trace.md names each property of the JSON object", async () => {
  await using server = await serveSecurely(() => new Response("It works"));
  const traced = await trace(`url = https://localhost:${server.port}/`);
  const page = await Deno.readTextFile(`${REPOSITORY}/docs/trace.md`);
  const { metric: _, ...own } = traced;
  JSON.parse(JSON.stringify(own), (key, value) => {
    if (!/^\d*$/.test(key)) assert.ok(page.includes(`\`${key}\``), key);
    return value;
  });
});
