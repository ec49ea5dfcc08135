/** Numbers, sizes and times as people read them. */

/** @param {number} n  a count: 12,345 */
export const count = (n) => Math.round(n).toLocaleString("en-US");

/**
 * A number with what matters of it: five significant digits, an exponent where it is very large or small.
 * @param {number} v
 * @param {number} [digits]
 */
export function number(v, digits = 5) {
  if (Number.isNaN(v)) return "NaN";
  if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
  if (Number.isInteger(v) && Math.abs(v) < 1e7) return signed(v.toLocaleString("en-US"));
  const size = Math.abs(v);
  if (size >= 1e7 || size < 1e-4) {
    const [mantissa = "", exponent = ""] = v.toExponential(digits - 2).split("e");
    return signed(`${trimmed(mantissa)}e${exponent.replace("+", "")}`);
  }
  return signed(trimmed(v.toPrecision(digits)));
}

/** @param {string} text */
const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

/** A real minus is as wide as a digit. @param {string} text */
const signed = (text) => text.replace(/^-/, "−").replace("e-", "e−");

/**
 * The binary units, as `ls -h` has them.
 * @param {number} n
 */
export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}

/**
 * "1.5 s", "3m 07s", "2h 05m", "4d 03h".
 * @param {number} seconds
 * @returns {string}
 */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 0) return `−${duration(-seconds)}`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.floor(seconds)} s`;
  const s = Math.floor(seconds);
  if (s < 3600) return `${Math.floor(s / 60)}m ${two(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${two(Math.floor((s % 3600) / 60))}m`;
  return `${Math.floor(s / 86400)}d ${two(Math.floor((s % 86400) / 3600))}h`;
}

/** @param {number} n */
const two = (n) => String(n).padStart(2, "0");

/**
 * How long ago a time is: "now", "12 s ago", "3 h ago"; the date where it is more than 30 days.
 * @param {string|number} iso  ISO text, or milliseconds since 1970
 * @param {number} [now]  milliseconds since 1970
 */
export function ago(iso, now = Date.now()) {
  const at = typeof iso === "number" ? iso : Date.parse(iso);
  if (Number.isNaN(at)) return "";
  const s = (now - at) / 1000;
  if (s < 0) return s > -60 ? "now" : time(iso);
  if (s < 5) return "now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  if (s < 30 * 86400) return `${Math.floor(s / 86400)} d ago`;
  return time(iso).slice(0, 10);
}

/**
 * Date and time here: 2026-03-14 15:09:26.
 * @param {string|number} iso
 */
export function time(iso) {
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return "";
  const date = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${date} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/**
 * Any value of a parameter or column, as text.
 * @param {unknown} v
 * @returns {string}
 */
export function value(v) {
  if (v === null) return "null";
  if (v === undefined) return "";
  if (typeof v === "number") return number(v);
  if (typeof v === "string") return v;
  return typeof v === "object" ? JSON.stringify(v) : String(v);
}

/**
 * "1 run", "2,000 runs".
 * @param {number} n
 * @param {string} noun
 * @param {string} [plural]
 */
export const counted = (n, noun, plural = `${noun}s`) => `${count(n)} ${n === 1 ? noun : plural}`;
