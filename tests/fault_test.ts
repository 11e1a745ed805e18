import assert from "node:assert/strict";
import { mock } from "node:test";
import { Faults } from "../lib/fault.ts";
import type { Log } from "../lib/log.ts";

function keepingLog(): { log: Log; lines: string[] } {
  const lines: string[] = [];
  const fail = () => assert.fail("a line of another level");
  return {
    lines,
    log: {
      debug: fail,
      info: fail,
      warn: fail,
      error: (message, properties = {}) =>
        void lines.push(message.replaceAll(/\{(\w+)\}/g, (_, name) => String(properties[name]))),
    },
  };
}

const denied = (host: string) => new Deno.errors.NotCapable(`Requires net access to "${host}"`);

Deno.test("Faults tells of one missing permission of a thousand sites in two lines", () => {
  mock.timers.enable({ apis: ["setInterval"] });
  try {
    const { log, lines } = keepingLog();
    using faults = new Faults({ log });
    for (let i = 0; i < 1_000; i++) faults.tell(`site-${i}`, denied(`${i}.example`));
    assert.deepEqual(lines, [
      `Cannot check 'site-0', which says nothing of the site: Requires net access to "0.example"`,
    ]);
    mock.timers.tick(60_000);
    assert.deepEqual(lines.slice(1), [
      "Cannot check 999 site(s), 'site-1' among them: 999 more check(s) that say nothing of the sites; the last: " +
      'Requires net access to "999.example"',
    ]);
    faults.tell("site-1", denied("1.example"));
    faults.tell("site-1", denied("1.example"));
    mock.timers.tick(60_000);
    assert.match(lines[2]!, /^Cannot check 1 site\(s\), 'site-1' among them: 2 more check\(s\)/);
    mock.timers.tick(120_000);
    assert.equal(lines.length, 3);
    faults.tell("site-7", denied("7.example"));
    assert.match(lines[3]!, /^Cannot check 'site-7'/, "after a minute without, the next is told at once");
  } finally {
    mock.timers.reset();
  }
});

Deno.test("Faults tells each kind at once, and what is left at the end", () => {
  const { log, lines } = keepingLog();
  {
    using faults = new Faults({ log });
    faults.tell("a", denied("a.example"));
    faults.tell("b", new Error("Too many open files (os error 24)"));
    faults.tell("c", new TypeError("unexpected"));
    faults.tell("d", denied("d.example"));
  }
  assert.deepEqual(lines, [
    `Cannot check 'a', which says nothing of the site: Requires net access to "a.example"`,
    "Cannot check 'b', which says nothing of the site: too many open files: raise the limit of this process (ulimit -n, " +
    "or LimitNOFILE= of systemd), or lower max_checks of [producer]",
    "Cannot check 'c', which says nothing of the site: unexpected",
    "Cannot check 1 site(s), 'd' among them: 1 more check(s) that say nothing of the sites; the last: " +
    'Requires net access to "d.example"',
  ]);
});
