import assert from "node:assert/strict";
import { LookUps } from "../lib/lookup.ts";

const signal = new AbortController().signal;

/** A resolver that answers when it is told to. */
function heldResolver() {
  const asked: string[] = [];
  const answers = new Map<string, () => void>();
  return {
    asked,
    answer: (host: string) => answers.get(host)?.(),
    resolve(host: string): Promise<{ address: string }[]> {
      asked.push(host);
      return new Promise((resolve) => answers.set(host, () => resolve([{ address: "192.0.2.1" }])));
    },
  };
}

/** Lets everything happen that waits for nothing. */
function settle(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve));
}

Deno.test("LookUps takes an address for its own, and asks nobody", async () => {
  const lookUps = new LookUps({ resolve: () => assert.fail("a look-up") });
  for (const address of ["192.0.2.1", "2001:db8::1"]) {
    assert.deepEqual(await lookUps.addresses(address, { signal, placeMs: 1_000 }), [address]);
  }
});

Deno.test("LookUps gives each address once, in their order", async () => {
  const addresses = ["192.0.2.2", "192.0.2.1", "192.0.2.2"];
  const lookUps = new LookUps({ resolve: () => Promise.resolve(addresses.map((address) => ({ address }))) });
  assert.deepEqual(await lookUps.addresses("x.example", { signal, placeMs: 1_000 }), ["192.0.2.2", "192.0.2.1"]);
});

Deno.test("LookUps looks up so many names at a time and no more", async () => {
  const resolver = heldResolver();
  const lookUps = new LookUps({ atOnce: 2, resolve: resolver.resolve });
  const names = ["a", "b", "c"];
  const started: string[] = [];
  const all = names.map((name) =>
    lookUps.addresses(name, { signal, placeMs: 60_000, onStart: () => void started.push(name) })
  );
  await settle();
  assert.deepEqual([resolver.asked, started], [["a", "b"], ["a", "b"]]);
  resolver.answer("a");
  await all[0];
  await settle();
  assert.deepEqual([resolver.asked, started], [names, names]);
  resolver.answer("b");
  resolver.answer("c");
  await Promise.all(all);
});

Deno.test("LookUps keeps the place of a look-up that nobody waits for any more: its thread is busy", async () => {
  const resolver = heldResolver();
  const lookUps = new LookUps({ atOnce: 1, resolve: resolver.resolve });
  const controller = new AbortController();
  const reason = new Error("ended");
  const hanging = lookUps.addresses("a", { signal: controller.signal, placeMs: 60_000 });
  await settle();
  controller.abort(reason);
  await assert.rejects(hanging, reason);
  assert.equal(await lookUps.addresses("b", { signal, placeMs: 5 }), null);
  resolver.answer("a");
  await settle();
  const after = lookUps.addresses("c", { signal, placeMs: 60_000 });
  await settle();
  resolver.answer("c");
  assert.deepEqual(await after, ["192.0.2.1"]);
  assert.deepEqual(resolver.asked, ["a", "c"], "what was given up before it began is never asked");
});

Deno.test("LookUps lets names that were slow wait for each other, and no others for them", async () => {
  const resolver = heldResolver();
  const lookUps = new LookUps({ atOnce: 2, slowAtOnce: 1, slowMs: 0, resolve: resolver.resolve });
  const ask = (name: string) => lookUps.addresses(name, { signal, placeMs: 60_000 });
  const names = ["slow-1", "slow-2"];
  const first = names.map(ask);
  await settle();
  for (const name of names) resolver.answer(name);
  await Promise.all(first);
  await settle();
  resolver.asked.length = 0;
  const again = [...names, "other"].map(ask);
  await settle();
  assert.deepEqual(resolver.asked, ["slow-1", "other"]);
  for (const name of ["other", "slow-1"]) resolver.answer(name);
  await settle();
  assert.deepEqual(resolver.asked, ["slow-1", "other", "slow-2"]);
  resolver.answer("slow-2");
  await Promise.all(again);
});

Deno.test("LookUps rejects with the failure of the look-up, and gives its place away", async () => {
  const error = new Error("getaddrinfo ENOTFOUND x.example");
  const lookUps = new LookUps({ atOnce: 1, resolve: () => Promise.reject(error) });
  for (let i = 0; i < 3; i++) await assert.rejects(lookUps.addresses("x", { signal, placeMs: 60_000 }), error);
});
