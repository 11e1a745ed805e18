import { createHash } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";

/** A visit to a site, as the site counts it. */
export interface Visit {
  /** Name of the site. */
  readonly site: string;
  /** SHA-256 of what was served, which is the visit's number: no two visits have the same. */
  readonly sha256: string;
  /** When the request came, in ms since 1970. */
  readonly begunAt: number;
  /** When it was answered; undefined where it was not. */
  answeredAt: number | undefined;
}

/** Sites that number their visits, while they run. */
export interface CountingSites extends AsyncDisposable {
  /** Address of a site, by its name. */
  url(site: string): string;
  /** All visits, in their order. */
  readonly visits: readonly Visit[];
}

/** A visit in so many takes this long, so that something is under way at each moment. */
const SLOW = { every: 5, ms: 150 } as const;
/** Each site is out of order for so many visits in turn. */
const OUT_OF_ORDER = { every: 40, visits: 8 } as const;

/** Starts sites on one free port: each answers a visit with the number of it, sometimes slowly, sometimes with status 500. */
export function startCountingSites(): CountingSites {
  const visits: Visit[] = [];
  const counts = new Map<string, number>();
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, async (request) => {
    const site = new URL(request.url).pathname.slice(1);
    const body = `visit ${visits.length + 1}`;
    const count = (counts.get(site) ?? 0) + 1;
    counts.set(site, count);
    const visit: Visit = {
      site,
      sha256: createHash("sha256").update(body).digest("hex"),
      begunAt: Date.now(),
      answeredAt: undefined,
    };
    visits.push(visit);
    if (count % SLOW.every === 0) await delay(SLOW.ms);
    visit.answeredAt = Date.now();
    const status = count % OUT_OF_ORDER.every >= OUT_OF_ORDER.every - OUT_OF_ORDER.visits ? 500 : 200;
    return new Response(body, { status });
  });
  return {
    url: (site) => `http://127.0.0.1:${server.addr.port}/${site}`,
    visits,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}
