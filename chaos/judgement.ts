import type { Frozen } from "./member.ts";
import type { Visit } from "./sites.ts";
import type { KafkaContent } from "./topics.ts";

/** A row of `site_checker.all_checks`, as far as it is looked at. */
export interface CheckRow {
  /** Id of the check. */
  readonly id: string;
  /** Topic. */
  readonly topic: string;
  /** Start of the check, in ms since 1970. */
  readonly occurredAt: number;
  /** Time that it took, in ms. */
  readonly elapsedMs: number;
  /** SHA-256 of the body, which tells the visit; null where none came. */
  readonly bodySha256: string | null;
}

/** The death of a producer. */
export interface Death {
  /** Sites that it checked. */
  readonly sites: readonly string[];
  /** When, in ms since 1970. */
  readonly at: number;
  /** Times in which it had been halted: nothing went on in them. Default: none. */
  readonly frozen?: readonly Frozen[];
}

/** All there is to be compared. */
export interface Evidence {
  /** What Kafka holds. */
  readonly kafka: KafkaContent;
  /** Poison messages that Kafka has acknowledged. */
  readonly poisonAcknowledged: ReadonlySet<number>;
  /** Rows. */
  readonly rows: readonly CheckRow[];
  /** Places (`topic/partition@offset`) of dead letters. */
  readonly deadLetters: readonly string[];
  /** Visits to the sites. */
  readonly visits: readonly Visit[];
  /** Deaths of producers. */
  readonly deaths: readonly Death[];
  /** Whether producers keep on disk what Kafka has not taken. */
  readonly hasSpool: boolean;
}

/** Something that must hold. */
export interface Invariant {
  /** What. */
  readonly name: string;
  /** Whether it held; null where it could not be looked at. */
  readonly held: boolean | null;
  /** The figure. */
  readonly figure: string;
}

/** What came of visits. */
export interface VisitCounts {
  /** Visits that were answered. */
  answered: number;
  /** Those that are a row, which their body tells. */
  rows: number;
  /** Those whose check did not see the body (a timeout, as of a producer that was frozen): a row without one. */
  withoutBody: number;
  /** Those whose check was under way when its producer was killed. */
  inFlight: number;
  /** Those that were done, but only in the memory of a producer that was killed. */
  lostInMemory: number;
  /** Those that nothing explains. */
  lost: number;
  /** Longest time from an answer to the kill, of those in flight, in ms. */
  longestInFlightMs: number;
}

/** From the site's answer to the metric on disk, while the producer is not halted: the check's end on a busy machine. */
const IN_FLIGHT_MS = 1_000;
/** From a connection to the answer of a site that is busy, when whoever asked may be dead. */
const LATE_MS = 5_000;
/** Both clocks are the machine's; it may be set a little meanwhile. */
const MATCH_MS = 250;

/** Compares what Kafka holds, what PostgreSQL holds and what the sites counted. */
export function judge(evidence: Evidence): { invariants: Invariant[]; visits: VisitCounts } {
  const { kafka, poisonAcknowledged, rows, deadLetters, visits, hasSpool } = evidence;
  const ids = new Set(rows.map(({ id }) => id));
  const missing = [...kafka.metrics.keys()].filter((id) => !ids.has(id));
  const foreign = [...ids].filter((id) => !kafka.metrics.has(id));
  const letters = new Set(deadLetters);
  const sites = new Map(visits.map(({ sha256, site }) => [sha256, site]));
  const bodies = rows.flatMap(({ bodySha256 }) => bodySha256 ?? []);
  const strange = rows.filter(({ bodySha256, topic }) => bodySha256 !== null && sites.get(bodySha256) !== topic);
  const counts = countVisits(evidence);
  return {
    visits: counts,
    invariants: [
      invariant(
        "every metric in Kafka is a row",
        missing.length === 0,
        `${kafka.metrics.size} metrics, ${missing.length} missing`,
      ),
      invariant(
        "no id is twice",
        rows.length === ids.size,
        `${rows.length} rows, ${rows.length - ids.size} doubled`,
      ),
      invariant("every row is a metric in Kafka", foreign.length === 0, `${foreign.length} others`),
      invariant(
        "every row with a body is a visit of its site, and no visit is two rows",
        strange.length === 0 && bodies.length === new Set(bodies).size,
        `${bodies.length} bodies, ${strange.length} of no visit, ${bodies.length - new Set(bodies).size} doubled`,
      ),
      invariant(
        "every visit is a row, but for checks in flight when their producer was killed",
        counts.lost === 0 && (!hasSpool || counts.lostInMemory === 0),
        `${counts.answered} visits = ${counts.rows} rows + ${counts.withoutBody} rows without body + ` +
          `${counts.inFlight} in flight` + (hasSpool ? "" : ` + ${counts.lostInMemory} in a killed producer's memory`) +
          ` + ${counts.lost} lost`,
      ),
      invariant(
        "every poison message is a dead letter, once, and nothing else is",
        letters.size === deadLetters.length && letters.size === kafka.poison.size &&
          letters.isSubsetOf(kafka.poison) && poisonAcknowledged.isSubsetOf(kafka.poisonNumbers),
        `${kafka.poison.size} poison messages, ${deadLetters.length} dead letters`,
      ),
    ],
  };
}

function invariant(name: string, held: boolean, figure: string): Invariant {
  return { name, held, figure };
}

/**
 * Finds the row of each visit, or why there is none.
 *
 * Checks of one site come one after the other, and so do its visits, however late a busy site gets to them. So a visit
 * whose answer no row has is that of a check without a body (or of one whose producer was killed) which began behind the
 * check of the visit before; each of these explains one visit.
 */
function countVisits({ rows, visits, deaths }: Evidence): VisitCounts {
  const counts: VisitCounts = {
    answered: 0,
    rows: 0,
    withoutBody: 0,
    inFlight: 0,
    lostInMemory: 0,
    lost: 0,
    longestInFlightMs: 0,
  };
  const rowsOfSites = Map.groupBy(rows, ({ topic }) => topic);
  for (const [site, ofSite] of Map.groupBy(visits, ({ site }) => site)) {
    const ownRows = (rowsOfSites.get(site) ?? []).toSorted((a, b) => a.occurredAt - b.occurredAt);
    const ownDeaths = deaths.filter(({ sites }) => sites.includes(site)).toSorted((a, b) => a.at - b.at);
    countVisitsOf(ofSite, { rows: ownRows, deaths: ownDeaths }, counts);
  }
  return counts;
}

/** Counts visits of one site, in their order; its rows and deaths of its producer are in the order of time. */
function countVisitsOf(
  visits: readonly Visit[],
  { rows, deaths }: { rows: readonly CheckRow[]; deaths: readonly Death[] },
  counts: VisitCounts,
): void {
  const byBody = new Map(rows.map((row) => [row.bodySha256, row]));
  const free = rows.filter(({ bodySha256 }) => bodySha256 === null);
  const freeDeaths = [...deaths];
  let checkBegunAt = -Infinity;
  for (const { sha256, begunAt, answeredAt } of visits) {
    if (answeredAt === undefined) continue;
    counts.answered++;
    const row = byBody.get(sha256) ??
      take(free, ({ occurredAt }) => occurredAt > checkBegunAt && occurredAt <= begunAt + MATCH_MS);
    if (row !== undefined) {
      checkBegunAt = Math.max(checkBegunAt, row.occurredAt);
      if (row.bodySha256 === null) counts.withoutBody++;
      else counts.rows++;
      continue;
    }
    const earliest = Math.max(checkBegunAt, begunAt - LATE_MS);
    const death = take(freeDeaths, (death) => death.at > earliest && runningMs(answeredAt, death) <= IN_FLIGHT_MS);
    if (death !== undefined) {
      counts.inFlight++;
      counts.longestInFlightMs = Math.max(counts.longestInFlightMs, runningMs(answeredAt, death));
    } else if (deaths.some(({ at }) => at > answeredAt)) counts.lostInMemory++;
    else counts.lost++;
  }
}

/** Time that a producer ran from an answer to its death, in ms; negative where it had died before. */
function runningMs(answeredAt: number, { at, frozen = [] }: Death): number {
  const halted = frozen.map(({ from, to }) => Math.max(0, Math.min(to, at) - Math.max(from, answeredAt)));
  return at - answeredAt - halted.reduce((sum, ms) => sum + ms, 0);
}

/** Takes the first that suits out of a list. */
function take<T>(list: T[], suits: (one: T) => boolean): T | undefined {
  const index = list.findIndex(suits);
  return index < 0 ? undefined : list.splice(index, 1)[0];
}
