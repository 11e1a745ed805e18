import type { KafkaSettings } from "./config.ts";
import { ConfigError, errorCode, errorMessage } from "./error.ts";

const UNTRUSTED_REGEXP = /CERT|UNABLE_TO_|ERR_TLS_|ERR_SSL_/;

/** The operator's fault where it is one: certificates that are not trusted. Else the error itself. */
export function asConfigError(error: unknown, { bootstrapServers, tls }: KafkaSettings): unknown {
  if (tls === null || !UNTRUSTED_REGEXP.test(errorCode(error) ?? "")) return error;
  return new ConfigError(`Cannot connect to Kafka at ${bootstrapServers.join(",")} over TLS: ${errorMessage(error)}`, {
    cause: error,
  });
}
