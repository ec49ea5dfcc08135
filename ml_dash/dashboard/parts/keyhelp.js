/** The list of keys that work here. */
import { html } from "../lib/ui.js";
import { keys } from "../lib/keys.js";
import { Dialog, open } from "./dialog.js";

const NAMES = /** @type {Record<string, string>} */ ({ Escape: "Esc", ArrowDown: "↓", ArrowUp: "↑", " ": "Space" });

export function showKeys() {
  // Of two with one name the newer counts.
  const now = [...new Map(keys.peek().map((one) => [one.name, one])).values()];
  open((close) => html`<${Dialog} title="Keys" onClose=${close}>
    <dl class="keys">${now.map((one) => html`<dt><kbd>${NAMES[one.name] ?? one.name}</kbd></dt><dd>${one.help}</dd>`)}</dl>
  <//>`);
}
