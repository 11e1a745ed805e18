import assert from "node:assert/strict";
import { freePorts } from "../local/port.ts";
import { REPOSITORY } from "../local/repository.ts";

const LIB = new URL("../lib/", import.meta.url);
const CONFIG = `${REPOSITORY}/deno.json`;

/** Runs a script in a process of its own, with these flags and, where it is given, this limit on open files. */
async function runScript(script: string, flags: readonly string[], openFiles = "unlimited"): Promise<string> {
  const file = await Deno.makeTempFile({ suffix: ".ts" });
  await Deno.writeTextFile(file, script);
  try {
    const { stdout, stderr } = await new Deno.Command("sh", {
      args: [
        "-c",
        `${openFiles === "unlimited" ? "" : `ulimit -n ${openFiles};`} exec "$@"`,
        "sh",
        Deno.execPath(),
        ...["run", "--quiet", "--no-prompt", "--config", CONFIG, ...flags, file],
      ],
      env: { NO_COLOR: "1" },
    }).output();
    return new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  } finally {
    await Deno.remove(file);
  }
}

/** Script that prints what comes of something that is awaited. */
function attempt(imports: string, expression: string): string {
  return `
    ${imports}
    try {
      const result = await ${expression};
      console.log("a result:", JSON.stringify(result));
    } catch (error) {
      console.log(error.name + ": " + error.message);
    }`;
}

function inspecting(url: string): string {
  return attempt(
    `import { inspectConnection } from "${new URL("connection.ts", LIB)}";`,
    `inspectConnection("${url}", { timeoutMs: 5_000 })`,
  );
}

function fetching(url: string): string {
  return attempt(
    `import { throwIfOurs } from "${new URL("failure.ts", LIB)}";`,
    `fetch("${url}").catch((error) => throwIfOurs({ error, phase: "first_byte" }))`,
  );
}

const DENIED = ["--allow-net", "--deny-net=127.0.0.0/8,[::1]"];

Deno.test.each([
  {
    what: "fetch to an address",
    script: fetching("http://127.0.0.1:8080/"),
    flags: ["--allow-net=x.example"],
    expected: /^NotCapable: Requires net access to "127.0.0.1:8080"/,
  },
  {
    what: "fetch to a name whose address is denied",
    script: fetching("http://localhost:8080/"),
    flags: DENIED,
    expected: /^NotCapable: Requires net access to "(?:127.0.0.1|\[::1\]):8080"/,
  },
  {
    what: "a look at an address",
    script: inspecting("http://127.0.0.1:8080/"),
    flags: ["--allow-net=x.example"],
    expected: /^NotCapable: Requires net access to "127.0.0.1:8080"/,
  },
  {
    what: "a look at a name",
    script: inspecting("http://localhost:8080/"),
    flags: ["--allow-net=localhost:8080"],
    expected:
      /^NotCapable: Requires net access to the host, without a port, to look it up \(getaddrinfo EPERM localhost\)/,
  },
  {
    what: "a look at a name whose address is denied",
    script: inspecting("https://localhost:8080/"),
    flags: DENIED,
    expected: /^NotCapable: Requires net access to "(?:127.0.0.1|\[::1\]):8080"/,
  },
])("throwIfOurs() knows the permission that is missing for $what", async ({ script, flags, expected }) => {
  assert.match(await runScript(script, flags), expected);
});

Deno.test.each([
  { what: "fetch to an address", host: "127.0.0.1", kind: "fetch" },
  { what: "fetch to a name", host: "localhost", kind: "fetch" },
  { what: "a look at an address", host: "127.0.0.1", kind: "inspect" },
  { what: "a look at a name", host: "localhost", kind: "inspect" },
])("throwIfOurs() knows that there are too many open files for $what", async ({ host, kind }) => {
  const url = `http://${host}:${freePorts(1)[0]}/`;
  // What is loaded late needs files, too.
  const script = `
    import { isOutOfFiles } from "${new URL("open_files.ts", LIB)}";
    import { inspectConnection } from "${new URL("connection.ts", LIB)}";
    import { throwIfOurs } from "${new URL("failure.ts", LIB)}";
    Deno.addSignalListener("SIGHUP", () => {});
    const attempt = () => "${kind}" === "fetch"
      ? fetch("${url}").catch((error) => throwIfOurs({ error, phase: "first_byte" }))
      : inspectConnection("${url}", { timeoutMs: 5_000 });
    await attempt();
    const files = [];
    try {
      for (;;) files.push(Deno.openSync("/dev/null"));
    } catch {}
    try {
      console.log("a result:", JSON.stringify(await attempt()));
    } catch (error) {
      console.log("too many files:", isOutOfFiles(error));
    }
    Deno.exit();`;
  assert.equal(await runScript(script, ["-A"], "100"), "too many files: true\n");
});
