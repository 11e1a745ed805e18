/** A column of a grid. */
export interface GridColumn {
  /** Heading. */
  readonly name: string;
  /** Side to which its values are aligned. Default: left. */
  readonly align?: "left" | "right";
}

/** Options of {@linkcode formatGrid}. */
export interface FormatGridOptions {
  /** Characters that a column may be wide; longer values end in `…`. Default: 60. */
  readonly maxWidth?: number;
}

/**
 * Table in plain text, as `psql` prints it.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 *
 * const columns = [{ name: "name" }, { name: "checks", align: "right" }] as const;
 * assert.equal(formatGrid(columns, [["apache", "5"]]), " name   | checks\n--------+--------\n apache |      5");
 * ```
 */
export function formatGrid(
  columns: readonly GridColumn[],
  rows: readonly (readonly string[])[],
  { maxWidth = 60 }: FormatGridOptions = {},
): string {
  const cut = (text: string) => {
    const line = text.replaceAll(/\r?\n/g, "↵").replaceAll(/\p{Cc}/gu, "·");
    return width(line) > maxWidth ? [...line].slice(0, maxWidth - 1).join("") + "…" : line;
  };
  const cells = rows.map((row) => row.map(cut));
  const widths = columns.map(({ name }, index) =>
    cells.reduce((widest, row) => Math.max(widest, width(row[index] ?? "")), width(name))
  );
  const line = (texts: readonly string[]) =>
    texts.map((text, index) => {
      const room = " ".repeat((widths[index] ?? 0) - width(text));
      return columns[index]?.align === "right" ? ` ${room}${text}` : ` ${text}${room}`;
    }).join(" |").trimEnd();
  return [
    line(columns.map(({ name }) => name)),
    widths.map((size) => "-".repeat(size + 2)).join("+"),
    ...cells.map(line),
  ].join("\n");
}

function width(text: string): number {
  return [...text].length;
}
