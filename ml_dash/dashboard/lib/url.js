/** The address bar: each state of a page has a URL, and back and forward work. */
import { signal } from "./ui.js";

/** @typedef {{path: string, parts: string[], params: Record<string, string>}} Route */

/** Where the page is. `parts` are those of the path, decoded; `params` those behind the question mark. */
export const route = signal(here());

/** @returns {Route} */
function here() {
  const params = Object.fromEntries(new URLSearchParams(location.search));
  return { path: location.pathname, parts: location.pathname.split("/").filter(Boolean).map(decoded), params };
}

/** @param {string} part */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/**
 * The address of a screen. Parameters that are null, undefined or empty are left out; the namespace that is looked at stays.
 * @param {string} path
 * @param {Record<string, string|number|null|undefined>} [params]
 */
export function link(path, params = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries({ namespace: route.peek().params.namespace, ...params })) {
    if (value !== null && value !== undefined && value !== "") search.set(name, String(value));
  }
  const text = search.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
  return text ? `${path}?${text}` : path;
}

/**
 * Goes to a screen; `replace` leaves no entry to go back to.
 * @param {string} path
 * @param {Record<string, string|number|null|undefined>} [params]
 * @param {{replace?: boolean}} [options]
 */
export function navigate(path, params = {}, { replace = false } = {}) {
  const url = link(path, params);
  if (url === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", url);
  const before = route.peek().path;
  route.value = here();
  if (before !== route.peek().path) scrollTo(0, 0);
}

/**
 * Changes parameters of this page's URL; null or an empty text removes one.
 * @param {Record<string, string|number|null|undefined>} changes
 * @param {{replace?: boolean}} [options]
 */
export function setParams(changes, options) {
  const { path, params } = route.peek();
  navigate(path, { ...params, ...changes }, options);
}

/**
 * @param {string} name
 * @param {string|number|null|undefined} value
 * @param {{replace?: boolean}} [options]
 */
export const setParam = (name, value, options) => setParams({ [name]: value }, options);

/** Follows the browser's buttons, and takes clicks on links to screens; other links are the browser's. */
export function followHistory() {
  addEventListener("popstate", () => {
    route.value = here();
  });
  document.addEventListener("click", (event) => {
    const anchor = /** @type {Element} */ (event.target).closest?.("a[href]");
    if (!(anchor instanceof HTMLAnchorElement) || event.defaultPrevented || event.button !== 0) return;
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || anchor.target || anchor.hasAttribute("download")) return;
    if (anchor.origin !== location.origin || !isScreen(anchor.pathname)) return;
    event.preventDefault();
    navigate(anchor.pathname, Object.fromEntries(new URLSearchParams(anchor.search)));
  });
}

/** @param {string} path */
const isScreen = (path) => path === "/" || /^\/(runs|compare|storage|latest|login)(\/|$)/.test(path);
