/** Log entries as lines: text exactly as it was logged, with what a terminal or a browser would act on made visible. */

import { html } from "../lib/ui.js";

/**
 * @typedef {{timestamp: string, level: string, message: string, metadata: Record<string, unknown> | null,
 *   sequenceNumber: number}} Entry
 */

const FOLDED_CHARACTERS = 1000;
const OPEN_CHARACTERS = 20_000;
// Control characters but for tab and newline; and those that turn the direction of the text around them.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/gu;

/**
 * A text whose control characters can be seen: ⟨ESC⟩, ⟨U+0007⟩.
 * @param {string} text
 */
export function visible(text) {
  return text.replace(HIDDEN, (character) => {
    const code = /** @type {number} */ (character.codePointAt(0));
    return code === 0x1b ? "⟨ESC⟩" : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/**
 * What a folded line shows of a message, and what it leaves out.
 * @param {string} message
 * @returns {{text: string, lines: number, characters: number}} `lines` and `characters` are those left out
 */
export function folded(message) {
  const clean = message.replace(/\r\n/g, "\n").replace(/\n+$/, "");
  const end = clean.indexOf("\n");
  const line = end < 0 ? clean : clean.slice(0, end);
  const text = line.slice(0, FOLDED_CHARACTERS);
  const lines = end < 0 ? 0 : clean.slice(end).split("\n").length - 1;
  return { text: visible(text), lines, characters: line.length - text.length };
}

/**
 * A text in pieces, those that a search has found marked.
 * @param {string} text
 * @param {RegExp | null} found global
 * @returns {{text: string, marked: boolean}[]}
 */
export function pieces(text, found) {
  if (!found) return [{ text, marked: false }];
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(found)) {
    if (!match[0]) continue;
    if (match.index > at) parts.push({ text: text.slice(at, match.index), marked: false });
    parts.push({ text: match[0], marked: true });
    at = match.index + match[0].length;
  }
  if (at < text.length || !parts.length) parts.push({ text: text.slice(at), marked: false });
  return parts;
}

/**
 * What to mark for a search: a text, whatever its case, or a regular expression. Null where there is nothing to mark,
 * or where the expression is one of the server's that a browser does not know.
 * @param {string} q
 * @param {boolean} regex
 */
export function finder(q, regex) {
  if (!q) return null;
  try {
    return new RegExp(regex ? q : q.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), regex ? "gu" : "giu");
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

/**
 * One entry. `time` is how its time is shown; a click on that leads to the charts at the moment, a click on the number
 * unfolds the entry.
 * @param {{entry: Entry, time: string, chartsHref: string, contextHref: string | null, open: boolean, found: RegExp | null,
 *   current: boolean, total: number, onToggle: () => void, onCopy: (text: string) => void}} props
 */
export function LogLine({ entry, time, chartsHref, contextHref, open, found, current, total, onToggle, onCopy }) {
  const short = folded(entry.message);
  const number = entry.sequenceNumber;
  const classes = `log-line level-${entry.level}${open ? " open" : ""}${current ? " current" : ""}`;
  return html`<div class=${classes} role="listitem" key=${number} aria-setsize=${total} data-line=${number}>
    <div class="log-row">
      <button class="log-number" aria-expanded=${open} aria-label=${`Line ${number}`} onClick=${onToggle}>${number}</button>
      <a class="log-time" href=${chartsHref} title=${`${entry.timestamp} · charts at this moment`}>${time}</a>
      <span class="log-level">${entry.level}</span>
      <span class="log-text" onClick=${() => getSelection()?.isCollapsed && onToggle()}
        >${marked(short.text, found)}${short.characters
          ? html`<span class="log-more"> … ${short.characters.toLocaleString("en")} more characters</span>`
          : null}${short.lines ? html`<span class="log-more"> ⏎ ${short.lines.toLocaleString("en")} more</span>` : null}</span
      >
    </div>
    ${open ? html`<${Unfolded} ...${{ entry, chartsHref, contextHref, found, onCopy }} />` : null}
  </div>`;
}

/**
 * @param {{entry: Entry, chartsHref: string, contextHref: string | null, found: RegExp | null,
 *   onCopy: (text: string) => void}} props
 */
function Unfolded({ entry, chartsHref, contextHref, found, onCopy }) {
  const text = entry.message.slice(0, OPEN_CHARACTERS);
  const rest = entry.message.length - text.length;
  return html`<div class="log-open">
    <pre tabindex="0" aria-label="Message">${marked(visible(text), found)}${
      rest ? html`<span class="log-more"> … ${rest.toLocaleString("en")} more characters: copy the message to read all</span>` : null
    }</pre>
    ${entry.metadata && Object.keys(entry.metadata).length
      ? html`<pre tabindex="0" aria-label="Metadata">${visible(JSON.stringify(entry.metadata, null, 2)).slice(0, OPEN_CHARACTERS)}</pre>`
      : null}
    <div class="log-actions">
      <span class="dim">${entry.timestamp}</span>
      <button onClick=${() => onCopy(entry.message)}>Copy message</button>
      <button onClick=${() => onCopy(JSON.stringify(entry))}>Copy as JSON</button>
      <a href=${chartsHref}>Charts at this moment</a>
      ${contextHref ? html`<a href=${contextHref}>Lines around it</a>` : null}
    </div>
  </div>`;
}

/**
 * @param {string} text
 * @param {RegExp | null} found
 */
function marked(text, found) {
  return pieces(text, found).map((piece) => (piece.marked ? html`<mark>${piece.text}</mark>` : piece.text));
}
