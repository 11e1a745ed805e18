import { Command } from "commander";
import pg from "pg";
import { type PostgresSettings, readPostgresSettings } from "../lib/config.ts";
import { ConfigError } from "../lib/error.ts";
import { print, printError } from "../lib/log.ts";
import { poolConfig } from "../lib/database.ts";
import { formatGrid } from "./grid.ts";
import { hasPostgres, startPostgres } from "./postgres.ts";
import { errorMessageLines, findStack, postgresVariables, STACK_FOLDER, usageExitCode } from "./stack.ts";

const { BOOL, FLOAT4, FLOAT8, INT2, INT4, INT8, JSON: JSON_TEXT, JSONB, NUMERIC, OID } = pg.types.builtins;
/** Types of numbers, which are aligned to the right. */
const NUMBER_TYPES: ReadonlySet<number> = new Set([INT2, INT4, INT8, FLOAT4, FLOAT8, NUMERIC, OID]);
const JSON_NUMBER_REGEXP = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:e[+-]?\d+)?$/i;
/** A string within JSON, or a separator with the space that PostgreSQL writes behind it. */
const JSON_TOKEN_REGEXP = /("(?:[^"\\]|\\.)*")|([:,]) /g;
const UNLIMITED = Number.MAX_SAFE_INTEGER;

interface Options {
  readonly configPath?: string;
  readonly folder?: string;
  readonly json?: boolean;
  readonly wide?: boolean;
}

async function main(args: readonly string[]): Promise<number> {
  const command = new Command("sql")
    .description(
      "Runs a query on the database of --config-path, POSTGRES_HOST and so on, else on that of the stack, which is started for the " +
        "query where it does not run.",
    )
    .argument("<query>", "SQL; several statements are separated by semicolons")
    .option("--config-path <file>", "file with the section [postgres]")
    .option("--json", "print each row as a line of JSON")
    .option("--wide", "don't shorten long values")
    .option("--folder <folder>", "folder of the stack (default: .local/stack)")
    .allowExcessArguments(false)
    .showHelpAfterError()
    .exitOverride();
  try {
    command.parse(args, { from: "user" });
  } catch (error) {
    return usageExitCode(error);
  }
  const options = command.opts<Options>();
  try {
    await using database = await findDatabase(options);
    return await run(database.settings, command.args[0] ?? "", options);
  } catch (error) {
    // The reader, such as `head`, has seen enough.
    if (error instanceof Deno.errors.BrokenPipe) return 0;
    printError(`sql: ${errorMessageLines(error)}`);
    return error instanceof ConfigError ? 2 : 1;
  }
}

async function findDatabase(
  { folder = STACK_FOLDER, configPath }: Options,
): Promise<{ readonly settings: PostgresSettings } & AsyncDisposable> {
  const nothing = { async [Symbol.asyncDispose]() {} };
  if (configPath !== undefined || Deno.env.get("POSTGRES_HOST") || Deno.env.get("CONFIG_PATH")) {
    return { settings: await readPostgresSettings({ configPath }), ...nothing };
  }
  const stack = await findStack(folder);
  if (stack !== undefined) {
    return { settings: await readPostgresSettings({ env: (name) => stack.connection[name] }), ...nothing };
  }
  if (!await hasPostgres(`${folder}/postgres`)) {
    throw new ConfigError(
      "Cannot find a database: expected a stack that has run (deno task stack, deno task demo), --config-path, or " +
        "POSTGRES_HOST, POSTGRES_PORT, POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DATABASE in the environment",
    );
  }
  const postgres = await startPostgres({ folder: `${folder}/postgres` });
  const connection = postgresVariables(postgres);
  return {
    settings: await readPostgresSettings({ env: (name) => connection[name] }),
    [Symbol.asyncDispose]: () => postgres[Symbol.asyncDispose](),
  };
}

async function run(settings: PostgresSettings, query: string, { json, wide }: Options): Promise<number> {
  const client = new pg.Client({
    ...poolConfig(settings),
    // Values are shown as PostgreSQL writes them.
    types: { getTypeParser: () => (text: string) => text },
  });
  client.on("error", () => {});
  await client.connect();
  try {
    await client.query("SET timezone = 'UTC'");
    const results = await client.query({ text: query, rowMode: "array" }) as
      | pg.QueryArrayResult
      | pg.QueryArrayResult[];
    for (const result of [results].flat()) printResult(result, { json: json === true, wide: wide === true });
    return 0;
  } catch (error) {
    if (!(error instanceof pg.DatabaseError)) throw error;
    printError(`sql: ${error.message} (SQLSTATE ${error.code})${pointer(query, error.position)}`);
    if (error.detail !== undefined) printError(`detail: ${error.detail}`);
    if (error.hint !== undefined) printError(`hint: ${error.hint}`);
    return 1;
  } finally {
    await client.end();
  }
}

function printResult(
  { command, rowCount, fields, rows }: pg.QueryArrayResult<(string | null)[]>,
  { json, wide }: { json: boolean; wide: boolean },
): void {
  if (fields.length === 0) return print(rowCount === null ? command : `${command} ${rowCount}`);
  if (json) {
    for (const row of rows) {
      const members = fields.map(({ name, dataTypeID }, i) =>
        `${JSON.stringify(name)}:${jsonValue(row[i] ?? null, dataTypeID)}`
      );
      print(`{${members.join(",")}}`);
    }
    return;
  }
  const columns = fields.map(({ name, dataTypeID }) => ({
    name,
    align: NUMBER_TYPES.has(dataTypeID) ? "right" as const : "left" as const,
  }));
  const cells = rows.map((row) => row.map((value, i) => value === null ? "" : show(value, fields[i]!.dataTypeID)));
  print(formatGrid(columns, cells, wide ? { maxWidth: UNLIMITED } : {}));
  print(`(${rows.length} row${rows.length === 1 ? "" : "s"})`);
}

/** Value as it stands in a table. */
function show(value: string, type: number): string {
  if (type === JSONB) return value.replace(JSON_TOKEN_REGEXP, "$1$2");
  return type === BOOL ? value === "t" ? "true" : "false" : value;
}

/** Value as JSON; numbers keep all their digits. */
function jsonValue(value: string | null, type: number): string {
  if (value === null) return "null";
  if (type === BOOL) return value === "t" ? "true" : "false";
  // `json` is kept as it was written, line feeds and all.
  if (type === JSON_TEXT) return value.replaceAll(/[\r\n]+/g, " ");
  if (type === JSONB) return show(value, type);
  // Not so NaN and Infinity.
  return NUMBER_TYPES.has(type) && JSON_NUMBER_REGEXP.test(value) ? value : JSON.stringify(value);
}

/** Line of the query with a mark below the place that an error names. */
function pointer(query: string, position: string | undefined): string {
  if (position === undefined) return "";
  // It counts characters, not UTF-16 units.
  const before = [...query].slice(0, Number(position) - 1).join("");
  const line = query.split("\n")[before.split("\n").length - 1] ?? "";
  return `\n  ${line}\n  ${" ".repeat([...before.slice(before.lastIndexOf("\n") + 1)].length)}^`;
}

if (import.meta.main) Deno.exitCode = await main(Deno.args);
