import { ConfigError } from "./error.ts";
import type { IniSection } from "./ini.ts";
import { HIDDEN } from "./secret.ts";
import { type Setting, SETTINGS, type SiteKey, type SiteValue } from "./setting.ts";
import { type Given, hideCredentials, parseGiven, type Source } from "./source.ts";

/**
 * Reads each value of `[defaults]`, since no site may come to take it.
 *
 * @throws {ConfigError} for the first that can't be parsed.
 */
export function checkDefaults(source: Source): void {
  for (const [key, setting] of Object.entries<Setting<unknown>>(SETTINGS.website)) {
    const given = source.siteEntry(undefined, key, setting);
    if (given !== undefined) parseLines(source, setting, { given, label: `${key} of [defaults]` });
  }
}

function parseLines(
  source: Source,
  setting: Setting<unknown>,
  { given, label }: { given: Given; label: string },
): unknown[] {
  return linesOf(setting, given).map((line) =>
    parseGiven(setting, setting.references ? source.resolve(line, label) : line, label)
  );
}

/** What is given, value by value. */
function linesOf({ several }: Setting<unknown>, given: Given): readonly Given[] {
  return several && given.lines !== undefined ? given.lines : [given];
}

function hideBehindName(text: string): string {
  return `${text.split(":", 1)[0]}: ${HIDDEN}`;
}

/** Options of {@linkcode SiteSource}. */
export interface SiteSourceOptions {
  /** Name of the site. */
  readonly name: string;
  /** Its section; undefined for the one site that `--url` or `URL` gives. */
  readonly section: IniSection | undefined;
}

/**
 * Where the settings of one site come from: flags before environment before its section before `[defaults]`.
 *
 * Flags and variables count where `--url` or `URL` gives the site, and those that say so (`everySite` of their
 * declaration) for each site of the file too.
 */
export class SiteSource {
  /** Name of the site. */
  readonly name: string;
  readonly #source: Source;
  readonly #section: IniSection | undefined;
  readonly #given = new Map<SiteKey, Given>();

  /** For the site of a section, or of `--url`. */
  constructor(source: Source, { name, section }: SiteSourceOptions) {
    this.name = name;
    this.#source = source;
    this.#section = section;
  }

  /**
   * Value of a setting, which `--check-config` shows then; what is not set gives the default of its declaration, and
   * where that has none, undefined or no values.
   *
   * @throws {ConfigError} when it can't be parsed, or is given by two of its names.
   */
  take<K extends SiteKey>(key: K): SiteValue<K> {
    const setting: Setting<unknown> = SETTINGS.website[key];
    const given = this.#find(key, setting);
    if (given === undefined) return (setting.several ? [] : setting.initial) as SiteValue<K>;
    this.#given.set(key, given);
    if (!setting.references) this.#source.warnOfReference(given, this.#label(key, given));
    const values = parseLines(this.#source, setting, { given, label: this.#label(key, given) });
    const [value] = values;
    this.show(
      key,
      setting.several
        ? linesOf(setting, given).map(({ text }) => setting.secret === "pair" ? hideBehindName(text) : text).join("\n")
        : setting.parse.format?.(value) ??
          (setting.secret === "credentials" ? hideCredentials(given.text) : given.text),
    );
    return (setting.several ? values : value) as SiteValue<K>;
  }

  /** Whether a setting that was taken is given, and not by default. */
  has(key: SiteKey): boolean {
    return this.#given.has(key);
  }

  /** Where a setting that was taken is given, the stronger the greater: not at all, for all sites, for the site, by flag. */
  precedence(key: SiteKey): number {
    const given = this.#given.get(key);
    if (given === undefined) return 0;
    if (/^(?:--|environment variable )/.test(given.origin)) return 3;
    return this.#isCommon(key, given) ? 1 : 2;
  }

  /** Text of a setting that was taken, as it is given. */
  text(key: SiteKey): string | undefined {
    return this.#given.get(key)?.text;
  }

  /** Of the values of a setting that was taken, in order, whether variables of the environment are part of them. */
  fromVariables(key: SiteKey): readonly boolean[] {
    const given = this.#given.get(key);
    if (given === undefined) return [];
    return linesOf(SETTINGS.website[key], given).map((line) =>
      this.#source.resolve(line, this.#label(key, given)).resolved !== line.text
    );
  }

  /** What is wrong with a setting that was taken, for errors: "interval of website 'apache' (config.ini:14)". */
  label(key: SiteKey): string {
    const given = this.#given.get(key);
    return `${this.#label(key, given)} (${given?.origin ?? "default"})`;
  }

  /**
   * A setting that was taken can't be used, alone or beside others.
   *
   * @param expected What is allowed: "expected tls_key beside it, got none".
   */
  refuse(key: SiteKey, expected: string): ConfigError {
    return new ConfigError(`Cannot use ${this.label(key)}: ${expected}`);
  }

  /** Whether each site is to be checked only once. */
  get once(): boolean {
    const { once, trace } = this.#source.commandLine;
    return once || trace !== undefined;
  }

  /** Says what is allowed, yet probably not meant. */
  warn(warning: string): void {
    this.#source.warn(warning);
  }

  /** Says that a setting that was taken changes nothing. One of `[defaults]` may well be meant for other sites. */
  warnOfNoEffect(key: SiteKey, why: string): void {
    if (this.precedence(key) > 1) this.warn(`${this.label(key)} has no effect: ${why}`);
  }

  /** Sets what `--check-config` shows of a setting that was taken; of a secret it shows nothing, whatever this says. */
  show(key: SiteKey, value: string): void {
    const setting: Setting<unknown> = SETTINGS.website[key];
    this.#source.show(`website_${this.name}`, key, {
      value: setting.secret === "value" ? HIDDEN : value,
      origin: this.#given.get(key)?.origin ?? "default",
    });
  }

  #find(key: SiteKey, setting: Setting<unknown>): Given | undefined {
    const alone = this.#section === undefined;
    const { everySite } = setting;
    return (alone || everySite !== undefined ? this.#source.flag(key, setting) : undefined) ??
      (alone || everySite === "flag and variable" ? this.#source.variable(key, setting) : undefined) ??
      this.#source.siteEntry(this.#section, key, setting);
  }

  #label(key: SiteKey, given: Given | undefined): string {
    const isCommon = given !== undefined && this.#isCommon(key, given);
    return isCommon ? `${key} of [defaults]` : `${key} of website '${this.name}'`;
  }

  #isCommon(key: SiteKey, { origin }: Given): boolean {
    return origin === this.#source.siteEntry(undefined, key, SETTINGS.website[key])?.origin;
  }
}
