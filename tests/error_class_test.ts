import assert from "node:assert/strict";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { check, checkWithRetries } from "../lib/check.ts";
import { createClient } from "../lib/client.ts";
import { parseCommandLine } from "../lib/command.ts";
import { readProducerConfig } from "../lib/config.ts";
import { Evaluator } from "../lib/evaluator.ts";
import { Inspector } from "../lib/inspector.ts";
import { LookUps } from "../lib/lookup.ts";
import { type CheckError, decodeMetric, encodeMetric, ERRORS, type Json, type Metric } from "../lib/metric.ts";
import type { Site } from "../lib/site.ts";
import { createAuthority, type IssueOptions } from "../local/certificate.ts";
import { freePorts } from "../local/port.ts";
import { REPOSITORY } from "../local/repository.ts";
import { listenDeaf, send, serve, serveRaw, type TestServer } from "./servers.ts";
import { temporaryFile } from "./support.ts";

const DAY_MS = 24 * 60 * 60 * 1000;
const authority = await createAuthority("site_checker error tests");

/** A site whose checks fail in one way. */
interface Case {
  readonly error: CheckError;
  readonly phase: Metric["failed_phase"];
  /** Starts it. @returns Its address. */
  readonly start: (stack: AsyncDisposableStack) => string | Promise<string>;
  /** Further lines of its section. */
  readonly settings?: string;
  /** What is expected, and what is there: of expectations that are not met. */
  readonly failed?: { readonly expected: Json; readonly actual: Json | RegExp };
  /** Of so many checks, the last one fails. Default: 1. */
  readonly checks?: number;
  /** Looks names up. Default: the system. */
  readonly lookUps?: LookUps;
}

/** The address of a server that is closed at the end. */
function on(start: () => TestServer | Promise<TestServer>): Case["start"] {
  return async (stack) => stack.use(await start()).url;
}

const page = (body: string, init?: ResponseInit) => on(() => serve(() => new Response(body, init)));

/** A site over TLS with a certificate of the tests' authority. */
function secure(issue: Partial<IssueOptions> = {}): Case["start"] {
  return async (stack) => {
    const { certificate: cert, key } = await authority.issue({ commonName: "site", names: ["localhost"], ...issue });
    const { port } = stack.use(serve(() => new Response("It works"), { cert, key }));
    return `https://localhost:${port}/`;
  };
}

/** The same, with TLS 1.2 at most. */
async function oldSecure(stack: AsyncDisposableStack): Promise<string> {
  const { certificate: cert, key } = await authority.issue({ commonName: "site", names: ["localhost"] });
  const server = createServer({ cert, key, maxVersion: "TLSv1.2" }, (_, response) => void response.end("It works"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  stack.defer(() => new Promise((resolve) => server.close(() => resolve())));
  return `https://localhost:${(server.address() as AddressInfo).port}/`;
}

function changing(): Case["start"] {
  let visits = 0;
  return on(() => serve(() => new Response(`It works ${visits++}`)));
}

const SHA256_REGEXP = /^[\da-f]{64}$/;

/** Each class, as a check of a real server comes to it; those that one expectation has come with what was there. */
const CASES: readonly Case[] = [
  { error: "dns_not_found", phase: "dns", start: () => "http://nowhere.invalid/" },
  {
    error: "dns_other",
    phase: "dns",
    start: () => "http://nowhere.invalid/",
    // A resolver that is away would have to be the system's: this is what the system says of one.
    lookUps: new LookUps({
      resolve: () => Promise.reject(Object.assign(new Error("getaddrinfo EAI_AGAIN"), { code: "EAI_AGAIN" })),
    }),
  },
  { error: "refused", phase: "connect", start: () => `http://127.0.0.1:${freePorts(1)[0]}/` },
  // No TCP connection goes to the broadcast address, and no packet is sent.
  { error: "unreachable", phase: "connect", start: () => "http://255.255.255.255/" },
  { error: "connect_timeout", phase: "connect", start: on(listenDeaf), settings: "connect_timeout = 100ms" },
  { error: "reset", phase: "first_byte", start: on(() => serveRaw((socket) => void socket.destroy())) },
  {
    error: "tls_expired",
    phase: "tls",
    start: secure({ notBefore: new Date(Date.now() - 9 * DAY_MS), notAfter: new Date(Date.now() - DAY_MS) }),
    settings: "tls_ca = CA",
  },
  {
    error: "tls_not_yet_valid",
    phase: "tls",
    start: secure({ notBefore: new Date(Date.now() + DAY_MS) }),
    settings: "tls_ca = CA",
  },
  { error: "tls_name", phase: "tls", start: secure({ names: ["www.example.com"] }), settings: "tls_ca = CA" },
  { error: "tls_untrusted", phase: "tls", start: secure() },
  {
    error: "tls_other",
    phase: "tls",
    start: async (stack) => {
      const { port } = stack.use(await serveRaw(send("HTTP/1.1 400 Bad Request\r\n\r\n")));
      return `https://localhost:${port}/`;
    },
  },
  {
    error: "first_byte_timeout",
    phase: "first_byte",
    start: on(() => serveRaw(() => {})),
    settings: "first_byte_timeout = 100ms",
  },
  {
    error: "body_timeout",
    phase: "download",
    start: on(() => serveRaw((socket) => void socket.write("HTTP/1.1 200 OK\r\n\r\nIt"))),
    settings: "timeout = 700ms",
  },
  { error: "timeout", phase: "first_byte", start: on(() => serveRaw(() => {})), settings: "timeout = 700ms" },
  { error: "body_too_large", phase: "download", start: page("It works"), settings: "read_limit = 7" },
  {
    error: "redirect_loop",
    phase: "first_byte",
    start: page("", { status: 302, headers: { location: "/" } }),
  },
  {
    error: "redirect_denied",
    phase: "first_byte",
    start: page("", { status: 302, headers: { location: "file:///etc/passwd" } }),
  },
  { error: "protocol", phase: "first_byte", start: on(() => serveRaw(send("SSH-2.0-OpenSSH_9.2\r\n"))) },
  {
    error: "status",
    phase: "expectation",
    start: page("", { status: 503 }),
    failed: { expected: "200-399", actual: 503 },
  },
  {
    error: "regex",
    phase: "expectation",
    start: page("Nothing here"),
    settings: "regex = It works",
    failed: { expected: "It works", actual: null },
  },
  {
    error: "regex_absent",
    phase: "expectation",
    start: page("Fatal error in line 7"),
    settings: "regex_absent = (?i)error \\w+",
    failed: { expected: "(?i)error \\w+", actual: "error in" },
  },
  {
    error: "header",
    phase: "expectation",
    start: page("It works", { headers: { "content-type": "text/plain" } }),
    settings: "expected_header = content-type: ^text/html",
    failed: { expected: "content-type: ^text/html", actual: "text/plain" },
  },
  {
    error: "json",
    phase: "expectation",
    start: page('{"queue":120}'),
    settings: "json = queue < 100",
    failed: { expected: "queue < 100", actual: false },
  },
  {
    error: "too_slow",
    phase: "expectation",
    start: on(() =>
      serve(async () => {
        await delay(100);
        return new Response("It works");
      })
    ),
    settings: "max_response_time = 50ms",
    failed: { expected: 50, actual: /^\d+(?:\.\d+)?$/ },
  },
  {
    error: "too_small",
    phase: "expectation",
    start: page("It works"),
    settings: "min_bytes = 1K",
    failed: { expected: 1024, actual: 8 },
  },
  {
    error: "too_big",
    phase: "expectation",
    start: page("It works"),
    settings: "max_bytes = 7",
    failed: { expected: 7, actual: 8 },
  },
  {
    error: "cert_validity",
    phase: "expectation",
    start: secure({ notAfter: new Date(Date.now() + 5.5 * DAY_MS) }),
    settings: "tls_ca = CA\nmin_cert_days = 14",
    failed: { expected: 14, actual: 5.4 },
  },
  {
    error: "tls_version",
    phase: "expectation",
    start: oldSecure,
    settings: "tls_ca = CA\nmin_tls_version = 1.3",
    failed: { expected: "1.3", actual: "1.2" },
  },
  {
    error: "changed",
    phase: "expectation",
    start: changing(),
    settings: "unchanged = yes",
    failed: { expected: "", actual: SHA256_REGEXP },
    checks: 2,
  },
];

/** The site of a section, by way of the file. */
async function readSite(section: string): Promise<Site> {
  await using ca = await temporaryFile("ca.pem", authority.certificate);
  await using file = await temporaryFile("config.ini", `[website_site]\n${section.replace("CA", ca.path)}\n`);
  const commandLine = parseCommandLine("producer", ["--dry-run", "--config-path", file.path]);
  assert.ok(typeof commandLine === "object");
  const { sites, warnings } = await readProducerConfig(commandLine, { env: () => undefined });
  assert.deepEqual(warnings, []);
  return sites[0]!;
}

/** The last check of a site, as the consumer reads it. */
async function checkCase({ start, settings = "", checks = 1, lookUps = new LookUps() }: Case): Promise<Metric> {
  await using stack = new AsyncDisposableStack();
  const site = await readSite(`url = ${await start(stack)}\n${settings}`);
  using client = createClient(site.client);
  using evaluator = new Evaluator();
  const inspector = new Inspector({ lookUps });
  const bodies = new Map<string, string>();
  let last: Metric | undefined;
  for (let i = 0; i < checks; i++) {
    last = undefined;
    await checkWithRetries(site, {
      attempt: (attempt) => check(site, { scheduledAt: new Date(), client, evaluator, inspector, bodies, attempt }),
      deliver: (metric) => last ??= metric,
      bodies,
    });
  }
  const value = new TextEncoder().encode(encodeMetric(last!));
  return decodeMetric({ topic: "site", partition: 0, offset: "0", timestamp: 0, key: null, value, headers: {} });
}

/** The message without what differs from check to check: digits, and what looks like them. */
function plain(message: string): string {
  return message.replaceAll(/\b[\da-f]{64}\b/g, "SHA-256").replaceAll(/\d+/g, "0");
}

/** Classes of the page that describes them: name, phase, example of a message. */
const DESCRIBED = [
  ...(await Deno.readTextFile(`${REPOSITORY}/docs/checks.md`)).matchAll(/^\| `(\w+)` +\| (\w+) .*\| `(.+?)` +\|$/gm),
].map(([, error = "", phase = "", message = ""]) => ({ error, phase, message: message.replaceAll("\\|", "|") }));

Deno.test.each(CASES)("check() comes to $error", async (one) => {
  const { error, phase, failed } = one;
  const metric = await checkCase(one);
  assert.deepEqual([metric.verdict, metric.error, metric.failed_phase], ["down", error, phase], metric.error_message!);
  const described = DESCRIBED.find((row) => row.error === error);
  assert.equal(plain(described?.message ?? ""), plain(metric.error_message!), "docs/checks.md has another message");
  if (failed === undefined) {
    assert.equal(metric.failed, null);
    return;
  }
  const [unmet, ...others] = metric.failed as { expectation: string; expected: Json; actual: Json }[];
  assert.deepEqual(others, []);
  assert.equal(unmet!.expectation, error);
  if (failed.expected !== "") assert.deepEqual(unmet!.expected, failed.expected);
  else assert.match(String(unmet!.expected), SHA256_REGEXP);
  if (failed.actual instanceof RegExp) assert.match(String(unmet!.actual), failed.actual);
  else assert.deepEqual(unmet!.actual, failed.actual);
});

Deno.test("each class of error has a case, and no other", () => {
  assert.deepEqual(CASES.map(({ error }) => error), ERRORS);
});

Deno.test("docs/checks.md describes each class, with the phase that its case fails in", () => {
  assert.deepEqual(
    DESCRIBED.map(({ error, phase }) => [error, phase]),
    CASES.map(({ error, phase }) => [error, phase]),
  );
});
