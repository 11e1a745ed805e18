import Queue from "yocto-queue";

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
  readonly #all: Places;
  readonly #hosts = new Map<string, Places>();
  #maxPerHost: number;

  /** All free. */
  constructor({ max, maxPerHost }: SlotLimits) {
    this.#all = new Places(max);
    this.#maxPerHost = maxPerHost;
  }

  /** Number of hosts with something under way or waiting. */
  get hosts(): number {
    return this.#hosts.size;
  }

  /** Other limits from now on; what is under way goes on. */
  resize({ max, maxPerHost }: SlotLimits): void {
    this.#maxPerHost = maxPerHost;
    for (const places of this.#hosts.values()) places.resize(maxPerHost);
    this.#all.resize(max);
  }

  /** Does something as soon as there is room, in the order of the calls; what waits for its host takes no room from others. */
  async run<T>(host: string, work: () => Promise<T>): Promise<T> {
    const room = this.take(host);
    // Where there is room, it begins at once.
    if (room !== undefined) await room;
    try {
      return await work();
    } finally {
      this.give(host);
    }
  }

  /**
   * Takes a slot as soon as there is room, to be given back ({@linkcode Slots.give}).
   *
   * @returns What is to be waited for; undefined where there is room.
   */
  take(host: string): Promise<void> | undefined {
    let ofHost = this.#hosts.get(host);
    if (ofHost === undefined) this.#hosts.set(host, ofHost = new Places(this.#maxPerHost));
    if (ofHost.take()) return this.#all.take() ? undefined : this.#all.next();
    return ofHost.next().then(() => this.#all.take() ? undefined : this.#all.next());
  }

  /** Gives a slot back that was taken. */
  give(host: string): void {
    const ofHost = this.#hosts.get(host)!;
    this.#all.free();
    ofHost.free();
    if (ofHost.areFree) this.#hosts.delete(host);
  }
}

/** Some places, and those that wait for one: there are none while a place is free. */
class Places {
  #max: number;
  #taken = 0;
  /** Not made before someone waits: most hosts have room. */
  #waiting: Queue<() => void> | undefined;

  constructor(max: number) {
    this.#max = max;
  }

  /** Whether all are. */
  get areFree(): boolean {
    return this.#taken === 0;
  }

  resize(max: number): void {
    this.#max = max;
    this.#giveToWaiting();
  }

  /** Takes a place. @returns Whether one was free. */
  take(): boolean {
    if (this.#taken >= this.#max) return false;
    this.#taken++;
    return true;
  }

  /** Waits for a place, and takes it. */
  next(): Promise<void> {
    const waiting = this.#waiting ??= new Queue();
    return new Promise((resolve) => waiting.enqueue(resolve));
  }

  /** Gives a place back. */
  free(): void {
    this.#taken--;
    this.#giveToWaiting();
  }

  #giveToWaiting(): void {
    while (this.#waiting !== undefined && this.#waiting.size > 0 && this.take()) this.#waiting.dequeue()!();
  }
}
