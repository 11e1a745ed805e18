import assert from "node:assert/strict";
import { compilePattern } from "../lib/pattern.ts";

const MATCHES: readonly { pattern: string; matches: string; not: string }[] = [
  { pattern: "^It works!$", matches: "It works!", not: "it works!" },
  { pattern: "(?i)it WORKS", matches: "It works", not: "It sleeps" },
  { pattern: "(?is)a.b", matches: "A\nB", not: "ab" },
  { pattern: "(?i)(?s)a.b", matches: "A\nB", not: "ab" },
  { pattern: "(?m)^b$", matches: "a\nb\nc", not: "abc" },
  { pattern: "(?u)é", matches: "é", not: "e" },
  { pattern: "(?i:a)b", matches: "Ab", not: "AB" },
  { pattern: "(?P<tag>b|i)x(?P=tag)", matches: "bxb", not: "bxi" },
  { pattern: "(?<tag>b|i)x\\k<tag>", matches: "ixi", not: "bxi" },
  { pattern: "(?<=a)b(?!c)(?<!x)", matches: "ab", not: "abc" },
  { pattern: "\\Aab", matches: "abc", not: "\nab" },
  { pattern: "(?m)ab\\Z", matches: "cab", not: "ab\n" },
  { pattern: "\\\\A", matches: "C:\\A", not: "A" },
  { pattern: "[\\](?P<]+x", matches: "(?P<]x", not: "x" },
  { pattern: "[[]x", matches: "[x", not: "x" },
  { pattern: "[^\\]]{2}x", matches: "abx", not: "]]x" },
  { pattern: "^a{0,2}$", matches: "aa", not: "aaa" },
  { pattern: "^\\p{L}+$", matches: "größe", not: "a1" },
  { pattern: "^\\/\\-\\é$", matches: "/-é", not: "/-e" },
];

Deno.test.each(MATCHES)("compilePattern() gives $pattern its meaning", ({ pattern, matches, not }) => {
  const compiled = compilePattern(pattern);
  assert.ok(compiled.test(matches), `${compiled} should match ${matches}`);
  assert.ok(!compiled.test(not), `${compiled} should not match ${not}`);
});

Deno.test("compilePattern() takes Python's names of groups", () => {
  assert.deepEqual({ ...compilePattern("(?P<year>\\d{4})-(?P<month>\\d\\d)").exec("2026-11")?.groups }, {
    year: "2026",
    month: "11",
  });
});

const REFUSED: readonly { pattern: string; message: string }[] = [
  { pattern: "(", message: "expected a regular expression (Unterminated group)" },
  { pattern: "a: (b: ", message: "expected a regular expression (Unterminated group)" },
  { pattern: "[a", message: "expected a regular expression (Unterminated character class)" },
  { pattern: "a++", message: "expected a regular expression (Nothing to repeat)" },
  { pattern: "a(?i)", message: "expected a regular expression (Invalid group)" },
  { pattern: "(?#c)", message: "expected a regular expression (Invalid group)" },
  { pattern: "(?P=tag", message: "expected a regular expression (Invalid group)" },
  { pattern: "(?x) a", message: "expected flags among i, m, s and u in (?x), not 'x'" },
  { pattern: "(?iL)a", message: "expected flags among i, m, s and u in (?iL), not 'L'" },
  { pattern: "(?P=tag)", message: "expected a reference to a group of the pattern, not 'tag'" },
  { pattern: "\\k<tag>", message: "expected a reference to a group of the pattern, not 'tag'" },
  { pattern: "a\\h", message: "expected an escape that JavaScript knows, not '\\h'" },
  { pattern: "a\\z", message: "expected an escape that JavaScript knows, not '\\z'" },
  { pattern: "\\pL", message: "expected an escape that JavaScript knows, not '\\p'" },
  { pattern: "a\\", message: "expected a regular expression (\\ at end of pattern)" },
  {
    pattern: "[^]]+",
    message:
      "expected \\] for a bracket in a class, or [\\s\\S] for any character instead of [^], which JavaScript and Python read differently",
  },
  {
    pattern: "[]abc]",
    message:
      "expected \\] for a bracket in a class, or [\\s\\S] for any character instead of [], which JavaScript and Python read differently",
  },
  {
    pattern: "a{,5}",
    message:
      "expected {0,n} for up to n times, or \\{ for a brace instead of {,5}, which JavaScript and Python read differently",
  },
];

Deno.test.each(REFUSED)("compilePattern() refuses $pattern", ({ pattern, message }) => {
  assert.throws(() => compilePattern(pattern), { name: "SyntaxError", message });
});

/** With the flag that the programs run with, and without it. */
const LINEAR: readonly { pattern: string; asked: boolean; bare: boolean }[] = [
  { pattern: "It works", asked: true, bare: true },
  { pattern: "(?i)it works|up", asked: true, bare: true },
  { pattern: "\\AIt (?:works|sleeps)[.!+*]?\\Z", asked: true, bare: true },
  { pattern: "a\\+b\\p{L}", asked: true, bare: true },
  { pattern: "\\w+@\\w+", asked: true, bare: false },
  { pattern: "^(a+)+$", asked: true, bare: false },
  { pattern: "(?i)a+", asked: false, bare: false },
  { pattern: "\\p{L}+", asked: false, bare: false },
  { pattern: "a*(?=b)", asked: false, bare: false },
  { pattern: "(a*)\\1", asked: false, bare: false },
  { pattern: "a?a?a?a?a?a?a?b(?=c)", asked: false, bare: false },
];

Deno.test.each(
  [
    { what: "what V8 proves", flags: ["--v8-flags=--enable-experimental-regexp-engine"], key: "asked" },
    { what: "less without the flag", flags: [], key: "bare" },
  ] as const,
)("isLinear() knows $what", async ({ flags, key }) => {
  const script = `
    import { compilePattern, isLinear } from ${JSON.stringify(import.meta.resolve("../lib/pattern.ts"))};
    console.log(JSON.stringify(${JSON.stringify(LINEAR.map(({ pattern }) => pattern))}
      .map((pattern) => isLinear(compilePattern(pattern)))));`;
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", "--quiet", ...flags, script],
    cwd: new URL("..", import.meta.url),
    stdout: "piped",
  }).output();
  assert.deepEqual(JSON.parse(new TextDecoder().decode(stdout)), LINEAR.map((expected) => expected[key]));
});
