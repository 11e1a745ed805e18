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
