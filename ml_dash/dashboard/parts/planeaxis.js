// Values of runs on an axis: numbers by their size, everything else by name.

import { number } from "../lib/format.js";

/**
 * @typedef {object} PlaneAxis
 * @property {boolean} numeric
 * @property {(value: unknown) => number | null} place  0 to 1 along the axis; null where there is no place
 * @property {{at: number, text: string}[]} ticks
 */

/** More names than this are not written out. */
const NAMES = 12;

/**
 * An axis for these values. Numbers alone make a numeric one; with anything else among them each value is a name.
 *
 * @param {unknown[]} values  undefined and null: the run has none
 * @param {boolean} log
 * @returns {PlaneAxis}
 */
export function axisOf(values, log) {
  const given = values.filter((value) => value !== undefined && value !== null);
  if (given.length && given.every((value) => typeof value === "number")) return numeric(/** @type {number[]} */ (given), log);
  return named(given.map(textOf));
}

/**
 * @param {number[]} values
 * @param {boolean} log
 * @returns {PlaneAxis}
 */
function numeric(values, log) {
  const usable = values.filter((value) => Number.isFinite(value) && (!log || value > 0));
  const of = log ? Math.log10 : (/** @type {number} */ value) => value;
  const low = of(Math.min(...usable));
  const high = of(Math.max(...usable));
  const place = (/** @type {unknown} */ value) => {
    if (typeof value !== "number" || !Number.isFinite(value) || (log && value <= 0)) return null;
    // One value stands in the middle.
    return high > low ? (of(value) - low) / (high - low) : 0.5;
  };
  const marks = marksOf(usable, place, low, high, log);
  return { numeric: true, place, ticks: marks.map((value) => ({ at: /** @type {number} */ (place(value)), text: number(value, 4) })) };
}

/**
 * The values themselves where these are few and apart, else round numbers.
 *
 * @param {number[]} values
 * @param {(value: number) => number | null} place
 * @param {number} low  logarithms on a log axis, as `high`
 * @param {number} high
 * @param {boolean} log
 */
function marksOf(values, place, low, high, log) {
  const kinds = [...new Set(values)].sort((a, b) => a - b);
  const places = kinds.map((value) => place(value) ?? 0);
  if (kinds.length <= 8 && places.every((at, i) => !i || at - places[i - 1] > 0.06)) return kinds;
  return log ? powers(low, high) : steps(low, high);
}

/**
 * True for numbers that are better told apart on a log axis: all positive, and the greatest ten times the least.
 *
 * @param {unknown[]} values
 */
export function spansMagnitudes(values) {
  const given = values.filter((value) => value !== undefined && value !== null);
  if (!given.length || !given.every((value) => typeof value === "number" && value > 0 && Number.isFinite(value))) return false;
  const numbers = /** @type {number[]} */ (given);
  return Math.max(...numbers) >= 10 * Math.min(...numbers);
}

/**
 * Round numbers from low to high.
 *
 * @param {number} low
 * @param {number} high
 */
function steps(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) ?? rough;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/**
 * Powers of ten between the logarithms, or the ends where there are less than two.
 *
 * @param {number} low
 * @param {number} high
 */
function powers(low, high) {
  const found = [];
  const stride = Math.max(1, Math.ceil((high - low) / 6));
  for (let power = Math.ceil(low); power <= high; power += stride) found.push(10 ** power);
  return found.length > 1 ? found : [10 ** low, 10 ** high];
}

/**
 * @param {string[]} names
 * @returns {PlaneAxis}
 */
function named(names) {
  const kinds = [...new Set(names)].sort(new Intl.Collator("en", { numeric: true }).compare);
  const places = new Map(kinds.map((name, i) => [name, kinds.length > 1 ? i / (kinds.length - 1) : 0.5]));
  const stride = Math.ceil(kinds.length / NAMES);
  return {
    numeric: false,
    place: (value) => (value === undefined || value === null ? null : (places.get(textOf(value)) ?? null)),
    ticks: kinds.filter((_, i) => i % stride === 0).map((text) => ({ at: /** @type {number} */ (places.get(text)), text })),
  };
}

/**
 * A value of a parameter in words.
 *
 * @param {unknown} value
 * @returns {string}
 */
export const textOf = (value) => (typeof value === "string" ? value : typeof value === "number" ? number(value, 6) : JSON.stringify(value));

/**
 * True if two values of a parameter are the same, whatever they are made of.
 *
 * @param {unknown} a
 * @param {unknown} b
 */
export const equal = (a, b) => a === b || JSON.stringify(a) === JSON.stringify(b);

/**
 * The parameters in which runs differ, by name.
 *
 * @param {{params: Record<string, unknown>}[]} experiments
 * @returns {string[]}
 */
export function differing(experiments) {
  const keys = new Set(experiments.flatMap(({ params }) => Object.keys(params)));
  return [...keys].filter((key) => experiments.some(({ params }) => !equal(params[key], experiments[0].params[key]))).sort();
}

// From blue to yellow, rising evenly in lightness: it looks alike to people who see fewer colours. One for each background.
const ON_LIGHT = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#b9a93f"];
const ON_DARK = ["#4f7ad1", "#6789c8", "#7f98b8", "#97a7a6", "#afb692", "#c7c57c", "#dfd363", "#f7e14a"];

/**
 * A colour for a value from 0 to 1.
 *
 * @param {number} part
 * @param {boolean} dark  the background
 */
export function rampColor(part, dark) {
  const ramp = dark ? ON_DARK : ON_LIGHT;
  return ramp[Math.min(ramp.length - 1, Math.max(0, Math.floor(part * ramp.length)))];
}

/** @param {boolean} dark */
export const rampCss = (dark) => `linear-gradient(to right, ${(dark ? ON_DARK : ON_LIGHT).join(", ")})`;
