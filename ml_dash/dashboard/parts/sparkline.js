/** A small line of a metric, in a row. Rows that are drawn together ask together. */
import { html, useEffect, useSignal } from "../lib/ui.js";
import { series } from "../lib/api.js";
import { colorOf } from "../lib/colors.js";

/** @typedef {import("../types").Run} Run */
/** @typedef {import("../types").Series} Series */

const POINTS = 40;
const WIDTH = 96;
const HEIGHT = 22;
const MOST_KEPT = 2000;

/** What was drawn, by metric and run, with the number of events it was drawn of. @type {Map<string, {events: number, d: string}>} */
const drawn = new Map();
/** Who waits for an answer, by metric and then by run. @type {Map<string, Map<string, {events: number, done: (d: string) => void}>>} */
const waiting = new Map();

/**
 * @param {string} metric
 * @param {Run} run
 * @param {(d: string) => void} done
 */
function ask(metric, run, done) {
  let runs = waiting.get(metric);
  if (!runs) {
    waiting.set(metric, (runs = new Map()));
    setTimeout(() => fetchFor(metric), 30);
  }
  runs.set(run.id, { events: run.counts.events, done });
}

/** @param {string} metric */
async function fetchFor(metric) {
  const runs = waiting.get(metric) ?? new Map();
  waiting.delete(metric);
  let found;
  try {
    found = (await series({ experiment: [...runs.keys()], metric, points: POINTS })).series;
  } catch {
    // The list says what is wrong; a line that is missing says no more.
    return;
  }
  const lines = new Map(found.map((one) => [one.experiment, one]));
  if (drawn.size > MOST_KEPT) drawn.clear();
  for (const [id, { events, done }] of runs) {
    const line = lines.get(id);
    const d = line ? path(line) : "";
    drawn.set(`${metric}\n${id}`, { events, d });
    done(d);
  }
}

/**
 * The line as SVG has it: through the middle of each bucket, and broken where points are missing.
 * @param {Series} line
 */
export function path({ x, min, max, breaks }) {
  const n = x.length;
  const [left, right] = [Number(x[0]), Number(x[n - 1])];
  let [low, high] = [Infinity, -Infinity];
  for (let i = 0; i < n; i++) {
    low = Math.min(low, Number(min[i]));
    high = Math.max(high, Number(max[i]));
  }
  const cut = new Set(breaks);
  let d = "";
  for (let i = 0; i < n; i++) {
    const px = right > left ? (1 + (WIDTH - 2) * (Number(x[i]) - left) / (right - left)) : WIDTH / 2;
    const middle = (Number(min[i]) + Number(max[i])) / 2;
    const py = high > low ? HEIGHT - 2 - (HEIGHT - 4) * (middle - low) / (high - low) : HEIGHT / 2;
    if (Number.isFinite(px) && Number.isFinite(py)) d += `${d && !cut.has(i) ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`;
  }
  return d;
}

/** @param {{run: Run, metric: string}} props */
export default function Sparkline({ run, metric }) {
  const had = drawn.get(`${metric}\n${run.id}`);
  const d = useSignal(had?.d ?? "");
  useEffect(() => {
    const now = drawn.get(`${metric}\n${run.id}`);
    d.value = now?.d ?? "";
    if (now?.events !== run.counts.events) ask(metric, run, (path) => { d.value = path; });
  }, [run.id, run.counts.events, metric]);
  return html`<svg class="sparkline" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} width=${WIDTH} height=${HEIGHT} aria-hidden="true">
    <path d=${d.value} fill="none" stroke=${colorOf(run.id)} stroke-width="1.4" stroke-linejoin="round" stroke-linecap="round" /></svg>`;
}
