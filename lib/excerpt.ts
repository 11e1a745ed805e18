import { decodeText, type EncodedText } from "./evaluation.ts";

/** What there is of a response to take a piece from. */
export interface ExcerptSource {
  /** Status. */
  readonly status: number;
  /** Headers. */
  readonly headers: Headers;
  /** Body, if it was read. */
  readonly body: EncodedText | null;
}

/** Headers whose values let others in: cookies, and whatever is named after a key. */
const SECRET_HEADER_REGEXP = /cookie|auth|token|secret|session|password|key/i;
/** What stands for a secret. */
export const HIDDEN = "********";
/** User and password of a URL, wherever it stands in a text. */
const USER_INFO_REGEXP = /(\/\/)[^\s/?#@]*@/g;

/** Whether a header's value may let others in, as its name says. */
export function isSecretHeader(name: string): boolean {
  return SECRET_HEADER_REGEXP.test(name);
}

/**
 * Value of a header as it may be shown: nothing of one that may be secret, and no user and password of a URL in it.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.equal(shownHeader("x-api-key", "k"), "********");
 * assert.equal(shownHeader("location", "https://me:pw@example.com/"), "https://********@example.com/");
 * ```
 */
export function shownHeader(name: string, value: string): string {
  return isSecretHeader(name) ? HIDDEN : hideUserInfo(value);
}

/** The text without users and passwords of URLs. */
export function hideUserInfo(text: string): string {
  return text.replaceAll(USER_INFO_REGEXP, `$1${HIDDEN}@`);
}

/**
 * Piece of a response: status, headers and the beginning of the body, with an empty line between them. Values of headers
 * that may be secret are hidden, and NUL, which PostgreSQL's text does not take, becomes `\uFFFD`.
 *
 * @param maxBytes Length at most, in bytes of UTF-8.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const headers = new Headers({ "set-cookie": "id=1" });
 * assert.equal(excerptOf({ status: 500, headers, body: null }, 1_024), "500\nset-cookie: ********\n");
 * ```
 */
export function excerptOf({ status, headers, body }: ExcerptSource, maxBytes: number): string {
  const lines = [...headers].map(([name, value]) => `${name}: ${shownHeader(name, value)}\n`);
  const head = `${status}\n${lines.join("")}`;
  const text = body === null ? head : `${head}\n${decodeText(body)}`;
  const bytes = new Uint8Array(maxBytes);
  // It never writes a part of a character.
  const { written } = new TextEncoder().encodeInto(text.replaceAll("\0", "\ufffd"), bytes);
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.subarray(0, written));
}
