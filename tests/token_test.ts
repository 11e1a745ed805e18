import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import { check } from "../lib/check.ts";
import { Clients } from "../lib/client.ts";
import { parseCommandLine } from "../lib/command.ts";
import { readProducerConfig } from "../lib/config.ts";
import { Evaluator } from "../lib/evaluator.ts";
import type { Metric } from "../lib/metric.ts";
import type { Site } from "../lib/site.ts";
import { Tokens, type TokensOptions } from "../lib/token.ts";
import { createAuthority } from "../local/certificate.ts";
import { freePorts } from "../local/port.ts";
import { listenDeaf, serve, type TestServer } from "./servers.ts";
import { eventually, runProgram, startProgram, startSite, temporaryFile, uniqueName } from "./support.ts";

const SECRET = "hunter2-secret";

/** A request for a token as it came. */
interface Asked {
  readonly authorization: string | null;
  readonly userAgent: string | null;
  readonly form: Readonly<Record<string, string>>;
}

interface TokenServer extends TestServer {
  readonly asked: Asked[];
}

type Answer = (count: number) => Response | Promise<Response>;

/** Answers as a server of tokens does: `token-1`, `token-2` and so on. */
function tokenOf(count: number, changes: Record<string, unknown> = {}): Response {
  return Response.json({ access_token: `token-${count}`, token_type: "Bearer", expires_in: 3600, ...changes });
}

/** A server of tokens that keeps what it is asked. */
function serveTokens(answer: Answer = tokenOf, tls: Deno.TlsCertifiedKeyPem | object = {}): TokenServer {
  const asked: Asked[] = [];
  const server = serve(async (request) => {
    const { headers } = request;
    const form = Object.fromEntries(new URLSearchParams(await request.text()));
    asked.push({ authorization: headers.get("authorization"), userAgent: headers.get("user-agent"), form });
    return await answer(asked.length);
  }, tls);
  return { ...server, url: `${server.url}token`, asked };
}

interface Guarded extends TestServer {
  /** Headers `authorization` that came. */
  readonly seen: (string | null)[];
}

/** A site that lets in whom it likes. */
function serveGuarded(letsIn: (authorization: string | null) => boolean = () => true): Guarded {
  const seen: (string | null)[] = [];
  const server = serve(({ headers }) => {
    const authorization = headers.get("authorization");
    seen.push(authorization);
    return new Response("hello", { status: letsIn(authorization) ? 200 : 401 });
  });
  return { ...server, seen };
}

interface Given {
  readonly url: string;
  readonly tokenUrl: string;
  readonly args?: readonly string[];
  readonly secret?: string;
}

/** The site that flags give. */
async function readSite(
  { url, tokenUrl, args = [], secret = `--oauth-client-secret=${SECRET}` }: Given,
): Promise<Site> {
  const oauth = ["--oauth-token-url", tokenUrl, "--oauth-client-id=my-id", secret];
  const commandLine = parseCommandLine("producer", [
    ...["--dry-run", "--url", url, "--inspect-interval=never", "--timeout=5s", ...oauth, ...args],
  ]);
  assert.ok(typeof commandLine === "object", `${args.join(" ")} is refused`);
  const { sites: [site], effective } = await readProducerConfig(commandLine, { env: () => undefined });
  assert.doesNotMatch(effective.join("\n"), /hunter2/);
  return site!;
}

/** Checks sites one after another with the same tokens. */
class TestChecker implements Disposable {
  readonly tokens: Tokens;
  readonly #clients = new Clients();
  readonly #evaluator = new Evaluator();

  constructor(options?: TokensOptions) {
    this.tokens = new Tokens(options);
  }

  async check(site: Site): Promise<Metric> {
    const client = this.#clients.get(site.client);
    const { tokens } = this;
    const evaluator = this.#evaluator;
    const metric = await check(site, { scheduledAt: new Date(), client, evaluator, tokens });
    assert.doesNotMatch(JSON.stringify(metric), /hunter2|token-/);
    return metric;
  }

  [Symbol.dispose](): void {
    this.tokens[Symbol.dispose]();
    this.#evaluator[Symbol.dispose]();
    this.#clients[Symbol.dispose]();
  }
}

const BASIC = `Basic ${btoa(`my-id:${SECRET}`)}`;

Deno.test("check() is let in by a token, for which id and secret are sent as basic authentication", async () => {
  await using server = serveTokens();
  await using site = serveGuarded();
  using checker = new TestChecker();
  const args = ["--oauth-scope= read  write ", "--oauth-parameter=audience = https://api/", "--user-agent=me/1.0"];
  const metric = await checker.check(await readSite({ url: site.url, tokenUrl: server.url, args }));
  assert.deepEqual([metric.verdict, metric.status_code], ["up", 200]);
  assert.deepEqual(site.seen, ["Bearer token-1"]);
  const form = { grant_type: "client_credentials", scope: "read write", audience: "https://api/" };
  assert.deepEqual(server.asked, [{ authorization: BASIC, userAgent: "me/1.0", form }]);
});

Deno.test("check() sends id and secret in the body where oauth_auth says so, and takes the secret from a file", async () => {
  await using server = serveTokens();
  await using site = serveGuarded();
  await using file = await temporaryFile("secret", "hunter2 & more\n");
  using checker = new TestChecker();
  const given = { url: site.url, tokenUrl: server.url, secret: `--oauth-client-secret-file=${file.path}` };
  await checker.check(await readSite({ ...given, args: ["--oauth-auth=post"] }));
  await checker.check(await readSite(given));
  const form = { grant_type: "client_credentials", client_id: "my-id", client_secret: "hunter2 & more" };
  assert.deepEqual(server.asked, [
    { authorization: null, userAgent: "site_checker", form },
    {
      authorization: `Basic ${btoa("my-id:hunter2+%26+more")}`,
      userAgent: "site_checker",
      form: { grant_type: "client_credentials" },
    },
  ]);
});

Deno.test("Tokens keeps a token for all checks of sites with the same settings, also for those that come at once", async () => {
  await using server = serveTokens(async (count) => {
    await delay(100);
    return tokenOf(count);
  });
  await using a = serveGuarded();
  await using b = serveGuarded();
  using checker = new TestChecker();
  const sites = await Promise.all([a, b].map(({ url }) => readSite({ url, tokenUrl: server.url })));
  const other = await readSite({ url: a.url, tokenUrl: server.url, args: ["--oauth-scope=write"] });
  await Promise.all([...sites, ...sites].map((site) => checker.check(site)));
  await checker.check(sites[0]!);
  assert.equal(server.asked.length, 1);
  await checker.check(other);
  assert.deepEqual([...new Set([...a.seen, ...b.seen])], ["Bearer token-1", "Bearer token-2"]);
});

Deno.test("Tokens renews a token before its end, while the old one is used, and waits for the new one then", async () => {
  let isAway = false;
  await using server = serveTokens((count) => isAway ? new Response(null, { status: 503 }) : tokenOf(count));
  await using guarded = serveGuarded();
  let now = 0;
  using checker = new TestChecker({ now: () => now });
  const site = await readSite({ url: guarded.url, tokenUrl: server.url });
  const checkAt = async (seconds: number) => {
    now = seconds * 1000;
    const { verdict } = await checker.check(site);
    assert.equal(verdict, "up");
  };
  await checkAt(0);
  await checkAt(3500);
  assert.equal(server.asked.length, 1);
  // Of a server that is away, the old token shows nothing until its end.
  isAway = true;
  await checkAt(3550);
  await eventually(() => server.asked.length === 2);
  isAway = false;
  await delay(50);
  await checkAt(3560);
  await eventually(() => server.asked.length === 3);
  await delay(50);
  await checkAt(3570);
  await checkAt(9999);
  assert.deepEqual(guarded.seen, [1, 1, 1, 1, 3, 4].map((count) => `Bearer token-${count}`));
});

Deno.test.each([
  { what: "no expires_in", expires_in: undefined, requests: [1, 1, 2] },
  { what: "expires_in = null", expires_in: null, requests: [1, 1, 2] },
  { what: "expires_in as text", expires_in: "600", requests: [1, 2, 3] },
  { what: "expires_in = 0", expires_in: 0, requests: [2, 3, 4] },
])("Tokens takes $what", async ({ expires_in, requests }) => {
  await using server = serveTokens((count) => tokenOf(count, { expires_in }));
  await using guarded = serveGuarded();
  let now = 0;
  using checker = new TestChecker({ now: () => now });
  const site = await readSite({ url: guarded.url, tokenUrl: server.url });
  await checker.check(site);
  for (const [index, minutes] of [5, 45, 65].entries()) {
    now = minutes * 60_000;
    await checker.check(site);
    assert.equal(server.asked.length, requests[index]);
  }
});

Deno.test("check() asks for another token where the site takes one no more, and asks the site again", async () => {
  await using server = serveTokens();
  let valid = "Bearer token-1";
  await using guarded = serveGuarded((authorization) => authorization === valid);
  using checker = new TestChecker();
  const site = await readSite({ url: guarded.url, tokenUrl: server.url });
  for (const [index, token] of ["token-1", "token-2", "token-3"].entries()) {
    valid = `Bearer ${token}`;
    const metric = await checker.check(site);
    assert.deepEqual([metric.verdict, metric.attempt, metric.final], ["up", 1, true]);
    assert.equal(server.asked.length, index + 1);
  }
  assert.equal(guarded.seen.length, 5);
});

Deno.test("check() tells of a site that takes no token, after one further request and for a while after none", async () => {
  await using server = serveTokens();
  await using guarded = serveGuarded(() => false);
  await using other = serveGuarded();
  let now = 0;
  using checker = new TestChecker({ now: () => now });
  const site = await readSite({ url: guarded.url, tokenUrl: server.url });
  const outcome = async () => {
    const { verdict, error, status_code } = await checker.check(site);
    assert.deepEqual([verdict, error, status_code], ["down", "status", 401]);
    return [guarded.seen.length, server.asked.length];
  };
  assert.deepEqual(await outcome(), [2, 2]);
  assert.deepEqual(await outcome(), [3, 2]);
  await checker.check(await readSite({ url: other.url, tokenUrl: server.url }));
  assert.deepEqual(other.seen, ["Bearer token-2"], "another site with the same token is let in");
  now = 10 * 60_000;
  assert.deepEqual(await outcome(), [5, 3]);
});

Deno.test("check() takes 401 as it is where it is expected, or comes from where no token is sent", async () => {
  await using server = serveTokens();
  await using guarded = serveGuarded(() => false);
  await using from = serve(() => Response.redirect(guarded.url));
  using checker = new TestChecker();
  const expected = await readSite({ url: guarded.url, tokenUrl: server.url, args: ["--expected-status=401"] });
  assert.equal((await checker.check(expected)).verdict, "up");
  assert.deepEqual(guarded.seen, ["Bearer token-1"]);
  const redirected = await readSite({ url: from.url, tokenUrl: server.url });
  assert.equal((await checker.check(redirected)).status_code, 401);
  assert.deepEqual(guarded.seen, ["Bearer token-1", null]);
  assert.equal(server.asked.length, 1);
});

const json = (status: number, body: unknown, headers: Record<string, string> = {}) => () =>
  Response.json(body, { status, headers });

Deno.test.each<{ what: string; answer: Answer; message: string }>([
  {
    what: "invalid_client",
    answer: json(401, { error: "invalid_client", error_description: "no\nsuch client" }, {
      "www-authenticate": `Basic realm="${SECRET}"`,
    }),
    message: "invalid_client (status 401): no such client",
  },
  {
    what: "an error that repeats the secret",
    answer: json(400, { error: "invalid_scope", error_description: `client_secret=${SECRET}` }),
    message: "invalid_scope (status 400)",
  },
  {
    what: "an error that is the secret",
    answer: json(400, { error: SECRET }),
    message: "expected status 200, got 400",
  },
  {
    what: "an error with status 200",
    answer: json(200, { error: "unauthorized_client" }),
    message: "unauthorized_client (status 200)",
  },
  {
    what: "an error without JSON",
    answer: () => new Response(`<h1>${SECRET}</h1>`, { status: 502 }),
    message: "expected status 200, got 502",
  },
  {
    what: "a redirect",
    answer: () => Response.redirect("http://127.0.0.1:1/token", 307),
    message: "expected status 200, got 307, and no redirect is followed",
  },
  {
    what: "HTML",
    answer: () => new Response(`<h1>${SECRET}</h1>`, { headers: { "content-type": "text/html" } }),
    message: "expected a JSON object, got an answer that is none (text/html)",
  },
  {
    what: "a JSON array",
    answer: () => Response.json([SECRET]),
    message: "expected a JSON object, got an answer that is none (application/json)",
  },
  {
    what: "too long an answer",
    answer: () => new Response(" ".repeat(2 * 1024 * 1024)),
    message: "expected a JSON object, got more than 1M",
  },
  {
    what: "no access_token",
    answer: (count) => tokenOf(count, { access_token: undefined, token: SECRET }),
    message: 'expected a token, got another answer ("response" body "access_token" property must be a string)',
  },
  {
    what: "an empty access_token",
    answer: (count) => tokenOf(count, { access_token: "" }),
    message: 'expected a token, got another answer ("response" body "access_token" property must not be empty)',
  },
  {
    what: "a token with a line end",
    answer: (count) => tokenOf(count, { access_token: `${SECRET}\r\nx-a: b` }),
    message: "expected a token that a header can hold, got one with other characters",
  },
  {
    what: "a token of another type",
    answer: (count) => tokenOf(count, { token_type: "DPoP" }),
    message: "expected a token of the type bearer, got dpop",
  },
  {
    what: "a life that is no number",
    answer: (count) => tokenOf(count, { expires_in: SECRET }),
    message: 'expected a token, got another answer ("response" body "expires_in" property must be a number)',
  },
])("check() says nothing of the site where the server of tokens gives $what", async ({ answer, message }) => {
  await using server = serveTokens(answer);
  await using guarded = serveGuarded();
  let now = 0;
  using checker = new TestChecker({ now: () => now });
  const site = await readSite({ url: guarded.url, tokenUrl: `${server.url}?tenant=7` });
  const fails = () =>
    assert.rejects(checker.check(site), (error: Error) => {
      assert.equal(error.name, "FaultError");
      assert.equal(error.message, `Cannot get a token from ${server.url}: ${message}`);
      assert.doesNotMatch(Deno.inspect(error), /hunter2/);
      return true;
    });
  await fails();
  await fails();
  assert.deepEqual([server.asked.length, guarded.seen.length], [1, 0], "it is not asked again at once");
  now = 1_500;
  await fails();
  assert.equal(server.asked.length, 2);
});

Deno.test("check() asks a server of tokens that was away again, and says what kept it from it", async () => {
  await using guarded = serveGuarded();
  await using deaf = await listenDeaf();
  const [port] = await freePorts(1);
  let now = 0;
  using checker = new TestChecker({ now: () => now });
  const site = await readSite({ url: guarded.url, tokenUrl: `http://127.0.0.1:${port}/token` });
  await assert.rejects(checker.check(site), {
    message: `Cannot get a token from http://127.0.0.1:${port}/token: tcp connect error: Connection refused`,
  });
  await using _ = Deno.serve({ hostname: "127.0.0.1", port: port!, onListen: () => {} }, () => tokenOf(1));
  now = 1_500;
  assert.equal((await checker.check(site)).verdict, "up");
  const hanging = await readSite({ url: guarded.url, tokenUrl: deaf.url, args: ["--timeout=200ms"] });
  await assert.rejects(checker.check(hanging), {
    message: `Cannot get a token from ${deaf.url}: no answer within the timeout, which is 200ms`,
  });
});

Deno.test("check() uses a token that came too late for the check before", async () => {
  const { promise: released, resolve: release } = Promise.withResolvers<void>();
  await using server = serveTokens(async (count) => {
    await released;
    return tokenOf(count);
  });
  await using guarded = serveGuarded();
  using checker = new TestChecker();
  const site = await readSite({ url: guarded.url, tokenUrl: server.url, args: ["--timeout=300ms"] });
  await assert.rejects(checker.check(site), /no answer within the timeout/);
  assert.deepEqual(guarded.seen, []);
  release();
  const { verdict } = await checker.check({ ...site, timeoutMs: 5_000 });
  assert.deepEqual([verdict, server.asked.length], ["up", 1]);
});

Deno.test("check() calls no site late of whose time the token took much", async () => {
  await using server = serveTokens(async (count) => {
    await delay(300);
    return tokenOf(count);
  });
  let released = () => {};
  await using hanging = serve(() => new Promise((resolve) => released = () => resolve(new Response())));
  using checker = new TestChecker();
  const site = await readSite({ url: hanging.url, tokenUrl: server.url, args: ["--timeout=1s"] });
  await assert.rejects(checker.check(site), /^FaultError: Cannot wait for the site: the token from .* took \d+ms of/);
  released();
  assert.equal((await checker.check(site)).error, "timeout");
  released();
});

Deno.test("response_time and elapsed_ms are those of the request that counts alone", async () => {
  await using server = serveTokens(async (count) => {
    await delay(400);
    return tokenOf(count);
  });
  await using guarded = serveGuarded((authorization) => authorization === "Bearer token-2");
  using checker = new TestChecker();
  const site = await readSite({ url: guarded.url, tokenUrl: server.url });
  // The site answers at once, in less than the token takes, however slow this machine is.
  const start = performance.now();
  const { response_time, elapsed_ms } = await checker.check(site);
  const others = performance.now() - start - elapsed_ms!;
  assert.ok(response_time! <= elapsed_ms! && others >= 800, `${elapsed_ms} of ${others + elapsed_ms!}`);
});

Deno.test("a token is asked for through the site's proxy, and with its authorities", async () => {
  const authority = await createAuthority("site_checker token tests");
  const { certificate: cert, key } = await authority.issue({ commonName: "localhost", names: ["127.0.0.1"] });
  await using ca = await temporaryFile("ca.pem", authority.certificate);
  await using secure = serveTokens(tokenOf, { cert, key });
  await using guarded = serveGuarded();
  const proxied: string[] = [];
  await using proxy = serve(({ url }) => {
    proxied.push(url);
    return url.endsWith("/token") ? tokenOf(1) : new Response("hello");
  });
  using checker = new TestChecker();
  const tokenUrl = secure.url.replace("http:", "https:");
  await assert.rejects(
    checker.check(await readSite({ url: guarded.url, tokenUrl })),
    /: invalid peer certificate: UnknownIssuer$/,
  );
  const known = await readSite({ url: guarded.url, tokenUrl, args: ["--tls-ca", ca.path] });
  assert.equal((await checker.check(known)).verdict, "up");
  const behind = await readSite({
    url: "http://site.invalid/",
    tokenUrl: "http://tokens.invalid/token",
    args: ["--proxy", proxy.url],
  });
  const { verdict } = await checker.check(behind);
  assert.deepEqual([verdict, proxied], ["up", ["http://tokens.invalid/token", "http://site.invalid/"]]);
  const [port] = await freePorts(1);
  const away = await readSite({ url: guarded.url, tokenUrl, args: [`--proxy=http://127.0.0.1:${port}`] });
  await assert.rejects(checker.check(away), /^FaultError: Cannot reach the proxy http:\/\/127\.0\.0\.1:\d+: /);
});

Deno.test("Tokens.retain() forgets what no site needs, and keeps the rest", async () => {
  await using server = serveTokens();
  await using guarded = serveGuarded();
  using checker = new TestChecker();
  const given = { url: guarded.url, tokenUrl: server.url };
  const site = await readSite(given);
  await checker.check(site);
  checker.tokens.retain([await readSite({ ...given, args: ["--name=other", "--interval=1m"] })]);
  await checker.check(await readSite(given));
  assert.equal(server.asked.length, 1);
  checker.tokens.retain([await readSite({ ...given, args: ["--oauth-scope=other"] })]);
  await checker.check(site);
  assert.equal(server.asked.length, 2);
});

Deno.test("producer tells once that no token is to be had, publishes nothing, and shows no secret", async () => {
  await using server = serveTokens(json(400, { error: "invalid_client", error_description: SECRET }));
  await using site = startSite(() => new Response("hello"));
  const sites = ["a", "b", "c"].map((name) => `[website_${name}]\nurl = ${site.url}${name}\ninterval = 200ms\n`);
  await using file = await temporaryFile(
    "config.ini",
    `[defaults]
oauth_token_url = ${server.url}
oauth_client_id = my-id
oauth_client_secret = \${SITE_CHECKER_SECRET}
${sites.join("\n")}`,
  );
  const env = { SITE_CHECKER_SECRET: SECRET };
  const args = ["--dry-run", "--config-path", file.path];
  const once = await runProgram("producer", [...args, "--once", "--log-level=debug"], { env });
  assert.deepEqual([once.code, once.stdout, site.visits], [1, "", 0]);
  assert.match(once.stderr, /^producer: Cannot get a token from http:\S+\/token: invalid_client \(status 400\)$/m);
  assert.doesNotMatch(once.stderr, /Unexpected/);
  await using running = startProgram("producer", [...args, "--log-level=debug"], { env });
  await running.waitFor("Cannot check '");
  await delay(1_000);
  const ended = await running.stop("SIGTERM");
  assert.deepEqual([ended.code, ended.stdout, site.visits], [0, "", 0]);
  assert.equal(ended.stderr.match(/Cannot check '/g)?.length, 1, ended.stderr);
  assert.match(ended.stderr, /could not make [1-9]/);
  const shown = await runProgram("producer", [...args, "--check-config"], { env });
  assert.match(shown.stdout, /^oauth_client_secret = \*{8} +;/m);
  assert.match(shown.stdout, /^oauth_client_id = my-id +;/m);
  for (const { stdout, stderr } of [once, ended, shown]) assert.doesNotMatch(stdout + stderr, /hunter2/);
});

Deno.test("producer gets a token and is let in with its permissions", async () => {
  await using server = serveTokens();
  await using guarded = serveGuarded((authorization) => authorization === "Bearer token-1");
  const args = ["--oauth-token-url", server.url, "--oauth-client-id=me", `--oauth-client-secret=${SECRET}`];
  const name = uniqueName("site");
  const { code, stdout, stderr } = await runProgram("producer", [
    ...["--once", "--dry-run", "--url", guarded.url, "--name", name, ...args],
  ]);
  assert.equal(code, 0, stderr);
  assert.partialDeepStrictEqual(JSON.parse(stdout), { name, verdict: "up", status_code: 200 });
  assert.doesNotMatch(stdout + stderr, /hunter2|token-1/);
});
