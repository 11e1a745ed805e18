import { decodeText, type EncodedText } from "./evaluation.ts";
import { hideAll, shownHeader } from "./secret.ts";

/** What there is of a response to take a piece from. */
export interface ExcerptSource {
  /** Status. */
  readonly status: number;
  /** Headers. */
  readonly headers: Headers;
  /** Body, if it was read. */
  readonly body: EncodedText | null;
}

/** Options of {@linkcode excerptOf}. */
export interface ExcerptOptions {
  /** Length at most, in bytes of UTF-8. */
  readonly maxBytes: number;
  /** What is hidden, wherever it stands. Default: nothing. */
  readonly secrets?: readonly string[];
}

/**
 * Piece of a response: status, headers and the beginning of the body, with an empty line between them. Values of headers
 * that may be secret are hidden, and NUL, which PostgreSQL's text does not take, becomes `\uFFFD`.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const headers = new Headers({ "set-cookie": "id=1" });
 * assert.equal(excerptOf({ status: 500, headers, body: null }, { maxBytes: 1_024 }), "500\nset-cookie: ********\n");
 * ```
 */
export function excerptOf(
  { status, headers, body }: ExcerptSource,
  { maxBytes, secrets = [] }: ExcerptOptions,
): string {
  const lines = [...headers].map(([name, value]) => `${name}: ${shownHeader(name, value)}\n`);
  const head = `${status}\n${lines.join("")}`;
  const text = hideAll(body === null ? head : `${head}\n${decodeText(body)}`, secrets);
  const bytes = new Uint8Array(maxBytes);
  // It never writes a part of a character.
  const { written } = new TextEncoder().encodeInto(text.replaceAll("\0", "\ufffd"), bytes);
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.subarray(0, written));
}
