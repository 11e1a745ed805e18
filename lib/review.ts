import { shownHeader } from "./secret.ts";
import { describeText, type Expectations, shorten, type TextAnswers, type TextExpectation } from "./expectation.ts";
import type { CheckError, Json, Metric } from "./metric.ts";
import type { SiteKey } from "./setting.ts";
import { formatStatusRanges } from "./value.ts";

/** An expectation of a site, and what came of it. */
export interface Reviewed {
  /** Key by which it is set. */
  readonly setting: SiteKey;
  /** Class of the error where it is not met. */
  readonly expectation: CheckError;
  /** What was expected. */
  readonly expected: Json;
  /** What was there; null for nothing, and for what is not known. */
  readonly actual: Json;
  /** Whether it was met; null where that was not judged. */
  readonly held: boolean | null;
  /** Why it was not judged, or what was wrong with the text; null where there is nothing to say. */
  readonly note: string | null;
}

/** Options of {@linkcode reviewExpectations}. */
export interface ReviewOptions {
  /** What the verdict says of those that are not met. */
  readonly metric: Metric;
  /** Headers of the last response; null where none was judged. */
  readonly headers: Headers | null;
  /** What the texts said; empty where none was asked. */
  readonly answers: TextAnswers;
}

const DAY_MS = 24 * 60 * 60 * 1000;
const TEXT_KEYS = { regex: "regex", regex_absent: "regex_absent", json: "json" } as const;

/**
 * All expectations of a site with what came of each, in the order in which they are judged. Whether one was met is the
 * verdict's to say: this lists what the metric leaves out, those that were met and those that were not judged.
 */
export function reviewExpectations(
  expectations: Expectations,
  { metric, headers, answers }: ReviewOptions,
): Reviewed[] {
  const failed = metric.failed as readonly Pick<Reviewed, "expectation" | "expected" | "actual">[] | null ?? [];
  const reviewed: Reviewed[] = [];
  /** One that a number decides; null for what was not there. */
  const add = (
    setting: SiteKey,
    expectation: CheckError,
    { expected, actual, missing = "not reached" }: { expected: Json; actual: Json; missing?: string },
  ) => {
    if (expected === null) return;
    const isKnown = headers !== null && actual !== null;
    // Of two bounds the verdict names the one that breaks the check: what is worse than that is worse than the other.
    const isSoft = setting === "degraded_after" || setting === "warn_cert_days";
    const isUnmet = failed.some((one) => one.expectation === expectation && (isSoft || one.expected === expected));
    reviewed.push({
      setting,
      expectation,
      expected,
      actual: isKnown ? actual : null,
      held: isKnown ? !isUnmet : null,
      note: isKnown ? null : headers === null ? "not reached" : missing,
    });
  };

  add("expected_status", "status", { expected: formatStatusRanges(expectations.status), actual: metric.status_code });
  for (const [i, text] of expectations.texts.entries()) {
    reviewed.push(reviewText(text, { headers, answer: answers[i], isUnmet: isUnmetText(text, failed) }));
  }
  const { response_time, body_bytes, body_sha256, tls_version, cert_expires_at, occurred_at } = metric;
  const { maxResponseTimeMs, degradedAfterMs, minBytes, maxBytes, unchanged } = expectations;
  add("max_response_time", "too_slow", { expected: maxResponseTimeMs, actual: response_time });
  add("degraded_after", "too_slow", { expected: degradedAfterMs, actual: response_time });
  add("min_bytes", "too_small", { expected: minBytes, actual: body_bytes });
  add("max_bytes", "too_big", { expected: maxBytes, actual: body_bytes });
  const daysLeft = cert_expires_at === null
    ? null
    : Math.floor((Date.parse(cert_expires_at) - Date.parse(occurred_at)) / DAY_MS * 10) / 10;
  const missing = "no certificate was seen";
  add("min_cert_days", "cert_validity", { expected: expectations.minCertDays, actual: daysLeft, missing });
  add("warn_cert_days", "cert_validity", { expected: expectations.warnCertDays, actual: daysLeft, missing });
  add("min_tls_version", "tls_version", {
    expected: expectations.minTlsVersion,
    actual: tls_version?.replace(/^TLSv/, "") ?? null,
    missing: "no TLS was seen",
  });
  if (unchanged === "before") {
    reviewed.push({
      setting: "unchanged",
      expectation: "changed",
      expected: "the body of the check before",
      actual: body_sha256,
      held: null,
      note: "a trace has no check before it",
    });
  } else add("unchanged", "changed", { expected: unchanged, actual: body_sha256 });
  return reviewed;
}

/** Whether the verdict names a text among what is not met. */
function isUnmetText(text: TextExpectation, failed: readonly Pick<Reviewed, "expectation" | "expected">[]): boolean {
  const expected = describeText(text);
  return failed.some((one) => one.expectation === text.error && one.expected === expected);
}

function reviewText(
  text: TextExpectation,
  { headers, answer, isUnmet }: { headers: Headers | null; answer: TextAnswers[number]; isUnmet: boolean },
): Reviewed {
  const setting = text.error !== "header"
    ? TEXT_KEYS[text.error]
    : text.wanted
    ? "expected_header"
    : "forbidden_header";
  const base = { setting, expectation: text.error, expected: describeText(text) } as const;
  if (headers === null || answer === undefined) return { ...base, actual: null, held: null, note: "not reached" };
  if (answer === null) return { ...base, actual: null, held: null, note: "no answer in time" };
  const value = text.error === "header" ? headers.get(text.name) : null;
  const actual = text.error !== "header"
    ? answer.found
    : value === null
    ? null
    : shorten(shownHeader(text.name, value));
  return { ...base, actual, held: !isUnmet, note: answer.problem ?? null };
}
