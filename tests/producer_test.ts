import assert from "node:assert/strict";
import { Kafka, logLevel } from "kafkajs";
import { startKafka } from "../local/kafka.ts";
import { freePorts } from "../local/port.ts";
import {
  type ConsoleRecord,
  eventually,
  kafkaFlags,
  readByConsole,
  runProgram,
  runWell,
  startProgram,
  startSite,
  temporaryFile,
  testStack,
  uniqueName,
} from "./support.ts";

Deno.test("producer --once publishes one metric of each site of the file, whatever became of it", async () => {
  await using site = startSite((request) =>
    request.url.endsWith("/500") ? new Response("no", { status: 500 }) : new Response("It works")
  );
  const [up, broken, dead] = [uniqueName("up.site"), uniqueName("broken"), uniqueName("dead")];
  await using file = await temporaryFile(
    "config.ini",
    `[kafka]\nbootstrap_servers = ${testStack().kafka}\n
[website_${up}]\nurl = ${site.url}\nregex = (?i)it WORKS\n
[website_${broken}]\nurl = ${site.url}500\n
[website_${dead}]\nurl = http://127.0.0.1:${freePorts(1)[0]}/\npooling_interval = 5\n`,
  );
  await runWell("producer", ["--once", "--config-path", file.path]);
  const records = (await Promise.all([up, broken, dead].map((topic) => readByConsole(topic, 1)))).flat();
  assert.deepEqual(
    records.map(({ key, value: { name, verdict, error, status_code, has_regex } }) => ({
      key,
      name,
      verdict,
      error,
      status_code,
      has_regex,
    })),
    [
      { key: up, name: up, verdict: "up", error: null, status_code: 200, has_regex: true },
      { key: broken, name: broken, verdict: "down", error: "status", status_code: 500, has_regex: null },
      { key: dead, name: dead, verdict: "down", error: "refused", status_code: null, has_regex: null },
    ],
  );
  for (const { timestamp, headers, value } of records) {
    assert.equal(timestamp, Date.parse(String(value["occurred_at"])));
    assert.equal(headers, "content-type:application/json,version:1");
  }
});

Deno.test("producer takes a site from flags, over mutual TLS", async () => {
  await using site = startSite(() => new Response("hello"));
  const name = uniqueName("flags");
  const { kafkaSsl, certificates } = testStack();
  await runWell("producer", [
    "--once",
    ...["--name", name, "--url", site.url, "--regex", "^hello$", "--pooling-interval", "5", "--timeout", "2s"],
    ...["--kafka-bootstrap-servers", kafkaSsl, "--kafka-security-protocol", "SSL"],
    ...["--kafka-ssl-cafile", `${certificates}/ca.pem`, "--kafka-ssl-certfile", `${certificates}/service.cert`],
    ...["--kafka-ssl-keyfile", `${certificates}/service.key`],
  ]);
  const [record] = await readByConsole(name, 1);
  assert.equal(record?.value["has_regex"], true);
});

Deno.test("producer takes a site from the environment, as an env file gives it", async () => {
  await using site = startSite(() => new Response("hello"));
  const name = uniqueName("env");
  const { kafkaSsl, certificates } = testStack();
  await runWell("producer", ["--once"], {
    env: {
      NAME: name,
      URL: site.url,
      REGEX: "missing",
      POOLING_INTERVAL: "10",
      KAFKA_BOOTSTRAP_SERVERS: kafkaSsl,
      KAFKA_SECURITY_PROTOCOL: "SSL",
      KAFKA_SSL_CAFILE: `${certificates}/ca.pem`,
      KAFKA_SSL_CERTFILE: `${certificates}/service.cert`,
      KAFKA_SSL_KEYFILE: `${certificates}/service.key`,
    },
  });
  const [record] = await readByConsole(name, 1);
  assert.deepEqual([record?.value["verdict"], record?.value["error"]], ["down", "regex"]);
});

Deno.test("producer exits 2 where the broker's certificate is not trusted", async () => {
  await using site = startSite(() => new Response("hello"));
  const { code, stderr } = await runProgram("producer", [
    "--once",
    "--url",
    site.url,
    `--kafka-bootstrap-servers=${testStack().kafkaSsl}`,
    "--kafka-security-protocol=SSL",
  ]);
  assert.equal(code, 2, stderr);
  assert.match(stderr, /Cannot connect to Kafka at 127\.0\.0\.1:\d+ over TLS: .*certificate/);
});

Deno.test("producer checks every interval, and publishes on SIGTERM what is under way", async () => {
  await using site = startSite(async () => {
    await new Promise((resolve) => setTimeout(resolve, 300));
    return new Response("slow");
  });
  const name = uniqueName("sigterm");
  await using producer = startProgram("producer", [
    ...["--name", name, "--url", site.url, "--interval", "400ms", "--timeout", "350ms"],
    ...kafkaFlags(),
  ]);
  const visits = await eventually(() => site.visits >= 5 && site.visits);
  const { code, stderr } = await producer.stop("SIGTERM");
  assert.equal(code, 0, stderr);
  assert.equal(site.visits, visits);
  const values = (await readByConsole(name, visits)).map(({ value }) => value);
  assert.equal(new Set(values.map(({ id }) => id)).size, visits);
  const due = values.map(({ scheduled_at }) => Date.parse(String(scheduled_at)));
  // A check that a busy machine makes too late is left out; none moves the others.
  for (const time of due) {
    const rest = Math.abs(time - due[0]!) % 400;
    assert.ok(Math.min(rest, 400 - rest) <= 2, `due ${time - due[0]!} ms after the first`);
  }
});

Deno.test("producer --once gives up after --drain-timeout, and says how many metrics Kafka has not", async () => {
  await using site = startSite(() => new Response("hello"));
  const { code, stderr } = await runProgram("producer", [
    "--once",
    "--drain-timeout=500ms",
    "--url",
    site.url,
    `--kafka-bootstrap-servers=127.0.0.1:${freePorts(1)[0]}`,
  ]);
  assert.equal(code, 1);
  assert.match(stderr, /Kafka has not taken 1 metric\(s\)/);
});

Deno.test("producer ends within ten seconds of SIGTERM though Kafka is away, and at once at a second signal", async () => {
  await using site = startSite(() => new Response("hello"));
  const args = ["--url", site.url, "--interval=200ms", `--kafka-bootstrap-servers=127.0.0.1:${freePorts(1)[0]}`];
  await using patient = startProgram("producer", args);
  await using hasty = startProgram("producer", args);
  await Promise.all([patient, hasty].map((producer) => producer.waitFor("Cannot use Kafka at")));
  const begun = performance.now();
  const { code, stderr } = await patient.stop("SIGTERM");
  assert.ok(performance.now() - begun < 10_000);
  assert.equal(code, 0);
  assert.match(stderr, /Kafka has not taken \d+ metric\(s\): they stay in '.*\/spool.db' for the next start/);
  const ended = hasty.stop("SIGINT");
  await hasty.waitFor("SIGINT: ending");
  Deno.kill(hasty.pid, "SIGINT");
  assert.equal((await ended).code, 130);
});

Deno.test("producer goes on checking while Kafka is away, and publishes all when it is back", async () => {
  await using site = startSite(() => new Response("hello"));
  const name = uniqueName("away");
  const [port] = freePorts(1);
  await using producer = startProgram("producer", [
    ...["--name", name, "--url", site.url, "--interval=200ms", `--kafka-bootstrap-servers=127.0.0.1:${port}`],
  ]);
  await producer.waitFor("Cannot use Kafka at");
  const before = await eventually(() => site.visits >= 5 && site.visits);
  // The broker comes back under that address: a relay to the real one, which then gives its own.
  await using _relay = relay(port!, testStack().kafka);
  await producer.waitFor("is back after");
  const { code } = await producer.stop("SIGTERM");
  assert.equal(code, 0);
  const times = (await readByConsole(name, site.visits)).map(({ value }) => Date.parse(String(value["occurred_at"])));
  assert.ok(times.length > before);
  assert.deepEqual(times, times.toSorted((a, b) => a - b));
});

Deno.test("producer --dry-run needs no broker and ends with the reader of its output", async () => {
  await using site = startSite(() => new Response("hello"));
  const { code, stdout } = await runWell("producer", ["--once", "--dry-run", "--url", site.url, "--regex", "h.llo"]);
  assert.equal(code, 0);
  const lines = stdout.trim().split("\n");
  assert.equal(lines.length, 1);
  assert.equal(JSON.parse(lines[0]!).has_regex, true);
});

Deno.test("producer that is halted for longer than a timeout reads the answer that has come, and alarms nobody", async () => {
  await using site = startSite(async () => {
    Deno.kill(producer.pid, "SIGSTOP");
    setTimeout(() => Deno.kill(producer.pid, "SIGCONT"), 2_000);
    await new Promise((resolve) => setTimeout(resolve, 50));
    return new Response("hello");
  });
  const limits = ["--timeout=600ms", "--first-byte-timeout=600ms", "--max-response-time=500ms"];
  await using producer = startProgram("producer", ["--once", "--dry-run", "--url", site.url, ...limits]);
  const { code, stdout, stderr } = await producer.ended;
  assert.equal(code, 0, stderr);
  const { verdict, error_message, response_time } = JSON.parse(stdout);
  assert.equal(verdict, "up", error_message);
  assert.ok(response_time >= 1_000, `${response_time} ms is what was measured`);
  assert.match(stderr, /Stood still for \d{4} ms, halted or with too much to do: .* of 1 check\(s\)/);
});

Deno.test("producer that is killed while Kafka is away publishes at its next start all that was checked, once", async () => {
  await using site = startSite(() => new Response("hello"));
  await using folder = await temporaryFile("config.ini", "");
  const name = uniqueName("killed");
  const env = { SPOOL_PATH: folder.path.replace("config.ini", "spool.db") };
  const args = ["--name", name, "--url", site.url, "--interval=100ms"];
  const away = [...args, `--kafka-bootstrap-servers=127.0.0.1:${freePorts(1)[0]}`];
  let waiting = 0;
  for (let kill = 0; kill < 3; kill++) {
    await using producer = startProgram("producer", away, { env });
    const before = site.visits;
    await eventually(() => site.visits >= before + 8);
    await producer.stop("SIGKILL");
    if (kill > 0) {
      const found = Number(/(\d+) metric\(s\) wait in the spool/.exec(producer.output.stderr)?.[1]);
      assert.ok(found > waiting);
      waiting = found;
    }
  }
  const { stderr } = await runWell("producer", [...args, "--once", ...kafkaFlags()], { env });
  const found = Number(/(\d+) metric\(s\) wait in the spool/.exec(stderr)?.[1]);
  // The checks that were under way at a kill are not there: one each, at most.
  assert.ok(found >= site.visits - 1 - 3 && found <= site.visits - 1, `${found} of ${site.visits}`);
  const values = (await readByConsole(name, found + 1)).map(({ value }) => value);
  assert.equal(new Set(values.map(({ id }) => id)).size, found + 1);
  const times = values.map(({ occurred_at }) => String(occurred_at));
  assert.deepEqual(times, times.toSorted());
});

Deno.test("producer goes on checking while Kafka is killed in the middle, and all arrives with the checks' own times", async () => {
  await using site = startSite(() => new Response("hello"));
  const folder = await Deno.makeTempDir();
  try {
    await using kafka = await startKafka({ folder });
    await using producer = startProgram("producer", [
      ...["--name", "outage", "--url", site.url, "--interval=100ms", "--timeout=1s"],
      `--kafka-bootstrap-servers=${kafka.bootstrapServers}`,
    ]);
    await eventually(() => site.visits >= 10);
    await kafka.kill("SIGKILL");
    const atKill = site.visits;
    await eventually(() => site.visits >= atKill + 30);
    await kafka.start();
    await producer.waitFor("is back after", 60_000);
    const { code, stderr } = await producer.stop("SIGTERM");
    assert.equal(code, 0, stderr);
    assert.doesNotMatch(stderr, /Kafka has not taken/);
    const records = await readAll("outage", kafka.bootstrapServers);
    const ids = new Set(records.map(({ value }) => value["id"]));
    assert.equal(ids.size, site.visits);
    const due = [...new Set(records.map(({ value }) => Date.parse(String(value["scheduled_at"]))))];
    assert.deepEqual(due, due.toSorted((a, b) => a - b));
    for (const { timestamp, value } of records) assert.equal(timestamp, Date.parse(String(value["occurred_at"])));
    // No gap but for checks that a busy machine left out.
    const longest = Math.max(...due.slice(1).map((time, i) => time - due[i]!));
    assert.ok(longest <= 1_000, `${longest} ms between two checks`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("producer publishes all sites to the topic of [kafka], keyed by site", async () => {
  await using site = startSite(() => new Response("hello"));
  const topic = uniqueName("shared");
  await using file = await temporaryFile(
    "config.ini",
    `[kafka]\nbootstrap_servers = ${testStack().kafka}\ntopic = ${topic}\npartitions = 1\n
[website_a]\nurl = ${site.url}\n
[website_b]\nurl = ${site.url}\n`,
  );
  await runWell("producer", ["--once", "--config-path", file.path]);
  const records = await readByConsole(topic, 2);
  assert.deepEqual(records.map(({ key, value }) => `${key} ${value["name"]}`).sort(), ["a a", "b b"]);
});

Deno.test("producer takes a changed file: new sites start, gone ones stop, unchanged ones keep their place in time", async () => {
  await using kept = startSite(() => new Response("hello"));
  await using gone = startSite(() => new Response("hello"));
  await using late = startSite(() => new Response("hello"));
  const [keptName, goneName, lateName] = [uniqueName("kept"), uniqueName("gone"), uniqueName("late")];
  const section = (name: string, url: string) => `[website_${name}]\nurl = ${url}\ninterval = 300ms\n\n`;
  const kafka = `[kafka]\nbootstrap_servers = ${testStack().kafka}\n\n`;
  await using file = await temporaryFile(
    "config.ini",
    kafka + section(keptName, kept.url) + section(goneName, gone.url),
  );
  await using producer = startProgram("producer", ["--config-path", file.path]);
  await eventually(() => kept.visits >= 3 && gone.visits >= 3);
  await Deno.writeTextFile(`${file.path}~`, kafka + section(keptName, kept.url) + section(lateName, late.url));
  await Deno.rename(`${file.path}~`, file.path);
  await producer.waitFor("again: 2 site(s), 1 of them new, 1 gone");
  const atReload = [kept.visits, gone.visits] as const;
  await eventually(() => late.visits >= 4 && kept.visits >= atReload[0] + 4);
  assert.ok(gone.visits <= atReload[1] + 1, "a check that was under way may still have come");
  const { code, stderr } = await producer.stop("SIGTERM");
  assert.equal(code, 0, stderr);
  const values = (await readByConsole(keptName, kept.visits)).map(({ value }) => value);
  const due = values.map(({ scheduled_at }) => Date.parse(String(scheduled_at)));
  for (const time of due) {
    const rest = Math.abs(time - due[0]!) % 300;
    assert.ok(Math.min(rest, 300 - rest) <= 2, `due ${time - due[0]!} ms after the first`);
  }
  assert.match(stderr, /Began \d+ check\(s\), half of them within [\d.]+ ms of their time/);
});

Deno.test("producer reads its file again at SIGHUP, and lives on where it is wrong", async () => {
  await using site = startSite(() => new Response("hello"));
  const text = `[website_a]\nurl = ${site.url}\ninterval = 200ms\n`;
  await using file = await temporaryFile("config.ini", text);
  await using producer = startProgram("producer", ["--dry-run", "--config-path", file.path]);
  await eventually(() => site.visits >= 2);
  Deno.kill(producer.pid, "SIGHUP");
  await producer.waitFor("again: 1 site(s), 0 of them new, 0 gone");
  await Deno.writeTextFile(file.path, text.replace("200ms", "never"));
  Deno.kill(producer.pid, "SIGHUP");
  await producer.waitFor(
    `are wrong, those before stay in force: Cannot read interval of website 'a' (${file.path}:3): expected a ` +
      `duration such as 10s, got 'never'`,
  );
  const visits = site.visits;
  await eventually(() => site.visits >= visits + 3);
  assert.equal((await producer.stop("SIGTERM")).code, 0);
});

Deno.test("producer lets the check of a site that is gone end, and publishes it", async () => {
  const asked = Promise.withResolvers<void>();
  const answer = Promise.withResolvers<void>();
  await using slow = startSite(async () => {
    asked.resolve();
    await answer.promise;
    return new Response("slow");
  });
  await using other = startSite(() => new Response("hello"));
  const section = (name: string, url: string) => `[website_${name}]\nurl = ${url}\ninterval = 500ms\ntimeout = 20\n\n`;
  await using file = await temporaryFile("config.ini", section("slow", slow.url) + section("other", other.url));
  await using producer = startProgram("producer", ["--dry-run", "--config-path", file.path]);
  await asked.promise;
  await Deno.writeTextFile(file.path, section("other", other.url));
  await producer.waitFor("0 of them new, 1 gone");
  answer.resolve();
  const metric = await eventually(() =>
    producer.output.stdout.split("\n").find((line) => line.includes('"name":"slow"'))
  );
  assert.equal(JSON.parse(metric).verdict, "up");
  assert.equal((await producer.stop("SIGTERM")).code, 0);
  assert.equal(slow.visits, 1);
});

Deno.test("producer says that a maintained site is so, or does not check it", async () => {
  await using marked = startSite(() => new Response("no", { status: 503 }));
  await using skipped = startSite(() => new Response("hello"));
  await using file = await temporaryFile(
    "config.ini",
    `[website_marked]\nurl = ${marked.url}\nmaintenance = * * * * * 1h\ntags = team = web\n
[website_skipped]\nurl = ${skipped.url}\nmaintenance = * * * * * 1h\nmaintenance_checks = skip\n`,
  );
  const { stdout } = await runWell("producer", ["--once", "--dry-run", "--config-path", file.path]);
  const metrics = stdout.trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(metrics.map(({ name, verdict, tags }) => ({ name, verdict, tags })), [
    { name: "marked", verdict: "down", tags: { team: "web", maintenance: "true" } },
  ]);
  assert.equal(skipped.visits, 0);
});

Deno.test("producer checks a site that is down at its failing interval", async () => {
  let answer = 503;
  await using site = startSite(() => new Response("", { status: answer }));
  const args = ["--dry-run", "--name=flaky", "--url", site.url, "--interval=10m", "--failing-interval=100ms"];
  await using file = await temporaryFile("config.ini", "");
  // The first check comes within ten minutes: by a cron expression it comes at once.
  const byCron = args.map((arg) => arg === "--interval=10m" ? "--cron=* * * * * *" : arg);
  await using producer = startProgram("producer", [...byCron, "--config-path", file.path]);
  await eventually(() => site.visits >= 20);
  answer = 200;
  const { stdout } = await eventually(() => producer.output.stdout.includes('"up"') && producer.output);
  const due = stdout.trim().split("\n").map((line) => Date.parse(JSON.parse(line).scheduled_at));
  const gaps = due.slice(1).map((time, i) => time - due[i]!);
  assert.ok(gaps.filter((gap) => Math.abs(gap - 100) <= 2).length >= 10, `${gaps}`);
  assert.equal((await producer.stop("SIGTERM")).code, 0);
});

Deno.test("producer has no more checks in flight than it may, and counts no waiting", async () => {
  let [now, most] = [0, 0];
  await using site = startSite(async () => {
    most = Math.max(most, ++now);
    await new Promise((resolve) => setTimeout(resolve, 200));
    now--;
    return new Response("hello");
  });
  const sections = Array.from({ length: 12 }, (_, i) => `[website_s${i}]\nurl = ${site.url}${i}\n`);
  await using file = await temporaryFile("config.ini", sections.join("\n"));
  const args = ["--once", "--dry-run", "--max-checks-per-host=3", "--config-path", file.path];
  const { stdout } = await runWell("producer", args);
  const metrics = stdout.trim().split("\n").map((line) => JSON.parse(line));
  assert.equal(metrics.length, 12);
  assert.equal(most, 3);
  const begun = metrics.map(({ occurred_at }) => Date.parse(occurred_at)).sort((a, b) => a - b);
  assert.ok(begun.at(-1)! - begun[0]! >= 590, "they began one after the other");
  // Had the wait counted, the last ones would have taken 800 ms and more.
  const [fastest] = metrics.map(({ response_time }) => response_time).sort((a, b) => a - b);
  const last = metrics.find(({ occurred_at }) => Date.parse(occurred_at) === begun.at(-1));
  assert.ok(last.response_time < fastest + 400, `${last.response_time} ms, ${fastest} ms`);
});

Deno.test("producer has few checks in flight where the limit on open files is low, and says so", async () => {
  await using site = startSite(() => new Response("hello"));
  const sections = Array.from({ length: 100 }, (_, i) => `[website_s${i}]\nurl = ${site.url}${i}\ninterval = 1\n`);
  await using file = await temporaryFile("config.ini", sections.join("\n"));
  await using producer = startProgram("producer", ["--dry-run", "--config-path", file.path], { openFiles: 160 });
  await producer.waitFor(/At most \d+ check\(s\) in flight, not 100: the system lets this process open \d+ more files/);
  await eventually(() => site.visits >= 300);
  const { code, stdout, stderr } = await producer.stop("SIGTERM");
  assert.equal(code, 0, stderr);
  assert.doesNotMatch(stdout, /"down"/);
  assert.doesNotMatch(stderr, /Cannot check/);
});

Deno.test("producer lists what Kafka refused, and sends it when it is to be tried again", async () => {
  await using site = startSite(() => new Response("hello"));
  await using file = await temporaryFile("config.ini", "");
  const name = uniqueName("toolarge");
  const env = { SPOOL_PATH: file.path.replace("config.ini", "spool.db") };
  const kafka = new Kafka({ brokers: [testStack().kafka], logLevel: logLevel.NOTHING });
  const admin = kafka.admin();
  await admin.connect();
  const limit = (value: string) => [{ name: "max.message.bytes", value }];
  await admin.createTopics({ topics: [{ topic: name, configEntries: limit("200") }] });
  const args = ["--once", "--name", name, "--url", site.url, ...kafkaFlags()];
  const { code, stderr } = await runProgram("producer", args, { env });
  assert.equal(code, 1, stderr);
  assert.match(stderr, new RegExp(`Kafka refuses metrics of topic '${name}', which are set aside`));
  const { stdout } = await runWell("producer", ["--list-refused"], { env });
  const { topic, reason, refused_at, metric } = JSON.parse(stdout);
  assert.deepEqual([topic, metric.name, metric.verdict], [name, name, "up"]);
  assert.match(reason, /MESSAGE_TOO_LARGE/);
  assert.ok(Math.abs(Date.now() - Date.parse(refused_at)) < 60_000);
  await admin.alterConfigs({
    validateOnly: false,
    resources: [{ type: 2, name, configEntries: limit("100000") }],
  });
  await admin.disconnect();
  assert.match((await runWell("producer", ["--retry-refused"], { env })).stdout, /^1 metric\(s\) wait for Kafka again/);
  await runWell("producer", args, { env });
  const ids = (await readByConsole(name, 2)).map(({ value }) => value["id"]);
  assert.equal(ids[0], metric.id);
  assert.equal((await runWell("producer", ["--list-refused"], { env })).stdout, "");
});

Deno.test("producer exits 2 where another has the spool, or it may not write there", async () => {
  await using site = startSite(() => new Response("hello"));
  await using file = await temporaryFile("config.ini", "");
  const env = { SPOOL_PATH: file.path.replace("config.ini", "spool.db") };
  const args = ["--url", site.url, "--interval=1s", ...kafkaFlags()];
  await using first = startProgram("producer", args, { env });
  await first.waitFor("Checking 1 site");
  const second = await runProgram("producer", args, { env });
  assert.equal(second.code, 2);
  assert.match(second.stderr, /Cannot open the spool '.*spool\.db': process \d+ uses it/);
  const denied = await runProgram("producer", [...args, "--spool-path=/var/elsewhere/spool.db"], { env });
  assert.equal(denied.code, 2);
  assert.match(denied.stderr, /Cannot open the spool '\/var\/elsewhere\/spool\.db' .*--allow-write=\/var\/elsewhere/);
  assert.doesNotMatch(denied.stderr, /\n.*\n/);
});

/** Reads all of a topic of a broker. */
async function readAll(topic: string, server: string): Promise<ConsoleRecord[]> {
  const admin = new Kafka({ brokers: [server], logLevel: logLevel.NOTHING }).admin();
  await admin.connect();
  const [offsets] = await admin.fetchTopicOffsets(topic);
  await admin.disconnect();
  return await readByConsole(topic, Number(offsets?.high), server);
}

function relay(port: number, target: string): AsyncDisposable {
  const [hostname, targetPort] = target.split(":") as [string, string];
  const listener = Deno.listen({ hostname: "127.0.0.1", port });
  const open = new Set<Deno.Conn>();
  const done = (async () => {
    for await (const client of listener) {
      const server = await Deno.connect({ hostname, port: Number(targetPort) });
      open.add(client).add(server);
      void client.readable.pipeTo(server.writable).catch(() => {});
      void server.readable.pipeTo(client.writable).catch(() => {});
    }
  })();
  return {
    async [Symbol.asyncDispose]() {
      listener.close();
      await done;
      for (const connection of open) {
        try {
          connection.close();
        } catch {
          // The other end was first.
        }
      }
    },
  };
}
