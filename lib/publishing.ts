import type { PublishSettings } from "./config.ts";
import { Deadline } from "./deadline.ts";
import { ConfigError, errorMessage } from "./error.ts";
import { type Delay, Publisher, type PublishResult } from "./publisher.ts";
import type { Log } from "./log.ts";
import { retryForever } from "./retry.ts";
import { sleepUntilAborted, whenAborted } from "./schedule.ts";
import type { Spool } from "./spool.ts";
import type { SpooledMessage } from "./spool_file.ts";

/** Options of {@linkcode Publishing}. */
export interface PublishingOptions {
  /** What is to be published. */
  readonly spool: Spool;
  /** Where to tell of brokers that are away. */
  readonly log: Log;
}

/** A topic that Kafka did not take all of; it is tried apart from the others. */
interface Held {
  /** When to try again. */
  until: number;
  /** Wait before that. */
  waitMs: number;
  /** Whether it was told as an error. */
  isTold: boolean;
}

/** Metrics that are checked within this time go in one request … */
const LINGER_MS = 50;
/** … and within up to this where there are many, so that topics have several in it. */
const MAX_LINGER_MS = 500;
/** What a request has of a topic has a price of its own, for us and for the broker; so many such parts are worth it. */
const PARTS_PER_SECOND = 2_000;
const MESSAGES_PER_READ = 10_000;
const LOOK_EVERY_MS = 5_000;
/** Connections to brokers that are away are not closed in order. */
const CLOSE_TIMEOUT_MS = 1_000;
/** A topic that Kafka does not take is tried again after this, then after twice this, and so on; others go on. */
const FIRST_HOLD_MS = 500;
const LONGEST_HOLD_MS = 30_000;
/** A topic that is tried apart and has nothing to be tried is looked for this often at most. */
const LONGEST_IDLE_MS = 5_000;
/** What is to be published by the end is tried this often. */
const DRAIN_HOLD_MS = 500;
const DRAIN_POLL_MS = 10;

/**
 * Moves the spool to Kafka, for as long as it takes, the oldest first: all topics together, but for those that Kafka does
 * not take, which are tried apart over a connection of their own, so that they hold up no others.
 */
export class Publishing {
  /** Rejects when brokers refuse us for good; never resolves. */
  readonly failed: Promise<never>;
  readonly #spool: Spool;
  readonly #log: Log;
  readonly #publisher: Publisher;
  readonly #apart: Publisher;
  readonly #where: string;
  readonly #stop = new AbortController();
  readonly #drain = new AbortController();
  /** Topics that are tried apart. */
  readonly #held = new Map<string, Held>();
  /** Made anew by each wait for them: one that lasts would keep all that have ever waited. */
  #heldChanged = Promise.withResolvers<void>();
  #released = Promise.withResolvers<void>();
  /** Topics of which it was said that Kafka refuses messages. */
  readonly #told = new Set<string>();
  readonly #done: Promise<unknown>;
  #refused = 0;
  #ended = false;

  /** Begins at once. */
  constructor(settings: PublishSettings, { spool, log }: PublishingOptions) {
    this.#spool = spool;
    this.#log = log;
    this.#where = `Kafka at ${settings.bootstrapServers.join(",")}`;
    this.#publisher = new Publisher(settings, { log });
    this.#apart = new Publisher(settings, { log });
    this.#done = Promise.all([this.#publishAll(), this.#publishHeld()]).catch((error) => {
      if (!this.#stop.signal.aborted) throw error;
    });
    const failed = Promise.withResolvers<never>();
    this.failed = failed.promise;
    // Where nobody waits for it, it is no unhandled rejection.
    this.failed.catch(() => {});
    this.#done.catch(failed.reject);
  }

  /** Messages that Kafka has refused for good since the start. */
  get refused(): number {
    return this.#refused;
  }

  /**
   * Waits until the spool is empty, and ends.
   *
   * @param timeoutMs Longest wait.
   * @returns Messages that are left.
   * @throws {ConfigError} when brokers refuse us for good.
   */
  async drain(timeoutMs: number): Promise<number> {
    const timer = setTimeout(() => this.#stop.abort(), timeoutMs);
    this.#drain.abort();
    try {
      await Promise.race([this.#done, whenAborted(this.#stop.signal)]);
      return this.#spool.size;
    } finally {
      clearTimeout(timer);
      this.#stop.abort();
      const closed = [this.#publisher, this.#apart].map((publisher) => publisher[Symbol.asyncDispose]());
      const late = new AbortController();
      await Promise.race([Promise.all(closed), sleepUntilAborted(CLOSE_TIMEOUT_MS, late.signal)]);
      late.abort();
      this.#ended = true;
    }
  }

  get #drained(): boolean {
    return this.#drain.signal.aborted && this.#spool.size === 0;
  }

  /** All topics that are not held. */
  async #publishAll(): Promise<void> {
    const { signal } = this.#stop;
    const ending = AbortSignal.any([signal, this.#drain.signal]);
    while (!signal.aborted) {
      const batch = this.#spool.next({ limit: MESSAGES_PER_READ, except: new Set(this.#held.keys()) });
      if (batch.length > 0) {
        this.#settle(
          await retryForever(() => this.#publisher.publish(batch), {
            what: this.#where,
            log: this.#log,
            signal,
            isFinal: (error) => error instanceof ConfigError,
          }),
        );
        if (batch.length === MESSAGES_PER_READ) continue;
      } else {
        if (this.#drained) return;
        if (this.#drain.signal.aborted) await sleepUntilAborted(DRAIN_POLL_MS, signal);
        else await this.#waitForMessage(ending);
      }
      await sleepUntilAborted(lingerOf(batch), ending);
    }
  }

  async #waitForMessage(ending: AbortSignal): Promise<void> {
    this.#released = Promise.withResolvers();
    // A look now and then finds what a command of another process has put back.
    using look = new Deadline(LOOK_EVERY_MS, ending);
    await Promise.race([this.#spool.waitForMessage(look.signal), this.#released.promise]);
  }

  /** Topics that are held, each when its time has come. */
  async #publishHeld(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const now = performance.now();
      const due = new Set([...this.#held].filter(([, { until }]) => until <= now).map(([topic]) => topic));
      const batch = due.size === 0 ? [] : this.#spool.next({ limit: MESSAGES_PER_READ, only: due });
      for (const topic of due) {
        // With nothing to try, it waits for its next message.
        if (!batch.some((message) => message.topic === topic)) {
          this.#hold(topic, Math.min(2 * this.#held.get(topic)!.waitMs, LONGEST_IDLE_MS));
        }
      }
      if (batch.length > 0) {
        try {
          this.#settle(await this.#apart.publish(batch));
        } catch (error) {
          // Brokers that are away, which is told where all topics are published.
          this.#log.debug("{where}: {reason}", { where: this.#where, reason: errorMessage(error) });
          await sleepUntilAborted(FIRST_HOLD_MS, signal);
        }
        continue;
      }
      if (this.#drained) return;
      await this.#waitForTurn();
    }
  }

  async #waitForTurn(): Promise<void> {
    const draining = this.#drain.signal.aborted;
    const turn = Math.min(...[...this.#held.values()].map(({ until }) => until)) - performance.now();
    const waitMs = draining ? DRAIN_POLL_MS : Math.max(0, Math.min(turn, LONGEST_HOLD_MS));
    const woken = new AbortController();
    const signals = [this.#stop.signal, woken.signal, ...(draining ? [] : [this.#drain.signal])];
    const turns = sleepUntilAborted(waitMs, AbortSignal.any(signals));
    this.#heldChanged = Promise.withResolvers();
    await Promise.race([this.#heldChanged.promise, turns]);
    woken.abort();
    if (!this.#drain.signal.aborted) return;
    // Before the end, each is tried at once.
    for (const held of this.#held.values()) held.until = Math.min(held.until, performance.now() + DRAIN_HOLD_MS);
  }

  #settle({ acknowledged, refused, delayed }: PublishResult<SpooledMessage>): void {
    // The spool may be closed: what Kafka took at last is sent once more by the next start, and is one row by its id.
    if (this.#ended) return;
    this.#spool.delete(acknowledged);
    this.#spool.refuse(refused);
    this.#refused += refused.length;
    const failed = new Set([...refused.map(({ message }) => message.topic), ...delayed.keys()]);
    const taken = [...new Set(acknowledged.map(({ topic }) => topic))]
      .filter((topic) => !failed.has(topic) && this.#held.delete(topic));
    for (const topic of taken) this.#told.delete(topic);
    if (taken.length > 0) {
      this.#tellHeldChanged();
      this.#log.info("Kafka takes {topics} again", { topics: nameTopics(taken) });
    }
    const isNew = new Set([...delayed.keys()].filter((topic) => !this.#held.has(topic)));
    for (const topic of failed) {
      this.#hold(topic, Math.min(2 * (this.#held.get(topic)?.waitMs ?? FIRST_HOLD_MS / 2), LONGEST_HOLD_MS));
    }
    for (const [reason, topics] of Map.groupBy(delayed.keys(), (topic) => delayed.get(topic)!.reason)) {
      const { isPassing } = delayed.get(topics[0]!)!;
      this.#tellDelay(topics, { reason, isPassing, isNew });
    }
    for (const { message: { topic }, reason } of refused) {
      if (this.#told.has(topic)) continue;
      this.#told.add(topic);
      this.#log.error(
        "Kafka refuses metrics of topic '{topic}', which are set aside (--list-refused), others go on: {reason}",
        { topic, reason },
      );
    }
  }

  /** Says that topics are not taken: what passes by itself is an error only when it lasts. */
  #tellDelay(
    topics: readonly string[],
    { reason, isPassing, isNew }: Delay & { readonly isNew: ReadonlySet<string> },
  ): void {
    const text = "Kafka does not take {topics}, trying again, others go on: {reason}";
    const lasts = topics.filter((topic) => !isPassing || this.#held.get(topic)!.waitMs === LONGEST_HOLD_MS);
    const errors = lasts.filter((topic) => !this.#held.get(topic)!.isTold);
    const warnings = topics.filter((topic) => isNew.has(topic) && !lasts.includes(topic));
    if (errors.length > 0) this.#log.error(text, { topics: nameTopics(errors), reason });
    if (warnings.length > 0) this.#log.warn(text, { topics: nameTopics(warnings), reason });
    for (const topic of lasts) this.#held.get(topic)!.isTold = true;
  }

  #hold(topic: string, waitMs: number): void {
    const isTold = this.#held.get(topic)?.isTold ?? false;
    this.#held.set(topic, { waitMs, until: performance.now() + waitMs, isTold });
    this.#tellHeldChanged();
  }

  #tellHeldChanged(): void {
    this.#heldChanged.resolve();
    this.#released.resolve();
  }
}

/** How long to gather metrics after those that were sent. */
function lingerOf(sent: readonly SpooledMessage[]): number {
  const parts = new Set(sent.map(({ topic }) => topic)).size;
  return Math.min(MAX_LINGER_MS, Math.max(LINGER_MS, parts / PARTS_PER_SECOND * 1000));
}

/** Names topics in a line of the log, of which a broker may lead thousands. */
function nameTopics(topics: readonly string[]): string {
  const [first] = topics;
  return topics.length === 1 ? `topic '${first}'` : `${topics.length} topics, '${first}' among them`;
}
