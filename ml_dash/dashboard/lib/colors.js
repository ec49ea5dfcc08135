/** A colour for each run: the same on every screen and every day, and told apart also by people who see fewer. */
import { signal } from "./ui.js";

const scheme = matchMedia("(prefers-color-scheme: dark)");

/** True where the system asks for dark. */
export const dark = signal(scheme.matches);
scheme.addEventListener("change", () => {
  dark.value = scheme.matches;
});

// Neighbours differ in lightness as well as in hue, so that they stay apart in every kind of colour blindness. One row
// for light backgrounds and one for dark, each with a contrast of 3:1 or more.
const LIGHT = ["#0072b2", "#c44e00", "#00815e", "#b0408f", "#6b5b00", "#4b3fa8", "#1494c9", "#8f2121", "#5c7f1e", "#6a6a6a"];
const DARK = ["#4aa8e8", "#f58a3c", "#2fc79a", "#e58ac6", "#d9c33b", "#a79bf2", "#7fd3f7", "#f07f7f", "#a8cf5e", "#b5b5b5"];

/** Line patterns (in pixels: on, off) for when there are more runs than colours. @type {number[][]} */
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];

/** FNV-1a, 32 bits. @param {string} text */
function hash(text) {
  let sum = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) sum = Math.imul(sum ^ text.charCodeAt(i), 0x01000193);
  // Ids often differ in their last character only; this spreads it over all bits.
  sum ^= sum >>> 15;
  return Math.imul(sum, 0x2c1b3c6d) >>> 0;
}

/**
 * The colour of a run, as #rrggbb. Reads `dark`, so a component that uses it follows the system.
 * @param {string} run  its id
 */
export const colorOf = (run) => /** @type {string} */ ((dark.value ? DARK : LIGHT)[hash(run) % LIGHT.length]);

/**
 * Colours and dashes for runs that are drawn together. Each keeps its colour; runs of one colour differ by their dashes.
 * @param {string[]} runs
 * @returns {Map<string, {color: string, dash: number[]}>}
 */
export function stylesOf(runs) {
  /** @type {Map<string, number>} */
  const seen = new Map();
  return new Map(
    runs.map((run) => {
      const color = colorOf(run);
      const nth = seen.get(color) ?? 0;
      seen.set(color, nth + 1);
      return [run, { color, dash: /** @type {number[]} */ (DASHES[nth % DASHES.length]) }];
    }),
  );
}
