import { ConfigError } from "./error.ts";

/** One `key = value` of a file. */
export interface IniEntry {
  /** Name, in lower case as Python's configparser has it. */
  readonly key: string;
  /** Value without surrounding space; the lines of a longer one are joined by a line feed. */
  readonly value: string;
  /** Line of the key, from 1. */
  readonly line: number;
  /** Lines of the value that are not empty, for keys that take one value a line. */
  readonly lines: readonly IniLine[];
}

/** One line of a value. */
export interface IniLine {
  /** Text without surrounding space. */
  readonly text: string;
  /** Line, from 1. */
  readonly line: number;
}

/** One `[section]` of a file. */
export interface IniSection {
  /** Name, as written. */
  readonly name: string;
  /** Line of the header, from 1. */
  readonly line: number;
  /** Entries by key, those of `[DEFAULT]` not among them. */
  readonly entries: ReadonlyMap<string, IniEntry>;
  /** Entries of `[DEFAULT]`, which hold where the section has none of that key. */
  readonly inherited: ReadonlyMap<string, IniEntry>;
}

/** A parsed file. */
export interface Ini {
  /** Path that errors name. */
  readonly path: string;
  /** Sections in their order, `[DEFAULT]` not among them. */
  readonly sections: readonly IniSection[];
  /** Entries of `[DEFAULT]`, which every section falls back to. */
  readonly defaults: ReadonlyMap<string, IniEntry>;
  /** Keys that a `%(key)s` names: they may serve no other purpose. */
  readonly referenced: ReadonlySet<string>;
}

/** Options of {@linkcode parseIni}. */
export interface ParseIniOptions {
  /** Path that errors name. */
  readonly path: string;
}

const HEADER_REGEXP = /^\[(?<name>[^\]]+)\]\s*(?:[#;].*)?$/;
const KEY_REGEXP = /^[^\s[\]]+$/;
const COMMENT_REGEXP = /^\s*(?:[#;].*)?$/;
const REFERENCE_REGEXP = /%%|%\((?<key>[^)]+)\)s/g;
/** As many as Python follows. */
const MAX_REFERENCE_DEPTH = 10;

/**
 * Reads the dialect of Python's `configparser` and keeps line numbers, so that the files of the Python program go on
 * working and errors say where.
 *
 * Keys are separated by `=` or `:` and are not case-sensitive; whole-line comments begin with `#` or `;`; indented lines
 * continue a value; `[DEFAULT]` holds what all sections fall back to; `%(key)s` stands for another value of the section
 * and `%%` for a percent sign (a single one is taken as it stands). Keys have no space within. A line that can't be read
 * is not shown, since it may hold a password.
 *
 * @throws {ConfigError} with path and line, for a line that is neither, for a section or key that stands twice and for a
 * `%(key)s` that names none.
 * @see https://docs.python.org/3/library/configparser.html#supported-ini-file-structure
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const ini = parseIni("[kafka]\nbootstrap_servers = a:9092", { path: "config.ini" });
 * assert.equal(ini.sections[0]?.entries.get("bootstrap_servers")?.line, 2);
 * ```
 */
export function parseIni(text: string, { path }: ParseIniOptions): Ini {
  const sections = new Map<string, { line: number; entries: Map<string, IniEntry> }>();
  let entries: Map<string, IniEntry> | undefined;
  let open: { key: string; lines: IniLine[]; line: number; indent: number } | undefined;

  function close(): void {
    if (open === undefined) return;
    const { key, lines, line } = open;
    const value = lines.map(({ text }) => text).join("\n").trim();
    entries?.set(key, { key, value, line, lines: lines.filter(({ text }) => text !== "") });
    open = undefined;
  }

  for (const [index, raw] of text.replace(/^\uFEFF/, "").split(/\r\n|\n|\r/).entries()) {
    const line = index + 1;
    const where = `${path}:${line}`;
    const content = raw.trim();
    if (COMMENT_REGEXP.test(raw)) {
      if (content === "") open?.lines.push({ text: "", line });
      continue;
    }
    const indent = raw.length - raw.trimStart().length;
    if (open !== undefined && indent > open.indent) {
      open.lines.push({ text: content, line });
      continue;
    }
    close();
    const header = HEADER_REGEXP.exec(content)?.groups?.["name"];
    if (header !== undefined) {
      const twin = sections.get(header);
      if (twin !== undefined) {
        throw new ConfigError(`Cannot read section [${header}] (${where}): it is already there in line ${twin.line}`);
      }
      entries = new Map();
      sections.set(header, { line, entries });
      continue;
    }
    const delimiter = content.search(/[=:]/);
    const key = content.slice(0, Math.max(0, delimiter)).trim().toLowerCase();
    if (!KEY_REGEXP.test(key)) {
      throw new ConfigError(`Cannot read the line (${where}): expected [section], key = value or a # comment`);
    }
    if (entries === undefined) {
      throw new ConfigError(`Cannot read key '${key}' (${where}): expected a [section] before the first key`);
    }
    const twin = entries.get(key);
    if (twin !== undefined) {
      throw new ConfigError(`Cannot read key '${key}' (${where}): it is already there in line ${twin.line}`);
    }
    open = { key, lines: [{ text: content.slice(delimiter + 1).trim(), line }], line, indent };
  }
  close();

  const defaults = sections.get("DEFAULT")?.entries ?? new Map<string, IniEntry>();
  sections.delete("DEFAULT");
  const referenced = new Set<string>();
  return {
    path,
    defaults,
    referenced,
    sections: [...sections].map(([name, section]) => {
      const known = new Map([...defaults, ...section.entries]);
      const resolve = (entries: ReadonlyMap<string, IniEntry>) =>
        new Map([...entries].map(([key, entry]) => [key, resolveReferences(entry, { path, known, referenced })]));
      return { name, line: section.line, entries: resolve(section.entries), inherited: resolve(defaults) };
    }),
  };
}

interface ReferenceOptions {
  readonly path: string;
  /** What may be named. */
  readonly known: ReadonlyMap<string, IniEntry>;
  /** Takes the names. */
  readonly referenced: Set<string>;
}

/** Replaces `%(key)s` by the value of that key, also within that value, and `%%` by `%`. */
function resolveReferences(entry: IniEntry, { path, known, referenced }: ReferenceOptions): IniEntry {
  function resolve(value: string, depth: number): string {
    return value.replaceAll(REFERENCE_REGEXP, (match, reference: string | undefined) => {
      if (reference === undefined) return "%";
      const key = reference.toLowerCase();
      const target = known.get(key);
      const where = `${match} in ${entry.key} (${path}:${entry.line})`;
      if (target === undefined) {
        throw new ConfigError(
          `Cannot resolve ${where}: expected a key of the section or of [DEFAULT]; %% stands for a percent sign`,
        );
      }
      if (depth === MAX_REFERENCE_DEPTH) throw new ConfigError(`Cannot resolve ${where}: it leads back to itself`);
      referenced.add(key);
      return resolve(target.value, depth + 1);
    });
  }
  const lines = entry.lines.flatMap(({ text, line }) =>
    resolve(text, 0).split("\n").filter((text) => text !== "").map((text) => ({ text, line }))
  );
  return { ...entry, value: resolve(entry.value, 0), lines };
}
