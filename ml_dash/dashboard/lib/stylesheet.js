/** Style sheets of single screens: in the document once they are needed, and then for good. */
import { signal } from "./ui.js";

/** @typedef {import("../vendor/preact.js").Signal<boolean|Error>} Applied */

/** @type {Map<string, Applied>} */
const added = new Map();

/**
 * Says whether the sheet applies yet, or why it never will.
 * @param {string} path  below the dashboard
 */
export function stylesheet(path) {
  const known = added.get(path);
  if (known) return known;
  const applied = signal(/** @type {boolean|Error} */ (false));
  added.set(path, applied);
  const element = document.createElement("link");
  element.rel = "stylesheet";
  element.href = new URL(`../${path}`, import.meta.url).href;
  element.onload = () => { applied.value = true; };
  element.onerror = () => { applied.value = new Error(`${path} could not be loaded.`); };
  document.head.append(element);
  return applied;
}
