import { Buffer } from "node:buffer";
import { createServer, type Socket } from "node:net";

/** A server on a free port of the loopback address. */
export interface TestServer extends AsyncDisposable {
  readonly port: number;
  readonly url: string;
}

/** Serves HTTP, or HTTPS with a certificate. */
export function serve(
  handler: Deno.ServeHandler<Deno.NetAddr>,
  tls: Deno.TlsCertifiedKeyPem | object = {},
): TestServer {
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {}, ...tls }, handler);
  const { port } = server.addr;
  return { port, url: `http://127.0.0.1:${port}/`, [Symbol.asyncDispose]: () => server.shutdown() };
}

/** Does what it likes with a connection, once a first piece of the request has come. */
export async function serveRaw(answer: (socket: Socket, first: Buffer) => void): Promise<TestServer> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
    socket.once("data", (first: Buffer) => answer(socket, first));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  return {
    port,
    url: `http://127.0.0.1:${port}/`,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A port that is open, and where nobody takes the connections: all places to wait are taken. */
export async function listenDeaf(): Promise<TestServer> {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0, tcpBacklog: 1 });
  const { port } = listener.addr;
  // The system lets one more wait than it was told to.
  const waiting = [await Deno.connect({ port }), await Deno.connect({ port })];
  return {
    port,
    url: `http://127.0.0.1:${port}/`,
    [Symbol.asyncDispose]() {
      for (const connection of waiting) connection.close();
      listener.close();
      return Promise.resolve();
    },
  };
}

/** Answers with this and nothing else. */
export function send(response: string | Uint8Array): (socket: Socket) => void {
  return (socket) => void socket.end(response);
}

/** A head that ends in a line end, with a body behind it. */
export function withBody(head: string, body: Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from(`${head}content-length: ${body.length}\r\n\r\n`), body]);
}
