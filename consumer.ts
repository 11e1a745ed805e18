import { type ConsumerConfig, readConsumerConfig } from "./lib/config.ts";
import { listDeadLetters, replayDeadLetters } from "./lib/dead_letter.ts";
import { type HandleMessages, Subscriber } from "./lib/subscriber.ts";
import { type Log, print } from "./lib/log.ts";
import { type Context, runProgram } from "./lib/program.ts";
import { afterAbort } from "./lib/schedule.ts";
import { Store } from "./lib/store.ts";
import { decodeMessages, Writer } from "./lib/writer.ts";

/** After a signal, the database may take this long for what was read; what it does not take is read again. */
const SHUTDOWN_WRITE_MS = 6_000;
/** While one transaction waits for the disk, the database takes the rows of another. */
const MAX_TRANSACTIONS = 2;

/** Moves metrics from Kafka into PostgreSQL. */
async function consume(context: Context<ConsumerConfig>): Promise<number> {
  const { config, log, signal } = context;
  if (config.postgres === null) return await read(context, (messages) => printRows(messages, log));

  await using store = await Store.open(config.postgres, { log, signal });
  if (context.commandLine.task !== undefined) return await mend(store, context);
  const writer = new Writer(store, {
    log,
    signal: afterAbort(signal, SHUTDOWN_WRITE_MS),
    transactions: Math.min(config.postgres.maxConnection, MAX_TRANSACTIONS),
  });
  const code = await read(context, (messages, dropped) => writer.write(messages, dropped));
  log.info("Stored {rows} row(s) and {deadLetters} dead letter(s)", writer.stored);
  return code;
}

/** Looks after what is in the database, and reads no topic. */
async function mend(store: Store, { commandLine: { task, flags }, log }: Context<ConsumerConfig>): Promise<number> {
  const filter = { topic: flags.get("topic"), reason: flags.get("reason") };
  switch (task) {
    case "replay-dead-letters":
      return await replayDeadLetters(store, { filter, log }) === 0 ? 0 : 1;
    case "rebuild-summaries":
      await store.rebuildSummaries();
      return 0;
    default:
      await listDeadLetters(store, { filter, log });
      return 0;
  }
}

/** Reads topics and hands their messages over: with `--once` up to their present ends, else until a signal. */
async function read(
  { config, commandLine, log, signal }: Context<ConsumerConfig>,
  handle: HandleMessages,
): Promise<number> {
  const groupId = commandLine.dryRun ? null : config.groupId;
  await using subscriber = new Subscriber(config.kafka, { groupId, topics: config.topics, log });
  if (config.resetOffsets !== null) await subscriber.resetOffsets(config.resetOffsets, signal);
  if (!commandLine.once) {
    await subscriber.run({ handle, signal });
    return 0;
  }
  const blocked = new AbortController();
  const complete = await subscriber.runToEnd({
    signal: AbortSignal.any([signal, blocked.signal]),
    handle: (messages, dropped) => {
      const handling = handle(messages, dropped);
      handling.stored.then((handled) => handled === "blocked" && blocked.abort(), () => {});
      return handling;
    },
  });
  return complete && !blocked.signal.aborted ? 0 : 1;
}

function printRows(messages: Parameters<HandleMessages>[0], log: Log): ReturnType<HandleMessages> {
  const { rows, deadLetters } = decodeMessages(messages);
  for (const { message, metric } of rows) print(JSON.stringify({ topic: message.topic, ...metric }));
  for (const { message: { topic, partition, offset }, reason } of deadLetters) {
    log.warn("Dead letter {topic}/{partition}@{offset}: {reason}", { topic, partition, offset, reason });
  }
  return { accepted: Promise.resolve(), stored: Promise.resolve("stored") };
}

Deno.exitCode = await runProgram("consumer", Deno.args, { readConfig: readConsumerConfig, run: consume });
