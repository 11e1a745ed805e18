/** A pattern that a text is searched for. */
export interface Pattern {
  /** As it was written. */
  readonly text: string;
  /** Compiled. */
  readonly regexp: RegExp;
  /** Whether it is proven to be quick, see {@linkcode isLinear}. */
  readonly linear: boolean;
}

const GLOBAL_FLAGS_REGEXP = /^(?:\(\?[a-zA-Z]+\))+/;
const START_OF_TEXT = "(?<![\\s\\S])";
const END_OF_TEXT = "(?![\\s\\S])";
/** Letters that mean something behind a backslash; JavaScript takes any other for itself, Python refuses it. */
const ESCAPED_LETTERS = "bBcdDfnrsStuvwWx";
/** What matches other text in JavaScript than in Python, and how it is written for both. */
const AMBIGUITIES: readonly { regexp: RegExp; advice: string }[] = [
  { regexp: /^\[\^?\]/, advice: "\\] for a bracket in a class, or [\\s\\S] for any character" },
  { regexp: /^\{,\d+\}/, advice: "{0,n} for up to n times, or \\{ for a brace" },
];

/**
 * Compiles a pattern: JavaScript's syntax, and what Python's `re` writes differently as Python means it, so that the
 * patterns of the Python program keep their meaning: `(?i)`, `(?m)`, `(?s)` and `(?u)` in front, `(?P<name>…)`,
 * `(?P=name)`, `\A` and `\Z`.
 *
 * What JavaScript takes without a word and not as it was meant is refused: `[]…]` and `{,5}`, which Python reads
 * differently, unknown escapes such as `\h`, and a reference to a group that is not there. `\p{…}` brings the flag `u`.
 *
 * @throws {SyntaxError} when it is no pattern, with what is wrong with it.
 * @see https://docs.python.org/3/library/re.html#regular-expression-syntax
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.ok(compilePattern("(?i)\\Aabout").test("About us"));
 * assert.equal(compilePattern("(?P<year>\\d{4})").exec("in 2026")?.groups?.["year"], "2026");
 * ```
 */
export function compilePattern(text: string): RegExp {
  const leading = GLOBAL_FLAGS_REGEXP.exec(text)?.[0] ?? "";
  const flags = new Set(leading.replaceAll(/[()?]/g, ""));
  for (const flag of flags) {
    if (!"imsu".includes(flag)) {
      throw new SyntaxError(`expected flags among i, m, s and u in ${leading}, not '${flag}'`);
    }
  }
  // Python's u is what it does anyway; JavaScript's is stricter and slower.
  flags.delete("u");
  const { source, unicode } = translate(text.slice(leading.length));
  if (unicode) flags.add("u");
  try {
    return new RegExp(source, [...flags].join(""));
  } catch (error) {
    const reason = error instanceof Error ? error.message.replace(/^Invalid regular expression: .*: /s, "") : "";
    throw new SyntaxError(`expected a regular expression (${reason})`, { cause: error });
  }
}

/** A pattern with what is known of it, see {@linkcode compilePattern}. */
export function readPattern(text: string): Pattern {
  const regexp = compilePattern(text);
  return { text, regexp, linear: isLinear(regexp) };
}

/** Rewrites what Python spells differently, outside of character classes and escapes. */
function translate(pattern: string): { source: string; unicode: boolean } {
  const groups = new Set<string>();
  const references = new Set<string>();
  let source = "";
  let unicode = false;
  let inClass = false;

  function take(text: string, replacement = text): number {
    source += replacement;
    return text.length;
  }

  for (let i = 0; i < pattern.length;) {
    const rest = pattern.slice(i);
    const [escape] = /^\\./s.exec(rest) ?? [];
    const [reference, referenced = ""] = /^(?:\(\?P=([^)]*)\)|\\k<[^>]*>)/.exec(rest) ?? [];
    const [opening, group = ""] = /^\(\?P?<([^=!>][^>]*)>/.exec(rest) ?? [];
    if (!inClass) refuseAmbiguity(rest);
    if (!inClass && reference !== undefined) {
      const name = referenced || reference.slice("\\k<".length, -1);
      references.add(name);
      i += take(reference, `\\k<${name}>`);
    } else if (escape !== undefined) {
      if (!inClass && escape === "\\A") i += take(escape, START_OF_TEXT);
      else if (!inClass && escape === "\\Z") i += take(escape, END_OF_TEXT);
      else {
        const property = /^\\[pP]\{/.test(rest);
        if (!property && /[a-zA-Z]/.test(escape) && !ESCAPED_LETTERS.includes(escape.slice(1))) {
          throw new SyntaxError(`expected an escape that JavaScript knows, not '${escape}'`);
        }
        unicode ||= property;
        i += take(escape);
      }
    } else if (!inClass && opening !== undefined) {
      groups.add(group);
      i += take(opening, `(?<${group}>`);
    } else {
      if (rest.startsWith("[")) inClass = true;
      else if (rest.startsWith("]")) inClass = false;
      i += take(rest.slice(0, 1));
    }
  }
  for (const name of references) {
    if (!groups.has(name)) throw new SyntaxError(`expected a reference to a group of the pattern, not '${name}'`);
  }
  return { source, unicode };
}

function refuseAmbiguity(rest: string): void {
  for (const { regexp, advice } of AMBIGUITIES) {
    const [match] = regexp.exec(rest) ?? [];
    if (match !== undefined) {
      throw new SyntaxError(`expected ${advice} instead of ${match}, which JavaScript and Python read differently`);
    }
  }
}

const ESCAPE_OR_CLASS_REGEXP = /\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]/gs;
/** Of parts that may match in two ways, as many as are tried in no time at each place of a text: 2⁶ ways. */
const MAX_BRANCHES = 6;

/**
 * Whether it is proven that the pattern takes a time that grows with the length of the text and no faster: nothing of it
 * repeats, or V8's linear engine takes it. That engine is there to be asked with the V8 flag
 * `--enable-experimental-regexp-engine`; without it, or with the flags i and u, patterns that repeat are not proven.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.ok(isLinear(/It works|Up/i));
 * assert.ok(!isLinear(/^(\w+\s?)*$/i));
 * ```
 */
export function isLinear({ source, flags }: RegExp): boolean {
  const bare = source.replaceAll(ESCAPE_OR_CLASS_REGEXP, "x");
  if (!/[*+{]/.test(bare) && bare.split(/[?|]/).length - 1 <= MAX_BRANCHES) return true;
  try {
    return new RegExp(source, flags + "l").source === source;
  } catch {
    return false;
  }
}
