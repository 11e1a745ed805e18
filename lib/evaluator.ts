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
  /** Whose questions they are: one that takes long waits for others like it from then on. */
  readonly name: string;
  /** Ends the wait; it rejects with the reason then. */
  readonly signal?: AbortSignal | undefined;
}

/** Processors that may be busy with answers; more would take them from the checks. */
const PROCESSORS = Math.max(1, Math.min(4, navigator.hardwareConcurrency - 1));
/**
 * Turns that a task gets, one after the other until it is answered: how long each may be, in ms, and how many turns of
 * its kind there are at a time, each in a thread.
 *
 * What runs can't be halted and go on later, so each turn begins anew. Nearly all is answered in a first one, which is so
 * short that a hundred that are never answered hold up no others. Those take the last kind alone from then on.
 */
const TURNS = [
  { longestMs: 50, atOnce: PROCESSORS },
  { longestMs: 1_000, atOnce: PROCESSORS },
  { longestMs: Infinity, atOnce: 1 },
] as const;
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
  readonly #turns = TURNS.map(({ atOnce }) => pLimit(atOnce));
  /** One at a time of those that a first turn was not enough for: they take no more than every second one. */
  readonly #slow = pLimit(1);
  /** Turn in which each name ended last, where that was not the first. */
  readonly #lastTurns = new Map<string, number>();
  readonly #idle: Thread[] = [];
  readonly #threads = new Set<Thread>();

  /**
   * Asks all questions of a task. The time that it waits for its first turn is not the site's and does not count, unless
   * a first turn was not enough the last time.
   *
   * @returns The answers, `null` for those that did not come in time.
   */
  async answer({ body, asked, budgetMs }: Task, { name, signal }: AnswerOptions): Promise<(Answer | null)[]> {
    signal?.throwIfAborted();
    const lastTurn = this.#lastTurns.get(name) ?? 0;
    const answers = asked.map((): Answer | null => null);
    let until = lastTurn === 0 ? Infinity : performance.now() + budgetMs;
    // Every text gets a first turn, since it may be another one than before; those that were in vain are left out.
    for (let turn = 0; turn < TURNS.length; turn = Math.max(turn + 1, lastTurn)) {
      const open = answers.flatMap((answer, i) => answer === null ? [i] : []);
      const found = await inTurn(this.#limitOf(turn, lastTurn), async () => {
        const thread = await this.#takeThread();
        until = Math.min(until, performance.now() + budgetMs);
        const task = {
          body,
          asked: open.map((i) => asked[i]!),
          budgetMs: Math.min(TURNS[turn]!.longestMs, until - performance.now()),
        };
        return await this.#run(thread, task, signal);
      }, { until, signal });
      for (const [i, answer] of found?.entries() ?? []) answers[open[i]!] = answer;
      if (!answers.includes(null)) {
        if (turn === 0) this.#lastTurns.delete(name);
        else this.#lastTurns.set(name, turn);
        return answers;
      }
      if (performance.now() >= until) break;
    }
    this.#lastTurns.set(name, TURNS.length - 1);
    return answers;
  }

  /** Ends the threads. */
  [Symbol.dispose](): void {
    for (const thread of this.#threads) thread.end();
  }

  #limitOf(turn: number, lastTurn: number): Limit {
    const limit = this.#turns[turn]!;
    return turn === 0 && lastTurn > 0 ? (work) => this.#slow(() => limit(work)) : limit;
  }

  async #takeThread(): Promise<Thread> {
    const thread = this.#idle.pop() ?? new Thread();
    this.#threads.add(thread);
    try {
      await thread.ready;
      return thread;
    } catch (error) {
      this.#drop(thread);
      throw error;
    }
  }

  async #run(thread: Thread, task: Task, signal: AbortSignal | undefined): Promise<(Answer | null)[]> {
    try {
      const answers = await thread.run(task, signal);
      this.#idle.push(thread);
      return answers;
    } catch (error) {
      this.#drop(thread);
      if (error instanceof LostError) return task.asked.map(() => null);
      throw error;
    }
  }

  #drop(thread: Thread): void {
    this.#threads.delete(thread);
    thread.end();
  }
}

/** Does something as soon as there is room. */
type Limit = (work: () => Promise<void>) => Promise<void>;

/** Options of {@linkcode inTurn}. */
interface InTurnOptions {
  /** When it is too late to begin, on the clock of `performance.now()`. */
  readonly until: number;
  readonly signal: AbortSignal | undefined;
}

/** Does something as soon as there is room; null where it is too late by then. */
function inTurn<T>(limit: Limit, work: () => Promise<T>, { until, signal }: InTurnOptions): Promise<T | null> {
  const { promise, resolve, reject } = Promise.withResolvers<T | null>();
  let isWaiting = true;
  const giveUp = () => {
    if (!isWaiting) return;
    isWaiting = false;
    if (signal?.aborted) reject(signal.reason);
    else resolve(null);
  };
  const timer = until === Infinity ? undefined : setTimeout(giveUp, until - performance.now());
  signal?.addEventListener("abort", giveUp);
  limit(async () => {
    if (!isWaiting) return;
    isWaiting = false;
    await work().then(resolve, reject);
  });
  return promise.finally(() => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", giveUp);
  });
}

class LostError extends Error {}

type Reply = (Answer | null)[] | "ready";

class Thread {
  readonly #worker = new Worker(new URL("./evaluator_worker.ts", import.meta.url), { type: "module" });
  #next = Promise.withResolvers<Reply>();
  /** Resolves once it can be asked. */
  readonly ready: Promise<unknown> = this.#next.promise;

  constructor() {
    this.#worker.onmessage = ({ data }: MessageEvent<Reply>) => this.#next.resolve(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#next.reject(new Error(`Cannot evaluate expectations: ${event.message}`));
    };
  }

  async run(task: Task, signal: AbortSignal | undefined): Promise<(Answer | null)[]> {
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
