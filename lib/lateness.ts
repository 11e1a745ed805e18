/** Figures of {@linkcode Lateness}. */
export interface LatenessFigures {
  /** Checks that began. */
  readonly checks: number;
  /** Half of them began no later than this after they were due, in ms, to 5 %. */
  readonly p50: number;
  /** 99 of a hundred did. */
  readonly p99: number;
  /** The latest, in ms. */
  readonly max: number;
  /** Checks that were left out. */
  readonly skipped: number;
  /** Checks that could not be made, for a fault of ours. */
  readonly failed: number;
}

/** Bounds of the histogram's buckets: each 5 % above the one before, from 0.1 ms. */
const LEAST_MS = 0.1;
const STEP = Math.log(1.05);

/** How late checks begin, and how many are left out: whether this machine keeps up. Its size does not grow. */
export class Lateness {
  readonly #buckets: number[] = [];
  #checks = 0;
  #max = 0;
  #skipped = 0;
  #failed = 0;

  /** Counts a check that began some time after it was due, in ms. */
  add(ms: number): void {
    const late = Math.max(0, ms);
    const bucket = late <= LEAST_MS ? 0 : Math.ceil(Math.log(late / LEAST_MS) / STEP);
    while (this.#buckets.length <= bucket) this.#buckets.push(0);
    this.#buckets[bucket]! += 1;
    this.#checks++;
    this.#max = Math.max(this.#max, late);
  }

  /** Counts checks that were left out. */
  skip(checks: number): void {
    this.#skipped += checks;
  }

  /** Counts a check that could not be made, for a fault of ours. */
  fail(): void {
    this.#failed++;
  }

  /** Figures since the start or the last call. */
  take(): LatenessFigures {
    const figures = {
      checks: this.#checks,
      p50: this.#quantile(0.5),
      p99: this.#quantile(0.99),
      max: round(this.#max),
      skipped: this.#skipped,
      failed: this.#failed,
    };
    this.#buckets.length = 0;
    this.#checks =
      this.#max =
      this.#skipped =
      this.#failed =
        0;
    return figures;
  }

  #quantile(share: number): number {
    let left = share * this.#checks;
    const bucket = this.#buckets.findIndex((count) => (left -= count) <= 0);
    return bucket < 0 ? 0 : round(Math.min(this.#max, LEAST_MS * Math.exp(bucket * STEP)));
  }
}

function round(ms: number): number {
  return Math.round(ms * 10) / 10;
}
