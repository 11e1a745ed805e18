import assert from "node:assert/strict";
import { createPrivateKey } from "node:crypto";
import { createAuthority } from "../local/certificate.ts";
import { REPOSITORY } from "../local/repository.ts";
import { parseCommandLine } from "../lib/command.ts";
import { DEFAULT_CLIENT, PROXY_VARIABLES } from "../lib/client.ts";
import { type ConsumerConfig, type ProducerConfig, readConsumerConfig, readProducerConfig } from "../lib/config.ts";
import { ConfigError } from "../lib/error.ts";
import { DEFAULT_REQUEST } from "../lib/request.ts";
import { DEFAULT_EXPECTATIONS } from "../lib/expectation.ts";
import { DEFAULT_LIMITS } from "../lib/site.ts";
import { environmentName, type Setting, SETTINGS, variableNames } from "../lib/setting.ts";
import { temporaryFile } from "./support.ts";

/** What a test sets. */
interface Given {
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Text of the file. */
  readonly file?: string;
}

/** What a test of the producer sets. */
interface GivenToProducer extends Given {
  /** Whether it is to publish; else it makes a dry run, which needs no broker. */
  readonly publish?: boolean;
}

/** Reads settings with nothing of the process's own environment. */
async function read<T>(
  program: "producer" | "consumer",
  readConfig: (commandLine: never, options: { env: (name: string) => string | undefined }) => Promise<T>,
  { args = [], env = {}, file }: Given,
): Promise<T> {
  await using stack = new AsyncDisposableStack();
  const path = file === undefined ? [] : ["--config-path", stack.use(await temporaryFile("config.ini", file)).path];
  const commandLine = parseCommandLine(program, [...path, ...args]);
  return await readConfig(commandLine as never, { env: (name) => env[name] });
}

function producer({ args = [], publish = false, ...given }: GivenToProducer): Promise<ProducerConfig> {
  return read("producer", readProducerConfig, { ...given, args: [...args, ...(publish ? [] : ["--dry-run"])] });
}

const BROKER = ["--kafka-bootstrap-servers", "localhost"];
const TOPIC = ["--kafka-topic", "apache"];

function consumer(given: Given): Promise<ConsumerConfig> {
  return read("consumer", readConsumerConfig, given);
}

/** Changes the working folder until the end. */
function workIn(folder: string): Disposable {
  const before = Deno.cwd();
  Deno.chdir(folder);
  return { [Symbol.dispose]: () => Deno.chdir(before) };
}

/** A folder with certificates and keys, good and bad. */
async function makeCertificates(): Promise<{ readonly path: string } & AsyncDisposable> {
  const authority = await createAuthority("authority");
  const own = await authority.issue({ commonName: "own" });
  const other = await authority.issue({ commonName: "other" });
  const expired = await authority.issue({ commonName: "expired", notAfter: new Date("2026-01-02T03:04:05Z") });
  const path = await Deno.makeTempDir();
  const files: Record<string, string | Uint8Array> = {
    "authority.pem": authority.certificate,
    "own.cert": own.certificate,
    "own.key": own.key,
    "other.key": other.key,
    "expired.cert": expired.certificate,
    "expired.key": expired.key,
    "encrypted.key": String(
      createPrivateKey(own.key).export({ type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: "hunter2" }),
    ),
    "text.pem": "no certificate\n",
    "empty.txt": "\n",
    "binary.pem": new Uint8Array([0x30, 0x82, 0, 0xff]),
    "bundle.pem": authority.certificate + authority.certificate.replace(/\n.{40}/, "\nAAAA"),
  };
  for (const [name, content] of Object.entries(files)) {
    await Deno.writeFile(`${path}/${name}`, typeof content === "string" ? new TextEncoder().encode(content) : content);
  }
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

// Invalid files

const KEYS = Object.entries<Setting<unknown>>(SETTINGS.website).flatMap(([key, { aliases = [] }]) => [key, ...aliases]);
const WEBSITE_KEYS = `expected one of ${KEYS.join(", ")}`;
const SECTIONS = "expected [website_NAME] or one of [defaults], [kafka], [postgres], [producer], [log]";
const TOPIC_NAME = "expected 1 to 249 letters, digits, dots, dashes and underscores, as Kafka takes for a topic";
const TWICE_READ = "which JavaScript and Python read differently";
const SERVER_LIST = "expected host:port with a name or IPv4 address, several separated by commas";

/** Message by file; `FILE` stands for its path. */
const INVALID_FOR_PRODUCER: Readonly<Record<string, string>> = {
  "missing.ini": "Cannot read configuration file 'FILE': there is no such file",
  "": "Cannot read configuration file 'FILE': expected a file, got a directory",
  "binary.ini": "Cannot read configuration file 'FILE': expected text in UTF-8, got binary data",
  "utf16.ini": "Cannot read configuration file 'FILE': expected text in UTF-8, got binary data",
  "section_typo_website.ini": `Cannot read section [websit_a] (FILE:1): ${SECTIONS}; did you mean [website_a]?`,
  "section_typo_kafka.ini": `Cannot read section [kafak] (FILE:1): ${SECTIONS}; did you mean [kafka]?`,
  "section_upper_case.ini": `Cannot read section [Kafka] (FILE:1): ${SECTIONS}; did you mean [kafka]?`,
  "section_far.ini": `Cannot read section [metrics] (FILE:1): ${SECTIONS}`,
  "section_twice.ini": "Cannot read section [website_apache] (FILE:3): it is already there in line 1",
  "section_swallowed.ini":
    "Cannot read key 'url' of [website_apache] (FILE:2): an indented line continues its value, and one that follows it is " +
    "a section or key of its own: expected no space before '[website_nginx]'",
  "section_typo_defaults.ini": `Cannot read section [default] (FILE:1): ${SECTIONS}; did you mean [defaults]?`,
  "defaults_url.ini": `Cannot read key 'url' of [defaults] (FILE:2): ${WEBSITE_KEYS.replace(" url,", "")}`,
  "defaults_bad.ini": "Cannot read interval of [defaults] (FILE:2): expected a duration such as 10s, got 'often'",
  "tag_bad.ini": "Cannot read tags of website 'apache' (FILE:7): expected key = value, got 'production'",
  "tag_twice.ini": "Cannot use tags of [defaults] (FILE:2): expected each key once, got 'team' twice",
  "key_typo.ini": `Cannot read key 'pooling_intreval' of [website_apache] (FILE:3): ${WEBSITE_KEYS}; ` +
    "did you mean pooling_interval?",
  "key_far.ini": `Cannot read key 'colour' of [website_apache] (FILE:3): ${WEBSITE_KEYS}`,
  "key_default_typo.ini": `Cannot read key 'timout' of [DEFAULT] (FILE:2): ${WEBSITE_KEYS}, bootstrap_servers, ` +
    "security_protocol, ssl_cafile, ssl_certfile, ssl_keyfile, group_id, topic, partitions, replication_factor, " +
    "retention, user, password, host, port, database, sslmode, sslrootcert, min_connection, max_connection, " +
    "location, name, max_checks, max_checks_per_host, drain_timeout, spool_path, spool_max_bytes, spool_max_age, spool_sync, level; did you mean timeout?",
  "spool_max_bytes.ini":
    "Cannot read spool_max_bytes of [producer] (FILE:4): expected a number of bytes such as 512M " +
    "or 1G, got 'much'",
  "spool_max_bytes_small.ini": "Cannot read spool_max_bytes of [producer] (FILE:4): expected at least 64K, got '10'",
  "spool_sync.ini": "Cannot read spool_sync of [producer] (FILE:4): expected one of normal, full, got 'off'",
  "partitions.ini": "Cannot read partitions of [kafka] (FILE:4): expected a whole number from 1 to 10000, got '0'",
  "retention.ini": "Cannot read retention of [kafka] (FILE:4): expected a duration such as 7d, or forever, got 'long'",
  "shared_topic.ini": "Cannot use topic 'all sites' (FILE:4): expected 1 to 249 letters, digits, dots, dashes and " +
    "underscores, as Kafka takes for a topic",
  "key_twice.ini": "Cannot read key 'timeout' (FILE:4): it is already there in line 3",
  "key_before_section.ini": "Cannot read key 'url' (FILE:1): expected a [section] before the first key",
  "key_swallowed.ini":
    "Cannot read key 'regex' of [website_apache] (FILE:3): an indented line continues its value, and one that follows it " +
    "is a section or key of its own: expected no space before 'timeout'",
  "line.ini": "Cannot read the line (FILE:2): expected [section], key = value or a # comment",
  "reference.ini":
    "Cannot resolve %(hots)s in url (FILE:2): expected a key of the section or of [DEFAULT]; %% stands for a percent sign",
  "reference_loop.ini": "Cannot resolve %(regex)s in url (FILE:2): it leads back to itself",
  "site_twins.ini": "Cannot use website 'a_b' (FILE:4): Kafka takes its topic for that of website 'a.b' in line 1, " +
    "since . and _ count as the same: rename one",
  "url_none.ini": "Cannot read website 'apache' (FILE:1): expected url = https://…, got none",
  "url_bad.ini":
    "Cannot read url of website 'apache' (FILE:2): expected a URL such as https://example.com/, got 'httpd.apache.org'",
  "url_no_host.ini":
    "Cannot read url of website 'apache' (FILE:2): expected a URL that begins with http:// or https://, got " +
    "'https:/httpd.apache.org/'",
  "url_comment.ini":
    "Cannot read url of website 'apache' (FILE:2): expected a URL without white space, such as https://example.com/, got " +
    "'https://httpd.apache.org/ # the home page'",
  "url_ftp.ini":
    "Cannot read url of website 'apache' (FILE:2): expected a URL that begins with http:// or https://, got " +
    "'ftp://httpd.apache.org/'",
  "url_password.ini":
    "Cannot read url of website 'apache' (FILE:2): expected a URL such as https://example.com/, got " +
    "'https://********@httpd.apache.org:x/'",
  "url_port_blocked.ini":
    "Cannot read url of website 'apache' (FILE:2): expected a port other than 25, which fetch refuses (see \"port " +
    "blocking\"), got 'http://httpd.apache.org:25/'",
  "url_port_0.ini":
    "Cannot read url of website 'apache' (FILE:2): expected a port other than 0, which fetch refuses (see \"port " +
    "blocking\"), got 'http://httpd.apache.org:0/'",
  "regex_bad.ini":
    "Cannot read regex of website 'apache' (FILE:3): expected a regular expression (Unterminated group), got " +
    "'Apache (HTTP'",
  "regex_flag.ini":
    "Cannot read regex of website 'apache' (FILE:3): expected flags among i, m, s and u in (?x), not 'x', got " +
    "'(?x)Apache'",
  "regex_bracket.ini":
    "Cannot read regex of website 'apache' (FILE:3): expected \\] for a bracket in a class, or [\\s\\S] for any character " +
    `instead of [^], ${TWICE_READ}, got '[^]]+'`,
  "interval_zero.ini":
    "Cannot read interval of website 'apache' (FILE:3): expected a duration from 100ms to 20d, got '0'",
  "interval_negative.ini":
    "Cannot read interval of website 'apache' (FILE:3): expected a duration from 100ms to 20d, got '-5'",
  "interval_often.ini":
    "Cannot read interval of website 'apache' (FILE:3): expected a duration such as 10s, got 'often'",
  "interval_long.ini":
    "Cannot read interval of website 'apache' (FILE:3): expected a duration from 100ms to 20d, got '21d'",
  "interval_comment.ini":
    "Cannot read interval of website 'apache' (FILE:3): expected a duration such as 10s, got '10 ; seconds'",
  "interval_twice.ini":
    "Cannot use pooling_interval (FILE:4) beside interval (FILE:3), which means the same: expected one of them",
  "cron_bad.ini": "Cannot read cron of website 'apache' (FILE:3): expected a cron expression such as 0 3 * * sun " +
    "(Invalid value for minute: 60), got '60 * * * *'",
  "cron_never.ini": "Cannot read cron of [defaults] (FILE:2): expected a cron expression with a time that comes, got " +
    "'0 0 30 2 *'",
  "cron_interval.ini": "Cannot use cron of website 'apache' (FILE:4): expected interval or cron, got both",
  "time_zone.ini": "Cannot read time_zone of website 'apache' (FILE:4): expected a time zone such as UTC or " +
    "Europe/Berlin, got 'Mars/Olympus'",
  "jitter_long.ini": "Cannot use jitter of [defaults] (FILE:2): expected less than the interval, which is 20s, got 30s",
  "failing_interval.ini":
    "Cannot read failing_interval of website 'apache' (FILE:3): expected a duration from 100ms to " +
    "20d, got '0'",
  "maintenance_no_duration.ini":
    "Cannot read maintenance of website 'apache' (FILE:5): expected a cron expression and a " +
    "duration with its unit, such as 0 3 * * sun 2h, got '0 3 * * sun'",
  "maintenance_long.ini":
    "Cannot read maintenance of website 'apache' (FILE:3): expected a duration from 1s to 31d, got " +
    "'0 3 * * sun 40d'",
  "maintenance_cron.ini": "Cannot read maintenance of website 'apache' (FILE:3): expected a cron expression such as " +
    "0 3 * * sun (Invalid value for hour: 25), got '0 25 * * * 2h'",
  "maintenance_checks.ini":
    "Cannot read maintenance_checks of website 'apache' (FILE:4): expected one of mark, skip, got " +
    "'pause'",
  "max_checks.ini": "Cannot read max_checks of [producer] (FILE:4): expected a whole number from 1 to 100000, got '0'",
  "max_checks_per_host.ini":
    "Cannot read max_checks_per_host of [producer] (FILE:4): expected a whole number from 1 to " +
    "100000, got 'many'",
  "timeout_bad.ini":
    "Cannot read timeout of website 'apache' (FILE:3): expected a duration such as 10s, got '10 seconds'",
  "site_none.ini":
    "Cannot find a site to check: expected --url, URL in the environment, or [website_NAME] with a url in FILE",
  "broker_none.ini": "Cannot find a Kafka broker: expected host:port in --kafka-bootstrap-servers, " +
    "KAFKA_BOOTSTRAP_SERVERS or bootstrap_servers of [kafka]",
  "broker_empty.ini": "Cannot find a Kafka broker: expected host:port in --kafka-bootstrap-servers, " +
    "KAFKA_BOOTSTRAP_SERVERS or bootstrap_servers of [kafka]",
  "broker_bad.ini":
    `Cannot read bootstrap_servers of [kafka] (FILE:4): ${SERVER_LIST}, got 'PLAINTEXT://********@localhost:9092'`,
  "broker_port.ini": `Cannot read bootstrap_servers of [kafka] (FILE:4): ${SERVER_LIST}, got 'localhost:65536'`,
  "broker_ipv6.ini": `Cannot read bootstrap_servers of [kafka] (FILE:4): ${SERVER_LIST}, got '[::1]:9092'`,
  "security_protocol.ini":
    "Cannot read security_protocol of [kafka] (FILE:5): expected one of PLAINTEXT, SSL, got 'SASL_SSL'",
  "name_space.ini": `Cannot use name of website 'a b' (FILE:1): ${TOPIC_NAME}`,
  "name_umlaut.ini": `Cannot use name of website 'münchen' (FILE:1): ${TOPIC_NAME}`,
  "name_long.ini": `Cannot use name of website '${"x".repeat(250)}' (FILE:1): ${TOPIC_NAME}`,
  "name_dot.ini": `Cannot use name of website '.' (FILE:1): ${TOPIC_NAME}`,
  "name_dots.ini": `Cannot use name of website '..' (FILE:1): ${TOPIC_NAME}`,
  "name_empty.ini": `Cannot use name of website '' (FILE:1): ${TOPIC_NAME}`,
  "name_internal.ini":
    "Cannot use name of website '__consumer_offsets' (FILE:1): expected a name other than that of a " +
    "topic of Kafka's own",
  "log_level.ini": "Cannot read level of [log] (FILE:4): expected one of debug, info, warning, error, got 'verbose'",
  "drain_timeout.ini": "Cannot read drain_timeout of [producer] (FILE:4): expected a duration from 0ms to 1d, got '-1'",
  "min_bytes_read_limit.ini":
    "Cannot use min_bytes of website 'apache' (FILE:3): expected at most read_limit, which is 1K, got 2K",
  "host.ini":
    "Cannot read host of website 'apache' (FILE:3): expected a host, with :port if need be, got 'https://www.apache.org/'",
  "enabled.ini": "Cannot read enabled of website 'apache' (FILE:3): expected yes or no, got 'maybe'",
  "enabled_none.ini":
    "Cannot find a site to check: expected --url, URL in the environment, or [website_NAME] with a url in FILE without enabled = no",
  "method.ini":
    "Cannot read method of website 'apache' (FILE:3): expected one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, got 'FETCH'",
  "method_head_regex.ini":
    "Cannot use regex of website 'apache' (FILE:4): expected a method other than HEAD beside it, whose answer has no body",
  "body_get.ini":
    "Cannot use body of website 'apache' (FILE:3): expected method = POST or another that has a body beside it, got GET",
  "body_file_head.ini":
    "Cannot use body_file of website 'apache' (FILE:4): expected method = POST or another that has a body beside it, got HEAD",
  "body_both.ini":
    "Cannot use body of website 'apache' (FILE:4): expected one of it and body_file of website 'apache' (FILE:5), got both",
  "body_file_missing.ini": "Cannot read body_file of website 'apache' (FILE:4) 'missing.json': there is no such file",
  "header_bad.ini": "Cannot read headers of website 'apache' (FILE:5): expected name: value",
  "header_name.ini":
    "Cannot read headers of website 'apache' (FILE:3): expected name: value, with a name as HTTP has them",
  "header_value.ini":
    "Cannot read headers of website 'apache' (FILE:3): expected one line of Latin-1 characters, as HTTP takes for a header",
  "header_twice.ini": "Cannot use headers of website 'apache' (FILE:3): expected each header once, got x-a twice",
  "header_host.ini": "Cannot use headers of website 'apache' (FILE:3): expected host for the header host",
  "header_user_agent.ini":
    "Cannot use headers of website 'apache' (FILE:3): expected user_agent for the header user-agent",
  "header_length.ini":
    "Cannot use headers of website 'apache' (FILE:3): expected headers that are not the connection's, got content-length",
  "header_authorization.ini":
    "Cannot use headers of website 'apache' (FILE:3): expected no header authorization beside bearer_token",
  "header_authorization_url.ini":
    "Cannot use headers of website 'apache' (FILE:3): expected no header authorization beside user and password in the url",
  "basic_url.ini":
    "Cannot use basic_user of website 'apache' (FILE:3): expected no user and password in the url beside it, got some",
  "basic_bearer.ini":
    "Cannot use bearer_token of [defaults] (FILE:2): expected one of it and basic_user of website 'apache' (FILE:5), got both",
  "basic_password_alone.ini":
    "Cannot use basic_password of website 'apache' (FILE:3): expected basic_user beside it, got none",
  "basic_password_both.ini":
    "Cannot use basic_password of website 'apache' (FILE:4): expected one of it and basic_password_file of website 'apache' (FILE:5), got both",
  "basic_user_colon.ini":
    "Cannot use basic_user of website 'apache' (FILE:3): expected a name without a colon, which ends it",
  "bearer_bad.ini":
    "Cannot read bearer_token of website 'apache' (FILE:3): expected letters, digits and -._~+/ with = at the end at most",
  "bearer_file_bad.ini":
    "Cannot read bearer_token_file of website 'apache' (FILE:3) 'text.pem': expected letters, digits and -._~+/ with = at the end at most",
  "bearer_file_empty.ini":
    "Cannot read bearer_token_file of website 'apache' (FILE:3) 'empty.txt': expected a text that is not empty",
  "oauth_url_none.ini":
    "Cannot use oauth_scope of website 'apache' (FILE:3): expected oauth_token_url beside it, got none",
  "oauth_id_none.ini":
    "Cannot use oauth_token_url of website 'apache' (FILE:3): expected oauth_client_id beside it, got none",
  "oauth_secret_none.ini":
    "Cannot use oauth_token_url of [defaults] (FILE:2): expected oauth_client_secret or its file beside it, got none",
  "oauth_secret_both.ini":
    "Cannot use oauth_client_secret of website 'apache' (FILE:5): expected one of it and oauth_client_secret_file of website 'apache' (FILE:6), got both",
  "oauth_secret_empty.ini":
    "Cannot read oauth_client_secret_file of website 'apache' (FILE:5) 'empty.txt': expected a text that is not empty",
  "oauth_url_ftp.ini":
    "Cannot read oauth_token_url of website 'apache' (FILE:3): expected a URL that begins with http:// or https://, got 'ftp://********@login.example.com/token'",
  "oauth_url_password.ini":
    "Cannot use oauth_token_url of website 'apache' (FILE:3): expected oauth_client_id and oauth_client_secret for user and password in it",
  "oauth_bearer.ini":
    "Cannot use oauth_token_url of [defaults] (FILE:2): expected one of it and bearer_token of website 'apache' (FILE:8), got both",
  "oauth_basic.ini":
    "Cannot use oauth_token_url of website 'apache' (FILE:4): expected one of it and basic_user of website 'apache' (FILE:3), got both",
  "oauth_header.ini":
    "Cannot use headers of website 'apache' (FILE:6): expected no header authorization beside oauth_token_url",
  "oauth_url_user.ini":
    "Cannot use oauth_token_url of website 'apache' (FILE:3): expected no user and password in the url beside it, got some",
  "oauth_scope.ini":
    `Cannot read oauth_scope of website 'apache' (FILE:6): expected scopes separated by spaces, without quotes, \\ and letters beyond ASCII, got '"read write"'`,
  "oauth_parameters.ini":
    "Cannot read oauth_parameters of website 'apache' (FILE:8): expected key = value, got 'resource'",
  "oauth_parameters_scope.ini":
    "Cannot use oauth_parameters of website 'apache' (FILE:6): expected oauth_scope for the parameter scope",
  "oauth_parameters_grant.ini":
    "Cannot use oauth_parameters of website 'apache' (FILE:6): expected parameters beside grant_type = client_credentials, got grant_type",
  "oauth_auth.ini": "Cannot read oauth_auth of website 'apache' (FILE:6): expected one of basic, post, got 'header'",
  "reference_secret.ini":
    "Cannot read bearer_token of website 'apache' (FILE:3): expected ${SITE_CHECKER_…}, a variable of the environment, or $${ for ${ itself",
  "reference_unset.ini":
    "Cannot read headers of website 'apache' (FILE:3): environment variable SITE_CHECKER_KEY is not set",
  "tls_cert_alone.ini": "Cannot use tls_cert of website 'apache' (FILE:3): expected tls_key beside it, got none",
  "tls_key_alone.ini": "Cannot use tls_key of website 'apache' (FILE:3): expected tls_cert beside it, got none",
  "tls_key_other.ini":
    "Cannot use tls_key of website 'apache' (FILE:4): expected the private key of the certificate in 'own.cert', got another in 'other.key'",
  "tls_key_encrypted.ini":
    "Cannot read tls_key of website 'apache' (FILE:4) 'encrypted.key': expected a private key in PEM, got an encrypted one: only keys without a passphrase are read",
  "tls_ca_missing.ini": "Cannot read tls_ca of website 'apache' (FILE:3) 'missing.pem': there is no such file",
  "tls_cert_text.ini": "Cannot read tls_cert of website 'apache' (FILE:3) 'text.pem': expected a certificate in PEM",
  "proxy_scheme.ini":
    "Cannot read proxy of website 'apache' (FILE:3): expected http://, https:// or socks5:// with a host and a port alone, such as http://proxy:3128, got 'ftp://********@proxy:21'",
  "proxy_path.ini":
    "Cannot read proxy of website 'apache' (FILE:3): expected http://, https:// or socks5:// with a host and a port alone, such as http://proxy:3128, got 'http://proxy:3128/path'",
  "http2.ini": "Cannot read http2 of website 'apache' (FILE:3): expected one of auto, off, only, got 'yes'",
  "ip_version.ini": "Cannot read ip_version of website 'apache' (FILE:3): expected one of any, 4, 6, got '5'",
  "ip_version_proxy.ini":
    "Cannot use ip_version of website 'apache' (FILE:3): expected no proxy beside it: that connects to the site as it likes",
  "reuse_connection.ini": "Cannot read reuse_connection of website 'apache' (FILE:3): expected yes or no, got '5'",
  "inspect_interval.ini":
    "Cannot read inspect_interval of website 'apache' (FILE:3): expected a duration such as 10m, or never, got 'hourly'",
  "min_cert_days_never.ini":
    "Cannot use min_cert_days of website 'apache' (FILE:4): expected looks at the connection, got inspect_interval = never",
  "connect_timeout_proxy.ini":
    "Cannot use connect_timeout of website 'apache' (FILE:4): expected no proxy beside it: the connection behind one can't be looked at",
  "connect_timeout.ini":
    "Cannot read connect_timeout of website 'apache' (FILE:3): expected a duration from 1ms to 1h, got '0'",
  "first_byte_timeout.ini":
    "Cannot use first_byte_timeout of website 'apache' (FILE:4): expected at most the timeout, which is 5s, got 6s",
  "first_byte_timeout_unit.ini":
    "Cannot read first_byte_timeout of website 'apache' (FILE:3): expected a duration such as 10s, got '5min'",
  "read_limit.ini": "Cannot read read_limit of website 'apache' (FILE:3): expected at least 1, got '0'",
  "read_limit_unit.ini":
    "Cannot read read_limit of website 'apache' (FILE:3): expected a number of bytes such as 512M or 1G, got '5 pages'",
  "max_redirects.ini":
    "Cannot read max_redirects of website 'apache' (FILE:3): expected a whole number from 0 to 50, got '51'",
  "max_redirects_text.ini":
    "Cannot read max_redirects of website 'apache' (FILE:3): expected a whole number from 0 to 50, got 'none'",
  "ca_missing.ini": "Cannot read ssl_cafile of [kafka] (FILE:6) './missing.pem': there is no such file",
  "ca_directory.ini": "Cannot read ssl_cafile of [kafka] (FILE:6) '.': expected a file, got a directory",
  "ca_key.ini":
    "Cannot read ssl_cafile of [kafka] (FILE:6) 'other.key': expected a certificate in PEM, got a private key",
  "ca_binary.ini": "Cannot read ssl_cafile of [kafka] (FILE:6) 'binary.pem': expected text in UTF-8, got binary data",
  "ca_text.ini": "Cannot read ssl_cafile of [kafka] (FILE:6) 'text.pem': expected a certificate in PEM",
  "ca_broken_bundle.ini":
    "Cannot read ssl_cafile of [kafka] (FILE:6) 'bundle.pem': expected a certificate in PEM, got a broken one as number " +
    "2 of 2",
  "certificate_alone.ini": "Cannot use ssl_certfile of [kafka] (FILE:6): expected ssl_keyfile beside it, got none",
  "key_alone.ini": "Cannot use ssl_keyfile of [kafka] (FILE:6): expected ssl_certfile beside it, got none",
  "key_other.ini": "Cannot use ssl_keyfile of [kafka] (FILE:7): expected the private key of the certificate in " +
    "'own.cert', got another in 'other.key'",
  "key_encrypted.ini":
    "Cannot read ssl_keyfile of [kafka] (FILE:7) 'encrypted.key': expected a private key in PEM, got " +
    "an encrypted one: only keys without a passphrase are read",
  "key_certificate.ini":
    "Cannot read ssl_keyfile of [kafka] (FILE:7) 'own.cert': expected a private key in PEM, got a certificate",
  "key_text.ini": "Cannot read ssl_keyfile of [kafka] (FILE:7) 'text.pem': expected a private key in PEM",
  // What a site is expected to be like
  "status_text.ini":
    "Cannot read expected_status of website 'apache' (FILE:3): expected statuses such as 200-299,401, got 'ok'",
  "status_low.ini":
    "Cannot read expected_status of website 'apache' (FILE:3): expected statuses such as 200-299,401, got '20,200-299'",
  "status_zero.ini":
    "Cannot read expected_status of website 'apache' (FILE:3): expected statuses from 100 to 999, got '099'",
  "status_backwards.ini":
    "Cannot read expected_status of website 'apache' (FILE:3): expected ranges from a lower to a higher status, got '299-200'",
  "regex_absent_bad.ini":
    "Cannot read regex_absent of website 'apache' (FILE:4): expected a regular expression (Unterminated character class), got '[a'",
  "regex_absent_twin.ini":
    "Cannot use regex_absent of website 'apache' (FILE:5): expected a pattern that is not in regex, got 'ok'",
  "expected_header_name.ini":
    "Cannot read expected_header of website 'apache' (FILE:3): expected the name of a header, or name: pattern, got 'content type: html'",
  "expected_header_empty.ini":
    "Cannot read expected_header of website 'apache' (FILE:3): expected a regular expression behind the colon, got 'server:'",
  "forbidden_header_pattern.ini":
    "Cannot read forbidden_header of website 'apache' (FILE:3): expected a regular expression (Unterminated group), got 'server: ('",
  "forbidden_header_twin.ini":
    "Cannot use forbidden_header of website 'apache' (FILE:4): expected a header that is not in expected_header, got 'server'",
  "json_bad.ini": "Cannot read json of website 'apache' (FILE:3): expected a JSONata expression " +
    `(Expected ")" before end of expression), got '$x('`,
  "max_response_time_bad.ini":
    "Cannot read max_response_time of website 'apache' (FILE:3): expected a duration such as 10s, got 'soon'",
  "max_response_time_long.ini":
    "Cannot use max_response_time of website 'apache' (FILE:4): expected less than timeout, which is 5s, got 5s",
  "degraded_after_zero.ini":
    "Cannot read degraded_after of website 'apache' (FILE:3): expected a duration from 1ms to 1h, got '0'",
  "degraded_after_late.ini":
    "Cannot use degraded_after of website 'apache' (FILE:4): expected less than max_response_time, which is 2s, got 2s",
  "min_bytes_bad.ini":
    "Cannot read min_bytes of website 'apache' (FILE:3): expected a number of bytes such as 512M or 1G, got 'many'",
  "max_bytes_negative.ini":
    "Cannot read max_bytes of website 'apache' (FILE:3): expected a number of bytes such as 512M or 1G, got '-1'",
  "min_bytes_above_max.ini":
    "Cannot use min_bytes of website 'apache' (FILE:3): expected at most max_bytes, which is 1K, got 2K",
  "min_cert_days_zero.ini":
    "Cannot read min_cert_days of website 'apache' (FILE:3): expected a whole number from 1 to 3650, got '0'",
  "warn_cert_days_text.ini":
    "Cannot read warn_cert_days of website 'apache' (FILE:3): expected a whole number from 1 to 3650, got 'a month'",
  "warn_cert_days_few.ini":
    "Cannot use warn_cert_days of website 'apache' (FILE:4): expected more than min_cert_days, which is 14, got 14",
  "min_tls_version.ini":
    "Cannot read min_tls_version of website 'apache' (FILE:3): expected one of 1.2, 1.3, got '1.1'",
  "unchanged.ini":
    "Cannot read unchanged of website 'apache' (FILE:3): expected yes, no or a SHA-256 of 64 hexadecimal digits, got 'maybe'",
  "retries_many.ini":
    "Cannot read retries of website 'apache' (FILE:3): expected a whole number from 0 to 100, got '101'",
  "retry_interval_unit.ini":
    "Cannot read retry_interval of website 'apache' (FILE:3): expected a duration such as 10s, got '5 weeks'",
  "jitter_unit.ini":
    "Cannot read jitter of website 'apache' (FILE:3): expected a duration such as 10s, got '2 minutes'",
  "cron_time.ini":
    "Cannot read cron of website 'apache' (FILE:3): expected a cron expression such as 0 3 * * sun, got '2030-01-01T00:00'",
  "user_agent.ini":
    "Cannot read user_agent of website 'apache' (FILE:3): expected one line of Latin-1 characters, as HTTP takes for a header, got '☃'",
  "host_letters.ini":
    "Cannot read host of website 'apache' (FILE:3): expected a host, with :port if need be, got 'münchen.example'",
  "basic_user_line.ini": "Cannot use basic_user of website 'apache' (FILE:3): expected a name on one line",
  "method_head_absent.ini":
    "Cannot use regex_absent of website 'apache' (FILE:4): expected a method other than HEAD beside it, whose answer has no body",
  "method_head_max_bytes.ini":
    "Cannot use max_bytes of website 'apache' (FILE:4): expected a method other than HEAD beside it, whose answer has no body",
  "proxy_port.ini":
    "Cannot read proxy of website 'apache' (FILE:3): expected http://, https:// or socks5:// with a host and a port alone, such as http://proxy:3128, got 'http://proxy:0'",
  "tag_maintenance.ini":
    "Cannot use tags of website 'apache' (FILE:4): expected keys other than maintenance, which is set within maintenance",
  "read_limit_large.ini":
    "Cannot read read_limit of website 'apache' (FILE:3): expected a number of bytes below 8192T, got '9000T'",
  "replication_factor.ini":
    "Cannot read replication_factor of [kafka] (FILE:5): expected a whole number from 1 to 100, got '101'",
  "spool_max_age.ini":
    "Cannot read spool_max_age of [producer] (FILE:5): expected a duration from 1s to 3650d, got '500ms'",
  "certificate_text.ini": "Cannot read ssl_certfile of [kafka] (FILE:5) 'text.pem': expected a certificate in PEM",
  "excerpt_large.ini": "Cannot read excerpt of website 'apache' (FILE:3): expected 1 to 64K, got '1M'",
};

const INVALID_FOR_CONSUMER: Readonly<Record<string, string>> = {
  "site_twins.ini": INVALID_FOR_PRODUCER["site_twins.ini"]!,
  "name_umlaut.ini": INVALID_FOR_PRODUCER["name_umlaut.ini"]!,
  "topic_none.ini": "Cannot find a topic to read: expected --kafka-topic, KAFKA_TOPIC, or [website_NAME] in FILE",
  "postgres_host_none.ini":
    "Cannot find a PostgreSQL server: expected --postgres-host, POSTGRES_HOST or host of [postgres]",
  "postgres_host_url.ini":
    "Cannot read host of [postgres] (FILE:5): expected a host name or an IP address, with :port " +
    "if need be, several separated by commas, got " +
    "'postgres://********@db/checks'",
  "postgres_port.ini": "Cannot read port of [postgres] (FILE:6): expected a whole number from 1 to 65535, got '65536'",
  "postgres_port_text.ini":
    "Cannot read port of [postgres] (FILE:6): expected a whole number from 1 to 65535, got '5432.0'",
  "postgres_sslmode.ini":
    "Cannot read sslmode of [postgres] (FILE:6): expected one of disable, require, verify-ca, verify-full, got 'prefer'",
  "postgres_sslrootcert.ini": "Cannot read sslrootcert of [postgres] (FILE:6) 'missing.pem': there is no such file",
  "postgres_connections.ini":
    "Cannot use min_connection of [postgres] (FILE:6): expected at most max_connection, which is 4, got 5",
  "postgres_min_connection.ini":
    "Cannot read min_connection of [postgres] (FILE:7): expected a whole number from 0 to 1000, got '-1'",
  "postgres_connection_zero.ini":
    "Cannot read max_connection of [postgres] (FILE:6): expected a whole number from 1 to 1000, got '0'",
};

/** Flags for what the other mistakes of a file do not need to have. */
function beside(program: "producer" | "consumer", file: string): readonly string[] {
  if (program === "producer") return /^(?:broker_|site_none)/.test(file) ? [] : BROKER;
  return /^(?:topic_none|postgres)/.test(file) ? [] : BROKER;
}

for (
  const [program, readConfig, cases] of [
    ["producer", readProducerConfig, INVALID_FOR_PRODUCER],
    ["consumer", readConsumerConfig, INVALID_FOR_CONSUMER],
  ] as const
) {
  Deno.test.each(Object.entries(cases))(`${program} refuses tests/invalid/%s`, async (file, message) => {
    await using certificates = await makeCertificates();
    using _ = workIn(certificates.path);
    const path = `${REPOSITORY}/tests/invalid/${file}`;
    const commandLine = parseCommandLine(program, ["--config-path", path, ...beside(program, file)]);
    await assert.rejects(readConfig(commandLine as never, { env: () => undefined }), {
      name: "ConfigError",
      message: message.replaceAll("FILE", path),
    });
  });
}

Deno.test("a site takes back the token of [defaults] by an empty oauth_token_url, and warns of http://", async () => {
  const file = `[defaults]
oauth_token_url = http://login.example.com/token
oauth_client_id = me
oauth_client_secret = hunter2

[website_a]
url = https://a/

[website_b]
url = https://b/
oauth_token_url =
bearer_token = other

[website_c]
url = https://c/
oauth_token_url = http://[::1]:8080/token
`;
  const { sites, warnings } = await producer({ file });
  assert.deepEqual(sites.map(({ request: { authorization, oauth } }) => [authorization, oauth?.tokenUrl]), [
    [null, "http://login.example.com/token"],
    ["Bearer other", undefined],
    [null, "http://[::1]:8080/token"],
  ]);
  assert.deepEqual(warnings.map((warning) => warning.replace(/\(\S*config\.ini/, "(FILE")), [
    "oauth_token_url of [defaults] (FILE:2) is http://: the secret and the token can be read on their way",
  ]);
});

const A = "[website_a]\nurl = https://a/\n";
const PLAIN_A = A.replace("https:", "http:");
const OF_A = "of website 'a' (FILE:3)";

/** What is allowed and probably not meant, and what is said of it; `FILE` stands for the path. */
const WARNINGS: readonly (Given & { readonly what: string; readonly expected: readonly string[] })[] = [
  {
    what: "retry_interval without retries",
    file: `${A}retry_interval = 5s\n`,
    expected: [`retry_interval ${OF_A} has no effect: retries is 0`],
  },
  {
    what: "inspect_interval behind a proxy",
    file: `${A}inspect_interval = 5m\nproxy = http://proxy:3128\n`,
    expected: [`inspect_interval ${OF_A} has no effect: the connection behind a proxy can't be looked at`],
  },
  {
    what: "authorities for http://",
    file: `${PLAIN_A}tls_ca = authority.pem\n`,
    expected: [`tls_ca ${OF_A} has no effect: the address is http:// until a redirect leads to https://`],
  },
  {
    what: "a client certificate for http:// without redirects",
    file: `${PLAIN_A}tls_cert = own.cert\ntls_key = own.key\nmax_redirects = 0\n`,
    expected: [`tls_cert ${OF_A} has no effect: the address is http://`],
  },
  { what: "authorities of a proxy", file: `${PLAIN_A}tls_ca = authority.pem\nproxy = https://proxy\n`, expected: [] },
  {
    what: "HTTP/2 alone with a proxy and http://",
    file: `${PLAIN_A}http2 = only\nproxy = http://proxy:3128\n`,
    expected: [`http2 ${OF_A} is asked of the proxy, too, which few speak: the address is http://`],
  },
  {
    what: "max_bytes above read_limit",
    file: `${A}max_bytes = 1G\n`,
    expected: [`max_bytes ${OF_A} has no effect: a body longer than read_limit, 64M, is not read`],
  },
  {
    what: "redirects that are expected, yet followed",
    file: `${A}expected_status = 301-303,308\n`,
    expected: [`expected_status ${OF_A} has redirects alone, which are followed: set max_redirects = 0`],
  },
  { what: "redirects that are expected", file: `${A}expected_status = 301\nmax_redirects = 0\n`, expected: [] },
  {
    what: "a timeout beyond failing_interval",
    file: `${A}failing_interval = 5s\n`,
    expected: [
      "timeout of website 'a' (10s) is longer than its failing_interval (5s): while it hangs, checks are left out",
    ],
  },
  {
    what: "jitter beyond failing_interval",
    file: `${A}timeout = 1s\njitter = 2s\nfailing_interval = 2s\n`,
    expected: [
      "jitter of website 'a' (2s) is not less than its failing_interval (2s): while it is down, checks are left out",
    ],
  },
  {
    what: "an address of another version of IP",
    file: "[website_a]\nurl = https://[::1]/\nip_version = 4\n",
    expected: [`ip_version ${OF_A} is 4, over which the address in the url can't be reached`],
  },
  {
    what: "variables where none is put in",
    file: `${A}tags = stage = \${STAGE}\nregex = \\$\\{a}\n[producer]\nname = \${HOSTNAME}\n`,
    expected: ["name of [producer] (FILE:6)", `tags ${OF_A}`].map((what) =>
      `${what} has \${…} in it, which stands for no variable of the environment there`
    ),
  },
  {
    what: "variables of one site where there is none",
    file: A,
    env: { NAME: "host", REGEX: "b", POOLING_INTERVAL: "5", TIMEOUT: "5" },
    expected: ["REGEX", "POOLING_INTERVAL"].map((name) =>
      `environment variable ${name} has no effect: it counts beside --url or URL alone`
    ),
  },
  {
    what: "more checks a host than in all",
    file: `${A}[producer]\nmax_checks = 5\nmax_checks_per_host = 6\n`,
    expected: ["max_checks_per_host of [producer] (FILE:5) has no effect: max_checks is less, 5"],
  },
  {
    what: "--drain-timeout without --once",
    file: A,
    args: ["--drain-timeout=5s"],
    expected: ["--drain-timeout has no effect: it counts beside --once alone"],
  },
  {
    what: "what [defaults] has for other sites",
    file:
      `[defaults]\nretry_interval = 5s\nmin_cert_days = 7\ntime_zone = Europe/Berlin\ntls_ca = authority.pem\n${PLAIN_A}`,
    expected: [],
  },
  {
    what: "HEAD that takes back what is looked for",
    file: `[defaults]\nunchanged = yes\n${A}method = HEAD\nunchanged = no\n`,
    expected: [],
  },
];

Deno.test.each(WARNINGS)("readProducerConfig() warns of $what", async ({ expected, ...given }) => {
  await using certificates = await makeCertificates();
  using _ = workIn(certificates.path);
  const { warnings } = await producer(given);
  assert.deepEqual(warnings.map((warning) => warning.replace(/\(\S*config\.ini/, "(FILE")), expected);
});

Deno.test("readConsumerConfig() warns of a port that no host needs, and of a variable in a password", async () => {
  const file = "[postgres]\nhost = a:1,b:2\nport = 5433\npassword = ${POSTGRES_PASSWORD}\n";
  const { warnings } = await consumer({ file, args: [...BROKER, ...TOPIC] });
  assert.deepEqual(warnings.map((warning) => warning.replace(/\(\S*config\.ini/, "(FILE")), [
    "port of [postgres] (FILE:3) has no effect: each host has its own",
    "password of [postgres] (FILE:4) has ${…} in it, which stands for no variable of the environment there",
  ]);
});

Deno.test("--enabled=no can't be used for the site of --url", async () => {
  await assert.rejects(producer({ args: ["--url=http://a/", "--enabled=no"] }), {
    message: "Cannot use enabled of website 'a' (--enabled): expected yes for the site of --url, got no",
  });
});

Deno.test("each file of tests/invalid has a message here", async () => {
  const files = (await Array.fromAsync(Deno.readDir(`${REPOSITORY}/tests/invalid`))).map(({ name }) => name);
  const known = [...Object.keys(INVALID_FOR_PRODUCER), ...Object.keys(INVALID_FOR_CONSUMER)];
  assert.deepEqual(files.filter((name) => name.endsWith(".ini") && !known.includes(name)), []);
});

// Flag before environment before file before default

const SITE = "[website_apache]\nurl = https://httpd.apache.org/\n";

/** A setting with three values, and how the configuration shows it. */
interface Precedence {
  readonly section: "kafka" | "postgres" | "producer" | "log";
  readonly key: string;
  readonly values: readonly [flag: string, variable: string, file: string, fallback: string];
}

const PRECEDENCE: readonly Precedence[] = [
  { section: "kafka", key: "bootstrap_servers", values: ["a:1", "b:2", "c:3", ""] },
  { section: "kafka", key: "security_protocol", values: ["SSL", "PLAINTEXT", "SSL", "PLAINTEXT"] },
  { section: "kafka", key: "group_id", values: ["a", "b", "c", "site_checker"] },
  { section: "postgres", key: "user", values: ["a", "b", "c", "postgres"] },
  { section: "postgres", key: "password", values: ["a", "b", "c", ""] },
  { section: "postgres", key: "host", values: ["a", "b", "c", ""] },
  { section: "postgres", key: "port", values: ["1", "2", "3", "5432"] },
  { section: "postgres", key: "database", values: ["a", "b", "c", "postgres"] },
  { section: "postgres", key: "sslmode", values: ["require", "disable", "verify-ca", "verify-full"] },
  { section: "postgres", key: "min_connection", values: ["0", "2", "3", "1"] },
  { section: "postgres", key: "max_connection", values: ["7", "8", "9", "2"] },
  { section: "log", key: "level", values: ["debug", "warning", "error", "info"] },
];

/** Value of a setting as the program gets it. */
function valueOf({ kafka, groupId, postgres, logLevel }: ConsumerConfig, section: string, key: string): string {
  const value = {
    bootstrap_servers: kafka.bootstrapServers.join(","),
    security_protocol: kafka.tls === null ? "PLAINTEXT" : "SSL",
    group_id: groupId,
    min_connection: postgres?.minConnection,
    max_connection: postgres?.maxConnection,
    level: logLevel,
    host: postgres?.servers.map(({ host }) => host).join(","),
    port: section === "postgres" ? postgres?.servers[0]?.port : undefined,
  }[key] ?? (section === "postgres" ? postgres?.[key as "user"] : undefined);
  return String(value ?? "");
}

Deno.test.each(PRECEDENCE)("readConsumerConfig() takes $key by flag, variable, file and default", async (
  { section, key, values: [flag, variable, file, fallback] },
) => {
  const name = (SETTINGS[section] as Record<string, Setting<unknown>>)[key]?.flag ?? "";
  const given = {
    args: [...TOPIC, `--${name}=${flag}`],
    env: { [environmentName(name)]: variable },
    file: `[${section}]\n${key} = ${file}\n`,
  };
  // What else must be there, where the setting under test is not the same.
  const rest = { KAFKA_BOOTSTRAP_SERVERS: "localhost", POSTGRES_HOST: "db" };
  const read = async ({ args = TOPIC, env = {}, file }: Given) =>
    valueOf(await consumer({ args, env: { ...rest, ...env }, ...(file !== undefined && { file }) }), section, key);
  assert.equal(await read(given), flag);
  assert.equal(await read({ ...given, args: TOPIC }), variable);
  if (environmentName(name) in rest) return;
  assert.equal(await read({ file: given.file }), file);
  assert.equal(await read({ file: given.file, env: { [environmentName(name)]: "" } }), file, "empty is not set");
  assert.equal(await read({}), fallback);
  assert.equal(await read({ file: `[${section}]\n${key} =\n` }), fallback, "empty is not set");
});

Deno.test.each(["bootstrap_servers", "host"])("readConsumerConfig() takes %s of the file", async (key) => {
  const config = await consumer({ args: TOPIC, file: "[kafka]\nbootstrap_servers = c:3\n[postgres]\nhost = c:3:4\n" });
  assert.equal(valueOf(config, "postgres", key), key === "host" ? "c:3:4" : "c:3");
});

Deno.test("readProducerConfig() takes drain_timeout by flag, variable, file and default", async () => {
  const file = `${SITE}[producer]\ndrain_timeout = 3\n`;
  const read = async (given: Given) => (await producer(given)).drainTimeoutMs;
  assert.equal(await read({ args: ["--drain-timeout", "0"], env: { DRAIN_TIMEOUT: "2" }, file }), 0);
  assert.equal(await read({ env: { DRAIN_TIMEOUT: "2" }, file }), 2_000);
  assert.equal(await read({ file }), 3_000);
  assert.equal(await read({ file: SITE }), 30_000);
});

Deno.test("readConsumerConfig() takes the certificate files by flag, variable and file", async () => {
  await using certificates = await makeCertificates();
  using _ = workIn(certificates.path);
  const own = await Deno.readTextFile("own.cert");
  const authority = await Deno.readTextFile("authority.pem");
  const rest = [...TOPIC, ...BROKER, "--kafka-ssl-certfile=own.cert", "--kafka-ssl-keyfile=own.key"];
  const file = "[kafka]\nssl_cafile = missing.pem\n[postgres]\nhost = db\nsslrootcert = authority.pem\n";
  const config = await consumer({
    args: [...rest, "--kafka-ssl-cafile=authority.pem"],
    env: { KAFKA_SSL_CAFILE: "missing.pem", POSTGRES_SSLROOTCERT: "own.cert" },
    file,
  });
  assert.deepEqual(config.kafka.tls, { ca: authority, cert: own, key: await Deno.readTextFile("own.key") });
  assert.equal(config.postgres?.ca, own);
  const byVariable = await consumer({ args: rest, env: { KAFKA_SSL_CAFILE: "own.cert" }, file });
  assert.equal(byVariable.kafka.tls?.ca, own);
  assert.equal(byVariable.postgres?.ca, authority);
});

Deno.test("readProducerConfig() lets flags change every site of the file, and TIMEOUT too", async () => {
  const file = `[website_a]\nurl = http://a/\ninterval = 5\ntimeout = 1\n[website_b]\nurl = http://b/\n`;
  const times = async (given: Given) =>
    (await producer({ ...given, file })).sites.map(({ intervalMs, timeoutMs }) => [intervalMs, timeoutMs]);
  assert.deepEqual(await times({}), [[5_000, 1_000], [20_000, 10_000]]);
  assert.deepEqual(await times({ args: ["--interval=7", "--timeout=2"] }), [[7_000, 2_000], [7_000, 2_000]]);
  assert.deepEqual(await times({ env: { TIMEOUT: "3" } }), [[5_000, 3_000], [20_000, 3_000]]);
});

Deno.test("each setting's fallback in --help is what holds", async () => {
  const { sites, drainTimeoutMs } = await producer({ args: ["--url=http://a/"] });
  const { groupId, postgres } = await consumer({ args: [...BROKER, ...TOPIC, "--postgres-host=db"] });
  assert.deepEqual(
    {
      interval: `${sites[0]!.intervalMs / 1_000}s`,
      drain_timeout: `${drainTimeoutMs / 1_000}s`,
      group_id: groupId,
      user: postgres?.user,
      port: String(postgres?.servers[0]?.port),
      min_connection: String(postgres?.minConnection),
    },
    {
      interval: SETTINGS.website.interval.fallback,
      drain_timeout: SETTINGS.producer.drain_timeout.fallback,
      group_id: SETTINGS.kafka.group_id.fallback,
      user: SETTINGS.postgres.user.fallback,
      port: SETTINGS.postgres.port.fallback,
      min_connection: SETTINGS.postgres.min_connection.fallback,
    },
  );
});

// What a site is expected to be like

Deno.test("readProducerConfig() reads all that a site is expected to be like", async () => {
  const hash = "0123456789abcdef".repeat(4);
  const { sites: [site], warnings } = await producer({
    file: `
[defaults]
retries = 2
retry_interval = 5s
excerpt = 1K
[website_a]
url = https://a.org/
timeout = 6s
interval = 30s
regex =
  It (?:works)+
  (?i)up+
regex_absent = [Ee]rror
expected_status = 200-299, 401
expected_header =
  Content-Type: ^text/html
  server
forbidden_header = X-Powered-By
json = status = "up"
max_response_time = 2s
degraded_after = 500ms
min_bytes = 1K
max_bytes = 1M
min_cert_days = 7
warn_cert_days = 30
min_tls_version = 1.3
unchanged = ${hash.toUpperCase()}
`,
  });
  const { texts, ...expectations } = site!.expectations;
  assert.deepEqual(expectations, {
    status: [{ from: 200, to: 299 }, { from: 401, to: 401 }],
    maxResponseTimeMs: 2_000,
    degradedAfterMs: 500,
    minBytes: 1_024,
    maxBytes: 1_048_576,
    minCertDays: 7,
    warnCertDays: 30,
    minTlsVersion: "1.3",
    unchanged: hash,
  });
  const described = texts.map((text) =>
    text.error === "json"
      ? [text.error, text.expression]
      : text.error === "header"
      ? [text.wanted, text.name, text.pattern?.text ?? null]
      : [text.error, text.pattern.text]
  );
  assert.deepEqual(described, [
    ["regex", "It (?:works)+"],
    ["regex", "(?i)up+"],
    ["regex_absent", "[Ee]rror"],
    [true, "content-type", "^text/html"],
    [true, "server", null],
    [false, "x-powered-by", null],
    ["json", 'status = "up"'],
  ]);
  assert.deepEqual([site?.regex, site?.retries, site?.retryIntervalMs, site?.excerptBytes], [
    "It (?:works)+\n(?i)up+",
    ...[2, 5_000, 1_024],
  ]);
  assert.deepEqual(warnings, []);
});

Deno.test("readProducerConfig() warns of retries that take longer than the interval, and of certificates without TLS", async () => {
  const file = `${SITE}retries = 2\nmin_cert_days = 7\n`.replace("https:", "http:");
  const { warnings } = await producer({ file });
  assert.deepEqual(warnings.map((warning) => warning.replace(/\(\S*config\.ini/, "(FILE")), [
    "min_cert_days of website 'apache' (FILE:4) has no effect: the address is http://",
    "retries of website 'apache' may take 32s, longer than its interval (20s): while it is down, checks are left out",
  ]);
});

// One site by flag or variable

const FILE_WITH_SITES = `[DEFAULT]\ntimeout = 3\n[kafka]\nbootstrap_servers = broker:1\n${SITE}regex = Apache\n`;

Deno.test.each([{ args: ["--url", "https://a.org/"] }, { env: { URL: "https://a.org/" } }])(
  "readProducerConfig() checks exactly the site of %o and takes the rest of the file",
  async (given: Given) => {
    const { sites, kafka } = await producer({ ...given, file: FILE_WITH_SITES, publish: true });
    assert.deepEqual(sites, [{
      name: "a.org",
      url: "https://a.org/",
      host: "a.org",
      hostname: "a.org",
      request: DEFAULT_REQUEST,
      client: DEFAULT_CLIENT,
      limits: DEFAULT_LIMITS,
      regex: null,
      expectations: DEFAULT_EXPECTATIONS,
      retries: 0,
      retryIntervalMs: 1_000,
      excerptBytes: 0,
      intervalMs: 20_000,
      cron: null,
      jitterMs: 0,
      failingIntervalMs: null,
      maintenance: null,
      timeoutMs: 10_000,
      inspectIntervalMs: 60_000,
      tags: null,
      location: null,
      producer: null,
    }]);
    assert.deepEqual(kafka, {
      bootstrapServers: ["broker:1"],
      tls: null,
      sharedTopic: null,
      newTopics: { partitions: null, replicationFactor: null, retentionMs: null },
    });
  },
);

Deno.test("readProducerConfig() takes NAME, REGEX and INTERVAL beside a URL, flags before them", async () => {
  const env = { NAME: "n", REGEX: "(?i)r", INTERVAL: "5", TIMEOUT: "2", URL: "http://env/" };
  const [site] = (await producer({ env })).sites;
  assert.deepEqual(site, {
    name: "n",
    url: "http://env/",
    host: "env",
    hostname: "env",
    request: DEFAULT_REQUEST,
    client: DEFAULT_CLIENT,
    limits: DEFAULT_LIMITS,
    regex: "(?i)r",
    expectations: {
      ...DEFAULT_EXPECTATIONS,
      texts: [{ error: "regex", pattern: { text: "(?i)r", regexp: /r/i, linear: true } }],
    },
    retries: 0,
    retryIntervalMs: 1_000,
    excerptBytes: 0,
    intervalMs: 5_000,
    cron: null,
    jitterMs: 0,
    failingIntervalMs: null,
    maintenance: null,
    timeoutMs: 2_000,
    inspectIntervalMs: 60_000,
    tags: null,
    location: null,
    producer: null,
  });
  const args = ["--url=http://flag/", "--name=m", "--regex=s", "--pooling-interval=6", "--timeout=1"];
  const [other] = (await producer({ env, args })).sites;
  assert.deepEqual([other?.url, other?.name, other?.regex, other?.intervalMs, other?.timeoutMs], [
    ...["http://flag/", "m", "s"],
    ...[6_000, 1_000],
  ]);
});

Deno.test("readProducerConfig() leaves NAME, REGEX and INTERVAL alone without a URL", async () => {
  const env = { NAME: "n", REGEX: "(", INTERVAL: "often", POOLING_INTERVAL: "often" };
  const { sites } = await producer({ env, file: SITE });
  assert.deepEqual(sites.map(({ name, regex, intervalMs }) => [name, regex, intervalMs]), [["apache", null, 20_000]]);
});

Deno.test.each(["name", "regex", "tag"])("readProducerConfig() refuses --%s without a URL", async (flag) => {
  await assert.rejects(producer({ args: [`--${flag}=a`], file: SITE }), {
    message: `Cannot use --${flag}: expected --url or URL beside it`,
  });
});

Deno.test.each(
  [
    ["https://www.example.com:8443/a", "www.example.com"],
    ["http://[2001:db8::1]/", "2001-db8--1"],
    ["http://münchen.de/", "xn--mnchen-3ya.de"],
    ["http://127.1/", "127.0.0.1"],
  ] as const,
)("readProducerConfig() names the site of %s by its host, %s", async (url, name) => {
  assert.equal((await producer({ args: ["--url", url] })).sites[0]?.name, name);
});

Deno.test("readProducerConfig() tells how to name a site whose host is no topic", async () => {
  await assert.rejects(producer({ args: ["--url=http://a~b/"] }), {
    message: `Cannot use name of website 'a~b' (host of --url; --name sets another): ${TOPIC_NAME}`,
  });
});

Deno.test("readProducerConfig() refuses an empty flag", async () => {
  const url = ["--url=http://a/"];
  await assert.rejects(producer({ args: ["--url="] }), {
    message: "Cannot read url (--url): expected a URL such as https://example.com/, got ''",
  });
  await assert.rejects(producer({ args: [...url, "--regex="] }), {
    message: "Cannot read regex of website 'a' (--regex): expected a regular expression that is not empty, got ''",
  });
  await assert.rejects(producer({ args: ["--config-path="] }), {
    message: "Cannot read configuration file '': expected the path of a file, got an empty one",
  });
});

// What holds for all sites

const DEFAULTS = `[DEFAULT]
regex = a
timeout = 4

[defaults]
pooling_interval = 30
timeout = 3
tags = team = web
  # where it runs
  stage = a = b

[website_common]
url = http://a/

[website_own]
url = http://b/
regex = b
interval = 10
timeout =
tags =
  team=shop
`;

Deno.test("[defaults] holds for each site that does not say otherwise, and [DEFAULT] behind it", async () => {
  const { sites, effective } = await producer({ file: DEFAULTS });
  const [common, own] = sites;
  assert.deepEqual([common?.regex, common?.intervalMs, common?.timeoutMs], ["a", 30_000, 3_000]);
  assert.deepEqual(common?.tags, { team: "web", stage: "a = b" });
  assert.deepEqual([own?.regex, own?.intervalMs], ["b", 10_000]);
  assert.equal(own?.timeoutMs, 8_000, "an empty value takes back what [defaults] and [DEFAULT] say");
  assert.deepEqual(own.tags, { team: "shop" });
  const shown = effective.map((line) => line.replace(/ +; (?:.*config\.ini)?/, " ; "));
  assert.deepEqual(shown.slice(0, shown.indexOf("")), [
    "[website_common]",
    "url = http://a/ ; :13",
    "interval = 30s ; :6",
    "timeout = 3s ; :7",
    "regex = a ; :2",
    "tags = team = web\n  stage = a = b ; :8",
  ]);
});

Deno.test("[defaults] holds for the site of --url, and [DEFAULT] does not", async () => {
  const [site] = (await producer({ args: ["--url=http://c/", "--tag=a=b", "--tag", "c = d"], file: DEFAULTS })).sites;
  assert.deepEqual([site?.regex, site?.intervalMs, site?.timeoutMs], [null, 30_000, 3_000]);
  assert.deepEqual(site?.tags, { a: "b", c: "d" });
});

Deno.test("[defaults] gives way to flags and variables", async () => {
  const given = { args: ["--interval=7"], env: { TIMEOUT: "2" }, file: DEFAULTS };
  const times = (await producer(given)).sites.map(({ intervalMs, timeoutMs }) => [intervalMs, timeoutMs]);
  assert.deepEqual(times, [[7_000, 2_000], [7_000, 2_000]]);
});

Deno.test("a flag that may be repeated says which of its values is wrong", async () => {
  await assert.rejects(producer({ args: ["--url=http://a/", "--tag=a=b", "--tag=c"] }), {
    message: "Cannot read tags of website 'a' (--tag): expected key = value, got 'c'",
  });
});

// Times

Deno.test("cron and interval: what is nearer to the site counts", async () => {
  const common = "[defaults]\ncron = */5 * * * *\ntime_zone = Europe/Berlin\n[website_a]\nurl = http://a/\n";
  const cronOf = async (given: Given) => {
    const [site] = (await producer(given)).sites;
    return [site?.cron?.expression, site?.cron?.timeZone, site?.intervalMs, site?.timeoutMs];
  };
  assert.deepEqual(await cronOf({ file: common }), ["*/5 * * * *", "Europe/Berlin", 20_000, 10_000]);
  assert.deepEqual(await cronOf({ file: common + "interval = 5" }), [undefined, undefined, 5_000, 4_000]);
  assert.deepEqual(await cronOf({ file: common, args: ["--interval=5"] }), [undefined, undefined, 5_000, 4_000]);
  const other = "[defaults]\ninterval = 5\n[website_a]\nurl = http://a/\ncron = @hourly\n";
  assert.deepEqual(await cronOf({ file: other }), ["@hourly", "UTC", 5_000, 10_000]);
  assert.deepEqual(await cronOf({ args: ["--url=http://a/", "--cron=0 3 * * *"] }), [
    "0 3 * * *",
    "UTC",
    20_000,
    10_000,
  ]);
  await assert.rejects(cronOf({ args: ["--url=http://a/", "--cron=0 3 * * *", "--interval=5"] }), {
    message: "Cannot use cron of website 'a' (--cron): expected interval or cron, got both",
  });
});

Deno.test("readProducerConfig() takes jitter, failing_interval and maintenance", async () => {
  const file = `[website_a]
url = http://a/
jitter = 2
failing_interval = 1s
time_zone = Europe/Berlin
maintenance_checks = skip
maintenance =
  0 3 * * sun 2h
  30 22 1 * * 90m
`;
  const { sites: [site], effective } = await producer({ file });
  assert.deepEqual([site?.jitterMs, site?.failingIntervalMs], [2_000, 1_000]);
  const { windows, checks } = site!.maintenance!;
  assert.equal(checks, "skip");
  assert.deepEqual(
    windows.map(({ begin: { expression, timeZone }, durationMs }) => [expression, timeZone, durationMs]),
    [
      ["0 3 * * sun", "Europe/Berlin", 7_200_000],
      ["30 22 1 * *", "Europe/Berlin", 5_400_000],
    ],
  );
  assert.ok(effective.some((line) => line.startsWith("maintenance = 0 3 * * sun 2h\n  30 22 1 * * 90m")));
});

Deno.test("settings of time that change nothing are warned of", async () => {
  const file = "[website_a]\nurl = http://a/\ntime_zone = Europe/Berlin\nmaintenance_checks = skip\n";
  assert.deepEqual((await producer({ file })).warnings, [
    "time_zone of website 'a' is not used: it has neither cron nor maintenance",
    "maintenance_checks of website 'a' is not used: it has no maintenance",
  ]);
});

Deno.test("max_checks has a lower default with --once", async () => {
  const limits = async (...args: string[]) => (await producer({ args: ["--url=http://a/", ...args] })).limits;
  assert.deepEqual(await limits(), { max: 1_000, maxPerHost: 100 });
  assert.deepEqual(await limits("--once"), { max: 50, maxPerHost: 100 });
  assert.deepEqual(await limits("--once", "--max-checks=7", "--max-checks-per-host=3"), { max: 7, maxPerHost: 3 });
});

// Aliases

const ALIASED: readonly (Given & { what: string })[] = [
  { what: "flag", args: ["--pooling-interval=5", "--url=http://a/"] },
  { what: "variable", env: { POOLING_INTERVAL: "5", URL: "http://a/" } },
  { what: "key", file: "[website_a]\nurl = http://a/\npooling_interval = 5" },
];

Deno.test.each(ALIASED)("pooling_interval is interval's other name as a $what", async (given) => {
  assert.equal((await producer(given)).sites[0]?.intervalMs, 5_000);
});

const BOTH: readonly (Given & { what: string; message: string })[] = [
  {
    what: "flags",
    args: ["--pooling-interval=5", "--interval=5", "--url=http://a/"],
    message: "Cannot use --pooling-interval beside --interval, which means the same: expected one of them",
  },
  {
    what: "variables",
    env: { POOLING_INTERVAL: "5", INTERVAL: "5", URL: "http://a/" },
    message: "Cannot use environment variable POOLING_INTERVAL beside environment variable INTERVAL, which means the " +
      "same: expected one of them",
  },
];

Deno.test.each(BOTH)("interval and pooling_interval are refused together as $what", async ({ message, ...given }) => {
  await assert.rejects(producer(given), { name: "ConfigError", message });
});

Deno.test("an alias of [DEFAULT] gives way to the section's own key", async () => {
  const file =
    "[DEFAULT]\npooling_interval = 5\n[website_a]\nurl = http://a/\ninterval = 6\n[website_b]\nurl = http://b/";
  assert.deepEqual((await producer({ file })).sites.map(({ intervalMs }) => intervalMs), [6_000, 5_000]);
});

// The file's dialect

Deno.test("readProducerConfig() reads what the Python program read", async () => {
  const { sites, kafka } = await producer({
    publish: true,
    file: `[DEFAULT]
pooling_interval: 60
domain = apache.org

[kafka]
bootstrap_servers = a.%(domain)s:9092,
  b.%(domain)s:9092
security_protocol = PLAINTEXT

[website_httpd]
url = https://httpd.%(DOMAIN)s/100%%25
regex = (?P<what>Apache)
  \\Z
`,
  });
  assert.deepEqual(sites.map(({ url, regex, intervalMs }) => [url, regex, intervalMs]), [
    ["https://httpd.apache.org/100%25", "(?P<what>Apache)\n\\Z", 60_000],
  ]);
  const patterns = sites[0]!.expectations.texts.map((text) => text.error === "regex" && text.pattern.regexp.source);
  assert.deepEqual(patterns, ["(?<what>Apache)", "(?![\\s\\S])"], "a pattern a line");
  assert.deepEqual(kafka?.bootstrapServers, ["a.apache.org:9092", "b.apache.org:9092"]);
});

Deno.test("[DEFAULT] holds for sections that are not in the file, too", async () => {
  const file = `[DEFAULT]\nlevel = debug\nbootstrap_servers = broker:1\n${SITE}`;
  const { logLevel, kafka } = await producer({ file, publish: true });
  assert.deepEqual([logLevel, kafka?.bootstrapServers], ["debug", ["broker:1"]]);
});

Deno.test("readProducerConfig() reads the file of CONFIG_PATH, --config-path before it", async () => {
  await using file = await temporaryFile("variable.ini", "[website_variable]\nurl = http://a/\n");
  const env = { CONFIG_PATH: file.path };
  assert.equal((await producer({ env })).sites[0]?.name, "variable");
  assert.equal((await producer({ env, file: SITE })).sites[0]?.name, "apache");
});

// TLS

Deno.test("security_protocol is SSL where a file is named, else PLAINTEXT", async () => {
  await using certificates = await makeCertificates();
  using _ = workIn(certificates.path);
  const tls = async (...args: string[]) =>
    (await consumer({ args: [...BROKER, ...TOPIC, "--dry-run", ...args] })).kafka.tls;
  assert.equal(await tls(), null);
  assert.deepEqual(Object.keys(await tls("--kafka-ssl-cafile=authority.pem") ?? {}), ["ca"]);
  assert.deepEqual(await tls("--kafka-security-protocol=ssl"), {});
});

Deno.test("PLAINTEXT beside files is warned of", async () => {
  const { kafka, warnings } = await consumer({
    args: [...BROKER, ...TOPIC, "--dry-run", "--kafka-ssl-cafile=ca.pem", "--kafka-security-protocol=PLAINTEXT"],
  });
  assert.equal(kafka.tls, null);
  assert.deepEqual(warnings, [
    "security_protocol of [kafka] is PLAINTEXT: ssl_cafile, ssl_certfile and ssl_keyfile are not used",
  ]);
});

Deno.test("SSL takes ca.pem, service.cert and service.key of the working folder", async () => {
  await using certificates = await makeCertificates();
  using _ = workIn(certificates.path);
  const args = [...BROKER, ...TOPIC, "--dry-run", "--kafka-security-protocol=SSL"];
  await Deno.copyFile("authority.pem", "ca.pem");
  assert.deepEqual(Object.keys((await consumer({ args })).kafka.tls ?? {}), ["ca"]);
  await Deno.copyFile("own.cert", "service.cert");
  await assert.rejects(consumer({ args }), {
    message: "Cannot use ssl_certfile of [kafka] (default): expected ssl_keyfile beside it, got none",
  });
  await Deno.copyFile("own.key", "service.key");
  const { kafka, effective } = await consumer({ args });
  assert.deepEqual(kafka.tls, {
    ca: await Deno.readTextFile("authority.pem"),
    cert: await Deno.readTextFile("own.cert"),
    key: await Deno.readTextFile("own.key"),
  });
  assert.ok(effective.some((line) => /^ssl_keyfile = \.\/service\.key\s+; default$/.test(line)));
  await Deno.remove("ca.pem");
  await Deno.mkdir("ca.pem");
  await assert.rejects(consumer({ args }), {
    message: "Cannot read ssl_cafile of [kafka] (default) './ca.pem': expected a file, got a directory",
  });
});

Deno.test("an expired client certificate is warned of", async () => {
  await using certificates = await makeCertificates();
  using _ = workIn(certificates.path);
  const args = ["--kafka-ssl-certfile=expired.cert", "--kafka-ssl-keyfile=expired.key"];
  const { warnings } = await consumer({ args: [...BROKER, ...TOPIC, "--dry-run", ...args] });
  assert.deepEqual(warnings, ["the certificate in expired.cert has expired on Jan  2 03:04:05 2026 GMT"]);
});

Deno.test("sslmode is disable on a loopback host, verify-full elsewhere, verify-ca with sslrootcert", async () => {
  await using certificates = await makeCertificates();
  using _ = workIn(certificates.path);
  const args = [...BROKER, ...TOPIC];
  const sslmode = async (host: string, ...more: string[]) =>
    (await consumer({ args: [...args, "--postgres-host", host, ...more] })).postgres?.sslmode;
  for (const host of ["localhost", "LOCALHOST", "127.0.0.1", "::1"]) assert.equal(await sslmode(host), "disable");
  for (const host of ["db", "10.0.0.1", "localhost.example.com"]) assert.equal(await sslmode(host), "verify-full");
  assert.equal(await sslmode("localhost", "--postgres-sslrootcert=authority.pem"), "verify-ca");
  const { warnings } = await consumer({
    args: [...args, "--postgres-host=db", "--postgres-sslrootcert=authority.pem", "--postgres-sslmode=disable"],
  });
  assert.deepEqual(warnings, ["sslmode of [postgres] is disable: sslrootcert is not used"]);
});

Deno.test("max_connection is no less than min_connection", async () => {
  const { postgres } = await consumer({
    args: [...BROKER, ...TOPIC, "--postgres-host=db", "--postgres-min-connection=7"],
  });
  assert.deepEqual([postgres?.minConnection, postgres?.maxConnection], [7, 7]);
});

// Topics

Deno.test("readConsumerConfig() takes topics repeated, separated by commas, and /regexes/ with commas in them", async () => {
  const { topics, effective } = await consumer({
    args: [...BROKER, "--dry-run", "--kafka-topic", "a, b,,a", "--kafka-topic=/c{1,2}/,d,/(?i)e|f/"],
    env: { KAFKA_TOPIC: "x" },
    file: SITE,
  });
  assert.deepEqual(topics, { names: ["a", "b", "d"], patterns: [/^(?:c{1,2})$/, /^(?:e|f)$/i] });
  assert.ok(effective.some((line) => /^topic = a,b,d,\/c\{1,2\}\/,\/\(\?i\)e\|f\/ +; --kafka-topic$/.test(line)));
});

Deno.test("readConsumerConfig() takes the topics of KAFKA_TOPIC, else the sites of the file", async () => {
  const args = [...BROKER, "--dry-run"];
  const file = `${SITE}[website_python]\n`;
  assert.deepEqual((await consumer({ args, file, env: { KAFKA_TOPIC: "a,/b/" } })).topics, {
    names: ["a"],
    patterns: [/^(?:b)$/],
  });
  assert.deepEqual((await consumer({ args, file, env: { KAFKA_TOPIC: "" } })).topics.names, ["apache", "python"]);
});

Deno.test.each(
  [
    ["a b", `Cannot use topic 'a b' (--kafka-topic): ${TOPIC_NAME}`],
    ["/a", "Cannot read topic '/a' (--kafka-topic): expected /pattern/"],
    ["//", "Cannot read topic '//' (--kafka-topic): expected /pattern/"],
    ["/(/", "Cannot read topic '/(/' (--kafka-topic): expected a regular expression (Unterminated group)"],
    ["/a)|(b/", "Cannot read topic '/a)|(b/' (--kafka-topic): expected a regular expression (Unmatched ')')"],
    [
      "__consumer_offsets",
      "Cannot use topic '__consumer_offsets' (--kafka-topic): expected a name other than that of a topic of Kafka's own",
    ],
    [
      ",",
      "Cannot find a topic to read: expected --kafka-topic, KAFKA_TOPIC, or [website_NAME] in the file of --config-path",
    ],
  ] as const,
)("readConsumerConfig() refuses --kafka-topic '%s'", async (topic, message) => {
  await assert.rejects(consumer({ args: [...BROKER, "--kafka-topic", topic] }), { name: "ConfigError", message });
});

// What is shown

Deno.test("effective shows every setting in force and where it stands", async (t) => {
  const { effective, warnings } = await consumer({
    args: ["--kafka-topic=apache", "--postgres-port", "6432", ...BROKER],
    env: { POSTGRES_PASSWORD: "hunter2", POSTGRES_HOST: "db" },
  });
  await t.assertSnapshot(effective.join("\n"), { serializer: String });
  assert.deepEqual(warnings, []);
});

Deno.test("effective of the producer shows its sites", async (t) => {
  const args = ["--url=https://me:hunter2@a/", "--regex=a\nb", "--timeout=1m", ...BROKER];
  const { effective, warnings } = await producer({ args, publish: true });
  await t.assertSnapshot(effective.join("\n"), { serializer: String });
  assert.deepEqual(warnings, [
    "timeout of website 'a' (1m) is longer than its interval (20s): while it hangs, checks are left out",
  ]);
});

Deno.test.each(
  [
    ["https://me:hunter2@a/", "me:hunter2"],
    ["https://hunter2@a/", "hunter2:"],
    ["https://me:50%@a/", "me:50%"],
    ["https://m%C3%A9:a%40b%zz@a/", "mé:a@b%zz"],
  ] as const,
)("readProducerConfig() takes user and password out of %s", async (url, credentials) => {
  const { sites, effective } = await producer({ args: ["--url", url] });
  const bytes = new TextEncoder().encode(credentials);
  assert.deepEqual([sites[0]?.url, sites[0]?.request.authorization], ["https://a/", `Basic ${bytes.toBase64()}`]);
  assert.ok(!/hunter2|50%|a%40b/.test(effective.join("\n")));
});

/** Ways to set a secret wrongly, each with it in; `hunter2` is the secret. */
const LEAKS: readonly (Given & { what: string; says: RegExp })[] = [
  { what: "a URL with a slash in its password", args: ["--url=https://me:hunt/erhunter2@a:x/"], says: /read url/ },
  { what: "a URL with a space in its password", args: ["--url=https://me:hunter2 hunter2@a/"], says: /read url/ },
  { what: "a URL with an @ in its password", args: ["--url=https://me:hunter2@hunter2@a:x/"], says: /read url/ },
  { what: "a URL with a token", args: ["--url=ftp://hunter2@a/"], says: /read url/ },
  { what: "a URL without scheme", args: ["--url=me:hunter2@a/"], says: /read url/ },
  { what: "a URL with a blocked port", env: { URL: "http://me:hunter2@a:25/" }, says: /port other than 25/ },
  { what: "a URL in two lines", file: "[website_a]\nurl = http://me:hunter2\n  hunter2@a/", says: /read url/ },
  { what: "a database's URL for a host", args: ["--postgres-host=postgres://me:hunter2@db/"], says: /read host/ },
  {
    what: "a broker with a password",
    args: ["--kafka-bootstrap-servers=me:hunter2@a:1"],
    says: /read bootstrap_servers/,
  },
  { what: "a password without delimiter", file: "[postgres]\npassword hunter2", says: /read the line/ },
  { what: "a password in the next line", file: "[postgres]\npassword =\nhunter2", says: /read the line/ },
  { what: "a password behind two words", file: "[postgres]\nthe password hunter2: x", says: /read the line/ },
  { what: "an unknown key", file: "[postgres]\npasswort = hunter2", says: /read key 'passwort'/ },
  { what: "an unknown section", file: "[postgresql]\npassword = hunter2", says: /read section \[postgresql\]/ },
];

Deno.test.each(LEAKS)("no message shows the secret of $what", async ({ args = [], env = {}, says, ...file }) => {
  const ofConsumer = args.some((arg) => /postgres|kafka/.test(arg));
  const reading = ofConsumer
    ? consumer({ args: [...BROKER, ...TOPIC, ...args], env, ...file })
    : producer({ args, env, ...file });
  await assert.rejects(reading, (error) => {
    assert.ok(error instanceof ConfigError);
    assert.match(error.message, says);
    assert.doesNotMatch(Deno.inspect(error), /hunter2/);
    return true;
  });
});

// Permissions

Deno.test("the tasks allow the variable of each flag, and no other", async () => {
  const project = JSON.parse(await Deno.readTextFile(`${REPOSITORY}/deno.json`));
  const own = {
    producer: ["CONFIG_PATH", "NAME", "SITE_CHECKER_*", ...PROXY_VARIABLES],
    consumer: ["CONFIG_PATH", "KAFKA_TOPIC"],
  };
  for (const program of ["producer", "consumer"] as const) {
    const settings = Object.values(SETTINGS).flatMap((section) => Object.entries<Setting<unknown>>(section));
    const names = settings.filter(([, { programs }]) => programs.includes(program))
      .flatMap(([key, setting]) => variableNames(key, setting));
    const allowed = /--allow-env=(\S+)/.exec(project.tasks[program].command)?.[1]?.split(",") ?? [];
    assert.deepEqual(allowed.toSorted(), [...names, ...own[program]].toSorted());
  }
});

// The topic that all sites share

const SHARED = `[kafka]\nbootstrap_servers = a:1\ntopic = checks\npartitions = 6\nretention = forever\n${SITE}`;

Deno.test("topic of [kafka] is the producer's one topic, and what the consumer reads", async () => {
  const { kafka } = await producer({ file: SHARED, publish: true });
  assert.equal(kafka?.sharedTopic, "checks");
  assert.deepEqual(kafka.newTopics, { partitions: 6, replicationFactor: null, retentionMs: -1 });
  assert.deepEqual((await consumer({ args: ["--dry-run"], file: SHARED })).topics.names, ["checks"]);
});

Deno.test("KAFKA_TOPIC is the consumer's alone, and comes before topic of [kafka]", async () => {
  const env = { KAFKA_TOPIC: "apache" };
  assert.equal((await producer({ file: SHARED, env, publish: true })).kafka?.sharedTopic, "checks");
  const without = SHARED.replace("topic = checks\n", "");
  assert.equal((await producer({ file: without, env, publish: true })).kafka?.sharedTopic, null);
  assert.equal(
    (await producer({ file: without, env: { SHARED_TOPIC: "all" }, publish: true })).kafka?.sharedTopic,
    "all",
  );
  assert.deepEqual((await consumer({ args: ["--dry-run"], env, file: SHARED })).topics.names, ["apache"]);
});

Deno.test("readProducerConfig() takes the spool's settings, and needs no site to deal with what was refused", async () => {
  const { spool } = await producer({
    file: `${SITE}[producer]\nspool_path = a/b.db\nspool_max_bytes = 512M\n`,
    env: { SPOOL_MAX_AGE: "1d" },
    args: ["--spool-sync=full"],
  });
  assert.deepEqual(spool, { path: "a/b.db", maxBytes: 536_870_912, maxAgeMs: 86_400_000, sync: "full" });
  const { sites, kafka } = await producer({ args: ["--list-refused"], publish: true });
  assert.deepEqual([sites, kafka], [[], null]);
});

Deno.test("readConsumerConfig() takes several PostgreSQL servers, each with a port of its own or the common one", async () => {
  const args = [...BROKER, ...TOPIC, "--postgres-host=db-1, db-2:5433,[::1]:5434", "--postgres-port=6000"];
  const { postgres, effective } = await consumer({ args });
  assert.deepEqual(postgres?.servers, [
    { host: "db-1", port: 6000 },
    { host: "db-2", port: 5433 },
    { host: "::1", port: 5434 },
  ]);
  assert.equal(postgres.sslmode, "verify-full");
  assert.ok(effective.some((line) => line.includes("db-1,db-2:5433,[::1]:5434")), effective.join("\n"));
});

Deno.test("readConsumerConfig() asks for no broker where no topic is read", async () => {
  for (const task of ["--dead-letters", "--replay-dead-letters", "--rebuild-summaries"]) {
    const { postgres } = await consumer({ args: [task, "--postgres-host=db"] });
    assert.equal(postgres?.servers[0]?.host, "db");
  }
});

const TWO_SITES = "[website_apache]\nurl = https://a.org/\n[website_python]\nurl = https://p.org/\nenabled = no\n";

Deno.test.each([
  {
    what: "one that is not enabled",
    args: ["--trace", "python"],
    file: TWO_SITES,
    site: "python",
    warnings: ["website 'python' is not enabled: the producer does not check it"],
  },
  {
    what: "the only one",
    args: ["--trace"],
    file: "[website_apache]\nurl = https://a.org/\n",
    site: "apache",
  },
  {
    what: "one whose neighbour is broken",
    args: ["--trace", "python"],
    file: TWO_SITES.replace("https", "ftp").replace("enabled = no", ""),
    site: "python",
  },
  { what: "that of --url", args: ["--trace", "--url", "http://u.org/"], file: TWO_SITES, site: "u.org" },
  { what: "that of --url by its name", args: ["--trace", "u", "--name", "u", "--url", "http://u.org/"], site: "u" },
])(
  "readProducerConfig() takes for --trace $what, and asks for no broker",
  async ({ site, warnings = [], ...given }) => {
    const { sites, kafka, warnings: told } = await producer({ ...given, publish: true });
    assert.deepEqual({ names: sites.map(({ name }) => name), kafka }, { names: [site], kafka: null });
    assert.deepEqual(told, warnings);
  },
);

Deno.test.each([
  {
    args: ["--trace"],
    file: TWO_SITES,
    message: /^Cannot choose a site of .*config\.ini: expected --trace with one of apache, python, got none$/,
  },
  {
    args: ["--trace", "apahce"],
    file: TWO_SITES,
    message: /^Cannot trace 'apahce': expected a site of .*config\.ini, one of apache, python; did you mean apache\?$/,
  },
  {
    args: ["--trace", "x"],
    file: Array.from({ length: 25 }, (_, i) => `[website_site${i}]\nurl = http://a/\n`).join(""),
    message: /, site18, site19 and 5 more$/,
  },
  { args: ["--trace", "apache"], message: /^Cannot find a site to check: expected --url, / },
  {
    args: ["--trace", "apache", "--url", "http://u.org/"],
    file: TWO_SITES,
    message: /^Cannot trace 'apache' beside --url: expected one of them$/,
  },
])("readProducerConfig() says what $args may name", async ({ message, ...given }) => {
  await assert.rejects(producer({ ...given, publish: true }), (error: unknown) => {
    assert.ok(error instanceof ConfigError);
    assert.match(error.message, message);
    return true;
  });
});

Deno.test("readProducerConfig() knows which headers come from variables", async () => {
  const file = "[website_a]\nurl = http://a/\nheaders = x-a: 1\n  x-b: a ${SITE_CHECKER_B}\n";
  const { sites: [site] } = await producer({ file, env: { SITE_CHECKER_B: "secret" } });
  assert.deepEqual(site!.request.secretHeaders, ["x-b"]);
});
