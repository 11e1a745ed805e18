import type { Log } from "./log.ts";
import { print } from "./log.ts";
import type { DeadLetterFilter, Store, StoredDeadLetter } from "./store.ts";
import { decodeMessages } from "./writer.ts";

/** Options of {@linkcode listDeadLetters} and {@linkcode replayDeadLetters}. */
export interface DeadLetterOptions {
  /** Which ones. Default: all that were not put back. */
  readonly filter: DeadLetterFilter;
  /** Where to say how many there are. */
  readonly log: Log;
}

const decoder = new TextDecoder("utf-8", { fatal: true });

/** Prints dead letters, each as a line of JSON, and says how many there are for each reason. */
export async function listDeadLetters(store: Store, { filter, log }: DeadLetterOptions): Promise<void> {
  for await (const letters of store.deadLetters(filter)) {
    for (const letter of letters) print(JSON.stringify(printable(letter)));
  }
  await reportReasons(store, { filter, log });
}

/**
 * Decodes dead letters with the present version and stores those that are rows; the others stay, with the reason that
 * holds now.
 *
 * @returns How many stay.
 */
export async function replayDeadLetters(store: Store, { filter, log }: DeadLetterOptions): Promise<number> {
  let replayed = 0;
  let failed = 0;
  for await (const letters of store.deadLetters(filter)) {
    const { rows, deadLetters } = decodeMessages(letters.map(({ message }) => message));
    const blocked = await store.ensureTables(rows.map(({ message: { topic } }) => topic));
    for (const [topic, reason] of blocked) log.error("Topic '{topic}' waits: {reason}", { topic, reason });
    const free = rows.filter(({ message: { topic } }) => !blocked.has(topic));
    const stored = await store.replay({ rows: free, deadLetters });
    replayed += stored;
    failed += letters.length - stored;
  }
  log.info("{replayed} dead letter(s) are rows now, {failed} stay", { replayed, failed });
  return failed;
}

async function reportReasons(store: Store, { filter, log }: DeadLetterOptions): Promise<void> {
  const counts = await store.countDeadLetters(filter);
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  log.info("{total} dead letter(s)", { total });
  for (const [reason, count] of counts) log.info("{count} × {reason}", { count, reason });
}

function printable({ message, reason, receivedAt }: StoredDeadLetter): Record<string, unknown> {
  const { topic, partition, offset, timestamp, key, value, headers } = message;
  return {
    topic,
    partition,
    offset,
    timestamp: new Date(timestamp).toISOString(),
    ...printableBytes("key", key),
    ...printableBytes("value", value),
    headers,
    reason,
    received_at: receivedAt.toISOString(),
  };
}

/** As text, or in base64 under another name where it is none. */
function printableBytes(name: string, bytes: Uint8Array | null): Record<string, string | null> {
  if (bytes === null) return { [name]: null };
  try {
    return { [name]: decoder.decode(bytes) };
  } catch {
    return { [`${name}_base64`]: new Uint8Array(bytes).toBase64() };
  }
}
