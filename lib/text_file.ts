import { ConfigError, errorMessage } from "./error.ts";

/**
 * Reads a file that the operator named.
 *
 * @param label What it is, for errors: "configuration file".
 * @throws {ConfigError} when there is none, or it may not be read.
 */
export async function readNamedFile(path: string, label: string): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return await Deno.readFile(path);
  } catch (error) {
    throw new ConfigError(`Cannot read ${label} '${path}': ${describeFault(error, path)}`);
  }
}

/**
 * Reads a text that the operator named.
 *
 * @param label What it is, for errors: "configuration file".
 * @throws {ConfigError} when there is none, it may not be read, or it is not UTF-8.
 */
export async function readTextFile(path: string, label: string): Promise<string> {
  const bytes = await readNamedFile(path, label);
  let text: string | undefined;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    // Told below, together with text that no one means to have NULs.
  }
  if (text === undefined || text.includes("\0")) {
    throw new ConfigError(`Cannot read ${label} '${path}': expected text in UTF-8, got binary data`);
  }
  return text;
}

/** Whether there is something at a path, readable or not. */
export async function pathExists(path: string): Promise<boolean> {
  try {
    await Deno.lstat(path);
    return true;
  } catch (error) {
    return !(error instanceof Deno.errors.NotFound);
  }
}

function describeFault(error: unknown, path: string): string {
  if (path === "") return "expected the path of a file, got an empty one";
  if (error instanceof Deno.errors.NotFound) return "there is no such file";
  if (error instanceof Deno.errors.IsADirectory) return "expected a file, got a directory";
  if (error instanceof Deno.errors.PermissionDenied) return "this user may not read it";
  if (error instanceof Deno.errors.NotCapable) return "the program was started without --allow-read for it";
  return errorMessage(error);
}
