import { connect as connectTcp, isIP, type Socket } from "node:net";
import { checkServerIdentity, connect as connectTls, type DetailedPeerCertificate, type TLSSocket } from "node:tls";
import type { ClientSettings } from "./client.ts";
import type { TlsSettings } from "./config.ts";
import { errorCode, errorMessage } from "./error.ts";
import { throwIfOurs } from "./failure.ts";
import { LookUps } from "./lookup.ts";
import { type CheckError, isoTime, type Phase } from "./metric.ts";
import { Timer } from "./timer.ts";
import { formatDuration } from "./value.ts";

/** What a look at a connection finds; null for what it did not come to. */
export interface Inspection {
  /** Addresses of the host, in the order in which they are tried. */
  readonly addresses: readonly string[];
  /** Those of them that were tried. */
  readonly attempts: readonly ConnectionAttempt[];
  /** The one that was connected to, else the last one that was tried. */
  readonly ip: string | null;
  /** Time of the look-up, in ms; 0 where the URL has an address. */
  readonly dnsMs: number | null;
  /** Time to connect over TCP, in ms; addresses that were tried in vain are part of it. */
  readonly connectMs: number | null;
  /** Time of the TLS handshake, in ms; null without TLS. */
  readonly tlsMs: number | null;
  /** Version of TLS, such as `TLSv1.3`. */
  readonly tlsVersion: string | null;
  /** Cipher suite, such as `TLS_AES_256_GCM_SHA384`. */
  readonly cipher: string | null;
  /** Protocol that was agreed on with TLS, such as `h2`; null where the server names none. */
  readonly alpn: string | null;
  /** Certificates, the server's own first; also those of a server that is not trusted. */
  readonly chain: readonly Certificate[];
  /** Why there is no good connection, or null. */
  readonly failure: ConnectionFailure | null;
}

/** An attempt to connect to an address. */
export interface ConnectionAttempt {
  /** The address. */
  readonly address: string;
  /** Why there is no connection to it; null for the one that was connected to. */
  failure: string | null;
}

/** Certificate of a chain. */
export interface Certificate {
  /** Whom it is for: `CN=example.com, O=Example`, or its names where it has no subject. */
  readonly subject: string;
  /** Who issued it. */
  readonly issuer: string;
  /** Its beginning, ISO 8601 in UTC. */
  readonly validFrom: string;
  /** Its end, ISO 8601 in UTC. */
  readonly expiresAt: string;
}

/** Why there is no good connection. */
export interface ConnectionFailure {
  /** Class. */
  readonly error: CheckError;
  /** Part of the connection that failed. */
  readonly phase: Extract<Phase, "dns" | "connect" | "tls">;
  /** The failure in words, without what differs from look to look. */
  readonly message: string;
  /** Whether time ran out. */
  readonly timedOut: boolean;
}

/** Options of {@linkcode inspectConnection}. */
export interface InspectConnectionOptions {
  /** Time for all of it, in ms, from the moment that the look-up begins. */
  readonly timeoutMs: number;
  /** Ends the look; a `TimeoutError` as its reason means that time ran out, any other is thrown. */
  readonly signal?: AbortSignal;
  /** Addresses that are used. Default: both kinds. */
  readonly ipVersion?: 4 | 6 | null;
  /** Own authorities and client certificate. */
  readonly tls?: TlsSettings;
  /** Whether HTTP/2 is offered. Default: auto. */
  readonly http2?: ClientSettings["http2"];
  /** Looks names up. Default: one for all looks of the process. */
  readonly lookUps?: LookUps;
}

/** Shared by default, since the threads that they bound are the process's. */
const LOOK_UPS = new LookUps();
/** Head start of an address before the next one is tried beside it, as in RFC 8305, section 5. */
const ATTEMPT_DELAY_MS = 250;
/** A chain is three or four long; a server can send what it likes. */
const MAX_CHAIN = 10;
/** What fetch offers. */
const ALPN_PROTOCOLS = { auto: ["h2", "http/1.1"], off: ["http/1.1"], only: ["h2"] } as const;

const CONNECT_ERRORS: Readonly<Record<string, { error: CheckError; message: string }>> = {
  ECONNREFUSED: { error: "refused", message: "connection refused" },
  ETIMEDOUT: { error: "connect_timeout", message: "connection timed out" },
  ECONNRESET: { error: "reset", message: "connection reset" },
  ENETUNREACH: { error: "unreachable", message: "network unreachable" },
  EHOSTUNREACH: { error: "unreachable", message: "no route to host" },
};

/**
 * Looks at the connection to the host of a URL, alone and without a request: name, TCP, TLS and certificate.
 *
 * @returns What it finds; null where no place for a look-up came free in time, see {@linkcode LookUps}.
 * @throws A fault of ours, such as `Deno.errors.NotCapable`, or the reason of the signal.
 */
export async function inspectConnection(
  url: string | URL,
  { timeoutMs, signal, ipVersion = null, tls = {}, http2 = "auto", lookUps = LOOK_UPS }: InspectConnectionOptions,
): Promise<Inspection | null> {
  const { protocol, hostname, port } = new URL(url);
  const host = hostname.replace(/^\[|\]$/g, "");
  const own = new AbortController();
  let timer: Timer | undefined;
  const ended = signal === undefined ? own.signal : AbortSignal.any([own.signal, signal]);
  const attempts: ConnectionAttempt[] = [];
  const found: { -readonly [K in keyof Inspection]: Inspection[K] } = {
    addresses: [],
    attempts,
    ip: null,
    dnsMs: null,
    connectMs: null,
    tlsMs: null,
    tlsVersion: null,
    cipher: null,
    alpn: null,
    chain: [],
    failure: null,
  };
  let phase: ConnectionFailure["phase"] = "dns";
  let socket: Socket | undefined;
  try {
    let start = 0;
    const addresses = await lookUps.addresses(host, {
      ipVersion,
      signal: ended,
      placeMs: timeoutMs,
      onStart: () => {
        start = performance.now();
        timer = new Timer(timeoutMs, () => own.abort(new DOMException("Time is up", "TimeoutError")));
      },
    });
    if (addresses === null) {
      if (signal?.aborted && !isTimeout(signal.reason)) throw signal.reason;
      return null;
    }
    found.addresses = addresses;
    found.dnsMs = isIP(host) === 0 ? performance.now() - start : 0;
    phase = "connect";
    if (ipVersion !== null && isIP(host) !== 0 && isIP(host) !== ipVersion) {
      throw new Error(`expected an address of IPv${ipVersion}, got ${host}`);
    }
    start = performance.now();
    socket = await connectToOne(found.addresses, {
      port: Number(port) || (protocol === "https:" ? 443 : 80),
      signal: ended,
      attempts,
      onTried: (address) => found.ip = withoutZone(address),
    });
    found.connectMs = performance.now() - start;
    if (protocol !== "https:") return found;
    phase = "tls";
    start = performance.now();
    const secured = await shakeHands(socket, host, { tls, http2, signal: ended });
    found.tlsMs = performance.now() - start;
    found.tlsVersion = secured.getProtocol();
    found.cipher = secured.getCipher()?.standardName ?? null;
    found.alpn = secured.alpnProtocol || null;
    found.chain = chainOf(secured.getPeerCertificate(true));
    found.failure = certificateFailure(secured, host, found.chain);
    return found;
  } catch (error) {
    const timedOut = ended.aborted && error === ended.reason;
    if (timedOut && !isTimeout(error)) throw error;
    if (!timedOut) throwIfOurs({ error, phase });
    const bound = own.signal.aborted ? formatDuration(timeoutMs) : "the time of the check";
    found.failure = timedOut
      ? { error: "connect_timeout", phase, message: `${UNFINISHED[phase]} within ${bound}`, timedOut }
      : { ...describe(error, phase), phase, timedOut };
    return found;
  } finally {
    timer?.[Symbol.dispose]();
    socket?.destroy();
  }
}

function isTimeout(error: unknown): boolean {
  return error instanceof DOMException && error.name === "TimeoutError";
}

const UNFINISHED: Readonly<Record<ConnectionFailure["phase"], string>> = {
  dns: "no answer to the look-up of the name",
  connect: "no connection",
  tls: "no end of the TLS handshake",
};

function describe(error: unknown, phase: ConnectionFailure["phase"]): { error: CheckError; message: string } {
  const code = errorCode(error);
  const message = errorMessage(error).slice(0, 500);
  if (phase === "dns") {
    return code === "ENOTFOUND"
      ? { error: "dns_not_found", message: "no address of that name (ENOTFOUND)" }
      : { error: "dns_other", message: `the look-up of the name failed (${code ?? message})` };
  }
  const known = CONNECT_ERRORS[code ?? ""];
  if (known !== undefined) return { error: known.error, message: `${known.message} (${code})` };
  return phase === "connect" ? { error: "unreachable", message } : { error: "tls_other", message };
}

/** Options of {@linkcode connectToOne}. */
interface ConnectOptions {
  readonly port: number;
  readonly signal: AbortSignal;
  /** Is added to. */
  readonly attempts: ConnectionAttempt[];
  readonly onTried: (address: string) => void;
}

/**
 * Connects to the first of some addresses that answers. Each has a head start, so that one that is dead costs little, and
 * all are tried before it is said that none answers.
 */
function connectToOne(
  addresses: readonly string[],
  { port, signal, attempts, onTried }: ConnectOptions,
): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<Socket>();
  const open = new Map<Socket, ConnectionAttempt>();
  const failures: { address: string; error: unknown }[] = [];
  let next = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;

  function tryNext(): void {
    clearTimeout(timer);
    const address = addresses[next++];
    if (address === undefined) {
      if (open.size > 0) return;
      const { address, error } = mostTelling(failures);
      onTried(address);
      return reject(error);
    }
    onTried(address);
    const socket = connectTcp({ host: address, port });
    const attempt: ConnectionAttempt = { address, failure: null };
    attempts.push(attempt);
    open.set(socket, attempt);
    socket.once("connect", () => {
      open.delete(socket);
      onTried(address);
      resolve(socket);
    });
    // Stays: a socket without a listener for errors ends the process.
    socket.on("error", (error) => {
      if (!open.delete(socket)) return;
      failures.push({ address, error });
      attempt.failure = describe(error, "connect").message;
      tryNext();
    });
    timer = setTimeout(tryNext, ATTEMPT_DELAY_MS);
  }

  const abort = () => reject(signal.reason);
  signal.addEventListener("abort", abort);
  if (signal.aborted) abort();
  else tryNext();
  return promise.finally(() => {
    clearTimeout(timer);
    signal.removeEventListener("abort", abort);
    for (const [socket, attempt] of open) {
      attempt.failure = "no answer";
      socket.destroy();
    }
  });
}

/** Of several failures that of an address that could be reached, if there is one: often no network has one of both kinds. */
function mostTelling(failures: readonly { address: string; error: unknown }[]): { address: string; error: unknown } {
  const of = (codes: readonly string[]) => failures.find(({ error }) => codes.includes(errorCode(error) ?? ""));
  return of(["ECONNREFUSED", "ECONNRESET", "ETIMEDOUT"]) ?? of(["ENETUNREACH", "EHOSTUNREACH"]) ?? failures[0]!;
}

/**
 * Does the handshake with whoever is there: a certificate that is bad is looked at, too. What is wrong with it is said
 * afterwards; nothing is sent to it.
 */
function shakeHands(
  socket: Socket,
  host: string,
  { tls: { ca, cert, key }, http2, signal }: Required<Pick<InspectConnectionOptions, "tls" | "http2" | "signal">>,
): Promise<TLSSocket> {
  const { promise, resolve, reject } = Promise.withResolvers<TLSSocket>();
  const secured = connectTls({
    socket,
    host,
    ...(isIP(host) === 0 && { servername: host.replace(/\.$/, "") }),
    ALPNProtocols: [...ALPN_PROTOCOLS[http2]],
    rejectUnauthorized: false,
    ...(ca !== undefined && { ca }),
    ...(cert !== undefined && { cert }),
    ...(key !== undefined && { key }),
  }, () => resolve(secured));
  secured.on("error", reject);
  const abort = () => reject(signal.reason);
  signal.addEventListener("abort", abort);
  if (signal.aborted) abort();
  return promise.finally(() => signal.removeEventListener("abort", abort));
}

function chainOf(first: DetailedPeerCertificate): Certificate[] {
  const seen = new Set<string>();
  const chain: Certificate[] = [];
  // The last one's issuer is itself.
  for (let next: DetailedPeerCertificate | undefined = first; next?.fingerprint256 !== undefined;) {
    if (seen.has(next.fingerprint256) || chain.length >= MAX_CHAIN) break;
    seen.add(next.fingerprint256);
    chain.push({
      subject: distinguishedName(next.subject) || plainText(next.subjectaltname ?? ""),
      issuer: distinguishedName(next.issuer),
      validFrom: isoTime(Date.parse(next.valid_from)),
      expiresAt: isoTime(Date.parse(next.valid_to)),
    });
    next = next.issuerCertificate;
  }
  return chain;
}

/** Name as in RFC 4514, the part that says most in front: `CN=example.com, O=Example`. */
function distinguishedName(name: object): string {
  const parts = Object.entries(name).reverse().map(([type, value]) =>
    `${type}=${[value].flat().join("+").replaceAll(/[\\,]/g, "\\$&")}`
  );
  return plainText(parts.join(", "));
}

/** The text without what the metric can't hold: a server writes into its certificate what it likes. */
function plainText(text: string): string {
  return text.replaceAll("\0", "\ufffd").slice(0, 500);
}

/**
 * What is wrong with the certificate. Deno's node:tls says `UNABLE_TO_VERIFY_LEAF_SIGNATURE` of one that has expired, too:
 * so its times are looked at here.
 */
function certificateFailure(
  secured: TLSSocket,
  host: string,
  chain: readonly Certificate[],
): ConnectionFailure | null {
  if (secured.authorized) return null;
  const failure = (error: CheckError, message: string) => ({ error, phase: "tls", message, timedOut: false } as const);
  const now = new Date().toISOString();
  const expired = chain.find(({ expiresAt }) => expiresAt < now);
  if (expired !== undefined) return failure("tls_expired", `certificate expired: not valid after ${expired.expiresAt}`);
  const early = chain.find(({ validFrom }) => validFrom > now);
  if (early !== undefined) {
    return failure("tls_not_yet_valid", `certificate not valid yet: not valid before ${early.validFrom}`);
  }
  const reason = String(secured.authorizationError);
  if (reason !== "ERR_TLS_CERT_ALTNAME_INVALID") return failure("tls_untrusted", `certificate not trusted (${reason})`);
  const { message } = checkServerIdentity(host, secured.getPeerCertificate()) ?? { message: reason };
  return failure("tls_name", plainText(message));
}

/** PostgreSQL's inet knows no zones, as in `fe80::1%eth0`. */
function withoutZone(address: string): string {
  return address.replace(/%.*$/, "");
}
