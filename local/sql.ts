import { Command } from "commander";
import pg from "pg";
import { errorMessage } from "../lib/error.ts";
import { print, printError } from "../lib/log.ts";
import { formatGrid } from "./grid.ts";
import { hasPostgres, startPostgres } from "./postgres.ts";
import { type Connection, findStack, postgresVariables, STACK_FOLDER } from "./stack.ts";

/** Types of numbers, which are aligned to the right: smallint, integer, bigint, real, double precision, numeric, oid. */
const NUMBER_TYPES: ReadonlySet<number> = new Set([20, 21, 23, 26, 700, 701, 1700]);
const UNLIMITED = Number.MAX_SAFE_INTEGER;

interface Options {
  readonly folder: string;
  readonly json?: boolean;
  readonly wide?: boolean;
}

async function main(args: readonly string[]): Promise<number> {
  const command = new Command("sql")
    .description(
      "Runs a query on the database of POSTGRES_HOST and so on, else on that of the stack, which is started for the " +
        "query where it does not run.",
    )
    .argument("<query>", "SQL; several statements are separated by semicolons")
    .option("--json", "print each row as a line of JSON")
    .option("--wide", "don't shorten long values")
    .option("--folder <folder>", "folder of the stack", STACK_FOLDER)
    .exitOverride();
  try {
    command.parse(args, { from: "user" });
  } catch (error) {
    return (error as { exitCode?: number }).exitCode === 0 ? 0 : 2;
  }
  try {
    await using database = await findDatabase(command.opts<Options>().folder);
    return await run(database.connection, command.args.join(" "), command.opts<Options>());
  } catch (error) {
    printError(`sql: ${errorMessage(error)}`);
    return 1;
  }
}

async function findDatabase(folder: string): Promise<{ readonly connection: Connection } & AsyncDisposable> {
  if (Deno.env.get("POSTGRES_HOST")) return { connection: Deno.env.toObject(), async [Symbol.asyncDispose]() {} };
  const stack = await findStack(folder);
  if (stack !== undefined) return { connection: stack.connection, async [Symbol.asyncDispose]() {} };
  if (!await hasPostgres(`${folder}/postgres`)) {
    throw new Error(
      "Cannot find a database: expected a stack that has run (deno task stack, deno task demo), or POSTGRES_HOST, " +
        "POSTGRES_PORT, POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DATABASE in the environment",
    );
  }
  const postgres = await startPostgres({ folder: `${folder}/postgres` });
  return { connection: postgresVariables(postgres), [Symbol.asyncDispose]: () => postgres.stop() };
}

async function run(connection: Connection, query: string, { json, wide }: Options): Promise<number> {
  const secure = !["", "disable"].includes(connection["POSTGRES_SSLMODE"] ?? "");
  const authority = connection["POSTGRES_SSLROOTCERT"];
  const client = new pg.Client({
    host: connection["POSTGRES_HOST"],
    port: Number(connection["POSTGRES_PORT"] || 5432),
    user: connection["POSTGRES_USER"],
    password: connection["POSTGRES_PASSWORD"] ?? "",
    database: connection["POSTGRES_DATABASE"],
    ssl: !secure ? false : authority ? { ca: await Deno.readTextFile(authority) } : { rejectUnauthorized: false },
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
    for (const row of rows) print(JSON.stringify(Object.fromEntries(fields.map(({ name }, i) => [name, row[i]]))));
    return;
  }
  const columns = fields.map(({ name, dataTypeID }) => ({
    name,
    align: NUMBER_TYPES.has(dataTypeID) ? "right" as const : "left" as const,
  }));
  print(formatGrid(columns, rows.map((row) => row.map((value) => value ?? "")), wide ? { maxWidth: UNLIMITED } : {}));
  print(`(${rows.length} row${rows.length === 1 ? "" : "s"})`);
}

/** Line of the query with a mark below the place that an error names. */
function pointer(query: string, position: string | undefined): string {
  if (position === undefined) return "";
  const before = query.slice(0, Number(position) - 1);
  const line = query.split("\n")[before.split("\n").length - 1] ?? "";
  return `\n  ${line}\n  ${" ".repeat(before.length - before.lastIndexOf("\n") - 1)}^`;
}

if (import.meta.main) Deno.exitCode = await main(Deno.args);
