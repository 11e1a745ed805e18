import { closest, distance } from "fastest-levenshtein";

/**
 * The known name that was probably meant by one that is not known; undefined where all are far from it.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * assert.equal(nearest("intreval", ["url", "interval"]), "interval");
 * assert.equal(nearest("colour", ["url", "interval"]), undefined);
 * ```
 */
export function nearest(name: string, known: readonly string[]): string | undefined {
  const candidate = closest(name.toLowerCase(), [...known]);
  const length = Math.max(name.length, candidate.length);
  return distance(name.toLowerCase(), candidate) <= length / 2 ? candidate : undefined;
}
