/** The points of one chart: asked for in as many pieces as it is wide, again when zoomed into, and as they grow. */
import { series } from "../lib/api.js";
import { subscribe, throttled } from "../lib/live.js";
import { useLayoutEffect, useRef, useState } from "../lib/ui.js";

/** @typedef {import("../types").Series} Series */
/** @typedef {import("./chartoptions.js").ChartOptions} ChartOptions */

/**
 * @typedef {object} Answer
 * @property {string} key  of the request
 * @property {string} x  what the axis of these curves is
 * @property {Series[]} curves
 * @property {Series[]} behind  with superseded points, if these are shown
 * @property {string[]} missing  runs that have no such metric
 * @property {number | null} read  part of the points that are in the index which is being made; null: all
 */

/** A chart asks at most so often. */
const AGAIN_MS = 500;
/** From so many runs on, a coarse answer comes first. */
const MANY = 8;
const COARSE = 60;
/** Entries of all curves of a chart together: a hundred of them are told apart no better by more. */
const MOST = 20_000;
/** Part of the range that is asked for on each side of it, so that lines go on to the edge. */
const BEYOND = 0.02;
/** A run that a page is flung past is not asked for. */
const SETTLED_MS = 60;

/**
 * What to draw: the newest answer there is, and whether it is the one to this question.
 *
 * @param {string} metric
 * @param {string[]} runs
 * @param {ChartOptions} options
 * @param {string | null} asOf
 * @param {number} width  in CSS pixels; 0: not known yet
 * @returns {{answer: Answer | null, error: Error | null, loading: boolean}}
 */
export function useSeries(metric, runs, options, asOf, width) {
  const [answer, setAnswer] = useState(/** @type {Answer | null} */ (null));
  const [error, setError] = useState(/** @type {Error | null} */ (null));
  // In steps, so that a window that is being made wider does not ask for each pixel.
  const wide = Math.min(2000, Math.max(100, Math.ceil(width / 100) * 100));
  const points = width ? Math.min(wide, Math.max(100, Math.floor(MOST / runs.length))) : 0;
  const { x, split, superseded, zoom } = options;
  const key = JSON.stringify([metric, runs, x, split, superseded, zoom, asOf, points]);
  const drawn = useRef("");
  // Before the frame is drawn: the request is on its way while the browser paints.
  useLayoutEffect(() => {
    if (!points || !runs.length) return undefined;
    const abort = new AbortController();
    const query = { experiment: runs, metric, x, split: split || null, asOf, ...beyond(zoom, options.logX) };
    const load = async (/** @type {number} */ wanted) => {
      const ask = (/** @type {object} */ more) => series({ ...query, points: wanted, ...more }, { signal: abort.signal });
      const now = await ask({});
      const all = superseded && now.series.some((one) => Number(one.superseded) > 0) ? await ask({ superseded: true }) : null;
      if (abort.signal.aborted) return;
      drawn.current = metric;
      setError(null);
      setAnswer({ key, x, curves: now.series, behind: all?.series ?? [], missing: now.missing, read: readOf(now) });
      // What is shown is good as far as it goes; the rest is asked for until it is there.
      if (readOf(now) !== null) again(null);
    };
    const guarded = async (/** @type {number} */ wanted) => {
      try {
        await load(wanted);
      } catch (failed) {
        if (!abort.signal.aborted) setError(/** @type {Error} */ (failed));
      }
    };
    const again = throttled(AGAIN_MS, () => guarded(points));
    const first = async () => {
      if (runs.length >= MANY && drawn.current !== metric) await guarded(COARSE);
      await guarded(points);
    };
    // What is there at once is drawn at once; what a page is flung past is not asked for.
    const timer = setTimeout(first, drawn.current ? 0 : SETTLED_MS * flung());
    const leave = asOf === null ? subscribe(runs, again) : () => {};
    return () => {
      clearTimeout(timer);
      leave();
      abort.abort();
    };
  }, [key]);
  return { answer, error, loading: answer?.key !== key };
}

/** @param {import("../types").SeriesAnswer} answer */
const readOf = ({ indexed, ofPoints }) => (indexed !== undefined && ofPoints ? indexed / ofPoints : null);

/**
 * @param {[number, number] | null} zoom
 * @param {boolean} log
 */
function beyond(zoom, log) {
  if (!zoom) return {};
  const [from, to] = zoom;
  if (log) {
    const factor = (to / from) ** BEYOND;
    return { from: from / factor, to: to * factor };
  }
  return { from: from - (to - from) * BEYOND, to: to + (to - from) * BEYOND };
}

let scrolledAt = -Infinity;
addEventListener("scroll", () => (scrolledAt = performance.now()), { capture: true, passive: true });

/** 1 while the page is being scrolled, else 0. */
const flung = () => (performance.now() - scrolledAt < 200 ? 1 : 0);
