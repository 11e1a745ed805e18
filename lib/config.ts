import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import { closest, distance } from "fastest-levenshtein";
import type { CommandLine } from "./command.ts";
import { ConfigError, errorMessage } from "./error.ts";
import { type Ini, type IniEntry, type IniSection, parseIni } from "./ini.ts";
import type { LOG_LEVELS } from "./log.ts";
import { compilePattern } from "./pattern.ts";
import { environmentName, flagNames, type SectionName, type Setting, SETTINGS, type SSL_MODES } from "./setting.ts";
import { formatDuration } from "./value.ts";

/** A site to check. */
export interface Site {
  /** Name, which is also the topic's and (nearly always) the table's. */
  readonly name: string;
  /** Address, without user and password. */
  readonly url: string;
  /** Value of the `authorization` header, from the URL's user and password. */
  readonly authorization: string | null;
  /** Pattern as written. */
  readonly regex: string | null;
  /** Pattern, compiled. */
  readonly pattern: RegExp | null;
  /** Time from start to start, in ms. */
  readonly intervalMs: number;
  /** Time that a check may take, in ms. */
  readonly timeoutMs: number;
}

/** TLS towards a server; all in PEM. */
export interface TlsSettings {
  /** Authorities; the system's where it is undefined. */
  readonly ca?: string;
  /** Client certificate. */
  readonly cert?: string;
  /** Its private key. */
  readonly key?: string;
}

/** How to reach Kafka. */
export interface KafkaSettings {
  /** `host:port` of the brokers to begin with. */
  readonly bootstrapServers: readonly string[];
  /** TLS, or null for plain text. */
  readonly tls: TlsSettings | null;
}

/** How to reach PostgreSQL. */
export interface PostgresSettings {
  /** Server. */
  readonly host: string;
  /** Its port. */
  readonly port: number;
  /** Role. */
  readonly user: string;
  /** Its password, if it has one. */
  readonly password: string | null;
  /** Database. */
  readonly database: string;
  /** Security, as libpq has it. */
  readonly sslmode: typeof SSL_MODES[number];
  /** Authorities in PEM; the system's where it is null. */
  readonly ca: string | null;
  /** Connections kept open. */
  readonly minConnection: number;
  /** Connections at most. */
  readonly maxConnection: number;
}

/** Which topics to read. */
export interface TopicSelection {
  /** Names. */
  readonly names: readonly string[];
  /** Patterns; every topic with a name that one of them matches as a whole. */
  readonly patterns: readonly RegExp[];
}

/** What both programs have. */
export interface CommonConfig {
  /** Least severe log lines to write. */
  readonly logLevel: typeof LOG_LEVELS[number];
  /** Every setting in force, with its origin, secrets hidden: what `--check-config` prints. */
  readonly effective: readonly string[];
  /** What is allowed, yet probably not meant. */
  readonly warnings: readonly string[];
}

/** Settings of the producer. */
export interface ProducerConfig extends CommonConfig {
  /** What to check. */
  readonly sites: readonly Site[];
  /** Where to publish; null where nothing is to be published (`--dry-run`). */
  readonly kafka: KafkaSettings | null;
  /** With `--once`: time until Kafka must have all, in ms. */
  readonly drainTimeoutMs: number;
}

/** Settings of the consumer. */
export interface ConsumerConfig extends CommonConfig {
  /** Where to read. */
  readonly kafka: KafkaSettings;
  /** Consumer group. */
  readonly groupId: string;
  /** What to read. */
  readonly topics: TopicSelection;
  /** Where to store; null where nothing is to be stored (`--dry-run`). */
  readonly postgres: PostgresSettings | null;
}

/** Options of {@linkcode readProducerConfig} and {@linkcode readConsumerConfig}. */
export interface ReadConfigOptions {
  /** Looks an environment variable up. Default: the process's own; an empty one counts as not set. */
  readonly env?: (name: string) => string | undefined;
}

const SITE_SECTION_REGEXP = /^website_(?<name>.*)$/s;
const TOPIC_REGEXP = /^[a-zA-Z0-9._-]{1,249}$/;
/** Topics of Kafka's own. */
const INTERNAL_TOPICS: ReadonlySet<string> = new Set([
  "__consumer_offsets",
  "__transaction_state",
  "__cluster_metadata",
]);
const LOOPBACK_REGEXP = /^(?:localhost|127(?:\.\d+){3}|::1|\[::1\])$/i;
/** Files that the Python program took where its configuration named none. */
const DEFAULT_TLS_FILES = {
  ssl_cafile: "./ca.pem",
  ssl_certfile: "./service.cert",
  ssl_keyfile: "./service.key",
} as const;
const DEFAULT_INTERVAL_MS = 20_000;
const DEFAULT_TIMEOUT_MS = 10_000;
/** A timeout equal to the interval would make a site that hangs miss every second check. */
const DEFAULT_TIMEOUT_SHARE = 0.8;
const DEFAULT_DRAIN_TIMEOUT_MS = 30_000;
const DEFAULT_POSTGRES_PORT = 5432;
const HIDDEN = "********";

/**
 * Reads the producer's settings: flags before environment before file before defaults.
 *
 * @throws {ConfigError} with where, what is wrong and what is allowed.
 */
export async function readProducerConfig(
  commandLine: CommandLine,
  { env = Deno.env.get }: ReadConfigOptions = {},
): Promise<ProducerConfig> {
  const settings = await Settings.read(commandLine, env);
  const logLevel = settings.logLevel();
  const sites = settings.sites();
  const kafka = commandLine.dryRun ? null : await settings.kafka();
  const drainTimeoutMs = settings.take("producer", "drain_timeout") ?? DEFAULT_DRAIN_TIMEOUT_MS;
  settings.show("producer", "drain_timeout", formatDuration(drainTimeoutMs));
  return { logLevel, sites, kafka, drainTimeoutMs, effective: settings.effective(), warnings: settings.warnings };
}

/**
 * Reads the consumer's settings: flags before environment before file before defaults.
 *
 * @throws {ConfigError} with where, what is wrong and what is allowed.
 */
export async function readConsumerConfig(
  commandLine: CommandLine,
  { env = Deno.env.get }: ReadConfigOptions = {},
): Promise<ConsumerConfig> {
  const settings = await Settings.read(commandLine, env);
  const logLevel = settings.logLevel();
  const kafka = await settings.kafka();
  const groupId = settings.take("kafka", "group_id") ?? "site_checker";
  settings.show("kafka", "group_id", groupId);
  const topics = settings.topics(commandLine.topics);
  const postgres = commandLine.dryRun ? null : await settings.postgres();
  return { logLevel, kafka, groupId, topics, postgres, effective: settings.effective(), warnings: settings.warnings };
}

/** A setting's text and where it stands. */
interface Given {
  readonly text: string;
  readonly origin: string;
}

/** What flags, environment and file say, asked setting by setting. */
class Settings {
  readonly warnings: string[] = [];
  readonly #commandLine: CommandLine;
  readonly #env: (name: string) => string | undefined;
  readonly #file: Ini | null;
  readonly #shown = new Map<string, string[]>();
  readonly #origins = new Map<string, string>();

  private constructor(commandLine: CommandLine, env: (name: string) => string | undefined, file: Ini | null) {
    this.#commandLine = commandLine;
    this.#env = (name) => env(name) || undefined;
    this.#file = file;
  }

  static async read(commandLine: CommandLine, env: (name: string) => string | undefined): Promise<Settings> {
    const path = commandLine.configPath ?? (env("CONFIG_PATH") || undefined);
    if (path === undefined) return new Settings(commandLine, env, null);
    const file = parseIni(await readText(path, "configuration file"), { path });
    checkNames(file);
    return new Settings(commandLine, env, file);
  }

  /** Value of a setting that stands once: by flag, variable, file; undefined where none has it. */
  take<S extends SectionName, K extends keyof typeof SETTINGS[S] & string>(
    section: S,
    key: K,
  ): ReturnType<Extract<typeof SETTINGS[S][K], Setting<unknown>>["parse"]> | undefined {
    const setting = SETTINGS[section][key] as Setting<unknown>;
    const given = this.#flag(key, setting) ?? this.#variable(key, setting) ??
      this.#entry(this.#section(section), key, setting);
    if (given === undefined) return undefined;
    this.#origins.set(`${section}.${key}`, given.origin);
    return parse(setting, given, `${key} of [${section}]`) as never;
  }

  logLevel(): typeof LOG_LEVELS[number] {
    return this.take("log", "level") ?? "info";
  }

  sites(): Site[] {
    const url = this.#flag("url", SETTINGS.website.url) ?? this.#variable("url", SETTINGS.website.url);
    const name = this.#commandLine.flags.get("name");
    if (url !== undefined) return [this.#singleSite(url)];
    const alone = name !== undefined ? "--name" : this.#commandLine.flags.has("regex") ? "--regex" : undefined;
    if (alone !== undefined) {
      throw new ConfigError(`Cannot use ${alone} (command line): expected --url <url> or URL beside it`);
    }
    const sections = this.#siteSections();
    if (sections.length === 0) {
      throw new ConfigError(
        "Cannot find a site to check: expected --url <url>, URL in the environment, or [website_NAME] with a url in " +
          (this.#file === null ? "the file of --config-path" : this.#file.path),
      );
    }
    const sites = sections.map(({ section, name }) => this.#fileSite(section, name));
    this.#checkTwins(sections);
    return sites;
  }

  async kafka(): Promise<KafkaSettings> {
    const bootstrapServers = this.take("kafka", "bootstrap_servers") ?? [];
    if (bootstrapServers.length === 0) {
      throw new ConfigError(
        "Cannot find a Kafka broker: expected host:port in --kafka-bootstrap-servers, KAFKA_BOOTSTRAP_SERVERS or " +
          "bootstrap_servers of [kafka]",
      );
    }
    const given = {
      ssl_cafile: this.take("kafka", "ssl_cafile"),
      ssl_certfile: this.take("kafka", "ssl_certfile"),
      ssl_keyfile: this.take("kafka", "ssl_keyfile"),
    };
    const anyFile = Object.values(given).some((file) => file !== undefined);
    const protocol = this.take("kafka", "security_protocol") ?? (anyFile ? "SSL" : "PLAINTEXT");
    this.show("kafka", "bootstrap_servers", bootstrapServers.join(","));
    this.show("kafka", "security_protocol", protocol);
    if (protocol === "PLAINTEXT") {
      if (anyFile) {
        this.warnings.push(
          "security_protocol of [kafka] is PLAINTEXT: ssl_cafile, ssl_certfile and ssl_keyfile are not used",
        );
      }
      return { bootstrapServers, tls: null };
    }
    const files = { ...given };
    for (const [key, path] of Object.entries(DEFAULT_TLS_FILES) as [keyof typeof given, string][]) {
      if (files[key] === undefined && await exists(path)) files[key] = path;
      if (files[key] !== undefined) this.show("kafka", key, files[key]);
    }
    const origin = (key: keyof typeof given) => this.#origins.get(`kafka.${key}`) ?? "default";
    const ca = await readCertificates(files.ssl_cafile, `ssl_cafile of [kafka] (${origin("ssl_cafile")})`);
    const cert = await readCertificates(files.ssl_certfile, `ssl_certfile of [kafka] (${origin("ssl_certfile")})`);
    const key = await readKey(files.ssl_keyfile, `ssl_keyfile of [kafka] (${origin("ssl_keyfile")})`);
    if ((cert === undefined) !== (key === undefined)) {
      const [one, other] = cert === undefined ? ["ssl_keyfile", "ssl_certfile"] : ["ssl_certfile", "ssl_keyfile"];
      throw new ConfigError(
        `Cannot use ${one} of [kafka] (${origin(one as keyof typeof given)}): expected ${other} beside it`,
      );
    }
    if (cert !== undefined && key !== undefined && !new X509Certificate(cert.pem).checkPrivateKey(key.key)) {
      throw new ConfigError(
        `Cannot use ssl_keyfile of [kafka] (${origin("ssl_keyfile")}): expected the private key of the certificate ` +
          `in ${cert.path}, got another in ${key.path}`,
      );
    }
    if (cert !== undefined) this.#warnOfExpiry(cert);
    return {
      bootstrapServers,
      tls: {
        ...(ca && { ca: ca.pem }),
        ...(cert && { cert: cert.pem }),
        ...(key && { key: key.pem }),
      },
    };
  }

  async postgres(): Promise<PostgresSettings> {
    const host = this.take("postgres", "host");
    if (host === undefined) {
      throw new ConfigError(
        "Cannot find a PostgreSQL server: expected --postgres-host, POSTGRES_HOST or host of [postgres]",
      );
    }
    const port = this.take("postgres", "port") ?? DEFAULT_POSTGRES_PORT;
    const user = this.take("postgres", "user") ?? "postgres";
    const password = this.take("postgres", "password") ?? null;
    const database = this.take("postgres", "database") ?? user;
    const rootCertificate = this.take("postgres", "sslrootcert");
    const sslmode = this.take("postgres", "sslmode") ??
      (rootCertificate !== undefined ? "verify-ca" : LOOPBACK_REGEXP.test(host) ? "disable" : "verify-full");
    const minConnection = this.take("postgres", "min_connection") ?? 1;
    const maxConnection = this.take("postgres", "max_connection") ?? Math.max(2, minConnection);
    if (minConnection > maxConnection) {
      throw new ConfigError(
        `Cannot use min_connection of [postgres] (${this.#origins.get("postgres.min_connection")}): expected at most ` +
          `max_connection, which is ${maxConnection}, got ${minConnection}`,
      );
    }
    const ca = await readCertificates(
      rootCertificate,
      `sslrootcert of [postgres] (${this.#origins.get("postgres.sslrootcert")})`,
    );
    this.show("postgres", "user", user);
    if (password !== null) this.show("postgres", "password", HIDDEN);
    this.show("postgres", "host", host);
    this.show("postgres", "port", String(port));
    this.show("postgres", "database", database);
    this.show("postgres", "sslmode", sslmode);
    if (rootCertificate !== undefined) this.show("postgres", "sslrootcert", rootCertificate);
    this.show("postgres", "min_connection", String(minConnection));
    this.show("postgres", "max_connection", String(maxConnection));
    return { host, port, user, password, database, sslmode, ca: ca?.pem ?? null, minConnection, maxConnection };
  }

  topics(flags: readonly string[]): TopicSelection {
    const variable = this.#env("KAFKA_TOPIC");
    const given: Given[] = flags.length > 0
      ? flags.map((text) => ({ text, origin: "--kafka-topic" }))
      : variable !== undefined
      ? [{ text: variable, origin: "environment variable KAFKA_TOPIC" }]
      : [];
    const names = new Set<string>();
    const patterns: RegExp[] = [];
    for (const { text, origin } of given) {
      for (const part of splitTopics(text)) {
        if (part.startsWith("/")) patterns.push(topicPattern(part, origin));
        else names.add(checkTopic(part, `topic '${part}'`, origin));
      }
    }
    if (given.length === 0) {
      for (const { section, name } of this.#siteSections()) {
        names.add(checkTopic(name, `name of website '${name}'`, `${this.#file?.path}:${section.line}`));
      }
    }
    if (names.size === 0 && patterns.length === 0) {
      throw new ConfigError(
        "Cannot find a topic to read: expected --kafka-topic, KAFKA_TOPIC, or [website_NAME] in " +
          (this.#file === null ? "the file of --config-path" : this.#file.path),
      );
    }
    this.#note("topics", [...[...names], ...patterns.map((pattern) => `/${pattern.source.slice(4, -2)}/`)].join(","));
    return { names: [...names], patterns };
  }

  /** Adds a line to what `--check-config` prints. */
  show(section: SectionName, key: string, value: string): void {
    const origin = this.#origins.get(`${section}.${key}`) ?? "default";
    this.#line(section, `${key} = ${value}`, origin);
  }

  effective(): string[] {
    return [...this.#shown].flatMap(([section, lines], index) => [
      ...(index > 0 ? [""] : []),
      `[${section}]`,
      ...lines,
    ]);
  }

  #note(key: string, value: string): void {
    this.#line("kafka", `${key} = ${value}`, this.#commandLine.topics.length > 0 ? "--kafka-topic" : "");
  }

  #line(section: string, text: string, origin: string): void {
    const lines = this.#shown.get(section) ?? [];
    lines.push(origin === "" ? text : `${text.padEnd(48)} ; ${origin}`);
    this.#shown.set(section, lines);
  }

  #flag(key: string, setting: Setting<unknown>): Given | undefined {
    return one(
      flagNames(key, setting).map((flag) => ({ origin: `--${flag}`, text: this.#commandLine.flags.get(flag) })),
    );
  }

  #variable(key: string, setting: Setting<unknown>): Given | undefined {
    return one(
      flagNames(key, setting).map(environmentName).map((name) => ({
        origin: `environment variable ${name}`,
        text: this.#env(name),
      })),
    );
  }

  /** Entry of a section or of `[DEFAULT]`; an empty value counts as not set, as it did. */
  #entry(section: IniSection | undefined, key: string, { aliases = [] }: Setting<unknown>): Given | undefined {
    const lookUp = (entries: ReadonlyMap<string, IniEntry> | undefined) =>
      one([key, ...aliases].map((name) => {
        const entry = entries?.get(name);
        return { origin: `${this.#file?.path}:${entry?.line}`, text: entry?.value || undefined };
      }));
    return lookUp(section?.entries) ?? (section === undefined ? undefined : lookUp(this.#file?.defaults));
  }

  #section(name: string): IniSection | undefined {
    return this.#file?.sections.find((section) => section.name === name);
  }

  #siteSections(): { section: IniSection; name: string }[] {
    return (this.#file?.sections ?? []).flatMap((section) => {
      const name = SITE_SECTION_REGEXP.exec(section.name)?.groups?.["name"];
      return name === undefined ? [] : [{ section, name }];
    });
  }

  #singleSite(url: Given): Site {
    const target = parse(SETTINGS.website.url, url, "url");
    const given = one([{ origin: "--name", text: this.#commandLine.flags.get("name") }]) ??
      one([{ origin: "environment variable NAME", text: this.#env("NAME") }]);
    const name = given?.text ?? target.hostname.replace(/^\[|\]$/g, "").replaceAll(":", "-");
    const site = checkTopic(name, `name of the site '${name}'`, given?.origin ?? `host of ${url.origin}`);
    const from = (key: "regex" | "interval" | "timeout") =>
      this.#flag(key, SETTINGS.website[key]) ?? this.#variable(key, SETTINGS.website[key]);
    return this.#site(site, url, { regex: from("regex"), interval: from("interval"), timeout: from("timeout") });
  }

  #fileSite(section: IniSection, name: string): Site {
    const where = `${this.#file?.path}:${section.line}`;
    checkTopic(name, `name of website '${name}'`, where);
    const url = this.#entry(section, "url", SETTINGS.website.url);
    if (url === undefined) {
      throw new ConfigError(`Cannot read website '${name}' (${where}): expected url = https://…, got none`);
    }
    return this.#site(name, url, {
      regex: this.#entry(section, "regex", SETTINGS.website.regex),
      interval: this.#flag("interval", SETTINGS.website.interval) ??
        this.#entry(section, "interval", SETTINGS.website.interval),
      timeout: this.#flag("timeout", SETTINGS.website.timeout) ??
        this.#entry(section, "timeout", SETTINGS.website.timeout),
    });
  }

  #site(
    name: string,
    url: Given,
    { regex, interval, timeout }: Record<"regex" | "interval" | "timeout", Given | undefined>,
  ): Site {
    const label = (key: string) => `${key} of website '${name}'`;
    const target = parse(SETTINGS.website.url, url, label("url"));
    const pattern = regex === undefined ? null : parse(SETTINGS.website.regex, regex, label("regex"));
    const intervalMs = interval === undefined
      ? DEFAULT_INTERVAL_MS
      : parse(SETTINGS.website.interval, interval, label("interval"));
    const timeoutMs = timeout === undefined
      ? Math.min(DEFAULT_TIMEOUT_MS, intervalMs * DEFAULT_TIMEOUT_SHARE)
      : parse(SETTINGS.website.timeout, timeout, label("timeout"));
    if (timeoutMs > intervalMs && !this.#commandLine.once) {
      this.warnings.push(
        `timeout of website '${name}' (${formatDuration(timeoutMs)}) is longer than its interval ` +
          `(${formatDuration(intervalMs)}): while it hangs, checks are left out`,
      );
    }
    const { address, authorization } = splitCredentials(target);
    const section = `website_${name}`;
    this.#line(section, `url = ${authorization === null ? address : hideCredentials(target)}`, url.origin);
    if (regex !== undefined) this.#line(section, `regex = ${regex.text}`, regex.origin);
    this.#line(section, `interval = ${formatDuration(intervalMs)}`, interval?.origin ?? "default");
    this.#line(section, `timeout = ${formatDuration(timeoutMs)}`, timeout?.origin ?? "default");
    return { name, url: address, authorization, regex: regex?.text ?? null, pattern, intervalMs, timeoutMs };
  }

  /** Kafka's metrics take `.` for `_`, so that it refuses a topic `a.b` where `a_b` is. */
  #checkTwins(sections: readonly { section: IniSection; name: string }[]): void {
    const seen = new Map<string, { section: IniSection; name: string }>();
    for (const entry of sections) {
      const key = entry.name.replaceAll(".", "_");
      const twin = seen.get(key);
      if (twin !== undefined) {
        throw new ConfigError(
          `Cannot use website '${entry.name}' (${this.#file?.path}:${entry.section.line}): Kafka takes its topic for ` +
            `that of website '${twin.name}' in line ${twin.section.line}, since . and _ count as the same: rename one`,
        );
      }
      seen.set(key, entry);
    }
  }

  #warnOfExpiry({ pem, path }: { pem: string; path: string }): void {
    const { validTo } = new X509Certificate(pem);
    if (Date.parse(validTo) < Date.now()) this.warnings.push(`the certificate in ${path} has expired on ${validTo}`);
  }
}

/** The one of several names of a setting that is given; two are a mistake. */
function one(candidates: readonly { origin: string; text: string | undefined }[]): Given | undefined {
  const [first, second] = candidates.filter((candidate): candidate is Given => candidate.text !== undefined);
  if (first !== undefined && second !== undefined) {
    throw new ConfigError(`Cannot use ${second.origin}: it means the same as ${first.origin}: expected one of them`);
  }
  return first;
}

function parse<T>(setting: Setting<T>, { text, origin }: Given, label: string): T {
  try {
    return setting.parse(text);
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof RangeError)) throw error;
    const got = setting.secret ? "" : `, got '${shorten(withoutPassword(text))}'`;
    throw new ConfigError(`Cannot read ${label} (${origin}): ${error.message}${got}`, { cause: error });
  }
}

function checkNames({ path, sections, defaults }: Ini): void {
  const sectionNames = Object.keys(SETTINGS).filter((name) => name !== "website");
  for (const { name, line, entries } of sections) {
    const site = SITE_SECTION_REGEXP.exec(name)?.groups?.["name"];
    if (site === undefined && !sectionNames.includes(name)) {
      const shape = distance(name.slice(0, "website_".length).toLowerCase(), "website_") <= 2
        ? `website_${name.replace(/^[a-z]*[ _.:-]?/i, "") || "NAME"}`
        : closest(name, sectionNames);
      throw new ConfigError(
        `Cannot read section [${name}] (${path}:${line}): expected [website_NAME] or one of ${
          sectionNames.map((known) => `[${known}]`).join(", ")
        }; did you mean [${shape}]?`,
      );
    }
    checkKeys(entries, site === undefined ? name as SectionName : "website", { path, name });
  }
  const all = Object.keys(SETTINGS).flatMap((section) => keysOf(section as SectionName));
  for (const { key, line } of defaults.values()) {
    if (!all.includes(key)) throw unknownKey(key, { path, line, name: "DEFAULT", known: all });
  }
}

function checkKeys(
  entries: ReadonlyMap<string, IniEntry>,
  section: SectionName,
  { path, name }: { path: string; name: string },
): void {
  const known = keysOf(section);
  for (const { key, line } of entries.values()) {
    if (!known.includes(key)) throw unknownKey(key, { path, line, name, known });
  }
}

function unknownKey(
  key: string,
  { path, line, name, known }: { path: string; line: number; name: string; known: readonly string[] },
): ConfigError {
  return new ConfigError(
    `Cannot read key '${shorten(key)}' of [${name}] (${path}:${line}): expected one of ${known.join(", ")}; ` +
      `did you mean ${closest(key, [...known])}?`,
  );
}

function keysOf(section: SectionName): string[] {
  return Object.entries<Setting<unknown>>(SETTINGS[section]).flatMap(([key, { aliases = [] }]) => [key, ...aliases]);
}

function checkTopic(name: string, label: string, origin: string): string {
  if (!TOPIC_REGEXP.test(name) || name === "." || name === "..") {
    throw new ConfigError(
      `Cannot use ${label} (${origin}): expected 1 to 249 letters, digits, dots, dashes and underscores, as Kafka ` +
        `takes for a topic`,
    );
  }
  if (INTERNAL_TOPICS.has(name)) {
    throw new ConfigError(`Cannot use ${label} (${origin}): expected a name other than that of a topic of Kafka's own`);
  }
  return name;
}

/** Splits at commas, but not at those within `/…/`. */
function splitTopics(text: string): string[] {
  return (text.match(/\s*\/(?:\\.|[^/\\])+\/\s*(?=,|$)|[^,]+/g) ?? []).map((part) => part.trim()).filter((part) =>
    part !== ""
  );
}

function topicPattern(text: string, origin: string): RegExp {
  try {
    if (text.length < 3 || !text.endsWith("/")) throw new SyntaxError("expected /pattern/");
    compilePattern(text.slice(1, -1));
    return compilePattern(`^(?:${text.slice(1, -1)})$`);
  } catch (error) {
    throw new ConfigError(`Cannot read topic '${shorten(text)}' (${origin}): ${errorMessage(error)}`, { cause: error });
  }
}

function splitCredentials(url: URL): { address: string; authorization: string | null } {
  if (url.username === "" && url.password === "") return { address: url.href, authorization: null };
  const bare = new URL(url);
  bare.username = "";
  bare.password = "";
  const bytes = new TextEncoder().encode(`${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`);
  return { address: bare.href, authorization: `Basic ${btoa(String.fromCharCode(...bytes))}` };
}

function hideCredentials(url: URL): string {
  const hidden = new URL(url);
  if (hidden.password !== "") hidden.password = HIDDEN;
  return hidden.href;
}

/** Hides the password of what may be a URL that can't be parsed. */
function withoutPassword(text: string): string {
  return text.replace(/(:\/\/[^/@\s]*:)[^/\s]*@/, `$1${HIDDEN}@`);
}

function shorten(text: string): string {
  const line = text.replaceAll("\n", " ");
  return line.length > 80 ? line.slice(0, 79) + "…" : line;
}

async function exists(path: string): Promise<boolean> {
  try {
    return (await Deno.stat(path)).isFile;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

async function readText(path: string, label: string): Promise<string> {
  let bytes: Uint8Array;
  try {
    bytes = await Deno.readFile(path);
  } catch (error) {
    throw new ConfigError(`Cannot read ${label} ${path}: ${fileFault(error)}`, { cause: error });
  }
  let text: string | undefined;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    text = undefined;
  }
  if (text === undefined || text.includes("\0")) {
    throw new ConfigError(`Cannot read ${label} ${path}: expected text in UTF-8, got binary data`);
  }
  return text;
}

function fileFault(error: unknown): string {
  if (error instanceof Deno.errors.NotFound) return "there is no such file";
  if (error instanceof Deno.errors.IsADirectory) return "expected a file, got a directory";
  if (error instanceof Deno.errors.PermissionDenied) return "this user may not read it";
  if (error instanceof Deno.errors.NotCapable) return "the program was started without --allow-read for it";
  return errorMessage(error);
}

async function readCertificates(
  path: string | undefined,
  label: string,
): Promise<{ pem: string; path: string } | undefined> {
  if (path === undefined) return undefined;
  const pem = await readText(path, `${label}:`);
  try {
    new X509Certificate(pem);
  } catch (error) {
    throw new ConfigError(`Cannot read ${label}: expected certificates in PEM in ${path}`, { cause: error });
  }
  return { pem, path };
}

async function readKey(
  path: string | undefined,
  label: string,
): Promise<{ pem: string; path: string; key: KeyObject } | undefined> {
  if (path === undefined) return undefined;
  const pem = await readText(path, `${label}:`);
  try {
    return { pem, path, key: createPrivateKey(pem) };
  } catch (error) {
    const encrypted = /ENCRYPTED/.test(pem);
    throw new ConfigError(
      `Cannot read ${label}: expected a private key in PEM${encrypted ? " without a passphrase" : ""} in ${path}`,
      { cause: error },
    );
  }
}
