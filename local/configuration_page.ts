import { flagNames, type Setting, SETTINGS, variableNames } from "../lib/setting.ts";

const INTRODUCTION = `# Configuration

<!-- Made by \`deno task docs\` from lib/setting.ts. -->

Every setting of both programs. Each is taken from its flag, else its environment variable, else the file of
\`--config-path\` (or \`CONFIG_PATH\`), else the default. \`--check-config\` prints what is set and where it stands, secrets
hidden, and \`--help\` the flags of a program.

- **Durations** are a number with a unit (\`ms\`, \`s\`, \`m\`, \`h\`, \`d\`), or seconds without: \`500ms\`, \`10s\`, \`1.5m\`, \`20\`.
- **Bytes** are a number with a unit (\`K\`, \`M\`, \`G\`, \`T\`, by 1,024), or without: \`64K\`, \`1G\`.
- **Files** begin in the folder where the program is started.
- **Keys that take several values** take one a line, the further ones indented, and one a flag, which may be repeated.
  Empty lines and comments count for nothing. Any other key takes its lines as one text.
- **Secrets** are never shown: not in logs, not in results, not by \`--check-config\`. Where the table says so (\`\${…}\`),
  \`\${SITE_CHECKER_NAME}\` stands for the environment variable of that name, which begins with \`SITE_CHECKER_\`, the ones
  that the producer may read; \`$\${\` stands for \`\${\` itself.
- **The file** is read as Python's \`configparser\` reads it: \`#\` and \`;\` begin comments at the beginning of a line alone,
  \`%(key)s\` stands for another value of the section, \`%%\` for a percent sign.
`;

const SECTIONS: Readonly<Record<keyof typeof SETTINGS, string>> = {
  website: `## [website_NAME], [defaults]

A section \`[website_NAME]\` for each site; its name is the topic's and the table's. \`[defaults]\` gives values for all
sites, and takes every key but \`url\`. An empty value in a site's section takes back what \`[defaults]\` says. \`[DEFAULT]\`
stands behind both, and gives values for all sections of the file, as in Python.

\`\`\`ini
[defaults]
interval = 1m
tags =
  team = web
  stage = production

[website_apache]
url = https://www.apache.org/

[website_shop]
url = https://shop.example.com/
interval = 10s
tags =
\`\`\`

A request goes through a proxy only where \`proxy\` says so; \`HTTP_PROXY\` and its like are not followed, and the producer
says so when they are set. Redirects are followed as browsers do it: 303 makes a GET of every request, 301 and 302 of a
POST. \`headers\` and \`host\` do not go to another host, and credentials not even to another port or scheme.

With \`oauth_token_url\`, a token is got by OAuth 2.0 (client credentials grant, RFC 6749) and sent as bearer
authentication. It is kept in memory, and shared by all sites with the same settings. It is renewed a while before it
expires (without \`expires_in\`, after an hour), and where the site answers 401 that is not in \`expected_status\`: then the
request is sent once more, unless a new token was no better within the last five minutes. The time for a token is in no
time that is told of the site, yet within its \`timeout\`. The server of tokens is reached as the site is: \`tls_ca\`,
\`tls_cert\`, \`proxy\`, \`ip_version\`. Where no token is to be had, that says nothing of the site: the log says why, and
nothing is published. A site takes back what \`[defaults]\` says of tokens by \`oauth_token_url =\`.

\`\`\`ini
[website_api]
url = https://api.example.com/health
oauth_token_url = https://login.example.com/oauth/token
oauth_client_id = site_checker
oauth_client_secret = \${SITE_CHECKER_API_SECRET}
oauth_scope = health:read
oauth_parameters =
  audience = https://api.example.com/
\`\`\`

[checks.md](checks.md) says what a check does, how its verdict comes about and what each class of error means;
[example/features.config.ini](../example/features.config.ini) has a site for each of the keys.

With \`--url\` (or \`URL\`), that one site is checked, by the flags below and \`[defaults]\`. Without, only flags with ¹ are
taken, and variables with ², for every site of the file.
`,
  kafka: "## [kafka]\n",
  postgres: "## [postgres]\n\nRead by the consumer alone.\n",
  producer: "## [producer]\n\nRead by the producer alone.\n",
  log: "## [log]\n",
};

/** What of a secret is hidden. */
const NEVER_SHOWN = { value: "it is", credentials: "user and password are", pair: "values are" } as const;

/** The page docs/configuration.md: every setting, from its declaration. */
export function configurationPage(): string {
  const sections = Object.entries(SECTIONS).map(([section, text]) => {
    const settings = Object.entries<Setting<unknown>>(SETTINGS[section as keyof typeof SETTINGS]);
    return `${text}\n${table([["Key", "Value", "Default", "Meaning", "Flag and variable"], ...settings.map(row)])}`;
  });
  return [INTRODUCTION, ...sections].join("\n");
}

function row([key, setting]: readonly [string, Setting<unknown>]): string[] {
  const { several, everySite, secret, references, aliases = [], fallback, meaning, parse } = setting;
  const kinds = [parse.kind, ...(several ? ["several"] : []), ...(references ? ["`${…}`"] : [])];
  const names = [key, ...aliases].map((name) => `\`${name}\``).join(", ");
  const flags = flagNames(key, setting).map((flag) => `\`--${flag}\`${everySite === undefined ? "" : "¹"}`);
  const variables = variableNames(key, setting)
    .map((name) => `\`${name}\`${everySite === "flag and variable" ? "²" : ""}`);
  return [
    names,
    kinds.join("; "),
    fallback,
    `${meaning}${secret === undefined ? "" : ` (${NEVER_SHOWN[secret]} never shown)`}`,
    [...flags, ...variables].join(", "),
  ];
}

/** Table in Markdown, with the columns aligned as `deno fmt` aligns them. */
function table(rows: readonly string[][]): string {
  const escaped = rows.map((cells) => cells.map((cell) => cell.replaceAll(/[|*]/g, "\\$&")));
  const widths = escaped[0]!.map((_, column) => Math.max(...escaped.map((cells) => cells[column]!.length)));
  const lines = escaped.map((cells) => cells.map((cell, column) => cell.padEnd(widths[column]!)));
  const rule = widths.map((width) => "-".repeat(width));
  return [lines[0]!, rule, ...lines.slice(1)].map((cells) => `| ${cells.join(" | ")} |\n`).join("");
}
