import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createServer as createHttpServer, type IncomingMessage, request, type ServerResponse } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import type { AddressInfo, Server } from "node:net";
import type { TlsOptions } from "node:tls";
import { parseIni } from "../lib/ini.ts";
import type { Metric } from "../lib/metric.ts";
import { SETTINGS } from "../lib/setting.ts";
import { createAuthority } from "../local/certificate.ts";
import { REPOSITORY } from "../local/repository.ts";
import { runWell } from "./support.ts";

const CONFIG = "example/features.config.ini";
const PASSWORD = "hunter2";
const TOKEN = "hunter3";
const BASIC = `Basic ${new TextEncoder().encode(`monitor:${PASSWORD}`).toBase64()}`;
const CLIENT = `Basic ${new TextEncoder().encode(`site_checker:${TOKEN}`).toBase64()}`;
const PAGE = { "content-type": "text/html; charset=utf-8", "cache-control": "no-store", server: "nginx" };

/** The sites of the example: each answers well where it is asked as it should be. */
const PAGES: Readonly<Record<string, (request: IncomingMessage, body: string) => [number, object?, string?]>> = {
  "/page": () => [200, PAGE, "<title>Shop</title><h1>It works</h1>"],
  "/gone": () => [410],
  "/health": () => [200, { "content-type": "application/json" }, '{"status":"up","queues":[{"length":12}]}'],
  "/robots.txt": () => [200, { "content-type": "text/plain" }, "User-agent: *\n"],
  "/down": () => [503, { "set-cookie": "id=hunter4" }, "Be back soon"],
  "/echo": ({ method, headers }, body) => {
    const host = headers.host?.replace(/:\d+$/, "");
    const isKnown = method === "PUT" ||
      headers["x-api-key"] === TOKEN && headers["user-agent"] === "site_checker of example.com";
    return isKnown ? [200, {}, `${method} ${host} ${body}`] : [400];
  },
  "/private": ({ headers }) => [headers.authorization === BASIC ? 200 : 401],
  "/token": ({ headers }, body) => {
    const form = new URLSearchParams(body);
    const isKnown = headers.authorization === CLIENT && form.get("scope") === "health:read" ||
      form.get("client_secret") === TOKEN && form.get("audience") === "https://api.example.com/";
    const token = { access_token: TOKEN, token_type: "Bearer", expires_in: 3_600 };
    return isKnown ? [200, { "content-type": "application/json" }, JSON.stringify(token)] : [401];
  },
  "/api": ({ headers }) => [headers.authorization === `Bearer ${TOKEN}` ? 200 : 401],
  "/client": ({ socket }) => {
    const { subject } = (socket as unknown as { getPeerCertificate(): { subject?: { CN?: string } } })
      .getPeerCertificate();
    return [subject?.CN === "service" ? 200 : 401];
  },
  "/moved": () => [301, { location: "/moved-again" }],
  "/moved-again": () => [301, { location: "/page" }],
};

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk);
  const [status, headers, body] = PAGES[request.url!]?.(request, Buffer.concat(chunks).toString()) ?? [404];
  response.writeHead(status, { ...headers }).end(body);
}

/** Lets through what has the password, as HTTP proxies do. */
function relay({ url, method, headers }: IncomingMessage, response: ServerResponse): void {
  if (headers["proxy-authorization"] !== BASIC) return void response.writeHead(407).end();
  request(url!, { method }, (other) => {
    response.writeHead(other.statusCode!, other.headers);
    other.pipe(response);
  }).end();
}

async function listen(server: Server, stack: AsyncDisposableStack) {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
  stack.defer(() => new Promise((resolve) => void server.close(() => resolve())));
  return (server.address() as AddressInfo).port;
}

/** What is not null of a metric, without what differs from run to run. */
function plain(metric: Metric, ports: readonly number[]): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(metric).filter(([, value]) => value !== null).map(([key, value]) => {
      if (key === "id") return [key, "ID"];
      if (/_ms$|^response_time$/.test(key)) return [key, "MS"];
      if (/_at$/.test(key)) return [key, "TIME"];
      if (typeof value !== "string") return [key, value];
      const text = ports.reduce((text, port) => text.replaceAll(`:${port}`, ":PORT"), value);
      return [key, text.replace(/^date: .*$/m, "date: TIME")];
    }),
  );
}

Deno.test("example/features.config.ini has every key of a site, each with a site that shows it", async () => {
  const { sections } = parseIni(await Deno.readTextFile(`${REPOSITORY}/${CONFIG}`), { path: CONFIG });
  const used = sections.filter(({ name }) => name === "defaults" || name.startsWith("website_"))
    .flatMap(({ entries }) => [...entries.values()].filter(({ value }) => value !== "").map(({ key }) => key));
  assert.deepEqual([...new Set(used)].sort(), Object.keys(SETTINGS.website).sort());
});

Deno.test("producer makes of example/features.config.ini what it says", async (t) => {
  await using stack = new AsyncDisposableStack();
  const folder = await Deno.makeTempDir();
  stack.defer(() => Deno.remove(folder, { recursive: true }));
  const authority = await createAuthority("site_checker features");
  const server = await authority.issue({ commonName: "localhost", names: ["localhost"] });
  const own = await authority.issue({ commonName: "service" });
  const tls: TlsOptions = {
    cert: server.certificate,
    key: server.key,
    ca: authority.certificate,
    requestCert: true,
    rejectUnauthorized: false,
  };
  const web = await listen(createHttpServer(answer), stack);
  const secure = await listen(createHttpsServer(tls, answer), stack);
  const proxy = await listen(createHttpServer(relay), stack);
  const config = (await Deno.readTextFile(`${REPOSITORY}/${CONFIG}`))
    .replace("http://127.0.0.1:8080", `http://127.0.0.1:${web}`)
    .replace("https://localhost:8443", `https://localhost:${secure}`);
  const files = {
    "features.config.ini": config,
    "order.json": await Deno.readTextFile(`${REPOSITORY}/example/order.json`),
    "password.secret": `${PASSWORD}\n`,
    "token.secret": `${TOKEN}\n`,
    "ca.pem": authority.certificate,
    "service.cert": own.certificate,
    "service.key": own.key,
  };
  await Deno.mkdir(`${folder}/example`);
  for (const [name, text] of Object.entries(files)) await Deno.writeTextFile(`${folder}/example/${name}`, text);

  const { stdout, stderr } = await runWell("producer", ["--once", "--dry-run", "--config-path", CONFIG], {
    cwd: folder,
    env: {
      SITE_CHECKER_API_KEY: TOKEN,
      SITE_CHECKER_PASSWORD: PASSWORD,
      SITE_CHECKER_TOKEN: TOKEN,
      SITE_CHECKER_PROXY: `http://monitor:${PASSWORD}@127.0.0.1:${proxy}`,
    },
  });
  assert.doesNotMatch(stdout + stderr, /hunter/, "a secret is shown");
  assert.doesNotMatch(stderr, /WARN|ERROR/);
  const order = ({ name, attempt }: Metric) => `${name} ${attempt}`;
  const metrics = stdout.trim().split("\n").map((line) => JSON.parse(line) as Metric)
    .sort((a, b) => order(a) < order(b) ? -1 : 1);
  await t.assertSnapshot(metrics.map((metric) => plain(metric, [web, secure, proxy])));
});
