/** Tabs, with the keys that tabs have. */
import { html, useId, useLayoutEffect } from "../lib/ui.js";

/** @typedef {import("../vendor/preact.js").Child} Child */

/**
 * @param {{tabs: {name: string, text: string, count?: string}[], chosen: string, onChoose: (name: string) => void,
 *   label: string, children?: Child}} props  `children`: what the chosen tab shows
 */
export function Tabs({ tabs, chosen, onChoose, label, children }) {
  const id = useId();
  // On a narrow screen the row of tabs is wider than the page, the more so once their counts are known.
  useLayoutEffect(() => {
    const tab = document.getElementById(`${id}-${chosen}`);
    const row = tab?.parentElement;
    if (!tab || !row) return;
    const beyond = tab.getBoundingClientRect().right - row.getBoundingClientRect().right;
    if (beyond > 0) row.scrollLeft += beyond;
  }, [chosen, tabs.filter((tab) => tab.count).length]);
  const keys = (/** @type {KeyboardEvent} */ event) => {
    const now = tabs.findIndex((tab) => tab.name === chosen);
    const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const tab = /** @type {{name: string}} */ (tabs.at(to % tabs.length));
    onChoose(tab.name);
    document.getElementById(`${id}-${tab.name}`)?.focus();
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} onKeyDown=${keys}>
      ${tabs.map((tab) => html`<button type="button" role="tab" key=${tab.name} id=${`${id}-${tab.name}`} aria-controls=${`${id}-panel`}
        aria-label=${tab.text} aria-selected=${tab.name === chosen} tabindex=${tab.name === chosen ? 0 : -1}
        onClick=${() => onChoose(tab.name)}>${tab.text}${tab.count && html` <span class="count">${tab.count}</span>`}</button>`)}
    </div>
    <div role="tabpanel" id=${`${id}-panel`} aria-labelledby=${`${id}-${chosen}`} class="panel">${children}</div>`;
}
