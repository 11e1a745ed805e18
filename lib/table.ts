import { createHash } from "node:crypto";
import type { Brief } from "./plain_metric.ts";
import {
  type Column,
  COLUMN_NAMES,
  type ColumnName,
  COLUMNS,
  isoTime,
  type KafkaMessage,
  type Metric,
  metricValues,
} from "./metric.ts";

/**
 * All SQL text, as pure functions.
 *
 * @module
 */

/** Schema of all tables. */
export const SCHEMA = "site_checker";

/** Parent of all tables of topics. */
export const PARENT = "all_checks";

/** Table of messages that can't be rows. */
export const DEAD_LETTERS = "dead_letters";

/** Table of the last check of each name and location. */
export const LATEST = "latest";

/** Table of sums by name, location and day. */
export const DAILY = "daily";

/** Table that says of which version the others are. */
export const VERSIONS = "schema~version";

/** Names that no topic's table gets, since they are ours now or will be. */
export const RESERVED_NAMES: readonly string[] = [
  PARENT,
  DEAD_LETTERS,
  LATEST,
  DAILY,
  "status",
  "uptime",
  "incidents",
  "latency",
  "certificates",
];

/** A message that is a row of its topic's table. */
export interface Row {
  /** Where it came from. */
  readonly message: KafkaMessage;
  /** What it says. */
  readonly metric: Metric;
  /** What the summaries take from it. */
  readonly brief: Brief;
  /** What it says as a line of COPY, without its topic, where that is known. */
  readonly fields?: string;
  /** Gives memory free, at the price of reading the message once more if need be. */
  forget?(): void;
}

/** A message that is no row. */
export interface DeadLetter {
  /** The message, kept as it came. */
  readonly message: KafkaMessage;
  /** Why it is no row. */
  readonly reason: string;
}

/** Longest name of a table, index or constraint in bytes (PostgreSQL's NAMEDATALEN − 1). */
const MAX_NAME_BYTES = 63;
const HASH_DIGITS = 12;

const ROW_COLUMNS: readonly { name: string; type: string }[] = [
  { name: "topic", type: "text" },
  ...Object.entries<Column>(COLUMNS).map(([name, { type }]) => ({ name, type })),
];

/** Whether a column is JSON, in the order of the columns. */
const IS_JSON: readonly boolean[] = COLUMN_NAMES.map((name) => COLUMNS[name].type === "jsonb");

/**
 * Identifier for use in SQL.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.equal(quoteIdentifier('a."b'), '"a.""b"');
 * ```
 */
export function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** Text for use in SQL where no parameter can stand (DDL, messages). */
export function quoteLiteral(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}

/**
 * Name of a topic's table: the topic, with `~` and a hash behind it where it is too long or one of our own names. Kafka
 * allows no `~` in topics, so that two topics never share a table.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.equal(tableName("a.b-c_D"), "a.b-c_D");
 * assert.match(tableName("latest"), /^latest~[0-9a-f]{12}$/);
 * ```
 */
export function tableName(topic: string): string {
  return byteLength(topic) <= MAX_NAME_BYTES && !RESERVED_NAMES.includes(topic) ? topic : shorten(topic);
}

/** Name of a table with its schema, quoted. */
export function qualifiedName(table: string): string {
  return `${SCHEMA}.${quoteIdentifier(table)}`;
}

/** Name of a table's constraint. */
export function constraintName(table: string, suffix: string): string {
  return derivedName(table, suffix);
}

/** Name of what belongs to a table, such as an index; `~` keeps it apart from topics' tables, whose namespace it shares. */
function derivedName(table: string, suffix: string): string {
  const name = `${table}~${suffix}`;
  return byteLength(name) <= MAX_NAME_BYTES ? name : shorten(table, `~${suffix}`);
}

function shorten(name: string, suffix = ""): string {
  const hash = createHash("sha256").update(name).digest("hex").slice(0, HASH_DIGITS);
  return `${name.slice(0, MAX_NAME_BYTES - HASH_DIGITS - 1 - suffix.length)}~${hash}${suffix}`;
}

function byteLength(text: string): number {
  return new TextEncoder().encode(text).length;
}

/** What there is of a schema: its table names with kind (`relkind`), parent and bound. Parameter: names to look for. */
export const FIND_TABLES_SQL = `\
SELECT relation.relname AS name, relation.relkind AS kind, parent.relname AS parent,
  pg_get_expr(relation.relpartbound, relation.oid) AS bound,
  pg_has_role(relation.relowner, 'USAGE') AS owned, relation.relowner::regrole::text AS owner
FROM pg_class AS relation
JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
LEFT JOIN pg_inherits ON pg_inherits.inhrelid = relation.oid
LEFT JOIN pg_class AS parent ON parent.oid = pg_inherits.inhparent
WHERE namespace.nspname = '${SCHEMA}' AND relation.relname = ANY ($1::text[])`;

/** Whether the schema is there: one row, or none. */
export const FIND_SCHEMA_SQL = `SELECT FROM pg_namespace WHERE nspname = '${SCHEMA}'`;

/** Keeps others from making tables until the end of the transaction. The number is site_checker's own. */
export const LOCK_SCHEMA_SQL = "SELECT pg_advisory_xact_lock(7483921064)";

/** Makes the schema. */
export const CREATE_SCHEMA_SQL = `CREATE SCHEMA IF NOT EXISTS ${SCHEMA}`;

/** Makes the parent of all tables of topics. */
export function createParentSql(): string {
  const columns = Object.entries<Column>(COLUMNS).map(([name, { type, required }]) =>
    `  ${quoteIdentifier(name)} ${type}${required ? " NOT NULL" : ""}`
  );
  return `CREATE TABLE IF NOT EXISTS ${qualifiedName(PARENT)} (
  "topic" text NOT NULL,
${columns.join(",\n")},
  CONSTRAINT ${quoteIdentifier(derivedName(PARENT, "pkey"))} PRIMARY KEY ("occurred_at", "id", "topic")
) PARTITION BY LIST ("topic")`;
}

/** Makes the table of dead letters. */
export function createDeadLettersSql(): string {
  return `CREATE TABLE IF NOT EXISTS ${qualifiedName(DEAD_LETTERS)} (
  "topic" text NOT NULL,
  "partition" integer NOT NULL,
  "offset" bigint NOT NULL,
  "record_timestamp" timestamptz NOT NULL,
  "key" bytea,
  "value" bytea,
  "headers" jsonb,
  "reason" text NOT NULL,
  "received_at" timestamptz NOT NULL DEFAULT now(),
  "replayed_at" timestamptz,
  CONSTRAINT ${quoteIdentifier(derivedName(DEAD_LETTERS, "pkey"))}
    PRIMARY KEY ("topic", "partition", "offset", "record_timestamp")
)`;
}

/**
 * Makes a topic's table. It is made alone and attached then, which lets others read and write the parent meanwhile.
 *
 * @see https://www.postgresql.org/docs/current/ddl-partitioning.html#DDL-PARTITIONING-DECLARATIVE-MAINTENANCE
 */
export function createPartitionSql(topic: string): string {
  const table = tableName(topic);
  return `CREATE TABLE ${qualifiedName(table)} (
  LIKE ${qualifiedName(PARENT)} INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
  CONSTRAINT ${quoteIdentifier(derivedName(table, "pkey"))} PRIMARY KEY ("occurred_at", "id", "topic")
);
ALTER TABLE ${qualifiedName(PARENT)} ATTACH PARTITION ${qualifiedName(table)} FOR VALUES IN (${quoteLiteral(topic)})`;
}

/** Bound of a topic's table, as `pg_get_expr` prints it. */
export function partitionBound(topic: string): string {
  return `FOR VALUES IN (${quoteLiteral(topic)})`;
}

/** Takes rows in COPY's text format, see {@linkcode copyLine}. */
export const COPY_ROWS_SQL = `COPY ${qualifiedName(PARENT)} (${
  ROW_COLUMNS.map(({ name }) => quoteIdentifier(name)).join(", ")
}) FROM STDIN`;

/**
 * Takes rows as one array a column, see {@linkcode rowArrays}, passes over those that are there, and returns the
 * identities of the others, see `rowIdentity()`.
 */
export const INSERT_ROWS_SQL = `INSERT INTO ${qualifiedName(PARENT)} (${
  ROW_COLUMNS.map(({ name }) => quoteIdentifier(name)).join(", ")
})
SELECT * FROM unnest(${ROW_COLUMNS.map(({ type }, index) => `$${index + 1}::${type}[]`).join(", ")})
ON CONFLICT DO NOTHING
RETURNING topic || '/' || (extract(epoch FROM occurred_at) * 1000000)::bigint || '/' || id AS identity`;

/**
 * Numbers, from 0, of the rows of a batch that are there. Parameters: see {@linkcode keyArrays}. Each row is looked up by
 * its key in its topic's table; the topics are named once more, so that the plan has their tables alone, and takes locks on
 * no others.
 */
export const FIND_ROWS_SQL = `SELECT batch.number::integer - 1 AS index
FROM unnest($1::text[], $2::timestamptz[], $3::uuid[]) WITH ORDINALITY AS batch (topic, occurred_at, id, number),
LATERAL (
  SELECT FROM ${qualifiedName(PARENT)} AS checks
  WHERE checks.topic = batch.topic AND checks.occurred_at = batch.occurred_at AND checks.id = batch.id
    AND checks.topic = ANY ($4::text[])
  OFFSET 0
) AS there`;

/** Takes dead letters as one array a column, see {@linkcode deadLetterArrays}, and passes over those that are there. */
export const INSERT_DEAD_LETTERS_SQL = `INSERT INTO ${
  qualifiedName(DEAD_LETTERS)
} ("topic", "partition", "offset", "record_timestamp", "key", "value", "headers", "reason")
SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::timestamptz[], $5::bytea[], $6::bytea[], $7::jsonb[], $8::text[])
ON CONFLICT DO NOTHING`;

/**
 * Row as a line of COPY's text format, line feed included.
 *
 * @see https://www.postgresql.org/docs/current/sql-copy.html
 */
export function copyLine(row: Omit<Row, "brief">): string {
  return `${escapeCopy(row.message.topic)}${row.fields ?? copyFields(row.metric)}\n`;
}

function copyFields(metric: Metric): string {
  // Joined: a text that grows piece by piece takes more than twice the time.
  const fields = metricValues(metric).map((value, index) => {
    if (value === null) return "\\N";
    if (typeof value === "object" || IS_JSON[index]) return escapeCopy(JSON.stringify(value));
    return typeof value === "string" ? escapeCopy(value) : String(value);
  });
  return `\t${fields.join("\t")}`;
}

const COPY_ESCAPES: Readonly<Record<string, string>> = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function escapeCopy(text: string): string {
  return /[\\\n\r\t]/.test(text) ? text.replace(/[\\\n\r\t]/g, (character) => COPY_ESCAPES[character]!) : text;
}

/** Parameters of {@linkcode INSERT_ROWS_SQL}. */
export function rowArrays(rows: readonly Omit<Row, "brief">[]): unknown[][] {
  return [
    rows.map(({ message }) => message.topic),
    ...COLUMN_NAMES.map((name, index) =>
      rows.map(({ metric }) => {
        const value = metric[name];
        return value !== null && IS_JSON[index] ? JSON.stringify(value) : value;
      })
    ),
  ];
}

/** Parameters of {@linkcode FIND_ROWS_SQL}. */
export function keyArrays(rows: readonly Row[]): unknown[][] {
  return [
    rows.map(({ message }) => message.topic),
    rows.map(({ brief }) => brief.occurred_at),
    rows.map(({ brief }) => brief.id),
    [...new Set(rows.map(({ message }) => message.topic))],
  ];
}

/** Parameters of {@linkcode INSERT_DEAD_LETTERS_SQL}. */
export function deadLetterArrays(letters: readonly DeadLetter[]): unknown[][] {
  const bytes = (value: Uint8Array | null) => value === null ? null : `\\x${value.toHex()}`;
  const text = (value: string) => value.replaceAll("\0", "\ufffd");
  const headers = ({ headers }: KafkaMessage) =>
    JSON.stringify(Object.fromEntries(Object.entries(headers).map((header) => header.map(text))));
  return [
    letters.map(({ message }) => message.topic),
    letters.map(({ message }) => message.partition),
    letters.map(({ message }) => message.offset),
    letters.map(({ message }) => isoTime(message.timestamp)),
    letters.map(({ message }) => bytes(message.key)),
    letters.map(({ message }) => bytes(message.value)),
    letters.map(({ message }) => headers(message)),
    letters.map(({ reason }) => text(reason)),
  ];
}

/** Gives a role the table that is another's: only the owner of the parent can attach to it. */
export function changeOwnerSql(table: string, role: string): string {
  return `ALTER TABLE ${qualifiedName(table)} OWNER TO ${quoteIdentifier(role)}`;
}

/** Makes room for a topic's table where a foreign one has its name. */
export function renameSql(topic: string): string {
  return `ALTER TABLE ${qualifiedName(tableName(topic))} RENAME TO ${quoteIdentifier(renamedTable(topic))}`;
}

/** Name that is never a topic's, as `topic_old` might be, and that is not too long. */
function renamedTable(topic: string): string {
  return derivedName(tableName(topic), "old");
}

/**
 * Copies the rows of a renamed table of the Python program into the topic's new one, but for those whose messages were
 * read from Kafka again. Running it twice changes nothing.
 */
export function adoptSql(topic: string): string {
  const passed = "status_code BETWEEN 200 AND 399";
  const failed = "status_code NOT BETWEEN 200 AND 399 AND status_code <> 0";
  return `INSERT INTO ${
    qualifiedName(PARENT)
  } (topic, id, occurred_at, name, url, verdict, error, failed_phase, attempt, ` +
    `final, status_code, response_time, regex, has_regex) SELECT ${quoteLiteral(topic)}, ` +
    `md5(${quoteLiteral(topic + "/")} || id)::uuid, ocurred_at AT TIME ZONE 'UTC', ${quoteLiteral(topic)}, url, ` +
    `CASE WHEN ${passed} THEN 'up' ELSE 'down' END, CASE WHEN ${failed} THEN 'status' END, ` +
    `CASE WHEN ${failed} THEN 'expectation' END, 1, true, nullif(status_code, 0), ` +
    `CASE WHEN status_code <> 0 THEN response_time END, ` +
    `nullif(regex, ''), CASE WHEN regex <> '' AND status_code <> 0 THEN has_regex END FROM ${
      qualifiedName(renamedTable(topic))
    } ` +
    `WHERE NOT EXISTS ( SELECT FROM ${qualifiedName(tableName(topic))} AS new ` +
    `WHERE new.occurred_at = ocurred_at AT TIME ZONE 'UTC' ) ON CONFLICT DO NOTHING`;
}

/** Version of the tables that this program makes and fills. */
export const SCHEMA_VERSION = 2;

/**
 * Makes the table of versions: the newest row is in force. `needs` is the least version of a program that may write;
 * those in between work, and leave columns that they do not know null.
 */
export function createVersionsSql(): string {
  return `CREATE TABLE ${qualifiedName(VERSIONS)} (
  "version" integer NOT NULL,
  "needs" integer NOT NULL,
  "since" timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT ${quoteIdentifier(derivedName(VERSIONS, "pkey"))} PRIMARY KEY ("version")
)`;
}

/** Version in force: one row, or none. */
export const FIND_VERSION_SQL = `SELECT version, needs FROM ${qualifiedName(VERSIONS)} ORDER BY version DESC LIMIT 1`;

/** Puts a version in force. Parameters: version, least version of a program that may write. */
export const SET_VERSION_SQL = `INSERT INTO ${
  qualifiedName(VERSIONS)
} (version, needs) VALUES ($1, $2) ON CONFLICT DO NOTHING`;

/** Columns of the parent. */
export const FIND_COLUMNS_SQL = `SELECT attname AS name FROM pg_attribute
WHERE attrelid = '${SCHEMA}.${PARENT}'::regclass AND attnum > 0 AND NOT attisdropped`;

/** Adds columns of the declaration to the parent, and so to all partitions; rows that are there have null in them. */
export function addColumnsSql(names: readonly ColumnName[]): string {
  const added = names.map((name) => `ADD COLUMN IF NOT EXISTS ${quoteIdentifier(name)} ${COLUMNS[name].type}`);
  return `ALTER TABLE ${qualifiedName(PARENT)} ${added.join(", ")}`;
}

/** Whether any topic has a table: one row, or none. */
export const FIND_PARTITION_SQL = `SELECT FROM pg_inherits WHERE inhparent = '${SCHEMA}.${PARENT}'::regclass LIMIT 1`;

/** What the server has room for: its version, locks and connections, and the number of topics' tables. */
export const FIND_LIMITS_SQL = `SELECT current_setting('max_locks_per_transaction')::integer AS locks,
  current_setting('max_connections')::integer + current_setting('max_prepared_transactions')::integer AS transactions,
  (SELECT count(*)::integer FROM pg_inherits JOIN pg_class AS parent ON parent.oid = inhparent
    JOIN pg_namespace AS namespace ON namespace.oid = parent.relnamespace
    WHERE parent.relname = '${PARENT}' AND namespace.nspname = '${SCHEMA}') AS partitions`;

/** Condition that picks dead letters which were not put back. Parameters: topic and part of the reason, or null. */
const PICK_DEAD_LETTERS_SQL = `replayed_at IS NULL AND ($1::text IS NULL OR topic = $1)
  AND ($2::text IS NULL OR strpos(lower(reason), lower($2)) > 0)`;

/** Counts dead letters by reason, most frequent first. Parameters: topic and part of the reason, or null. */
export const COUNT_DEAD_LETTERS_SQL = `SELECT reason, count(*)::integer AS count FROM ${qualifiedName(DEAD_LETTERS)}
WHERE ${PICK_DEAD_LETTERS_SQL} GROUP BY reason ORDER BY count DESC, reason`;

/**
 * Some dead letters, in the order of their key. Parameters: topic and part of the reason, or null; the key behind which
 * to begin; how many at most.
 */
export const LIST_DEAD_LETTERS_SQL = `SELECT topic, "partition", "offset"::text,
  (extract(epoch FROM record_timestamp) * 1000)::float8 AS timestamp, key, value, headers, reason, received_at
FROM ${qualifiedName(DEAD_LETTERS)}
WHERE ${PICK_DEAD_LETTERS_SQL}
  AND (topic, "partition", "offset", record_timestamp) > ($3, $4::integer, $5::bigint, $6::timestamptz)
ORDER BY topic, "partition", "offset", record_timestamp LIMIT $7`;

/**
 * Notes what came of dead letters that were tried again. Parameters: arrays of the key's parts, and of the new
 * reason, null where it is a row now.
 */
export const MARK_DEAD_LETTERS_SQL = `UPDATE ${qualifiedName(DEAD_LETTERS)} AS letter
SET reason = coalesce(tried.reason, letter.reason), replayed_at = CASE WHEN tried.reason IS NULL THEN now() END
FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::timestamptz[], $5::text[])
  AS tried (topic, "partition", "offset", record_timestamp, reason)
WHERE letter.topic = tried.topic AND letter."partition" = tried."partition" AND letter."offset" = tried."offset"
  AND letter.record_timestamp = tried.record_timestamp`;

/** Parameters of {@linkcode MARK_DEAD_LETTERS_SQL}: messages that are rows now, and those that are not. */
export function markArrays(
  stored: readonly { readonly message: KafkaMessage }[],
  failed: readonly DeadLetter[],
): unknown[][] {
  const tried = [...stored.map(({ message }) => ({ message, reason: null })), ...failed];
  return [
    tried.map(({ message }) => message.topic),
    tried.map(({ message }) => message.partition),
    tried.map(({ message }) => message.offset),
    tried.map(({ message }) => isoTime(message.timestamp)),
    tried.map(({ reason }) => reason?.replaceAll("\0", "\ufffd") ?? null),
  ];
}
