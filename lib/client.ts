import { isIP } from "node:net";
import { unescape } from "node:querystring";
import { type CertificateFile, keyFits, readCertificateFile, readKeyFile } from "./certificate_file.ts";
import type { HTTP2_MODES, IP_VERSIONS } from "./setting.ts";
import type { SiteSource } from "./site_source.ts";

/** How a site is connected to; sites with equal settings share a client. */
export interface ClientSettings {
  /** Authorities beside the system's, in PEM; null for none. */
  readonly ca: string | null;
  /** Client certificate and its private key, in PEM; null for none. */
  readonly identity: { readonly cert: string; readonly key: string } | null;
  /** Proxy, its user and password apart from its address; null for none. */
  readonly proxy: ProxySettings | null;
  /** Whether HTTP/2 is spoken. */
  readonly http2: typeof HTTP2_MODES[number];
  /** Version of IP. */
  readonly ipVersion: typeof IP_VERSIONS[number];
  /** Whether a connection is kept for the next request. */
  readonly reuseConnection: boolean;
}

/** A proxy. */
export interface ProxySettings {
  /** Address, without user and password. */
  readonly url: string;
  /** User and password, if it asks for them. */
  readonly basicAuth?: { readonly username: string; readonly password: string };
}

/**
 * A new connection for each request: a check over a kept one would say nothing of the name, the port or the certificate.
 */
export const DEFAULT_CLIENT: ClientSettings = {
  ca: null,
  identity: null,
  proxy: null,
  http2: "auto",
  ipVersion: "any",
  reuseConnection: false,
};

/** Variables by which fetch goes through a proxy, or past one that is set, without anyone having told the producer. */
export const PROXY_VARIABLES: readonly string[] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]
  .flatMap((name) => [name, name.toLowerCase()]);
/** Address of one's own, of a version of IP, that stands for any. */
const LOCAL_ADDRESSES = { any: undefined, 4: "0.0.0.0", 6: "::" } as const;

/**
 * Reads how a site is connected to.
 *
 * @throws {ConfigError} for a value or a file that can't be read, and for settings that contradict each other.
 */
export async function readClientSettings(site: SiteSource, { protocol, hostname }: URL): Promise<ClientSettings> {
  const ca = await readCertificate(site, "tls_ca");
  const cert = await readCertificate(site, "tls_cert");
  const keyPath = site.take("tls_key");
  const key = keyPath === undefined ? undefined : await readKeyFile(keyPath, site.label("tls_key"));
  if (cert !== undefined && key === undefined) throw site.refuse("tls_cert", "expected tls_key beside it, got none");
  if (cert === undefined && key !== undefined) throw site.refuse("tls_key", "expected tls_cert beside it, got none");
  if (cert !== undefined && key !== undefined && !keyFits(key, cert)) {
    throw site.refuse(
      "tls_key",
      `expected the private key of the certificate in '${cert.path}', got another in '${key.path}'`,
    );
  }
  if (cert !== undefined && Date.parse(cert.first.validTo) < Date.now()) {
    site.warn(`the certificate in ${cert.path} has expired on ${cert.first.validTo}`);
  }
  const proxy = site.take("proxy");
  const ipVersion = site.take("ip_version");
  if (proxy !== undefined && ipVersion !== "any") {
    throw site.refuse("ip_version", "expected no proxy beside it: that connects to the site as it likes");
  }
  const own = isIP(hostname.replace(/^\[|\]$/g, ""));
  if (own !== 0 && ipVersion !== "any" && ipVersion !== String(own)) {
    site.warn(`${site.label("ip_version")} is ${ipVersion}, over which the address in the url can't be reached`);
  }
  const http2 = site.take("http2");
  if (http2 === "only" && protocol === "http:" && proxy !== undefined && proxy.protocol !== "socks5:") {
    site.warn(`${site.label("http2")} is asked of the proxy, too, which few speak: the address is http://`);
  }
  return {
    ca: ca?.pem ?? null,
    identity: cert === undefined || key === undefined ? null : { cert: cert.pem, key: key.pem },
    proxy: proxy === undefined ? null : splitProxy(proxy),
    http2,
    ipVersion,
    reuseConnection: site.take("reuse_connection"),
  };
}

async function readCertificate(site: SiteSource, key: "tls_ca" | "tls_cert"): Promise<CertificateFile | undefined> {
  const path = site.take(key);
  return path === undefined ? undefined : await readCertificateFile(path, site.label(key));
}

function splitProxy(url: URL): ProxySettings {
  const { protocol, host, username, password } = url;
  const address = `${protocol}//${host}`;
  if (username === "" && password === "") return { url: address };
  return { url: address, basicAuth: { username: unescape(username), password: unescape(password) } };
}

/** Clients of sites, one for all that are connected to in the same way; closes them at the end. */
export class Clients implements Disposable {
  readonly #clients = new Map<string, Deno.HttpClient>();
  /** Keys of settings that were seen: certificates are long, and checks many. */
  readonly #keys = new WeakMap<ClientSettings, string>();

  /** Takes the variables of {@linkcode PROXY_VARIABLES} out of the environment: a check goes nowhere unnoticed. */
  constructor() {
    // Read by the runtime itself when a client is made, whatever --ignore-env hides from the program.
    for (const name of PROXY_VARIABLES) Deno.env.delete(name);
  }

  /** The client for some settings. */
  get(settings: ClientSettings): Deno.HttpClient {
    const key = this.#keyOf(settings);
    const known = this.#clients.get(key);
    if (known !== undefined) return known;
    const client = createClient(settings);
    this.#clients.set(key, client);
    return client;
  }

  /** Closes those for other settings, as after a reload; what is under way with them goes on. */
  retain(settings: Iterable<ClientSettings>): void {
    const keys = new Set([...settings].map((one) => this.#keyOf(one)));
    for (const [key, client] of this.#clients) {
      if (keys.has(key)) continue;
      client.close();
      this.#clients.delete(key);
    }
  }

  #keyOf(settings: ClientSettings): string {
    const known = this.#keys.get(settings);
    if (known !== undefined) return known;
    const key = JSON.stringify(settings);
    this.#keys.set(settings, key);
    return key;
  }

  /** Closes them. */
  [Symbol.dispose](): void {
    this.retain([]);
  }
}

/** Client for some settings; it is to be closed. */
export function createClient(
  { ca, identity, proxy, http2, ipVersion, reuseConnection }: ClientSettings = DEFAULT_CLIENT,
): Deno.HttpClient {
  const localAddress = LOCAL_ADDRESSES[ipVersion];
  return Deno.createHttpClient({
    allowHost: true,
    ...(!reuseConnection && { poolMaxIdlePerHost: 0 }),
    ...(ca !== null && { caCerts: [ca] }),
    ...identity,
    ...(proxy !== null && { proxy }),
    ...(http2 === "off" && { http2: false }),
    ...(http2 === "only" && { http1: false }),
    ...(localAddress !== undefined && { localAddress }),
  });
}
