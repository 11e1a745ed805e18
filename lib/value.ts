/**
 * Parsers of a setting's text. Each returns the value or throws a `SyntaxError` (unreadable) or `RangeError` (out of
 * range) whose message says what is allowed: "expected a duration such as 10s".
 *
 * @module
 */

import jsonata from "jsonata";
import { type Pattern, readPattern } from "./pattern.ts";

/** Turns a setting's text into its value, or throws an error that says what is allowed. */
export interface ParseValue<T> {
  (text: string): T;
  /** What it takes, with unit and range, for the docs: "duration, 100ms to 20d". */
  readonly kind: string;
  /** Text of a value as `--check-config` shows it. Default: as it was given. */
  format?(value: T): string;
}

const UNIT_MS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;
const DURATION_REGEXP = /^(?<amount>-?(?:\d+\.?\d*|\.\d+))\s*(?<unit>ms|s|m|h|d)?$/;
const BYTES_REGEXP = /^(?<amount>\d+\.?\d*)\s*(?:(?<unit>[kmgt])(?:i?b)?|b)?$/i;
const BYTE_UNITS = ["K", "M", "G", "T"];
const HOST_REGEXP = /^(?:[\p{L}\p{N}_.-]+|[\da-fA-F]*:[\da-fA-F]*:[\da-fA-F:.]*(?:%\w+)?)$/u;
/** A host with a port or an address in brackets; anything else is a host alone. */
const HOST_PORT_REGEXP = /^(?:\[(?<bracketed>[^\]]+)\]|(?<bare>[^:]+)(?=:))(?::(?<port>\d{1,5}))?$/;
const SERVER_REGEXP = /^(?<host>[\p{L}\p{N}_.-]+)(?::(?<port>\d{1,5}))?$/u;
/** Name as RFC 9110 has it, section 5.6.2, and what stands behind a colon. */
const HEADER_REGEXP = /^([\w!#$%&'*+.^`|~-]+)\s*(?:(:)\s*(.*))?$/s;
const HOST_HEADER_REGEXP = /^(?:[\w.-]+|\[[\da-f:.]+\])(?::\d+)?$/i;
const STATUS_RANGE_REGEXP = /^(\d{3})(?:\s*-\s*(\d{3}))?$/;
const SHA256_REGEXP = /^[\da-f]{64}$/;
/** RFC 9110, 5.6.2 "token" and 5.5 "field-value", to which obs-text belongs as far as it is Latin-1. */
const HEADER_NAME_REGEXP = /^[!#$%&'*+.^_`|~\w-]+$/;
const HEADER_VALUE_REGEXP = /^[\t\x20-\x7e\x80-\xff]*$/;
/** RFC 6750, 2.1 "b64token". */
const TOKEN_REGEXP = /^[\w.~+/-]+=*$/;
/** RFC 6749, 3.3 "scope-token". */
const SCOPE_REGEXP = /^[\x21\x23-\x5b\x5d-\x7e]+$/;
const LOOPBACK_REGEXP = /^(?:localhost|127(?:\.\d+){3}|\[?::1\]?)$/i;
const PROXY_PROTOCOLS = ["http:", "https:", "socks5:"];
/** As Python's configparser has them. */
const YES = ["yes", "true", "on", "1"];
const NO = ["no", "false", "off", "0"];
const HTTP_REGEXP = /^https?:\/\/[^/\\]/i;
const DEFAULT_KAFKA_PORT = 9092;

/** Bounds of {@linkcode duration}, in milliseconds. */
export interface DurationBounds {
  /** Least value. */
  readonly minMs: number;
  /** Greatest value. */
  readonly maxMs: number;
}

/**
 * Parser of a duration: a number with a unit (`ms`, `s`, `m`, `h`, `d`), or seconds without. Value: whole milliseconds.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const parse = duration({ minMs: 1, maxMs: 3_600_000 });
 * assert.deepEqual(["10", "10s", "1.5m"].map(parse), [10_000, 10_000, 90_000]);
 * ```
 */
export function duration({ minMs, maxMs }: DurationBounds): ParseValue<number> {
  return parser(`duration, ${formatDuration(minMs)} to ${formatDuration(maxMs)}`, (text) => {
    const match = DURATION_REGEXP.exec(text.trim())?.groups;
    if (match === undefined) throw new SyntaxError("expected a duration such as 10s");
    const ms = Math.round(Number(match["amount"]) * UNIT_MS[(match["unit"] ?? "s") as keyof typeof UNIT_MS]);
    if (ms < minMs || ms > maxMs) {
      throw new RangeError(`expected a duration from ${formatDuration(minMs)} to ${formatDuration(maxMs)}`);
    }
    return ms;
  }, formatDuration);
}

/** Duration as a setting takes it, in the largest unit that leaves no fraction: `1m`, `1500ms`. */
export function formatDuration(ms: number): string {
  for (const unit of ["d", "h", "m", "s"] as const) {
    if (ms >= UNIT_MS[unit] && ms % UNIT_MS[unit] === 0) return `${ms / UNIT_MS[unit]}${unit}`;
  }
  return `${ms}ms`;
}

/**
 * Parser of a number of bytes, with a unit (`K`, `M`, `G`, `T`, by 1,024, a `B` or `iB` behind it or not) or without.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.deepEqual(["4096", "64M", "1.5 GiB"].map(byteSize(1)), [4_096, 67_108_864, 1_610_612_736]);
 * ```
 */
export function byteSize(min: number, max: number = Number.MAX_SAFE_INTEGER): ParseValue<number> {
  const limits = max === Number.MAX_SAFE_INTEGER
    ? `at least ${formatBytes(min)}`
    : `${formatBytes(min)} to ${formatBytes(max)}`;
  return parser(`bytes, ${limits}`, (text) => {
    const match = BYTES_REGEXP.exec(text.trim())?.groups;
    if (match === undefined) throw new SyntaxError("expected a number of bytes such as 512M or 1G");
    const power = match["unit"] === undefined ? 0 : BYTE_UNITS.indexOf(match["unit"].toUpperCase()) + 1;
    const bytes = Math.round(Number(match["amount"]) * 1024 ** power);
    if (bytes > Number.MAX_SAFE_INTEGER) throw new RangeError("expected a number of bytes below 8192T");
    if (bytes < min || bytes > max) throw new RangeError(`expected ${limits}`);
    return bytes;
  }, formatBytes);
}

/** Number of bytes as a setting takes it, in the largest unit that leaves no fraction: `64M`, `1G`. */
export function formatBytes(bytes: number): string {
  for (let power = BYTE_UNITS.length; power > 0; power--) {
    if (bytes > 0 && bytes % 1024 ** power === 0) return `${bytes / 1024 ** power}${BYTE_UNITS[power - 1]}`;
  }
  return String(bytes);
}

/** Parser of how long to keep: a duration, or `forever`. Value: milliseconds, -1 for ever. */
export function retention(bounds: DurationBounds): ParseValue<number> {
  const parse = duration(bounds);
  return parser(`${parse.kind}, or forever`, (text) => {
    if (text.trim().toLowerCase() === "forever") return -1;
    try {
      return parse(text);
    } catch (error) {
      throw error instanceof SyntaxError ? new SyntaxError("expected a duration such as 7d, or forever") : error;
    }
  }, (ms) => ms === -1 ? "forever" : formatDuration(ms));
}

/** Parser of the time between things that need not happen: a duration, or `never`. Value: milliseconds, Infinity for never. */
export function interval(bounds: DurationBounds): ParseValue<number> {
  const parse = duration(bounds);
  return parser(`${parse.kind}, or never`, (text) => {
    if (text.trim().toLowerCase() === "never") return Infinity;
    try {
      return parse(text);
    } catch (error) {
      throw error instanceof SyntaxError ? new SyntaxError("expected a duration such as 10m, or never") : error;
    }
  }, (ms) => ms === Infinity ? "never" : formatDuration(ms));
}

/** Parser of a whole number from `min` to `max`. */
export function integer(min: number, max: number): ParseValue<number> {
  return parser(`whole number, ${min} to ${max}`, (text) => {
    const value = Number(text);
    if (!/^[+-]?\d+$/.test(text.trim())) throw new SyntaxError(`expected a whole number from ${min} to ${max}`);
    if (value < min || value > max) throw new RangeError(`expected a whole number from ${min} to ${max}`);
    return value;
  }, String);
}

/** Parser of one of a closed set of words, in upper or lower case. */
export function choice<const T extends string>(words: readonly T[]): ParseValue<T> {
  return parser(words.join(", "), (text) => {
    const word = words.find((word) => word.toLowerCase() === text.trim().toLowerCase());
    if (word === undefined) throw new RangeError(`expected one of ${words.join(", ")}`);
    return word;
  }, String);
}

/** Parser of yes or no, also `true`, `on`, `1` and `false`, `off`, `0`. */
export function yesNo(): ParseValue<boolean> {
  return parser("yes, no", (text) => {
    const word = text.trim().toLowerCase();
    if (!YES.includes(word) && !NO.includes(word)) throw new SyntaxError("expected yes or no");
    return YES.includes(word);
  }, (yes) => yes ? "yes" : "no");
}

/** Parser of any text. */
export function anyText(): ParseValue<string> {
  return parser("text", (value) => value);
}

/** Parser of text that must not be empty. */
export function text(): ParseValue<string> {
  return parser("text", (value) => {
    if (value === "") throw new SyntaxError("expected a text that is not empty");
    if (value.includes("\0")) throw new SyntaxError("expected a text without NUL characters");
    return value;
  });
}

/**
 * Parser of an address to check. Value: the URL; user and password stay in it.
 *
 * Ports that the Fetch standard blocks are refused here, since no check of them could ever be made.
 *
 * @see https://fetch.spec.whatwg.org/#port-blocking
 */
export function httpUrl(): ParseValue<URL> {
  return parser("http(s) URL", (value) => {
    if (!URL.canParse(value)) throw new SyntaxError("expected a URL such as https://example.com/");
    // The URL parser leaves line ends out, and takes a comment behind the URL for a part of it.
    if (/\s/.test(value)) throw new SyntaxError("expected a URL without white space, such as https://example.com/");
    if (!HTTP_REGEXP.test(value)) throw new RangeError("expected a URL that begins with http:// or https://");
    const url = new URL(value);
    if (url.port === "0" || isBlockedPort(Number(url.port))) {
      throw new RangeError(`expected a port other than ${url.port}, which fetch refuses (see "port blocking")`);
    }
    return url;
  });
}

/** Parser of `key = value` or `key: value`, with that delimiter; the key must not be empty. */
export function pair(delimiter: "=" | ":"): ParseValue<readonly [key: string, value: string]> {
  const kind = delimiter === "=" ? "key = value" : "name: value";
  return parser(kind, (value) => {
    const index = value.indexOf(delimiter);
    const key = value.slice(0, Math.max(0, index)).trim();
    if (key === "") throw new SyntaxError(`expected ${kind}`);
    return [key, value.slice(index + 1).trim()];
  });
}

/** Parser of a header, `name: value`; the name in lower case. */
export function header(): ParseValue<readonly [name: string, value: string]> {
  return parser("name: value", (value) => {
    const [name, content] = pair(":")(value);
    if (!HEADER_NAME_REGEXP.test(name)) throw new SyntaxError("expected name: value, with a name as HTTP has them");
    return [name.toLowerCase(), headerValue()(content)];
  });
}

/** Parser of what a header may say: characters of Latin-1, none for control. */
export function headerValue(): ParseValue<string> {
  return parser("text", (value) => {
    if (!HEADER_VALUE_REGEXP.test(value)) {
      throw new SyntaxError("expected one line of Latin-1 characters, as HTTP takes for a header");
    }
    return value;
  });
}

/** Parser of what the header `host` may say: a host, with a port if need be, in ASCII as all headers are. */
export function hostHeader(): ParseValue<string> {
  return parser("host[:port]", (value) => {
    if (!HOST_HEADER_REGEXP.test(value) || !URL.canParse(`http://${value}/`)) {
      throw new SyntaxError("expected a host, with :port if need be");
    }
    return value;
  });
}

/** Parser of a token as bearer authentication has it. */
export function token(): ParseValue<string> {
  return parser("token", (value) => {
    if (!TOKEN_REGEXP.test(value)) {
      throw new SyntaxError("expected letters, digits and -._~+/ with = at the end at most");
    }
    return value;
  });
}

/** Parser of scopes of OAuth 2.0, separated by white space. Value: with one space between them. */
export function scopes(): ParseValue<string> {
  return parser("scopes by spaces", (value) => {
    const scopes = value.trim().split(/\s+/);
    if (!scopes.every((scope) => SCOPE_REGEXP.test(scope))) {
      throw new SyntaxError("expected scopes separated by spaces, without quotes, \\ and letters beyond ASCII");
    }
    return scopes.join(" ");
  });
}

/** Parser of a proxy's address; user and password stay in it. */
export function proxyUrl(): ParseValue<URL> {
  const expected = "expected http://, https:// or socks5:// with a host and a port alone, such as http://proxy:3128";
  return parser("URL", (value) => {
    const url = URL.canParse(value) ? new URL(value) : undefined;
    if (
      url === undefined || !PROXY_PROTOCOLS.includes(url.protocol) || url.hostname === "" || url.port === "0"
    ) {
      throw new SyntaxError(expected);
    }
    if (!["", "/"].includes(url.pathname) || url.search !== "" || url.hash !== "") throw new SyntaxError(expected);
    return url;
  });
}

/** Parser of a regular expression that is not empty, see `compilePattern()`. */
export function pattern(): ParseValue<Pattern> {
  return parser("regular expression", (value) => {
    if (value === "") throw new SyntaxError("expected a regular expression that is not empty");
    return readPattern(value);
  });
}

/** A header, and what its value is searched for; null: it need only be there. */
export interface HeaderPattern {
  /** Name, in lower case. */
  readonly name: string;
  /** Pattern. */
  readonly pattern: Pattern | null;
}

/** Parser of the name of a header, with a pattern for its value behind a colon if need be: `content-type: ^text/html`. */
export function headerPattern(): ParseValue<HeaderPattern> {
  return parser("name, or name: pattern", (value) => {
    const [, name, colon, text = ""] = HEADER_REGEXP.exec(value) ?? [];
    if (name === undefined) throw new SyntaxError("expected the name of a header, or name: pattern");
    if (colon !== undefined && text === "") throw new SyntaxError("expected a regular expression behind the colon");
    return { name: name.toLowerCase(), pattern: colon === undefined ? null : readPattern(text) };
  });
}

/** Statuses from one to another, both included. */
export interface StatusRange {
  /** First one. */
  readonly from: number;
  /** Last one. */
  readonly to: number;
}

/**
 * Parser of statuses: single ones and ranges, separated by commas.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.deepEqual(statusRanges()("200-299,401"), [{ from: 200, to: 299 }, { from: 401, to: 401 }]);
 * ```
 */
export function statusRanges(): ParseValue<readonly StatusRange[]> {
  return parser("statuses from 100 to 999, such as 200-299,401", (value) =>
    value.split(",").map((part) => {
      const [, first, last = first] = STATUS_RANGE_REGEXP.exec(part.trim()) ?? [];
      if (first === undefined) throw new SyntaxError("expected statuses such as 200-299,401");
      const range = { from: Number(first), to: Number(last) };
      if (range.from < 100) throw new RangeError("expected statuses from 100 to 999");
      if (range.from > range.to) throw new RangeError("expected ranges from a lower to a higher status");
      return range;
    }), formatStatusRanges);
}

/** Statuses as a setting takes them: `200-299,401`. */
export function formatStatusRanges(ranges: readonly StatusRange[]): string {
  return ranges.map(({ from, to }) => from === to ? from : `${from}-${to}`).join(",");
}

/** Whether a status is among some. */
export function includesStatus(ranges: readonly StatusRange[], status: number): boolean {
  return ranges.some(({ from, to }) => status >= from && status <= to);
}

/** Parser of a JSONata expression. Value: its text. */
export function expression(): ParseValue<string> {
  return parser("JSONata expression", (value) => {
    try {
      jsonata(value);
    } catch (error) {
      // What it throws is no Error.
      const { message } = error as { message?: string };
      throw new SyntaxError(`expected a JSONata expression (${message})`, { cause: error });
    }
    return value;
  });
}

/** Parser of what a body may not change from: `yes` for the one before, or a SHA-256 in hex; `no` for nothing. */
export function unchangedBody(): ParseValue<string | null> {
  return parser("yes, no or a SHA-256 in hex", (value) => {
    const word = value.trim().toLowerCase();
    if (word === "yes") return "before";
    if (word === "no") return null;
    if (!SHA256_REGEXP.test(word)) throw new SyntaxError("expected yes, no or a SHA-256 of 64 hexadecimal digits");
    return word;
  });
}

/** Host with the port that stands behind it, if any. */
export interface HostPort {
  /** Name or IP address. */
  readonly host: string;
  /** Port. */
  readonly port: number | undefined;
}

/**
 * Parser of servers: names or IP addresses, several separated by commas, each with a port if need be; an IPv6 address
 * with a port stands in brackets.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.deepEqual(hosts()("db-1,[::1]:5433"), [{ host: "db-1", port: undefined }, { host: "::1", port: 5433 }]);
 * ```
 */
export function hosts(): ParseValue<HostPort[]> {
  return parser("host[:port], several by commas", (value) => {
    const expected = "expected a host name or an IP address, with :port if need be, several separated by commas";
    return value.split(",").map((part) => {
      const { bracketed, bare, port } = HOST_PORT_REGEXP.exec(part.trim())?.groups ?? {};
      const host = bracketed ?? bare ?? part.trim();
      if (!HOST_REGEXP.test(host)) throw new SyntaxError(expected);
      if (port !== undefined && (Number(port) < 1 || Number(port) > 65_535)) throw new SyntaxError(expected);
      return { host, port: port === undefined ? undefined : Number(port) };
    });
  });
}

/**
 * Parser of broker addresses: `host:port`, several separated by commas; the port defaults to 9092. An IPv6 address has
 * to be given as a name: kafkajs takes what stands before the first colon for the host.
 */
export function servers(): ParseValue<string[]> {
  return parser(
    "host:port, several by commas",
    (value) =>
      value.split(",").map((part) => part.trim()).filter((part) => part !== "").map((server) => {
        const match = SERVER_REGEXP.exec(server)?.groups;
        const port = Number(match?.["port"] ?? DEFAULT_KAFKA_PORT);
        if (match === undefined || port < 1 || port > 65_535) {
          throw new SyntaxError("expected host:port with a name or IPv4 address, several separated by commas");
        }
        return `${match["host"]}:${port}`;
      }),
  );
}

/** Whether a host, of a URL or by itself, is this machine. */
export function isLoopback(host: string): boolean {
  return LOOPBACK_REGEXP.test(host);
}

/** Parser from its parts. */
export function parser<T>(kind: string, parse: (text: string) => T, format?: (value: T) => string): ParseValue<T> {
  return Object.assign(parse, { kind, ...(format && { format }) });
}

/** Whether fetch refuses to connect to the port: the list of the Fetch standard. */
export function isBlockedPort(port: number): boolean {
  return BLOCKED_PORTS.has(port);
}

// deno-fmt-ignore
const BLOCKED_PORTS: ReadonlySet<number> = new Set([
  1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110,
  111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532,
  540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061,
  6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
]);
