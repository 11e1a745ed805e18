import { setTimeout as delay } from "node:timers/promises";
import { print } from "../lib/log.ts";

/**
 * A web site that does nothing beside answering, as a process of its own: `site.ts PORT`. `/MS` answers so many
 * milliseconds after the request came; `/figures` says how much later than that it did.
 *
 * Raw TCP: a server of HTTP has thoughts of its own on when to send.
 *
 * @module
 */

const HEAD = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/";
const PAGE = "It works. ".repeat(100);
const encoder = new TextEncoder();
const decoder = new TextDecoder();
/** Timers are early by up to this; what is left is waited for by looking at the clock. */
const TIMER_MS = 1;

/** How late answers were, in ms. */
let lateness: number[] = [];

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
    await open.write(page("json", JSON.stringify(lateness)));
    lateness = [];
    return;
  }
  const dueAt = cameAt + Number(path.slice(1));
  if (dueAt - cameAt > 0) {
    await delay(dueAt - cameAt - TIMER_MS);
    while (performance.now() < dueAt);
    lateness.push(performance.now() - dueAt);
  }
  await open.write(pageBytes);
}

const listener = Deno.listen({ hostname: "127.0.0.1", port: Number(Deno.args[0]) });
print("ready");
for await (const connection of listener) answer(connection).catch(() => {});
