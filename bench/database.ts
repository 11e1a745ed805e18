import pg from "pg";

/** Connections to the database of a stack, which close themselves. */
export function connect(connection: Readonly<Record<string, string>>): { readonly pool: pg.Pool } & AsyncDisposable {
  const pool = new pg.Pool({
    host: connection["POSTGRES_HOST"],
    port: Number(connection["POSTGRES_PORT"]),
    user: connection["POSTGRES_USER"],
    password: connection["POSTGRES_PASSWORD"],
    database: connection["POSTGRES_DATABASE"],
    max: 2,
  });
  pool.on("error", () => {});
  return { pool, [Symbol.asyncDispose]: () => pool.end() };
}
