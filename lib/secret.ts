import { Buffer } from "node:buffer";
import type { RequestSettings } from "./request.ts";
import type { Site } from "./site.ts";

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
/** Shorter secrets of the settings may be part of anything, and are hidden in their own places alone. */
const MIN_SECRET_LENGTH = 6;

/** Values of headers that are sent and may not be shown. */
function secretValues({ headers, secretHeaders, authorization }: RequestSettings): string[] {
  const values = Object.entries(headers).flatMap(([name, value]) =>
    isSecretHeader(name) || secretHeaders.includes(name) ? [value] : []
  );
  return authorization === null ? values : [...values, authorization];
}

/**
 * What nobody may see of a site's settings and of what was sent to it, as it is and as the site may quote it.
 *
 * @param sent Values of headers that were sent and may not be shown. Default: those of the settings.
 */
export function secretsOf({ request, client }: Site, sent: Iterable<string> = secretValues(request)): string[] {
  const { username = "", password = "" } = client.proxy?.basicAuth ?? {};
  const secrets = [
    ...[...sent].flatMap((value) => [value, withoutScheme(value), ...credentialsOf(value)]),
    ...[`${username}:${password}`, password],
    request.oauth?.clientSecret ?? "",
    request.body === null ? "" : new TextDecoder().decode(request.body),
  ].filter(({ length }) => length >= MIN_SECRET_LENGTH);
  const quoted = secrets.flatMap((secret) => [
    secret,
    JSON.stringify(secret).slice(1, -1),
    encodeURIComponent(secret.toWellFormed()),
    Buffer.from(secret).toString("base64"),
  ]);
  // The longest first: one may be a part of another.
  return [...new Set(quoted)].sort((a, b) => b.length - a.length);
}

/** User with password, and password, of basic authentication. */
function credentialsOf(value: string): string[] {
  if (!/^basic /i.test(value)) return [];
  const credentials = Buffer.from(withoutScheme(value), "base64").toString();
  return [credentials, credentials.slice(credentials.indexOf(":") + 1)];
}

function withoutScheme(value: string): string {
  return value.replace(/^\S+ +/, "");
}

/**
 * The same without the secrets, wherever they stand: a site may answer with what it was sent.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.deepEqual(hideAll({ got: ["a hunter22"] }, ["hunter22"]), { got: ["a ********"] });
 * ```
 */
export function hideAll<T>(value: T, secrets: readonly string[]): T {
  if (typeof value === "string") return secrets.reduce((text, secret) => text.replaceAll(secret, HIDDEN), value) as T;
  if (Array.isArray(value)) return value.map((one) => hideAll(one, secrets)) as T;
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, hideAll(one, secrets)])) as T;
}
