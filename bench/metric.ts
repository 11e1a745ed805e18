import { COLUMN_NAMES, type Metric, metricId } from "../lib/metric.ts";

const START = Date.UTC(2026, 0, 1);

/** A metric such as the producer makes, different for each number. */
export function createMetric(name: string, number: number): Metric {
  const occurredAt = new Date(START + number);
  return {
    ...Object.fromEntries(COLUMN_NAMES.map((column) => [column, null])) as unknown as Metric,
    id: metricId(occurredAt.getTime()),
    occurred_at: occurredAt.toISOString(),
    scheduled_at: occurredAt.toISOString(),
    name,
    url: `https://${name}.example/`,
    method: "GET",
    verdict: "up",
    attempt: 1,
    final: true,
    status_code: 200,
    response_time: 20 + number % 1000 / 8,
    elapsed_ms: 21 + number % 1000 / 8,
    first_byte_ms: 18 + number % 1000 / 8,
    download_ms: 2,
    regex: "About",
    has_regex: true,
    redirects: 0,
    body_bytes: 1024 + number % 100,
    body_sha256: "7fab3759b5e6f600a576214857f8b920a21361843fd55871e262d8f935d791f8",
  };
}
