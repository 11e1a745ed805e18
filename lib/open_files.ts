import { errorCode, errorMessage } from "./error.ts";

/**
 * How many files and connections this process can open beside those that it has, found by opening them: Deno tells the
 * limit of the system to programs with all permissions alone.
 *
 * @param wanted Where there is room for this many, no more are opened.
 * @returns `wanted`, or the number where the limit is lower; null where it can't be told.
 */
export function countOpenable(wanted: number): number | null {
  if (Deno.build.os === "windows") return null;
  const files: Deno.FsFile[] = [];
  try {
    while (files.length < wanted) files.push(Deno.openSync("/dev/null"));
    return wanted;
  } catch (error) {
    return isOutOfFiles(error) ? files.length : null;
  } finally {
    for (const file of files) file.close();
  }
}

/** Whether a failure came of the limit on open files. */
export function isOutOfFiles(error: unknown): boolean {
  return ["EMFILE", "ENFILE"].includes(errorCode(error) ?? "") || /Too many open files/i.test(errorMessage(error));
}
