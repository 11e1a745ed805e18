import { type Answer, answerPattern, decodeText, type EncodedText, type Question } from "./evaluation.ts";
import type { Asked, Evaluator } from "./evaluator.ts";
import { shownHeader } from "./secret.ts";
import type { CheckError, Json } from "./metric.ts";
import type { Pattern } from "./pattern.ts";
import { formatStatusRanges, includesStatus, type StatusRange } from "./value.ts";

/** What is expected of a text that came. */
export type TextExpectation =
  | { readonly error: "regex" | "regex_absent"; readonly pattern: Pattern }
  | {
    readonly error: "header";
    /** Name of the header, in lower case. */
    readonly name: string;
    /** What its value is searched for; null: it need only be there. */
    readonly pattern: Pattern | null;
    /** Whether that is expected, or forbidden. */
    readonly wanted: boolean;
  }
  | { readonly error: "json"; readonly expression: string };

/** What a site is expected to be like; null for what is not asked for. */
export interface Expectations {
  /** Statuses. */
  readonly status: readonly StatusRange[];
  /** Texts, in the order of their classes: regex, regex_absent, header, json. */
  readonly texts: readonly TextExpectation[];
  /** Response time at most, in ms. */
  readonly maxResponseTimeMs: number | null;
  /** Response time from which on the site is degraded, in ms. */
  readonly degradedAfterMs: number | null;
  /** Bytes of the body, decoded, at least. */
  readonly minBytes: number | null;
  /** Bytes of the body, decoded, at most. */
  readonly maxBytes: number | null;
  /** Days that the certificate must still hold. */
  readonly minCertDays: number | null;
  /** Days that the certificate must still hold for the site not to be degraded. */
  readonly warnCertDays: number | null;
  /** Version of TLS at least. */
  readonly minTlsVersion: "1.2" | "1.3" | null;
  /** Body that may not change: the one of this SHA-256 in hex, or that of the check before. */
  readonly unchanged: string | "before" | null;
}

/** What is expected where nothing else is said: a status from 200 to 399. */
export const DEFAULT_EXPECTATIONS: Expectations = {
  status: [{ from: 200, to: 399 }],
  texts: [],
  maxResponseTimeMs: null,
  degradedAfterMs: null,
  minBytes: null,
  maxBytes: null,
  minCertDays: null,
  warnCertDays: null,
  minTlsVersion: null,
  unchanged: null,
};

/** What was seen of a site; null for what was not reached. */
export interface Seen {
  /** Status of the last response. */
  readonly status: number;
  /** Its headers. */
  readonly headers: Headers;
  /** Its body, if it was read to its end. */
  readonly body: EncodedText & { readonly bytes: number; readonly sha256: string } | null;
  /** Time of the whole response, in ms. */
  readonly responseTimeMs: number | null;
  /** What is known of the connection, from this check or the last look before it. */
  readonly connection: SeenConnection | null;
  /** SHA-256 of the body of the check before, in hex; null at the first one. */
  readonly bodyBefore: string | null;
  /** When it was seen. */
  readonly at: Date;
}

/** What is known of a connection. */
export interface SeenConnection {
  /** Version of TLS, such as `TLSv1.3`; null without TLS. */
  readonly tlsVersion: string | null;
  /** End of the server's certificate, in ISO 8601; null without TLS. */
  readonly certExpiresAt: string | null;
}

/** An expectation that was not met. */
export interface Unmet {
  /** Its class, or `timeout` where the answer did not come in time. */
  readonly expectation: CheckError;
  /** What was expected. */
  readonly expected: Json;
  /** What was there. */
  readonly actual: Json;
  /** Both in words. */
  readonly message: string;
  /** Whether the site is only degraded by it. */
  readonly degrades?: true;
}

/** Longer texts are asked in another thread: a quick pattern takes some ms for this much. */
const MAX_BYTES_HERE = 64 * 1024;
const MAX_SHOWN_LENGTH = 200;
const DAY_MS = 24 * 60 * 60 * 1000;

/** Options of {@linkcode answerTexts}. */
export interface AnswerTextsOptions {
  /** Name of the site. */
  readonly name: string;
  /** Answers what may take long. */
  readonly evaluator: Evaluator;
  /** Time that this may take, in ms. */
  readonly budgetMs: number;
  /** Ends it; it rejects with the reason then. */
  readonly signal?: AbortSignal | undefined;
}

/** What the texts say to what is expected of them, each in its place; `null` without an answer in time, `undefined` without a text. */
export type TextAnswers = readonly (Answer | null | undefined)[];

/**
 * Asks the texts that came: proven patterns and short texts here and now, all others by the evaluator.
 *
 * @throws The signal's reason.
 */
export async function answerTexts(
  texts: readonly TextExpectation[],
  { headers, body }: Pick<Seen, "headers" | "body">,
  { name, evaluator, budgetMs, signal }: AnswerTextsOptions,
): Promise<TextAnswers> {
  let decoded: string | undefined;
  const answers: (Answer | null | undefined)[] = [];
  const asked: (Asked & { readonly index: number })[] = [];
  for (const [index, expectation] of texts.entries()) {
    const isHeader = expectation.error === "header";
    const header = isHeader ? headers.get(expectation.name) : null;
    if (isHeader ? header === null || expectation.pattern === null : body === null) {
      answers[index] = isHeader ? { holds: header !== null, found: header && shorten(header) } : undefined;
      continue;
    }
    const question = questionOf(expectation);
    const bytes = header?.length ?? body?.bytes ?? 0;
    if ("pattern" in question && isQuick(expectation) && bytes <= MAX_BYTES_HERE) {
      answers[index] = answerPattern(question.pattern, header ?? (decoded ??= decodeText(body!)));
    } else {
      asked.push({ index, question, text: header });
    }
  }
  if (asked.length > 0) {
    const kept = body !== null && asked.some(({ text }) => text === null)
      ? { kept: body.kept, contentType: body.contentType }
      : null;
    const late = await evaluator.answer({ body: kept, asked, budgetMs }, { name, signal });
    for (const [i, { index }] of asked.entries()) answers[index] = late[i] ?? null;
  }
  return answers;
}

function questionOf(expectation: TextExpectation): Question {
  return expectation.error === "json"
    ? { expression: expectation.expression }
    : { pattern: expectation.pattern!.regexp };
}

function isQuick(expectation: TextExpectation): boolean {
  return expectation.error !== "json" && expectation.pattern?.linear === true;
}

/** Options of {@linkcode findUnmet}. */
export interface FindUnmetOptions {
  /** What the texts said. */
  readonly answers: TextAnswers;
  /** Time that the check may take, for words. */
  readonly timeoutMs: number;
}

/**
 * All expectations that are not met, in the order of their classes. What was not reached (the body of a response that was
 * cut, a connection that was not looked at) is not judged.
 */
export function findUnmet(
  expectations: Expectations,
  seen: Seen,
  { answers, timeoutMs }: FindUnmetOptions,
): Unmet[] {
  const { status, texts, maxResponseTimeMs, degradedAfterMs, minBytes, maxBytes, unchanged } = expectations;
  const unmet: Unmet[] = [];
  const expect = (expectation: CheckError, expected: Json, actual: Json, message: string) =>
    void unmet.push({ expectation, expected, actual, message });

  if (answers.includes(null)) {
    const first = describeText(texts[answers.indexOf(null)]!);
    expect("timeout", first, null, `no answer from '${shorten(first)}' within the check's ${timeoutMs} ms`);
  }
  if (!includesStatus(status, seen.status)) {
    const expected = formatStatusRanges(status);
    expect("status", expected, seen.status, `expected status ${expected}, got ${seen.status}`);
  }
  for (const [i, expectation] of texts.entries()) {
    const answer = answers[i];
    const found = answer && unmetText(expectation, answer, seen.headers);
    if (found) unmet.push(found);
  }
  const { responseTimeMs, body } = seen;
  if (responseTimeMs !== null) {
    const [limitMs, degrades] = maxResponseTimeMs !== null && responseTimeMs > maxResponseTimeMs
      ? [maxResponseTimeMs, false]
      : [degradedAfterMs ?? Infinity, true];
    if (responseTimeMs > limitMs) {
      const message = `expected a response within ${limitMs} ms, got it after ${Math.round(responseTimeMs)} ms`;
      const slow = { expectation: "too_slow", expected: limitMs, actual: responseTimeMs, message } as const;
      unmet.push(degrades ? { ...slow, degrades } : slow);
    }
  }
  if (body !== null && minBytes !== null && body.bytes < minBytes) {
    expect("too_small", minBytes, body.bytes, `expected a body of at least ${minBytes} bytes, got ${body.bytes}`);
  }
  if (body !== null && maxBytes !== null && body.bytes > maxBytes) {
    expect("too_big", maxBytes, body.bytes, `expected a body of at most ${maxBytes} bytes, got ${body.bytes}`);
  }
  if (seen.connection !== null) unmet.push(...unmetConnection(expectations, seen.connection, seen.at));
  const reference = unchanged === "before" ? seen.bodyBefore : unchanged;
  if (body !== null && reference !== null && body.sha256 !== reference) {
    expect("changed", reference, body.sha256, `expected a body with SHA-256 ${reference}, got ${body.sha256}`);
  }
  return unmet;
}

function unmetText(expectation: TextExpectation, { holds, found, problem }: Answer, headers: Headers): Unmet | null {
  const wanted = expectation.error === "header" ? expectation.wanted : expectation.error !== "regex_absent";
  if (holds === wanted) return null;
  const expected = describeText(expectation);
  const shown = shorten(expected);
  switch (expectation.error) {
    case "regex":
      return { expectation: "regex", expected, actual: null, message: `expected a match for '${shown}', got none` };
    case "regex_absent": {
      const message = `expected no match for '${shown}', got '${shorten(String(found))}'`;
      return { expectation: "regex_absent", expected, actual: found, message };
    }
    case "header": {
      const value = headers.get(expectation.name);
      const actual = value === null ? null : shorten(shownHeader(expectation.name, value));
      const got = actual === null ? "none" : `'${actual}'`;
      return { expectation: "header", expected, actual, message: `expected header '${shown}', got ${got}` };
    }
    case "json": {
      const got = problem ?? `got ${shorten(JSON.stringify(found))}`;
      const message = `expected '${shown}' to be true, ${got}`;
      return { expectation: "json", expected, actual: found, message };
    }
  }
}

function unmetConnection(
  { minCertDays, warnCertDays, minTlsVersion }: Expectations,
  { certExpiresAt, tlsVersion }: SeenConnection,
  at: Date,
): Unmet[] {
  const unmet: Unmet[] = [];
  if (certExpiresAt !== null) {
    const daysLeft = (Date.parse(certExpiresAt) - at.getTime()) / DAY_MS;
    const tooFew = minCertDays !== null && daysLeft < minCertDays;
    const days = tooFew ? minCertDays : warnCertDays;
    if (days !== null && daysLeft < days) {
      const actual = Math.floor(daysLeft * 10) / 10;
      const message = `expected a certificate for ${days} more days, got one that expires on ${certExpiresAt}`;
      const cert = { expectation: "cert_validity", expected: days, actual, message } as const;
      unmet.push(tooFew ? cert : { ...cert, degrades: true });
    }
  }
  const version = tlsVersion?.replace(/^TLSv/, "") ?? null;
  if (minTlsVersion !== null && version !== null && Number(version) < Number(minTlsVersion)) {
    const message = `expected TLS ${minTlsVersion} or newer, got ${version}`;
    unmet.push({ expectation: "tls_version", expected: minTlsVersion, actual: version, message });
  }
  return unmet;
}

/** The expectation as it is written: `server: nginx`, with `no` before it where that is forbidden. */
export function describeText(expectation: TextExpectation): string {
  if (expectation.error === "json") return expectation.expression;
  if (expectation.error !== "header") return expectation.pattern.text;
  const { name, pattern, wanted } = expectation;
  return `${wanted ? "" : "no "}${name}${pattern === null ? "" : `: ${pattern.text}`}`;
}

/** The beginning of a text that is long. */
export function shorten(text: string): string {
  const cut = text.length > MAX_SHOWN_LENGTH ? text.slice(0, MAX_SHOWN_LENGTH) + "…" : text;
  return cut.toWellFormed();
}
