import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createServer as createHttpServer, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createHttpsServer, type ServerOptions } from "node:https";
import { connect, createServer, type Server, type Socket } from "node:net";
import { createGzip, gzipSync } from "node:zlib";
import { check } from "../lib/check.ts";
import { Clients, createClient, DEFAULT_CLIENT } from "../lib/client.ts";
import { parseCommandLine } from "../lib/command.ts";
import { readProducerConfig } from "../lib/config.ts";
import { Evaluator } from "../lib/evaluator.ts";
import type { Metric } from "../lib/metric.ts";
import { createAuthority } from "../local/certificate.ts";
import { freePorts } from "../local/port.ts";
import { runProgram, temporaryFile } from "./support.ts";

const authority = await createAuthority("site_checker request tests");
const identity = await authority.issue({ commonName: "localhost", names: ["localhost", "127.0.0.1"] });

/** What a check is told. */
interface Given {
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Text of the file. */
  readonly file?: string;
}

/** Checks the one site that the settings give, by way of the settings. */
async function checkBy({ args = [], env = {}, file }: Given): Promise<Metric> {
  await using stack = new AsyncDisposableStack();
  const path = file === undefined ? [] : ["--config-path", stack.use(await temporaryFile("config.ini", file)).path];
  const commandLine = parseCommandLine("producer", ["--dry-run", ...path, ...args]);
  assert.ok(typeof commandLine === "object", `${args.join(" ")} is refused`);
  const { sites: [site], effective } = await readProducerConfig(commandLine, { env: (name) => env[name] });
  using clients = new Clients();
  using evaluator = new Evaluator();
  const metric = await check(site!, { scheduledAt: new Date(), client: clients.get(site!.client), evaluator });
  assert.doesNotMatch(effective.join("\n") + JSON.stringify(metric), /hunter2/, "a secret is shown");
  return metric;
}

/** Checks a site by flags. */
function checkUrl(url: string, ...args: string[]): Promise<Metric> {
  return checkBy({ args: ["--url", url, "--timeout=5s", ...args] });
}

/** A server on loopback, with what it has seen. */
interface Listening extends AsyncDisposable {
  readonly port: number;
  /** Connections so far. */
  readonly connections: () => number;
}

async function listen(server: Server, hostname = "127.0.0.1"): Promise<Listening> {
  const sockets = new Set<Socket>();
  let connections = 0;
  server.on("connection", (socket: Socket) => {
    connections++;
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(0, hostname, resolve));
  return {
    port: (server.address() as { port: number }).port,
    connections: () => connections,
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

/** A request as it came. */
interface Seen {
  readonly method: string | undefined;
  readonly path: string | undefined;
  readonly headers: IncomingMessage["headers"];
  readonly body: string;
}

type Answer = (request: Seen, response: ServerResponse) => void;

/** A web site that keeps what it is asked. */
async function serve(
  answer: Answer = (_, response) => response.end("ok"),
  { hostname = "127.0.0.1", tls }: { hostname?: string; tls?: ServerOptions } = {},
): Promise<Listening & { readonly url: string; readonly seen: readonly Seen[] }> {
  const seen: Seen[] = [];
  const handle = async (request: IncomingMessage, response: ServerResponse) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const { method, url: path, headers } = request;
    const one = { method, path, headers, body: Buffer.concat(chunks).toString() };
    seen.push(one);
    answer(one, response);
  };
  const server = tls === undefined ? createHttpServer(handle) : createHttpsServer(tls, handle);
  const listening = await listen(server, hostname);
  const host = hostname.includes(":") ? `[${hostname}]` : hostname;
  return { ...listening, seen, url: `${tls === undefined ? "http" : "https"}://${host}:${listening.port}/` };
}

/** A file with a secret. */
function secretFile(content: string): ReturnType<typeof temporaryFile> {
  return temporaryFile("secret", content);
}

// Request

Deno.test("method, headers, body, user_agent and host are what the site gets", async () => {
  await using site = await serve();
  const metric = await checkUrl(
    site.url,
    ...["--method=put", "--header=X-Key: hunter2", "--header", "content-type: application/json"],
    ...["--body", '{"a": "hunter2 ü"}', "--user-agent=me/1.0", "--host=www.example.com"],
  );
  assert.deepEqual([metric.verdict, metric.method], ["up", "PUT"]);
  const [{ method, headers, body } = assert.fail("nothing was asked")] = site.seen;
  assert.equal(method, "PUT");
  assert.equal(body, '{"a": "hunter2 ü"}');
  assert.partialDeepStrictEqual(headers, {
    "x-key": "hunter2",
    "content-type": "application/json",
    "user-agent": "me/1.0",
    host: "www.example.com",
    accept: "*/*",
  });
});

Deno.test("body_file is sent byte by byte, and says no type", async () => {
  await using site = await serve();
  await using file = await temporaryFile("body", "a\r\nb\n");
  await checkUrl(site.url, "--method=POST", "--body-file", file.path);
  assert.deepEqual([site.seen[0]?.body, site.seen[0]?.headers["content-type"]], ["a\r\nb\n", undefined]);
});

Deno.test("HEAD reads no body", async () => {
  await using site = await serve();
  const { verdict, method, body_bytes } = await checkUrl(site.url, "--method=HEAD");
  assert.deepEqual([verdict, method, body_bytes, site.seen[0]?.method], ["up", "HEAD", 0, "HEAD"]);
});

const BASIC = `Basic ${btoa("me:hunter2")}`;

Deno.test.each<Given & { what: string; expected: string }>([
  { what: "basic_user and basic_password", args: ["--basic-user=me", "--basic-password=hunter2"], expected: BASIC },
  { what: "basic_user alone", args: ["--basic-user=me"], expected: `Basic ${btoa("me:")}` },
  { what: "bearer_token", args: ["--bearer-token=hunter2"], expected: "Bearer hunter2" },
  {
    what: "a variable in bearer_token",
    args: ["--bearer-token=${SITE_CHECKER_TOKEN}"],
    env: { SITE_CHECKER_TOKEN: "hunter2" },
    expected: "Bearer hunter2",
  },
  {
    what: "variables in a header",
    args: ["--header=Authorization: Key ${SITE_CHECKER_A}$${b}${SITE_CHECKER_C}"],
    env: { SITE_CHECKER_A: "hun", SITE_CHECKER_C: "ter2" },
    expected: "Key hun${b}ter2",
  },
  {
    what: "[defaults]",
    file: "[defaults]\nbasic_user = me\nbasic_password = ${SITE_CHECKER_PASSWORD}\n",
    env: { SITE_CHECKER_PASSWORD: "hunter2" },
    expected: BASIC,
  },
])("$what gives the header authorization, and no one else sees it", async ({ args = [], expected, ...given }) => {
  await using site = await serve();
  await checkBy({ ...given, args: ["--url", site.url, ...args] });
  assert.equal(site.seen[0]?.headers.authorization, expected);
});

Deno.test("secrets are taken from files, without the line end behind them", async () => {
  await using site = await serve();
  await using password = await secretFile("hunter2\n");
  await using token = await secretFile("hunter2\r\n");
  await checkUrl(site.url, "--basic-user=me", "--basic-password-file", password.path);
  await checkUrl(site.url, "--bearer-token-file", token.path);
  assert.deepEqual(site.seen.map(({ headers }) => headers.authorization), [BASIC, "Bearer hunter2"]);
});

Deno.test("--check-config of the program shows no secret, with those of the environment", async () => {
  await using file = await temporaryFile(
    "config.ini",
    `[defaults]
headers =
  X-Key: \${SITE_CHECKER_KEY}
  X-Other: hunter2
bearer_token = \${SITE_CHECKER_KEY}
proxy = http://me:hunter2@proxy:3128

[website_a]
url = http://a/
method = POST
body = password=hunter2
`,
  );
  const args = ["--config-path", file.path, "--check-config", "--dry-run"];
  const { code, stdout, stderr } = await runProgram("producer", args, { env: { SITE_CHECKER_KEY: "hunter2" } });
  assert.deepEqual({ code, stderr }, { code: 0, stderr: "" });
  assert.doesNotMatch(stdout, /hunter2/);
  assert.match(stdout, /^headers = X-Key: \*{8}\n {2}X-Other: \*{8} +; .*config\.ini:2$/m);
  assert.match(stdout, /^body = \*{8} +;/m);
  assert.match(stdout, /^bearer_token = \*{8} +;/m);
  assert.match(stdout, /^proxy = http:\/\/\*{8}@proxy:3128 +;/m);
});

// Connection

Deno.test("tls_ca, tls_cert and tls_key reach a server that asks for a certificate", async () => {
  const own = await authority.issue({ commonName: "the checker" });
  await using ca = await temporaryFile("ca.pem", authority.certificate);
  await using cert = await temporaryFile("own.cert", own.certificate);
  await using key = await temporaryFile("own.key", own.key);
  const tls = {
    cert: identity.certificate,
    key: identity.key,
    ca: authority.certificate,
    requestCert: true,
    rejectUnauthorized: true,
  };
  await using site = await serve(undefined, { tls });
  const withOwn = await checkUrl(
    site.url,
    ...["--tls-ca", ca.path, "--tls-cert", cert.path, "--tls-key", key.path],
  );
  assert.deepEqual([withOwn.verdict, withOwn.error], ["up", null]);
  assert.equal((await checkUrl(site.url, "--tls-ca", ca.path)).verdict, "down");
  assert.equal((await checkUrl(site.url)).error, "tls_untrusted");
});

/** A proxy that speaks HTTP, CONNECT too, and keeps what it was asked. */
async function serveProxy(): Promise<Listening & { readonly asked: readonly string[] }> {
  const asked: string[] = [];
  const server = createHttpServer((request, response) => {
    asked.push(`${request.method} ${request.url} ${request.headers["proxy-authorization"] ?? "-"}`);
    response.end("from the proxy");
  });
  server.on("connect", (request: IncomingMessage, socket: Socket) => {
    asked.push(`CONNECT ${request.headers["proxy-authorization"] ?? "-"}`);
    const [host, port] = request.url!.split(":");
    const other = connect(Number(port), host, () => {
      socket.write("HTTP/1.1 200 OK\r\n\r\n");
      other.pipe(socket).pipe(other);
    });
    other.on("error", () => socket.destroy());
    socket.on("close", () => other.destroy());
  });
  return { ...await listen(server), asked };
}

Deno.test("proxy takes requests over http, and over https by CONNECT, with user and password", async () => {
  await using proxy = await serveProxy();
  await using site = await serve();
  const tls = { cert: identity.certificate, key: identity.key };
  await using secure = await serve(undefined, { tls });
  await using ca = await temporaryFile("ca.pem", authority.certificate);
  const plain = await checkUrl(site.url, `--proxy=http://127.0.0.1:${proxy.port}`, "--regex=from the proxy");
  assert.equal(plain.verdict, "up");
  assert.equal(site.connections(), 0);
  const args = [`--proxy=http://m%65:hunter2@127.0.0.1:${proxy.port}`, "--tls-ca", ca.path];
  assert.equal((await checkUrl(secure.url, ...args)).verdict, "up");
  assert.equal(secure.seen.length, 1);
  assert.deepEqual(proxy.asked, [`GET ${site.url} -`, `CONNECT ${BASIC}`]);
});

/** A proxy that speaks SOCKS 5 (RFC 1928) without authentication, and keeps the names that it was asked for. */
async function serveSocks(): Promise<Listening & { readonly asked: readonly string[] }> {
  const asked: string[] = [];
  const server = createServer((socket) => {
    socket.once("data", () => {
      socket.write(Buffer.from([5, 0]));
      socket.once("data", (request: Buffer) => {
        asked.push(request.subarray(5, -2).toString());
        const other = connect(request.readUInt16BE(request.length - 2), "127.0.0.1", () => {
          socket.write(Buffer.from([5, 0, 0, 1, 0, 0, 0, 0, 0, 0]));
          other.pipe(socket).pipe(other);
        });
        other.on("error", () => socket.destroy());
        socket.on("close", () => other.destroy());
      });
    });
  });
  return { ...await listen(server), asked };
}

Deno.test("proxy may speak SOCKS 5, and looks the name up itself", async () => {
  await using proxy = await serveSocks();
  await using site = await serve();
  const metric = await checkUrl(`http://somewhere.invalid:${site.port}/`, `--proxy=socks5://127.0.0.1:${proxy.port}`);
  assert.equal(metric.verdict, "up");
  assert.deepEqual(proxy.asked, ["somewhere.invalid"]);
});

Deno.test("a proxy that is away, or does not let us in, says nothing of the site", async () => {
  await using site = await serve();
  await using strict = await serve((_, response) => response.end());
  const [port] = await freePorts(1);
  for (const scheme of ["http", "socks5"]) {
    await assert.rejects(checkUrl(site.url, `--proxy=${scheme}://me:hunter2@127.0.0.1:${port}`), (error: Error) => {
      assert.match(error.message, new RegExp(`^Cannot reach the proxy ${scheme}://127\\.0\\.0\\.1:${port}: `));
      assert.doesNotMatch(Deno.inspect(error), /hunter2/);
      return true;
    });
  }
  await assert.rejects(
    checkUrl(site.url, "--proxy=http://nowhere.invalid:3128"),
    /^FaultError: Cannot reach the proxy/,
  );
  // A server that refuses to be a proxy: node's own answers CONNECT by closing.
  assert.equal((await checkUrl(`https://127.0.0.1:${port}/`, `--proxy=${strict.url}`)).verdict, "down");
  await using asking = await serveAsking();
  await assert.rejects(checkUrl(`https://127.0.0.1:${port}/`, `--proxy=http://127.0.0.1:${asking.port}`), {
    message: `Cannot reach the proxy http://127.0.0.1:${asking.port}: proxy authentication required`,
  });
});

/** A proxy that asks everyone for a password. */
function serveAsking(): Promise<Listening> {
  const server = createHttpServer();
  server.on("connect", (_: IncomingMessage, socket: Socket) => {
    socket.end("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
  });
  return listen(server);
}

Deno.test("HTTP_PROXY of the environment is not followed, and said so", async () => {
  await using proxy = await serveProxy();
  await using site = await serve();
  const address = `http://127.0.0.1:${proxy.port}`;
  const args = ["--once", "--dry-run", "--url", site.url];
  const env = { HTTP_PROXY: address, http_proxy: address, ALL_PROXY: address };
  const { code, stdout, stderr } = await runProgram("producer", args, { env });
  assert.equal(code, 0);
  assert.equal(JSON.parse(stdout).verdict, "up");
  assert.deepEqual([proxy.connections(), site.seen.length], [0, 1]);
  assert.match(stderr, /HTTP_PROXY, http_proxy, ALL_PROXY of the environment: checks go through a proxy only where/);
});

Deno.test("NO_PROXY of the environment keeps no check from the proxy of its site", async () => {
  await using proxy = await serveProxy();
  await using site = await serve();
  const args = ["--once", "--dry-run", "--url", site.url, `--proxy=http://127.0.0.1:${proxy.port}`];
  const { code } = await runProgram("producer", args, { env: { NO_PROXY: "127.0.0.1", no_proxy: "127.0.0.1" } });
  assert.deepEqual([code, proxy.asked.length, site.seen.length], [0, 1, 0]);
});

Deno.test.each(
  [
    { mode: "auto", secure: "2", plain: "1.1" },
    { mode: "off", secure: "1.1", plain: "1.1" },
    { mode: "only", secure: "2", plain: "2" },
  ] as const,
)("http2 = $mode speaks HTTP/$secure over https and HTTP/$plain over http", async ({ mode, secure, plain }) => {
  await using ca = await temporaryFile("ca.pem", authority.certificate);
  const tls = { cert: identity.certificate, key: identity.key };
  for (
    const { scheme, version, options } of [
      { scheme: "https", version: secure, options: tls },
      { scheme: "http", version: plain, options: {} },
    ]
  ) {
    // HTTP/2 has :authority in the place of the header host (RFC 9113, 8.3.1). A server of node:http2 would say more, but
    // Deno 2.9.6 dies of it now and then when a client says goodbye.
    await using site = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen: () => {}, ...options },
      ({ headers }) => new Response(`HTTP/${headers.has("host") ? "1.1" : "2"}.`),
    );
    const args = [`--http2=${mode}`, "--tls-ca", ca.path, `--regex=HTTP/${version}\\.`];
    const { verdict, error } = await checkUrl(`${scheme}://localhost:${site.addr.port}/`, ...args);
    assert.deepEqual([verdict, error], ["up", null]);
  }
});

Deno.test("ip_version keeps to its version", async () => {
  await using four = await serve();
  await using six = await serve(undefined, { hostname: "::1" });
  const error = async (url: string, version: string) => (await checkUrl(url, `--ip-version=${version}`)).error;
  assert.deepEqual([await error(four.url, "4"), await error(six.url, "6")], [null, null]);
  assert.deepEqual([await error(four.url, "6"), await error(six.url, "4")], ["unreachable", "unreachable"]);
});

Deno.test("reuse_connection keeps the connection, and no check does without it", async () => {
  await using site = await serve();
  for (const reuseConnection of [false, true]) {
    const before = site.connections();
    using client = createClient({ ...DEFAULT_CLIENT, reuseConnection });
    for (let i = 0; i < 3; i++) await (await fetch(site.url, { client })).text();
    assert.equal(site.connections() - before, reuseConnection ? 1 : 3);
  }
});

Deno.test("Clients gives sites of equal settings one client, and closes those that are no longer asked for", async () => {
  await using site = await serve();
  using clients = new Clients();
  const one = clients.get({ ...DEFAULT_CLIENT });
  assert.equal(clients.get({ ...DEFAULT_CLIENT }), one);
  const other = clients.get({ ...DEFAULT_CLIENT, http2: "off" });
  assert.notEqual(other, one);
  clients.retain([{ ...DEFAULT_CLIENT }]);
  assert.equal(clients.get({ ...DEFAULT_CLIENT }), one);
  await (await fetch(site.url, { client: one })).text();
  await assert.rejects(fetch(site.url, { client: other }), { name: "BadResource" });
});

// Limits

Deno.test("max_redirects bounds the redirects, and 0 lets the first be judged", async () => {
  await using site = await serve((request, response) => {
    const left = Number(request.path?.slice(1));
    if (left === 0) return void response.end("there");
    response.writeHead(302, { location: `/${left - 1}` }).end();
  });
  const outcome = async (hops: number, ...args: string[]) => {
    const { error, status_code, redirects, final_url } = await checkUrl(`${site.url}${hops}`, ...args);
    return [error, status_code, redirects, final_url?.slice(site.url.length) ?? null];
  };
  assert.deepEqual(await outcome(10), [null, 200, 10, "0"]);
  assert.deepEqual(await outcome(11), ["redirect_loop", 302, 10, "1"]);
  assert.deepEqual(await outcome(2, "--max-redirects=2"), [null, 200, 2, "0"]);
  assert.deepEqual(await outcome(3, "--max-redirects=2"), ["redirect_loop", 302, 2, "1"]);
  assert.deepEqual(await outcome(1, "--max-redirects=0"), [null, 302, 0, null]);
});

Deno.test.each(
  [
    { status: 301, method: "POST", then: ["GET", ""] },
    { status: 302, method: "PUT", then: ["PUT", "x"] },
    { status: 303, method: "PUT", then: ["GET", ""] },
    { status: 307, method: "POST", then: ["POST", "x"] },
    { status: 308, method: "POST", then: ["POST", "x"] },
  ] as const,
)("a $method behind a $status is $then", async ({ status, method, then }) => {
  await using site = await serve(({ path }, response) => {
    if (path === "/there") response.end();
    else response.writeHead(status, { location: "/there" }).end();
  });
  await checkUrl(site.url, `--method=${method}`, "--body=x", "--header=content-type: a/b");
  const [, { method: got, body, headers } = assert.fail("the redirect was not followed")] = site.seen;
  assert.deepEqual([got, body], then);
  assert.equal(headers["content-type"], body === "" ? undefined : "a/b");
});

Deno.test("headers, credentials and host go to the first host alone", async () => {
  await using other = await serve();
  await using site = await serve(({ path }, response) => {
    const location = path === "/" ? "/again" : `http://localhost:${other.port}/`;
    response.writeHead(302, { location }).end();
  });
  const { error } = await checkUrl(
    site.url,
    ...["--header=X-Key: hunter2", "--header=accept: a/b", "--bearer-token=hunter2", "--host=www.example.com"],
  );
  assert.equal(error, null);
  assert.partialDeepStrictEqual(site.seen[1]?.headers, {
    "x-key": "hunter2",
    authorization: "Bearer hunter2",
    host: "www.example.com",
  });
  const [{ headers } = assert.fail("the redirect was not followed")] = other.seen;
  assert.doesNotMatch(JSON.stringify(headers), /hunter2|www\.example\.com/);
  assert.partialDeepStrictEqual(headers, { accept: "a/b", "user-agent": "site_checker" });
});

Deno.test("first_byte_timeout bounds the time to the head, redirects included, and not the body's", async () => {
  await using silent = await serve((request, response) => {
    if (request.path === "/") response.writeHead(302, { location: "/never" }).end();
  });
  const late = await checkUrl(silent.url, "--first-byte-timeout=200ms");
  assert.deepEqual(
    [late.error, late.failed_phase, late.error_message, late.redirects],
    ["first_byte_timeout", "first_byte", "no head of a response within 200 ms", 1],
  );
  await using slow = await serve((_, response) => {
    response.write("begins");
    setTimeout(() => response.end(" and ends"), 1_300);
  });
  const metric = await checkUrl(slow.url, "--first-byte-timeout=1s", "--regex=begins and ends");
  assert.deepEqual([metric.verdict, metric.error], ["up", null]);
});

Deno.test("a body that is not there in time is body_timeout", async () => {
  await using site = await serve((_, response) => void response.write("begins"));
  const { error, failed_phase, status_code } = await checkUrl(site.url, "--timeout=200ms");
  assert.deepEqual([error, failed_phase, status_code], ["body_timeout", "download", 200]);
});

Deno.test("read_limit counts the body's bytes when decompressed", async () => {
  const body = gzipSync(Buffer.alloc(100_000));
  await using site = await serve((_, response) => response.writeHead(200, { "content-encoding": "gzip" }).end(body));
  const enough = await checkUrl(site.url, "--read-limit=100000");
  assert.deepEqual([enough.error, enough.body_bytes], [null, 100_000]);
  const short = await checkUrl(site.url, "--read-limit=99999");
  assert.deepEqual(
    [short.error, short.failed_phase, short.error_message, short.status_code, short.body_bytes],
    ["body_too_large", "download", "expected a body of at most 99999 bytes, got more", 200, null],
  );
});

Deno.test("a body without end, and a gzip bomb, are not read beyond 64M", async () => {
  for (const compressed of [false, true]) {
    const ended = Promise.withResolvers<void>();
    await using site = await serve((_, response) => {
      response.writeHead(200, compressed ? { "content-encoding": "gzip" } : {});
      const target = compressed ? createGzip() : response;
      if (target !== response) target.pipe(response);
      const chunk = Buffer.alloc(1024 * 1024);
      const feed = () => {
        if (!response.destroyed) target.write(chunk, () => setImmediate(feed));
      };
      response.on("close", () => {
        target.destroy();
        ended.resolve();
      });
      feed();
    });
    const { error } = await checkBy({ args: ["--url", site.url, "--interval=60", "--timeout=50"] });
    assert.equal(error, "body_too_large");
    await ended.promise;
  }
});

// What is kept with each result

Deno.test("tags, location, producer and method stand in the metric", async () => {
  await using site = await serve();
  const { tags, location, producer, method } = await checkBy({
    args: ["--url", site.url],
    file: "[producer]\nlocation = Berlin\nname = p-1\n[defaults]\ntags = team = web\n",
  });
  assert.deepEqual({ tags, location, producer, method }, {
    tags: { team: "web" },
    location: "Berlin",
    producer: "p-1",
    method: "GET",
  });
  const bare = await checkUrl(site.url);
  assert.deepEqual([bare.tags, bare.location, bare.producer], [null, null, null]);
});

Deno.test("enabled = no leaves a site out, and its settings are read nevertheless", async () => {
  await using site = await serve();
  const file = (more: string) =>
    `[website_off]\nurl = http://off/\nenabled = no\n${more}[website_on]\nurl = ${site.url}\n`;
  assert.equal((await checkBy({ file: file("") })).name, "on");
  await assert.rejects(checkBy({ file: file("method = FETCH\n") }), /Cannot read method of website 'off'/);
});
