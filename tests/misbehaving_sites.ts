/**
 * The sites of tests/misbehaviour_test.ts, and the process that serves them: were they in the test's own, what they send
 * would keep the good one among them from answering in time.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { createServer, type Socket } from "node:net";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import type { Metric } from "../lib/metric.ts";
import { freePorts } from "../local/port.ts";
import { withBody } from "./servers.ts";

/** A site that misbehaves. */
export interface Misbehaviour {
  /** What it does with a connection once a request has come; with the port at which all of them are. */
  readonly answer: (socket: Socket, port: number) => void;
  /** Lines of its section. */
  readonly settings?: string;
  /** Class that its checks are of; null where they pass. */
  readonly error: Metric["error"];
  /** Part of the check that fails. */
  readonly phase: Metric["failed_phase"];
  /** Class by the runtime's `fetch`, where it is another. */
  readonly errorOfRuntime?: Metric["error"];
  /** Whether the runtime's `fetch` has no means against it. */
  readonly holdsUpRuntime?: boolean;
}

/** Ports of {@linkcode serveSites}. */
export interface SitePorts {
  /** Port of the site that answers well. */
  readonly good: number;
  /** Port of those that misbehave, each at the path of its name. */
  readonly bad: number;
}

const HEAD = "HTTP/1.1 200 OK\r\n";
const MIB = 1024 * 1024;
const SPACE = Buffer.alloc(64 * 1024, " ");
/** Takes time that doubles with each `ab`: years for fifty of them. */
const ENDLESS_PATTERN = "(?i)^(?:a|b|ab)+(?=c)$";
const send = (...parts: (string | Uint8Array)[]) => (socket: Socket) =>
  void socket.end(Buffer.concat(parts.map((part) => Buffer.from(part))));

/** Sends the same for ever, as fast as it is taken. */
function flood(begin: string, chunk: string | Uint8Array): (socket: Socket) => void {
  return (socket) => {
    const feed = () => {
      while (!socket.destroyed && socket.write(chunk));
    };
    socket.on("drain", feed);
    socket.write(begin);
    feed();
  };
}

/** Sends the same for ever, a little at a time. */
function drip(begin: string, drop: string): (socket: Socket) => void {
  return (socket) => {
    socket.write(begin);
    const timer = setInterval(() => socket.write(drop), 20);
    socket.on("close", () => clearInterval(timer));
  };
}

function redirect(location: (port: number) => string): (socket: Socket, port: number) => void {
  return (socket, port) =>
    send(`HTTP/1.1 302 Found\r\nlocation: ${location(port)}\r\ncontent-length: 0\r\n\r\n`)(socket);
}

const PACK = {
  gzip: (plain: Uint8Array) => gzipSync(plain),
  br: (plain: Uint8Array) => brotliCompressSync(plain, { params: { [constants.BROTLI_PARAM_QUALITY]: 1 } }),
};
/** Twice as much as is read of a body, once it is decoded; made in the process that serves it, before it does. */
const bombs = new Map<keyof typeof PACK, Uint8Array>();

function bomb(encoding: keyof typeof PACK): (socket: Socket) => void {
  return (socket) => void socket.end(withBody(`${HEAD}content-encoding: ${encoding}\r\n`, bombs.get(encoding)!));
}

/** All of them, by name. */
export const MISBEHAVIOURS: Readonly<Record<string, Misbehaviour>> = {
  // Too much, or too little.
  endless_body: { answer: flood(`${HEAD}\r\n`, SPACE), error: "body_too_large", phase: "download" },
  endless_headers: { answer: flood(HEAD, `x-a: ${"b".repeat(1_000)}\r\n`), error: "protocol", phase: "first_byte" },
  endless_garbage: { answer: flood("", SPACE), error: "protocol", phase: "first_byte" },
  endless_header: { answer: flood(`${HEAD}x: `, SPACE), error: "protocol", phase: "first_byte" },
  endless_hints: {
    answer: flood("", "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"),
    holdsUpRuntime: true,
    error: "protocol",
    phase: "first_byte",
  },
  endless_chunk_extension: {
    answer: flood(`${HEAD}transfer-encoding: chunked\r\n\r\n5;`, "x".repeat(64 * 1024)),
    error: "body_timeout",
    errorOfRuntime: "protocol",
    phase: "download",
  },
  endless_trailer: {
    answer: flood(`${HEAD}transfer-encoding: chunked\r\n\r\n0\r\n`, `x-a: ${"b".repeat(1_000)}\r\n`),
    error: "protocol",
    phase: "download",
  },
  endless_chunks_beside_a_length: {
    answer: flood(
      `${HEAD}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n`,
      Buffer.concat([Buffer.from("10000\r\n"), SPACE, Buffer.from("\r\n")]),
    ),
    error: "body_too_large",
    phase: "download",
  },
  gzip_bomb: { answer: bomb("gzip"), error: "body_too_large", phase: "download" },
  brotli_bomb: { answer: bomb("br"), error: "body_too_large", phase: "download" },
  silent: { answer: () => {}, error: "timeout", phase: "first_byte" },
  silent_in_head: {
    answer: (socket) => void socket.write(HEAD),
    settings: "first_byte_timeout = 500ms",
    error: "first_byte_timeout",
    phase: "first_byte",
  },
  dripping_head: { answer: drip(`${HEAD}x`, "x"), error: "timeout", phase: "first_byte" },
  dripping_body: { answer: drip(`${HEAD}\r\n`, "x"), error: "body_timeout", phase: "download" },
  // What is no HTTP.
  garbage: {
    answer: send(Uint8Array.from({ length: 999 }, (_, i) => i % 256)),
    error: "protocol",
    phase: "first_byte",
  },
  short: { answer: send(HEAD, "content-length: 99\r\n\r\nabc"), error: "protocol", phase: "download" },
  long: { answer: send(HEAD, "content-length: 3\r\n\r\nabcdef"), settings: "regex = ^abc$", error: null, phase: null },
  two_lengths: {
    answer: send(HEAD, "content-length: 1\r\ncontent-length: 2\r\n\r\nab"),
    error: "protocol",
    phase: "first_byte",
  },
  no_gzip: { answer: send(HEAD, "content-encoding: gzip\r\n\r\nabc"), error: "protocol", phase: "download" },
  closed: { answer: (socket) => void socket.destroy(), error: "reset", phase: "first_byte" },
  reset_in_body: {
    answer: (socket) => void socket.write(`${HEAD}content-length: 9\r\n\r\nabc`, () => socket.resetAndDestroy()),
    error: "reset",
    errorOfRuntime: "protocol",
    phase: "download",
  },
  no_utf8: {
    answer: send(
      HEAD,
      "x-odd: ",
      Uint8Array.of(0xff, 0xc3, 0x28),
      "\r\n\r\n",
      Uint8Array.of(0, 0xff, 0xed, 0xa0, 0x80),
    ),
    settings: "regex = ^[a-z]+$\nregex_absent = [^a]\nforbidden_header = x-odd: .\nexcerpt = 1K",
    error: "regex",
    phase: "expectation",
  },
  // Where it leads to.
  redirect_to_itself: { answer: redirect(() => "/redirect_to_itself"), error: "redirect_loop", phase: "first_byte" },
  redirect_to_file: { answer: redirect(() => "file:///etc/passwd"), error: "redirect_denied", phase: "first_byte" },
  redirect_to_other_host: {
    answer: redirect((port) => `http://localhost:${port}/endless_body`),
    error: "body_too_large",
    phase: "download",
  },
  redirect_to_nobody: {
    answer: redirect(() => `http://127.0.0.1:${freePorts(1)[0]}/`),
    error: "refused",
    phase: "connect",
  },
  // What takes long to judge.
  deep_json: {
    answer: send(HEAD, "\r\n", "[".repeat(1_000_000)),
    settings: "json = a = 1",
    error: "json",
    phase: "expectation",
  },
  endless_expression: {
    answer: send(HEAD, "\r\n1"),
    settings: "json = ($f := function($x) { $f($x + 1) }; $f(1))",
    error: "timeout",
    phase: "expectation",
  },
  ...Object.fromEntries(Array.from({ length: 10 }, (_, i) => [`endless_pattern_${i}`, {
    answer: send(HEAD, "\r\n", "ab".repeat(50)),
    settings: `regex = ${ENDLESS_PATTERN}`,
    error: "timeout",
    phase: "expectation",
  }])),
};

/** Serves a good site, and those that misbehave. */
export async function serveSites(): Promise<SitePorts> {
  for (const encoding of ["gzip", "br"] as const) bombs.set(encoding, PACK[encoding](Buffer.alloc(128 * MIB)));
  const { addr } = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen: () => {} },
    () => new Response("It works!"),
  );
  const server = createServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", (data) => {
      const [, name = ""] = /^GET \/(\w+)/.exec(data.toString()) ?? [];
      MISBEHAVIOURS[name]?.answer(socket, (server.address() as { port: number }).port);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { good: addr.port, bad: (server.address() as { port: number }).port };
}

if (import.meta.main) {
  const ports = await serveSites();
  await Deno.stdout.write(new TextEncoder().encode(JSON.stringify(ports) + "\n"));
}
