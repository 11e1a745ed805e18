import type { ProxySettings } from "./client.ts";
import type { Site } from "./site.ts";
import { errorCode, errorMessage, FaultError } from "./error.ts";
import { type CheckError, isoTime, type Phase } from "./metric.ts";
import { countOpenable } from "./open_files.ts";

/** What ended an exchange before its time. */
export interface Failure {
  /** What was thrown. */
  readonly error: unknown;
  /** The phase that it was thrown in. */
  readonly phase: Phase;
}

/** A redirect that is not followed. */
export class RedirectError extends Error {
  /** With the class that it is of. */
  constructor(readonly kind: Extract<CheckError, "redirect_loop" | "redirect_denied">, message: string) {
    super(message);
  }
}

/** A response that takes longer, or is longer, than the site may. */
export class LimitError extends Error {
  /** With the class that it is of. */
  constructor(readonly kind: Extract<CheckError, "first_byte_timeout" | "body_too_large">, message: string) {
    super(message);
  }
}

/** A connection that does not come about, as a look at it tells. */
export class ConnectionError extends Error {
  /** With the class that it is of. */
  constructor(readonly kind: CheckError, message: string) {
    super(message);
  }
}

/**
 * Failures of fetch by a part of their text, first match first, since Deno gives no codes; all others are `protocol`. A
 * test pins each against a real server.
 */
const FAILURES: readonly { text: RegExp; error: CheckError; phase?: Phase }[] = [
  {
    text:
      /dns error:.*(?:Name or service not known|Name does not resolve|No address associated|nodename nor servname|No such host is known)/,
    error: "dns_not_found",
    phase: "dns",
  },
  { text: /dns error:/, error: "dns_other", phase: "dns" },
  { text: /Connection refused/, error: "refused", phase: "connect" },
  { text: /tcp connect error: Connection reset/, error: "reset", phase: "connect" },
  { text: /tcp connect error:.*timed out/, error: "connect_timeout", phase: "connect" },
  { text: /tcp connect error:/, error: "unreachable", phase: "connect" },
  { text: /certificate expired/, error: "tls_expired", phase: "tls" },
  { text: /certificate not valid yet/, error: "tls_not_yet_valid", phase: "tls" },
  { text: /certificate not valid for name|NotValidForName/, error: "tls_name", phase: "tls" },
  { text: /invalid peer certificate: (?:UnknownIssuer|Other|BadSignature)/, error: "tls_untrusted", phase: "tls" },
  { text: /client error \(Connect\): Connection reset/, error: "reset", phase: "tls" },
  {
    text: /invalid peer certificate|tls handshake|corrupt message|fatal alert|peer is incompatible|peer misbehaved/,
    error: "tls_other",
    phase: "tls",
  },
  { text: /Connection reset|connection closed before message|closed connection without|Broken pipe/, error: "reset" },
];

/** Class, phase and text of a failure that is the site's. */
export function describeFailure(
  { error, phase }: Failure,
  { timeoutMs }: Pick<Site, "timeoutMs">,
): { error: CheckError; phase: Phase; message: string } {
  if (error instanceof RedirectError) return { error: error.kind, phase: "first_byte", message: error.message };
  if (error instanceof LimitError || error instanceof ConnectionError) {
    return { error: error.kind, phase, message: error.message };
  }
  if (isTimeout(error)) {
    const kind = phase === "download" ? "body_timeout" : "timeout";
    return { error: kind, phase, message: `no complete response within ${timeoutMs} ms` };
  }
  const message = plainMessage(error);
  const known = FAILURES.find(({ text }) => text.test(message));
  return {
    error: known?.error ?? "protocol",
    phase: known?.phase ?? phase,
    message: message.replaceAll(NOISE_REGEXP, ""),
  };
}

/** Whether it is what a signal of `AbortSignal.timeout()` ends things with. */
export function isTimeout(error: unknown): boolean {
  return error instanceof DOMException && error.name === "TimeoutError";
}

/** What tells the classes apart, but says nothing to people. */
const NOISE_REGEXP = /client error \(\w+\): |invalid peer certificate: (?=certificate)| \(os error \d+\)/g;

/** The failure's text without what differs from check to check or stands in other columns: ports, the address, the time. */
function plainMessage(error: unknown): string {
  return errorMessage(error)
    .replace(/^fetch failed: /i, "")
    .replace(/error sending request (?:for url \(\S*\)|from \S+ for \S+(?: \(\S+\))?): /, "")
    .replace(/: verification time \d+ \(UNIX\), but certificate is (not valid \w+) (\d+) \(.*\)$/, certificateTime)
    .replace(/: https:\/\/docs\.rs\/\S+$/, "")
    .replaceAll("\0", "\ufffd")
    .slice(0, 500);
}

function certificateTime(_: string, bound: string, seconds: string): string {
  return `: ${bound} ${isoTime(Number(seconds) * 1000)}`;
}

/** Failures of this machine, by a part of their text: permissions of the system, files, ports and memory that ran out. */
const OURS_REGEXP = /tcp (?!connect error)[\w ]+ error:|\(os error (?:1|12|13|23|24|99|105)\)/;
/** The same, by the codes that `node:net` has. */
const OUR_CODES = ["EPERM", "EACCES", "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EADDRNOTAVAIL"];
const LOOK_UP_REGEXP = /dns error:|getaddrinfo/;

/** Failures to reach a proxy, by a part of their text: where there is one, the runtime itself connects to nothing else. */
const PROXY_REGEXP =
  /client error \(Connect\): (?:tcp connect error|dns error|proxy authentication required|Proxy server unreachable)/;

/**
 * A failure of this machine or its operator says nothing of the site: it is thrown on, as what it is. A missing permission
 * is a `NotCapable`, or has one of three disguises: the cause of a failed fetch when the name resolved to an address that
 * is denied, a `NotCapable` among the events of `node:net`, and `EPERM` of a look-up.
 *
 * @param proxy Where there is one: that it is away or does not let us in is no fault of the site either.
 */
export function throwIfOurs({ error }: Failure, proxy: ProxySettings | null = null): void {
  if (error instanceof Deno.errors.NotCapable) throw error;
  const message = errorMessage(error);
  const permission = /Requires \w+ access to .*/.exec(message);
  if (permission !== null) throw new Deno.errors.NotCapable(permission[0], { cause: error });
  const code = errorCode(error);
  if (LOOK_UP_REGEXP.test(message)) {
    if (code === "EPERM") {
      throw new Deno.errors.NotCapable(`Requires net access to the host, without a port, to look it up (${message})`, {
        cause: error,
      });
    }
    // The system's look-up needs a file or two, and says that the name is not there when it gets none.
    if (countOpenable(1) === 0) throw new Error(`Too many open files to look a name up (${message})`, { cause: error });
  }
  if (OURS_REGEXP.test(message) || OUR_CODES.includes(code ?? "")) throw error;
  if (proxy !== null && PROXY_REGEXP.test(message)) {
    const reason = plainMessage(error).replaceAll(NOISE_REGEXP, "");
    throw new FaultError("proxy", `Cannot reach the proxy ${proxy.url}: ${reason}`, { cause: error });
  }
}
