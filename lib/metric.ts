import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { isIPv4, isIPv6 } from "node:net";

/** How often the declaration of the metric has changed in a way that readers must know of; a header of each message. */
export const METRIC_VERSION = 1;

/** Verdicts, from best to worst. */
export const VERDICTS = ["up", "degraded", "down"] as const;

/** Reasons of a failed check. */
export const ERRORS = [
  "dns_not_found",
  "dns_other",
  "refused",
  "unreachable",
  "connect_timeout",
  "reset",
  "tls_expired",
  "tls_not_yet_valid",
  "tls_name",
  "tls_untrusted",
  "tls_other",
  "first_byte_timeout",
  "body_timeout",
  "timeout",
  "body_too_large",
  "redirect_loop",
  "redirect_denied",
  "protocol",
  "status",
  "regex",
  "regex_absent",
  "header",
  "json",
  "too_slow",
  "too_small",
  "too_big",
  "cert_validity",
  "tls_version",
  "changed",
] as const;

/** Parts of a check, in their order; `expectation` is the judgement at its end. */
export const PHASES = ["dns", "connect", "tls", "first_byte", "download", "expectation"] as const;

/** Reason of a failed check. */
export type CheckError = typeof ERRORS[number];

/** Part of a check. */
export type Phase = typeof PHASES[number];

/** Anything that JSON can say. */
export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json };

/** Types of columns: what they are in TypeScript; the names are PostgreSQL's. */
export interface ColumnTypes {
  /** Lower-case hexadecimal with dashes. */
  uuid: string;
  /** ISO 8601 with a zone. */
  timestamptz: string;
  /** Any characters but NUL. */
  text: string;
  /** IP address. */
  inet: string;
  /** Whole number of 32 bits. */
  integer: number;
  /** Whole number that JavaScript can hold exactly (53 bits). */
  bigint: number;
  /** Floating-point number. */
  "double precision": number;
  /** True or false. */
  boolean: boolean;
  /** Any JSON. */
  jsonb: Json;
}

/** One property of a metric, which is one column of a table. */
export interface Column {
  /** Type. */
  readonly type: keyof ColumnTypes;
  /** Whether it is never null. */
  readonly required?: true;
  /** Closed set of values, for `text`. */
  readonly values?: readonly string[];
  /** Unit, where it has one. */
  readonly unit?: "ms" | "bytes";
  /** Meaning, and when it is null. */
  readonly meaning: string;
}

/**
 * The one declaration of what a check says. The type {@linkcode Metric}, its validator, the JSON Schema, the table and
 * the statements that fill it are all made from it.
 */
export const COLUMNS = {
  id: {
    type: "uuid",
    required: true,
    meaning: "Identity of the check: however often it is sent or read, it is one row.",
  },
  occurred_at: { type: "timestamptz", required: true, meaning: "Start of the request." },
  scheduled_at: { type: "timestamptz", meaning: "When the check was due; null in messages of the Python program." },
  name: { type: "text", required: true, meaning: "Name of the site." },
  url: { type: "text", required: true, meaning: "Address, without user and password." },
  method: { type: "text", meaning: "Method of the request; null in messages of the Python program." },
  location: { type: "text", meaning: "Where the producer stands; null where that is not configured." },
  producer: { type: "text", meaning: "Which producer it was; null where that is not configured." },
  verdict: { type: "text", required: true, values: VERDICTS, meaning: "What the check comes to." },
  error: { type: "text", values: ERRORS, meaning: "Reason why the site is not up; null where it is." },
  failed_phase: { type: "text", values: PHASES, meaning: "Part that failed; null as with error." },
  error_message: { type: "text", meaning: "All that failed, in words; null as with error." },
  attempt: { type: "integer", required: true, meaning: "Number of the attempt, from 1." },
  final: { type: "boolean", required: true, meaning: "Whether it is the last attempt, the one that counts." },
  status_code: { type: "integer", meaning: "Status of the last response; null where none came." },
  response_time: {
    type: "double precision",
    unit: "ms",
    meaning:
      "From the start of the request to the end of the body, redirects included; null where no complete response came.",
  },
  elapsed_ms: {
    type: "double precision",
    unit: "ms",
    meaning: "From the start of the request to the verdict, of failures too; null in messages of the Python program.",
  },
  first_byte_ms: {
    type: "double precision",
    unit: "ms",
    meaning: "From the start of the request to the head of the last response; null where none came.",
  },
  download_ms: {
    type: "double precision",
    unit: "ms",
    meaning: "From the head of the last response to the end of its body; null where the end was not reached.",
  },
  regex: { type: "text", meaning: "Patterns that the body must match, one a line; null where none is configured." },
  has_regex: {
    type: "boolean",
    meaning: "Whether all of them matched; null without a pattern, without a body, and where no answer came in time.",
  },
  ip: {
    type: "inet",
    meaning: "Address of the server; null where the connection was not looked at beside this check.",
  },
  dns_ms: { type: "double precision", unit: "ms", meaning: "Time to look the host up; null as with ip." },
  connect_ms: { type: "double precision", unit: "ms", meaning: "Time to connect over TCP; null as with ip." },
  tls_ms: {
    type: "double precision",
    unit: "ms",
    meaning: "Time of the TLS handshake; null as with ip, and without TLS.",
  },
  tls_version: { type: "text", meaning: "Version of TLS; null as with tls_ms." },
  cert_subject: { type: "text", meaning: "Subject of the server's certificate; null as with tls_ms." },
  cert_issuer: { type: "text", meaning: "Issuer of the server's certificate; null as with tls_ms." },
  cert_expires_at: { type: "timestamptz", meaning: "End of the server's certificate; null as with tls_ms." },
  redirects: { type: "integer", meaning: "Redirects that were followed; null where no response came." },
  final_url: { type: "text", meaning: "Address after redirects; null where there was none." },
  body_bytes: {
    type: "bigint",
    unit: "bytes",
    meaning: "Length of the decoded body; null where none was read to its end.",
  },
  body_sha256: { type: "text", meaning: "SHA-256 of the decoded body in hexadecimal; null as with body_bytes." },
  failed: {
    type: "jsonb",
    meaning: "Each expectation that was not met, as {expectation, expected, actual}; null where all were met.",
  },
  tags: { type: "jsonb", meaning: "Tags of the site; null where none are configured." },
  excerpt: {
    type: "text",
    meaning: "Piece of the response of a check that failed: status, headers, body; null where it is not asked for.",
  },
} as const satisfies Record<string, Column>;

/** Names of a metric's properties, in the order of the columns. */
export const COLUMN_NAMES = Object.keys(COLUMNS) as readonly ColumnName[];

/** Name of a property. */
export type ColumnName = keyof typeof COLUMNS;

/** Type of a column's values, with null where it may be. */
export type ValueOf<C extends Column> =
  | (C extends { values: readonly (infer V)[] } ? V : ColumnTypes[C["type"]])
  | (C extends { required: true } ? never : null);

/** What a check says: every property is there, null where it has no value. */
export type Metric = { readonly [K in ColumnName]: ValueOf<typeof COLUMNS[K]> };

/** A message that is no metric, with the reason. It becomes a dead letter. */
export class MetricError extends Error {
  /** Tells this class apart. */
  override readonly name = "MetricError" as const;
}

/** A message as Kafka has it. */
export interface KafkaMessage {
  /** Topic. */
  readonly topic: string;
  /** Partition. */
  readonly partition: number;
  /** Offset, as decimal digits. */
  readonly offset: string;
  /** Record's timestamp, in ms since 1970. */
  readonly timestamp: number;
  /** Key, if any. */
  readonly key: Uint8Array | null;
  /** Value, if any. */
  readonly value: Uint8Array | null;
  /** Headers, in text. */
  readonly headers: Readonly<Record<string, string>>;
}

const MAX_TIME_MS = Date.UTC(9999, 11, 31, 23, 59, 59, 999);

/** The second that was written last: nearly all times that are written are of this one. */
let [lastSecond, lastSecondText] = [NaN, ""];

/** Time in ms since 1970 as ISO 8601 in UTC; one that lies outside of the years 1970 to 9999 becomes their nearer end. */
export function isoTime(ms: number): string {
  const time = Math.trunc(Math.min(Math.max(ms, 0), MAX_TIME_MS));
  const second = Math.floor(time / 1000);
  if (second !== lastSecond) {
    lastSecond = second;
    lastSecondText = new Date(second * 1000).toISOString().slice(0, -"000Z".length);
  }
  return `${lastSecondText}${String(time % 1000).padStart(3, "0")}Z`;
}

/** Metric as the value of a message. */
export function encodeMetric(metric: Metric): string {
  return JSON.stringify(metric);
}

const strictDecoder = new TextDecoder("utf-8", { fatal: true });

/**
 * Text of bytes in UTF-8; `Buffer` takes half the time, and puts U+FFFD where the strict one throws.
 *
 * @throws {TypeError} where they are no UTF-8.
 */
function decodeText(bytes: Uint8Array): string {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString();
  return text.includes("\ufffd") ? strictDecoder.decode(bytes) : text;
}

/**
 * Metric in a message: one of ours, or one of the Python program's.
 *
 * Properties that are not declared are passed over (a newer producer may have them), and those that are missing and may
 * be null are null.
 *
 * @throws {MetricError} where it is neither, with what was expected.
 */
export function decodeMetric(message: KafkaMessage): Metric {
  return parseMetric(metricText(message), message);
}

/**
 * Text of a message.
 *
 * @throws {MetricError} where there is none.
 */
export function metricText({ value }: KafkaMessage): string {
  if (value === null) throw new MetricError("expected a metric, got a message without a value");
  try {
    return decodeText(value);
  } catch (error) {
    throw new MetricError("expected text in UTF-8", { cause: error });
  }
}

/**
 * Metric in a message's text, as {@linkcode decodeMetric} has it.
 *
 * @throws {MetricError} where it is none.
 */
export function parseMetric(text: string, message: KafkaMessage): Metric {
  let value: unknown;
  try {
    value = JSON.parse(text);
    if (typeof value === "string") value = JSON.parse(value);
  } catch (error) {
    throw new MetricError("expected JSON", { cause: error });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new MetricError("expected a JSON object");
  }
  const properties = value as Record<string, unknown>;
  return validate("id" in properties || !("ocurred_at" in properties) ? properties : fromPython(properties, message));
}

/** JSON Schema of the message (2020-12). */
export function metricSchema(): Record<string, unknown> {
  return {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    title: `site_checker metric, version ${METRIC_VERSION}`,
    type: "object",
    required: COLUMN_NAMES.filter((name) => isRequired(COLUMNS[name])),
    properties: Object.fromEntries(
      Object.entries<Column>(COLUMNS).map(([name, column]) => [name, propertySchema(column)]),
    ),
  };
}

function propertySchema(column: Column): Record<string, unknown> {
  const description = column.unit === undefined ? column.meaning : `${column.meaning} Unit: ${column.unit}.`;
  if (column.type === "jsonb") return { description };
  const { type, ...format } = JSON_TYPES[column.type];
  return {
    type: column.required ? type : [type, "null"],
    ...format,
    ...(column.values && { enum: column.required ? column.values : [...column.values, null] }),
    description,
  };
}

const INT4_MAX = 2_147_483_647;

const JSON_TYPES: Record<Exclude<Column["type"], "jsonb">, { type: string; format?: string; [key: string]: unknown }> =
  {
    uuid: { type: "string", format: "uuid" },
    timestamptz: { type: "string", format: "date-time" },
    text: { type: "string" },
    inet: { type: "string" },
    integer: { type: "integer", minimum: -INT4_MAX - 1, maximum: INT4_MAX },
    bigint: { type: "integer", minimum: Number.MIN_SAFE_INTEGER, maximum: Number.MAX_SAFE_INTEGER },
    "double precision": { type: "number" },
    boolean: { type: "boolean" },
  };

const UUID_REGEXP = /^[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}$/i;
const TIMESTAMP_REGEXP = /^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)$/;
/** As our producer writes it, on a day that each month has: nearly all, at a tenth of the time that a full look takes. */
export const PLAIN_TIMESTAMP =
  "(?!0000)\\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\\d|2[0-8])T(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d\\.\\d{3}Z";
const PLAIN_TIMESTAMP_REGEXP = new RegExp(`^${PLAIN_TIMESTAMP}$`);
const PYTHON_TIMESTAMP_REGEXP = /^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?$/;
/** Date with a day that some months do not have. */
const LATE_DAY_REGEXP = /^\d{4}-\d\d-(29|3\d)/;
/** What PostgreSQL's jsonb does not take: NUL and half a surrogate pair, as `JSON.stringify` writes them. */
const NOT_JSONB_REGEXP = /(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/;

const EXPECTED: Record<Column["type"], { what: string; holds: (value: unknown) => boolean }> = {
  uuid: { what: "a UUID", holds: (value) => typeof value === "string" && UUID_REGEXP.test(value) },
  timestamptz: {
    what: "a time in ISO 8601 with a zone",
    holds: (value) =>
      typeof value === "string" &&
      (PLAIN_TIMESTAMP_REGEXP.test(value) || TIMESTAMP_REGEXP.test(value) && isTime(value)),
  },
  text: { what: "a text without NUL", holds: (value) => typeof value === "string" && !value.includes("\0") },
  inet: { what: "an IP address", holds: (value) => typeof value === "string" && isAddress(value) },
  integer: {
    what: "a whole number of 32 bits",
    holds: (value) => Number.isInteger(value) && value as number >= -INT4_MAX - 1 && value as number <= INT4_MAX,
  },
  bigint: { what: "a whole number", holds: Number.isSafeInteger },
  "double precision": { what: "a number", holds: Number.isFinite },
  boolean: { what: "true or false", holds: (value) => typeof value === "boolean" },
  jsonb: {
    what: "JSON without NUL and lone surrogates",
    holds: (value) => !NOT_JSONB_REGEXP.test(JSON.stringify(value)),
  },
};

/** Whether there is such a time: `Date.parse` takes the 30th of February for the 1st of March, PostgreSQL does not. */
function isTime(timestamp: string): boolean {
  if (Number.isNaN(Date.parse(timestamp)) || timestamp.startsWith("0000")) return false;
  const [date, day] = LATE_DAY_REGEXP.exec(timestamp) ?? [];
  return date === undefined || new Date(date).getUTCDate() === Number(day);
}

/** Whether PostgreSQL's inet takes it; it knows no zones, as in `fe80::1%eth0`. */
function isAddress(text: string): boolean {
  return isIPv4(text) || isIPv6(text) && !text.includes("%");
}

function isRequired(column: Column): boolean {
  return column.required === true;
}

const CHECKS = Object.entries<Column>(COLUMNS).map(([name, column]) => {
  const values: ReadonlySet<unknown> | undefined = column.values && new Set(column.values);
  const { what, holds } = EXPECTED[column.type];
  return {
    name,
    required: isRequired(column),
    what: column.values === undefined ? what : `one of ${column.values.join(", ")}`,
    holds: values === undefined ? holds : (value: unknown) => values.has(value),
  };
});

function validate(properties: Record<string, unknown>): Metric {
  const metric = declaredProperties(properties);
  const values = Object.values(metric);
  for (let i = 0; i < CHECKS.length; i++) {
    const { name, required, what, holds } = CHECKS[i]!;
    const value = values[i];
    if (value === null ? required : !holds(value)) {
      const got = value === null ? "nothing" : JSON.stringify(value).slice(0, 80);
      throw new MetricError(`expected ${what} as ${name}, got ${got}`);
    }
  }
  return metric as Metric;
}

/** The properties that are declared and no others, in the order of the columns, null for those that are missing. */
function declaredProperties(properties: Record<string, unknown>): Record<string, unknown> {
  // Nearly all messages have just these: a copy of them, made one by one, would cost more than to parse them did.
  if (isDeclared(properties)) return properties;
  return Object.fromEntries(COLUMN_NAMES.map((name) => [name, properties[name] ?? null]));
}

/** Whether an object has the declared properties and no others, in the order of the columns. */
function isDeclared(properties: object): boolean {
  const names = Object.keys(properties);
  return names.length === COLUMN_NAMES.length && names.every((name, i) => name === COLUMN_NAMES[i]);
}

/** Values of a metric in the order of the columns. */
export function metricValues(metric: Metric): unknown[] {
  // All at once: one by one, by name, takes four times as long.
  return isDeclared(metric) ? Object.values(metric) : COLUMN_NAMES.map((name) => metric[name]);
}

/**
 * Reads a message of the Python program: times in UTC without a zone, an empty pattern for none, status 0 for no
 * response, and no identity, for which place and content in Kafka stand.
 */
function fromPython(old: Record<string, unknown>, message: KafkaMessage): Record<string, unknown> {
  const status = old["status_code"] === 0 ? null : old["status_code"];
  const passed = typeof status === "number" && status >= 200 && status < 400;
  const regex = old["regex"] === "" ? null : old["regex"];
  return {
    id: messageId(message),
    occurred_at: pythonTime(old["ocurred_at"], message),
    name: old["name"],
    url: old["url"],
    verdict: passed ? "up" : "down",
    error: passed || status === null ? null : "status",
    failed_phase: passed || status === null ? null : "expectation",
    attempt: 1,
    final: true,
    status_code: status,
    response_time: status === null ? null : old["response_time"],
    regex,
    has_regex: regex === null || regex === undefined || status === null ? null : old["has_regex"],
  };
}

function pythonTime(value: unknown, { timestamp }: KafkaMessage): unknown {
  if (value === "" || value === null) return isoTime(timestamp);
  return typeof value === "string" && PYTHON_TIMESTAMP_REGEXP.test(value) ? value.replace(" ", "T") + "Z" : value;
}

/**
 * UUID version 7 (RFC 9562) of a time in ms since 1970: the time, then the random bits of the runtime's own version 4.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.match(metricId(Date.UTC(2026, 0, 2)), /^019b7c01-0400-7[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}$/);
 * ```
 */
export function metricId(ms: number): string {
  const time = ms.toString(16).padStart(12, "0");
  return `${time.slice(0, 8)}-${time.slice(8)}-7${crypto.randomUUID().slice("xxxxxxxx-xxxx-4".length)}`;
}

/** UUID version 8 (RFC 9562) of a message's place and content; the offset alone would not do once a topic is made again. */
function messageId({ topic, partition, offset, timestamp, value }: KafkaMessage): string {
  const hash = createHash("sha256").update(`${topic}\0${partition}\0${offset}\0${timestamp}\0`).update(value ?? "")
    .digest();
  hash[6] = (hash[6]! & 0x0f) | 0x80;
  hash[8] = (hash[8]! & 0x3f) | 0x80;
  const hex = hash.toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)].join("-");
}
