import { distance } from "fastest-levenshtein";
import type { CommandLine } from "./command.ts";
import { ConfigError } from "./error.ts";
import { type Ini, type IniEntry, type IniSection, parseIni } from "./ini.ts";
import { nearest } from "./nearest.ts";
import { HIDDEN } from "./secret.ts";
import { environmentName, flagNames, type SectionName, type Setting, SETTINGS, variableNames } from "./setting.ts";
import { readTextFile } from "./text_file.ts";
import { checkTopicName } from "./topic.ts";

/** Looks an environment variable up. */
export type LookUpVariable = (name: string) => string | undefined;

/** A setting's text and where it stands. */
export interface Given {
  /** Text, not yet parsed. */
  readonly text: string;
  /** Flag, variable, or path and line. */
  readonly origin: string;
  /** Its values, of a setting that takes several. */
  readonly lines?: readonly Given[];
  /** Text with the values of the environment variables that it names; it may be a secret. Default: the text. */
  readonly resolved?: string;
}

/** A `[website_NAME]` of the file. */
export interface SiteSection {
  /** Name of the site. */
  readonly name: string;
  /** Path and line of the header. */
  readonly origin: string;
  /** The section. */
  readonly section: IniSection;
}

/** Section with what holds for all sites. */
const DEFAULTS_SECTION = "defaults";
const SITE_SECTION_REGEXP = /^website_(?<name>.*)$/s;
const MAX_SHOWN_LENGTH = 80;
/** Column of `--check-config` behind which stands where a value comes from. */
const SHOWN_WIDTH = 48;

/** `${NAME}`, and `$${` for what is to be left as `${`. */
const REFERENCE_REGEXP = /\$\$\{|\$\{(?<name>[^}]*)\}?/g;
const PLAIN_REFERENCE_REGEXP = /\$\{[A-Z_]\w*\}/i;
/** Environment variables that a value may name: the programs may read these, and those of settings. */
const REFERENCE_PREFIX = "SITE_CHECKER_";

/** Where settings come from: flags before environment before file. */
export class Source {
  /** What is allowed, yet probably not meant. */
  readonly warnings: string[] = [];
  /** What the command line says. */
  readonly commandLine: CommandLine;
  readonly #lookUpVariable: LookUpVariable;
  readonly #file: Ini | null;
  readonly #origins = new Map<string, string>();
  readonly #shown = new Map<string, Map<string, string>>();

  private constructor(commandLine: CommandLine, lookUpVariable: LookUpVariable, file: Ini | null) {
    this.commandLine = commandLine;
    this.#lookUpVariable = lookUpVariable;
    this.#file = file;
  }

  /**
   * Opens what is there; reads the file of `--config-path` or `CONFIG_PATH`.
   *
   * @throws {ConfigError} when the file can't be read, or has sections or keys that are not known.
   */
  static async open(commandLine: CommandLine, lookUpVariable: LookUpVariable): Promise<Source> {
    const path = commandLine.configPath ?? (lookUpVariable("CONFIG_PATH") || undefined);
    if (path === undefined) return new Source(commandLine, lookUpVariable, null);
    const file = parseIni(await readTextFile(path, "configuration file"), { path });
    checkNames(file);
    return new Source(commandLine, lookUpVariable, file);
  }

  /** Path of the file; null where there is none. */
  get path(): string | null {
    return this.#file?.path ?? null;
  }

  /** Path of the file, or how to name one. */
  get filePath(): string {
    return this.#file?.path ?? "the file of --config-path";
  }

  /**
   * Value of a setting by flag, variable or file; undefined where none has it.
   *
   * @throws {ConfigError} when it can't be parsed, or is given by two of its names.
   */
  take<S extends Exclude<SectionName, "website">, K extends keyof typeof SETTINGS[S] & string>(
    section: S,
    key: K,
  ): ReturnType<Extract<typeof SETTINGS[S][K], Setting<unknown>>["parse"]> | undefined {
    const setting = SETTINGS[section][key] as Setting<unknown>;
    const given = this.flag(key, setting) ?? this.variable(key, setting) ?? this.entry(section, key, setting);
    if (given === undefined) return undefined;
    this.#origins.set(`${section}.${key}`, given.origin);
    this.warnOfReference(given, `${key} of [${section}]`);
    return parseGiven(setting, given, `${key} of [${section}]`) as never;
  }

  /** Says what is allowed, yet probably not meant; once, of whatever holds for many sites. */
  warn(warning: string): void {
    if (!this.warnings.includes(warning)) this.warnings.push(warning);
  }

  /** Says that a variable of the environment is named where none is put in. */
  warnOfReference({ text, origin }: Given, label: string): void {
    if (PLAIN_REFERENCE_REGEXP.test(text)) {
      this.warn(`${label} (${origin}) has \${…} in it, which stands for no variable of the environment there`);
    }
  }

  /** Where a setting that was taken stands. */
  origin(section: SectionName, key: string): string {
    return this.#origins.get(`${section}.${key}`) ?? "default";
  }

  /** What a setting's flag or one of its aliases says. */
  flag(key: string, setting: Setting<unknown>): Given | undefined {
    const { flags, lists } = this.commandLine;
    return onlyOne(
      flagNames(key, setting).map((flag) => {
        const origin = `--${flag}`;
        const lines = lists.get(flag)?.map((text) => ({ text, origin }));
        const text = lines?.map(({ text }) => text).join("\n") ?? flags.get(flag);
        return { origin, text, ...(lines && { lines }) };
      }),
    );
  }

  /** What a setting's environment variable or one of its aliases says; an empty one counts as not set. */
  variable(key: string, setting: Setting<unknown>): Given | undefined {
    return onlyOne(this.variables(key, setting));
  }

  /** A setting's environment variables, those of its aliases behind it. */
  variables(key: string, setting: Setting<unknown>): readonly { origin: string; text: string | undefined }[] {
    return variableNames(key, setting).map((name) => this.#variable(name));
  }

  /** What the flag or the variable of something that is no setting of the file says. */
  flagOrVariable(flag: string): Given | undefined {
    return onlyOne([{ origin: `--${flag}`, text: this.commandLine.flags.get(flag) }]) ??
      onlyOne([this.#variable(environmentName(flag))]);
  }

  /** What a section of the file or `[DEFAULT]` says; an empty value counts as not set, as it did. */
  entry(section: string, key: string, setting: Setting<unknown>): Given | undefined {
    const found = this.#section(section);
    return this.#lookUp([found?.entries, found?.inherited ?? this.#file?.defaults], key, setting);
  }

  /**
   * What a site's section, `[defaults]` or `[DEFAULT]` says; an empty value in one of them takes back what those behind
   * it say.
   *
   * @param section The site's; without one, `[defaults]` alone is asked.
   */
  siteEntry(section: IniSection | undefined, key: string, setting: Setting<unknown>): Given | undefined {
    const defaults = this.#section(DEFAULTS_SECTION)?.entries;
    return this.#lookUp([section?.entries, defaults, section?.inherited], key, setting);
  }

  /**
   * Puts the values of environment variables in for `${SITE_CHECKER_…}`.
   *
   * @param label What it stands in, for errors: "bearer_token of website 'apache'".
   * @throws {ConfigError} when a variable has another name, or is not set.
   */
  resolve(given: Given, label: string): Given {
    const resolved = given.text.replaceAll(REFERENCE_REGEXP, (match, name: string | undefined) => {
      if (name === undefined) return "${";
      if (!name.startsWith(REFERENCE_PREFIX) || !match.endsWith("}")) {
        throw new ConfigError(
          `Cannot read ${label} (${given.origin}): expected \${${REFERENCE_PREFIX}…}, a variable of the environment, ` +
            "or $${ for ${ itself",
        );
      }
      const value = this.#lookUpVariable(name);
      if (value) return value;
      throw new ConfigError(`Cannot read ${label} (${given.origin}): environment variable ${name} is not set`);
    });
    return { ...given, resolved };
  }

  #section(name: string): IniSection | undefined {
    return this.#file?.sections.find((section) => section.name === name);
  }

  /** What the first of some places that has the key says. */
  #lookUp(
    places: readonly (ReadonlyMap<string, IniEntry> | undefined)[],
    key: string,
    { aliases = [] }: Setting<unknown>,
  ): Given | undefined {
    const names = [key, ...aliases];
    const place = places.find((entries) => names.some((name) => entries?.has(name)));
    return onlyOne(names.map((name) => {
      const entry = place?.get(name);
      const originOf = (line: number | undefined) => `${this.#file?.path}:${line}`;
      const lines = entry?.lines.map(({ text, line }) => ({ text, origin: originOf(line) })) ?? [];
      return { name, origin: originOf(entry?.line), text: entry?.value || undefined, lines };
    }));
  }

  /**
   * The sites of the file.
   *
   * @throws {ConfigError} when Kafka does not take a name for a topic, or takes two for the same.
   */
  siteSections(): SiteSection[] {
    const sites = (this.#file?.sections ?? []).flatMap((section) => {
      const name = siteName(section.name);
      return name === undefined ? [] : [{ section, name, origin: `${this.#file?.path}:${section.line}` }];
    });
    const seen = new Map<string, SiteSection>();
    for (const site of sites) {
      checkTopicName(site.name, `name of website '${site.name}'`, site.origin);
      // Kafka's own metrics take . for _, so that it refuses a topic a.b where a_b is.
      const key = site.name.replaceAll(".", "_");
      const twin = seen.get(key);
      if (twin !== undefined) {
        throw new ConfigError(
          `Cannot use website '${site.name}' (${site.origin}): Kafka takes its topic for that of website ` +
            `'${twin.name}' in line ${twin.section.line}, since . and _ count as the same: rename one`,
        );
      }
      seen.set(key, site);
    }
    return sites;
  }

  /** Sets a line of what `--check-config` prints. */
  show(section: SectionName | `website_${string}`, key: string, { value, origin }: ShowOptions): void {
    const lines = this.#shown.get(section) ?? new Map<string, string>();
    const where = origin ?? this.origin(section as SectionName, key);
    const text = `${key} = ${value.replaceAll("\n", "\n  ")}`;
    const lastLine = text.slice(text.lastIndexOf("\n") + 1);
    lines.set(key, `${text}${" ".repeat(Math.max(0, SHOWN_WIDTH - lastLine.length))} ; ${where}`);
    this.#shown.set(section, lines);
  }

  /** The lines of {@linkcode Source.show}, by section. */
  effective(): string[] {
    return [...this.#shown].flatMap(([section, lines], index) => [
      ...(index > 0 ? [""] : []),
      `[${section}]`,
      ...lines.values(),
    ]);
  }

  #variable(name: string): { origin: string; text: string | undefined } {
    return { origin: `environment variable ${name}`, text: this.#lookUpVariable(name) || undefined };
  }
}

/** Options of {@linkcode Source.show}. */
export interface ShowOptions {
  /** Value as it may be shown. */
  readonly value: string;
  /** Where it stands. Default: where it was taken from. */
  readonly origin?: string;
}

/**
 * Parses a setting's text.
 *
 * @param label What it is, for errors: "interval of website 'apache'".
 * @throws {ConfigError} with where it stands, what is allowed and what is there, secrets hidden.
 */
export function parseGiven<T>(setting: Setting<T>, { text, origin, resolved = text }: Given, label: string): T {
  try {
    return setting.parse(resolved);
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof RangeError)) throw error;
    const shown = setting.secret === "credentials" ? hideCredentials(text) : text;
    const got = setting.secret === "value" || setting.secret === "pair" ? "" : `, got '${shorten(shown)}'`;
    throw new ConfigError(`Cannot read ${label} (${origin}): ${error.message}${got}`);
  }
}

/** One of several ways to give a setting; without a text it is not taken. */
interface Candidate {
  /** Key, where the origin alone does not say it. */
  readonly name?: string;
  readonly origin: string;
  readonly text: string | undefined;
  readonly lines?: readonly Given[];
}

/** The one of several names of a setting that is given; two are a mistake. */
function onlyOne(candidates: readonly Candidate[]): Given | undefined {
  const [first, second] = candidates.filter((candidate): candidate is Candidate & Given =>
    candidate.text !== undefined
  );
  if (first !== undefined && second !== undefined) {
    const describe = ({ name, origin }: Candidate) => name === undefined ? origin : `${name} (${origin})`;
    throw new ConfigError(
      `Cannot use ${describe(second)} beside ${describe(first)}, which means the same: expected one of them`,
    );
  }
  if (first === undefined) return undefined;
  const { text, origin, lines } = first;
  return { text, origin, ...(lines && { lines }) };
}

/** Hides user and password of an address that may be broken: all up to the last @, but for the scheme. */
export function hideCredentials(text: string): string {
  return text.replace(/^(\s*\w+:\/\/)?.*@/s, `$1${HIDDEN}@`);
}

function shorten(text: string): string {
  const line = text.replaceAll("\n", " ");
  return line.length > MAX_SHOWN_LENGTH ? line.slice(0, MAX_SHOWN_LENGTH - 1) + "…" : line;
}

function siteName(section: string): string | undefined {
  return SITE_SECTION_REGEXP.exec(section)?.groups?.["name"];
}

function checkNames(file: Ini): void {
  const { path, sections, defaults } = file;
  const sectionNames = [DEFAULTS_SECTION, ...Object.keys(SETTINGS).filter((name) => name !== "website")];
  for (const { name, line, entries } of sections) {
    const isSite = siteName(name) !== undefined;
    if (!isSite && !sectionNames.includes(name)) {
      throw new ConfigError(
        `Cannot read section [${shorten(name)}] (${path}:${line}): expected [website_NAME] or one of ` +
          `${sectionNames.map((known) => `[${known}]`).join(", ")}${suggest(nearestSection(name, sectionNames))}`,
      );
    }
    checkKeys(entries, { file, name, known: keysOf(isSite ? "website" : name) });
  }
  checkKeys(defaults, { file, name: "DEFAULT", known: Object.keys(SETTINGS).flatMap((section) => keysOf(section)) });
}

function nearestSection(name: string, sectionNames: readonly string[]): string | undefined {
  if (distance(name.slice(0, "website_".length).toLowerCase(), "website_") <= 2) {
    return `[website_${name.replace(/^[a-z]*[ _.:-]?/i, "") || "NAME"}]`;
  }
  const known = nearest(name, [...sectionNames, "DEFAULT"]);
  return known === undefined ? undefined : `[${known}]`;
}

function checkKeys(
  entries: ReadonlyMap<string, IniEntry>,
  { file: { path, referenced }, name, known }: { file: Ini; name: string; known: readonly string[] },
): void {
  for (const { key, value, line } of entries.values()) {
    // What a %(key)s names may be there for that alone.
    if (!known.includes(key) && !referenced.has(key)) {
      throw new ConfigError(
        `Cannot read key '${shorten(key)}' of [${name}] (${path}:${line}): expected one of ${known.join(", ")}` +
          suggest(nearest(key, known)),
      );
    }
    const swallowed = value.split("\n").slice(1).find((more) =>
      /^\[.+\]$/.test(more) || !LIST_KEYS.has(key) && /[=:]/.test(more) &&
        known.includes(more.split(/[=:]/)[0]?.trim().toLowerCase() ?? "")
    );
    if (swallowed !== undefined) {
      throw new ConfigError(
        `Cannot read key '${key}' of [${name}] (${path}:${line}): an indented line continues its value, and one that ` +
          `follows it is a section or key of its own: expected no space before ` +
          `'${swallowed.split(/[=:]/)[0]?.trim()}'`,
      );
    }
  }
}

function suggest(name: string | undefined): string {
  return name === undefined ? "" : `; did you mean ${name}?`;
}

/** Keys of a section, aliases among them; `[defaults]` has those of a site, all but its address. */
function keysOf(section: string): string[] {
  const settings = SETTINGS[section === DEFAULTS_SECTION ? "website" : section as SectionName];
  return Object.entries<Setting<unknown>>(settings)
    .filter(([key]) => section !== DEFAULTS_SECTION || key !== "url")
    .flatMap(([key, { aliases = [] }]) => [key, ...aliases]);
}

/** Keys whose lines are values of their own, and may well look like a key with a value; patterns hardly ever do. */
const LIST_KEYS: ReadonlySet<string> = new Set(
  Object.entries<Setting<unknown>>(SETTINGS.website)
    .filter(([, { several, parse }]) => several && parse.kind !== "regular expression")
    .map(([key]) => key),
);
