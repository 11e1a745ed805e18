/**
 * Below the ports that systems give to outgoing connections (from 32768 on): there, a client that tries again and again
 * to reach a server that is away could meet itself, and keep the port from the server.
 */
const PORTS = { from: 10_000, to: 32_767 } as const;

/**
 * Ports of the loopback address that nobody listens on, all different.
 *
 * They are free when this returns; whoever is quick can still take one.
 */
export function freePorts(count: number): number[] {
  const listeners: Deno.TcpListener[] = [];
  try {
    while (listeners.length < count) {
      const port = PORTS.from + Math.floor(Math.random() * (PORTS.to - PORTS.from + 1));
      try {
        listeners.push(Deno.listen({ hostname: "127.0.0.1", port }));
      } catch (error) {
        if (!(error instanceof Deno.errors.AddrInUse)) throw error;
      }
    }
    return listeners.map(({ addr }) => addr.port);
  } finally {
    for (const listener of listeners) listener.close();
  }
}
