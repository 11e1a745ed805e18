import { setTimeout as delay } from "node:timers/promises";
import { print } from "../lib/log.ts";

/**
 * A web site that does nothing beside answering, as a process of its own: `site.ts PORT`, or
 * `site.ts PORT TLS_PORT CERTIFICATE KEY` with two files in PEM. `/MS` answers so many milliseconds after the request
 * came; `/figures` says how much later than that it did.
 *
 * Raw TCP: a server of HTTP has thoughts of its own on when to send.
 *
 * @module
 */

const HEAD = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/";
const PAGE = "It works. ".repeat(100);
const encoder = new TextEncoder();
const decoder = new TextDecoder();
/** Timers are late by up to this; what is left is waited for by looking at the clock. */
const TIMER_MS = 1;
/** With more requests than this at a time, looking at the clock would take a core from what is measured. */
const MAX_WATCHED = 20;

/** How late answers were, in ms. */
let lateness: number[] = [];
/** Requests that are not answered yet. */
let waiting = 0;

function page(type: string, body: string): Uint8Array<ArrayBuffer> {
  return encoder.encode(`${HEAD}${type}\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
}

const pageBytes = page("plain", PAGE);

async function answer(connection: Deno.Conn): Promise<void> {
  using open = connection;
  const buffer = new Uint8Array(4096);
  const read = await open.read(buffer);
  const cameAt = performance.now();
  if (read === null) return;
  const path = decoder.decode(buffer.subarray(0, read)).split(" ")[1] ?? "/";
  if (path === "/figures") {
    const figures = page("json", JSON.stringify(lateness));
    lateness = [];
    for (let written = 0; written < figures.length;) written += await open.write(figures.subarray(written));
    return;
  }
  const dueAt = cameAt + Number(path.slice(1));
  if (dueAt - cameAt > 0) {
    waiting++;
    await delay(dueAt - cameAt - TIMER_MS);
    const watched = waiting <= MAX_WATCHED;
    while (performance.now() < dueAt) if (!watched) await delay(TIMER_MS);
    waiting--;
    lateness.push(performance.now() - dueAt);
  }
  await open.write(pageBytes);
}

async function listen(listener: AsyncIterable<Deno.Conn>): Promise<void> {
  for await (const connection of listener) answer(connection).catch(() => {});
}

const [port, tlsPort, certificate, key] = Deno.args;
const hostname = "127.0.0.1";
const listeners: AsyncIterable<Deno.Conn>[] = [Deno.listen({ hostname, port: Number(port) })];
if (tlsPort !== undefined && certificate !== undefined && key !== undefined) {
  const [cert, privateKey] = [await Deno.readTextFile(certificate), await Deno.readTextFile(key)];
  listeners.push(Deno.listenTls({ hostname, port: Number(tlsPort), cert, key: privateKey }));
}
print("ready");
await Promise.all(listeners.map(listen));
