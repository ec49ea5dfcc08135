/** What a browser remembers: small settings, and views that people saved under a name. */
import { effect, signal } from "./ui.js";

/** @typedef {{name: string, path: string, params: Record<string, string>}} View */

/** @type {Map<string, import("../vendor/preact.js").Signal<any>>} */
const known = new Map();

/**
 * A signal that is kept in this browser. A browser that keeps nothing (private windows, a full disk) has the default.
 * @template T
 * @param {string} name
 * @param {T} initial
 * @returns {import("../vendor/preact.js").Signal<T>}
 */
export function pref(name, initial) {
  const existing = known.get(name);
  if (existing) return existing;
  const key = `ml-dash.${name}`;
  const one = signal(stored(key, initial));
  known.set(name, one);
  let first = true;
  effect(() => {
    const text = JSON.stringify(one.value);
    if (!first) keep(key, text);
    first = false;
  });
  return one;
}

/**
 * @template T
 * @param {string} key
 * @param {T} initial
 * @returns {T}
 */
function stored(key, initial) {
  try {
    const text = localStorage.getItem(key);
    return text === null ? initial : JSON.parse(text);
  } catch {
    return initial;
  }
}

/**
 * @param {string} key
 * @param {string} text
 */
function keep(key, text) {
  try {
    localStorage.setItem(key, text);
  } catch {
    // Then it lasts as long as the page.
  }
}

/** The saved views, of all screens. */
export const views = pref("views", /** @type {View[]} */ ([]));

/** @param {View} view  takes the place of one with its name and path */
export function saveView(view) {
  views.value = [...views.peek().filter((one) => one.name !== view.name || one.path !== view.path), view];
}

/** @param {View} view */
export function removeView(view) {
  views.value = views.peek().filter((one) => one.name !== view.name || one.path !== view.path);
}
