import assert from "node:assert/strict";
import { ConfigError, errorCode, errorMessage } from "../lib/error.ts";

function withCode(message: string, code: unknown, options: ErrorOptions = {}): Error {
  return Object.assign(new Error(message, options), { code });
}

Deno.test("ConfigError is an error with a name of its own", () => {
  const error = new ConfigError("Cannot read", { cause: 1 });
  assert.ok(error instanceof Error);
  assert.equal(`${error}`, "ConfigError: Cannot read");
  assert.equal(error.cause, 1);
});

const CYCLE = new Error("around");
CYCLE.cause = CYCLE;

Deno.test.each([
  { what: "an error", error: new Error("no"), message: "no" },
  { what: "an error without a message", error: new RangeError(), message: "RangeError" },
  {
    what: "causes",
    error: new Error("a", { cause: new TypeError("b", { cause: "c" }) }),
    message: "a: b: c",
  },
  { what: "a cause that is told already", error: new Error("a: b", { cause: new Error("b") }), message: "a: b" },
  { what: "a cause of null", error: new Error("a", { cause: null }), message: "a" },
  { what: "lines and blanks", error: new Error(" a\n\t b "), message: "a b" },
  { what: "several errors", error: new AggregateError([new Error("a"), "b"]), message: "a; b" },
  { what: "several errors with a message", error: new AggregateError([new Error("a")], "all"), message: "all" },
  { what: "a text", error: "no", message: "no" },
  { what: "a number", error: 0, message: "0" },
  { what: "nothing", error: undefined, message: "" },
  { what: "a circle", error: CYCLE, message: "around" },
])("errorMessage() tells of $what in one line", ({ error, message }) => {
  assert.equal(errorMessage(error), message);
});

Deno.test.each([
  { what: "an error", error: withCode("a", "ECONNREFUSED"), code: "ECONNREFUSED" },
  {
    what: "a cause",
    error: new Error("a", { cause: new Error("b", { cause: withCode("c", "23505") }) }),
    code: "23505",
  },
  { what: "the error before its cause", error: withCode("a", "A", { cause: withCode("b", "B") }), code: "A" },
  {
    what: "several errors",
    error: new AggregateError([new Error("a"), withCode("b", "ENOTFOUND")]),
    code: "ENOTFOUND",
  },
  { what: "no error", error: { code: "A" }, code: undefined },
  { what: "an error without one", error: new Error("a"), code: undefined },
  { what: "an error with a number", error: withCode("a", 11), code: undefined },
  { what: "nothing", error: undefined, code: undefined },
  { what: "a circle", error: CYCLE, code: undefined },
])("errorCode() finds that of $what", ({ error, code }) => {
  assert.equal(errorCode(error), code);
});
