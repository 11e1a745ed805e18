import type { Invariant } from "./judgement.ts";

/** Tables that are kept up to date beside the rows. */
const TABLES = ["latest", "daily"] as const;

/** Compares `site_checker.latest` and `site_checker.daily` with what all rows say, where they are there. */
export async function judgeSums(
  query: (sql: string) => Promise<Record<string, unknown>[]>,
): Promise<Invariant[]> {
  const found = new Set(
    (await query("SELECT relname FROM pg_class WHERE relnamespace = 'site_checker'::regnamespace AND relkind = 'r'"))
      .map(({ relname }) => relname),
  );
  const result: Invariant[] = [];
  for (const table of TABLES) {
    const name = `site_checker.${table} equals what all rows say`;
    if (!found.has(table)) {
      result.push({ name, held: null, figure: "not there yet" });
      continue;
    }
    result.push({ name, held: null, figure: "the comparison is not there yet" });
  }
  return result;
}
