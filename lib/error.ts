/** The operator's mistake: bad configuration, a missing file, wrong credentials. Programs exit 2 with its message alone. */
export class ConfigError extends Error {
  /** Tells this class apart where `instanceof` can't. */
  override readonly name = "ConfigError" as const;
}

/**
 * A check that could not be made since what it needs beside the site, a proxy or a token, is not to be had: that says
 * nothing of the site. Those of a kind are told together, by their messages alone.
 */
export class FaultError extends Error {
  /** Tells this class apart where `instanceof` can't. */
  override readonly name = "FaultError" as const;

  /** Of a kind. */
  constructor(readonly kind: "proxy" | "token", message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/**
 * Message of anything that was thrown, with the messages of its causes behind it, on one line.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const error = new Error("Cannot read file", { cause: new Error("not found") });
 * assert.equal(errorMessage(error), "Cannot read file: not found");
 * ```
 */
export function errorMessage(error: unknown): string {
  const messages: string[] = [];
  for (let e = error, depth = 0; e !== undefined && e !== null && depth < 8; depth++) {
    const own = e instanceof AggregateError && e.message === ""
      ? e.errors.map(errorMessage).join("; ")
      : e instanceof Error
      ? e.message || e.name
      : String(e);
    if (!messages.some((message) => message.includes(own))) messages.push(own);
    e = e instanceof Error ? e.cause : undefined;
  }
  return messages.join(": ").replace(/\s+/g, " ").trim();
}

/** Code of a failed system call, TLS handshake or SQL statement (`ECONNREFUSED`, `CERT_HAS_EXPIRED`, `23505`), looked for in the causes too. */
export function errorCode(error: unknown): string | undefined {
  for (let e = error, depth = 0; e instanceof Error && depth < 8; e = e.cause, depth++) {
    if ("code" in e && typeof e.code === "string") return e.code;
    if (e instanceof AggregateError) {
      const code = e.errors.map(errorCode).find((code) => code !== undefined);
      if (code !== undefined) return code;
    }
  }
  return undefined;
}
