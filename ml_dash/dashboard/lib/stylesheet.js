/** Style sheets of single screens: in the document once they are needed, and then for good. */

/** @type {Set<string>} */
const added = new Set();

/** @param {string} path  below the dashboard */
export function stylesheet(path) {
  if (added.has(path)) return;
  added.add(path);
  const element = document.createElement("link");
  element.rel = "stylesheet";
  element.href = new URL(`../${path}`, import.meta.url).href;
  document.head.append(element);
}
