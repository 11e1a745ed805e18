import assert from "node:assert/strict";
import { Slots } from "../lib/slots.ts";

/** Work that goes on until it is told to end, and counts what is under way. */
class Works {
  readonly running: string[] = [];
  readonly #ends = new Map<string, () => void>();

  readonly begin = (name: string) => async (): Promise<string> => {
    this.running.push(name);
    await new Promise<void>((resolve) => this.#ends.set(name, resolve));
    this.running.splice(this.running.indexOf(name), 1);
    return name;
  };

  async end(name: string): Promise<void> {
    this.#ends.get(name)!();
    await settle();
  }
}

async function settle(): Promise<void> {
  for (let i = 0; i < 50; i++) await Promise.resolve();
}

Deno.test("Slots.run() has no more under way than it may, in all and with one host, in the order of the calls", async () => {
  const slots = new Slots({ max: 3, maxPerHost: 2 });
  const works = new Works();
  const runs = ["a1", "a2", "a3", "b1", "c1"].map((name) => slots.run(name[0]!, works.begin(name)));
  await settle();
  assert.deepEqual(works.running, ["a1", "a2", "b1"], "what waits for its host takes no room");
  await works.end("b1");
  assert.deepEqual(works.running, ["a1", "a2", "c1"]);
  await works.end("a1");
  assert.deepEqual(works.running, ["a2", "c1", "a3"]);
  for (const name of ["a2", "a3", "c1"]) await works.end(name);
  assert.deepEqual(await Promise.all(runs), ["a1", "a2", "a3", "b1", "c1"]);
});

Deno.test("Slots.run() keeps count of a host while one of its checks ends and another begins", async () => {
  const slots = new Slots({ max: 9, maxPerHost: 2 });
  const works = new Works();
  const runs = ["1", "2"].map((name) => slots.run("a", works.begin(name)));
  await settle();
  await works.end("1");
  runs.push(...["3", "4"].map((name) => slots.run("a", works.begin(name))));
  await settle();
  assert.deepEqual(works.running, ["2", "3"]);
  for (const name of ["2", "3", "4"]) await works.end(name);
  await Promise.all(runs);
});

Deno.test("Slots.run() frees the slot of what rejects", async () => {
  const slots = new Slots({ max: 1, maxPerHost: 1 });
  await assert.rejects(slots.run("a", () => Promise.reject(new Error("no"))), /^Error: no$/);
  assert.equal(await slots.run("b", () => Promise.resolve("yes")), "yes");
});

Deno.test("Slots.resize() lets what waits begin where there is more room, and waits where there is less", async () => {
  const slots = new Slots({ max: 1, maxPerHost: 1 });
  const works = new Works();
  const runs = ["1", "2", "3", "4"].map((name) => slots.run("a", works.begin(name)));
  await settle();
  slots.resize({ max: 2, maxPerHost: 2 });
  await settle();
  assert.deepEqual(works.running, ["1", "2"]);
  slots.resize({ max: 1, maxPerHost: 1 });
  await works.end("1");
  assert.deepEqual(works.running, ["2"]);
  for (const name of ["2", "3", "4"]) await works.end(name);
  await Promise.all(runs);
});

Deno.test("Slots.run() begins at once where there is room", async () => {
  const slots = new Slots({ max: 1, maxPerHost: 1 });
  const works = new Works();
  const run = slots.run("a", works.begin("1"));
  assert.deepEqual(works.running, ["1"]);
  await works.end("1");
  assert.equal(await run, "1");
});

Deno.test("Slots.run() begins what waits in the order of the calls, each host's and that of all hosts", async () => {
  const slots = new Slots({ max: 2, maxPerHost: 1 });
  const works = new Works();
  const names = ["a1", "b1", "a2", "c1", "b2", "d1", "a3"];
  const runs = names.map((name) => slots.run(name[0]!, works.begin(name)));
  const begun: string[] = [];
  while (begun.length < names.length) {
    await settle();
    assert.equal(works.running.length, Math.min(2, names.length - begun.length));
    assert.equal(new Set(works.running.map((name) => name[0])).size, works.running.length, `${works.running}`);
    begun.push(works.running[0]!);
    await works.end(works.running[0]!);
  }
  await Promise.all(runs);
  assert.deepEqual(begun, ["a1", "b1", "c1", "d1", "a2", "b2", "a3"]);
});

Deno.test("Slots.run() gives the place of what rejects to what waits for it", async () => {
  const slots = new Slots({ max: 2, maxPerHost: 1 });
  const fails = ["a", "b"].map((host) => assert.rejects(slots.run(host, () => Promise.reject(new Error("no")))));
  const throws = assert.rejects(slots.run("a", () => {
    throw new Error("no promise");
  }));
  const runs = ["a", "b", "c"].map((host) => slots.run(host, () => Promise.resolve(host)));
  assert.deepEqual(await Promise.all(runs), ["a", "b", "c"]);
  await Promise.all([...fails, throws]);
});

Deno.test("Slots.run() never has more under way than it may, and remembers no host with nothing to do", async () => {
  const slots = new Slots({ max: 7, maxPerHost: 2 });
  const perHost = new Map<string, number>();
  let running = 0;
  let most = 0;
  const work = (host: string, turns: number) => async () => {
    most = Math.max(most, ++running);
    perHost.set(host, (perHost.get(host) ?? 0) + 1);
    assert.ok(running <= 7 && perHost.get(host)! <= 2);
    for (let i = 0; i < turns; i++) await Promise.resolve();
    running--;
    perHost.set(host, perHost.get(host)! - 1);
    if (turns === 3) throw new Error("no");
  };
  const runs = Array.from({ length: 1_000 }, (_, i) => slots.run(`host-${i % 31}`, work(`host-${i % 31}`, i % 17)));
  assert.equal(slots.hosts, 31);
  const rejected = (await Promise.allSettled(runs)).filter(({ status }) => status === "rejected");
  assert.equal(rejected.length, runs.filter((_, i) => i % 17 === 3).length);
  assert.equal(most, 7);
  assert.equal(slots.hosts, 0);
});

Deno.test("Slots.resize() lets a host have more where all have room, and all where the host has", async () => {
  const slots = new Slots({ max: 3, maxPerHost: 1 });
  const works = new Works();
  const names = ["a1", "a2", "a3", "b1", "c1", "d1", "e1"];
  const runs = names.map((name) => slots.run(name[0]!, works.begin(name)));
  assert.deepEqual(works.running, ["a1", "b1", "c1"]);
  slots.resize({ max: 4, maxPerHost: 1 });
  await settle();
  assert.deepEqual(works.running, ["a1", "b1", "c1", "d1"]);
  slots.resize({ max: 6, maxPerHost: 2 });
  await settle();
  assert.deepEqual(works.running.toSorted(), ["a1", "a2", "b1", "c1", "d1", "e1"]);
  slots.resize({ max: 9, maxPerHost: 9 });
  await settle();
  assert.deepEqual(works.running.toSorted(), ["a1", "a2", "a3", "b1", "c1", "d1", "e1"]);
  for (const name of names) await works.end(name);
  await Promise.all(runs);
});
