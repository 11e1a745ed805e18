import { styleText } from "node:util";
import type { Json, Metric } from "./metric.ts";
import type { Reviewed } from "./review.ts";
import type { SiteKey } from "./setting.ts";
import {
  encodePrintable,
  printable,
  type Trace,
  type TracedCertificate,
  type TracedConnection,
  type TracedHeader,
  type TracedHop,
} from "./trace.ts";

/** How a page may look. */
export interface PageStyle {
  /** Characters that a line may have. */
  readonly width: number;
  /** Whether there are colours. */
  readonly color: boolean;
  /** Whether there are characters beyond ASCII, beside those of the site. */
  readonly unicode: boolean;
}

/** For files and pipes. */
export const PLAIN_STYLE: PageStyle = { width: 80, color: false, unicode: false };

const MIN_WIDTH = 60;
const MAX_WIDTH = 160;
/** Longer values are cut; `--json` has all of them. */
const MAX_LENGTH = 500;
const MAX_BODY_LINES = 8;
const DAY_MS = 24 * 60 * 60 * 1000;
const LABEL_WIDTH = 13;
const UNITS: Partial<Record<SiteKey, string>> = {
  max_response_time: "ms",
  degraded_after: "ms",
  min_bytes: "bytes",
  max_bytes: "bytes",
  min_cert_days: "days",
  warn_cert_days: "days",
};

/** Style for standard output: plain, unless it is a terminal. */
export function styleOfOutput(): PageStyle {
  if (!Deno.stdout.isTerminal()) return PLAIN_STYLE;
  return { width: Deno.consoleSize().columns, color: !Deno.noColor, unicode: true };
}

/** A trace as a page of text: what happened, step by step, and the verdict at its end, where one looks first. */
export function formatTrace(trace: Trace, style: PageStyle = PLAIN_STYLE): string {
  const page = new Page(style);
  const { name, proxy, notes, hops, expectations, metric } = trace;
  page.line(page.bold(printable(`${name}  ${metric.method} ${metric.url}`)));
  const by = [metric.occurred_at, ...(metric.location === null ? [] : [`from ${metric.location}`])];
  page.line(printable([...by, ...(proxy === null ? [] : [`by the proxy ${proxy}`])].join(", ")));
  page.line("");
  page.verdict(metric);
  for (const note of notes) page.line(page.paint("yellow", `Note: ${printable(note)}`));
  page.timeline(hops, metric);
  for (const [index, hop] of hops.entries()) {
    page.hop(hop, { number: index + 1, isLast: index === hops.length - 1, metric });
  }
  page.heading("Expected");
  for (const reviewed of expectations) page.expectation(reviewed);
  page.heading("Metric");
  page.line(page.paint("gray", encodePrintable(metric)));
  page.line("");
  page.verdict(metric);
  return page.text();
}

type Color = "green" | "red" | "yellow" | "gray" | "cyan";

/** A row of the timeline. */
interface Span {
  readonly label: string;
  readonly startMs: number;
  readonly ms: number;
  /** Part at its beginning that is shown above it already, in ms. */
  readonly leadMs?: number;
  readonly held: boolean;
}

class Page {
  readonly #style: PageStyle;
  readonly #lines: string[] = [];

  constructor({ width, ...style }: PageStyle) {
    this.#style = { ...style, width: Math.min(Math.max(width, MIN_WIDTH), MAX_WIDTH) };
  }

  text(): string {
    return this.#lines.join("\n");
  }

  line(text: string): void {
    this.#lines.push(text.trimEnd());
  }

  heading(text: string): void {
    this.line("");
    this.line(this.bold(text));
  }

  bold(text: string): string {
    return this.#style.color ? styleText("bold", text, { validateStream: false }) : text;
  }

  paint(color: Color, text: string): string {
    return this.#style.color && text !== "" ? styleText(color, text, { validateStream: false }) : text;
  }

  verdict({ name, verdict, error, error_message, status_code, elapsed_ms }: Metric): void {
    const color = ({ up: "green", degraded: "yellow", down: "red" } as const)[verdict];
    const why = error === null ? `${status_code} in ${formatMs(elapsed_ms ?? 0)}` : `${error}: ${error_message}`;
    this.line(`${this.bold(this.paint(color, verdict.toUpperCase()))}  ${printable(`${name}  ${why}`)}`);
  }

  /** Marks what held, what did not, and what was not judged. */
  mark(held: boolean | null): string {
    const [good, bad, open] = this.#style.unicode ? ["✔ ", "✗ ", "· "] : ["ok", "x ", "- "];
    return held === null ? this.paint("gray", open) : held ? this.paint("green", good) : this.paint("red", bad);
  }

  timeline(hops: readonly TracedHop[], metric: Metric): void {
    const spans = spansOf(hops, metric);
    const totalMs = Math.max(...spans.map(({ startMs, ms }) => startMs + ms), metric.elapsed_ms ?? 0, 0.001);
    const labelWidth = Math.max(...spans.map(({ label }) => label.length));
    const before = labelWidth + 16;
    const room = this.#style.width - before;
    this.line("");
    const end = formatMs(totalMs);
    this.line(`${this.bold("Timeline".padEnd(before))}0${end.padStart(room - 1)}`);
    const [light, full] = this.#style.unicode ? ["╌", "━"] : ["-", "="];
    for (const { label, startMs, ms, leadMs = 0, held } of spans) {
      const from = Math.min(Math.floor(startMs / totalMs * room), room - 1);
      const length = Math.min(Math.max(1, Math.round(ms / totalMs * room)), room - from);
      const lead = Math.min(Math.round(leadMs / totalMs * room), length - 1);
      const bar = this.paint("gray", light.repeat(lead)) +
        this.paint(held ? "cyan" : "red", full.repeat(length - lead));
      const time = formatMs(ms).padStart(10);
      this.line(`${this.mark(held)} ${label.padEnd(labelWidth)} ${time}  ${" ".repeat(from)}${bar}`);
    }
    if (spans.some(({ leadMs = 0 }) => leadMs > 0)) {
      this.line(this.paint("gray", `${" ".repeat(before)}(${light} connecting, ${full} waiting)`));
    }
  }

  hop(
    { url, request, connection, response, first_byte_ms }: TracedHop,
    { number, isLast, metric }: { number: number; isLast: boolean; metric: Metric },
  ): void {
    this.heading(printable(`${number}  ${request?.method ?? metric.method} ${url}`));
    if (connection !== null) this.#connection(connection, metric.occurred_at);
    if (request === null) {
      const why = (connection?.failure ?? null) === null ? `: ${metric.error}: ${metric.error_message}` : "";
      return this.#detail("request", this.paint("red", this.#cut(`not sent${why}`)));
    }
    const { pathname, search } = new URL(url);
    this.#sent(">", `${request.method} ${pathname}${search}`);
    this.#headers(">", request.headers);
    if (request.body_bytes !== null) this.#sent(">", `(a body of ${request.body_bytes} bytes)`);
    if (response === null) {
      return this.#detail("response", this.paint("red", printable(`none: ${metric.error_message}`)));
    }
    const color = response.status_code < 400 ? "green" : "red";
    const status = printable(`${response.status_code} ${response.status_text}`);
    this.#sent("<", `${this.paint(color, status)}, after ${formatMs(first_byte_ms ?? 0)}`, { isPrintable: true });
    this.#headers("<", response.headers);
    if (!isLast) return;
    if (metric.body_bytes !== null) this.#detail("body", `${metric.body_bytes} bytes`);
    if (metric.failed_phase !== null && metric.failed_phase !== "expectation") {
      this.#detail("failure", this.paint("red", this.#cut(`${metric.error}: ${metric.error_message}`)));
    }
    if (response.body_start !== null) this.#body(response.body_start);
  }

  expectation({ setting, expected, actual, held, note }: Reviewed): void {
    const unit = UNITS[setting];
    const got = held === null ? "" : `, got ${actual === null ? "none" : show(actual, unit)}`;
    const why = note === null ? "" : held === null ? `: ${note}` : ` (${note})`;
    this.line(`${this.mark(held)} ${setting.padEnd(17)} ${this.#cut(`${show(expected, unit)}${got}${why}`)}`);
  }

  #connection(connection: TracedConnection, at: string): void {
    const { addresses, port, attempts, tls_version, cipher, alpn, certificates, failure } = connection;
    for (const [index, address] of addresses.entries()) {
      const attempt = attempts.find((one) => one.address === address);
      const what = attempt === undefined ? "not tried" : attempt.failure ?? "connected";
      this.#detail(index === 0 ? "addresses" : "", printable(`${address} port ${port}: ${what}`));
    }
    if (tls_version !== null) {
      this.#detail("tls", printable([tls_version, cipher, alpn].filter((text) => text !== null).join(", ")));
    }
    for (const [index, certificate] of certificates.entries()) {
      this.#certificate(certificate, { label: index === 0 ? "certificate" : "issued by", at });
    }
    const last = certificates.at(-1);
    if (last !== undefined && last.issuer !== last.subject) {
      this.#detail("issued by", `${this.#cut(last.issuer)} (neither sent nor known)`);
    }
    if (failure !== null) {
      this.#detail("failure", this.paint("red", this.#cut(`${failure.error}: ${failure.message}`)));
    }
  }

  #certificate(
    { subject, valid_from, expires_at }: TracedCertificate,
    { label, at }: { label: string; at: string },
  ): void {
    const daysLeft = (Date.parse(expires_at) - Date.parse(at)) / DAY_MS;
    const state = Date.parse(valid_from) > Date.parse(at)
      ? this.paint("red", "not valid yet")
      : daysLeft < 0
      ? this.paint("red", `expired ${formatDays(-daysLeft)} ago`)
      : `${formatDays(daysLeft)} left`;
    this.#detail(label, this.#cut(subject));
    this.#detail("", `${valid_from.slice(0, 10)} to ${expires_at.slice(0, 10)}, ${state}`);
  }

  #detail(label: string, text: string): void {
    this.line(`   ${label.padEnd(LABEL_WIDTH)}${text}`);
  }

  #headers(arrow: string, headers: readonly TracedHeader[]): void {
    for (const { name, value } of headers) this.#sent(arrow, `${name}: ${value}`);
  }

  #sent(arrow: string, text: string, { isPrintable = false } = {}): void {
    this.line(`   ${this.paint("gray", arrow)} ${isPrintable ? text : this.#cut(text)}`);
  }

  #body(start: string): void {
    const lines = start.trimEnd().split(/\r?\n/).slice(0, MAX_BODY_LINES);
    const cut = this.#style.unicode ? "…" : "...";
    for (const line of lines) {
      const text = printable(line.replaceAll("\t", " "));
      const room = this.#style.width - "   | ".length;
      this.line(`   ${this.paint("gray", "|")} ${text.length > room ? text.slice(0, room - cut.length) + cut : text}`);
    }
  }

  /** Printable, and not too long. */
  #cut(text: string): string {
    const shown = printable(text);
    return shown.length > MAX_LENGTH ? shown.slice(0, MAX_LENGTH) + (this.#style.unicode ? "…" : "...") : shown;
  }
}

/** Rows of the timeline: what each hop took, and the judgement at the end. */
function spansOf(hops: readonly TracedHop[], metric: Metric): Span[] {
  const spans: Span[] = [];
  for (const [index, hop] of hops.entries()) {
    const { start_ms, first_byte_ms, download_ms, elapsed_ms, connection, request, response } = hop;
    const isLast = index === hops.length - 1;
    const label = (text: string) => hops.length === 1 ? text : `${index + 1} ${text}`;
    if (connection !== null) {
      spans.push(...connectionSpans(connection).map((span) => ({ ...span, label: label(span.label) })));
    }
    if (request === null) {
      // The look found nothing wrong, or there was none.
      if ((connection?.failure ?? null) === null) {
        spans.push({ label: label(metric.failed_phase!), startMs: start_ms, ms: elapsed_ms, held: false });
      }
      continue;
    }
    const connectedMs = connection === null || connection.failure !== null
      ? 0
      : Math.max(0, connection.start_ms + connection.elapsed_ms - start_ms);
    spans.push({
      label: label("first byte"),
      startMs: start_ms,
      ms: first_byte_ms ?? elapsed_ms,
      leadMs: Math.min(connectedMs, first_byte_ms ?? elapsed_ms),
      held: response !== null && !(isLast && metric.failed_phase === "first_byte"),
    });
    if (!isLast || response === null || metric.failed_phase === "first_byte") continue;
    spans.push({
      label: label("download"),
      startMs: start_ms + first_byte_ms!,
      ms: download_ms ?? elapsed_ms - first_byte_ms!,
      held: metric.failed_phase !== "download",
    });
    if (metric.failed_phase === "download") continue;
    const endMs = start_ms + elapsed_ms;
    spans.push({
      label: label("expectations"),
      startMs: endMs,
      ms: Math.max(0, (metric.elapsed_ms ?? endMs) - endMs),
      held: metric.failed === null,
    });
  }
  return spans;
}

/** What the look at a connection took, phase by phase. */
function connectionSpans(
  { start_ms, dns_ms, connect_ms, tls_ms, elapsed_ms, failure }: TracedConnection,
): Span[] {
  const spans: Span[] = [];
  let startMs = start_ms;
  for (const [label, ms] of [["dns", dns_ms], ["connect", connect_ms], ["tls", tls_ms]] as const) {
    const failed = failure?.phase === label;
    if (ms === null && !failed) continue;
    const taken = ms ?? start_ms + elapsed_ms - startMs;
    spans.push({ label, startMs, ms: taken, held: !failed });
    startMs += taken;
  }
  return spans;
}

function formatMs(ms: number): string {
  return ms < 1_000 ? `${ms.toFixed(1)} ms` : `${(ms / 1_000).toFixed(2)} s`;
}

function formatDays(days: number): string {
  return days < 2 ? `${Math.floor(days * 24)} hours` : `${Math.floor(days)} days`;
}

/** A value of an expectation, with its unit. */
function show(value: Json, unit: string | undefined): string {
  if (typeof value === "string") return `'${value}'`;
  if (unit === "ms") return formatMs(Number(value));
  const text = JSON.stringify(value);
  return unit === undefined ? text : `${text} ${unit}`;
}
