// The numbers behind a drawn curve: envelopes of minima and maxima, where a line is broken, what lies near the cursor.

/**
 * One curve as the server sends it. `min` and `max` are equal where an entry is one point.
 *
 * @typedef {object} Curve
 * @property {string} experiment
 * @property {unknown} [split]
 * @property {ArrayLike<number>} x
 * @property {ArrayLike<number>} min
 * @property {ArrayLike<number>} max
 * @property {number} shown
 * @property {number} total
 * @property {number[]} breaks  positions before which the line must not be joined
 * @property {{x: number, value: string}[]} nonFinite
 */

/**
 * True if x never falls, so that a position can be searched for by halving.
 *
 * @param {ArrayLike<number>} xs
 */
export function rising(xs) {
  for (let i = 1; i < xs.length; i++) if (xs[i] < xs[i - 1]) return false;
  return true;
}

/**
 * The position of the entry whose x is nearest, or -1 if there is none.
 *
 * @param {ArrayLike<number>} xs
 * @param {number} x
 * @param {boolean} inOrder  as `rising` says
 * @returns {number}
 */
export function nearest(xs, x, inOrder) {
  const length = xs.length;
  if (!length) return -1;
  if (!inOrder) {
    let best = 0;
    for (let i = 1; i < length; i++) if (Math.abs(xs[i] - x) < Math.abs(xs[best] - x)) best = i;
    return best;
  }
  let low = 0;
  let high = length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  if (low === length) return length - 1;
  return low > 0 && x - xs[low - 1] <= xs[low] - x ? low - 1 : low;
}

/**
 * The middle of minimum and maximum of each entry: the line within the envelope.
 *
 * @param {{min: ArrayLike<number>, max: ArrayLike<number>}} curve
 * @returns {Float64Array}
 */
export function middles({ min, max }) {
  const result = new Float64Array(min.length);
  for (let i = 0; i < result.length; i++) result[i] = min[i] === max[i] ? min[i] : min[i] / 2 + max[i] / 2;
  return result;
}

/**
 * The stretches [start, end) of a curve whose entries may be joined: between its breaks and entries without a value.
 *
 * @param {{min: ArrayLike<number>, max: ArrayLike<number>, breaks: number[]}} curve
 * @returns {[number, number][]}
 */
export function stretches({ min, max, breaks }) {
  const broken = new Set(breaks);
  /** @type {[number, number][]} */
  const found = [];
  let start = -1;
  for (let i = 0; i < min.length; i++) {
    const finite = Number.isFinite(min[i]) && Number.isFinite(max[i]);
    if (start >= 0 && (!finite || broken.has(i))) {
      found.push([start, i]);
      start = -1;
    }
    if (finite && start < 0) start = i;
  }
  if (start >= 0) found.push([start, min.length]);
  return found;
}

/**
 * The least and the greatest of finite numbers, or null if there is none. On a log axis only positive ones count.
 *
 * @param {Iterable<ArrayLike<number>>} lists
 * @param {boolean} log
 * @returns {[number, number] | null}
 */
export function extent(lists, log) {
  let low = Infinity;
  let high = -Infinity;
  for (const list of lists) {
    for (let i = 0; i < list.length; i++) {
      const value = list[i];
      if (!Number.isFinite(value) || (log && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : null;
}

/**
 * The range of an axis that shows `found`: with some room, and never empty.
 *
 * @param {[number, number] | null} found
 * @param {boolean} log
 * @param {number} room  part of the range to leave free on each side
 * @returns {[number, number]}
 */
export function padded(found, log, room) {
  if (!found) return log ? [1, 10] : [0, 1];
  const [low, high] = found;
  if (log) {
    const factor = low === high ? 2 : Math.pow(high / low, room);
    return [low / factor, high * factor];
  }
  const apart = high - low;
  // The neighbours of one value: a tenth of it, or one.
  const more = apart > 0 ? apart * room : Math.abs(low) / 10 || 1;
  return [low - more, high + more];
}

/**
 * What a chart says about how much of the data it shows.
 *
 * @param {{shown: number, total: number}[]} curves
 * @returns {string}
 */
export function shownOf(curves) {
  const shown = curves.reduce((sum, curve) => sum + curve.shown, 0);
  const total = curves.reduce((sum, curve) => sum + curve.total, 0);
  const plain = (/** @type {number} */ n) => n.toLocaleString("en-US");
  if (shown === total) return `${plain(total)} ${total === 1 ? "point" : "points"}`;
  return `${plain(shown)} of ${plain(total)} points`;
}

/**
 * A function from a value to a place in pixels.
 *
 * @param {number} min
 * @param {number} max
 * @param {boolean} log
 * @param {number} start  the pixel of `min`
 * @param {number} length  pixels from `min` to `max`; negative if these go the other way
 * @returns {(value: number) => number}
 */
export function scaler(min, max, log, start, length) {
  if (!log) {
    const factor = length / (max - min || 1);
    return (value) => start + (value - min) * factor;
  }
  const from = Math.log10(min);
  const factor = length / (Math.log10(max) - from || 1);
  return (value) => (value > 0 ? start + (Math.log10(value) - from) * factor : NaN);
}

/**
 * The range left when `range` is made `factor` times as wide around `centre`.
 *
 * @param {[number, number]} range
 * @param {number} centre
 * @param {number} factor
 * @param {boolean} log
 * @returns {[number, number]}
 */
export function zoomed(range, centre, factor, log) {
  if (log) {
    const [low, high, middle] = [Math.log10(range[0]), Math.log10(range[1]), Math.log10(centre)];
    return [10 ** (middle - (middle - low) * factor), 10 ** (middle + (high - middle) * factor)];
  }
  return [centre - (centre - range[0]) * factor, centre + (range[1] - centre) * factor];
}
