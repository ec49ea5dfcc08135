// Several runs as one curve: their mean, and a band of their spread, on x values they have in common.

import { middles, nearest, rising, stretches } from "./envelope.js";

/** @typedef {import("./envelope.js").Curve} Curve */

/** More x values than a chart has pixels say nothing more. */
const MOST = 1000;

/**
 * The x values at which runs are compared: all that occur if these are few, else as many in equal distances.
 *
 * @param {Curve[]} curves
 * @param {number} [most]
 * @returns {Float64Array}
 */
export function commonGrid(curves, most = MOST) {
  const all = new Set();
  let low = Infinity;
  let high = -Infinity;
  for (const { x } of curves) {
    for (let i = 0; i < x.length; i++) {
      if (!Number.isFinite(x[i])) continue;
      if (all.size <= most) all.add(x[i]);
      if (x[i] < low) low = x[i];
      if (x[i] > high) high = x[i];
    }
  }
  if (all.size <= most) return Float64Array.from(all).sort();
  return Float64Array.from({ length: most }, (_, i) => low + ((high - low) * i) / (most - 1));
}

/**
 * The value of a curve at each x of a grid; NaN where the curve has none: before, after, and in its gaps.
 *
 * Between two joined points it is on the straight line between them, as drawn.
 *
 * @param {Curve} curve
 * @param {ArrayLike<number>} grid  rising
 * @returns {Float64Array}
 */
export function resampled(curve, grid) {
  const result = new Float64Array(grid.length).fill(NaN);
  const values = middles(curve);
  const { x } = curve;
  const inOrder = rising(x);
  for (const [start, end] of stretches(curve)) {
    let at = start;
    for (let i = 0; i < grid.length; i++) {
      if (inOrder) {
        while (at + 1 < end && x[at + 1] <= grid[i]) at++;
        if (grid[i] < x[start] || grid[i] > x[end - 1]) continue;
        const apart = at + 1 < end ? x[at + 1] - x[at] : 0;
        const part = apart > 0 ? (grid[i] - x[at]) / apart : 0;
        result[i] = part > 0 ? values[at] + (values[at + 1] - values[at]) * part : values[at];
      } else {
        const near = nearest(x, grid[i], false);
        if (near >= start && near < end && x[near] === grid[i]) result[i] = values[near];
      }
    }
  }
  return result;
}

/**
 * The mean of curves with its band. `spread` "sd" is the mean ± one standard deviation (of a sample), "range" the least
 * and the greatest run. An x where no run has a value breaks the line.
 *
 * @param {Curve[]} curves
 * @param {"sd" | "range"} spread
 * @param {number} [most]
 * @returns {{x: Float64Array, mean: Float64Array, min: Float64Array, max: Float64Array, runs: Float64Array, breaks: number[]}}
 */
export function meanOf(curves, spread, most = MOST) {
  const grid = commonGrid(curves, most);
  const lists = curves.map((curve) => resampled(curve, grid));
  const x = [];
  const mean = [];
  const min = [];
  const max = [];
  const runs = [];
  const breaks = [];
  let gap = false;
  for (let i = 0; i < grid.length; i++) {
    let count = 0;
    let centre = 0;
    let squares = 0;
    let low = Infinity;
    let high = -Infinity;
    for (const list of lists) {
      const value = list[i];
      if (Number.isNaN(value)) continue;
      // Welford: stays exact where values are large and close together.
      count++;
      const away = value - centre;
      centre += away / count;
      squares += away * (value - centre);
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (!count) {
      gap = x.length > 0;
      continue;
    }
    if (gap) breaks.push(x.length);
    gap = false;
    const deviation = count > 1 ? Math.sqrt(squares / (count - 1)) : 0;
    x.push(grid[i]);
    mean.push(centre);
    min.push(spread === "sd" ? centre - deviation : low);
    max.push(spread === "sd" ? centre + deviation : high);
    runs.push(count);
  }
  return {
    x: Float64Array.from(x),
    mean: Float64Array.from(mean),
    min: Float64Array.from(min),
    max: Float64Array.from(max),
    runs: Float64Array.from(runs),
    breaks,
  };
}
