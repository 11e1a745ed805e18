import { runInThisContext } from "node:vm";
import jsonata from "jsonata";
import { errorMessage } from "./error.ts";
import type { Json } from "./metric.ts";

/** A text as it came. */
export interface EncodedText {
  /** Its pieces. */
  readonly kept: readonly Uint8Array[];
  /** Its type, as the header says. */
  readonly contentType: string | null;
}

/** What is asked of a text: whether a pattern matches, or whether a JSONata expression is true of the JSON that it is. */
export type Question = { readonly pattern: RegExp } | { readonly expression: string };

/** What the text says to it. */
export interface Answer {
  /** Whether the pattern matches, or the expression is true. */
  readonly holds: boolean;
  /** What matched, or the expression's value; long ones are cut, and `null` stands for none. */
  readonly found: Json;
  /** Why there is no value. */
  readonly problem?: string;
}

const MAX_FOUND_LENGTH = 500;
/** JSONata's hook to bound an evaluation, which its types lack. */
const EVALUATE_ENTRY = Symbol.for("jsonata.__evaluate_entry");
const JSON_ESCAPES_REGEXP = /\\u(?:0000|d[89a-f])/i;

/** Text in the encoding that the content type names, UTF-8 where it names none that is known. */
export function decodeText({ kept, contentType }: EncodedText): string {
  const label = /charset\s*=\s*"?(?<label>[^\s;"]+)/i.exec(contentType ?? "")?.groups?.["label"] ?? "utf-8";
  let decoder: TextDecoder;
  try {
    decoder = new TextDecoder(label);
  } catch {
    decoder = new TextDecoder();
  }
  return kept.map((chunk) => decoder.decode(chunk, { stream: true })).join("") + decoder.decode();
}

/** Asks whether a pattern matches; for as long as that takes. */
export function answerPattern(pattern: RegExp, text: string): Answer {
  const match = pattern.exec(text);
  return { holds: match !== null, found: match === null ? null : clean(cut(match[0])) };
}

/** Options of {@linkcode answerWithin}. */
export interface AnswerWithinOptions {
  /** Text that is asked. */
  readonly text: string;
  /** Time that it may take, in ms. */
  readonly budgetMs: number;
}

/** Asks one question, for so long and no longer: `null` where the time ran out. */
export async function answerWithin(
  question: Question,
  { text, budgetMs }: AnswerWithinOptions,
): Promise<Answer | null> {
  const until = performance.now() + budgetMs;
  try {
    return "pattern" in question
      ? runUntil(until, () => answerPattern(question.pattern, text))
      : await answerExpression(question.expression, text, until);
  } catch (error) {
    if (error instanceof OutOfTimeError) return null;
    throw error;
  }
}

class OutOfTimeError extends Error {}

async function answerExpression(expression: string, text: string, until: number): Promise<Answer> {
  let input: unknown;
  try {
    input = JSON.parse(text);
  } catch {
    return { holds: false, found: null, problem: "the body is not JSON" };
  }
  class BoundedRegExp extends RegExp {
    override exec(text: string): RegExpExecArray | null {
      return runUntil(until, () => super.exec(text));
    }
  }
  const compiled = jsonata(expression, { RegexEngine: BoundedRegExp as RegExpConstructor });
  // JSONata calls this before each step.
  compiled.assign(EVALUATE_ENTRY as unknown as string, () => {
    if (performance.now() > until) throw new OutOfTimeError();
  });
  try {
    const value: unknown = await compiled.evaluate(input);
    return { holds: value === true, found: toJson(value) };
  } catch (error) {
    if (error instanceof OutOfTimeError) throw error;
    const message = error instanceof Error ? errorMessage(error) : String((error as { message?: unknown }).message);
    return { holds: false, found: null, problem: clean(cut(message)) };
  }
}

/**
 * Runs what blocks this thread, until a time at most. V8 ends a script from another thread, a regular expression in its
 * middle too; a function can only be run as part of one.
 *
 * @throws {OutOfTimeError}
 */
function runUntil<T>(until: number, run: () => T): T {
  const timeout = Math.ceil(until - performance.now());
  if (timeout <= 0) throw new OutOfTimeError();
  const script = globalThis as unknown as { evaluation?: () => T };
  script.evaluation = run;
  try {
    return runInThisContext("globalThis.evaluation()", { timeout }) as T;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ERR_SCRIPT_EXECUTION_TIMEOUT") {
      throw new OutOfTimeError();
    }
    throw error;
  } finally {
    delete script.evaluation;
  }
}

/** Value as JSON, or its beginning as text where it is long or is nothing that PostgreSQL takes. */
function toJson(value: unknown): Json {
  const json = JSON.stringify(value) as string | undefined;
  if (json === undefined) return null;
  return json.length > MAX_FOUND_LENGTH || JSON_ESCAPES_REGEXP.test(json) ? clean(cut(json)) : JSON.parse(json);
}

function cut(text: string): string {
  return text.length > MAX_FOUND_LENGTH ? text.slice(0, MAX_FOUND_LENGTH) + "…" : text;
}

/** Text as PostgreSQL takes it: without NUL and without halves of a surrogate pair. */
function clean(text: string): string {
  return text.toWellFormed().replaceAll("\0", "\ufffd");
}
