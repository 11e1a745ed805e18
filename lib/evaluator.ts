import pLimit from "p-limit";
import type { Answer, EncodedText, Question } from "./evaluation.ts";

/** A question, and what it is asked of. */
export interface Asked {
  /** The question. */
  readonly question: Question;
  /** Text that it is asked of; null: the body. */
  readonly text: string | null;
}

/** Questions about one response. */
export interface Task {
  /** Its body; null where none is asked about. */
  readonly body: EncodedText | null;
  /** The questions. */
  readonly asked: readonly Asked[];
  /** Time that all of them may take, in ms. */
  readonly budgetMs: number;
}

/** Options of {@linkcode Evaluator.answer}. */
export interface AnswerOptions {
  /** Whose questions they are: one whose time ran out waits behind the others like it from then on. */
  readonly name: string;
  /** Ends the wait; it rejects with the reason then. */
  readonly signal?: AbortSignal | undefined;
}

/** Threads for those whose time has not run out; one more is for the others. More would take the CPU from the checks. */
const THREADS = Math.max(1, Math.min(4, navigator.hardwareConcurrency - 1));
/** A thread that is late by this much is given up for lost. */
const GRACE_MS = 1_000;

/**
 * Threads that ask what may take long: patterns that are not proven linear, and expressions. They are started when there
 * is something to ask, kept for the next questions, and ended with this.
 *
 * What runs in them is ended when its time is over by V8 itself (see lib/evaluation.ts): `Worker.terminate()` of Deno
 * 2.9.6 does not end a thread that computes, which would go on for minutes.
 */
export class Evaluator implements Disposable {
  readonly #quick = pLimit(THREADS);
  readonly #slow = pLimit(1);
  readonly #slowNames = new Set<string>();
  readonly #idle: Thread[] = [];
  readonly #threads = new Set<Thread>();

  /**
   * Asks all questions of a task. The time that they wait for a thread is not the site's and does not count.
   *
   * @returns The answers, `null` for those that did not come in time.
   */
  async answer(task: Task, { name, signal }: AnswerOptions): Promise<(Answer | null)[]> {
    const lane = this.#slowNames.has(name) ? this.#slow : this.#quick;
    const answers = await lane(() => this.#run(task, signal));
    if (answers.includes(null)) this.#slowNames.add(name);
    else this.#slowNames.delete(name);
    return answers;
  }

  /** Ends the threads. */
  [Symbol.dispose](): void {
    for (const thread of this.#threads) thread.end();
  }

  async #run(task: Task, signal: AbortSignal | undefined): Promise<(Answer | null)[]> {
    signal?.throwIfAborted();
    const thread = this.#idle.pop() ?? new Thread();
    this.#threads.add(thread);
    try {
      const answers = await thread.run(task, signal);
      this.#idle.push(thread);
      return answers;
    } catch (error) {
      this.#threads.delete(thread);
      thread.end();
      if (error instanceof LostError) return task.asked.map(() => null);
      throw error;
    }
  }
}

class LostError extends Error {}

type Reply = (Answer | null)[] | "ready";

class Thread {
  readonly #worker = new Worker(new URL("./evaluator_worker.ts", import.meta.url), { type: "module" });
  #next = Promise.withResolvers<Reply>();
  #ready: Promise<Reply> | undefined = this.#next.promise;

  constructor() {
    this.#worker.onmessage = ({ data }: MessageEvent<Reply>) => this.#next.resolve(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#next.reject(new Error(`Cannot evaluate expectations: ${event.message}`));
    };
  }

  async run(task: Task, signal: AbortSignal | undefined): Promise<(Answer | null)[]> {
    await this.#ready;
    this.#ready = undefined;
    signal?.throwIfAborted();
    this.#next = Promise.withResolvers();
    const { promise, reject } = this.#next;
    const timer = setTimeout(() => reject(new LostError()), task.budgetMs + GRACE_MS);
    const abort = () => reject(signal?.reason);
    signal?.addEventListener("abort", abort);
    this.#worker.postMessage(task);
    try {
      return await promise as (Answer | null)[];
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
    }
  }

  end(): void {
    this.#worker.terminate();
  }
}
