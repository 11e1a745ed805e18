import { ConfigError } from "./error.ts";

/** One `key = value` of a file. */
export interface IniEntry {
  /** Name, in lower case as Python's configparser has it. */
  readonly key: string;
  /** Value without surrounding space; the lines of a longer one are joined by a line feed. */
  readonly value: string;
  /** Line of the key, from 1. */
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
}

/** A parsed file. */
export interface Ini {
  /** Path that errors name. */
  readonly path: string;
  /** Sections in their order, `[DEFAULT]` not among them. */
  readonly sections: readonly IniSection[];
  /** Entries of `[DEFAULT]`, which every section falls back to. */
  readonly defaults: ReadonlyMap<string, IniEntry>;
}

/** Options of {@linkcode parseIni}. */
export interface ParseIniOptions {
  /** Path that errors name. */
  readonly path: string;
}

const HEADER_REGEXP = /^\[(?<name>.+)\]\s*(?:[#;].*)?$/;
const ENTRY_REGEXP = /^(?<key>.*?)\s*(?:[=:]\s*(?<value>.*))?$/s;
const COMMENT_REGEXP = /^\s*(?:[#;].*)?$/;
const REFERENCE_REGEXP = /%%|%\((?<key>[^)]+)\)s/g;

/**
 * Reads the dialect of Python's `configparser` and keeps line numbers, so that the files of the Python program go on
 * working and errors say where.
 *
 * Keys are separated by `=` or `:` and are not case-sensitive; whole-line comments begin with `#` or `;`; indented lines
 * continue a value; `[DEFAULT]` holds what all sections fall back to; `%(key)s` stands for another value of the section
 * and `%%` for a percent sign (a single one is taken as it stands).
 *
 * @throws {ConfigError} with path and line, for a line that is neither and for a section or key that stands twice.
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
  let open: { key: string; value: string[]; line: number; indent: number } | undefined;

  function close(): void {
    if (open === undefined) return;
    const { key, value, line } = open;
    entries?.set(key, { key, value: value.join("\n").trim(), line });
    open = undefined;
  }

  for (const [index, raw] of text.replace(/^\uFEFF/, "").split(/\r\n|\n|\r/).entries()) {
    const line = index + 1;
    const where = `${path}:${line}`;
    const content = raw.trim();
    if (COMMENT_REGEXP.test(raw)) {
      if (content === "") open?.value.push("");
      continue;
    }
    const indent = raw.length - raw.trimStart().length;
    if (open !== undefined && indent > open.indent) {
      open.value.push(content);
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
    const match = ENTRY_REGEXP.exec(content)?.groups;
    const key = (match?.["key"] ?? "").toLowerCase();
    if (key === "" || match?.["value"] === undefined) {
      throw new ConfigError(
        `Cannot read the line (${where}): expected [section], key = value or a # comment, got ${quote(content)}`,
      );
    }
    if (entries === undefined) {
      throw new ConfigError(`Cannot read key ${quote(key)} (${where}): expected a [section] before the first key`);
    }
    const twin = entries.get(key);
    if (twin !== undefined) {
      throw new ConfigError(`Cannot read key ${quote(key)} (${where}): it is already there in line ${twin.line}`);
    }
    open = { key, value: [match["value"]], line, indent };
  }
  close();

  const defaults = sections.get("DEFAULT")?.entries ?? new Map<string, IniEntry>();
  sections.delete("DEFAULT");
  return {
    path,
    defaults: interpolate(defaults, defaults),
    sections: [...sections].map(([name, section]) => ({
      name,
      line: section.line,
      entries: interpolate(section.entries, defaults),
    })),
  };
}

/** Replaces `%(key)s` by the value of that key, one level deep, and `%%` by `%`; what names no key stays as it is. */
function interpolate(
  entries: ReadonlyMap<string, IniEntry>,
  defaults: ReadonlyMap<string, IniEntry>,
): Map<string, IniEntry> {
  const resolve = (value: string) =>
    value.replaceAll(REFERENCE_REGEXP, (match, key: string | undefined) => {
      if (key === undefined) return "%";
      const name = key.toLowerCase();
      return (entries.get(name) ?? defaults.get(name))?.value ?? match;
    });
  return new Map([...entries].map(([key, entry]) => [key, { ...entry, value: resolve(entry.value) }]));
}

function quote(text: string): string {
  return `'${text.length > 80 ? text.slice(0, 79) + "…" : text}'`;
}
