import { print } from "../lib/log.ts";

/**
 * The least that a check can be: `fetch_loop.ts URL AT_ONCE SECONDS AUTHORITY` fetches on new connections as fast as it can, and
 * prints how often it did; the certificate of an https site comes from the file AUTHORITY.
 *
 * @module
 */

const [url = "", atOnce, seconds, authority = ""] = Deno.args;
const caCerts = [await Deno.readTextFile(authority)];
const client = Deno.createHttpClient({ poolMaxIdlePerHost: 0, caCerts });
const end = performance.now() + Number(seconds) * 1000;
let count = 0;

async function loop(): Promise<void> {
  while (performance.now() < end) {
    const response = await fetch(url, { client });
    await response.text();
    count++;
  }
}

await Promise.all(Array.from({ length: Number(atOnce) }, loop));
client.close();
print(String(count));
