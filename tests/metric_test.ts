import assert from "node:assert/strict";
import { validate, version } from "uuid";
import {
  type Column,
  COLUMN_NAMES,
  type ColumnName,
  COLUMNS,
  decodeMetric,
  encodeMetric,
  isoTime,
  type KafkaMessage,
  type Metric,
  MetricError,
  metricId,
} from "../lib/metric.ts";
import { PAGES } from "../local/docs.ts";

/** A metric with a value in each column. */
const METRIC: Metric = {
  id: "0195b1c2-7d4e-7abc-8def-0123456789ab",
  occurred_at: "2026-01-02T03:04:05.678Z",
  scheduled_at: "2026-01-02T03:04:05.000Z",
  name: "apache",
  url: "https://www.apache.org/",
  method: "GET",
  location: "Frankfurt",
  producer: "one",
  verdict: "down",
  error: "regex",
  failed_phase: "expectation",
  error_message: "no match for the pattern",
  attempt: 2,
  final: true,
  status_code: 200,
  response_time: 123.456,
  elapsed_ms: 130,
  first_byte_ms: 100.006,
  download_ms: 23.45,
  regex: "caf\u00e9 \u{1f600}\n",
  has_regex: false,
  ip: "2001:db8::1",
  dns_ms: 0,
  connect_ms: 1.5,
  tls_ms: 1e-7,
  tls_version: "TLSv1.3",
  cert_subject: "CN=www.apache.org",
  cert_issuer: "CN=authority",
  cert_expires_at: "2027-01-02T03:04:05Z",
  redirects: 1,
  final_url: "https://www.apache.org/en",
  body_bytes: 2 ** 40,
  body_sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
  failed: [{ expectation: "regex", expected: "caf\u00e9", actual: null }],
  tags: { team: "web", "a\\u0000": "\u{1f600}" },
  excerpt: "It\tworks",
};

function messageOf(value: string | Uint8Array | null, place: Partial<KafkaMessage> = {}): KafkaMessage {
  return {
    topic: "apache",
    partition: 0,
    offset: "42",
    timestamp: Date.UTC(2026, 0, 2, 3, 4, 5, 678),
    key: null,
    value: typeof value === "string" ? new TextEncoder().encode(value) : value,
    headers: {},
    ...place,
  };
}

function decode(value: unknown, place?: Partial<KafkaMessage>): Metric {
  return decodeMetric(messageOf(JSON.stringify(value), place));
}

function assertRefused(decode: () => unknown, message: string): void {
  assert.throws(
    decode,
    (error) => error instanceof MetricError && error.message === message || assert.fail(String(error)),
  );
}

Deno.test("decodeMetric() brings back what encodeMetric() was given", () => {
  assert.deepEqual(decodeMetric(messageOf(encodeMetric(METRIC))), METRIC);
});

Deno.test("decodeMetric() brings back nulls", () => {
  const metric = Object.fromEntries(
    COLUMN_NAMES.map((name) => [name, "required" in COLUMNS[name] ? METRIC[name] : null]),
  ) as Metric;
  assert.deepEqual(decodeMetric(messageOf(encodeMetric(metric))), metric);
});

Deno.test("decodeMetric() has the columns in their order, whatever the order of the message", () => {
  const reversed = Object.fromEntries(Object.entries(METRIC).reverse());
  assert.deepEqual(Object.entries(decode(reversed)), Object.entries(METRIC));
});

Deno.test("decodeMetric() passes over properties that it does not know", () => {
  const { tags: _, ...rest } = METRIC;
  assert.deepEqual(decode({ ...METRIC, weather: "fine", ocurred_at: "" }), METRIC);
  assert.deepEqual(decode({ weather: "fine", ...rest }), { ...METRIC, tags: null });
});

const EXPECTED: Record<Column["type"], string> = {
  uuid: "a UUID",
  timestamptz: "a time in ISO 8601 with a zone",
  text: "a text without NUL",
  inet: "an IP address",
  integer: "a whole number of 32 bits",
  bigint: "a whole number",
  "double precision": "a number",
  boolean: "true or false",
  jsonb: "JSON without NUL and lone surrogates",
};

function expected(name: ColumnName): string {
  const { type, values }: Column = COLUMNS[name];
  return values === undefined ? EXPECTED[type] : `one of ${values.join(", ")}`;
}

Deno.test.each([...COLUMN_NAMES])("decodeMetric() reads a message without %s, unless it must be there", (name) => {
  const { [name]: _, ...rest } = METRIC;
  for (const metric of [rest, { ...METRIC, [name]: null }]) {
    // Without an identity, and only then, it may be one of the Python program's.
    if ("required" in COLUMNS[name]) {
      assertRefused(() => decode(metric), `expected ${expected(name)} as ${name}, got nothing`);
    } else assert.deepEqual(decode(metric), { ...METRIC, [name]: null });
  }
});

/** What no column of a type takes, beside what is of another type. */
const BAD_VALUES: Record<Column["type"], readonly unknown[]> = {
  uuid: ["", "0195b1c2", "0195b1c27d4e7abc8def0123456789ab", "{0195b1c2-7d4e-7abc-8def-0123456789ab}"],
  timestamptz: [
    "",
    "now",
    "infinity",
    "2026-01-02",
    "2026-01-02T03:04:05",
    "2026-01-02T25:04:05Z",
    "2026-13-02T03:04:05Z",
    "2026-02-29T03:04:05Z",
    "2026-04-31T03:04:05Z",
    "0000-01-01T00:00:00Z",
    "Fri, 02 Jan 2026 03:04:05 GMT",
    "2026-01-02T03:04:05Z\n",
  ],
  text: ["a\0b"],
  inet: ["", "localhost", "::::", "1.2.3", "1.2.3.4.5", "fe80::1%eth0", "10.0.0.0/8"],
  integer: [0.5, 2 ** 31, -(2 ** 31) - 1, "1"],
  bigint: [0.5, 2 ** 53, "1"],
  "double precision": ["1", "NaN"],
  boolean: [0, "true"],
  jsonb: ["a\0b", { "\0": 1 }, [["\ud800"]], { a: "\\\0" }],
};

const BAD_CASES = COLUMN_NAMES.flatMap((name) => {
  const { type, values }: Column = COLUMNS[name];
  const foreign = type === "jsonb" ? [] : [["x"], { x: "x" }, ...(type === "text" ? [1, true] : ["x"])];
  return [...foreign, ...(values === undefined ? BAD_VALUES[type] : ["", "UP", 1])].map((value) => ({ name, value }));
});

Deno.test.each(BAD_CASES)("decodeMetric() refuses %j", ({ name, value }) => {
  const got = JSON.stringify(value);
  assertRefused(() => decode({ ...METRIC, [name]: value }), `expected ${expected(name)} as ${name}, got ${got}`);
});

const GOOD_VALUES: Record<Column["type"], readonly unknown[]> = {
  uuid: ["FFFFFFFF-ffff-ffff-ffff-ffffffffffff", "00000000-0000-0000-0000-000000000000"],
  timestamptz: [
    "2026-01-02T03:04:05.678901+00:00",
    "2026-01-02 03:04:05+0530",
    "2024-02-29T03:04Z",
    "2026-12-31T23:59:59-08:00",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999Z",
  ],
  text: ["", "\\", "\ufffd", "\u{10ffff}"],
  inet: ["127.0.0.1", "::", "::ffff:1.2.3.4", "2001:DB8::1"],
  integer: [0, -(2 ** 31), 2 ** 31 - 1],
  bigint: [0, 2 ** 53 - 1, -(2 ** 53) + 1],
  "double precision": [0, -1.5, 1e308, 5e-324],
  boolean: [true, false],
  jsonb: [0, false, "", "\\u0000", "\\\\u0000", [], {}, { "\u{1f600}": [null] }],
};

Deno.test.each(
  COLUMN_NAMES.filter((name) => !("values" in COLUMNS[name]))
    .flatMap((name) => GOOD_VALUES[COLUMNS[name].type].map((value) => ({ name, value }))),
)("decodeMetric() takes %j", ({ name, value }) => {
  assert.deepEqual(decode({ ...METRIC, [name]: value })[name], value);
});

Deno.test("decodeMetric() cuts what it got short", () => {
  assertRefused(
    () => decode({ ...METRIC, attempt: "x".repeat(1_000) }),
    `expected a whole number of 32 bits as attempt, got "${"x".repeat(79)}`,
  );
});

Deno.test("decodeMetric() takes half a surrogate pair in a text, which is no character in UTF-8", () => {
  const { name } = decodeMetric(messageOf(JSON.stringify(METRIC).replace('"apache"', '"\\ud800"')));
  assert.equal(new TextDecoder().decode(new TextEncoder().encode(name)), "\ufffd");
});

Deno.test("decodeMetric() takes JSON of any depth", () => {
  const tags = "[".repeat(100_000) + "]".repeat(100_000);
  const { tags: _, ...rest } = METRIC;
  const text = `{"tags":${tags},${JSON.stringify(rest).slice(1)}`;
  assert.equal(JSON.stringify(decodeMetric(messageOf(text)).tags), tags);
});

Deno.test.each([
  [null, "expected a metric, got a message without a value"],
  ["", "expected JSON"],
  ["{", "expected JSON"],
  ['{"a":1}}', "expected JSON"],
  ['"no JSON within"', "expected JSON"],
  [new Uint8Array([0x22, 0xff, 0x22]), "expected text in UTF-8"],
  ["null", "expected a JSON object"],
  ["1", "expected a JSON object"],
  ["[]", "expected a JSON object"],
  ['"[]"', "expected a JSON object"],
  ["{}", "expected a UUID as id, got nothing"],
  ['{"id":"x"}', 'expected a UUID as id, got "x"'],
])("decodeMetric() refuses %j: %s", (value, message) => {
  assertRefused(() => decodeMetric(messageOf(value)), message);
});

/** A message as the Python program writes it. */
const OLD = {
  name: "apache",
  url: "https://www.apache.org/",
  regex: "Apache",
  has_regex: true,
  status_code: 200,
  response_time: 0.25,
  ocurred_at: "2020-05-06T07:08:09.123456",
};

const OLD_METRIC: Metric = {
  ...Object.fromEntries(COLUMN_NAMES.map((name) => [name, null])) as unknown as Metric,
  id: decode(OLD).id,
  occurred_at: "2020-05-06T07:08:09.123456Z",
  name: "apache",
  url: "https://www.apache.org/",
  verdict: "up",
  attempt: 1,
  final: true,
  status_code: 200,
  response_time: 0.25,
  regex: "Apache",
  has_regex: true,
};

Deno.test.each<{ what: string; old: Record<string, unknown>; expected: Partial<Metric> }>([
  { what: "as it is", old: {}, expected: {} },
  {
    what: "without microseconds",
    old: { ocurred_at: "2020-05-06T07:08:09" },
    expected: { occurred_at: "2020-05-06T07:08:09Z" },
  },
  {
    what: "with a blank in its time",
    old: { ocurred_at: "2020-05-06 07:08:09.1" },
    expected: { occurred_at: "2020-05-06T07:08:09.1Z" },
  },
  {
    what: "with a zone",
    old: { ocurred_at: "2020-05-06T07:08:09+02:00" },
    expected: { occurred_at: "2020-05-06T07:08:09+02:00" },
  },
  { what: "without a time", old: { ocurred_at: "" }, expected: { occurred_at: "2026-01-02T03:04:05.678Z" } },
  { what: "with an empty pattern", old: { regex: "", has_regex: false }, expected: { regex: null, has_regex: null } },
  { what: "with no pattern", old: { regex: null, has_regex: null }, expected: { regex: null, has_regex: null } },
  { what: "of a pattern that did not match", old: { has_regex: false }, expected: { has_regex: false } },
  {
    what: "of a status that is an error",
    old: { status_code: 404 },
    expected: { status_code: 404, verdict: "down", error: "status", failed_phase: "expectation" },
  },
  {
    what: "of no response",
    old: { status_code: 0, response_time: 0, has_regex: false },
    expected: { status_code: null, verdict: "down", response_time: null, has_regex: null },
  },
  {
    what: "of no response, in nulls",
    old: { status_code: null, response_time: null, has_regex: null },
    expected: { status_code: null, verdict: "down", response_time: null, has_regex: null },
  },
])(
  "decodeMetric() reads a message of the Python program $what, in JSON and in JSON within JSON",
  ({ old, expected }) => {
    for (const text of [JSON.stringify({ ...OLD, ...old }), JSON.stringify(JSON.stringify({ ...OLD, ...old }))]) {
      const metric = decodeMetric(messageOf(text));
      assert.deepEqual(metric, { ...OLD_METRIC, ...expected, id: metric.id });
      assert.ok(validate(metric.id));
      assert.equal(version(metric.id), 8);
    }
  },
);

Deno.test.each([
  [{ status_code: "200" }, 'expected a whole number of 32 bits as status_code, got "200"'],
  [{ ocurred_at: "yesterday" }, 'expected a time in ISO 8601 with a zone as occurred_at, got "yesterday"'],
  [{ ocurred_at: 1588748889 }, "expected a time in ISO 8601 with a zone as occurred_at, got 1588748889"],
  [
    { ocurred_at: "2020-02-30T00:00:00" },
    'expected a time in ISO 8601 with a zone as occurred_at, got "2020-02-30T00:00:00Z"',
  ],
  [{ name: null }, "expected a text without NUL as name, got nothing"],
  [{ url: "\0" }, 'expected a text without NUL as url, got "\\u0000"'],
])("decodeMetric() refuses a message of the Python program with %j", (change, message) => {
  assertRefused(() => decode({ ...OLD, ...change }), message);
});

Deno.test("decodeMetric() gives a message of the Python program the same identity for ever", () => {
  const place = { topic: "apache", partition: 0, offset: "42", timestamp: 1_767_323_045_678 };
  // SHA-256 of "apache\0" "0\0" "42\0" "1767323045678\0" and the value, made a UUID by Python's hashlib and uuid.
  assert.equal(decode(OLD, place).id, "9510d0a0-42a8-8108-9e3f-0f69db77db99");
});

Deno.test("decodeMetric() gives messages of the Python program different identities where anything of them differs", () => {
  const messages = [
    messageOf(JSON.stringify(OLD)),
    messageOf(JSON.stringify(OLD) + " "),
    messageOf(JSON.stringify({ ...OLD, status_code: 201 })),
    messageOf(JSON.stringify(OLD), { topic: "apache2" }),
    messageOf(JSON.stringify(OLD), { partition: 1 }),
    messageOf(JSON.stringify(OLD), { partition: 4, offset: "2" }),
    messageOf(JSON.stringify(OLD), { offset: "43" }),
    messageOf(JSON.stringify(OLD), { timestamp: 0 }),
  ];
  assert.equal(new Set(messages.map((message) => decodeMetric(message).id)).size, messages.length);
});

Deno.test("metricId() makes a UUID of version 7 of a time, another one each time", () => {
  const time = Date.UTC(2026, 0, 2, 3, 4, 5, 678);
  const ids = Array.from({ length: 1_000 }, () => metricId(time));
  assert.equal(new Set(ids).size, 1_000);
  for (const id of ids) {
    assert.ok(validate(id) && version(id) === 7, id);
    assert.equal(parseInt(id.replace("-", "").slice(0, 12), 16), time);
  }
  assert.ok(metricId(time) < metricId(time + 1));
  assert.ok(validate(metricId(0)) && validate(metricId(Date.UTC(9999, 11, 31))));
});

Deno.test("isoTime() writes each millisecond, one second after the other and back", () => {
  for (const time of [0, 999, 1_000, 1_767_323_045_678, 1_767_323_045_007, 1_767_323_046_000, 1_767_323_045_999.9]) {
    assert.equal(isoTime(time), new Date(time).toISOString());
  }
});

Deno.test.each([
  [0, "1970-01-01T00:00:00.000Z"],
  [-1, "1970-01-01T00:00:00.000Z"],
  [1_767_323_045_678, "2026-01-02T03:04:05.678Z"],
  [8.64e15, "9999-12-31T23:59:59.999Z"],
  [Number(2n ** 63n - 1n), "9999-12-31T23:59:59.999Z"],
])("isoTime(%d) is %s", (ms, text) => {
  assert.equal(isoTime(ms), text);
});

Deno.test.each([...PAGES.keys()])("%s is what the code says", async (path) => {
  const committed = await Deno.readTextFile(new URL(`../${path}`, import.meta.url));
  assert.equal(committed, PAGES.get(path), `${path} is out of date; to write it anew: deno task docs`);
});
