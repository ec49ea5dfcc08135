/** The keys of a page: each screen says which it has, and `?` lists them. */
import { signal, useLayoutEffect } from "./ui.js";

/** @typedef {{name: string, help: string, run: (event: KeyboardEvent) => void}} Key */

/** The keys that work now, the newest last. */
export const keys = signal(/** @type {Key[]} */ ([]));

/**
 * Adds a key until the function that comes back is called. Of two with one name the newer counts.
 * @param {string} name  as KeyboardEvent.key has it: "/", "j", "Escape"
 * @param {string} help  what it does, for the list
 * @param {(event: KeyboardEvent) => void} run
 */
export function key(name, help, run) {
  const one = { name, help, run };
  keys.value = [...keys.peek(), one];
  return () => {
    keys.value = keys.peek().filter((other) => other !== one);
  };
}

/**
 * The keys of a component, while it is shown: useKeys([["j", "next run", next]]).
 * @param {[string, string, (event: KeyboardEvent) => void][]} wanted
 */
export function useKeys(wanted) {
  // Before anything is painted: the next key may come first, and must find what the last one has changed.
  useLayoutEffect(() => {
    const remove = wanted.map(([name, help, run]) => key(name, help, run));
    return () => remove.forEach((one) => one());
  });
}

/** Listens to the keyboard. Keys that are typed into a field, or with Ctrl, Alt or Meta, are left alone. */
export function followKeys() {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || isTyping(event)) return;
    if (document.querySelector("dialog[open]")) return;
    const found = keys.peek().findLast((one) => one.name === event.key);
    if (!found) return;
    event.preventDefault();
    found.run(event);
  });
}

/** @param {KeyboardEvent} event */
function isTyping(event) {
  const at = event.target;
  if (!(at instanceof HTMLElement)) return false;
  if (at.isContentEditable || at instanceof HTMLTextAreaElement || at instanceof HTMLSelectElement) return true;
  if (at instanceof HTMLInputElement) return !["checkbox", "radio", "button", "range"].includes(at.type);
  // Enter and space press a button or follow a link.
  return (event.key === "Enter" || event.key === " ") && (at instanceof HTMLButtonElement || at instanceof HTMLAnchorElement);
}
