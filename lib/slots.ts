import pLimit, { type LimitFunction } from "p-limit";

/** How many may be under way. */
export interface SlotLimits {
  /** In all. */
  readonly max: number;
  /** With one host. */
  readonly maxPerHost: number;
}

/**
 * Bounds the checks in flight, which protects their timings: too many take the CPU from each other, and one host that
 * hangs would take all places. What waits has not begun, so that the wait is no part of a response time.
 */
export class Slots {
  readonly #all: LimitFunction;
  readonly #hosts = new Map<string, Host>();
  #maxPerHost: number;

  /** All free. */
  constructor({ max, maxPerHost }: SlotLimits) {
    this.#all = pLimit(max);
    this.#maxPerHost = maxPerHost;
  }

  /** Other limits from now on; what is under way goes on. */
  resize({ max, maxPerHost }: SlotLimits): void {
    this.#all.concurrency = max;
    this.#maxPerHost = maxPerHost;
    for (const { limit } of this.#hosts.values()) limit.concurrency = maxPerHost;
  }

  /** Does something as soon as there is room, in the order of the calls; what waits for its host takes no room from others. */
  async run<T>(host: string, work: () => Promise<T>): Promise<T> {
    let place = this.#hosts.get(host);
    if (place === undefined) this.#hosts.set(host, place = { limit: pLimit(this.#maxPerHost), users: 0 });
    place.users++;
    try {
      return await place.limit(() => this.#all(work));
    } finally {
      if (--place.users === 0) this.#hosts.delete(host);
    }
  }
}

/** A host with checks under way or waiting. */
interface Host {
  readonly limit: LimitFunction;
  users: number;
}
