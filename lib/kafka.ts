import process from "node:process";
import { Kafka, logLevel } from "kafkajs";
import type { KafkaSettings } from "./config.ts";
import type { Log } from "./log.ts";

/** Options of all clients. */
export interface ClientOptions {
  /** Where to tell what goes on. */
  readonly log: Log;
}

/** How often and how long a client tries again. */
export interface ClientRetry {
  /** Tries after the first. */
  readonly retries: number;
  /** Longest wait between two, in ms. */
  readonly maxRetryTime: number;
}

/**
 * kafkajs, for those who read, which is quiet: what matters is said by those who use it. Those who publish have a client
 * of their own, see `lib/brokers.ts`.
 *
 * @internal
 */
export class KafkaClient extends Kafka {
  /** Connects when it is used. */
  constructor(
    { bootstrapServers, tls }: KafkaSettings,
    log: Log,
    retry: ClientRetry = { retries: 3, maxRetryTime: 2_000 },
  ) {
    silenceTimeoutWarning();
    super({
      clientId: "site_checker",
      brokers: [...bootstrapServers],
      ...(tls && {
        ssl: { ...(tls.ca && { ca: [tls.ca] }), ...(tls.cert && { cert: tls.cert }), ...(tls.key && { key: tls.key }) },
      }),
      connectionTimeout: 3_000,
      retry: { initialRetryTime: 200, ...retry },
      logLevel: logLevel.INFO,
      // What matters is said by those who call; the client reports each rebalance as an error.
      logCreator: () => ({ namespace, log: { message, error, ...properties } }) => {
        log.debug("{namespace}: {message} {error}", { namespace, message, error: error ?? "" });
        if (!message.startsWith("Offset out of range, resetting")) return;
        const { topic, partition } = properties;
        log.warn(
          "What is committed of '{topic}', partition {partition}, is not there: the topic was made again, or its messages " +
            "have expired; reading from its start",
          { topic, partition },
        );
      },
    });
  }
}

let silenced = false;

/** kafkajs 2.2.4 sets a timer with a negative time, of which the runtime warns on standard error; only that is kept back. */
export function silenceTimeoutWarning(): void {
  if (silenced) return;
  silenced = true;
  const emitWarning = process.emitWarning.bind(process) as (...args: unknown[]) => void;
  process.emitWarning = ((warning: unknown, ...rest: unknown[]) => {
    const [type] = rest;
    const name = warning instanceof Error
      ? warning.name
      : typeof type === "object" && type !== null && "type" in type
      ? type.type
      : type;
    if (name !== "TimeoutNegativeWarning") emitWarning(warning, ...rest);
  }) as typeof process.emitWarning;
}

/** A broker's answer (kafkajs gives it a `type`, KafkaJSProtocolError is not exported) among the causes, if one answered. */
export function protocolError(error: unknown): Error & { type: string } | undefined {
  for (let e = error, depth = 0; e instanceof Error && depth < 8; e = e.cause, depth++) {
    if ("type" in e && typeof e.type === "string") return e as Error & { type: string };
    // A topic of which the brokers say nothing.
    if (/MetadataNotLoaded$/.test(e.name)) return Object.assign(e, { type: "METADATA_NOT_LOADED" });
  }
  return undefined;
}
