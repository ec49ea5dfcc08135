/** Style sheets of single screens: in the document once they are needed, and then for good. */

/** @type {Set<string>} */
const added = new Set();

/** @param {string} href */
export function stylesheet(href) {
  if (added.has(href)) return;
  added.add(href);
  const element = document.createElement("link");
  element.rel = "stylesheet";
  element.href = href;
  document.head.append(element);
}
