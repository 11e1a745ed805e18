import { delimiter, resolve } from "node:path";

/** Root folder of the project. */
export const REPOSITORY: string = resolve(import.meta.dirname!, "..");

/** Path of a program, looked for in PATH; undefined where it is not installed. */
export async function findProgram(name: string): Promise<string | undefined> {
  for (const folder of (Deno.env.get("PATH") ?? "").split(delimiter)) {
    const path = `${folder}/${name}`;
    if (folder !== "" && await Deno.stat(path).then(({ isFile }) => isFile, () => false)) return path;
  }
  return undefined;
}

/** What to do where the local broker or database can't be started. */
export function waysOut(): string {
  return `Ways out:
  - install Java 17 or newer and Maven (such as by apt-get install default-jdk-headless maven), and try again
  - use a broker and a database that you have: KAFKA_BOOTSTRAP_SERVERS=host:port, and POSTGRES_HOST, POSTGRES_PORT,
    POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DATABASE in the environment
  - run everything in containers: deno task compose:up`;
}
