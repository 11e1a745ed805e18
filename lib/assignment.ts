/** A member of a consumer group. */
export interface Member {
  /** Name that the group has for it. */
  readonly id: string;
  /** Topics that it subscribed to. */
  readonly topics: readonly string[];
}

/** What a member is to read. */
export interface Assignment {
  /** Member. */
  readonly id: string;
  /** Partitions by topic. */
  readonly assignment: Record<string, number[]>;
}

/**
 * Gives each partition to one of the members that subscribed to its topic, the one with the fewest so far. Members may
 * know different topics for a while, as when one saw a new topic first.
 *
 * @param members Members, in any order: the result depends on the ids alone.
 * @param partitions Partitions by topic.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const members = [{ id: "a", topics: ["x", "y"] }, { id: "b", topics: ["x"] }];
 * assert.deepEqual(assignPartitions(members, new Map([["x", [0]], ["y", [0]]])), [
 *   { id: "a", assignment: { y: [0] } },
 *   { id: "b", assignment: { x: [0] } },
 * ]);
 * ```
 */
export function assignPartitions(
  members: readonly Member[],
  partitions: ReadonlyMap<string, readonly number[]>,
): Assignment[] {
  const loads = [...members].sort((a, b) => a.id < b.id ? -1 : 1).map(({ id, topics }) => ({
    id,
    topics: new Set(topics),
    count: 0,
    assignment: new Map<string, number[]>(),
  }));
  const subscribers = (topic: string) => loads.filter(({ topics }) => topics.has(topic));
  // Topics that few members know come first, since others can still make up for them.
  const order = [...partitions.keys()].sort((a, b) =>
    subscribers(a).length - subscribers(b).length || (a < b ? -1 : 1)
  );
  for (const topic of order) {
    const candidates = subscribers(topic);
    for (const partition of partitions.get(topic) ?? []) {
      const least = candidates.reduce<typeof candidates[number] | undefined>(
        (least, load) => least === undefined || load.count < least.count ? load : least,
        undefined,
      );
      if (least === undefined) break;
      const assigned = least.assignment.get(topic);
      if (assigned === undefined) least.assignment.set(topic, [partition]);
      else assigned.push(partition);
      least.count++;
    }
  }
  return loads.map(({ id, assignment }) => ({ id, assignment: Object.fromEntries(assignment) }));
}
