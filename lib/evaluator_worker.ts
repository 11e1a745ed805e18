/**
 * The worker of lib/evaluator.ts: answers questions, so that the thread that checks sites does not wait for it.
 *
 * @module
 */

import { type Answer, answerWithin, decodeText } from "./evaluation.ts";
import type { Task } from "./evaluator.ts";

const worker = self as unknown as {
  onmessage: (event: MessageEvent<Task>) => void;
  postMessage(answers: readonly (Answer | null)[] | "ready"): void;
};

worker.onmessage = async ({ data: { body, asked, budgetMs } }) => {
  const until = performance.now() + budgetMs;
  const decoded = body === null ? "" : decodeText(body);
  const answers: (Answer | null)[] = [];
  for (const { question, text } of asked) {
    answers.push(await answerWithin(question, { text: text ?? decoded, budgetMs: until - performance.now() }));
  }
  worker.postMessage(answers);
};
worker.postMessage("ready");
