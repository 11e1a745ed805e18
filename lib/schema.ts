import type { QueryResult } from "./database.ts";
import { ConfigError, errorCode } from "./error.ts";
import type { Log } from "./log.ts";
import { COLUMN_NAMES } from "./metric.ts";
import {
  CLEAR_DAILY_SQL,
  CLEAR_LATEST_SQL,
  CREATE_DAILY_SQL,
  CREATE_LATEST_SQL,
  FILL_DAILY_SQL,
  FILL_LATEST_SQL,
  LOCK_SUMMARIES_SQL,
} from "./summary.ts";
import {
  addColumnsSql,
  adoptSql,
  changeOwnerSql,
  CREATE_SCHEMA_SQL,
  createDeadLettersSql,
  createParentSql,
  createPartitionSql,
  createVersionsSql,
  DAILY,
  DEAD_LETTERS,
  FIND_COLUMNS_SQL,
  FIND_PARTITION_SQL,
  FIND_SCHEMA_SQL,
  FIND_TABLES_SQL,
  FIND_VERSION_SQL,
  LATEST,
  LOCK_SCHEMA_SQL,
  PARENT,
  partitionBound,
  qualifiedName,
  renameSql,
  RESERVED_NAMES,
  SCHEMA_VERSION,
  SET_VERSION_SQL,
  tableName,
  VERSIONS,
} from "./table.ts";
import { CREATE_VIEWS_SQL, VIEWS } from "./view.ts";

/**
 * Least version of a program that may write into tables of this version. Raise it where one that does not know of a
 * change would make the tables wrong, as a program that does not fill `latest` would.
 */
const NEEDED_VERSION = 2;

/** What these functions need beside a connection. */
export interface SchemaOptions {
  /** Where to say what is made. */
  readonly log: Log;
  /** Role that makes it. */
  readonly user: string;
}

interface FoundTable {
  readonly name: string;
  readonly kind: string;
  readonly parent: string | null;
  readonly bound: string | null;
  readonly owned: boolean;
  readonly owner: string;
}

/** Runs statements: a connection, or several. */
export interface Queryable {
  /** Runs one. */
  query<T extends object>(sql: string, values?: unknown[]): Promise<QueryResult<T>>;
}

/** A table or view of ours whose name another one has. */
class ForeignTableError extends Error {
  constructor(tables: readonly string[]) {
    super(
      `Cannot use ${tables.map(qualifiedName).join(", ")}: not made by site_checker; to make room: ` +
        tables.map((table) => `ALTER TABLE ${qualifiedName(table)} RENAME TO "${table}~old";`).join(" "),
    );
  }
}

class OwnerError extends Error {
  constructor(owner: string, user: string) {
    super(
      `Cannot add a table to ${qualifiedName(PARENT)}, which belongs to ${owner}: only its owner can; to mend it: ` +
        `GRANT ${owner} TO "${user}"; or ${changeOwnerSql(PARENT, user)};`,
    );
  }
}

/**
 * Version of the tables that are there; null where there are none, and 1 for those that name none.
 *
 * @throws {ConfigError} when they need a newer program.
 */
export async function checkVersion(client: Queryable, { log }: Pick<SchemaOptions, "log">): Promise<number | null> {
  const { rows: tables } = await client.query<FoundTable>(FIND_TABLES_SQL, [[PARENT, VERSIONS]]);
  if (!tables.some(({ name }) => name === VERSIONS)) return tables.length === 0 ? null : 1;
  const { rows: [found] } = await client.query<{ version: number; needs: number }>(FIND_VERSION_SQL);
  if (found === undefined) return 1;
  const { version, needs } = found;
  if (needs > SCHEMA_VERSION) {
    throw new ConfigError(
      `Cannot write into schema site_checker: its tables are of version ${version}, which takes programs for version ` +
        `${needs} or later, and this one is for ${SCHEMA_VERSION}; install the newer site_checker that made them`,
    );
  }
  if (version > SCHEMA_VERSION) {
    log.info(
      "The tables are of version {version}, this program is for {own}: what it does not know stays null",
      { version, own: SCHEMA_VERSION },
    );
  }
  return version;
}

/**
 * Makes or mends all tables but the topics', within a transaction. What is missing is added: columns of the declaration
 * to the parent, `latest` and `daily` filled from the rows that are there.
 */
export async function prepareSchema(client: Queryable, options: SchemaOptions): Promise<void> {
  await client.query(LOCK_SCHEMA_SQL);
  // `CREATE SCHEMA IF NOT EXISTS` asks for the right to make one even where it is there.
  if ((await client.query(FIND_SCHEMA_SQL)).rowCount === 0) await client.query(CREATE_SCHEMA_SQL);
  const version = await checkVersion(client, { log: { ...options.log, info() {} } });
  const { rows } = await client.query<FoundTable>(FIND_TABLES_SQL, [[...RESERVED_NAMES, VERSIONS]]);
  const tables = new Map(rows.map((table) => [table.name, table]));
  const views = Object.keys(VIEWS);
  const kinds = new Map([[PARENT, "p"], ...views.map((name) => [name, "v"] as const)]);
  const foreign = rows.filter(({ name, kind }) =>
    kind !== (kinds.get(name) ?? "r") || (version ?? 1) < 2 && name !== PARENT && name !== DEAD_LETTERS
  );
  if (foreign.length > 0) throw new ForeignTableError(foreign.map(({ name }) => name));

  if (!tables.has(PARENT)) await client.query(createParentSql());
  else await addColumns(client);
  if (!tables.has(DEAD_LETTERS)) await client.query(createDeadLettersSql());
  if (!tables.has(LATEST) || !tables.has(DAILY)) await makeSummaries(client, tables, options);
  if (version !== null && version > SCHEMA_VERSION) return;
  if (version !== SCHEMA_VERSION || views.some((name) => !tables.has(name))) await client.query(CREATE_VIEWS_SQL);
  if (version === SCHEMA_VERSION) return;
  if (!tables.has(VERSIONS)) await client.query(createVersionsSql());
  await client.query(SET_VERSION_SQL, [SCHEMA_VERSION, NEEDED_VERSION]);
  if (version !== null) {
    options.log.info("The tables are of version {version} now; they were of {old}", {
      version: SCHEMA_VERSION,
      old: version,
    });
  }
}

async function addColumns(client: Queryable): Promise<void> {
  const { rows } = await client.query<{ name: string }>(FIND_COLUMNS_SQL);
  const there = new Set(rows.map(({ name }) => name));
  const missing = COLUMN_NAMES.filter((name) => !there.has(name));
  if (missing.length > 0) await client.query(addColumnsSql(missing));
}

async function makeSummaries(
  client: Queryable,
  tables: ReadonlyMap<string, unknown>,
  { log }: SchemaOptions,
): Promise<void> {
  if (!tables.has(LATEST)) await client.query(CREATE_LATEST_SQL);
  if (!tables.has(DAILY)) await client.query(CREATE_DAILY_SQL);
  if ((await client.query(FIND_PARTITION_SQL)).rowCount === 0) return;
  log.info("Filling site_checker.latest and site_checker.daily from all rows; this may take a while");
  await fillSummaries(client);
}

/** Makes `latest` and `daily` say what all rows say, within a transaction. Writers wait meanwhile, readers do not. */
export async function fillSummaries(client: Queryable): Promise<void> {
  await client.query(LOCK_SUMMARIES_SQL);
  await client.query(CLEAR_LATEST_SQL);
  await client.query(CLEAR_DAILY_SQL);
  await client.query(FILL_LATEST_SQL);
  await client.query(FILL_DAILY_SQL);
}

/**
 * Makes topics' tables, within a transaction.
 *
 * @returns Reasons by topic, of topics whose tables can't be made because a foreign table has the name.
 */
export async function createPartitions(
  client: Queryable,
  topics: readonly string[],
  { log, user }: SchemaOptions,
): Promise<ReadonlyMap<string, string>> {
  await client.query(LOCK_SCHEMA_SQL);
  const { rows } = await client.query<FoundTable>(FIND_TABLES_SQL, [[PARENT, ...topics.map(tableName)]]);
  const tables = new Map(rows.map((table) => [table.name, table]));
  const blocked = new Map<string, string>();
  const created: string[] = [];
  for (const topic of topics) {
    const table = tables.get(tableName(topic));
    if (table === undefined) created.push(topic);
    else if (table.parent !== PARENT || table.bound !== partitionBound(topic)) blocked.set(topic, foreignTable(topic));
  }
  const parent = tables.get(PARENT);
  if (created.length > 0 && parent !== undefined && !parent.owned) throw new OwnerError(parent.owner, user);
  for (const topic of created) await client.query(createPartitionSql(topic));
  if (created.length > 0) log.info("Made tables for topics: {topics}", { topics: created.join(", ") });
  return blocked;
}

function foreignTable(topic: string): string {
  return `its table ${
    qualifiedName(tableName(topic))
  } is there and is not one of site_checker's, so it is left alone. ` +
    `To make room: ${renameSql(topic)}; and, once the new table is there, to bring over the rows of the Python ` +
    `program: ${adoptSql(topic)}; and then consumer --rebuild-summaries`;
}

const NO_PRIVILEGE = "42501";
const OUT_OF_MEMORY = "53200";

/** The statement that mends an error, where one does; null where none is known. */
export function cureOf(error: unknown, { user, database }: { user: string; database: string }): string | null {
  const message = error instanceof Error ? error.message : "";
  const role = `"${user}"`;
  if (errorCode(error) === OUT_OF_MEMORY && /shared memory/.test(message)) {
    return "ALTER SYSTEM SET max_locks_per_transaction = 1024; and restart the server";
  }
  if (errorCode(error) !== NO_PRIVILEGE) return null;
  const owned = /must be owner of (?:table|view|relation) (?<name>.+)/.exec(message)?.groups?.["name"];
  if (owned !== undefined) return `${changeOwnerSql(owned.replace(/^"|"$/g, ""), user)};`;
  const { kind, name = "" } = /permission denied for (?<kind>database|schema|table|view) (?<name>.+)/.exec(message)
    ?.groups ?? {};
  const object = name.replace(/^"|"$/g, "");
  switch (kind) {
    case "database":
      return `GRANT CREATE ON DATABASE "${database}" TO ${role};`;
    case "schema":
      return `GRANT USAGE, CREATE ON SCHEMA site_checker TO ${role};`;
    case "table":
      return `GRANT ${RIGHTS[object] ?? "SELECT, INSERT"} ON ${qualifiedName(object)} TO ${role};`;
    default:
      return null;
  }
}

/** Rights that the consumer needs on its tables, where they are more than to read and to add. */
const RIGHTS: Readonly<Record<string, string>> = {
  [LATEST]: "SELECT, INSERT, UPDATE, DELETE",
  [DAILY]: "SELECT, INSERT, UPDATE, DELETE",
  [DEAD_LETTERS]: "SELECT, INSERT, UPDATE",
};
