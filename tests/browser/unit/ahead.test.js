// The modules that are asked for ahead are those that the screens import.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const root = pathToFileURL(`${process.cwd()}/dashboard/`);
const { CHARTS, COMPARE, RUN } = await import(new URL("lib/ahead.js", root));

/** All that a module imports without being asked to, and what that imports. */
function closure(name, seen = new Set()) {
  if (seen.has(name)) return seen;
  seen.add(name);
  const text = readFileSync(new URL(name, root), "utf8");
  for (const [, path] of text.matchAll(/^(?:import|export)[^;]*? from "(\.[^"]+)"/gms)) {
    closure(new URL(path, new URL(name, root)).href.slice(root.href.length), seen);
  }
  return seen;
}

test("what charts and the screen of compared runs import is asked for at once", () => {
  const first = closure("app.js");
  const needed = (screen) => [...closure(screen)].filter((name) => !first.has(name) && name !== screen).sort();
  assert.deepEqual([...CHARTS, ...COMPARE].sort(), needed("screens/compare.js"));
  assert.deepEqual([...CHARTS].sort(), needed("screens/run-charts.js"));
  const run = new Set([...needed("screens/run.js"), "screens/run-charts.js"]);
  const runs = /const RUNS = \[([^\]]*)\]/.exec(readFileSync(new URL("app.js", root), "utf8"))[1].match(/[^"\s,]+\.js/g);
  assert.deepEqual(runs.sort(), needed("screens/runs.js"));
  assert.deepEqual([...RUN].sort(), [...run].filter((name) => !CHARTS.includes(name)).sort());
});
