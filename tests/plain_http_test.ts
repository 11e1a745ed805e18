import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { hash } from "node:crypto";
import type { Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { createClient, DEFAULT_CLIENT } from "../lib/client.ts";
import { describeFailure } from "../lib/failure.ts";
import { type Answer, type Fetch, fetchByRuntime, type FetchOptions } from "../lib/fetch.ts";
import { fetchPlain } from "../lib/plain_http.ts";
import { freePorts } from "../local/port.ts";
import { listenDeaf, send, serveRaw, withBody } from "./servers.ts";

type Options = Partial<Omit<FetchOptions, "client" | "settings">>;

const HEADERS = { accept: "*/*", "user-agent": "site_checker" };
const HEAD = "HTTP/1.1 200 OK\r\n";
const PAGE = "site_checker ".repeat(1_000);
const LONG = Buffer.alloc(3_000_000, "site_checker ");

/** Sends a request in one of both ways. */
async function asking(fetch: Fetch, url: string, options: Options = {}): Promise<Answer> {
  using client = createClient();
  const { signal } = new AbortController();
  return await fetch(url, { headers: HEADERS, signal, ...options, client, settings: DEFAULT_CLIENT });
}

/** What comes of a request, as a check sees it. */
async function outcome(fetch: Fetch, url: string, options?: Options): Promise<object> {
  let phase: "first_byte" | "download" = "first_byte";
  let answer: Answer | undefined;
  try {
    answer = await asking(fetch, url, options);
    phase = "download";
    const pieces: Uint8Array[] = [];
    for await (const piece of answer.pieces()) pieces.push(piece.slice());
    const { status, headers } = answer;
    const body = Buffer.concat(pieces);
    return {
      status,
      headers: [...headers],
      bytes: body.length,
      sha256: hash("sha256", body),
      begin: String(body).slice(0, 99),
    };
  } catch (error) {
    const { message, ...failure } = describeFailure({ error, phase }, { timeoutMs: 5_000 });
    // A body that can't be decoded is in the words of who decodes it.
    return { status: answer?.status, ...failure, ...(phase === "first_byte" && { message }) };
  }
}

const chunked = (...chunks: string[]) =>
  `${HEAD}transfer-encoding: chunked\r\n\r\n${
    [...chunks, ""].map((chunk) => `${chunk.length.toString(16)}\r\n${chunk}\r\n`).join("")
  }`;

/** Sends parts of a response with some time between. */
function inParts(...parts: readonly (string | Uint8Array)[]): (socket: Socket) => void {
  return async (socket) => {
    socket.setNoDelay(true);
    for (const part of parts.slice(0, -1)) {
      socket.write(part);
      await delay(5);
    }
    socket.end(parts.at(-1)!);
  };
}

const gzip = gzipSync(PAGE);
const brotli = brotliCompressSync(PAGE);
const encoded = (coding: string, body: Uint8Array) => withBody(`${HEAD}content-encoding: ${coding}\r\n`, body);

const RESPONSES: Readonly<Record<string, string | Uint8Array | ((socket: Socket) => void)>> = {
  "a page": withBody(`${HEAD}content-type: text/html\r\n`, Buffer.from("hello")),
  "an empty page": `${HEAD}content-length: 0\r\n\r\n`,
  "a page without a length": `${HEAD}\r\nhello`,
  "an empty page without a length": `${HEAD}\r\n`,
  "a long page": withBody(HEAD, LONG),
  "a long page without a length": Buffer.concat([Buffer.from(`${HEAD}\r\n`), LONG]),
  "more than was told": `${HEAD}content-length: 2\r\n\r\nhello`,
  "chunks": chunked("hello", " ", "world"),
  "chunks with extensions and a trailer":
    `${HEAD}transfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n`,
  "chunks whose lengths are padded": `${HEAD}transfer-encoding: chunked\r\n\r\n5  \r\nhello\r\n0   \r\n\r\n`,
  "many small chunks": chunked(...Array.from({ length: 1_000 }, (_, i) => String(i % 10))),
  "another response behind it": `${HEAD}content-length: 5\r\n\r\nhelloHTTP/1.1 400 Bad\r\ncontent-length: 3\r\n\r\nbad`,
  "another response behind none": "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 400 Bad\r\ncontent-length: 3\r\n\r\nbad",
  "100 behind it": `${HEAD}content-length: 5\r\n\r\nhelloHTTP/1.1 100 Continue\r\n\r\n`,
  "a reset": "HTTP/1.1 205 Reset Content\r\n\r\nhello",
  "HTTP/2.0": "HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
  "a status below 100": "HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n",
  "a length beside chunks": chunked("hello").replace("\r\n\r\n", "\r\ncontent-length: 3\r\n\r\n"),
  "HTTP/1.0": "HTTP/1.0 200 OK\r\n\r\nhello",
  "no text of the status": "HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n",
  "an unusual status": "HTTP/1.1 999 Unusual\r\ncontent-length: 0\r\n\r\n",
  "no content": "HTTP/1.1 204 No Content\r\n\r\n",
  "not modified": "HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n",
  "a redirect": "HTTP/1.1 301 Moved\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n",
  "an error of the server": "HTTP/1.1 503 Busy\r\nretry-after: 5\r\ncontent-length: 4\r\n\r\nbusy",
  "100 before it": `HTTP/1.1 100 Continue\r\n\r\n${HEAD}content-length: 2\r\n\r\nhi`,
  "103 before it": `HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n${HEAD}content-length: 2\r\n\r\nhi`,
  "another protocol from now on": "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
  "a header twice": `${HEAD}x: a\r\nx: b\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 0\r\n\r\n`,
  "names in capitals": `${HEAD}X-Some: Thing\r\nContent-Length: 0\r\n\r\n`,
  "space around values": `${HEAD}x:   a b \t\r\ny:\r\ncontent-length: 0\r\n\r\n`,
  "values that are not ASCII": Buffer.from(`${HEAD}x: caf\xe9\r\ncontent-length: 0\r\n\r\n`, "latin1"),
  "90 headers": `${HEAD}${"x: y\r\n".repeat(89)}content-length: 0\r\n\r\n`,
  "200 headers": `${HEAD}${"x: y\r\n".repeat(200)}\r\n`,
  "200 headers and no body": `${HEAD}${"x: y\r\n".repeat(200)}content-length: 0\r\n\r\n`,
  "a header of 200 KB": `${HEAD}x: ${"y".repeat(200_000)}\r\ncontent-length: 0\r\n\r\n`,
  "a header of 1 MB": `${HEAD}x: ${"y".repeat(1_000_000)}\r\ncontent-length: 0\r\n\r\n`,
  "line ends without CR": "HTTP/1.1 200 OK\nx: y\ncontent-length: 2\n\nhi",
  "a space before the colon": `${HEAD}x : a\r\n\r\n`,
  "NUL in a header": `${HEAD}x: a\0b\r\ncontent-length: 0\r\n\r\n`,
  "two lengths": `${HEAD}content-length: 1\r\ncontent-length: 2\r\n\r\nab`,
  "a negative length": `${HEAD}content-length: -1\r\n\r\nab`,
  "a length that is none": `${HEAD}content-length: x\r\n\r\nab`,
  "gzip": encoded("gzip", gzip),
  "gzip in capitals": encoded("GZIP", gzip),
  "brotli": encoded("br", brotli),
  "gzip in chunks": inParts(
    `${HEAD}content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n`,
    `${gzip.length.toString(16)}\r\n`,
    gzip.subarray(0, 50),
    Buffer.concat([gzip.subarray(50), Buffer.from("\r\n0\r\n\r\n")]),
  ),
  "an encoding that nobody knows": encoded("rot13", Buffer.from("uryyb")),
  "several encodings": encoded("gzip, br", Buffer.from("hello")),
  "deflate, which is left as it is": encoded("deflate", Buffer.from("hello")),
  "gzip that is cut": encoded("gzip", gzip.subarray(0, -9)),
  "brotli that is cut": encoded("br", brotli.subarray(0, -5)),
  "no gzip": encoded("gzip", Buffer.from("hello")),
  "gzip without a body": `HTTP/1.1 204 No Content\r\ncontent-encoding: gzip\r\n\r\n`,
  "garbage": "garbage\r\n\r\n",
  "a page without a head": "<h1>It works</h1>",
  "another protocol": "SSH-2.0-OpenSSH_9.2\r\n",
  "a status that is none": "HTTP/1.1 abc OK\r\n\r\n",
  "a head that is cut": `${HEAD}content-le`,
  "nothing": "",
  "a body that is cut": `${HEAD}content-length: 9\r\n\r\nabc`,
  "a chunk that is cut": `${HEAD}transfer-encoding: chunked\r\n\r\n5\r\nab`,
  "a bad chunk": `${HEAD}transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n`,
  "a good chunk before a bad one": inParts(
    `${HEAD}transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n`,
    "zz\r\nabc\r\n",
  ),
  "a head piece by piece": inParts("HT", "TP/1.1 200", " OK\r\nx: ", "y\r\ncontent-", "length: 4\r\n\r\n", "ab", "cd"),
  "a connection that is reset": (socket) => void socket.resetAndDestroy(),
};

Deno.test.each(Object.entries(RESPONSES))("fetchPlain() makes of %s what fetch does", async (_, response) => {
  await using server = await serveRaw(typeof response === "function" ? response : send(response));
  assert.deepEqual(await outcome(fetchPlain, server.url), await outcome(fetchByRuntime, server.url));
});

Deno.test.each(["content-length: 2\r\nx: y\r\nContent-Length: 2", "content-length: 2, 2\r\nx: y"])(
  "fetchPlain() takes a length that stands there twice for one: %s",
  async (lines) => {
    await using server = await serveRaw(send(`${HEAD}${lines}\r\n\r\nhi`));
    const { headers, ...plain } = await outcome(fetchPlain, server.url) as { headers: unknown };
    const { headers: _, ...runtime } = await outcome(fetchByRuntime, server.url) as { headers: unknown };
    assert.deepEqual(plain, runtime);
    assert.deepEqual(headers, [["content-length", "2"], ["x", "y"]]);
  },
);

Deno.test.each(["HEAD", "GET"])("fetchPlain() takes the answer to %s for what fetch does", async (method) => {
  await using server = await serveRaw(send(`${HEAD}content-length: 5\r\ncontent-encoding: gzip\r\n\r\n`));
  assert.deepEqual(
    await outcome(fetchPlain, server.url, { method }),
    await outcome(fetchByRuntime, server.url, { method }),
  );
});

/** The request that a server gets, its headers in order. */
async function request(fetch: Fetch, path: string, options?: Options): Promise<string[]> {
  let text = "";
  await using server = await serveRaw((socket, first) => {
    text = first.toString("latin1");
    socket.setEncoding("latin1");
    const end = () => {
      const length = Number(/^content-length: (\d+)/im.exec(text)?.[1] ?? 0);
      if (text.length >= text.indexOf("\r\n\r\n") + 4 + length) socket.end(`${HEAD}content-length: 0\r\n\r\n`);
    };
    socket.on("data", (data) => {
      text += data;
      end();
    });
    end();
  });
  const answer = await asking(fetch, server.url + path, options);
  await answer.cancel();
  const [head = "", body = ""] = text.split("\r\n\r\n");
  const [line = "", ...headers] = head.replaceAll(String(server.port), "PORT").split("\r\n");
  return [line, ...headers.toSorted(), body];
}

const body = new TextEncoder().encode("Grüße");

const REQUESTS: Readonly<Record<string, Options & { readonly path?: string }>> = {
  "a bare GET": {},
  "an empty query": { path: "a?" },
  "an empty query and a fragment": { path: "a?#b?" },
  "a part": { headers: { ...HEADERS, range: "bytes=0-9" } },
  "a path and a query": { path: "a%20b/ü?x=1&y=%2F#part" },
  "headers": { headers: { ...HEADERS, accept: "text/html", "x-some": "thing", authorization: "Basic eDp5" } },
  "other headers than those of fetch": {
    headers: { "user-agent": "x", "accept-language": "de", "accept-encoding": "identity" },
  },
  "another host": { headers: { ...HEADERS, host: "www.example.com" } },
  "a value that is not ASCII": { headers: { ...HEADERS, "x-some": "caf\xe9" } },
  "a body": { method: "POST", body },
  "a body and its type": { method: "PATCH", body, headers: { ...HEADERS, "content-type": "text/plain" } },
  "POST without a body": { method: "POST" },
  "PUT without a body": { method: "PUT" },
  "DELETE": { method: "DELETE" },
  "a method of its own": { method: "PURGE" },
};

Deno.test.each(Object.entries(REQUESTS))(
  "fetchPlain() sends %s as fetch does",
  async (_, { path = "", ...options }) => {
    assert.deepEqual(await request(fetchPlain, path, options), await request(fetchByRuntime, path, options));
  },
);

Deno.test("fetchPlain() sends a long body, and takes an answer that comes before its end", async () => {
  const body = new Uint8Array(8 * 1024 * 1024);
  await using server = await serveRaw((socket) => {
    socket.pause();
    socket.write("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno");
  });
  const answer = await asking(fetchPlain, server.url, { method: "POST", body });
  assert.deepEqual([answer.status, Buffer.from(await answer.bytes()).toString()], [413, "no"]);
});

Deno.test("fetchPlain() refuses a header that would be two", async () => {
  await using server = await serveRaw(send(`${HEAD}content-length: 0\r\n\r\n`));
  for (
    const headers of [{ x: "a\r\ny: b" }, { x: "a\nb" }, { x: "a\0" }, { "x\r\ny": "a" }, { "x y": "a" }, { x: "ж" }]
  ) {
    await assert.rejects(asking(fetchPlain, server.url, { headers }), TypeError);
  }
});

Deno.test("fetchPlain() says of names and ports what fetch does", async () => {
  const [port] = freePorts(1);
  for (const host of ["127.0.0.1", "[::1]", "localhost", "absent.invalid"]) {
    const url = `http://${host}:${port}/`;
    const [plain, runtime] = [await outcome(fetchPlain, url), await outcome(fetchByRuntime, url)];
    assert.deepEqual(plain, runtime, url);
  }
});

Deno.test("fetchPlain() reaches a host by each of its addresses", async () => {
  await using server = await serveRaw(send(`${HEAD}content-length: 2\r\n\r\nhi`));
  const answer = await asking(fetchPlain, server.url.replace("127.0.0.1", "localhost"));
  assert.equal(answer.status, 200);
  await answer.cancel();
});

Deno.test.each([
  { what: "connects", response: null },
  { what: "waits for the head", response: "HTTP/1.1 200" },
  { what: "reads the body", response: `${HEAD}content-length: 5\r\n\r\nhe` },
])("fetchPlain() ends by its signal while it $what", async ({ response }) => {
  await using server = response === null ? await listenDeaf() : await serveRaw((socket) => void socket.write(response));
  const controller = new AbortController();
  const reason = new Error("ended");
  const reading = asking(fetchPlain, server.url, { signal: controller.signal }).then((answer) => answer.bytes());
  await delay(100);
  controller.abort(reason);
  await assert.rejects(reading, reason);
  await assert.rejects(asking(fetchPlain, server.url, { signal: controller.signal }), reason);
});

Deno.test("fetchPlain() closes the connection as soon as nothing more is read", async () => {
  const ends: Promise<unknown>[] = [];
  await using server = await serveRaw((socket) => {
    ends.push(new Promise((resolve) => socket.on("close", resolve)));
    socket.write(`${HEAD}content-length: 5\r\n\r\nhe`);
    socket.resume();
  });
  for await (const piece of (await asking(fetchPlain, server.url)).pieces()) {
    assert.equal(Buffer.from(piece).toString(), "he");
    break;
  }
  await (await asking(fetchPlain, server.url)).cancel();
  assert.equal(ends.length, 2);
  await Promise.all(ends);
});

Deno.test.each(["gzip", "br"])("fetchPlain() closes the connection when %s can't be decoded", async (coding) => {
  const closed = Promise.withResolvers<void>();
  await using server = await serveRaw((socket) => {
    socket.on("close", () => closed.resolve());
    socket.write(`${HEAD}content-encoding: ${coding}\r\ncontent-length: 1000\r\n\r\n${"It works. ".repeat(50)}`);
    socket.resume();
  });
  const answer = await asking(fetchPlain, server.url);
  await assert.rejects(async () => {
    for await (const _ of answer.pieces());
  });
  await closed.promise;
});

Deno.test("fetchPlain() closes the connection when nothing more is read of what is decoded", async () => {
  const closed = Promise.withResolvers<void>();
  await using server = await serveRaw((socket) => {
    socket.on("close", () => closed.resolve());
    socket.write(`${HEAD}content-encoding: gzip\r\ncontent-length: 100000\r\n\r\n`);
    socket.write(gzipSync(LONG));
    socket.resume();
  });
  for await (const _ of (await asking(fetchPlain, server.url)).pieces()) break;
  await closed.promise;
});

Deno.test("fetchPlain() holds little of a body that nobody reads", async () => {
  let sent = 0;
  await using server = await serveRaw((socket) => {
    const feed = () => {
      while (!socket.destroyed && socket.write(LONG)) sent += LONG.length;
    };
    socket.on("drain", feed);
    socket.write(`${HEAD}\r\n`);
    feed();
  });
  const answer = await asking(fetchPlain, server.url);
  await delay(200);
  const before = sent;
  await delay(200);
  assert.equal(sent, before);
  await answer.cancel();
});
