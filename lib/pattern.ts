const GLOBAL_FLAGS_REGEXP = /^\(\?(?<flags>[a-zA-Z]+)\)/;
const START_OF_TEXT = "(?<![\\s\\S])";
const END_OF_TEXT = "(?![\\s\\S])";

/**
 * Compiles a pattern: JavaScript's syntax, and what Python's `re` writes differently as Python means it, so that the
 * patterns of the Python program keep their meaning: `(?i)`, `(?m)`, `(?s)` and `(?u)` in front, `(?P<name>…)`,
 * `(?P=name)`, `\A` and `\Z`.
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
  let flags = "";
  const leading = GLOBAL_FLAGS_REGEXP.exec(text);
  for (const flag of leading?.groups?.["flags"] ?? "") {
    if (!"imsu".includes(flag)) {
      throw new SyntaxError(`expected flags among i, m, s and u in (?…), got '${flag}'`);
    }
    if (flag !== "u" && !flags.includes(flag)) flags += flag;
  }
  const source = translate(text.slice(leading?.[0].length ?? 0));
  try {
    return new RegExp(source, flags);
  } catch (error) {
    const reason = error instanceof Error ? error.message.replace(/^Invalid regular expression: .*: /s, "") : "";
    throw new SyntaxError(`expected a regular expression (${reason})`, { cause: error });
  }
}

/** Rewrites what Python spells differently, outside of character classes and escapes. */
function translate(pattern: string): string {
  let result = "";
  let inClass = false;
  for (let i = 0; i < pattern.length;) {
    const rest = pattern.slice(i, i + 4);
    if (rest.startsWith("\\")) {
      const escape = pattern.slice(i, i + 2);
      result += inClass ? escape : escape === "\\A" ? START_OF_TEXT : escape === "\\Z" ? END_OF_TEXT : escape;
      i += 2;
    } else if (!inClass && rest === "(?P<") {
      result += "(?<";
      i += 4;
    } else if (!inClass && rest === "(?P=") {
      const end = pattern.indexOf(")", i);
      result += `\\k<${pattern.slice(i + 4, end < 0 ? undefined : end)}>`;
      i = end < 0 ? pattern.length : end + 1;
    } else {
      if (rest.startsWith("[")) inClass = true;
      else if (rest.startsWith("]")) inClass = false;
      result += pattern[i];
      i += 1;
    }
  }
  return result;
}
