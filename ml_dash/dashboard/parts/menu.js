/** A button that opens a list of actions below it. */
import { classes, html, useEffect, useId, useRef, useSignal } from "../lib/ui.js";

/** @typedef {import("../vendor/preact.js").Child} Child */
/** @typedef {{text: Child, run: () => void, danger?: boolean, disabled?: boolean, checked?: boolean}} Item */

/** @param {{label: Child, name?: string, items: Item[], right?: boolean, quiet?: boolean}} props  `name`: what the button is called aloud */
export function Menu({ label, name, items, right, quiet }) {
  const shown = useSignal(false);
  const id = useId();
  const at = useRef(/** @type {HTMLElement|null} */ (null));
  useEffect(() => {
    if (!shown.value) return undefined;
    const buttons = () => [.../** @type {HTMLElement} */ (at.current).querySelectorAll("[role^=menuitem]:not(:disabled)")];
    /** @type {HTMLElement|undefined} */ (buttons()[0])?.focus();
    const outside = (/** @type {Event} */ event) => {
      if (!at.current?.contains(/** @type {Node} */ (event.target))) shown.value = false;
    };
    const keys = (/** @type {KeyboardEvent} */ event) => {
      const all = buttons();
      const now = all.indexOf(/** @type {Element} */ (document.activeElement));
      const step = /** @type {Record<string, number>} */ ({ ArrowDown: 1, ArrowUp: -1 })[event.key];
      if (step) /** @type {HTMLElement} */ (all.at((now + step) % all.length))?.focus();
      else if (event.key === "Escape") {
        shown.value = false;
        at.current?.querySelector("button")?.focus();
      } else if (event.key === "Tab") {
        shown.value = false;
        return;
      } else return;
      event.preventDefault();
      event.stopPropagation();
    };
    document.addEventListener("pointerdown", outside);
    at.current?.addEventListener("keydown", keys);
    return () => {
      document.removeEventListener("pointerdown", outside);
      at.current?.removeEventListener("keydown", keys);
    };
  }, [shown.value]);
  const chosen = (/** @type {Item} */ item) => {
    shown.value = false;
    at.current?.querySelector("button")?.focus();
    item.run();
  };
  return html`<span class="menu" ref=${at}>
    <button type="button" class=${classes(quiet && "quiet")} aria-haspopup="menu" aria-expanded=${shown.value} aria-controls=${shown.value ? id : undefined}
      aria-label=${name} onClick=${() => { shown.value = !shown.value; }}>${label}</button>
    ${shown.value && html`<span class=${classes("items", right && "right")} role="menu" id=${id} aria-label=${name}>
      ${items.map((item) => html`<button type="button" role=${item.checked === undefined ? "menuitem" : "menuitemcheckbox"}
        aria-checked=${item.checked} class=${classes(item.danger && "danger")}
        disabled=${item.disabled} onClick=${() => chosen(item)}>${item.text}</button>`)}
    </span>`}
  </span>`;
}
