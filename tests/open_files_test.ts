import assert from "node:assert/strict";
import { countOpenable, isOutOfFiles } from "../lib/open_files.ts";

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
