import { cronExpression, timeZone } from "./cron.ts";
import { LOG_LEVELS } from "./log.ts";
import { MAINTENANCE_CHECKS, maintenanceWindow } from "./maintenance.ts";
import {
  anyText,
  byteSize,
  choice,
  duration,
  expression,
  header,
  headerPattern,
  headerValue,
  hostHeader,
  hosts,
  httpUrl,
  integer,
  interval,
  pair,
  type ParseValue,
  pattern,
  proxyUrl,
  retention,
  scopes,
  servers,
  statusRanges,
  text,
  token,
  unchangedBody,
  yesNo,
} from "./value.ts";

/** The two programs. */
export type ProgramName = "producer" | "consumer";

/** One thing that can be set: by flag, environment variable or file. */
export interface Setting<T> {
  /** Turns text into the value, or says what is allowed. */
  readonly parse: ParseValue<T>;
  /** Flag, without the dashes. The environment variable is the same in upper case, with `_` for `-`. */
  readonly flag: string;
  /** What the value is called in `--help`. */
  readonly placeholder: string;
  /** What it does, with its unit. */
  readonly meaning: string;
  /** What holds where it is not set. */
  readonly fallback: string;
  /** Programs whose command lines have the flag. */
  readonly programs: readonly ProgramName[];
  /** Other names that it has in the file, and (with `-` for `_`) as flags and in the environment. */
  readonly aliases?: readonly string[];
  /**
   * What of its value must never be shown: all of it, the user and password that an address may hold, or what stands
   * behind the colon of `name: value`.
   */
  readonly secret?: "value" | "credentials" | "pair";
  /** Whether `${SITE_CHECKER_…}` in it stands for an environment variable. Default: false. */
  readonly references?: boolean;
  /** False where it has no environment variable. Default: true. */
  readonly variable?: boolean;
  /**
   * Of a site's setting: whether the flag, or the variable too, counts for every site of the file. Default: they count
   * for the one site that `--url` or `URL` gives, and the flag is refused without.
   */
  readonly everySite?: "flag" | "flag and variable";
  /** Whether it takes several values: one a line in the file, one a flag on the command line. Default: false. */
  readonly several?: boolean;
  /** Value where it is not set, if that is always the same; `fallback` is its text then. */
  readonly initial?: T;
}

/** Setting whose fallback is a value of its own. */
export interface FixedSetting<T> extends Setting<T> {
  /** Value where it is not set. */
  readonly initial: T;
}

/** Setting that takes several values. */
export interface ListSetting<T> extends Setting<T> {
  /** It takes several. */
  readonly several: true;
}

const BOTH: readonly ProgramName[] = ["producer", "consumer"];
const MINUTE_MS = 60_000;
const DAY_MS = 24 * 60 * MINUTE_MS;

/** Security protocols of Kafka that are spoken. */
export const SECURITY_PROTOCOLS = ["PLAINTEXT", "SSL"] as const;

/** Ways to secure the connection to PostgreSQL, as libpq has them. */
export const SSL_MODES = ["disable", "require", "verify-ca", "verify-full"] as const;

/** Ways to write the spool. */
export const SPOOL_SYNCS = ["normal", "full"] as const;

/** Methods of a request; CONNECT, TRACE and TRACK are refused by fetch. */
export const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] as const;

/** Whether HTTP/2 is spoken: where the server offers it, never, or without asking. */
export const HTTP2_MODES = ["auto", "off", "only"] as const;

/** Ways to send id and secret to where a token is got (RFC 6749, 2.3.1). */
export const OAUTH_AUTHS = ["basic", "post"] as const;

/** Versions of IP that a site is reached over. */
export const IP_VERSIONS = ["any", "4", "6"] as const;

/** What every setting of a request shares. */
const SITE = { programs: ["producer"], variable: false } as const;

/** The one declaration of every setting, by section and key of the file; flags, `--help` and errors come from it. */
export const SETTINGS = {
  website: {
    url: setting({
      parse: httpUrl(),
      flag: "url",
      placeholder: "url",
      meaning: "address to check; beside this flag or variable, the sites of the file are not checked",
      fallback: "none",
      programs: ["producer"],
      secret: "credentials",
    }),
    regex: list({
      parse: pattern(),
      flag: "regex",
      placeholder: "pattern",
      meaning: "regular expression that the body must match",
      fallback: "none",
      programs: ["producer"],
    }),
    interval: fixed({
      parse: duration({ minMs: 100, maxMs: 20 * DAY_MS }),
      flag: "interval",
      placeholder: "duration",
      meaning: "time from the start of one check to the start of the next: 10, 10s, 1m",
      fallback: "20s",
      programs: ["producer"],
      aliases: ["pooling_interval"],
      everySite: "flag",
    }),
    cron: setting({
      parse: cronExpression(),
      flag: "cron",
      placeholder: "expression",
      meaning: "times of checks instead of the interval: 0 3 * * sun; a sixth field at the front is seconds",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    time_zone: fixed({
      parse: timeZone(),
      flag: "time-zone",
      placeholder: "zone",
      meaning: "zone of cron and maintenance: Europe/Berlin",
      fallback: "UTC",
      programs: ["producer"],
      variable: false,
    }),
    jitter: fixed({
      parse: duration({ minMs: 0, maxMs: DAY_MS }),
      flag: "jitter",
      placeholder: "duration",
      meaning: "each check begins up to this later, by chance; less than the interval",
      fallback: "0ms",
      programs: ["producer"],
      variable: false,
    }),
    failing_interval: setting({
      parse: duration({ minMs: 100, maxMs: 20 * DAY_MS }),
      flag: "failing-interval",
      placeholder: "duration",
      meaning: "interval while the site is down, shorter or longer",
      fallback: "interval or cron as ever",
      programs: ["producer"],
      variable: false,
    }),
    maintenance: list({
      parse: maintenanceWindow(),
      flag: "maintenance",
      placeholder: "window",
      meaning: "when the site is maintained: a cron expression of the begin, and the duration: 0 3 * * sun 2h",
      fallback: "never",
      programs: ["producer"],
      variable: false,
    }),
    maintenance_checks: fixed({
      parse: choice(MAINTENANCE_CHECKS),
      flag: "maintenance-checks",
      placeholder: "mode",
      meaning: "checks within maintenance: mark (made, with the tag maintenance = true) or skip (left out)",
      fallback: "mark",
      programs: ["producer"],
      variable: false,
    }),
    timeout: setting({
      parse: duration({ minMs: 1, maxMs: 60 * MINUTE_MS }),
      flag: "timeout",
      placeholder: "duration",
      meaning: "time that one check may take, redirects and body included",
      fallback: "10s, or 0.8 of the interval where that is less",
      programs: ["producer"],
      everySite: "flag and variable",
    }),
    expected_status: fixed({
      parse: statusRanges(),
      flag: "expected-status",
      placeholder: "statuses",
      meaning: "statuses of which the final one must be: 200-299,401",
      fallback: "200-399",
      programs: ["producer"],
      variable: false,
    }),
    regex_absent: list({
      parse: pattern(),
      flag: "regex-absent",
      placeholder: "pattern",
      meaning: "regular expression that the body must not match",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    expected_header: list({
      parse: headerPattern(),
      flag: "expected-header",
      placeholder: "name: pattern",
      meaning: "header that must be there, with a value that matches",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    forbidden_header: list({
      parse: headerPattern(),
      flag: "forbidden-header",
      placeholder: "name: pattern",
      meaning: "header that must not be there, or not with a value that matches",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    json: list({
      parse: expression(),
      flag: "expected-json",
      placeholder: "expression",
      meaning: "JSONata expression that must be true of the body",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    max_response_time: setting({
      parse: duration({ minMs: 1, maxMs: 60 * MINUTE_MS }),
      flag: "max-response-time",
      placeholder: "duration",
      meaning: "response time above which the site is down",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    degraded_after: setting({
      parse: duration({ minMs: 1, maxMs: 60 * MINUTE_MS }),
      flag: "degraded-after",
      placeholder: "duration",
      meaning: "response time above which the site is degraded",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    min_bytes: setting({
      parse: byteSize(0),
      flag: "min-bytes",
      placeholder: "bytes",
      meaning: "least length of the body, decoded",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    max_bytes: setting({
      parse: byteSize(0),
      flag: "max-bytes",
      placeholder: "bytes",
      meaning: "greatest length of the body, decoded",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    min_cert_days: setting({
      parse: integer(1, 3_650),
      flag: "min-cert-days",
      placeholder: "days",
      meaning: "the site is down where its certificate expires in fewer days",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    warn_cert_days: setting({
      parse: integer(1, 3_650),
      flag: "warn-cert-days",
      placeholder: "days",
      meaning: "the site is degraded where its certificate expires in fewer days",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    min_tls_version: setting({
      parse: choice(["1.2", "1.3"]),
      flag: "min-tls-version",
      placeholder: "version",
      meaning: "least version of TLS: 1.2 or 1.3",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    unchanged: fixed({
      parse: unchangedBody(),
      flag: "unchanged",
      placeholder: "yes|SHA-256",
      meaning:
        "body that must stay the same: yes fails once where it differs from the last good one since the start, " +
        "a SHA-256 in hex as long as it differs from that",
      fallback: "no",
      programs: ["producer"],
      variable: false,
    }),
    retries: fixed({
      parse: integer(0, 100),
      flag: "retries",
      placeholder: "n",
      meaning: "further attempts where the site is down; each is published, the last one counts",
      fallback: "0",
      programs: ["producer"],
      variable: false,
    }),
    retry_interval: fixed({
      parse: duration({ minMs: 0, maxMs: 60 * MINUTE_MS }),
      flag: "retry-interval",
      placeholder: "duration",
      meaning: "time from the end of one attempt to the next",
      fallback: "1s",
      programs: ["producer"],
      variable: false,
    }),
    excerpt: setting({
      parse: byteSize(1, 64 * 1024),
      flag: "excerpt",
      placeholder: "bytes",
      meaning:
        "bytes of status, headers and body to keep where a check fails; cookies and keys among headers are hidden",
      fallback: "none",
      programs: ["producer"],
      variable: false,
    }),
    // Whether and as what
    enabled: fixed({
      ...SITE,
      parse: yesNo(),
      flag: "enabled",
      placeholder: "yes|no",
      meaning: "whether it is checked",
      fallback: "yes",
    }),
    tags: list({
      ...SITE,
      parse: pair("="),
      flag: "tag",
      placeholder: "key=value",
      meaning: "what is known of the site, kept with each result",
      fallback: "none",
    }),
    // Request
    method: fixed({
      ...SITE,
      parse: choice(METHODS),
      flag: "method",
      placeholder: "method",
      meaning: "method of the request",
      fallback: "GET",
    }),
    headers: list({
      ...SITE,
      parse: header(),
      flag: "header",
      placeholder: "name:value",
      meaning: "header of the request; not sent to another host that a redirect leads to",
      fallback: "accept: */*",
      secret: "pair",
      references: true,
    }),
    body: setting({
      ...SITE,
      parse: anyText(),
      flag: "body",
      placeholder: "text",
      meaning: "body of the request; its type is for headers to say",
      fallback: "none",
      secret: "value",
      references: true,
    }),
    body_file: setting({
      ...SITE,
      parse: text(),
      flag: "body-file",
      placeholder: "file",
      meaning: "file with the body of the request, sent as it is",
      fallback: "none",
    }),
    user_agent: fixed({
      ...SITE,
      parse: headerValue(),
      flag: "user-agent",
      placeholder: "text",
      meaning: "what the request says it comes from",
      fallback: "site_checker",
    }),
    host: setting({
      ...SITE,
      parse: hostHeader(),
      flag: "host",
      placeholder: "host[:port]",
      meaning: "header host, as for a site behind another's address; a certificate is still checked for the URL's host",
      fallback: "host of the URL",
    }),
    basic_user: setting({
      ...SITE,
      parse: text(),
      flag: "basic-user",
      placeholder: "name",
      meaning: "user of basic authentication",
      fallback: "that of the URL",
      references: true,
    }),
    basic_password: setting({
      ...SITE,
      parse: anyText(),
      flag: "basic-password",
      placeholder: "password",
      meaning: "its password",
      fallback: "that of the URL",
      secret: "value",
      references: true,
    }),
    basic_password_file: setting({
      ...SITE,
      parse: text(),
      flag: "basic-password-file",
      placeholder: "file",
      meaning: "file with its password; a line end behind it does not count",
      fallback: "none",
    }),
    bearer_token: setting({
      ...SITE,
      parse: token(),
      flag: "bearer-token",
      placeholder: "token",
      meaning: "token of bearer authentication",
      fallback: "none",
      secret: "value",
      references: true,
    }),
    bearer_token_file: setting({
      ...SITE,
      parse: text(),
      flag: "bearer-token-file",
      placeholder: "file",
      meaning: "file with it; a line end behind it does not count",
      fallback: "none",
    }),
    oauth_token_url: setting({
      ...SITE,
      parse: httpUrl(),
      flag: "oauth-token-url",
      placeholder: "url",
      meaning: "where a token is got by OAuth 2.0; the other keys of oauth_ in [defaults] count for nothing without it",
      fallback: "none",
      secret: "credentials",
    }),
    oauth_client_id: setting({
      ...SITE,
      parse: text(),
      flag: "oauth-client-id",
      placeholder: "id",
      meaning: "who asks for the token",
      fallback: "none",
      references: true,
    }),
    oauth_client_secret: setting({
      ...SITE,
      parse: text(),
      flag: "oauth-client-secret",
      placeholder: "secret",
      meaning: "its secret",
      fallback: "none",
      secret: "value",
      references: true,
    }),
    oauth_client_secret_file: setting({
      ...SITE,
      parse: text(),
      flag: "oauth-client-secret-file",
      placeholder: "file",
      meaning: "file with it; a line end behind it does not count",
      fallback: "none",
    }),
    oauth_scope: setting({
      ...SITE,
      parse: scopes(),
      flag: "oauth-scope",
      placeholder: "scopes",
      meaning: "what the token is for, where the server asks for that",
      fallback: "none",
    }),
    oauth_parameters: list({
      ...SITE,
      parse: pair("="),
      flag: "oauth-parameter",
      placeholder: "name=value",
      meaning: "what else the server wants to be told: audience = https://api.example.com/",
      fallback: "none",
      references: true,
    }),
    oauth_auth: fixed({
      ...SITE,
      parse: choice(OAUTH_AUTHS),
      flag: "oauth-auth",
      placeholder: "way",
      meaning: "how id and secret are sent: basic (in the header authorization) or post (in the body)",
      fallback: "basic",
    }),
    tls_ca: setting({
      ...SITE,
      parse: text(),
      flag: "tls-ca",
      placeholder: "file",
      meaning: "certificates of authorities that the server's may come from, beside the system's (PEM)",
      fallback: "none",
    }),
    tls_cert: setting({
      ...SITE,
      parse: text(),
      flag: "tls-cert",
      placeholder: "file",
      meaning: "client certificate (PEM)",
      fallback: "none",
    }),
    tls_key: setting({
      ...SITE,
      parse: text(),
      flag: "tls-key",
      placeholder: "file",
      meaning: "private key of the client certificate (PEM)",
      fallback: "none",
    }),
    proxy: setting({
      ...SITE,
      parse: proxyUrl(),
      flag: "proxy",
      placeholder: "url",
      meaning: "proxy to check through: http://, https:// or socks5://; HTTP_PROXY and its like are not followed",
      fallback: "none",
      secret: "credentials",
      references: true,
      everySite: "flag",
    }),
    http2: fixed({
      ...SITE,
      parse: choice(HTTP2_MODES),
      flag: "http2",
      placeholder: "mode",
      meaning: "auto: where an https server offers it; off: never; only: nothing else, without asking over http",
      fallback: "auto",
    }),
    ip_version: fixed({
      ...SITE,
      parse: choice(IP_VERSIONS),
      flag: "ip-version",
      placeholder: "version",
      meaning: "version of IP to connect over",
      fallback: "any",
      everySite: "flag",
    }),
    reuse_connection: fixed({
      ...SITE,
      parse: yesNo(),
      flag: "reuse-connection",
      placeholder: "yes|no",
      meaning: "whether a connection is kept for the next check, which says nothing of DNS, port and certificate then",
      fallback: "no",
    }),
    // Limits
    connect_timeout: setting({
      ...SITE,
      parse: duration({ minMs: 1, maxMs: 60 * MINUTE_MS }),
      flag: "connect-timeout",
      placeholder: "duration",
      meaning: "time until the connection stands, TLS included; it is looked at before every check then",
      fallback: "the timeout",
    }),
    inspect_interval: fixed({
      ...SITE,
      parse: interval({ minMs: 0, maxMs: 366 * DAY_MS }),
      flag: "inspect-interval",
      placeholder: "duration",
      meaning:
        "time between looks at the connection, which the site sees as a second one; 0: beside every check; never",
      fallback: "1m",
    }),
    first_byte_timeout: setting({
      ...SITE,
      parse: duration({ minMs: 1, maxMs: 60 * MINUTE_MS }),
      flag: "first-byte-timeout",
      placeholder: "duration",
      meaning: "time until the head of the response is there, redirects included",
      fallback: "the timeout",
    }),
    read_limit: fixed({
      ...SITE,
      parse: byteSize(1),
      flag: "read-limit",
      placeholder: "bytes",
      meaning: "bytes of the body, decompressed; a longer one is not read on, and is body_too_large",
      fallback: "64M",
    }),
    max_redirects: fixed({
      ...SITE,
      parse: integer(0, 50),
      flag: "max-redirects",
      placeholder: "n",
      meaning: "redirects to follow, more are redirect_loop; 0: none is followed, and its status is judged",
      fallback: "10",
    }),
  },
  kafka: {
    bootstrap_servers: setting({
      parse: servers(),
      flag: "kafka-bootstrap-servers",
      placeholder: "host:port,…",
      meaning: "brokers to begin with",
      fallback: "none",
      programs: BOTH,
      secret: "credentials",
    }),
    security_protocol: setting({
      parse: choice(SECURITY_PROTOCOLS),
      flag: "kafka-security-protocol",
      placeholder: "protocol",
      meaning: "PLAINTEXT or SSL",
      fallback: "SSL where one of the three files is set, else PLAINTEXT",
      programs: BOTH,
    }),
    ssl_cafile: setting({
      parse: text(),
      flag: "kafka-ssl-cafile",
      placeholder: "file",
      meaning: "certificates of the authorities that the brokers' certificates must come from (PEM)",
      fallback: "with SSL, ./ca.pem where it exists, else the system's",
      programs: BOTH,
    }),
    ssl_certfile: setting({
      parse: text(),
      flag: "kafka-ssl-certfile",
      placeholder: "file",
      meaning: "client certificate (PEM)",
      fallback: "with SSL, ./service.cert where it exists, else none",
      programs: BOTH,
    }),
    ssl_keyfile: setting({
      parse: text(),
      flag: "kafka-ssl-keyfile",
      placeholder: "file",
      meaning: "private key of the client certificate (PEM)",
      fallback: "with SSL, ./service.key where it exists, else none",
      programs: BOTH,
    }),
    group_id: setting({
      parse: text(),
      flag: "kafka-group-id",
      placeholder: "name",
      meaning: "consumer group; a new one begins with the earliest messages",
      fallback: "site_checker",
      programs: ["consumer"],
    }),
    // The consumer reads it too; its flag for topics is --kafka-topic, which takes several.
    topic: setting({
      parse: text(),
      flag: "shared-topic",
      placeholder: "name",
      meaning: "one topic for all sites, keyed by site; the way beyond about 2,000 sites",
      fallback: "a topic per site",
      programs: ["producer"],
    }),
    partitions: setting({
      parse: integer(1, 10_000),
      flag: "kafka-partitions",
      placeholder: "n",
      meaning: "partitions of topics that the producer makes",
      fallback: "the brokers' own",
      programs: ["producer"],
    }),
    replication_factor: setting({
      parse: integer(1, 100),
      flag: "kafka-replication-factor",
      placeholder: "n",
      meaning: "copies of topics that the producer makes",
      fallback: "the brokers' own",
      programs: ["producer"],
    }),
    retention: setting({
      parse: retention({ minMs: 60_000, maxMs: 36_500 * DAY_MS }),
      flag: "kafka-retention",
      placeholder: "duration",
      meaning: "how long Kafka keeps what is in topics that the producer makes: 7d, forever",
      fallback: "the brokers' own",
      programs: ["producer"],
    }),
  },
  postgres: {
    user: setting({
      parse: text(),
      flag: "postgres-user",
      placeholder: "name",
      meaning: "role to connect as",
      fallback: "postgres",
      programs: ["consumer"],
    }),
    password: setting({
      parse: anyText(),
      flag: "postgres-password",
      placeholder: "password",
      meaning: "its password (better by environment or file: other users of a machine see flags)",
      fallback: "none",
      programs: ["consumer"],
      secret: "value",
    }),
    host: setting({
      parse: hosts(),
      flag: "postgres-host",
      placeholder: "host[:port],…",
      meaning: "server; of several, the first that takes writes is used, and the next one when it goes",
      fallback: "none",
      programs: ["consumer"],
      secret: "credentials",
    }),
    port: setting({
      parse: integer(1, 65_535),
      flag: "postgres-port",
      placeholder: "port",
      meaning: "port of servers that are given without one",
      fallback: "5432",
      programs: ["consumer"],
    }),
    database: setting({
      parse: text(),
      flag: "postgres-database",
      placeholder: "name",
      meaning: "database, in which the schema site_checker is made",
      fallback: "the name of the user",
      programs: ["consumer"],
    }),
    sslmode: setting({
      parse: choice(SSL_MODES),
      flag: "postgres-sslmode",
      placeholder: "mode",
      meaning: "disable, require, verify-ca or verify-full",
      fallback: "verify-ca where sslrootcert is set, else disable on a loopback host and verify-full on others",
      programs: ["consumer"],
    }),
    sslrootcert: setting({
      parse: text(),
      flag: "postgres-sslrootcert",
      placeholder: "file",
      meaning: "certificates of the authorities that the server's certificate must come from (PEM)",
      fallback: "the system's",
      programs: ["consumer"],
    }),
    min_connection: setting({
      parse: integer(0, 1_000),
      flag: "postgres-min-connection",
      placeholder: "n",
      meaning: "connections that are kept open",
      fallback: "1",
      programs: ["consumer"],
    }),
    max_connection: setting({
      parse: integer(1, 1_000),
      flag: "postgres-max-connection",
      placeholder: "n",
      meaning: "connections that may be open at a time",
      fallback: "2, or min_connection where that is more",
      programs: ["consumer"],
    }),
  },
  producer: {
    location: setting({
      parse: text(),
      flag: "producer-location",
      placeholder: "text",
      meaning: "where the producer stands, kept with each result",
      fallback: "none",
      programs: ["producer"],
    }),
    name: setting({
      parse: text(),
      flag: "producer-name",
      placeholder: "text",
      meaning: "which producer it is, kept with each result",
      fallback: "none",
      programs: ["producer"],
    }),
    max_checks: setting({
      parse: integer(1, 100_000),
      flag: "max-checks",
      placeholder: "n",
      meaning: "checks in flight; others wait, which is no part of their times",
      fallback: "1000, or 50 with --once; fewer where the limit on open files is low",
      programs: ["producer"],
      variable: false,
    }),
    max_checks_per_host: setting({
      parse: integer(1, 100_000),
      flag: "max-checks-per-host",
      placeholder: "n",
      meaning: "checks in flight with one host and port",
      fallback: "100",
      programs: ["producer"],
      variable: false,
    }),
    drain_timeout: setting({
      parse: duration({ minMs: 0, maxMs: DAY_MS }),
      flag: "drain-timeout",
      placeholder: "duration",
      meaning: "with --once: how long to wait until Kafka has every metric",
      fallback: "30s",
      programs: ["producer"],
    }),
    spool_path: setting({
      parse: text(),
      flag: "spool-path",
      placeholder: "file",
      meaning: "where results wait until Kafka has them; one producer at a time",
      fallback: "./spool/site_checker.db",
      programs: ["producer"],
    }),
    spool_max_bytes: setting({
      parse: byteSize(64 * 1024),
      flag: "spool-max-bytes",
      placeholder: "bytes",
      meaning: "room for them; when it is full, the oldest go: 512M, 10G",
      fallback: "1G",
      programs: ["producer"],
    }),
    spool_max_age: setting({
      parse: duration({ minMs: 1_000, maxMs: 3_650 * DAY_MS }),
      flag: "spool-max-age",
      placeholder: "duration",
      meaning: "older ones go",
      fallback: "7d",
      programs: ["producer"],
    }),
    spool_sync: setting({
      parse: choice(SPOOL_SYNCS),
      flag: "spool-sync",
      placeholder: "mode",
      meaning: "normal: a power cut may cost the last moments; full: each write waits for the disk",
      fallback: "normal",
      programs: ["producer"],
    }),
  },
  log: {
    level: setting({
      parse: choice(LOG_LEVELS),
      flag: "log-level",
      placeholder: "level",
      meaning: `least severe log lines to write: ${LOG_LEVELS.join(", ")}`,
      fallback: "info",
      programs: BOTH,
    }),
  },
} as const;

/** Section of the file: `website` stands for every `[website_NAME]`. */
export type SectionName = keyof typeof SETTINGS;

/** Names of a setting as a flag, its aliases behind it. */
export function flagNames(key: string, { flag, aliases = [] }: Setting<unknown>): string[] {
  const prefix = flag.slice(0, flag.length - key.length);
  return [flag, ...aliases.map((alias) => prefix + alias.replaceAll("_", "-"))];
}

/** Environment variables of a setting, those of its aliases behind it. */
export function variableNames(key: string, setting: Setting<unknown>): string[] {
  return setting.variable === false ? [] : flagNames(key, setting).map(environmentName);
}

/** Environment variable of a flag: `kafka-group-id` → `KAFKA_GROUP_ID`. */
export function environmentName(flag: string): string {
  return flag.replaceAll("-", "_").toUpperCase();
}

/** What a site's setting gives: several values, one, or undefined where it is not set. */
export type SiteValue<K extends SiteKey> = typeof SETTINGS.website[K] extends ListSetting<infer T> ? readonly T[]
  : typeof SETTINGS.website[K] extends FixedSetting<infer T> ? T
  : typeof SETTINGS.website[K] extends Setting<infer T> ? T | undefined
  : never;

/** Key of a `[website_NAME]`. */
export type SiteKey = keyof typeof SETTINGS.website;

function setting<T>(setting: Setting<T>): Setting<T> {
  return setting;
}

/** A setting whose fallback is text of a value, such as `20s`. */
function fixed<T>(setting: Setting<T>): FixedSetting<T> {
  return { ...setting, initial: setting.parse(setting.fallback) };
}

/** A setting that takes several values, see {@linkcode Setting.several}. */
function list<T>(setting: Setting<T>): ListSetting<T> {
  return { ...setting, several: true };
}
