import type { ClientSettings } from "./client.ts";
import { fetchPlain } from "./plain_http.ts";

/** What is sent, and how. */
export interface FetchOptions {
  /** Method. Default: GET. */
  readonly method?: string;
  /** Headers, the names in lower case. */
  readonly headers: Readonly<Record<string, string>>;
  /** Body. Default: none. */
  readonly body?: Uint8Array<ArrayBuffer> | null;
  /** Client that sends it, made with the settings. */
  readonly client: Deno.HttpClient;
  /** How the site is connected to. */
  readonly settings: ClientSettings;
  /** Ends it: what is waited for rejects with the reason then. */
  readonly signal: AbortSignal;
}

/** A response whose head has come. */
export interface Answer {
  /** Status. */
  readonly status: number;
  /** Its text; empty with HTTP/2. The runtime has the usual one, whatever came. */
  readonly statusText: string;
  /** Headers, as they came: that of the length is the encoded body's. */
  readonly headers: Headers;
  /** Reads the body at once. */
  bytes(): Promise<Uint8Array<ArrayBuffer>>;
  /** Reads the body piece by piece, decoded; each piece holds until the next is asked for. To read no further ends it. */
  pieces(): AsyncIterable<Uint8Array<ArrayBuffer>>;
  /** Reads nothing. */
  cancel(): Promise<void>;
}

/** Sends a request, follows no redirect, and resolves when the head of the response has come. */
export type Fetch = (url: string, options: FetchOptions) => Promise<Answer>;

const READ_BYTES = 16 * 1024;

/** {@linkcode Fetch} by {@linkcode fetchPlain} where that does, else by the runtime's `fetch`. */
export function fetchAnswer(url: string, options: FetchOptions): Promise<Answer> {
  return isPlain(url, options.settings) ? fetchPlain(url, options) : fetchByRuntime(url, options);
}

/** Whether all that the settings ask for is HTTP/1.1 over a connection of its own. */
function isPlain(url: string, { proxy, http2, ipVersion, reuseConnection }: ClientSettings): boolean {
  return url.startsWith("http:") && proxy === null && http2 !== "only" && ipVersion === "any" && !reuseConnection;
}

/** {@linkcode Fetch} by the runtime's `fetch`. */
export async function fetchByRuntime(
  url: string,
  { method = "GET", headers, body = null, client, signal }: FetchOptions,
): Promise<Answer> {
  // What it takes for granted is left out, since it looks long at each property.
  const init = { headers, client, signal, redirect: "manual" } as const;
  const response = await fetch(url, method === "GET" && body === null ? init : { ...init, method, body });
  return new RuntimeAnswer(response);
}

class RuntimeAnswer implements Answer {
  readonly #response: Response;

  constructor(response: Response) {
    this.#response = response;
  }

  get status(): number {
    return this.#response.status;
  }

  get statusText(): string {
    return this.#response.statusText;
  }

  get headers(): Headers {
    return this.#response.headers;
  }

  bytes(): Promise<Uint8Array<ArrayBuffer>> {
    return this.#response.bytes();
  }

  async *pieces(): AsyncGenerator<Uint8Array<ArrayBuffer>, void> {
    // One buffer for all reads: one for each, as `for await` takes, costs nearly as much as the rest of a check.
    const reader = this.#response.body?.getReader({ mode: "byob" });
    if (reader === undefined) return;
    try {
      for (let buffer = new Uint8Array(READ_BYTES);;) {
        const { done, value: piece } = await reader.read(buffer);
        if (done) return;
        yield piece;
        buffer = new Uint8Array(piece.buffer);
      }
    } finally {
      await reader.cancel();
    }
  }

  async cancel(): Promise<void> {
    await this.#response.body?.cancel();
  }
}
