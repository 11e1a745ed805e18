import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import type { Answer, Question } from "../lib/evaluation.ts";
import { Evaluator } from "../lib/evaluator.ts";

/** Takes time that doubles with each `ab`: years for fifty of them. V8's linear engine does not take it. */
const ENDLESS: Question = { pattern: /^(?:a|b|ab)+(?=c)$/i };
const ENDLESS_TEXT = "ab".repeat(50);

function encode(text: string) {
  const bytes = new TextEncoder().encode(text);
  return { kept: [bytes.slice(0, 3), bytes.slice(3)], contentType: null };
}

async function ask(question: Question, text: string, budgetMs = 5_000): Promise<Answer | null> {
  using evaluator = new Evaluator();
  const task = { body: encode(text), asked: [{ question, text: null }], budgetMs };
  return (await evaluator.answer(task, { name: "site" }))[0]!;
}

Deno.test.each<{ expression: string; text: string; answer: Answer }>([
  { expression: 'status = "up"', text: '{"status":"up"}', answer: { holds: true, found: true } },
  { expression: 'status = "up"', text: '{"status":"no"}', answer: { holds: false, found: false } },
  { expression: "status", text: '{"status":"é"}', answer: { holds: false, found: "é" } },
  { expression: "items[0]", text: '{"items":[{"x":1}]}', answer: { holds: false, found: { x: 1 } } },
  {
    expression: "$sum(items.price) > 3",
    text: '{"items":[{"price":2},{"price":2}]}',
    answer: { holds: true, found: true },
  },
  { expression: "missing", text: "{}", answer: { holds: false, found: null } },
  { expression: "$contains(a, /^b+$/)", text: '{"a":"bbb"}', answer: { holds: true, found: true } },
  { expression: "a", text: '{"a":"x\\u0000\\ud800"}', answer: { holds: false, found: '"x\\u0000\\ud800"' } },
  { expression: "a", text: `{"a":"${"x".repeat(600)}"}`, answer: { holds: false, found: `"${"x".repeat(499)}…` } },
  { expression: "a", text: "<html>", answer: { holds: false, found: null, problem: "the body is not JSON" } },
  {
    expression: "$number(a)",
    text: '{"a":"x"}',
    answer: { holds: false, found: null, problem: 'Unable to cast value to a number: "x"' },
  },
])("Evaluator asks $expression of $text", async ({ expression, text, answer }) => {
  assert.deepEqual(await ask({ expression }, text), answer);
});

Deno.test("Evaluator asks patterns of the body and of other texts", async () => {
  using evaluator = new Evaluator();
  const asked = [
    { question: { pattern: /W(?=orks)/i }, text: null },
    { question: { pattern: /sleeps/i }, text: null },
    { question: { pattern: /^text\/\w+/i }, text: "text/html" },
  ];
  assert.deepEqual(await evaluator.answer({ body: encode("It works"), asked, budgetMs: 5_000 }, { name: "site" }), [
    { holds: true, found: "w" },
    { holds: false, found: null },
    { holds: true, found: "text/html" },
  ]);
});

Deno.test.each<{ what: string; question: Question; text: string }>([
  { what: "a pattern that takes years", question: ENDLESS, text: ENDLESS_TEXT },
  {
    what: "a pattern within an expression",
    question: { expression: "$contains(a, /^(?:a|b|ab)+(?=c)$/i)" },
    text: JSON.stringify({ a: ENDLESS_TEXT }),
  },
  {
    what: "an expression that calls itself for ever",
    question: { expression: "($f := function($x) { $f($x + 1) }; $f(1))" },
    text: "1",
  },
  { what: "an expression over a great many", question: { expression: "$sum([1..9000000].($ * 2)) = 1" }, text: "1" },
])("Evaluator has no answer to $what, and goes on", async ({ question, text }) => {
  using evaluator = new Evaluator();
  const asked = [
    { question: { pattern: /a/ }, text: "a" },
    { question, text: null },
    { question: { pattern: /a/ }, text: "a" },
  ];
  const answers = await evaluator.answer({ body: encode(text), asked, budgetMs: 200 }, { name: "slow" });
  assert.deepEqual(answers, [{ holds: true, found: "a" }, null, null]);
  const task = { body: encode("abc"), asked: [{ question: { pattern: /c/i }, text: null }], budgetMs: 5_000 };
  assert.deepEqual(await evaluator.answer(task, { name: "quick" }), [{ holds: true, found: "c" }]);
  assert.deepEqual(await evaluator.answer(task, { name: "slow" }), [{ holds: true, found: "c" }]);
});

const endless = (budgetMs: number) => ({
  body: encode(ENDLESS_TEXT),
  asked: [{ question: ENDLESS, text: null }],
  budgetMs,
});
const QUICK = { body: encode("abc"), asked: [{ question: { pattern: /c/i }, text: null }], budgetMs: 5_000 };
const FOUND = [{ holds: true, found: "c" }];

Deno.test("Evaluator answers others while many wait whose time ran out before", async () => {
  using evaluator = new Evaluator();
  const names = Array.from({ length: 8 }, (_, i) => `slow-${i}`);
  await Promise.all(names.map((name) => evaluator.answer(endless(100), { name })));
  const controller = new AbortController();
  const { signal } = controller;
  const slow = names.map((name) => evaluator.answer(endless(3_000), { name, signal }));
  assert.deepEqual(await evaluator.answer(QUICK, { name: "quick" }), FOUND);
  controller.abort();
  assert.ok((await Promise.allSettled(slow)).every(({ status }) => status === "rejected"), "none is waited for");
});

Deno.test("Evaluator answers others while many that nobody knows never end: once they held up all for their whole time", async () => {
  using evaluator = new Evaluator();
  let ended = 0;
  const slow = Array.from(
    { length: 10 },
    (_, i) => evaluator.answer(endless(5_000), { name: `slow-${i}` }).finally(() => ended++),
  );
  const quick = Array.from({ length: 10 }, (_, i) => evaluator.answer(QUICK, { name: `quick-${i}` }));
  assert.deepEqual(await Promise.all(quick), quick.map(() => FOUND));
  assert.equal(ended, 0, "none of them is waited for");
  assert.deepEqual(await Promise.all(slow), slow.map(() => [null]));
});

Deno.test("Evaluator asks a name whose time ran out of another text, though others like it never end", async () => {
  using evaluator = new Evaluator();
  const names = Array.from({ length: 8 }, (_, i) => `slow-${i}`);
  await Promise.all(names.map((name) => evaluator.answer(endless(100), { name })));
  const controller = new AbortController();
  const { signal } = controller;
  const [recovered = "", ...others] = names;
  const slow = others.map((name) => evaluator.answer(endless(3_000), { name, signal }));
  assert.deepEqual(await evaluator.answer(QUICK, { name: recovered }), FOUND);
  controller.abort();
  assert.ok((await Promise.allSettled(slow)).every(({ status }) => status === "rejected"), "none is waited for");
});

Deno.test("Evaluator has the answer to what takes more than a moment, again and again", async () => {
  using evaluator = new Evaluator();
  const question = { expression: "$sum([1..200000].($ * 2)) = 40000200000" };
  const asked = [{ question, text: null }, { question: { pattern: /1/ }, text: null }];
  for (let i = 0; i < 2; i++) {
    const answers = await evaluator.answer({ body: encode("1"), asked, budgetMs: 30_000 }, { name: "site" });
    assert.deepEqual(answers, [{ holds: true, found: true }, { holds: true, found: "1" }]);
  }
});

Deno.test("Evaluator rejects with the reason of the signal while a question waits", async () => {
  using evaluator = new Evaluator();
  const controller = new AbortController();
  const { signal } = controller;
  const slow = Array.from({ length: 8 }, (_, i) => evaluator.answer(endless(3_000), { name: `slow-${i}`, signal }));
  await evaluator.answer(QUICK, { name: "quick" });
  const reason = new Error("ended");
  controller.abort(reason);
  for (const answering of slow) await assert.rejects(answering, reason);
  await assert.rejects(evaluator.answer(QUICK, { name: "quick", signal }), reason);
});

Deno.test("Evaluator rejects with the reason of the signal that ends it", async () => {
  using evaluator = new Evaluator();
  const controller = new AbortController();
  const reason = new Error("ended");
  const task = { body: encode(ENDLESS_TEXT), asked: [{ question: ENDLESS, text: null }], budgetMs: 1_000 };
  const answering = evaluator.answer(task, { name: "site", signal: controller.signal });
  await delay(50);
  controller.abort(reason);
  await assert.rejects(answering, reason);
});
