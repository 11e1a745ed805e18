import { print } from "../lib/log.ts";

/**
 * The least that a check can be: `fetch_loop.ts URL AT_ONCE SECONDS` fetches on new connections as fast as it can, and
 * prints how often it did.
 *
 * @module
 */

const [url = "", atOnce, seconds] = Deno.args;
const client = Deno.createHttpClient({ poolMaxIdlePerHost: 0 });
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
