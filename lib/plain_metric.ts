import { type Column, type ColumnName, COLUMNS, type ColumnTypes, type Metric, PLAIN_TIMESTAMP } from "./metric.ts";

/**
 * Metrics as nearly all messages have them: as our producer writes them, with nothing that JSON has to escape. One pattern,
 * made from the declaration, looks at all of their properties and takes their values out, at a third of the time that
 * parsing, looking at each and writing them out again take. What it does not match is for the parser of
 * {@linkcode decodeMetric}, be it a metric or not.
 *
 * @module
 */

/** What the summaries take from a check. */
export type Brief = Pick<
  Metric,
  | "id"
  | "occurred_at"
  | "name"
  | "url"
  | "location"
  | "verdict"
  | "error"
  | "error_message"
  | "final"
  | "status_code"
  | "response_time"
  | "cert_subject"
  | "cert_issuer"
  | "cert_expires_at"
>;

/** A metric as text. */
export interface PlainMetric {
  /** What the summaries take from it. */
  readonly brief: Brief;
  /** Its values in the order of the columns, as COPY's text format has them, a tab before each. */
  readonly fields: string;
}

const BYTE = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
/** Neither a quote nor what JSON and COPY write as an escape; so both have the same text. */
const TEXT = '[^"\\\\\\x00-\\x1f]*';

/** Values of each type that both JSON and COPY write in this very way; the group is COPY's text. */
const VALUES: Record<keyof ColumnTypes, string> = {
  uuid: '"([\\da-f]{8}(?:-[\\da-f]{4}){3}-[\\da-f]{12})"',
  timestamptz: `"(${PLAIN_TIMESTAMP})"`,
  text: `"(${TEXT})"`,
  inet: `"(${BYTE}(?:\\.${BYTE}){3})"`,
  integer: "(0|[1-9]\\d{0,8})",
  bigint: "(0|[1-9]\\d{0,14})",
  "double precision": "((?:0|[1-9]\\d{0,14})(?:\\.\\d{1,20})?)",
  boolean: "(true|false)",
  jsonb: `(\\{(?:"${TEXT}":"${TEXT}"(?:,"${TEXT}":"${TEXT}")*)?\\})`,
};

const COLUMN_ENTRIES = Object.entries<Column>(COLUMNS);

const PLAIN_METRIC_REGEXP = new RegExp(
  `^\\{${
    COLUMN_ENTRIES.map(([name, { type, values, required }]) => {
      const value = values === undefined ? VALUES[type] : `"(${values.join("|")})"`;
      return `"${name}":${required ? value : `(?:null|${value})`}`;
    }).join(",")
  }\\}$`,
);

/** Number of a column's group. */
const GROUPS = Object.fromEntries(COLUMN_ENTRIES.map(([name], index) => [name, index + 1])) as Record<
  ColumnName,
  number
>;

/**
 * Reads a message's text, if it is as most are; null says nothing of what it is else.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.equal(readPlainMetric('{"id":"no metric"}'), null);
 * ```
 */
export function readPlainMetric(text: string): PlainMetric | null {
  const match = PLAIN_METRIC_REGEXP.exec(text);
  if (match === null) return null;
  const value = (name: ColumnName): string | undefined => match[GROUPS[name]];
  const statusCode = value("status_code");
  const responseTime = value("response_time");
  const brief: Brief = {
    id: value("id")!,
    occurred_at: value("occurred_at")!,
    name: value("name")!,
    url: value("url")!,
    location: value("location") ?? null,
    verdict: value("verdict") as Metric["verdict"],
    error: (value("error") ?? null) as Metric["error"],
    error_message: value("error_message") ?? null,
    final: value("final") === "true",
    status_code: statusCode === undefined ? null : Number(statusCode),
    response_time: responseTime === undefined ? null : Number(responseTime),
    cert_subject: value("cert_subject") ?? null,
    cert_issuer: value("cert_issuer") ?? null,
    cert_expires_at: value("cert_expires_at") ?? null,
  };
  const parts: (string | undefined)[] = match;
  parts[0] = "";
  for (let i = 1; i < parts.length; i++) if (parts[i] === undefined) parts[i] = "\\N";
  return { brief, fields: parts.join("\t") };
}
