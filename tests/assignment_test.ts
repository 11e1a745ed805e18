import assert from "node:assert/strict";
import { assignPartitions, type Member } from "../lib/assignment.ts";

type Partitions = ReadonlyMap<string, readonly number[]>;

/** Members that each partition went to, by `topic/partition`. */
function readers(members: readonly Member[], partitions: Partitions): Map<string, string[]> {
  const readers = new Map<string, string[]>();
  for (const { id, assignment } of assignPartitions(members, partitions)) {
    for (const [topic, numbers] of Object.entries(assignment)) {
      for (const number of numbers) {
        const place = `${topic}/${number}`;
        readers.set(place, [...readers.get(place) ?? [], id]);
      }
    }
  }
  return readers;
}

function counts(members: readonly Member[], partitions: Partitions): number[] {
  return assignPartitions(members, partitions).map(({ assignment }) => Object.values(assignment).flat().length);
}

function topics(count: number, partitions: readonly number[] = [0]): Map<string, readonly number[]> {
  return new Map(Array.from({ length: count }, (_, i) => [`topic${i}`, partitions]));
}

Deno.test("assignPartitions() gives one member everything", () => {
  assert.deepEqual(assignPartitions([{ id: "a", topics: ["x", "y"] }], new Map([["x", [0, 1]], ["y", [0]]])), [
    { id: "a", assignment: { x: [0, 1], y: [0] } },
  ]);
});

Deno.test("assignPartitions() gives nothing to nobody", () => {
  assert.deepEqual(assignPartitions([], new Map([["x", [0]]])), []);
});

Deno.test("assignPartitions() gives members without topics, and topics without members, nothing", () => {
  const members = [{ id: "a", topics: [] }, { id: "b", topics: ["x", "gone"] }];
  assert.deepEqual(assignPartitions(members, new Map([["x", [0]], ["y", [0]], ["empty", []]])), [
    { id: "a", assignment: {} },
    { id: "b", assignment: { x: [0] } },
  ]);
});

Deno.test("assignPartitions() spreads partitions evenly among members with the same topics", () => {
  const partitions = topics(10, [0, 1, 2]);
  const members = ["a", "b", "c", "d"].map((id) => ({ id, topics: [...partitions.keys()] }));
  assert.deepEqual(counts(members, partitions).sort(), [7, 7, 8, 8]);
});

Deno.test("assignPartitions() makes up for topics that one member alone knows", () => {
  const partitions = topics(6);
  const members = [
    { id: "a", topics: [...partitions.keys()] },
    { id: "b", topics: ["topic0", "topic1", "topic2"] },
  ];
  assert.deepEqual(counts(members, partitions), [3, 3]);
  assert.deepEqual(readers(members, partitions).get("topic5/0"), ["a"]);
});

Deno.test("assignPartitions() does not depend on the order of members and topics", () => {
  const partitions = topics(7, [0, 1]);
  const members = ["a", "b", "c"].map((id) => ({ id, topics: [...partitions.keys()] }));
  assert.deepEqual(
    assignPartitions(members.toReversed(), new Map([...partitions].reverse())),
    assignPartitions(members, partitions),
  );
});

Deno.test("assignPartitions() takes topics that are named like properties of every object", () => {
  const names = ["constructor", "__proto__", "toString"];
  const members = [{ id: "a", topics: names }];
  assert.equal(readers(members, new Map(names.map((name) => [name, [0, 1]]))).size, 6);
});

Deno.test("assignPartitions() gives each partition to exactly one member that subscribed to it, whatever they know", () => {
  const seed = Date.now() % 2 ** 31;
  let state = seed;
  // The minimal standard generator of Park and Miller.
  const random = (below: number) => (state = state * 48_271 % 2_147_483_647) % below;
  for (let run = 0; run < 500; run++) {
    const partitions = new Map(
      Array.from({ length: random(12) }, (_, i) => [`topic${i}`, Array.from({ length: random(5) }, (_, n) => n)]),
    );
    const members = Array.from({ length: random(6) }, (_, i) => ({
      id: `member${i}`,
      topics: [...partitions.keys(), "gone"].filter(() => random(3) > 0),
    }));
    const subscribers = (topic: string) => members.filter(({ topics }) => topics.includes(topic)).map(({ id }) => id);
    const found = readers(members, partitions);
    const context = `seed ${seed}, run ${run}`;
    for (const [topic, numbers] of partitions) {
      for (const number of numbers) {
        const ids = found.get(`${topic}/${number}`) ?? [];
        assert.equal(ids.length, Math.min(1, subscribers(topic).length), context);
        assert.ok(ids.every((id) => subscribers(topic).includes(id)), context);
        found.delete(`${topic}/${number}`);
      }
    }
    assert.deepEqual([...found.keys()], [], context);
  }
});

Deno.test("assignPartitions() leaves members what they have, but for what a new one must get", () => {
  const partitions = topics(9);
  const all = [...partitions.keys()];
  const [first, second] = assignPartitions([{ id: "b", topics: all }, { id: "c", topics: all }], partitions);
  const members = [
    { id: "a", topics: all },
    { id: "b", topics: all, owned: first!.assignment },
    { id: "c", topics: all, owned: second!.assignment },
  ];
  const after = assignPartitions(members, partitions);
  assert.deepEqual(counts(members, partitions), [3, 3, 3]);
  for (const [index, before] of [[1, first!], [2, second!]] as const) {
    for (const topic of Object.keys(after[index]!.assignment)) assert.ok(topic in before.assignment, topic);
  }
});

Deno.test("assignPartitions() gives a partition that two claim to one of them, and moves nothing without need", () => {
  const partitions = topics(4);
  const all = [...partitions.keys()];
  const owned = { topic0: [0], topic1: [0] };
  const members = [{ id: "a", topics: all, owned }, {
    id: "b",
    topics: all,
    owned: { ...owned, topic2: [0], topic3: [0] },
  }];
  assert.deepEqual(assignPartitions(members, partitions).map(({ assignment }) => Object.keys(assignment)), [
    ["topic0", "topic1"],
    ["topic2", "topic3"],
  ]);
});
