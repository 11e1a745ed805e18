import { ConfigError, errorMessage } from "./error.ts";
import { type OAUTH_AUTHS, SETTINGS, type SiteKey } from "./setting.ts";
import type { SiteSource } from "./site_source.ts";
import { readNamedFile, readTextFile } from "./text_file.ts";
import { isLoopback, text as notEmptyText } from "./value.ts";

/** What is asked of a site. */
export interface RequestSettings {
  /** Method. */
  readonly method: string;
  /** Headers by name in lower case, `authorization` not among them. */
  readonly headers: Readonly<Record<string, string>>;
  /** Those of them whose values are never shown: variables of the environment are part of them. */
  readonly secretHeaders: readonly string[];
  /** Body, if it has one. */
  readonly body: Uint8Array<ArrayBuffer> | null;
  /** Value of the header `authorization`, if there is one. */
  readonly authorization: string | null;
  /** Where its token is got, if it is; `authorization` is null then. */
  readonly oauth: OauthSettings | null;
}

/** How a token is got: OAuth 2.0, client credentials grant (RFC 6749, 4.4). */
export interface OauthSettings {
  /** Where. */
  readonly tokenUrl: string;
  /** Who asks for it. */
  readonly clientId: string;
  /** Its secret. */
  readonly clientSecret: string;
  /** How these are sent. */
  readonly auth: typeof OAUTH_AUTHS[number];
  /** What it is for, and what else is asked. */
  readonly parameters: readonly (readonly [name: string, value: string])[];
}

/** A bare GET. */
export const DEFAULT_REQUEST: RequestSettings = {
  method: "GET",
  headers: { accept: "*/*", "user-agent": SETTINGS.website.user_agent.initial },
  secretHeaders: [],
  body: null,
  authorization: null,
  oauth: null,
};

/** Headers that another key sets, by name. */
const KEYS_OF_HEADERS: ReadonlyMap<string, SiteKey> = new Map([
  ["host", "host"],
  ["user-agent", "user_agent"],
  ["proxy-authorization", "proxy"],
]);
/** Parameters of a request for a token that another key sets, by name. */
const KEYS_OF_PARAMETERS: ReadonlyMap<string, SiteKey> = new Map([
  ["client_id", "oauth_client_id"],
  ["client_secret", "oauth_client_secret"],
  ["scope", "oauth_scope"],
]);
/** Keys that mean nothing without `oauth_token_url`. */
const OAUTH_KEYS = [
  "oauth_client_id",
  "oauth_client_secret",
  "oauth_client_secret_file",
  "oauth_scope",
  "oauth_parameters",
  "oauth_auth",
] as const;
/** Headers of the connection and of the message's length, which are for fetch to set (RFC 9110, 7.6.1 and 8.6). */
const HEADERS_OF_FETCH: readonly string[] = [
  ...["connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer"],
  ...["transfer-encoding", "upgrade"],
];

/**
 * Reads what is asked of a site.
 *
 * @param authorization Value of the header, from the URL's user and password.
 * @throws {ConfigError} for a value or a file that can't be read, and for settings that contradict each other.
 */
export async function readRequest(site: SiteSource, authorization: string | null): Promise<RequestSettings> {
  const method = site.take("method");
  const headers = readHeaders(site);
  const body = await readBody(site);
  if (body !== null && (method === "GET" || method === "HEAD")) {
    throw site.refuse(
      site.has("body") ? "body" : "body_file",
      `expected method = POST or another that has a body beside it, got ${method}`,
    );
  }
  return {
    method,
    headers,
    secretHeaders: secretHeaders(site),
    body,
    ...await readAuthorization(site, { authorization, headers }),
  };
}

function readHeaders(site: SiteSource): Record<string, string> {
  const headers = new Map<string, string>();
  for (const [name, value] of site.take("headers")) {
    const key = KEYS_OF_HEADERS.get(name);
    if (key !== undefined) throw site.refuse("headers", `expected ${key} for the header ${name}`);
    if (HEADERS_OF_FETCH.includes(name)) {
      throw site.refuse("headers", `expected headers that are not the connection's, got ${name}`);
    }
    if (headers.has(name)) throw site.refuse("headers", `expected each header once, got ${name} twice`);
    headers.set(name, value);
  }
  const host = site.take("host");
  return {
    ...DEFAULT_REQUEST.headers,
    ...Object.fromEntries(headers),
    "user-agent": site.take("user_agent"),
    ...(host !== undefined && { host }),
  };
}

/** Headers whose values come from variables of the environment. */
function secretHeaders(site: SiteSource): string[] {
  const fromVariables = site.fromVariables("headers");
  return site.take("headers").flatMap(([name], index) => fromVariables[index] ? [name] : []);
}

async function readBody(site: SiteSource): Promise<Uint8Array<ArrayBuffer> | null> {
  const text = site.take("body");
  const path = site.take("body_file");
  if (text !== undefined && path !== undefined) throw refuseTogether(site, "body", "body_file");
  if (text !== undefined) return new TextEncoder().encode(text);
  return path === undefined ? null : await readNamedFile(path, site.label("body_file"));
}

/** Where else the header may come from. */
interface OtherAuthorization {
  readonly authorization: string | null;
  readonly headers: Readonly<Record<string, string>>;
}

async function readAuthorization(
  site: SiteSource,
  { authorization, headers }: OtherAuthorization,
): Promise<Pick<RequestSettings, "authorization" | "oauth">> {
  const user = site.take("basic_user");
  const password = await readSecret(site, "basic_password", "basic_password_file");
  const token = await readSecret(site, "bearer_token", "bearer_token_file");
  const basicKey = firstGiven(site, ["basic_user", "basic_password", "basic_password_file"]);
  const bearerKey = firstGiven(site, ["bearer_token", "bearer_token_file"]);
  const oauth = await readOauth(site);
  const oauthKey: SiteKey | undefined = oauth === null ? undefined : "oauth_token_url";
  const [key, other] = [oauthKey, bearerKey, basicKey].filter((key) => key !== undefined);
  if (key !== undefined && other !== undefined) throw refuseTogether(site, key, other);
  if (key !== undefined && authorization !== null) {
    throw site.refuse(key, "expected no user and password in the url beside it, got some");
  }
  if (headers["authorization"] !== undefined && (key !== undefined || authorization !== null)) {
    throw site.refuse("headers", `expected no header authorization beside ${key ?? "user and password in the url"}`);
  }
  if (basicKey !== undefined && user === undefined) {
    throw site.refuse(basicKey, "expected basic_user beside it, got none");
  }
  if (user?.includes(":")) throw site.refuse("basic_user", "expected a name without a colon, which ends it");
  if (user !== undefined && /\p{Cc}/u.test(user)) throw site.refuse("basic_user", "expected a name on one line");
  if (user !== undefined) return { authorization: basicAuthorization(user, password ?? ""), oauth };
  return { authorization: token === undefined ? authorization : `Bearer ${token}`, oauth };
}

async function readOauth(site: SiteSource): Promise<OauthSettings | null> {
  const tokenUrl = site.take("oauth_token_url");
  const clientId = site.take("oauth_client_id");
  const clientSecret = await readSecret(site, "oauth_client_secret", "oauth_client_secret_file");
  const scope = site.take("oauth_scope");
  const further = site.take("oauth_parameters");
  const auth = site.take("oauth_auth");
  if (tokenUrl === undefined) {
    const lone = OAUTH_KEYS.find((key) => site.precedence(key) > 1);
    if (lone !== undefined) throw site.refuse(lone, "expected oauth_token_url beside it, got none");
    return null;
  }
  if (tokenUrl.username !== "" || tokenUrl.password !== "") {
    throw site.refuse(
      "oauth_token_url",
      "expected oauth_client_id and oauth_client_secret for user and password in it",
    );
  }
  if (clientId === undefined) throw site.refuse("oauth_token_url", "expected oauth_client_id beside it, got none");
  if (clientSecret === undefined) {
    throw site.refuse("oauth_token_url", "expected oauth_client_secret or its file beside it, got none");
  }
  for (const [name] of further) {
    if (name === "grant_type") {
      throw site.refuse(
        "oauth_parameters",
        "expected parameters beside grant_type = client_credentials, got grant_type",
      );
    }
    const key = KEYS_OF_PARAMETERS.get(name);
    if (key !== undefined) throw site.refuse("oauth_parameters", `expected ${key} for the parameter ${name}`);
  }
  if (tokenUrl.protocol === "http:" && !isLoopback(tokenUrl.hostname)) {
    site.warn(`${site.label("oauth_token_url")} is http://: the secret and the token can be read on their way`);
  }
  const parameters = [...(scope === undefined ? [] : [["scope", scope] as const]), ...further];
  return { tokenUrl: tokenUrl.href, clientId, clientSecret, auth, parameters };
}

/** A secret that stands in the settings, or in a file that they name. */
async function readSecret(
  site: SiteSource,
  key: "basic_password" | "bearer_token" | "oauth_client_secret",
  fileKey: "basic_password_file" | "bearer_token_file" | "oauth_client_secret_file",
): Promise<string | undefined> {
  const text = site.take(key);
  const path = site.take(fileKey);
  if (text !== undefined && path !== undefined) throw refuseTogether(site, key, fileKey);
  if (path === undefined) return text;
  const content = (await readTextFile(path, site.label(fileKey))).replace(/\r?\n$/, "");
  try {
    return SETTINGS.website[key].parse(notEmptyText()(content));
  } catch (error) {
    throw new ConfigError(`Cannot read ${site.label(fileKey)} '${path}': ${errorMessage(error)}`);
  }
}

function firstGiven(site: SiteSource, keys: readonly SiteKey[]): SiteKey | undefined {
  return keys.find((key) => site.has(key));
}

function refuseTogether(site: SiteSource, key: SiteKey, other: SiteKey): Error {
  return site.refuse(key, `expected one of it and ${site.label(other)}, got both`);
}

/**
 * Value of the header `authorization` for a user and a password, in UTF-8 (RFC 7617).
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.equal(basicAuthorization("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
 * ```
 */
export function basicAuthorization(user: string, password: string): string {
  return `Basic ${new TextEncoder().encode(`${user}:${password}`).toBase64()}`;
}
