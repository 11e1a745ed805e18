import { ConfigError } from "./error.ts";
import { compilePattern } from "./pattern.ts";

/** Names and patterns of topics, as `--kafka-topic` takes them. */
export interface TopicList {
  /** Names. */
  readonly names: readonly string[];
  /** Patterns as written, each with the one that a whole name must match. */
  readonly patterns: ReadonlyMap<string, RegExp>;
}

const TOPIC_REGEXP = /^[a-zA-Z0-9._-]{1,249}$/;
/** Topics of Kafka's own. */
const INTERNAL_TOPICS: ReadonlySet<string> = new Set([
  "__consumer_offsets",
  "__transaction_state",
  "__share_group_state",
  "__cluster_metadata",
]);
/** `/…/` up to a comma or the end, with commas in it; or what stands before a comma. */
const PART_REGEXP = /\s*\/(?:\\.|[^/\\])+\/\s*(?=,|$)|[^,]+/g;

/**
 * Checks that Kafka takes a name for a topic.
 *
 * @param label What has the name, for errors: "name of website 'apache'".
 * @param origin Where it stands.
 * @throws {ConfigError} when it does not, or the topic is Kafka's own.
 */
export function checkTopicName(name: string, label: string, origin: string): string {
  if (!TOPIC_REGEXP.test(name) || name === "." || name === "..") {
    throw new ConfigError(
      `Cannot use ${label} (${origin}): expected 1 to 249 letters, digits, dots, dashes and underscores, as Kafka ` +
        `takes for a topic`,
    );
  }
  if (INTERNAL_TOPICS.has(name)) {
    throw new ConfigError(`Cannot use ${label} (${origin}): expected a name other than that of a topic of Kafka's own`);
  }
  return name;
}

/** Reads names and `/patterns/`, separated by commas. */
export function parseTopics(text: string, origin: string): TopicList {
  const parts = (text.match(PART_REGEXP) ?? []).map((part) => part.trim()).filter((part) => part !== "");
  const isPattern = (part: string) => part.startsWith("/");
  return {
    names: parts.filter((part) => !isPattern(part)).map((part) => checkTopicName(part, `topic '${part}'`, origin)),
    patterns: new Map(parts.filter(isPattern).map((part) => [part, topicPattern(part, origin)])),
  };
}

function topicPattern(text: string, origin: string): RegExp {
  try {
    if (text.length < 3 || !text.endsWith("/")) throw new SyntaxError("expected /pattern/");
    const { source, flags } = compilePattern(text.slice(1, -1));
    return new RegExp(`^(?:${source})$`, flags);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new ConfigError(`Cannot read topic '${text}' (${origin}): ${error.message}`);
  }
}
