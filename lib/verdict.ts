import { v7 as uuidv7 } from "uuid";
import type { Site } from "./config.ts";
import type { Body, Exchange } from "./exchange.ts";
import { describeFailure } from "./failure.ts";
import type { CheckError, Json, Metric } from "./metric.ts";

/** Text in the encoding that the content type names, UTF-8 where it names none that is known. */
function decodeText({ kept, contentType }: Body): string {
  const label = /charset\s*=\s*"?(?<label>[^\s;"]+)/i.exec(contentType ?? "")?.groups?.["label"] ?? "utf-8";
  let decoder: TextDecoder;
  try {
    decoder = new TextDecoder(label);
  } catch {
    decoder = new TextDecoder();
  }
  return kept.map((chunk) => decoder.decode(chunk, { stream: true })).join("") + decoder.decode();
}

/** Turns what came into the metric. */
export function judge(
  site: Site,
  exchange: Exchange,
  { occurredAt, start, scheduledAt }: { occurredAt: Date; start: number; scheduledAt: Date },
): Metric {
  const { status, body, failure } = exchange;
  const firstByteMs = round(exchange.firstByteMs);
  const totalMs = round(exchange.totalMs);
  const matches = body === null || site.pattern === null ? null : site.pattern.test(decodeText(body));
  const failed: { expectation: CheckError; expected: Json; actual: Json; message: string }[] = [];
  if (failure === null) {
    if (status !== null && (status < 200 || status > 399)) {
      failed.push({
        expectation: "status",
        expected: "200-399",
        actual: status,
        message: `expected status 200-399, got ${status}`,
      });
    }
    if (matches === false) {
      failed.push({ expectation: "regex", expected: site.regex, actual: null, message: "no match for the pattern" });
    }
  }
  const described = failure === null ? null : describeFailure(failure, site);
  const [first] = failed;
  const error = described?.error ?? first?.expectation ?? null;
  return {
    id: uuidv7({ msecs: occurredAt.getTime() }),
    occurred_at: occurredAt.toISOString(),
    scheduled_at: scheduledAt.toISOString(),
    name: site.name,
    url: site.url,
    method: site.request.method,
    location: site.location,
    producer: site.producer,
    verdict: error === null ? "up" : "down",
    error,
    failed_phase: described?.phase ?? (first === undefined ? null : "expectation"),
    error_message: described?.message ?? (first === undefined ? null : failed.map(({ message }) => message).join("; ")),
    attempt: 1,
    final: true,
    status_code: status,
    response_time: totalMs,
    elapsed_ms: round(performance.now() - start),
    first_byte_ms: firstByteMs,
    download_ms: totalMs === null || firstByteMs === null ? null : round(totalMs - firstByteMs),
    regex: site.regex,
    has_regex: matches,
    ip: null,
    dns_ms: null,
    connect_ms: null,
    tls_ms: null,
    tls_version: null,
    cert_subject: null,
    cert_issuer: null,
    cert_expires_at: null,
    redirects: status === null ? null : exchange.redirects,
    final_url: exchange.finalUrl,
    body_bytes: body?.bytes ?? null,
    body_sha256: body?.sha256 ?? null,
    failed: failed.length === 0
      ? null
      : failed.map(({ expectation, expected, actual }) => ({ expectation, expected, actual })),
    tags: site.tags,
    excerpt: null,
  };
}

function round(ms: number | null): number | null {
  return ms === null ? null : Math.round(ms * 1000) / 1000;
}
