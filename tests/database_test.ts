import assert from "node:assert/strict";
import { createServer } from "node:net";
import { Database } from "../lib/database.ts";
import type { Log } from "../lib/log.ts";

const log: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/** Message of PostgreSQL's protocol: type, length, content. */
function message(type: string, content: string): Uint8Array {
  const bytes = new TextEncoder().encode(`${type}\0\0\0\0${content}`);
  new DataView(bytes.buffer).setUint32(1, bytes.length - 1);
  return bytes;
}

// Found by `deno task chaos --seed 2611`: the consumer ended by an uncaught error when PostgreSQL was killed.
Deno.test("Database rejects where a server says in one packet that it is ready and that it dies", async () => {
  const server = createServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", () => {
      socket.end(
        new Uint8Array([
          ...message("R", "\0\0\0\0"),
          ...message("Z", "I"),
          ...message("E", "SFATAL\0VFATAL\0C57P02\0Mterminating connection due to unexpected postmaster exit\0\0"),
        ]),
      );
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  try {
    await using database = new Database({
      servers: [{ host: "127.0.0.1", port }],
      user: "postgres",
      password: null,
      database: "postgres",
      sslmode: "disable",
      ca: null,
      minConnection: 0,
      maxConnection: 1,
    }, { log });
    await assert.rejects(database.query("SELECT 1"), /connection/i);
  } finally {
    await new Promise((resolve) => server.close(resolve));
  }
});
