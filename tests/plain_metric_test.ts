import assert from "node:assert/strict";
import { COLUMN_NAMES, COLUMNS, encodeMetric, type KafkaMessage, type Metric, MetricError } from "../lib/metric.ts";
import { decodeMetric } from "../lib/metric.ts";
import { type Brief, readPlainMetric } from "../lib/plain_metric.ts";
import { copyLine } from "../lib/table.ts";
import { createMetric } from "../bench/metric.ts";

const FULL: Metric = {
  ...createMetric("a", 12_345),
  location: "",
  producer: "eu-1",
  verdict: "down",
  error: "status",
  failed_phase: "expectation",
  error_message: "ünï©ode 🎉, 'quotes', {braces}, null",
  attempt: 2,
  status_code: 503,
  response_time: 0.1,
  ip: "203.0.113.255",
  dns_ms: 0,
  connect_ms: 1.25e-7,
  tls_version: "TLSv1.3",
  cert_subject: "CN=a",
  cert_issuer: "null",
  cert_expires_at: "2027-01-28T00:00:00.000Z",
  final_url: "https://a.example/?b=c",
  body_bytes: 999_999_999_999_999,
  tags: { team: "web", "": "" },
};

function messageOf(value: string): KafkaMessage {
  const message = { topic: "a.b-c_D", partition: 0, offset: "0", timestamp: 0, key: null, headers: {} };
  return { ...message, value: new TextEncoder().encode(value) };
}

/** Asserts that a text says the same by both ways, if it is read as plain. @returns Whether it is. */
function assertSame(text: string): boolean {
  const plain = readPlainMetric(text);
  if (plain === null) return false;
  const message = messageOf(text);
  const metric = decodeMetric(message);
  assert.equal(
    copyLine({ message, metric, fields: plain.fields }),
    copyLine({ message, metric }),
    `COPY's line of ${text}`,
  );
  const names = Object.keys(plain.brief) as (keyof Brief)[];
  assert.deepEqual(plain.brief, Object.fromEntries(names.map((name) => [name, metric[name]])), `brief of ${text}`);
  return true;
}

Deno.test("readPlainMetric() reads what the producer writes, as the parser does", () => {
  for (let i = 0; i < 500; i++) assert.ok(assertSame(encodeMetric(createMetric("site", i * 7_919))));
  // A number with an exponent is left to the parser.
  assert.ok(!assertSame(encodeMetric(FULL)));
  assert.ok(assertSame(encodeMetric({ ...FULL, connect_ms: 0.125 })));
});

Deno.test("readPlainMetric() takes nothing that the parser refuses or reads in another way", () => {
  const values = [
    ...["", "null", "a\\N", "a\tb", "a\nb", "\0", "\\", '"', "ü", "\ud800", "\ufffd", "\x7f", "up", "status", "dns"],
    ...["2026-02-28T23:59:59.999Z", "2026-02-29T00:00:00.000Z", "2026-02-30T00:00:00.000Z", "2026-01-01T24:00:00.000Z"],
    ...[
      "0000-01-01T00:00:00.000Z",
      "2026-01-01T00:00:00Z",
      "2026-01-01 00:00:00.000Z",
      "2026-01-01T00:00:00.000+00:00",
    ],
    ...[
      "0195b1c2-7d4e-7abc-8def-0123456789ab",
      "0195B1C2-7D4E-7ABC-8DEF-0123456789AB",
      "0195b1c27d4e7abc8def0123456789ab",
    ],
    ...["1.2.3.4", "1.2.3.256", "01.2.3.4", "1.2.3", "::1", "fe80::1%eth0"],
    ...[0, -0, 1, -1, 1.5, 0.1, 1e21, 1e-7, 5e-324, 1.797e308, 999_999_999, 2_147_483_647, 2_147_483_648, 2 ** 53],
    ...[true, false, null, [], {}, { a: "b" }, { a: 1 }, { a: "\\" }, { a: { b: "c" } }, ["a"]],
  ].map((value) => JSON.stringify(value));
  const raw = ["-0", "1.50", "1.0", "01", "1.", ".5", "1e999", "1E2", "0.1234567890123456789", "nul", "True", "'a'"];
  for (const name of COLUMN_NAMES) {
    for (const value of [...values, ...raw, '{"a":"b",}', '{"a":"b" }', '{"a":"1","a":"2"}', '{"__proto__":"a"}']) {
      const text = `{${
        COLUMN_NAMES.map((other) =>
          `"${other}":${other === name ? value : JSON.stringify(createMetric("site", 1)[other])}`
        ).join(",")
      }}`;
      const plain = readPlainMetric(text);
      if (plain === null) continue;
      let metric: Metric;
      try {
        metric = decodeMetric(messageOf(text));
      } catch (error) {
        assert.ok(error instanceof MetricError);
        assert.fail(`taken for a metric: ${text}: ${error.message}`);
      }
      // Of a number, the same value may be written in several ways.
      const isNumber = COLUMNS[name].type === "double precision";
      if (isNumber || COLUMNS[name].type === "jsonb") {
        const field = plain.fields.split("\t")[COLUMN_NAMES.indexOf(name) + 1]!;
        assert.deepEqual(field === "\\N" ? null : JSON.parse(field), metric[name], text);
      } else assertSame(text);
    }
  }
});

Deno.test("readPlainMetric() leaves to the parser what has other properties, another order, or space between", () => {
  const text = encodeMetric(createMetric("site", 1));
  assert.ok(assertSame(text));
  const { id, ...rest } = createMetric("site", 1);
  const texts = [
    JSON.stringify({ ...rest, id }),
    JSON.stringify(rest),
    JSON.stringify({ id, ...rest, more: 1 }),
    JSON.stringify({ id, ...rest }, null, 1),
    JSON.stringify(text),
    ` ${text}`,
    `${text}\n`,
    `${text}${text}`,
    text.slice(0, -1),
  ];
  for (const other of texts) assert.equal(readPlainMetric(other), null, other);
});
