// From what the server answers to what is drawn: colours, smoothing, means.

import { stylesOf } from "../lib/colors.js";
import { extent, middles, padded, rising, stretches } from "./envelope.js";
import { meanOf } from "./means.js";
import { smoothed } from "./smoothing.js";

/** @typedef {import("./envelope.js").Curve} Curve */
/** @typedef {import("./plot.js").Drawn} Drawn */
/** @typedef {import("./chartoptions.js").ChartOptions} ChartOptions */

/**
 * What tells a curve from the others of its chart.
 *
 * @param {Curve} curve
 */
export const keyOf = ({ experiment, split }) => (split === null || split === undefined ? experiment : `${experiment}\n${split}`);

/**
 * @param {Curve[]} curves
 * @param {Curve[]} behind  with superseded points: faint, under the others
 * @param {ChartOptions} options
 * @param {Map<string, string>} names  of runs
 * @param {Map<string, string>} groups  run → value of the field of which means are drawn
 * @returns {Drawn[]}
 */
export function drawn(curves, behind, options, names, groups) {
  if (options.mean) return means(curves, options, groups);
  const styles = stylesOf(curves.map(keyOf));
  const faint = behind.map((curve) => ({ ...plain(apart(curve), styles, names, options), key: `${keyOf(curve)}\n*`, faint: true }));
  return [...faint, ...curves.map((curve) => withSmoothing(plain(curve, styles, names, options), options.smoothing))];
}

/**
 * A curve with superseded points, broken where a rewind goes back: nothing leads from its end to its new beginning.
 *
 * @param {Curve} curve
 * @returns {Curve}
 */
function apart(curve) {
  const breaks = [...curve.breaks];
  for (let i = 1; i < curve.x.length; i++) if (curve.x[i] <= curve.x[i - 1]) breaks.push(i);
  return { ...curve, breaks };
}

/**
 * @param {Curve} curve
 * @param {ReturnType<typeof stylesOf>} styles
 * @param {Map<string, string>} names
 * @param {ChartOptions} options
 * @returns {Drawn}
 */
function plain(curve, styles, names, options) {
  const { color, dash } = styles.get(keyOf(curve)) ?? { color: "#888888", dash: [] };
  const name = names.get(curve.experiment) ?? curve.experiment.slice(0, 8);
  return {
    key: keyOf(curve),
    run: curve.experiment,
    name: curve.split === null || curve.split === undefined ? name : `${name} · ${options.split}=${curve.split}`,
    color,
    dash,
    x: curve.x,
    inOrder: rising(curve.x),
    line: middles(curve),
    raw: null,
    own: false,
    min: curve.min,
    max: curve.max,
    stretches: stretches(curve),
    nonFinite: curve.nonFinite,
    faint: false,
  };
}

/**
 * @param {Drawn} curve
 * @param {number} weight
 * @returns {Drawn}
 */
function withSmoothing(curve, weight) {
  if (!weight) return curve;
  return { ...curve, raw: curve.line, line: smoothed(curve.x, curve.line, weight), own: true };
}

/**
 * @param {Curve[]} curves
 * @param {ChartOptions} options
 * @param {Map<string, string>} groups
 * @returns {Drawn[]}
 */
function means(curves, options, groups) {
  /** @type {Map<string, Curve[]>} */
  const members = new Map();
  for (const curve of curves) {
    const value = groups.get(curve.experiment) ?? "none";
    members.set(value, [...(members.get(value) ?? []), curve]);
  }
  const styles = stylesOf([...members.keys()]);
  return [...members].map(([value, ones]) => {
    const { x, mean, min, max, breaks } = meanOf(ones, options.spread);
    const { color, dash } = styles.get(value) ?? { color: "#888888", dash: [] };
    const key = `${options.mean.replace(/^params\./, "")} = ${value}`;
    /** @type {Drawn} */
    const curve = {
      key,
      run: key,
      name: `${key} (${ones.length} ${ones.length === 1 ? "run" : "runs"})`,
      color,
      dash,
      x,
      inOrder: true,
      line: mean,
      raw: null,
      own: true,
      min,
      max,
      stretches: stretches({ min, max, breaks }),
      nonFinite: ones.flatMap(({ nonFinite }) => nonFinite),
      faint: false,
    };
    return withSmoothing(curve, options.smoothing);
  });
}

/**
 * The ranges of both axes: all of x, or what is zoomed into, and of y what lies in it.
 *
 * @param {Drawn[]} curves
 * @param {ChartOptions} options
 * @returns {{xRange: [number, number], yRange: [number, number]}}
 */
export function ranges(curves, options) {
  const all = extent(curves.map(({ x }) => x), options.logX);
  const xRange = options.zoom ?? (all && all[0] < all[1] ? all : around(all, options));
  const values = options.zoom ? curves.flatMap((curve) => within(curve, xRange)) : curves.flatMap(({ min, max }) => [min, max]);
  return { xRange: safe(xRange, options.logX), yRange: padded(extent(values, options.logY), options.logY, 0.06) };
}

/**
 * The range around one x: seconds around a moment, and about a tenth around a number.
 *
 * @param {[number, number] | null} found
 * @param {ChartOptions} options
 * @returns {[number, number]}
 */
function around(found, { x, logX }) {
  if (found && (x === "wall" || x === "relative")) return [found[0] - 1, found[1] + 1];
  return padded(found, logX, 0);
}

/**
 * A log axis has no place for zero and below.
 *
 * @param {[number, number]} range
 * @param {boolean} log
 * @returns {[number, number]}
 */
function safe([low, high], log) {
  if (!log || low > 0) return [low, high];
  return high > 0 ? [high / 1000, high] : [1, 10];
}

/**
 * @param {Drawn} curve
 * @param {[number, number]} range
 * @returns {number[][]}
 */
function within({ x, min, max }, [low, high]) {
  const values = [];
  for (let i = 0; i < x.length; i++) if (x[i] >= low && x[i] <= high) values.push(min[i], max[i]);
  return [values];
}
