import assert from "node:assert/strict";
import { countOpenable, fitOpenFiles, isOutOfFiles } from "../lib/open_files.ts";

Deno.test("countOpenable() finds room for what is wanted, and leaves nothing open", () => {
  for (let i = 0; i < 100; i++) assert.equal(countOpenable(200), 200);
});

Deno.test("countOpenable() finds the limit of the system", async () => {
  const script = `
    import { countOpenable } from ${JSON.stringify(new URL("../lib/open_files.ts", import.meta.url).href)};
    Deno.addSignalListener("SIGHUP", () => {});
    console.log(countOpenable(1_000));
    Deno.exit();`;
  const { stdout } = await new Deno.Command("sh", {
    args: ["-c", 'ulimit -n 200; exec "$0" eval --quiet "$1"', Deno.execPath(), script],
  }).output();
  const found = Number(new TextDecoder().decode(stdout));
  assert.ok(found > 100 && found < 200, `${found}`);
});

Deno.test("isOutOfFiles() knows the failures of files and of fetch", () => {
  assert.equal(isOutOfFiles(new Error("Too many open files (os error 24)")), true);
  const cause = new Error("client error (Connect): tcp open error: Too many open files (os error 24)");
  assert.equal(isOutOfFiles(new TypeError("fetch failed", { cause })), true);
  assert.equal(isOutOfFiles(new Error("Connection refused (os error 111)")), false);
});

Deno.test("fitOpenFiles() lowers the number of checks to what can be opened, and says so", () => {
  const told: unknown[] = [];
  const log = { debug: fail, info: fail, error: fail, warn: (...line: unknown[]) => void told.push(line[1]) };
  const fit = (max: number, sites: number, openable: number | null) =>
    fitOpenFiles({ max, maxPerHost: 9 }, { sites, log, count: (wanted) => openable && Math.min(wanted, openable) }).max;
  assert.equal(fit(1_000, 5_000, 2_100), 1_000);
  assert.equal(fit(1_000, 10, 120), 1_000, "ten sites never have more than ten checks in flight");
  assert.equal(fit(1_000, 5_000, null), 1_000, "the system does not tell");
  assert.deepEqual(told, []);
  assert.equal(fit(1_000, 5_000, 900), 400);
  assert.equal(fit(1_000, 5_000, 3), 1);
  assert.deepEqual(told, [{ max: 400, wanted: 1_000, openable: 900 }, { max: 1, wanted: 1_000, openable: 3 }]);
});

function fail(): never {
  assert.fail("a line of the log");
}
