import { cpus, totalmem } from "node:os";
import { print } from "../lib/log.ts";

/**
 * Prints what the figures of the benches are of: `deno task bench` begins with it.
 *
 * @module
 */

const processors = cpus();
const memory = Math.round(totalmem() / 1024 ** 3);
print(`${processors.length} × ${processors[0]?.model.trim()}, ${memory} GB, Deno ${Deno.version.deno}`);
