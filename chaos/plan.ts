/** What can be killed, frozen and stopped. */
export type Target = "kafka" | "postgres" | `producer-${number}` | `consumer-${number}`;

/** Where a connection to PostgreSQL is cut. */
export const POSTGRES_CUTS = ["now", "in-transaction", "before-commit", "after-commit"] as const;

/** One thing that goes wrong. */
export type ChaosEvent =
  /** `kill -9` of one or several at once, which are started again after a time. */
  | { readonly kind: "kill"; readonly targets: readonly Target[]; readonly downMs: number }
  /** SIGSTOP, and SIGCONT after a time. */
  | { readonly kind: "freeze"; readonly targets: readonly Target[]; readonly forMs: number }
  /** SIGTERM (SIGINT for PostgreSQL), and a new start after a time. */
  | { readonly kind: "terminate"; readonly targets: readonly Target[]; readonly downMs: number }
  /** Another consumer joins the group. */
  | { readonly kind: "join"; readonly targets: readonly Target[] }
  /** A consumer that joined leaves, by SIGTERM. */
  | { readonly kind: "leave"; readonly targets: readonly Target[] }
  /** Connections between consumers and PostgreSQL are cut: all, or one at a certain moment. */
  | { readonly kind: "cut-postgres"; readonly how: typeof POSTGRES_CUTS[number] }
  /** All connections to Kafka are cut. */
  | { readonly kind: "cut-kafka" }
  /** On connections to a server nothing goes on, though they stay, as behind a cable that is pulled; then it does, or they end. */
  | {
    readonly kind: "hang";
    readonly server: "kafka" | "postgres";
    readonly forMs: number;
    readonly then: "go on" | "cut";
  }
  /** Messages that are no metrics are published among the good ones. */
  | { readonly kind: "poison"; readonly messages: number };

/** An event, and the time before it. */
export interface Step {
  /** Time since the step before, in ms. */
  readonly pauseMs: number;
  /** What happens then. */
  readonly event: ChaosEvent;
}

/** Options of {@linkcode plan}. */
export interface PlanOptions {
  /** Number of producers, all there from the start. */
  readonly producers: number;
  /** Number of consumers that are there from the start. */
  readonly consumers: number;
  /** Number of consumers that join and leave. */
  readonly guests: number;
}

type Draw = ReturnType<typeof draws>;

/** A member's session times out after 10 s; a freeze is longer. */
const FREEZE_MS = [11_000, 16_000] as const;
/** A broker that hangs, mostly for less than clients wait. */
const FREEZE_KAFKA_MS = [1_000, 8_000] as const;
const HANG_MS = [1_000, 12_000] as const;
const SHORT_DOWN_MS = [0, 3_000] as const;
const LONG_DOWN_MS = [3_000, 12_000] as const;
const LONG_DOWN_SHARE = 0.25;
const PAUSE_MS = [200, 8_000] as const;
/** Before each new pack, so that it is seen how long all takes to go on. */
const CALM_MS = 25_000;
const MAX_POISON = 5;

/**
 * An endless sequence of events, the same for the same seed and options. Kinds come from a pack that is shuffled and
 * dealt to its end before it is shuffled again, so that each kind comes soon, and as often as it is in the pack. Before each new pack there is a calm.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const options = { producers: 2, consumers: 2, guests: 1 };
 * assert.deepEqual(plan(7, options).take(50).toArray(), plan(7, options).take(50).toArray());
 * ```
 */
export function* plan(seed: number, { producers, consumers, guests }: PlanOptions): Generator<Step, never> {
  const draw = draws(seed);
  const producerNames = Array.from({ length: producers }, (_, index): Target => `producer-${index + 1}`);
  const consumerNames = Array.from({ length: consumers }, (_, index): Target => `consumer-${index + 1}`);
  const guestNames = Array.from({ length: guests }, (_, index): Target => `consumer-${consumers + index + 1}`);
  const present = new Set<Target>();

  const producer = () => [draw.one(producerNames)];
  const consumer = () => [draw.one([...consumerNames, ...present])];
  const everything = () => ["kafka", "postgres", ...producerNames, ...consumerNames, ...present] as const;
  const kill = (targets: readonly Target[]): ChaosEvent => ({ kind: "kill", targets, downMs: downMs(draw) });
  const terminate = (targets: readonly Target[]): ChaosEvent => ({ kind: "terminate", targets, downMs: downMs(draw) });
  const freeze = (targets: readonly Target[], range: readonly [number, number] = FREEZE_MS): ChaosEvent => ({
    kind: "freeze",
    targets,
    forMs: draw.between(range),
  });
  const hang = (server: "kafka" | "postgres"): ChaosEvent => ({
    kind: "hang",
    server,
    forMs: draw.between(HANG_MS),
    then: draw.one(["go on", "cut"]),
  });
  const guest = (): ChaosEvent => {
    const target = draw.one(guestNames);
    if (present.delete(target)) return { kind: "leave", targets: [target] };
    present.add(target);
    return { kind: "join", targets: [target] };
  };

  const pack: readonly (() => ChaosEvent)[] = [
    ...times(3, () => kill(producer())),
    ...times(3, () => kill(consumer())),
    ...times(2, () => kill(["kafka"])),
    ...times(2, () => kill(["postgres"])),
    () => kill(["postgres", ...consumer()]),
    () => kill(["kafka", ...producer()]),
    () => kill(["kafka", "postgres"]),
    () => kill([...consumerNames, ...present]),
    () => kill(everything()),
    () => freeze(consumer()),
    () => freeze(producer()),
    () => freeze(["kafka"], FREEZE_KAFKA_MS),
    () => terminate(producer()),
    () => terminate(consumer()),
    () => terminate(["kafka"]),
    () => terminate(["postgres"]),
    ...POSTGRES_CUTS.flatMap((how) => times(how === "now" ? 1 : 2, () => ({ kind: "cut-postgres", how } as const))),
    ...times(2, () => ({ kind: "cut-kafka" } as const)),
    () => hang("kafka"),
    () => hang("postgres"),
    ...times(3, () => ({ kind: "poison", messages: 1 + draw.below(MAX_POISON) } as const)),
    ...(guests > 0 ? times(3, guest) : []),
  ];
  for (let calmMs = 0;; calmMs = CALM_MS) {
    for (const [index, make] of draw.shuffled(pack).entries()) {
      yield { pauseMs: draw.between(PAUSE_MS) + (index === 0 ? calmMs : 0), event: make() };
    }
  }
}

function downMs(draw: Draw): number {
  return draw.between(draw.number() < LONG_DOWN_SHARE ? LONG_DOWN_MS : SHORT_DOWN_MS);
}

function times<T>(count: number, item: T): T[] {
  return Array.from({ length: count }, () => item);
}

/** Chance that a seed decides. */
function draws(seed: number) {
  const number = mulberry32(seed);
  const below = (limit: number) => Math.floor(number() * limit);
  return {
    /** From 0 up to, not including, 1. */
    number,
    /** A whole number from 0 up to, not including, the limit. */
    below,
    between: ([from, to]: readonly [number, number]) => from + below(to - from + 1),
    one: <T>(items: readonly T[]): T => items[below(items.length)]!,
    shuffled<T>(items: readonly T[]): T[] {
      const result = [...items];
      for (let i = result.length - 1; i > 0; i--) {
        const j = below(i + 1);
        [result[i], result[j]] = [result[j]!, result[i]!];
      }
      return result;
    },
  };
}

/** Tommy Ettinger's generator of 32 bits of state: short, and good enough to choose events by. */
function mulberry32(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ state >>> 15, state | 1);
    mixed ^= mixed + Math.imul(mixed ^ mixed >>> 7, mixed | 61);
    return ((mixed ^ mixed >>> 14) >>> 0) / 2 ** 32;
  };
}
