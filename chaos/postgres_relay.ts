import { Buffer } from "node:buffer";
import type { POSTGRES_CUTS } from "./plan.ts";
import { Relay, type Watcher } from "./relay.ts";

/** Moment at which one connection is cut. */
export type Moment = Exclude<typeof POSTGRES_CUTS[number], "now">;

/** Options of {@linkcode PostgresRelay.start}. */
export interface PostgresRelayOptions {
  /** Port of the loopback address to listen on. */
  readonly port: number;
  /** Port of the server. */
  readonly target: number;
}

interface Armed {
  readonly moment: Moment;
  readonly resolve: (happened: boolean) => void;
}

/** Type and length of a message (PostgreSQL's protocol 3). */
const HEADER_BYTES = 5;
const BEGIN_REGEXP = /^\s*(?:BEGIN|START TRANSACTION)\b/i;
const ROLLBACK_REGEXP = /^\s*ROLLBACK\s*;?\s*$/i;
const COMMIT_REGEXP = /\b(?:COMMIT|END)(?:\s+(?:WORK|TRANSACTION))?\s*;?\s*$/i;

/**
 * A relay before PostgreSQL that knows enough of the protocol to cut a connection at the worst moments of a transaction.
 * Connections without TLS alone are understood.
 *
 * @see https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
export class PostgresRelay implements AsyncDisposable {
  #armed: Armed | undefined;
  #relay: Relay | undefined;

  private constructor() {}

  /** Starts it. */
  static async start({ port, target }: PostgresRelayOptions): Promise<PostgresRelay> {
    const relay = new PostgresRelay();
    relay.#relay = await Relay.start({ port, target, watch: (cut) => relay.#watch(cut) });
    return relay;
  }

  /** Cuts all connections. @returns How many there were. */
  cut(): number {
    return this.#relay?.cut() ?? 0;
  }

  /** Keeps all connections, but nothing goes by. @returns What lets it go by again. */
  hang(): () => void {
    return this.#relay!.hang();
  }

  /**
   * Cuts the connection on which a moment comes next: `in-transaction` at the first message behind BEGIN,
   * `before-commit` with the COMMIT kept from the server, `after-commit` with the server's answer to it kept from the
   * client.
   *
   * @returns Whether the moment came in time.
   */
  async cutAt(moment: Moment, timeoutMs: number): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const armed: Armed = { moment, resolve };
    this.#armed?.resolve(false);
    this.#armed = armed;
    const timer = setTimeout(() => resolve(false), timeoutMs);
    const happened = await promise;
    clearTimeout(timer);
    if (this.#armed === armed) this.#armed = undefined;
    return happened;
  }

  /** Cuts all connections and takes no more. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#relay?.[Symbol.asyncDispose]();
  }

  #watch(cut: () => void): Watcher {
    let inTransaction = false;
    let awaited: Armed | undefined;
    const fire = (armed: Armed) => {
      this.#armed = undefined;
      armed.resolve(true);
      cut();
    };
    const messages = new MessageReader();
    return {
      client: (bytes) => {
        for (const query of messages.read(bytes)) {
          const armed = this.#armed;
          const commits = query !== null && COMMIT_REGEXP.test(query);
          if (armed?.moment === "before-commit" && commits || armed?.moment === "in-transaction" && inTransaction) {
            fire(armed);
            return "drop";
          }
          if (armed?.moment === "after-commit" && commits) {
            this.#armed = undefined;
            awaited = armed;
          }
          if (query !== null && BEGIN_REGEXP.test(query)) inTransaction = true;
          if (commits || query !== null && ROLLBACK_REGEXP.test(query)) inTransaction = false;
        }
        return "forward";
      },
      server: () => {
        if (awaited === undefined) return "forward";
        fire(awaited);
        return "drop";
      },
    };
  }
}

/** Finds messages in the bytes of a client. */
class MessageReader {
  #pending: Buffer = Buffer.alloc(0);
  #skip = 0;
  #started = false;

  /** For each message that ends (or, where its text does not matter, begins): the SQL of it, or null. */
  *read(bytes: Buffer): Generator<string | null> {
    if (this.#skip >= bytes.length) {
      this.#skip -= bytes.length;
      return;
    }
    let rest = Buffer.concat([this.#pending, bytes.subarray(this.#skip)]);
    this.#skip = 0;
    for (;;) {
      // The first message, which names user and database, has no type.
      const typeBytes = this.#started ? 1 : 0;
      if (rest.length < HEADER_BYTES) break;
      const length = rest.readInt32BE(typeBytes) + typeBytes;
      const type = this.#started ? String.fromCharCode(rest[0]!) : "";
      if (type === "Q" || type === "P") {
        if (rest.length < length) break;
        const body = rest.subarray(HEADER_BYTES, length).toString("utf8");
        // A Parse begins with the statement's name.
        yield type === "Q" ? body.replace(/\0$/, "") : body.split("\0")[1] ?? "";
      } else if (this.#started) yield null;
      this.#started = true;
      if (rest.length < length) {
        this.#skip = length - rest.length;
        rest = Buffer.alloc(0);
        break;
      }
      rest = rest.subarray(length);
    }
    this.#pending = rest;
  }
}
