/** Copies a text, and says so where assistive technology and eyes are: in the button that was pressed. */
import { html, useEffect, useState } from "./ui.js";

const SAID_MS = 1500;

/** @param {{text: string | (() => string), label: string, name?: string}} props  `name`: what it is called aloud */
export function CopyButton({ text, label, name }) {
  const [said, setSaid] = useState("");
  useEffect(() => {
    if (!said) return;
    const timer = setTimeout(() => setSaid(""), SAID_MS);
    return () => clearTimeout(timer);
  }, [said]);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(typeof text === "string" ? text : text());
      setSaid("Copied");
    } catch {
      // Browsers refuse it on pages that did not come over TLS or from this machine.
      setSaid("Not allowed here");
    }
  };
  return html`<button class="quiet" aria-label=${said || name || label} onClick=${copy}>${said || label}</button>`;
}
