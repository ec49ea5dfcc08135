// How charts are drawn, as the URL says it.

/**
 * @typedef {object} ChartOptions
 * @property {string} x  step, epoch, index, relative, wall or metric:NAME
 * @property {boolean} logX
 * @property {boolean} logY
 * @property {number} smoothing  weight of what came before, 0 to 0.999
 * @property {string} split  a field of the points: one curve for each of its values
 * @property {boolean} superseded  show points that a rewind left behind
 * @property {string} mean  a field: runs with the same value of it are drawn as their mean
 * @property {"sd" | "range"} spread
 * @property {[number, number] | null} zoom  a range of x
 * @property {Size} size
 */

/** @typedef {"s" | "m" | "l"} Size */

/** Width (least) and height of a chart, in CSS pixels. @type {Record<Size, {width: number, height: number}>} */
export const SIZES = {
  s: { width: 260, height: 140 },
  m: { width: 380, height: 210 },
  l: { width: 720, height: 340 },
};

/** What the x axis can be, besides any other metric. */
export const AXES = [
  ["step", "Step"],
  ["epoch", "Epoch"],
  ["index", "Index"],
  ["relative", "Relative time"],
  ["wall", "Wall time"],
];

/**
 * @param {Record<string, string>} params  of the URL
 * @returns {ChartOptions}
 */
export function optionsOf(params) {
  const smoothing = Number(params.smooth);
  return {
    x: AXES.some(([name]) => name === params.x) || params.x?.startsWith("metric:") ? params.x : "step",
    // The logarithm of a date says nothing.
    logX: params.x !== "wall" && (params.log?.includes("x") ?? false),
    logY: params.log?.includes("y") ?? false,
    smoothing: smoothing > 0 ? Math.min(smoothing, 0.999) : 0,
    split: params.split ?? "",
    superseded: params.superseded === "1",
    mean: params.mean ?? "",
    spread: params.spread === "range" ? "range" : "sd",
    zoom: zoomOf(params.zoom),
    size: params.size === "s" || params.size === "l" ? params.size : "m",
  };
}

/**
 * The parameter `zoom`: FROM..TO.
 *
 * @param {string | undefined} text
 * @returns {[number, number] | null}
 */
export function zoomOf(text) {
  const [from, to, ...more] = (text ?? "").split("..").map((part) => (part.trim() ? Number(part) : NaN));
  return !more.length && Number.isFinite(from) && Number.isFinite(to) && from < to ? [from, to] : null;
}

/**
 * @param {[number, number] | null} range
 * @returns {string}
 */
export function zoomText(range) {
  // Ten digits are more than a screen has pixels, also far from zero.
  return range ? range.map((value) => Number(value.toPrecision(10))).join("..") : "";
}

/**
 * The parameter `groups`: prefixes of groups of charts that are not as they are at first.
 *
 * @param {string | undefined} text
 * @returns {string[]}
 */
export const groupsOf = (text) => (text ?? "").split(",").filter(Boolean).map(decoded);

/**
 * Text of an address that may have been typed by hand.
 *
 * @param {string} text
 */
export function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * That parameter with one prefix more, or one less.
 *
 * @param {string[]} toggled
 * @param {string} prefix
 * @returns {string | null}
 */
export function flippedGroups(toggled, prefix) {
  const next = toggled.includes(prefix) ? toggled.filter((one) => one !== prefix) : [...toggled, prefix];
  return next.map(encodeURIComponent).join(",") || null;
}

/**
 * @param {boolean} x
 * @param {boolean} y
 */
export const logText = (x, y) => (x ? "x" : "") + (y ? "y" : "");

/**
 * Names in groups by their prefix: what stands before the last "/", else before the first ".". Names without one come first.
 *
 * @param {string[]} names
 * @returns {{prefix: string, names: string[]}[]}
 */
export function byPrefix(names) {
  /** @type {Map<string, string[]>} */
  const groups = new Map();
  for (const name of names) {
    const prefix = prefixOf(name);
    const group = groups.get(prefix);
    if (group) group.push(name);
    else groups.set(prefix, [name]);
  }
  return [...groups]
    .sort(([a], [b]) => (a === "" ? -1 : b === "" ? 1 : compare(a, b)))
    .map(([prefix, members]) => ({ prefix, names: members.sort(compare) }));
}

// The default order of `localeCompare` makes a collator each time: 5,000 names take a tenth of a second.
const { compare } = new Intl.Collator("en", { numeric: true });

/** @param {string} name */
export function prefixOf(name) {
  const slash = name.lastIndexOf("/");
  if (slash > 0) return name.slice(0, slash);
  const dot = name.indexOf(".");
  return dot > 0 ? name.slice(0, dot) : "";
}

/**
 * The names that hold all words of a search, in any case; /EXPRESSION/ is a regular expression.
 *
 * @param {string[]} names
 * @param {string} search
 * @returns {string[]}
 */
export function found(names, search) {
  const expression = /^\/(.+)\/$/.exec(search.trim())?.[1];
  if (expression) {
    try {
      const pattern = new RegExp(expression, "i");
      return names.filter((name) => pattern.test(name));
    } catch {
      // Half-typed: taken as text until it is whole.
    }
  }
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return names;
  return names.filter((name) => {
    const low = name.toLowerCase();
    return words.every((word) => low.includes(word));
  });
}
