import { metricSchema } from "../lib/metric.ts";
import { configurationPage } from "./configuration_page.ts";

/** Pages of docs/ that are made from declarations in the code, by path. `deno task docs` writes them. */
export const PAGES: ReadonlyMap<string, string> = new Map([
  ["docs/metric.schema.json", JSON.stringify(metricSchema(), null, 2) + "\n"],
  ["docs/configuration.md", configurationPage()],
]);

if (import.meta.main) {
  const root = new URL("../", import.meta.url);
  await Deno.mkdir(new URL("docs/", root), { recursive: true });
  for (const [path, text] of PAGES) await Deno.writeTextFile(new URL(path, root), text);
}
