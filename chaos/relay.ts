import type { Buffer } from "node:buffer";
import { connect, createServer, type Server, type Socket } from "node:net";

/** What becomes of bytes on their way. */
export type Passage = "forward" | "drop";

/** Looks at what goes by on one connection. */
export interface Watcher {
  /** Bytes of the client. */
  client(bytes: Buffer): Passage;
  /** Bytes of the server. */
  server(bytes: Buffer): Passage;
}

/** Options of {@linkcode Relay.start}. */
export interface RelayOptions {
  /** Port of the loopback address to listen on. */
  readonly port: number;
  /** Port of the loopback address to pass connections on to. */
  readonly target: number;
  /** Makes a watcher for a new connection; `cut` ends it. Default: nobody looks. */
  readonly watch?: (cut: () => void) => Watcher;
}

/** Passes connections on to a server, and cuts them when told to. A server that is away is a connection that ends. */
export class Relay implements AsyncDisposable {
  readonly #server: Server;
  readonly #cuts = new Set<() => void>();
  readonly #sockets = new Set<Socket>();
  #hanging = false;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** Starts it. */
  static async start({ port, target, watch }: RelayOptions): Promise<Relay> {
    const server = createServer();
    const relay = new Relay(server);
    server.on("connection", (client) => relay.#pass(client, connect({ host: "127.0.0.1", port: target }), watch));
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(port, "127.0.0.1", () => resolve());
    });
    return relay;
  }

  /** Cuts all connections. @returns How many there were. */
  cut(): number {
    const count = this.#cuts.size;
    for (const cut of [...this.#cuts]) cut();
    return count;
  }

  /** Keeps all connections, and takes new ones, but nothing goes by. @returns What lets it go by again. */
  hang(): () => void {
    this.#hanging = true;
    for (const socket of this.#sockets) socket.pause();
    return () => {
      this.#hanging = false;
      for (const socket of this.#sockets) socket.resume();
    };
  }

  /** Cuts all connections and takes no more. */
  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.cut();
    await closed;
  }

  #pass(client: Socket, server: Socket, watch: RelayOptions["watch"]): void {
    const cut = () => {
      this.#cuts.delete(cut);
      for (const socket of [client, server]) this.#sockets.delete(socket);
      client.destroy();
      server.destroy();
    };
    this.#cuts.add(cut);
    const watcher = watch?.(cut);
    for (const [from, to, side] of [[client, server, "client"], [server, client, "server"]] as const) {
      from.on("error", cut);
      from.on("close", cut);
      from.on("data", (bytes: Buffer) => {
        if (to.destroyed || watcher?.[side](bytes) === "drop") return;
        if (to.write(bytes)) return;
        from.pause();
        to.once("drain", () => {
          if (!this.#hanging) from.resume();
        });
      });
      from.on("end", () => to.end());
      this.#sockets.add(from);
      if (this.#hanging) from.pause();
    }
  }
}
