import { createAuthority } from "./certificate.ts";
import type { Metric } from "../lib/metric.ts";

/** A local web site of the demo, and what a check of it must come to. */
export interface DemoSite {
  /** Name, which is the topic's and the table's. */
  readonly name: string;
  /** What it does, in a few words. */
  readonly behaviour: string;
  /** Address. */
  readonly url: string;
  /** Pattern that its page must match. */
  readonly regex: string | null;
  /** Whether a check came out as it must. */
  readonly expected: (check: Pick<Metric, "verdict" | "error" | "status_code" | "response_time">) => boolean;
}

/** The sites, while they run. */
export interface DemoSites extends AsyncDisposable {
  /** The sites. */
  readonly sites: readonly DemoSite[];
  /** Certificate of the authority that vouches for the site with a good certificate, in PEM. */
  readonly authority: string;
}

const SLOW_MS = 400;
const DAY_MS = 24 * 60 * 60 * 1000;
const LISTEN = { hostname: "127.0.0.1", port: 0, onListen: () => {} } as const;

/** Starts web servers on free ports of the loopback address, one a behaviour; the refusing one is a port that nobody listens on. */
export async function startDemoSites(): Promise<DemoSites> {
  const authority = await createAuthority("site_checker demo");
  const names = ["localhost", "127.0.0.1"];
  const good = await authority.issue({ commonName: "localhost", names });
  const expired = await authority.issue({
    commonName: "localhost",
    names,
    notBefore: new Date(Date.now() - 30 * DAY_MS),
    notAfter: new Date(Date.now() - DAY_MS),
  });
  const page = () => new Response("<h1>It works</h1>", { headers: { "content-type": "text/html; charset=utf-8" } });
  const fine = Deno.serve(LISTEN, page);
  const slow = Deno.serve(LISTEN, async () => {
    await new Promise((resolve) => setTimeout(resolve, SLOW_MS));
    return page();
  });
  const content = Deno.serve(LISTEN, () => new Response("Under construction"));
  const error = Deno.serve(LISTEN, () => new Response("Out of order", { status: 500 }));
  const secure = Deno.serve({ ...LISTEN, cert: good.certificate, key: good.key }, page);
  const old = Deno.serve({ ...LISTEN, cert: expired.certificate, key: expired.key }, page);
  const servers = [fine, slow, content, error, secure, old];
  const http = ({ addr }: Deno.HttpServer<Deno.NetAddr>) => `http://127.0.0.1:${addr.port}/`;
  const https = ({ addr }: Deno.HttpServer<Deno.NetAddr>) => `https://localhost:${addr.port}/`;
  const works = { regex: "It works" };
  return {
    authority: authority.certificate,
    sites: [
      {
        name: "fine",
        behaviour: "answers at once",
        url: http(fine),
        ...works,
        expected: ({ verdict }) => verdict === "up",
      },
      {
        name: "slow",
        behaviour: `answers after ${SLOW_MS} ms`,
        url: http(slow),
        ...works,
        expected: ({ verdict, response_time }) => verdict === "up" && (response_time ?? 0) >= SLOW_MS - 10,
      },
      {
        name: "content",
        behaviour: "has lost its content",
        url: http(content),
        ...works,
        expected: ({ error }) => error === "regex",
      },
      {
        name: "broken",
        behaviour: "answers 500",
        url: http(error),
        regex: null,
        expected: ({ error, status_code }) => error === "status" && status_code === 500,
      },
      {
        name: "refusing",
        behaviour: "refuses connections",
        url: `http://127.0.0.1:${unusedPort()}/`,
        regex: null,
        expected: ({ error }) => error === "refused",
      },
      {
        name: "secure",
        behaviour: "has a good certificate",
        url: https(secure),
        ...works,
        expected: ({ verdict }) => verdict === "up",
      },
      {
        name: "expired",
        behaviour: "has an expired certificate",
        url: https(old),
        ...works,
        expected: ({ error }) => error === "tls_expired",
      },
    ],
    async [Symbol.asyncDispose]() {
      await Promise.all(servers.map((server) => server.shutdown()));
    },
  };
}

function unusedPort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}
