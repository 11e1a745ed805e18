import assert from "node:assert/strict";
import { ConfigError } from "../lib/error.ts";
import { type Ini, parseIni } from "../lib/ini.ts";

function parse(text: string): Ini {
  return parseIni(text, { path: "config.ini" });
}

/** Values of a text by section and key, those of `[DEFAULT]` among them. */
function values(text: string): Record<string, Record<string, string>> {
  return Object.fromEntries(
    parse(text).sections.map(({ name, entries, inherited }) => [
      name,
      Object.fromEntries([...new Map([...inherited, ...entries]).values()].map(({ key, value }) => [key, value])),
    ]),
  );
}

const READ: readonly { what: string; text: string; expected: Record<string, Record<string, string>> }[] = [
  { what: "takes = and : for the delimiter", text: "[a]\nx = 1\ny: 2", expected: { a: { x: "1", y: "2" } } },
  { what: "takes the first delimiter of a line", text: "[a]\nx = b:c=d", expected: { a: { x: "b:c=d" } } },
  { what: "takes keys in lower case, sections as written", text: "[A]\nURL = B", expected: { A: { url: "B" } } },
  {
    what: "joins indented lines to the value",
    text: "[a]\nx = 1\n  2\n\t3\ny = 4",
    expected: { a: { x: "1\n2\n3", y: "4" } },
  },
  { what: "lets a value begin in the next line", text: "[a]\nx =\n  1\n  2", expected: { a: { x: "1\n2" } } },
  {
    what: "keeps an empty line within a value",
    text: "[a]\nx = 1\n\n  2\n\n\ny = 3",
    expected: { a: { x: "1\n\n2", y: "3" } },
  },
  {
    what: "leaves comments out, also within a value",
    text: "# c\n[a] ; c\nx = 1\n  # c\n  2\n; c",
    expected: { a: { x: "1\n2" } },
  },
  { what: "takes a comment behind a value for a part of it", text: "[a]\nx = 1 # c", expected: { a: { x: "1 # c" } } },
  {
    what: "reads a section whose keys are all indented",
    text: "[a]\n  x = 1\n  y = 2",
    expected: { a: { x: "1", y: "2" } },
  },
  {
    what: "reads Windows line ends and a byte order mark",
    text: "\uFEFF[a]\r\nx = 1\r\n",
    expected: { a: { x: "1" } },
  },
  { what: "reads empty values and empty sections", text: "[a]\nx =\n[b]", expected: { a: { x: "" }, b: {} } },
  {
    what: "lets sections fall back to [DEFAULT]",
    text: "[DEFAULT]\nx = 1\ny = 1\n[a]\ny = 2",
    expected: { a: { x: "1", y: "2" } },
  },
  {
    what: "takes %% for a percent sign, and a single one as it stands",
    text: "[a]\nx = 5%% of 100%",
    expected: { a: { x: "5% of 100%" } },
  },
  {
    what: "puts other values in for %(key)s, and the values in those",
    text: "[a]\nx = %(Y)s/1\ny = %(z)s.org\nz = w",
    expected: { a: { x: "w.org/1", y: "w.org", z: "w" } },
  },
  {
    what: "resolves [DEFAULT] anew in each section",
    text: "[DEFAULT]\nurl = https://%(h)s/\n[a]\nh = x\n[b]\nh = y",
    expected: { a: { url: "https://x/", h: "x" }, b: { url: "https://y/", h: "y" } },
  },
  { what: "reads nothing from nothing", text: "\n\n# c\n", expected: {} },
];

Deno.test.each(READ)("parseIni() $what", ({ text, expected }) => {
  assert.deepEqual(values(text), expected);
});

const REFUSED: readonly { what: string; text: string; message: string }[] = [
  {
    what: "a line without delimiter, and does not show it",
    text: "[a]\npassword hunter2",
    message: "Cannot read the line (config.ini:2): expected [section], key = value or a # comment",
  },
  {
    what: "a key with a space, and does not show it",
    text: "[a]\npassword hun=ter2",
    message: "Cannot read the line (config.ini:2): expected [section], key = value or a # comment",
  },
  {
    what: "a header that is not closed",
    text: "[a\nx = 1",
    message: "Cannot read the line (config.ini:1): expected [section], key = value or a # comment",
  },
  {
    what: "a key behind a header",
    text: "[a] x = 1",
    message: "Cannot read the line (config.ini:1): expected [section], key = value or a # comment",
  },
  {
    what: "a key before the first section",
    text: "x = 1",
    message: "Cannot read key 'x' (config.ini:1): expected a [section] before the first key",
  },
  {
    what: "a section twice",
    text: "[a]\n[b]\n[a]",
    message: "Cannot read section [a] (config.ini:3): it is already there in line 1",
  },
  {
    what: "a key twice, whatever its case",
    text: "[a]\nx = 1\nX = 2",
    message: "Cannot read key 'x' (config.ini:3): it is already there in line 2",
  },
  {
    what: "a reference to no key",
    text: "[a]\nx = %(y)s",
    message:
      "Cannot resolve %(y)s in x (config.ini:2): expected a key of the section or of [DEFAULT]; %% stands for a percent sign",
  },
  {
    what: "a reference that leads back",
    text: "[a]\nx = %(x)s",
    message: "Cannot resolve %(x)s in x (config.ini:2): it leads back to itself",
  },
];

Deno.test.each(REFUSED)("parseIni() refuses $what", ({ text, message }) => {
  assert.throws(() => parse(text), { name: "ConfigError", message });
});

Deno.test("parseIni() keeps the lines of sections and keys", () => {
  const { sections } = parse("# c\n[a]\nx = 1\n  2\n\ny = 3");
  assert.equal(sections[0]?.line, 2);
  assert.deepEqual([...sections[0]?.entries.values() ?? []].map(({ line }) => line), [3, 6]);
});

Deno.test("parseIni() tells which keys are there for others", () => {
  assert.deepEqual([...parse("[a]\nx = %(y)s\ny = 1\nz = 2").referenced], ["y"]);
});

Deno.test("parseIni() reads a line of a million spaces at once", () => {
  const start = performance.now();
  assert.throws(() => parse(`[a]\nx${" ".repeat(1_000_000)}y`), ConfigError);
  assert.ok(performance.now() - start < 1_000);
});
