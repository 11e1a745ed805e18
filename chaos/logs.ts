/** What logs of the programs have. */
export interface LogFindings {
  /** Lines. */
  readonly lines: number;
  /** Errors, stacks and panics that nothing explains. */
  readonly unexplained: readonly string[];
  /** Errors that what was done to the programs explains. */
  readonly explained: number;
  /** Warnings, numbers left out, by how often they came. */
  readonly warnings: Readonly<Record<string, number>>;
}

const FAULT_REGEXP = /^\S+Z ERROR |Unexpected failure|[Uu]ncaught|[Uu]nhandled|panicked|^\s+at .+:\d+:\d+/;
/** Errors that are what a program should say, since it was made to. */
const EXPLAINED: readonly RegExp[] = [
  // A producer that is told to end while Kafka is away.
  /Kafka has not taken \d+ metric\(s\)/,
];
const WARNING_REGEXP = /^\S+Z WARN\S* +(?<text>.*)$/;

/** Looks for what must not be in logs. */
export async function examineLogs(paths: readonly string[]): Promise<LogFindings> {
  const unexplained: string[] = [];
  const warnings: Record<string, number> = {};
  let lines = 0;
  let explained = 0;
  for (const path of paths) {
    const text = await Deno.readTextFile(path).catch(() => "");
    for (const line of text.split("\n")) {
      lines++;
      if (FAULT_REGEXP.test(line)) {
        if (EXPLAINED.some((pattern) => pattern.test(line))) explained++;
        else unexplained.push(`${path.split("/").at(-1)}: ${line}`);
      }
      const warning = WARNING_REGEXP.exec(line)?.groups?.["text"]?.replaceAll(/'chaos-[\d-]+'|\d+/g, "N");
      if (warning !== undefined) warnings[warning] = (warnings[warning] ?? 0) + 1;
    }
  }
  return { lines, unexplained, explained, warnings };
}
