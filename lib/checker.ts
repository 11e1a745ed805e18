import { check, checkWithRetries } from "./check.ts";
import { Clients } from "./client.ts";
import type { Site } from "./site.ts";
import { Evaluator } from "./evaluator.ts";
import { Faults } from "./fault.ts";
import { Inspector } from "./inspector.ts";
import { Lateness } from "./lateness.ts";
import type { Log } from "./log.ts";
import { LookUps } from "./lookup.ts";
import { isWithin, MAINTENANCE_TAG } from "./maintenance.ts";
import type { Metric } from "./metric.ts";
import { NameGate } from "./name_gate.ts";
import { fitOpenFiles } from "./open_files.ts";
import type { Due } from "./schedule.ts";
import { type SlotLimits, Slots } from "./slots.ts";
import { Tokens } from "./token.ts";

/** Options of {@linkcode Checker}. */
export interface CheckerOptions {
  /** Checks in flight. */
  readonly limits: SlotLimits;
  /** Where to tell what is no result. */
  readonly log: Log;
  /** Gives up checks that are under way; they say nothing of the site then. */
  readonly signal: AbortSignal;
  /** Whether each site is checked once: then a fault of ours is thrown. */
  readonly once: boolean;
}

/** A line on how late checks begin, every so often. */
const REPORT_EVERY_MS = 10 * 60_000;
/** What goes wrong with many sites at a time is told in one line. */
const GATHER_MS = 1_000;
const MAX_LINES = 3;
/** A process that stood still for less than this is not told of: one with much to do does. */
const TOLD_STANDSTILL_MS = 1_000;

/** Checks sites when they are due, as many at a time as may be, and tells how late it is. */
export class Checker implements Disposable {
  readonly #clients = new Clients();
  readonly #tokens = new Tokens();
  readonly #evaluator = new Evaluator();
  readonly #bodies = new Map<string, string>();
  readonly #lateness = new Lateness();
  readonly #lookUps = new LookUps();
  readonly #gate = new NameGate({ lookUps: this.#lookUps });
  readonly #inspector: Inspector;
  readonly #faults: Faults;
  readonly #slots: Slots;
  readonly #options: CheckerOptions;
  readonly #reports: ReturnType<typeof setInterval>;
  /** Checks that were left out and not told of, by site. */
  readonly #skipped = new Map<string, number>();
  /** Checks in which this process stood still, which were not told of. */
  #stood = { checks: 0, longestMs: 0 };
  #gathering: ReturnType<typeof setTimeout> | undefined;

  /** With nothing under way. */
  constructor(options: CheckerOptions) {
    this.#options = options;
    this.#slots = new Slots(options.limits);
    this.#faults = new Faults({ log: options.log });
    this.#inspector = new Inspector({
      lookUps: this.#lookUps,
      onFault: ({ name }, error) => this.#faults.tell(name, error),
    });
    this.#reports = setInterval(() => this.#report(), REPORT_EVERY_MS);
  }

  /** Other sites or limits from now on. */
  resize(sites: readonly Site[], limits: SlotLimits): void {
    this.#slots.resize(fitOpenFiles(limits, { sites: sites.length, log: this.#options.log }));
    this.#clients.retain(sites.map(({ client }) => client));
    this.#tokens.retain(sites);
    const names = new Set(sites.map(({ name }) => name));
    for (const name of this.#bodies.keys()) if (!names.has(name)) this.#bodies.delete(name);
  }

  /**
   * Checks a site, again where it is down and says so.
   *
   * @param deliver Takes each attempt's result.
   * @returns Whether the site is down; undefined where it was not checked.
   */
  async check(
    due: Due<Site>,
    deliver: (metric: Metric) => void,
  ): Promise<boolean | undefined> {
    const { item: site } = due;
    const { log, signal, once } = this.#options;
    const isMaintained = site.maintenance !== null && isWithin(site.maintenance, Date.now());
    if (isMaintained && site.maintenance.checks === "skip") {
      log.debug("Left out the check of '{name}', which is maintained", { name: site.name });
      return;
    }
    // Before anything else is made for it: thousands may wait.
    const hasSlot = this.#gate.isOpen(site.hostname);
    const room = hasSlot ? this.#slots.take(site.host) : undefined;
    if (room !== undefined) await room;
    try {
      const { verdict } = await checkWithRetries(site, {
        attempt: (number) => this.#attempt(due, { number, hasSlot: hasSlot && number === 1 }),
        deliver: isMaintained
          ? (metric) => deliver({ ...metric, tags: { ...site.tags, [MAINTENANCE_TAG]: "true" } })
          : deliver,
        bodies: this.#bodies,
        signal,
      });
      return verdict === "down";
    } catch (error) {
      if (error instanceof Deno.errors.BrokenPipe) throw error;
      if (signal.aborted) {
        log.info("Gave up the check of '{name}'", { name: site.name });
        return;
      }
      this.#lateness.fail();
      this.#faults.tell(site.name, error);
      if (once) throw error;
    }
  }

  /** Makes an attempt as soon as there is room. */
  async #attempt(
    { item: site, scheduledAt, dueAt }: Due<Site>,
    { number, hasSlot }: { readonly number: number; readonly hasSlot: boolean },
  ): Promise<Metric> {
    const { signal } = this.#options;
    const begin = () => {
      signal.throwIfAborted();
      if (number === 1) this.#lateness.add(performance.now() - dueAt);
      return check(site, {
        scheduledAt,
        signal,
        attempt: number,
        // After a reload, the client of the first attempt may be closed.
        client: this.#clients.get(site.client),
        evaluator: this.#evaluator,
        bodies: this.#bodies,
        inspector: this.#inspector,
        tokens: this.#tokens,
        onStandstill: (stoodMs) => this.#noteStandstill(stoodMs),
      });
    };
    if (!hasSlot) {
      const { hostname, timeoutMs } = site;
      return await this.#gate.pass(hostname, () => this.#slots.run(site.host, begin), { timeoutMs, signal });
    }
    try {
      const metric = await begin();
      this.#gate.learn(site.hostname, metric);
      return metric;
    } finally {
      this.#slots.give(site.host);
    }
  }

  /** Counts checks that were left out. */
  skip(name: string, checks: number): void {
    this.#lateness.skip(checks);
    this.#skipped.set(name, (this.#skipped.get(name) ?? 0) + checks);
    this.#gather();
  }

  /** Ends all that was opened; says how late checks were. */
  [Symbol.dispose](): void {
    clearInterval(this.#reports);
    this.#tellGathered();
    this.#faults[Symbol.dispose]();
    if (!this.#options.once) this.#report();
    this.#evaluator[Symbol.dispose]();
    this.#tokens[Symbol.dispose]();
    this.#clients[Symbol.dispose]();
  }

  #noteStandstill(stoodMs: number): void {
    if (stoodMs < TOLD_STANDSTILL_MS) return;
    const { checks, longestMs } = this.#stood;
    this.#stood = { checks: checks + 1, longestMs: Math.max(longestMs, stoodMs) };
    this.#gather();
  }

  #gather(): void {
    this.#gathering ??= setTimeout(() => this.#tellGathered(), GATHER_MS);
  }

  #tellGathered(): void {
    clearTimeout(this.#gathering);
    this.#gathering = undefined;
    this.#tellStandstill();
    this.#tellSkipped();
  }

  #tellStandstill(): void {
    const { checks, longestMs } = this.#stood;
    if (checks === 0) return;
    this.#stood = { checks: 0, longestMs: 0 };
    this.#options.log.warn(
      "Stood still for {ms} ms, halted or with too much to do: that is part of the times of {checks} check(s), though not " +
        "of what their sites may take",
      { ms: Math.round(longestMs), checks },
    );
  }

  #tellSkipped(): void {
    const { log } = this.#options;
    const skipped = [...this.#skipped];
    this.#skipped.clear();
    const why = "the one before had not ended, or this machine slept";
    if (skipped.length <= MAX_LINES) {
      for (const [name, runs] of skipped) log.warn("Left out {runs} check(s) of '{name}': {why}", { runs, name, why });
      return;
    }
    const runs = skipped.reduce((sum, [, runs]) => sum + runs, 0);
    const [first] = skipped;
    log.warn("Left out {runs} check(s) of {sites} sites, '{name}' among them: {why}", {
      runs,
      sites: skipped.length,
      name: first![0],
      why,
    });
  }

  #report(): void {
    const figures = this.#lateness.take();
    if (figures.checks + figures.skipped + figures.failed === 0) return;
    this.#options.log.info(
      "Began {checks} check(s), half of them within {p50} ms of their time, 99 of 100 within {p99} ms, the latest " +
        "{max} ms late; left out {skipped}; could not make {failed}",
      { ...figures },
    );
  }
}
