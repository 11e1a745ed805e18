import assert from "node:assert/strict";
import project from "../deno.json" with { type: "json" };
import { REPOSITORY } from "../local/repository.ts";
import { runProgram, startSite, temporaryFile } from "./support.ts";

/** A port that counts who connects: a broker that must not be spoken to. */
function listen(): { readonly address: string; connections: number } & AsyncDisposable {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const broker = {
    address: `127.0.0.1:${listener.addr.port}`,
    connections: 0,
    async [Symbol.asyncDispose]() {
      listener.close();
      await accepting;
    },
  };
  const accepting = (async () => {
    for await (const connection of listener) {
      broker.connections++;
      connection.close();
    }
  })();
  return broker;
}

Deno.test.each(["producer", "consumer"] as const)("%s --version prints the version", async (program) => {
  assert.deepEqual(await runProgram(program, ["--version"]), { code: 0, stdout: `${project.version}\n`, stderr: "" });
});

Deno.test.each(["producer", "consumer"] as const)("%s without settings exits 2 with a line", async (program) => {
  const { code, stdout, stderr } = await runProgram(program, []);
  assert.deepEqual({ code, stdout }, { code: 2, stdout: "" });
  assert.match(stderr, new RegExp(`^${program}: Cannot find a [^\n]+\n$`));
});

const WRONG: readonly { program: "producer" | "consumer"; args: readonly string[]; stderr: string }[] = [
  {
    program: "producer",
    args: ["--config-path", "tests/invalid/missing.ini"],
    stderr: "producer: Cannot read configuration file 'tests/invalid/missing.ini': there is no such file\n",
  },
  {
    program: "producer",
    args: ["--url", "http://a/", "--regex", "(", "--dry-run"],
    stderr:
      "producer: Cannot read regex of website 'a' (--regex): expected a regular expression (Unterminated group), " +
      "got '('\n",
  },
  {
    program: "producer",
    args: ["--config-path", "tests/invalid/interval_often.ini", "--check-config"],
    stderr: "producer: Cannot read interval of website 'apache' (tests/invalid/interval_often.ini:3): expected a " +
      "duration such as 10s, got 'often'\n",
  },
  {
    program: "consumer",
    args: ["--config-path", "tests/invalid/ca_missing.ini"],
    stderr:
      "consumer: Cannot read ssl_cafile of [kafka] (tests/invalid/ca_missing.ini:6) './missing.pem': there is no " +
      "such file\n",
  },
  {
    program: "consumer",
    args: ["--config-path", "tests/invalid/line.ini"],
    stderr:
      "consumer: Cannot read the line (tests/invalid/line.ini:2): expected [section], key = value or a # comment\n",
  },
];

Deno.test.each(WRONG)("$program $args exits 2 with a line and no stack", async ({ program, args, stderr }) => {
  assert.deepEqual(await runProgram(program, args), { code: 2, stdout: "", stderr });
});

Deno.test("producer sends nothing when one of its settings is wrong", async () => {
  await using broker = listen();
  await using site = startSite(() => new Response("hello"));
  await using file = await temporaryFile(
    "config.ini",
    `[kafka]\nbootstrap_servers = ${broker.address}\n[website_a]\nurl = ${site.url}\n[website_b]\nurl = ${site.url}\nregex = (\n`,
  );
  const { code, stdout, stderr } = await runProgram("producer", ["--config-path", file.path]);
  assert.deepEqual({ code, stdout }, { code: 2, stdout: "" });
  assert.match(stderr, /^producer: Cannot read regex of website 'b' \([^\n]+config\.ini:7\): [^\n]+\n$/);
  assert.deepEqual({ connections: broker.connections, visits: site.visits }, { connections: 0, visits: 0 });
});

Deno.test("consumer connects to nothing when one of its settings is wrong", async () => {
  await using broker = listen();
  const { code, stderr } = await runProgram("consumer", [
    ...["--kafka-bootstrap-servers", broker.address, "--kafka-topic", "a", "--postgres-host", "localhost"],
    ...["--postgres-sslmode", "prefer"],
  ]);
  assert.equal(code, 2);
  assert.match(stderr, /^consumer: Cannot read sslmode of \[postgres\] \(--postgres-sslmode\): [^\n]+\n$/);
  assert.equal(broker.connections, 0);
});

Deno.test("producer --check-config prints its settings and connects to nothing", async () => {
  await using broker = listen();
  await using site = startSite(() => new Response("hello"));
  const { code, stdout, stderr } = await runProgram("producer", ["--check-config", "--url", site.url], {
    env: { KAFKA_BOOTSTRAP_SERVERS: broker.address, INTERVAL: "1m" },
  });
  assert.deepEqual({ code, stderr }, { code: 0, stderr: "" });
  assert.match(
    stdout,
    /^\[website_127\.0\.0\.1\]\nurl = \S+ +; --url\ninterval = 1m +; environment variable INTERVAL\n/,
  );
  assert.deepEqual({ connections: broker.connections, visits: site.visits }, { connections: 0, visits: 0 });
});

Deno.test("consumer --check-config prints its settings, the password hidden, and connects to nothing", async () => {
  await using broker = listen();
  const { code, stdout, stderr } = await runProgram("consumer", ["--check-config", "--kafka-topic", "a"], {
    env: { KAFKA_BOOTSTRAP_SERVERS: broker.address, POSTGRES_HOST: "localhost", POSTGRES_PASSWORD: "hunter2" },
  });
  assert.deepEqual({ code, stderr }, { code: 0, stderr: "" });
  assert.match(stdout, /\npassword = \*{8} +; environment variable POSTGRES_PASSWORD\n/);
  assert.doesNotMatch(stdout, /hunter2/);
  assert.equal(broker.connections, 0);
});

Deno.test("--check-config writes warnings to standard error", async () => {
  const { code, stderr } = await runProgram("producer", [
    ...["--check-config", "--dry-run", "--url=http://a/", "--interval=1", "--timeout=2"],
  ]);
  assert.equal(code, 0);
  assert.equal(
    stderr,
    "producer: Warning: timeout of website 'a' (2s) is longer than its interval (1s): while it hangs, checks are left " +
      "out\n",
  );
});

Deno.test("producer --once --dry-run prints one line of JSON", async () => {
  await using site = startSite(() => new Response("hello"));
  const { code, stdout } = await runProgram("producer", [
    ...["--once", "--dry-run", "--url", site.url.replace("://", "://me:hunter2@"), "--regex", "^HELLO$"],
  ]);
  assert.equal(code, 0);
  assert.equal(stdout.split("\n").length, 2);
  assert.doesNotMatch(stdout, /hunter2/);
  const { name, url, verdict, error, status_code, has_regex } = JSON.parse(stdout);
  assert.deepEqual({ name, url, verdict, error, status_code, has_regex }, {
    name: "127.0.0.1",
    url: site.url,
    verdict: "down",
    error: "regex",
    status_code: 200,
    has_regex: false,
  });
  assert.equal(site.visits, 1);
});

Deno.test("a password in percent signs that encode nothing is no crash", async () => {
  const { code, stderr } = await runProgram("producer", ["--check-config", "--dry-run", "--url=http://me:50%er@a/"]);
  assert.deepEqual({ code, stderr }, { code: 0, stderr: "" });
});

Deno.test("certificates of the working folder are found from there", async () => {
  await using file = await temporaryFile("ca.pem", "no certificate\n");
  const { code, stderr } = await runProgram("producer", [
    ...["--check-config", "--url=http://a/", "--kafka-bootstrap-servers=a", "--kafka-security-protocol=SSL"],
  ], { cwd: file.path.replace(/\/ca\.pem$/, "") });
  assert.equal(code, 2);
  assert.equal(
    stderr,
    "producer: Cannot read ssl_cafile of [kafka] (default) './ca.pem': expected a certificate in PEM\n",
  );
});

Deno.test("example.config.ini needs no more than its empty values and its certificates", async () => {
  const options = {
    cwd: REPOSITORY,
    env: { KAFKA_BOOTSTRAP_SERVERS: "a:1", KAFKA_SECURITY_PROTOCOL: "PLAINTEXT", POSTGRES_HOST: "db" },
  };
  const args = ["--check-config", "--config-path", "example/example.config.ini"];
  const producer = await runProgram("producer", args, options);
  assert.equal(producer.code, 0, producer.stderr);
  const consumer = await runProgram("consumer", args, options);
  assert.equal(consumer.code, 2);
  assert.match(
    consumer.stderr,
    /^consumer: Cannot read sslrootcert of \[postgres\] \(\S+:\d+\) '\.\/example\/ca\.pem': there is no such file\n$/,
  );
});
