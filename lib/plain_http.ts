import { HTTPParser } from "node:_http_common";
import { Buffer } from "node:buffer";
import { isIP } from "node:net";
import { decodeContent, isKnownCoding } from "./content_coding.ts";
import { errorMessage } from "./error.ts";
import type { Answer, FetchOptions } from "./fetch.ts";
import { Timer } from "./timer.ts";

/** Bytes that are read at a time. */
const READ_BYTES = 16 * 1024;
/** A longer head of a response, or one of more headers, is not taken; fetch has about the same bounds. */
const MAX_HEAD_BYTES = 384 * 1024;
const MAX_HEADERS = 100;
/** Buffers and parsers that are kept for later requests. */
const MAX_KEPT = 256;
const DEFAULT_PORT = 80;
/** Head start of the address that the system names first. */
const HEAD_START_MS = 300;
/** A name without an address, as Linux and macOS say it, and Windows. */
const LOOK_UP_REGEXP = /^failed to lookup address|No such host is known|os error 1100[1-4]/;

/** Parser of HTTP/1.1, as far as it is used; its events are properties with these numbers. */
interface ResponseParser {
  initialize(kind: number, resource: object, maxHeadBytes: number, lenient: number): void;
  /** @returns The number of bytes that were taken, or an error. */
  execute(bytes: Uint8Array): number | ParseError;
  finish(): void;
  [event: number]: (...args: never[]) => unknown;
}

type ParseError = Error & { readonly code: string; readonly reason: string };

const {
  RESPONSE,
  kOnHeaders,
  kOnHeadersComplete,
  kOnBody,
  kOnMessageComplete,
  kLenientOptionalCRBeforeLF,
  kLenientChunkedLength,
  kLenientSpacesAfterChunkSize,
} = HTTPParser as Record<string, number>;

/** What is accepted although it breaks the rules, as the runtime's `fetch` does: many sites do. */
const LENIENT = kLenientOptionalCRBeforeLF! | kLenientChunkedLength! | kLenientSpacesAfterChunkSize!;

/**
 * Sends a request over HTTP/1.1 without TLS, on a connection of its own, as the runtime's `fetch` does with a client that
 * keeps none: what it sends, what it takes, and what it says where that fails is the same (tests/plain_http_test.ts
 * compares them). It costs half as much. The parser is llhttp, which the runtime has for `node:http`.
 *
 * @throws A `TypeError` with what fetch would say, `Deno.errors.NotCapable`, or the signal's reason.
 */
export async function fetchPlain(
  url: string,
  { method = "GET", headers, body, signal }: FetchOptions,
): Promise<Answer> {
  const target = new URL(url);
  const request = encodeRequest(target, { method, headers, body: body ?? null });
  const connection = await connect(target, signal);
  return await new PlainExchange(connection, { isHead: method === "HEAD", signal }).begin(request);
}

async function connect({ hostname, port }: URL, signal: AbortSignal): Promise<Deno.TcpConn> {
  signal.throwIfAborted();
  const options = {
    hostname: hostname.replace(/^\[|\]$/g, ""),
    port: port === "" ? DEFAULT_PORT : Number(port),
    signal,
  };
  try {
    return await (isIP(options.hostname) === 0 ? connectToName(options) : Deno.connect(options));
  } catch (error) {
    signal.throwIfAborted();
    throw asFetchError(error);
  }
}

/**
 * Connects to the address of a name that the system puts first, as fetch does; where that does not come about at once, to
 * any of them. `Deno.connect` by itself begins with IPv6, and waits for it where it leads nowhere.
 */
async function connectToName(options: Deno.ConnectOptions): Promise<Deno.TcpConn> {
  const first = Deno.connect({ ...options, autoSelectFamily: false });
  const late = Promise.withResolvers<null>();
  using _timer = new Timer(HEAD_START_MS, () => late.resolve(null));
  try {
    const connection = await Promise.race([first, late.promise]);
    if (connection !== null) return connection;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable || LOOK_UP_REGEXP.test(errorMessage(error))) throw error;
  }
  options.signal?.throwIfAborted();
  const any = Deno.connect(options);
  const connection = await Promise.any([first, any]).catch(() => any);
  for (const other of [first, any]) other.then((one) => one !== connection && one.close(), () => {});
  return connection;
}

/** A failure to connect in the words of fetch, by which failures are told apart (lib/failure.ts). */
function asFetchError(error: unknown): unknown {
  if (error instanceof Deno.errors.NotCapable) return error;
  const message = errorMessage(error);
  const kind = LOOK_UP_REGEXP.test(message) ? "dns error" : "tcp connect error";
  return fetchFailed(`client error (Connect): ${kind}: ${message}`);
}

interface PlainRequest {
  readonly method: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Uint8Array<ArrayBuffer> | null;
}

/** Header that is one (RFC 9110, 5.1 and 5.5). */
const NAME_REGEXP = /^[\w!#$%&'*+.^`|~-]+$/;
const VALUE_REGEXP = /^[^\0\r\n\u0100-\uffff]*$/;

function headerLine(name: string, value: string): string {
  if (!NAME_REGEXP.test(name) || !VALUE_REGEXP.test(value)) throw new TypeError(`Expected a header, got '${name}'`);
  return `${name}: ${value}\r\n`;
}

/** The request as it is sent, with the headers that fetch adds. */
function encodeRequest(
  { href, host, pathname, search }: URL,
  { method, headers, body }: PlainRequest,
): Uint8Array {
  const query = search === "" && /^[^#]*\?/.test(href) ? "?" : search;
  let head = `${method} ${pathname}${query} HTTP/1.1\r\n`;
  if (!("host" in headers)) head += `host: ${host}\r\n`;
  for (const name in headers) head += headerLine(name, headers[name]!);
  if (!("accept" in headers)) head += "accept: */*\r\n";
  if (!("accept-language" in headers)) head += "accept-language: *\r\n";
  // Of what is encoded, a part can't be decoded.
  if (!("accept-encoding" in headers)) head += `accept-encoding: ${"range" in headers ? "identity" : "gzip,br"}\r\n`;
  if (body !== null) head += `content-length: ${body.length}\r\n`;
  else if (method === "POST" || method === "PUT") head += "content-length: 0\r\n";
  const bytes = Buffer.from(`${head}\r\n`, "latin1");
  return body === null ? bytes : Buffer.concat([bytes, body]);
}

/** Of the end of a head. */
type HeadArgs = [
  major: number,
  minor: number,
  headers: readonly string[] | undefined,
  method: unknown,
  url: unknown,
  status: number,
  statusText: string,
];

/** What requests that have ended had: for the next it is warm in the caches, and no garbage. */
const kept: { readonly buffer: Buffer; readonly parser: ResponseParser }[] = [];

/** One request and its response on a connection, which it closes. */
class PlainExchange {
  readonly #connection: Deno.TcpConn;
  readonly #isHead: boolean;
  readonly #signal: AbortSignal;
  readonly #parser: ResponseParser;
  readonly #buffer: Buffer;
  #status = 0;
  #statusText = "";
  #headers: string[] = [];
  #headBytes = 0;
  #hasHead = false;
  #hasAll = false;
  /** What is wrong with the head that the parser takes. */
  #complaint: string | null = null;
  /** What the rest of the body is lost to. */
  #failure: TypeError | null = null;
  #isOpen = true;
  #isReading = false;
  readonly #abort = () => this.close();
  /** Pieces of the body that were read, and not yet handed on. */
  #pieces: Uint8Array<ArrayBuffer>[] = [];

  constructor(
    connection: Deno.TcpConn,
    { isHead, signal }: { readonly isHead: boolean; readonly signal: AbortSignal },
  ) {
    this.#connection = connection;
    this.#isHead = isHead;
    this.#signal = signal;
    signal.addEventListener("abort", this.#abort);
    const { parser, buffer } = kept.pop() ??
      { parser: new HTTPParser() as ResponseParser, buffer: Buffer.allocUnsafeSlow(READ_BYTES) };
    this.#parser = parser;
    this.#buffer = buffer;
    this.#initialize();
  }

  #initialize(): void {
    const parser = this.#parser;
    parser.initialize(RESPONSE!, {}, MAX_HEAD_BYTES, LENIENT);
    parser[kOnHeaders!] = (headers: readonly string[]) => this.#addHeaders(headers);
    parser[kOnHeadersComplete!] = (...args: HeadArgs) => this.#endHead(...args);
    parser[kOnBody!] = (piece: Uint8Array<ArrayBuffer>) => this.#addPiece(piece);
    parser[kOnMessageComplete!] = () => this.#hasAll = this.#hasHead;
  }

  /** Whether the response is over with its head. */
  get isBare(): boolean {
    return this.#hasAll && this.#pieces.length === 0;
  }

  /** Sends the request, and reads the response's head. */
  async begin(request: Uint8Array): Promise<Answer> {
    try {
      this.#signal.throwIfAborted();
      // Not waited for: a server may answer before it has all of it, and close.
      sendAll(this.#connection, request).catch(() => {});
      while (!this.#hasHead) await this.#read();
      return new PlainAnswer({ status: this.#status, statusText: this.#statusText, list: this.#headers }, this);
    } catch (error) {
      throw this.#endWith(error);
    }
  }

  /** Reads the body to its end; pieces of it hold until the next is asked for. */
  async *body(): AsyncGenerator<Uint8Array<ArrayBuffer>, void> {
    try {
      for (let pieces = await this.#next(); pieces !== null; pieces = await this.#next()) {
        // They are Buffers, of which slice() makes no copy.
        for (const { buffer, byteOffset, length } of pieces) yield new Uint8Array(buffer, byteOffset, length);
      }
    } finally {
      this.close();
    }
  }

  /** Reads all of the body, which is to be short. */
  async bytes(): Promise<Uint8Array<ArrayBuffer>> {
    const copies: Uint8Array<ArrayBuffer>[] = [];
    for (let pieces = await this.#next(); pieces !== null; pieces = await this.#next()) {
      for (const piece of pieces) copies.push(new Uint8Array(piece));
    }
    return copies.length === 1 ? copies[0]! : new Uint8Array(Buffer.concat(copies));
  }

  /** Ends it. */
  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#signal.removeEventListener("abort", this.#abort);
    this.#connection.close();
    // A read may still be under way.
    if (this.#isReading || kept.length >= MAX_KEPT) return;
    kept.push({ buffer: this.#buffer, parser: this.#parser });
  }

  /** The pieces of the body that come next; null at its end. */
  async #next(): Promise<Uint8Array<ArrayBuffer>[] | null> {
    try {
      while (this.#pieces.length === 0 && !this.#hasAll) await this.#read();
    } catch (error) {
      throw this.#endWith(error);
    }
    if (this.#pieces.length === 0) {
      this.close();
      return null;
    }
    const pieces = this.#pieces;
    this.#pieces = [];
    return pieces;
  }

  /** Ends it. @returns What to throw: where it was ended from outside, the reason. */
  #endWith(error: unknown): unknown {
    this.close();
    return this.#signal.aborted ? this.#signal.reason : error;
  }

  #addHeaders(headers: readonly string[]): void {
    // Those behind the body are nobody's.
    if (!this.#hasHead) this.#headers.push(...headers);
  }

  /** @returns 1 where no body follows, whatever the headers say. */
  #endHead(...[major, minor, headers, , , status, statusText]: HeadArgs): number {
    // Another response in the same read is an answer to nothing.
    if (this.#hasHead) return 1;
    // Such as 100 (Continue): the response follows.
    if (status >= 100 && status < 200 && status !== 101) {
      this.#headers = [];
      return 0;
    }
    this.#headers.push(...headers ?? []);
    this.#status = status;
    this.#statusText = statusText;
    this.#hasHead = true;
    if (status < 100) this.#complaint = COMPLAINTS.HPE_INVALID_STATUS!;
    if (major !== 1 || minor > 1) this.#complaint = COMPLAINTS.HPE_INVALID_VERSION!;
    return this.#isHead || status === RESET_CONTENT ? 1 : 0;
  }

  #addPiece(piece: Uint8Array<ArrayBuffer>): void {
    if (!this.#hasAll) this.#pieces.push(piece);
  }

  /** Reads what has come, or waits for more. */
  async #read(): Promise<void> {
    if (this.#failure !== null) throw this.#failure;
    const bytes = await this.#receive();
    if (bytes === null) {
      // Where nothing tells the length of the body, its end is that of the connection.
      if (this.#hasHead) this.#parser.finish();
      if (this.#hasAll) return;
      throw this.#hasHead ? bodyFailed() : requestFailed("connection closed before message completed");
    }
    if (!this.#hasHead) this.#headBytes += bytes;
    const result = this.#parse(this.#buffer.subarray(0, bytes));
    // Many small ones take far more memory than what is in them.
    if (this.#pieces.length > 1) this.#pieces = [Buffer.concat(this.#pieces)];
    if (this.#complaint !== null) throw requestFailed(this.#complaint);
    if (this.#headers.length / 2 > MAX_HEADERS || !this.#hasHead && this.#headBytes > MAX_HEAD_BYTES) {
      throw requestFailed("message head is too large");
    }
    // What follows the end of the response is nobody's.
    if (this.#hasAll || typeof result === "number") return;
    if (!this.#hasHead) throw requestFailed(describe(result));
    // What came before it is still to be handed on.
    this.#failure = bodyFailed();
  }

  #parse(bytes: Buffer): number | ParseError {
    const result = this.#parser.execute(bytes);
    const isFirst = !this.#hasHead && this.#headBytes === bytes.length;
    if (typeof result === "number" || !isFirst || !LENGTH_CODES.includes(result.code)) return result;
    const corrected = withOneLength(bytes);
    if (corrected === null) return result;
    this.#headers = [];
    this.#initialize();
    return this.#parser.execute(corrected);
  }

  /** @returns The number of bytes in the buffer; null at the end. */
  async #receive(): Promise<number | null> {
    this.#isReading = true;
    try {
      const bytes = await this.#connection.read(this.#buffer);
      this.#isReading = false;
      return bytes;
    } catch (error) {
      throw this.#hasHead ? bodyFailed(error) : fetchFailed(errorMessage(error));
    }
  }
}

function fetchFailed(message: string): TypeError {
  return new TypeError("fetch failed", { cause: new Error(message) });
}

function requestFailed(message: string): TypeError {
  return fetchFailed(`client error (SendRequest): ${message}`);
}

function bodyFailed(cause?: unknown): TypeError {
  return new TypeError("error reading a body from connection", { cause });
}

const RESET_CONTENT = 205;
/** What the parser says of a length that stands there twice, be it the same. */
const LENGTH_CODES = ["HPE_UNEXPECTED_CONTENT_LENGTH", "HPE_INVALID_CONTENT_LENGTH"];

/** The response with one length where it has the same several times (RFC 9110, 8.6); null where it has not. */
function withOneLength(bytes: Buffer): Buffer | null {
  const end = bytes.indexOf("\r\n\r\n");
  if (end === -1) return null;
  const lines = bytes.toString("latin1", 0, end).split("\r\n");
  const isLength = (line: string) => /^content-length:/i.test(line);
  const lengths = lines.filter(isLength).flatMap((line) => line.slice(line.indexOf(":") + 1).split(","));
  const [length, ...others] = lengths.map((text) => text.trim());
  if (others.length === 0 || !/^\d+$/.test(length!) || others.some((other) => other !== length)) return null;
  const head = [...lines.filter((line) => !isLength(line)), `content-length: ${length}`].join("\r\n");
  return Buffer.concat([Buffer.from(head, "latin1"), bytes.subarray(end)]);
}

/** What fetch says of a bad head, by the parser's codes. */
const COMPLAINTS: Readonly<Record<string, string>> = {
  HPE_HEADER_OVERFLOW: "message head is too large",
  HPE_INVALID_CONSTANT: "invalid HTTP version parsed",
  HPE_INVALID_CONTENT_LENGTH: "invalid content-length parsed",
  HPE_INVALID_HEADER_TOKEN: "invalid HTTP header parsed",
  HPE_INVALID_STATUS: "invalid HTTP status-code parsed",
  HPE_INVALID_VERSION: "invalid HTTP version parsed",
  HPE_UNEXPECTED_CONTENT_LENGTH: "invalid content-length parsed",
};

function describe({ code, reason }: ParseError): string {
  return COMPLAINTS[code] ?? `invalid HTTP response: ${reason}`;
}

async function sendAll(connection: Deno.TcpConn, bytes: Uint8Array): Promise<void> {
  for (let sent = 0; sent < bytes.length;) sent += await connection.write(bytes.subarray(sent));
}

interface PlainHead {
  readonly status: number;
  readonly statusText: string;
  /** Names and values in turn. */
  readonly list: readonly string[];
}

class PlainAnswer implements Answer {
  readonly status: number;
  readonly statusText: string;
  readonly headers: Headers;
  readonly #exchange: PlainExchange;
  /** How the body is encoded; null for as it is, or in a way that nobody knows. */
  readonly #coding: string | null;

  constructor({ status, statusText, list }: PlainHead, exchange: PlainExchange) {
    this.status = status;
    this.statusText = statusText;
    this.#exchange = exchange;
    const headers = this.headers = new Headers();
    for (let i = 0; i < list.length; i += 2) headers.append(list[i]!, list[i + 1]!);
    const coding = headers.get("content-encoding");
    this.#coding = coding !== null && isKnownCoding(coding) && !exchange.isBare ? coding : null;
  }

  bytes(): Promise<Uint8Array<ArrayBuffer>> {
    return this.#exchange.bytes();
  }

  async *pieces(): AsyncGenerator<Uint8Array<ArrayBuffer>, void> {
    const pieces = this.#exchange.body();
    try {
      yield* this.#coding === null ? pieces : decodeContent(pieces, this.#coding);
    } finally {
      // The decoder may have ended while a read is under way, which nothing else would end.
      this.#exchange.close();
    }
  }

  cancel(): Promise<void> {
    this.#exchange.close();
    return Promise.resolve();
  }
}
