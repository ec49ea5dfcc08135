// What stands at the axes: numbers, durations and times, as short as the distance between marks allows.

import { number } from "../lib/format.js";

const MINUTE = 60;
const HOUR = 3600;
const DAY = 86400;

/** Distances between marks of an axis of seconds that people count in. */
export const SECONDS = [
  0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE,
  15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 5 * DAY, 10 * DAY, 30 * DAY,
  60 * DAY, 120 * DAY, 365 * DAY, 730 * DAY, 3650 * DAY,
];

/**
 * A number in at most seven characters or so: 1200 → "1.2k", 0.000012 → "1.2e-5". What is equal on an axis looks equal.
 *
 * @param {number} value
 * @param {number} [apart]  the distance to the next mark: so many digits as tell them apart
 * @returns {string}
 */
export function short(value, apart) {
  if (!Number.isFinite(value)) return String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  const step = apart ? Math.abs(apart) : size / 1000;
  if (size >= 1e15 || size < 1e-4) return exponent(value, digitsFor(size, step));
  for (const [from, unit, letter] of UNITS) {
    if (size >= from) return trimmed((value / unit).toFixed(Math.min(6, decimals(step / unit)))) + letter;
  }
  return trimmed(value.toFixed(Math.min(8, decimals(step))));
}

// From where on a unit is used, its size and its letter. Thousands stand as they are up to 9,999: steps are read more
// often than they are wide.
/** @type {[number, number, string][]} */
const UNITS = [
  [1e12, 1e12, "T"],
  [1e9, 1e9, "G"],
  [1e6, 1e6, "M"],
  [1e4, 1e3, "k"],
];

/**
 * How many decimals tell multiples of `step` apart: 0.25 needs two.
 *
 * @param {number} step
 */
function decimals(step) {
  if (!(step > 0)) return 0;
  const few = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
  const scaled = step * 10 ** few;
  return Math.abs(scaled - Math.round(scaled)) < 1e-6 * scaled ? few : few + 1;
}

/**
 * @param {number} size
 * @param {number} step
 */
function digitsFor(size, step) {
  return Math.min(6, Math.max(0, Math.floor(Math.log10(size)) - Math.floor(Math.log10(step) + 1e-9)));
}

/**
 * @param {number} value
 * @param {number} digits
 */
function exponent(value, digits) {
  const [mantissa, power] = value.toExponential(digits).split("e");
  return `${trimmed(mantissa)}e${power.replace("+", "")}`;
}

/** @param {string} text */
function trimmed(text) {
  return text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text;
}

/**
 * Where the marks of a log axis stand: powers of ten, with 2 and 5 between them where there is room.
 *
 * @param {number} low  above zero
 * @param {number} high
 * @param {number} room  for so many
 * @returns {number[]}
 */
export function logMarks(low, high, room) {
  const decades = Math.log10(high) - Math.log10(low);
  if (!(decades > 0)) return [low];
  for (const factors of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1]]) {
    if (decades * factors.length <= room || factors.length === 1) {
      // What is too dense even as powers has some of these alone.
      const stride = Math.max(1, Math.ceil(decades / Math.max(1, room)));
      const found = [];
      for (let power = Math.floor(Math.log10(low) / stride) * stride; power <= Math.log10(high); power += stride) {
        for (const factor of factors) {
          const value = Number(`${factor}e${power}`);
          if (value >= low && value <= high) found.push(value);
        }
      }
      if (found.length > 1) return found;
    }
  }
  // Less than a decade: marks as on any axis.
  const step = 10 ** Math.floor(Math.log10((high - low) / 2));
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(Number((i * step).toPrecision(12)));
  return found.filter((_, i) => i % Math.max(1, Math.ceil(found.length / Math.max(2, room))) === 0);
}

/**
 * A duration in seconds: 4210 → "1h 10m".
 *
 * @param {number} seconds
 * @returns {string}
 */
export function span(seconds) {
  const sign = seconds < 0 ? "-" : "";
  let rest = Math.abs(seconds);
  if (rest < MINUTE) return `${sign}${trimmed(rest.toFixed(rest < 1 ? 3 : rest < 10 ? 2 : 1))}s`;
  rest = Math.round(rest);
  const [days, hours] = [Math.floor(rest / DAY), Math.floor((rest % DAY) / HOUR)];
  const [minutes, left] = [Math.floor((rest % HOUR) / MINUTE), rest % MINUTE];
  const parts = [days && `${days}d`, hours && `${hours}h`, minutes && `${minutes}m`, left && `${left}s`].filter(Boolean);
  return sign + parts.slice(0, 2).join(" ");
}

/**
 * The marks of a time axis: the day at the first mark and where it changes.
 *
 * @param {number[]} times  seconds since 1970
 * @param {number} apart
 * @returns {string[]}
 */
export function clock(times, apart) {
  let before = "";
  return times.map((seconds) => {
    const date = new Date(seconds * 1000);
    const day = date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
    if (apart >= 28 * DAY) return date.toLocaleDateString("en-GB", { month: "short", year: "numeric" });
    if (apart >= DAY) return day;
    /** @type {Intl.DateTimeFormatOptions} */
    const parts = { hour: "2-digit", minute: "2-digit" };
    if (apart < MINUTE) parts.second = "2-digit";
    if (apart < 1) parts.fractionalSecondDigits = apart < 0.01 ? 3 : apart < 0.1 ? 2 : 1;
    const time = date.toLocaleTimeString("en-GB", parts);
    const text = day === before ? time : `${time}\n${day}`;
    before = day;
    return text;
  });
}

/**
 * A value of the x axis in words, for the cursor.
 *
 * @param {string} x  what the axis is: step, epoch, index, relative, wall or metric:NAME
 * @param {number} value
 * @returns {string}
 */
export function placeText(x, value) {
  if (x === "wall") return new Date(value * 1000).toLocaleString("en-GB");
  if (x === "relative") return span(value);
  if (x.startsWith("metric:")) return `${x.slice("metric:".length)} ${number(value, 6)}`;
  return `${x} ${number(value, 6)}`;
}
