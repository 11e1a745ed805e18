import assert from "node:assert/strict";
import {
  byteSize,
  choice,
  duration,
  formatBytes,
  formatDuration,
  header,
  hosts,
  httpUrl,
  integer,
  pair,
  pattern,
  proxyUrl,
  retention,
  servers,
  text,
  token,
  yesNo,
} from "../lib/value.ts";

const minute = duration({ minMs: 100, maxMs: 60_000 });

Deno.test.each(
  [
    ["10", 10_000],
    ["10s", 10_000],
    [" 10 s ", 10_000],
    ["1m", 60_000],
    ["0.5", 500],
    [".5", 500],
    ["1500ms", 1_500],
    ["0.001h", 3_600],
    ["333.3333ms", 333],
  ] as const,
)("duration() takes '%s' for %s ms", (value, expected) => {
  assert.equal(minute(value), expected);
});

Deno.test.each(["", "often", "10 seconds", "10S", "1e3", "5,5", "s", "1m30s", "١٠"])(
  "duration() refuses '%s' as no duration",
  (value) => {
    assert.throws(() => minute(value), { name: "SyntaxError", message: "expected a duration such as 10s" });
  },
);

Deno.test.each(["0", "-5", "99ms", "61s", "0.002d", "9".repeat(400)])(
  "duration() refuses '%s' as out of range",
  (value) => {
    assert.throws(() => minute(value), { name: "RangeError", message: "expected a duration from 100ms to 1m" });
  },
);

Deno.test.each(
  [[0, "0ms"], [1, "1ms"], [1_500, "1500ms"], [90_000, "90s"], [3_600_000, "1h"], [172_800_000, "2d"]] as const,
)(
  "formatDuration() writes %s as %s",
  (ms, expected) => {
    assert.equal(formatDuration(ms), expected);
    assert.equal(duration({ minMs: 0, maxMs: Infinity })(expected), ms);
  },
);

Deno.test("integer() takes whole numbers within its bounds", () => {
  assert.deepEqual(["1", " 9 ", "+5", "05"].map(integer(1, 9)), [1, 9, 5, 5]);
  for (const value of ["", "0", "10", "-1", "5.0", "0x5", "five", "5 # five"]) {
    assert.throws(() => integer(1, 9)(value), { message: "expected a whole number from 1 to 9" });
  }
});

Deno.test("choice() takes its words in upper or lower case", () => {
  const parse = choice(["PLAINTEXT", "SSL"]);
  assert.deepEqual(["ssl", " Plaintext "].map(parse), ["SSL", "PLAINTEXT"]);
  assert.throws(() => parse("SASL"), { name: "RangeError", message: "expected one of PLAINTEXT, SSL" });
});

Deno.test("text() takes what is not empty and has no NUL", () => {
  assert.equal(text()(" a "), " a ");
  assert.throws(() => text()(""), { message: "expected a text that is not empty" });
  assert.throws(() => text()("a\0"), { message: "expected a text without NUL characters" });
});

Deno.test.each(
  [
    ["https://example.com", "https://example.com/"],
    ["HTTP://EXAMPLE.com:80/A?b#c", "http://example.com/A?b#c"],
    ["http://[::1]:8080/", "http://[::1]:8080/"],
    ["http://münchen.de/", "http://xn--mnchen-3ya.de/"],
    ["http://user:pass@example.com/", "http://user:pass@example.com/"],
  ] as const,
)("httpUrl() takes %s", (value, expected) => {
  assert.equal(httpUrl()(value).href, expected);
});

const NO_URL = "expected a URL such as https://example.com/";
const NO_HTTP = "expected a URL that begins with http:// or https://";
const WHITE_SPACE = "expected a URL without white space, such as https://example.com/";

Deno.test.each(
  [
    ["", NO_URL],
    ["example.com", NO_URL],
    ["http://", NO_URL],
    ["http://exa mple.com/", NO_URL],
    ["http://example.com:99999/", NO_URL],
    ["localhost:8080", NO_HTTP],
    ["ftp://example.com/", NO_HTTP],
    ["data:text/plain,a", NO_HTTP],
    ["http:example.com", NO_HTTP],
    ["http:///example.com/", NO_HTTP],
    ["http:\\\\example.com\\", NO_HTTP],
    ["https://example.com/ # home", WHITE_SPACE],
    ["https://example.com/\ntimeout", WHITE_SPACE],
    ["http://example.com:25/", 'expected a port other than 25, which fetch refuses (see "port blocking")'],
    ["http://example.com:0/", 'expected a port other than 0, which fetch refuses (see "port blocking")'],
  ] as const,
)("httpUrl() refuses '%s'", (value, message) => {
  assert.throws(() => httpUrl()(value), { message });
});

Deno.test("httpUrl() refuses the ports that fetch refuses, and no other", async () => {
  const refused: number[] = [];
  const blocked: number[] = [];
  for (let port = 1; port <= 65_535; port++) {
    if (port === 80) continue;
    try {
      httpUrl()(`http://127.0.0.1:${port}/`);
    } catch {
      refused.push(port);
    }
  }
  // Those beside them too; nothing is sent to a port that is refused.
  for (const port of new Set(refused.flatMap((port) => [port - 1, port, port + 1]))) {
    const error = await fetch(`http://127.0.0.1:${port}/`, { signal: AbortSignal.timeout(200) })
      .then((response) => response.body?.cancel(), (error) => error);
    if (/blocked/.test(String(error))) blocked.push(port);
  }
  assert.deepEqual(refused, blocked.filter((port) => port > 0).sort((a, b) => a - b));
});

Deno.test("pattern() refuses an empty pattern, which matches everything", () => {
  assert.throws(() => pattern()(""), { message: "expected a regular expression that is not empty" });
});

Deno.test("hosts() takes names and addresses, several separated by commas, with and without port", () => {
  for (const host of ["db", "db.example.com", "10.0.0.1", "::1", "fe80::1%eth0", "größe.de", "my_db"]) {
    assert.deepEqual(hosts()(host), [{ host, port: undefined }]);
    assert.deepEqual(hosts()(`${host.includes(":") ? `[${host}]` : host}:1`), [{ host, port: 1 }]);
  }
  assert.deepEqual(hosts()("a,b:5433").map(({ host }) => host), ["a", "b"]);
  for (
    const value of ["", "a,", "db:0", "db:65536", "db:x", "postgres://db/", "a b", "db # home", "/var/run/postgresql"]
  ) {
    assert.throws(() => hosts()(value), {
      message: "expected a host name or an IP address, with :port if need be, several separated by commas",
    });
  }
});

Deno.test("servers() takes host:port, several separated by commas, 9092 where none is given", () => {
  assert.deepEqual(servers()("a:1, b.example.com ,10.0.0.1:65535,,my_broker"), [
    "a:1",
    "b.example.com:9092",
    "10.0.0.1:65535",
    "my_broker:9092",
  ]);
  assert.deepEqual(servers()(" , "), []);
});

Deno.test.each(["a:", "a:0", "a:65536", "a:b", "a b", "a;b", "PLAINTEXT://a:9092", "[::1]:9092", "::1", "a@b:1"])(
  "servers() refuses '%s'",
  (value) => {
    assert.throws(() => servers()(value), {
      message: "expected host:port with a name or IPv4 address, several separated by commas",
    });
  },
);

Deno.test.each(
  [
    ["65536", 65_536],
    ["64K", 65_536],
    ["64 kB", 65_536],
    ["512MiB", 536_870_912],
    ["1.5g", 1_610_612_736],
    ["1T", 1_099_511_627_776],
  ] as const,
)("byteSize() takes '%s' for %s bytes", (text, bytes) => {
  const parse = byteSize(1);
  assert.equal(parse(text), bytes);
  assert.equal(parse(formatBytes(bytes)), bytes);
});

Deno.test.each([["much"], [""], ["-1"], ["1 X"], ["1G1"]])("byteSize() refuses '%s'", (text) => {
  assert.throws(() => byteSize(1)(text), { name: "SyntaxError", message: /^expected a number of bytes such as / });
});

Deno.test("byteSize() refuses less than the least", () => {
  assert.throws(() => byteSize(65_536)("63K"), { name: "RangeError", message: "expected at least 64K" });
});

Deno.test("retention() takes a duration, or forever for -1", () => {
  const parse = retention({ minMs: 60_000, maxMs: 86_400_000 });
  assert.deepEqual(["1h", "forever", "FOREVER"].map(parse), [3_600_000, -1, -1]);
  assert.throws(() => parse("long"), { name: "SyntaxError", message: "expected a duration such as 7d, or forever" });
  assert.throws(() => parse("2d"), RangeError);
});

Deno.test("yesNo() takes what configparser takes, in any case", () => {
  assert.deepEqual(["yes", "On", "TRUE", "1"].map(yesNo()), [true, true, true, true]);
  assert.deepEqual(["no", "Off", "FALSE", " 0 "].map(yesNo()), [false, false, false, false]);
  for (const text of ["", "y", "2", "yes no"]) assert.throws(() => yesNo()(text), { message: "expected yes or no" });
});

Deno.test("pair() splits at the first delimiter", () => {
  assert.deepEqual(pair("=")(" a = b = c "), ["a", "b = c"]);
  assert.deepEqual(pair("=")("a="), ["a", ""]);
  for (const text of ["", "a", "= b", "a: b"]) {
    assert.throws(() => pair("=")(text), { message: "expected key = value" });
  }
});

Deno.test("header() takes names and values as HTTP has them", () => {
  assert.deepEqual(header()("X-Key:  a: b\té "), ["x-key", "a: b\té"]);
  assert.deepEqual(header()("a:"), ["a", ""]);
  for (const text of ["", "a b: c", "é: c", ": c", "a: b\nc: d", "a: b\0", "a: \u{1f512}"]) {
    assert.throws(() => header()(text), { name: "SyntaxError" }, text);
  }
});

Deno.test("token() takes what bearer authentication takes", () => {
  assert.equal(token()("aZ0-._~+/=="), "aZ0-._~+/==");
  for (const text of ["", "a b", "=a", "a\n", "ä"]) assert.throws(() => token()(text), { name: "SyntaxError" }, text);
});

Deno.test("proxyUrl() takes an address with user and password, and nothing behind it", () => {
  for (const text of ["http://a", "https://a:1/", "socks5://u:p@[::1]:2", "HTTP://a"]) {
    assert.equal(proxyUrl()(text).href, new URL(text).href);
  }
  for (const text of ["", "a:1", "http://", "ftp://a", "http://a/b", "http://a?b", "http://a#b", "socks5://a/b"]) {
    assert.throws(() => proxyUrl()(text), { name: "SyntaxError" }, text);
  }
});
