import type { VERDICTS } from "./metric.ts";
import type { Brief } from "./plain_metric.ts";
import { constraintName, DAILY, LATEST, PARENT, qualifiedName, quoteIdentifier, type Row } from "./table.ts";

/**
 * The tables `latest` and `daily`, which are kept from the rows that are really new: what a batch changes, as pure
 * functions, and the statements that bring it in. Only final attempts count.
 *
 * Checks of a name and location have an order: by `occurred_at`, then by `id`. `since` of `latest` is the time of the
 * first check behind the last one with another verdict. Every change keeps to that, so the order of arrival does not
 * matter.
 *
 * @module
 */

/**
 * Bounds of the histogram of response times, in ms. Element 1 counts what is below the first bound, element n + 1 what is
 * at least bound n and below bound n + 1, the last one what is at least the last bound: PostgreSQL's `width_bucket`.
 */
// deno-fmt-ignore
export const HISTOGRAM_BOUNDS_MS: readonly number[] = [
  1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1_000, 1_500, 2_000, 3_000, 5_000, 7_000,
  10_000, 15_000, 20_000, 30_000, 50_000, 70_000,
];

/** A response time counts at most this much in a sum: a day. */
const MAX_RESPONSE_MS = 86_400_000;
const DAY_MS = 86_400_000;
const NANOSECONDS_REGEXP = /^(?<seconds>.{16}(?::\d\d)?)(?<fraction>\.\d+)?(?<zone>.*)$/;

/** A check's place in the order of checks. */
interface Place {
  /** Time in ms since 1970, rounded down. */
  readonly ms: number;
  /** Microseconds on top of it. */
  readonly micros: number;
  readonly check: Brief;
}

/** What a batch says of a name and location, for `latest`. */
export interface LatestChange {
  /** The last check. */
  readonly last: Brief;
  /** The first check behind the previous one: that since which the verdict is what it is. */
  readonly first: Brief;
  /** The last check with another verdict, if there is one. */
  readonly previous: Brief | null;
  /** The last check that saw a certificate, if there is one. */
  readonly certified: Brief | null;
  /** Topics of its checks. */
  readonly topics: readonly string[];
}

/** What a batch adds to a row of `daily`. */
export interface DailyChange {
  /** Name of the site. */
  readonly name: string;
  /** Where the producer stands. */
  readonly location: string | null;
  /** Day in UTC, `2026-01-31`. */
  readonly day: string;
  /** Final attempts by verdict. */
  readonly verdicts: Readonly<Record<typeof VERDICTS[number], number>>;
  /** Those with a response time. */
  readonly responses: number;
  /** Sum of the response times in µs. */
  readonly responseUs: number;
  /** Counts by {@linkcode HISTOGRAM_BOUNDS_MS}. */
  readonly histogram: readonly number[];
}

/** What a batch of new rows changes, in the order of keys that all writers keep to, so that two can't deadlock. */
export interface SummaryChanges {
  /** Changes of `latest`. */
  readonly latest: readonly LatestChange[];
  /** Changes of `daily`. */
  readonly daily: readonly DailyChange[];
}

/** A name and location within a batch. */
class Series {
  readonly topics: string[] = [];
  readonly days = new Map<number, { -readonly [K in keyof DailyChange]: DailyChange[K] } & { histogram: number[] }>();
  readonly rows: Row[] = [];
  last: Place;
  first: Place;
  previous: Place | null = null;
  certified: Place | null = null;
  /** Whether a row came that is older than one before it. */
  mixed = false;

  constructor(place: Place) {
    this.last = this.first = place;
  }

  /** Takes a later check. */
  advance(place: Place): void {
    if (place.check.verdict !== this.last.check.verdict) {
      this.previous = this.last;
      this.first = place;
    }
    this.last = place;
  }

  /** Puts checks that came out of order in order. */
  settle(): void {
    if (!this.mixed) return;
    const places = this.rows.map(({ brief }) => placeOf(brief)).sort(comparePlaces);
    this.last = this.first = places[0]!;
    this.previous = null;
    for (const place of places) this.advance(place);
  }
}

/** What new rows change in `latest` and `daily`. */
export function summarize(rows: Iterable<Row>): SummaryChanges {
  const allSeries = new Map<string, Series>();
  for (const row of rows) {
    const { brief: check, message: { topic } } = row;
    if (!check.final) continue;
    const place = placeOf(check);
    // No text has a NUL in it.
    const key = check.location === null ? check.name : `${check.name}\0${check.location}`;
    let series = allSeries.get(key);
    if (series === undefined) allSeries.set(key, series = new Series(place));
    else if (series.mixed || comparePlaces(place, series.last) < 0) series.mixed = true;
    else series.advance(place);
    series.rows.push(row);
    if (!series.topics.includes(topic)) series.topics.push(topic);
    if (
      check.cert_expires_at !== null &&
      (series.certified === null || comparePlaces(place, series.certified) > 0)
    ) series.certified = place;
    addToDay(series, place);
  }
  const sorted = [...allSeries].sort(([a], [b]) => a < b ? -1 : 1).map(([, series]) => series);
  for (const series of sorted) series.settle();
  return {
    latest: sorted.map(({ last, first, previous, certified, topics }) => ({
      last: last.check,
      first: first.check,
      previous: previous?.check ?? null,
      certified: certified?.check ?? null,
      topics,
    })),
    daily: sorted.flatMap(({ days }) => [...days].sort(([a], [b]) => a - b).map(([, day]) => day)),
  };
}

function addToDay({ days }: Series, { ms, check: { name, location, verdict, response_time } }: Place): void {
  const number = Math.floor(ms / DAY_MS);
  let day = days.get(number);
  if (day === undefined) {
    days.set(
      number,
      day = {
        name,
        location,
        day: new Date(number * DAY_MS).toISOString().slice(0, 10),
        verdicts: { up: 0, degraded: 0, down: 0 },
        responses: 0,
        responseUs: 0,
        histogram: new Array<number>(HISTOGRAM_BOUNDS_MS.length + 1).fill(0),
      },
    );
  }
  (day.verdicts as Record<string, number>)[verdict]!++;
  if (response_time === null) return;
  day.responses++;
  day.responseUs += Math.floor(Math.min(Math.max(response_time, 0), MAX_RESPONSE_MS) * 1_000 + 0.5);
  day.histogram[bucketOf(response_time)]!++;
}

/** Number of bounds that a response time reaches. */
function bucketOf(responseMs: number): number {
  let low = 0;
  let high = HISTOGRAM_BOUNDS_MS.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (HISTOGRAM_BOUNDS_MS[middle]! <= responseMs) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Rounds to microseconds as PostgreSQL does. */
function placeOf(check: Brief): Place {
  const text = check.occurred_at;
  // As our producer writes it.
  if (text.length === 24 && text.endsWith("Z") && text[19] === ".") return { ms: Date.parse(text), micros: 0, check };
  const { seconds, fraction = "", zone } = NANOSECONDS_REGEXP.exec(text)!.groups! as Record<string, string>;
  const total = roundHalfEven(Number(`0${fraction}`) * 1e6);
  return { ms: Date.parse(seconds + zone!) + Math.floor(total / 1_000), micros: total % 1_000, check };
}

function roundHalfEven(value: number): number {
  const down = Math.floor(value);
  const rest = value - down;
  return rest > 0.5 || rest === 0.5 && down % 2 === 1 ? down + 1 : down;
}

function comparePlaces(a: Place, b: Place): number {
  if (a.ms !== b.ms) return a.ms - b.ms;
  if (a.micros !== b.micros) return a.micros - b.micros;
  const [idA, idB] = [a.check.id.toLowerCase(), b.check.id.toLowerCase()];
  return idA < idB ? -1 : idA > idB ? 1 : 0;
}

/** Identity of a row as the database has it: its topic, time in µs and id, as `INSERT_ROWS_SQL` returns them. */
export function rowIdentity({ message: { topic }, brief }: Row): string {
  const { ms, micros } = placeOf(brief);
  return `${topic}/${BigInt(ms) * 1_000n + BigInt(micros)}/${brief.id.toLowerCase()}`;
}

const LATEST_COLUMNS = [
  { name: "name", type: "text NOT NULL" },
  { name: "location", type: "text" },
  { name: "verdict", type: "text NOT NULL" },
  { name: "since", type: "timestamptz NOT NULL" },
  { name: "checked_at", type: "timestamptz NOT NULL" },
  { name: "id", type: "uuid NOT NULL" },
  { name: "previous_at", type: "timestamptz" },
  { name: "previous_id", type: "uuid" },
  { name: "url", type: "text NOT NULL" },
  { name: "status_code", type: "integer" },
  { name: "error", type: "text" },
  { name: "error_message", type: "text" },
  { name: "response_time", type: "double precision" },
  { name: "cert_seen_at", type: "timestamptz" },
  { name: "cert_id", type: "uuid" },
  { name: "cert_subject", type: "text" },
  { name: "cert_issuer", type: "text" },
  { name: "cert_expires_at", type: "timestamptz" },
  { name: "topics", type: "text[] NOT NULL" },
] as const;

const DAILY_COLUMNS = [
  { name: "name", type: "text NOT NULL" },
  { name: "location", type: "text" },
  { name: "day", type: "date NOT NULL" },
  { name: "checks", type: "integer NOT NULL" },
  { name: "up", type: "integer NOT NULL" },
  { name: "degraded", type: "integer NOT NULL" },
  { name: "down", type: "integer NOT NULL" },
  { name: "responses", type: "integer NOT NULL" },
  { name: "response_us", type: "bigint NOT NULL" },
  { name: "histogram", type: "integer[] NOT NULL" },
] as const;

type SummaryColumn = { readonly name: string; readonly type: string };

const LATEST_KEY = ["name", "location"];
/** A day of all sites lies together: most questions are about some days. */
const DAILY_KEY = ["day", "name", "location"];

/** Makes `latest`. Rows are written over and over, which takes no work on the index while their pages have room. */
export const CREATE_LATEST_SQL: string = createSummarySql(LATEST, LATEST_COLUMNS, { key: LATEST_KEY, fillfactor: 50 });

/** Makes `daily`. */
export const CREATE_DAILY_SQL: string = createSummarySql(DAILY, DAILY_COLUMNS, { key: DAILY_KEY, fillfactor: 80 });

/** A location that is not configured is null, and one key like any other: hence `NULLS NOT DISTINCT` (PostgreSQL 15). */
function createSummarySql(
  table: string,
  columns: readonly SummaryColumn[],
  { key, fillfactor }: { key: readonly string[]; fillfactor: number },
): string {
  return `CREATE TABLE ${qualifiedName(table)} (
${columns.map(({ name, type }) => `  ${quoteIdentifier(name)} ${type}`).join(",\n")},
  CONSTRAINT ${quoteIdentifier(constraintName(table, "key"))} UNIQUE NULLS NOT DISTINCT (${nameList(key)})
) WITH (fillfactor = ${fillfactor});
ALTER TABLE ${qualifiedName(table)} REPLICA IDENTITY FULL`;
}

function nameList(names: readonly string[]): string {
  return names.map(quoteIdentifier).join(", ");
}

function names(columns: readonly SummaryColumn[]): string {
  return nameList(columns.map(({ name }) => name));
}

/** Columns from one array each; an array within one is written as text. */
function unnest(columns: readonly SummaryColumn[]): string {
  const arrays = columns.map(({ type }, index) =>
    `$${index + 1}::${type.replace(" NOT NULL", "").replace("[]", "")}[]`
  );
  const texts = columns.map(({ type }, index) => type.includes("[]") ? `$${index + 1}::text[]` : arrays[index]);
  const selected = columns.map(({ name, type }) =>
    type.includes("[]") ? `${quoteIdentifier(name)}::${type.replace(" NOT NULL", "")}` : quoteIdentifier(name)
  );
  return `SELECT ${selected.join(", ")} FROM unnest(${texts.join(", ")}) AS batch (${names(columns)})`;
}

/** Columns that come from the last check. */
const CHECK_COLUMNS = [
  "checked_at",
  "id",
  "url",
  "status_code",
  "error",
  "error_message",
  "response_time",
] as const;
const CERTIFICATE_COLUMNS = ["cert_seen_at", "cert_id", "cert_subject", "cert_issuer", "cert_expires_at"] as const;

/**
 * Brings what a batch says, see {@linkcode latestArrays}, together with what is there.
 *
 * The later of the two last checks wins. The last check with another verdict is then the later one of what both sides
 * know; `since` is the first check behind it. Where that lies within a run of checks of which a side knows no more than
 * both ends, `since` is set to `infinity` and the key is returned, for {@linkcode RESOLVE_SINCE_SQL}.
 */
export const MERGE_LATEST_SQL = `WITH merged AS (
INSERT INTO ${qualifiedName(LATEST)} AS stored (${names(LATEST_COLUMNS)})
${unnest(LATEST_COLUMNS)}
ON CONFLICT (${nameList(LATEST_KEY)}) DO UPDATE SET
(verdict, since, previous_at, previous_id, ${CHECK_COLUMNS.join(", ")}, ${CERTIFICATE_COLUMNS.join(", ")}) = (
  SELECT winner.verdict,
    CASE WHEN greatest(run.stored, run.batch) = 'infinity' THEN 'infinity' ELSE least(run.stored, run.batch) END,
    previous.at, previous.id,
    ${
  CHECK_COLUMNS.map((name) => `CASE WHEN newer.check THEN excluded.${name} ELSE stored.${name} END`).join(",\n    ")
},
    ${
  CERTIFICATE_COLUMNS.map((name) => `CASE WHEN newer.certificate THEN excluded.${name} ELSE stored.${name} END`)
    .join(",\n    ")
}
  FROM (
    SELECT (excluded.checked_at, excluded.id) > (stored.checked_at, stored.id) AS check,
      excluded.cert_seen_at IS NOT NULL AND (stored.cert_seen_at IS NULL
        OR (excluded.cert_seen_at, excluded.cert_id) > (stored.cert_seen_at, stored.cert_id)) AS certificate
    OFFSET 0
  ) AS newer,
  LATERAL (SELECT CASE WHEN newer.check THEN excluded.verdict ELSE stored.verdict END AS verdict OFFSET 0) AS winner,
  LATERAL (
    SELECT CASE WHEN stored.verdict <> winner.verdict THEN stored.checked_at ELSE stored.previous_at END AS stored_at,
      CASE WHEN stored.verdict <> winner.verdict THEN stored.id ELSE stored.previous_id END AS stored_id,
      CASE WHEN excluded.verdict <> winner.verdict THEN excluded.checked_at ELSE excluded.previous_at END AS batch_at,
      CASE WHEN excluded.verdict <> winner.verdict THEN excluded.id ELSE excluded.previous_id END AS batch_id
    OFFSET 0
  ) AS other,
  LATERAL (
    SELECT coalesce(other.batch_at IS NULL OR (other.stored_at, other.stored_id) > (other.batch_at, other.batch_id), false)
      AS is_stored OFFSET 0
  ) AS later,
  LATERAL (
    SELECT CASE WHEN later.is_stored THEN other.stored_at ELSE other.batch_at END AS at,
      CASE WHEN later.is_stored THEN other.stored_id ELSE other.batch_id END AS id
    OFFSET 0
  ) AS previous,
  LATERAL (SELECT ${runSql("stored")} AS stored, ${runSql("excluded")} AS batch OFFSET 0) AS run
),
topics = CASE WHEN stored.topics @> excluded.topics THEN stored.topics ELSE (
  SELECT array_agg(DISTINCT topic COLLATE "C" ORDER BY topic COLLATE "C") FROM unnest(stored.topics || excluded.topics) AS topic
) END
RETURNING name, location, topics, since
)
SELECT name, location, topics FROM merged WHERE since = 'infinity'`;

/** First check behind the previous one on one side; null where it has none, `infinity` where it does not know. */
function runSql(side: "stored" | "excluded"): string {
  return `CASE WHEN ${side}.verdict <> winner.verdict THEN NULL
      WHEN previous.at IS NULL OR ${side}.since > previous.at THEN ${side}.since
      WHEN (${side}.checked_at, ${side}.id) > (previous.at, previous.id) THEN 'infinity'::timestamptz
      END`;
}

/** Keys of `latest`, as arrays of names and locations. */
const IS_KEY_SQL = (first: number) =>
  `EXISTS (SELECT FROM unnest($${first}::text[], $${first + 1}::text[]) AS key (name, location)
  WHERE key.name = latest.name AND key.location IS NOT DISTINCT FROM latest.location)`;

/** Looks `since` up among the rows of one topic. Parameters: topic, names, locations. */
export const RESOLVE_SINCE_SQL = `UPDATE ${qualifiedName(LATEST)} AS latest SET since = least(since, (
  SELECT occurred_at FROM ${qualifiedName(PARENT)} AS checks
  WHERE topic = $1 AND name = latest.name AND location IS NOT DISTINCT FROM latest.location AND final
    AND verdict = latest.verdict
    AND (occurred_at, checks.id) > (latest.previous_at, latest.previous_id)
  ORDER BY occurred_at, checks.id LIMIT 1
)) WHERE name = ANY ($2::text[]) AND ${IS_KEY_SQL(2)}`;

/** Of rows that are gone, the last check is all that is known. Parameters: names, locations. */
export const RESOLVE_GONE_SQL = `UPDATE ${qualifiedName(LATEST)} AS latest SET since = checked_at
WHERE since = 'infinity' AND name = ANY ($1::text[]) AND ${IS_KEY_SQL(1)}`;

/** Adds what a batch counts, see {@linkcode dailyArrays}. */
export const ADD_DAILY_SQL = `INSERT INTO ${qualifiedName(DAILY)} AS stored (${names(DAILY_COLUMNS)})
${unnest(DAILY_COLUMNS)}
ON CONFLICT (${nameList(DAILY_KEY)}) DO UPDATE SET
${
  ["checks", "up", "degraded", "down", "responses", "response_us"]
    .map((name) => `  ${name} = stored.${name} + excluded.${name}`).join(",\n")
},
  histogram = ARRAY[${
  [...HISTOGRAM_BOUNDS_MS, null].map((_, i) => `stored.histogram[${i + 1}] + excluded.histogram[${i + 1}]`).join(", ")
}]`;

/** Parameters of {@linkcode MERGE_LATEST_SQL}. */
export function latestArrays(changes: readonly LatestChange[]): unknown[][] {
  const each = (value: (change: LatestChange) => unknown) => changes.map(value);
  return [
    each(({ last }) => last.name),
    each(({ last }) => last.location),
    each(({ last }) => last.verdict),
    each(({ first }) => first.occurred_at),
    each(({ last }) => last.occurred_at),
    each(({ last }) => last.id),
    each(({ previous }) => previous?.occurred_at ?? null),
    each(({ previous }) => previous?.id ?? null),
    each(({ last }) => last.url),
    each(({ last }) => last.status_code),
    each(({ last }) => last.error),
    each(({ last }) => last.error_message),
    each(({ last }) => last.response_time),
    each(({ certified }) => certified?.occurred_at ?? null),
    each(({ certified }) => certified?.id ?? null),
    each(({ certified }) => certified?.cert_subject ?? null),
    each(({ certified }) => certified?.cert_issuer ?? null),
    each(({ certified }) => certified?.cert_expires_at ?? null),
    // Kafka allows no quotes in topics.
    each(({ topics }) => `{${topics.toSorted().map((topic) => `"${topic}"`).join(",")}}`),
  ];
}

/** Parameters of {@linkcode ADD_DAILY_SQL}. */
export function dailyArrays(changes: readonly DailyChange[]): unknown[][] {
  const each = (value: (change: DailyChange) => unknown) => changes.map(value);
  return [
    each(({ name }) => name),
    each(({ location }) => location),
    each(({ day }) => day),
    each(({ verdicts: { up, degraded, down } }) => up + degraded + down),
    each(({ verdicts }) => verdicts.up),
    each(({ verdicts }) => verdicts.degraded),
    each(({ verdicts }) => verdicts.down),
    each(({ responses }) => responses),
    each(({ responseUs }) => responseUs),
    each(({ histogram }) => `{${histogram.join(",")}}`),
  ];
}

/**
 * Keeps writers from `latest` and `daily` until the end of the transaction. Those that have stored rows and not counted
 * them yet wait, and count them then; so rebuilding needs no consumer to be stopped.
 */
export const LOCK_SUMMARIES_SQL = `LOCK TABLE ${qualifiedName(LATEST)}, ${qualifiedName(DAILY)} IN EXCLUSIVE MODE`;

/** Empties `latest`; readers see the old rows until the end of the transaction. */
export const CLEAR_LATEST_SQL = `DELETE FROM ${qualifiedName(LATEST)}`;

/** Empties `daily`. */
export const CLEAR_DAILY_SQL = `DELETE FROM ${qualifiedName(DAILY)}`;

/** Fills `daily` from all rows. */
export const FILL_DAILY_SQL = `INSERT INTO ${qualifiedName(DAILY)} (${names(DAILY_COLUMNS)})
SELECT name, location, day, count(*), count(*) FILTER (WHERE verdict = 'up'), count(*) FILTER (WHERE verdict = 'degraded'),
  count(*) FILTER (WHERE verdict = 'down'), count(response_time), coalesce(sum(us), 0),
  ARRAY[${[...HISTOGRAM_BOUNDS_MS, null].map((_, i) => `count(*) FILTER (WHERE bucket = ${i})`).join(", ")}]::integer[]
FROM (
  SELECT name, location, verdict, response_time, (occurred_at AT TIME ZONE 'UTC')::date AS day,
    floor(least(greatest(response_time, 0), ${MAX_RESPONSE_MS}) * 1000 + 0.5::double precision)::bigint AS us,
    width_bucket(response_time, '{${HISTOGRAM_BOUNDS_MS.join(",")}}'::double precision[]) AS bucket
  FROM ${qualifiedName(PARENT)} WHERE final
) AS checks
GROUP BY name, location, day`;

/** Fills `latest` from all rows, by hashed sums rather than by sorting them. */
export const FILL_LATEST_SQL = `WITH checks AS NOT MATERIALIZED (
  SELECT * FROM ${qualifiedName(PARENT)} WHERE final
),
ends AS (
  SELECT name, location, verdict, max(occurred_at) AS at FROM checks GROUP BY name, location, verdict
),
lasts AS (
  SELECT name, location, verdict, at, id, row_number() OVER (PARTITION BY name, location ORDER BY at DESC, id DESC) AS place
  FROM (
    SELECT ends.*, (array_agg(checks.id ORDER BY checks.id DESC))[1] AS id
    FROM ends JOIN checks ON checks.name = ends.name AND checks.location IS NOT DISTINCT FROM ends.location
      AND checks.verdict = ends.verdict AND checks.occurred_at = ends.at
    GROUP BY ends.name, ends.location, ends.verdict, ends.at
  ) AS ends
),
states AS (
  SELECT last.*, previous.at AS previous_at, previous.id AS previous_id
  FROM lasts AS last LEFT JOIN lasts AS previous
    ON previous.place = 2 AND previous.name = last.name AND previous.location IS NOT DISTINCT FROM last.location
  WHERE last.place = 1
),
starts AS (
  SELECT states.name, states.location, min(checks.occurred_at) AS since
  FROM states JOIN checks ON checks.name = states.name AND checks.location IS NOT DISTINCT FROM states.location
    AND checks.verdict = states.verdict
    AND (states.previous_at IS NULL OR (checks.occurred_at, checks.id) > (states.previous_at, states.previous_id))
  GROUP BY states.name, states.location
),
places AS (
  SELECT name, location, array_agg(topic ORDER BY topic COLLATE "C") AS topics
  FROM (SELECT DISTINCT name, location, topic FROM checks) AS checks GROUP BY name, location
),
seen AS (
  SELECT name, location, max(occurred_at) AS at FROM checks WHERE cert_expires_at IS NOT NULL GROUP BY name, location
),
certificates AS (
  SELECT DISTINCT ON (seen.name, seen.location) seen.name, seen.location, seen.at AS cert_seen_at, checks.id AS cert_id,
    cert_subject, cert_issuer, cert_expires_at
  FROM seen JOIN checks ON checks.name = seen.name AND checks.location IS NOT DISTINCT FROM seen.location
    AND checks.occurred_at = seen.at AND cert_expires_at IS NOT NULL
  ORDER BY seen.name, seen.location, checks.id DESC
)
INSERT INTO ${qualifiedName(LATEST)} (${names(LATEST_COLUMNS)})
SELECT DISTINCT ON (states.name, states.location) states.name, states.location, states.verdict, since, states.at, states.id,
  previous_at, previous_id, url, status_code, error, error_message, response_time, cert_seen_at, cert_id,
  certificates.cert_subject, certificates.cert_issuer, certificates.cert_expires_at, topics
FROM states
JOIN checks ON checks.name = states.name AND checks.location IS NOT DISTINCT FROM states.location
  AND checks.occurred_at = states.at AND checks.id = states.id
JOIN starts ON starts.name = states.name AND starts.location IS NOT DISTINCT FROM states.location
JOIN places ON places.name = states.name AND places.location IS NOT DISTINCT FROM states.location
LEFT JOIN certificates ON certificates.name = states.name AND certificates.location IS NOT DISTINCT FROM states.location`;
