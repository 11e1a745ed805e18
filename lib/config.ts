import { type CertificateFile, keyFits, readCertificateFile, readKeyFile } from "./certificate_file.ts";
import type { CommandLine } from "./command.ts";
import { ConfigError } from "./error.ts";
import type { LOG_LEVELS } from "./log.ts";
import { nearest } from "./nearest.ts";
import { flagNames, type Setting, SETTINGS, type SPOOL_SYNCS, type SSL_MODES } from "./setting.ts";
import { PROXY_VARIABLES } from "./client.ts";
import { HIDDEN } from "./secret.ts";
import { createSite, type Identity, type Site } from "./site.ts";
import { checkDefaults, SiteSource } from "./site_source.ts";
import { type Given, hideCredentials, type LookUpVariable, parseGiven, type SiteSection, Source } from "./source.ts";
import type { SlotLimits } from "./slots.ts";
import { pathExists } from "./text_file.ts";
import { checkTopicName, parseTopics } from "./topic.ts";
import { formatBytes, formatDuration, type HostPort, isLoopback } from "./value.ts";

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

/** What topics are made with; null for the brokers' own. */
export interface NewTopicSettings {
  /** Partitions. */
  readonly partitions: number | null;
  /** Copies. */
  readonly replicationFactor: number | null;
  /** How long messages are kept, in ms; -1 for ever. */
  readonly retentionMs: number | null;
}

/** Where and how to publish. */
export interface PublishSettings extends KafkaSettings {
  /** What topics are made with. */
  readonly newTopics: NewTopicSettings;
  /** The one topic of all sites; null for a topic per site. */
  readonly sharedTopic: string | null;
}

/** Where what is not published yet is kept. */
export interface SpoolSettings {
  /** File. */
  readonly path: string;
  /** Bytes at most. */
  readonly maxBytes: number;
  /** Age at most, in ms. */
  readonly maxAgeMs: number;
  /** What a power cut may cost. */
  readonly sync: typeof SPOOL_SYNCS[number];
}

/** Address of a PostgreSQL server. */
export interface PostgresServer {
  /** Name or IP address. */
  readonly host: string;
  /** Port. */
  readonly port: number;
}

/** How to reach PostgreSQL. */
export interface PostgresSettings {
  /** Servers, at least one; the first that takes writes is used. */
  readonly servers: readonly PostgresServer[];
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
  /** File that they come from; null for none. */
  readonly path: string | null;
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
  readonly kafka: PublishSettings | null;
  /** Where results wait until Kafka has them. */
  readonly spool: SpoolSettings;
  /** Checks in flight. */
  readonly limits: SlotLimits;
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
  /** Where to begin anew, before anything is read; null: where reading ended. */
  readonly resetOffsets: OffsetPlace | null;
}

/** Place in a topic. */
export type OffsetPlace = "earliest" | "latest" | Date;

/** Options of {@linkcode readProducerConfig} and {@linkcode readConsumerConfig}. */
export interface ReadConfigOptions {
  /** Looks an environment variable up. Default: the process's own; an empty one counts as not set. */
  readonly env?: LookUpVariable;
}

const ISO_TIME_REGEXP = /^\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)$/;
/** Files that the Python program took where its configuration named none. */
const DEFAULT_TLS_FILES = {
  ssl_cafile: "./ca.pem",
  ssl_certfile: "./service.cert",
  ssl_keyfile: "./service.key",
} as const;
/** Sites that an error lists. */
const MAX_LISTED = 20;
const DEFAULT_MAX_CHECKS = 1_000;
/** All sites at once: more would take the CPU from each other and distort the times. */
const DEFAULT_MAX_CHECKS_ONCE = 50;
const DEFAULT_MAX_CHECKS_PER_HOST = 100;
const DEFAULT_DRAIN_TIMEOUT_MS = 30_000;
const DEFAULT_SPOOL = { path: "./spool/site_checker.db", maxBytes: 1024 ** 3, maxAgeMs: 7 * 24 * 3_600_000 } as const;
const DEFAULT_GROUP_ID = "site_checker";
const DEFAULT_POSTGRES_PORT = 5432;

/**
 * Reads the producer's settings: flags before environment before file before defaults.
 *
 * @throws {ConfigError} with where, what is wrong and what is allowed.
 */
export async function readProducerConfig(
  commandLine: CommandLine,
  { env = Deno.env.get }: ReadConfigOptions = {},
): Promise<ProducerConfig> {
  const source = await Source.open(commandLine, env);
  // What was set aside is dealt with by itself.
  const sites = commandLine.refused === undefined ? await readSites(source) : [];
  warnOfProxies(source, env);
  const publishes = !commandLine.dryRun && commandLine.trace === undefined && commandLine.refused === undefined;
  const kafka = publishes ? await readPublish(source) : null;
  const limits = readSlotLimits(source);
  const spool = readSpool(source);
  const drainTimeoutMs = source.take("producer", "drain_timeout") ?? DEFAULT_DRAIN_TIMEOUT_MS;
  if (!commandLine.once && commandLine.flags.has(SETTINGS.producer.drain_timeout.flag)) {
    source.warn("--drain-timeout has no effect: it counts beside --once alone");
  }
  source.show("producer", "drain_timeout", { value: formatDuration(drainTimeoutMs) });
  return { sites, kafka, limits, spool, drainTimeoutMs, ...readCommon(source) };
}

/** Says that proxies of the environment are not gone through, which other programs do. */
function warnOfProxies({ warnings }: Source, env: LookUpVariable): void {
  const found = PROXY_VARIABLES.filter((name) => !/^no_/i.test(name) && env(name));
  if (found.length === 0) return;
  warnings.push(
    `${found.join(", ")} of the environment: checks go through a proxy only where proxy of the site says so`,
  );
}

async function readPublish(source: Source): Promise<PublishSettings> {
  const kafka = await readKafka(source);
  const sharedTopic = source.take("kafka", "topic") ?? null;
  if (sharedTopic !== null) {
    checkTopicName(sharedTopic, `topic '${sharedTopic}'`, source.origin("kafka", "topic"));
    source.show("kafka", "topic", { value: sharedTopic });
  }
  const partitions = source.take("kafka", "partitions") ?? null;
  const replicationFactor = source.take("kafka", "replication_factor") ?? null;
  const retentionMs = source.take("kafka", "retention") ?? null;
  if (partitions !== null) source.show("kafka", "partitions", { value: String(partitions) });
  if (replicationFactor !== null) source.show("kafka", "replication_factor", { value: String(replicationFactor) });
  if (retentionMs !== null) {
    source.show("kafka", "retention", { value: retentionMs === -1 ? "forever" : formatDuration(retentionMs) });
  }
  return { ...kafka, sharedTopic, newTopics: { partitions, replicationFactor, retentionMs } };
}

function readSlotLimits(source: Source): SlotLimits {
  const max = source.take("producer", "max_checks") ??
    (source.commandLine.once ? DEFAULT_MAX_CHECKS_ONCE : DEFAULT_MAX_CHECKS);
  const maxPerHost = source.take("producer", "max_checks_per_host") ?? DEFAULT_MAX_CHECKS_PER_HOST;
  if (source.origin("producer", "max_checks") !== "default" && maxPerHost > max) {
    const where = source.origin("producer", "max_checks_per_host");
    if (where !== "default") {
      source.warn(`max_checks_per_host of [producer] (${where}) has no effect: max_checks is less, ${max}`);
    }
  }
  source.show("producer", "max_checks", { value: String(max) });
  source.show("producer", "max_checks_per_host", { value: String(maxPerHost) });
  return { max, maxPerHost };
}

function readSpool(source: Source): SpoolSettings {
  const path = source.take("producer", "spool_path") ?? DEFAULT_SPOOL.path;
  const maxBytes = source.take("producer", "spool_max_bytes") ?? DEFAULT_SPOOL.maxBytes;
  const maxAgeMs = source.take("producer", "spool_max_age") ?? DEFAULT_SPOOL.maxAgeMs;
  const sync = source.take("producer", "spool_sync") ?? "normal";
  source.show("producer", "spool_path", { value: path });
  source.show("producer", "spool_max_bytes", { value: formatBytes(maxBytes) });
  source.show("producer", "spool_max_age", { value: formatDuration(maxAgeMs) });
  source.show("producer", "spool_sync", { value: sync });
  return { path, maxBytes, maxAgeMs, sync };
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
  const source = await Source.open(commandLine, env);
  if (commandLine.task !== undefined) {
    // What is in the database already asks for no broker.
    const none = { kafka: { bootstrapServers: [], tls: null }, groupId: "", topics: { names: [], patterns: [] } };
    return { ...none, postgres: await readPostgres(source), resetOffsets: null, ...readCommon(source) };
  }
  const kafka = await readKafka(source);
  const groupId = source.take("kafka", "group_id") ?? DEFAULT_GROUP_ID;
  source.show("kafka", "group_id", { value: groupId });
  const topics = readTopics(source);
  const postgres = commandLine.dryRun ? null : await readPostgres(source);
  const resetOffsets = readOffsetPlace(commandLine);
  return { kafka, groupId, topics, postgres, resetOffsets, ...readCommon(source) };
}

function readOffsetPlace({ resetOffsets: text, dryRun }: CommandLine): OffsetPlace | null {
  if (text === undefined) return null;
  if (dryRun) {
    throw new ConfigError("Cannot use --reset-offsets beside --dry-run, which begins with the earliest anyway");
  }
  if (text === "earliest" || text === "latest") return text;
  const time = ISO_TIME_REGEXP.test(text) ? new Date(text) : undefined;
  if (time === undefined || Number.isNaN(time.getTime())) {
    throw new ConfigError(
      `Cannot read --reset-offsets: expected earliest, latest or a time with a zone such as 2026-01-31T00:00Z, got '${text}'`,
    );
  }
  return time;
}

/** Options of {@linkcode readPostgresSettings}. */
export interface ReadPostgresSettingsOptions extends ReadConfigOptions {
  /** File with the section `[postgres]`. Default: that of `CONFIG_PATH`, if it is set. */
  readonly configPath?: string | undefined;
}

/**
 * Reads how to reach PostgreSQL, from the environment and the file.
 *
 * @throws {ConfigError} with where, what is wrong and what is allowed.
 */
export async function readPostgresSettings(
  { configPath, env = Deno.env.get }: ReadPostgresSettingsOptions = {},
): Promise<PostgresSettings> {
  const none = {
    flags: new Map<string, string>(),
    lists: new Map(),
    topics: [],
    once: false,
    dryRun: false,
    checkConfig: false,
  };
  return await readPostgres(await Source.open({ ...none, configPath }, env));
}

function readCommon(source: Source): CommonConfig {
  const logLevel = source.take("log", "level") ?? "info";
  source.show("log", "level", { value: logLevel });
  return { path: source.path, logLevel, effective: source.effective(), warnings: source.warnings };
}

/** The site of a URL by flag or variable alone, else those of the file; with `--trace` the one that is traced. */
async function readSites(source: Source): Promise<Site[]> {
  checkDefaults(source);
  const identity = readIdentity(source);
  const { url } = SETTINGS.website;
  const given = source.flag("url", url) ?? source.variable("url", url);
  const { trace } = source.commandLine;
  if (given !== undefined) {
    const name = nameOf(source, given);
    if (trace !== undefined && trace.name !== null && trace.name !== name) {
      throw new ConfigError(
        `Cannot trace '${hideCredentials(trace.name)}' beside ${given.origin}: expected one of them`,
      );
    }
    const site = new SiteSource(source, { name, section: undefined });
    const created = await createSite(site, identity);
    if (!site.take("enabled") && source.commandLine.flags.has(SETTINGS.website.enabled.flag)) {
      throw site.refuse("enabled", "expected yes for the site of --url, got no");
    }
    return [created];
  }
  refuseLoneFlags(source);
  warnOfLoneVariables(source);
  const all = source.siteSections();
  // Others may be broken, and one that is not enabled is looked at all the same.
  const sections = trace === undefined || all.length === 0 ? all : [tracedSection(source, all)];
  const sites: Site[] = [];
  for (const { name, origin, section } of sections) {
    if (source.siteEntry(section, "url", url) === undefined) {
      throw new ConfigError(`Cannot read website '${name}' (${origin}): expected url = https://…, got none`);
    }
    const site = new SiteSource(source, { name, section });
    const created = await createSite(site, identity);
    const isEnabled = site.take("enabled");
    if (!isEnabled && trace !== undefined) {
      site.warn(`website '${name}' is not enabled: the producer does not check it`);
    }
    if (isEnabled || trace !== undefined) sites.push(created);
  }
  if (sites.length > 0) return sites;
  throw new ConfigError(
    "Cannot find a site to check: expected --url, URL in the environment, or [website_NAME] with a url in " +
      source.filePath + (sections.length > 0 ? " without enabled = no" : ""),
  );
}

/** The section that `--trace` names, or the only one. */
function tracedSection({ commandLine, filePath }: Source, sections: readonly SiteSection[]): SiteSection {
  const names = sections.map(({ name }) => name);
  const wanted = commandLine.trace?.name ?? null;
  const found = wanted === null ? sections : sections.filter(({ name }) => name === wanted);
  if (found.length === 1) return found[0]!;
  const known = shortList(names);
  if (wanted === null) {
    throw new ConfigError(`Cannot choose a site of ${filePath}: expected --trace with one of ${known}, got none`);
  }
  const meant = nearest(wanted, names);
  throw new ConfigError(
    `Cannot trace '${hideCredentials(wanted)}': expected a site of ${filePath}, one of ${known}${
      meant === undefined ? "" : `; did you mean ${meant}?`
    }`,
  );
}

/** Names, as many as a line takes. */
function shortList(names: readonly string[]): string {
  const more = names.length - MAX_LISTED;
  return names.slice(0, MAX_LISTED).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

function readIdentity(source: Source): Identity {
  const location = source.take("producer", "location") ?? null;
  const producer = source.take("producer", "name") ?? null;
  if (location !== null) source.show("producer", "location", { value: location });
  if (producer !== null) source.show("producer", "name", { value: producer });
  return { location, producer };
}

/** Name of the site that is given by its address. */
function nameOf(source: Source, url: Given): string {
  const target = parseGiven(SETTINGS.website.url, url, "url");
  const given = source.flagOrVariable("name");
  const name = given?.text ?? target.hostname.replace(/^\[|\]$/g, "").replaceAll(":", "-");
  checkTopicName(name, `name of website '${name}'`, given?.origin ?? `host of ${url.origin}; --name sets another`);
  return name;
}

/** Refuses flags that are about one site, where there is none. */
function refuseLoneFlags({ commandLine: { flags, lists } }: Source): void {
  const known = Object.entries<Setting<unknown>>(SETTINGS.website).filter(([, { everySite }]) =>
    everySite === undefined
  )
    .flatMap(([key, setting]) => flagNames(key, setting));
  const alone = ["name", ...known].find((flag) => flags.has(flag) || lists.has(flag));
  if (alone !== undefined) throw new ConfigError(`Cannot use --${alone}: expected --url or URL beside it`);
}

/** Says which variables are about one site, where there is none. `NAME` may be there for other programs. */
function warnOfLoneVariables(source: Source): void {
  for (const [key, setting] of Object.entries<Setting<unknown>>(SETTINGS.website)) {
    if (setting.everySite === "flag and variable") continue;
    for (const { origin, text } of source.variables(key, setting)) {
      if (text !== undefined) source.warn(`${origin} has no effect: it counts beside --url or URL alone`);
    }
  }
}

async function readKafka(source: Source): Promise<KafkaSettings> {
  const bootstrapServers = source.take("kafka", "bootstrap_servers") ?? [];
  if (bootstrapServers.length === 0) {
    throw new ConfigError(
      "Cannot find a Kafka broker: expected host:port in --kafka-bootstrap-servers, KAFKA_BOOTSTRAP_SERVERS or " +
        "bootstrap_servers of [kafka]",
    );
  }
  const given = {
    ssl_cafile: source.take("kafka", "ssl_cafile"),
    ssl_certfile: source.take("kafka", "ssl_certfile"),
    ssl_keyfile: source.take("kafka", "ssl_keyfile"),
  };
  const anyFile = Object.values(given).some((file) => file !== undefined);
  const protocol = source.take("kafka", "security_protocol") ?? (anyFile ? "SSL" : "PLAINTEXT");
  source.show("kafka", "bootstrap_servers", { value: bootstrapServers.join(",") });
  source.show("kafka", "security_protocol", { value: protocol });
  if (protocol === "SSL") return { bootstrapServers, tls: await readKafkaTls(source, given) };
  if (anyFile) {
    source.warn(
      "security_protocol of [kafka] is PLAINTEXT: ssl_cafile, ssl_certfile and ssl_keyfile are not used",
    );
  }
  return { bootstrapServers, tls: null };
}

type TlsFiles = Record<keyof typeof DEFAULT_TLS_FILES, string | undefined>;

async function readKafkaTls(source: Source, given: TlsFiles): Promise<TlsSettings> {
  const files = { ...given };
  for (const key of Object.keys(DEFAULT_TLS_FILES) as (keyof TlsFiles)[]) {
    const path = DEFAULT_TLS_FILES[key];
    if (files[key] === undefined && await pathExists(path)) files[key] = path;
    if (files[key] !== undefined) source.show("kafka", key, { value: files[key] });
  }
  const label = (key: keyof TlsFiles) => `${key} of [kafka] (${source.origin("kafka", key)})`;
  const { ssl_cafile, ssl_certfile, ssl_keyfile } = files;
  const ca = ssl_cafile === undefined ? undefined : await readCertificateFile(ssl_cafile, label("ssl_cafile"));
  const cert = ssl_certfile === undefined ? undefined : await readCertificateFile(ssl_certfile, label("ssl_certfile"));
  const key = ssl_keyfile === undefined ? undefined : await readKeyFile(ssl_keyfile, label("ssl_keyfile"));
  if (cert !== undefined && key === undefined) {
    throw new ConfigError(`Cannot use ${label("ssl_certfile")}: expected ssl_keyfile beside it, got none`);
  }
  if (cert === undefined && key !== undefined) {
    throw new ConfigError(`Cannot use ${label("ssl_keyfile")}: expected ssl_certfile beside it, got none`);
  }
  if (cert !== undefined && key !== undefined && !keyFits(key, cert)) {
    throw new ConfigError(
      `Cannot use ${label("ssl_keyfile")}: expected the private key of the certificate in '${cert.path}', ` +
        `got another in '${key.path}'`,
    );
  }
  if (cert !== undefined) warnOfExpiry(source, cert);
  return { ...(ca && { ca: ca.pem }), ...(cert && { cert: cert.pem }), ...(key && { key: key.pem }) };
}

function warnOfExpiry({ warnings }: Source, { path, first: { validTo } }: CertificateFile): void {
  if (Date.parse(validTo) < Date.now()) warnings.push(`the certificate in ${path} has expired on ${validTo}`);
}

/** Topics by flags, else by the variable, else the shared one of the file, else the sites of the file. */
function readTopics(source: Source): TopicSelection {
  const flags = source.commandLine.topics.map((text) => ({ text, origin: "--kafka-topic" }));
  const variable = source.flagOrVariable("kafka-topic") ?? source.entry("kafka", "topic", SETTINGS.kafka.topic);
  const given = flags.length > 0 ? flags : variable !== undefined ? [variable] : [];
  const lists = given.map(({ text, origin }) => parseTopics(text, origin));
  const sites = given.length > 0 ? [] : source.siteSections().map(({ name }) => name);
  const names = [...new Set([...lists.flatMap(({ names }) => names), ...sites])];
  const patterns = new Map(lists.flatMap(({ patterns }) => [...patterns]));
  if (names.length === 0 && patterns.size === 0) {
    throw new ConfigError(
      `Cannot find a topic to read: expected --kafka-topic, KAFKA_TOPIC, or [website_NAME] in ${source.filePath}`,
    );
  }
  source.show("kafka", "topic", {
    value: [...names, ...patterns.keys()].join(","),
    origin: given[0]?.origin ?? `websites of ${source.filePath}`,
  });
  return { names, patterns: [...patterns.values()] };
}

async function readPostgres(source: Source): Promise<PostgresSettings> {
  const hosts = source.take("postgres", "host");
  if (hosts === undefined) {
    throw new ConfigError(
      "Cannot find a PostgreSQL server: expected --postgres-host, POSTGRES_HOST or host of [postgres]",
    );
  }
  const port = source.take("postgres", "port") ?? DEFAULT_POSTGRES_PORT;
  if (source.origin("postgres", "port") !== "default" && hosts.every(({ port }) => port !== undefined)) {
    source.warn(`port of [postgres] (${source.origin("postgres", "port")}) has no effect: each host has its own`);
  }
  const servers = hosts.map(({ host, port: own }) => ({ host, port: own ?? port }));
  const user = source.take("postgres", "user") ?? "postgres";
  const password = source.take("postgres", "password") ?? null;
  const database = source.take("postgres", "database") ?? user;
  const sslrootcert = source.take("postgres", "sslrootcert");
  const sslmode = source.take("postgres", "sslmode") ??
    (sslrootcert !== undefined ? "verify-ca" : hosts.every(({ host }) => isLoopback(host)) ? "disable" : "verify-full");
  const minConnection = source.take("postgres", "min_connection") ?? 1;
  const maxConnection = source.take("postgres", "max_connection") ?? Math.max(2, minConnection);
  if (minConnection > maxConnection) {
    throw new ConfigError(
      `Cannot use min_connection of [postgres] (${source.origin("postgres", "min_connection")}): expected at most ` +
        `max_connection, which is ${maxConnection}, got ${minConnection}`,
    );
  }
  const ca = sslrootcert === undefined ? null : await readCertificateFile(
    sslrootcert,
    `sslrootcert of [postgres] (${source.origin("postgres", "sslrootcert")})`,
  );
  if (ca !== null && sslmode === "disable") {
    source.warn("sslmode of [postgres] is disable: sslrootcert is not used");
  }
  const shown = {
    user,
    password: password === null ? undefined : HIDDEN,
    host: formatServers(hosts),
    port,
    database,
    sslmode,
    sslrootcert,
    min_connection: minConnection,
    max_connection: maxConnection,
  };
  for (const [key, value] of Object.entries(shown)) {
    if (value !== undefined) source.show("postgres", key, { value: String(value) });
  }
  return { servers, user, password, database, sslmode, ca: ca?.pem ?? null, minConnection, maxConnection };
}

function formatServers(hosts: readonly HostPort[]): string {
  return hosts.map(({ host, port }) => port === undefined ? host : `${host.includes(":") ? `[${host}]` : host}:${port}`)
    .join(",");
}
