/** A member of a consumer group. */
export interface Member {
  /** Name that the group has for it. */
  readonly id: string;
  /** Topics that it subscribed to. */
  readonly topics: readonly string[];
  /** Partitions by topic that it has read so far, and keeps where that is fair. Default: none. */
  readonly owned?: Readonly<Record<string, readonly number[]>>;
}

/** What a member is to read. */
export interface Assignment {
  /** Member. */
  readonly id: string;
  /** Partitions by topic. */
  readonly assignment: Record<string, number[]>;
}

/**
 * Gives each partition to one of the members that subscribed to its topic: the one that has read it so far, as long as
 * that one has no more than its share, else the one with the fewest. Members may know different topics for a while, as
 * when one saw a new topic first.
 *
 * @param members Members, in any order: the result does not depend on it.
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
  const loads = [...members].sort((a, b) => a.id < b.id ? -1 : 1).map(({ id, topics, owned }) => ({
    id,
    topics: new Set(topics),
    owned: new Set(Object.entries(owned ?? {}).flatMap(([topic, numbers]) => numbers.map((n) => `${topic}:${n}`))),
    count: 0,
    assignment: new Map<string, number[]>(),
  }));
  type Load = typeof loads[number];
  function give(load: Load, topic: string, partition: number): void {
    const assigned = load.assignment.get(topic);
    if (assigned === undefined) load.assignment.set(topic, [partition]);
    else assigned.push(partition);
    load.count++;
  }

  const subscribers = new Map(
    [...partitions.keys()].map((topic) => [topic, loads.filter(({ topics }) => topics.has(topic))]),
  );
  // Topics that few members know come first, since others can still make up for them.
  const topics = [...partitions.keys()].sort((a, b) =>
    subscribers.get(a)!.length - subscribers.get(b)!.length || (a < b ? -1 : 1)
  );
  let free = topics.flatMap((topic) => (partitions.get(topic) ?? []).map((partition) => ({ topic, partition })));
  const share = Math.floor(free.length / loads.length);
  // Members that may keep one more than the share, where it does not come out even.
  let extra = free.length % loads.length;
  free = free.filter(({ topic, partition }) => {
    const owner = subscribers.get(topic)!.find(({ owned }) => owned.has(`${topic}:${partition}`));
    if (owner === undefined || owner.count > share || owner.count === share && extra === 0) return true;
    if (owner.count === share) extra--;
    give(owner, topic, partition);
    return false;
  });
  for (const { topic, partition } of free) {
    const least = subscribers.get(topic)!.reduce<Load | undefined>(
      (least, load) => least === undefined || load.count < least.count ? load : least,
      undefined,
    );
    if (least !== undefined) give(least, topic, partition);
  }
  return loads.map(({ id, assignment }) => ({ id, assignment: Object.fromEntries(assignment) }));
}
