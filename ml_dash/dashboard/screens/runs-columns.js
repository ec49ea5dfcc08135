/** The dialog in which columns are chosen, ordered and pinned. */
import { html, useEffect, useSignal } from "../lib/ui.js";
import { FIELDS, STATS, TREND, titleOf, trendOf } from "../lib/fields.js";
import { count } from "../lib/format.js";
import { Dialog, open } from "../parts/dialog.js";
import { known } from "../parts/querybox.js";

const MOST = 200;

/**
 * @param {string[]} columns
 * @param {Set<string>} pinned
 * @param {(columns: string[], pinned: Set<string>) => void} onChange  with each change, so that it is seen behind the dialog
 */
export function chooseColumns(columns, pinned, onChange) {
  open((close) => html`<${Chooser} columns=${columns} pinned=${pinned} onChange=${onChange} onClose=${close} />`);
}

/** @param {{columns: string[], pinned: Set<string>, onChange: (columns: string[], pinned: Set<string>) => void, onClose: () => void}} props */
function Chooser({ columns, pinned, onChange, onClose }) {
  const chosen = useSignal(columns);
  const pins = useSignal(pinned);
  const text = useSignal("");
  const found = useSignal(/** @type {{name: string, note: string}[]} */ ([]));
  useEffect(() => {
    let current = true;
    offered(text.value.trim()).then((fields) => {
      if (current) found.value = fields;
    });
    return () => { current = false; };
  }, [text.value]);
  /** @param {string[]} next @param {Set<string>} [nextPins] */
  const change = (next, nextPins = pins.value) => {
    chosen.value = next;
    pins.value = nextPins;
    onChange(next, nextPins);
  };
  const shift = (/** @type {number} */ i, /** @type {number} */ step) => {
    const next = [...chosen.value];
    const [one] = next.splice(i, 1);
    next.splice(i + step, 0, /** @type {string} */ (one));
    change(next);
  };
  const pin = (/** @type {string} */ field) => {
    const next = new Set(pins.value);
    if (!next.delete(field)) next.add(field);
    change(chosen.value, next);
  };
  const rest = found.value.filter((one) => !chosen.value.includes(one.name));
  return html`<${Dialog} title="Columns" wide onClose=${onClose}>
    <div class="chooser">
      <section aria-label="Shown"><h3>Shown</h3>
        <ol>${chosen.value.map((field, i) => html`<li key=${field}>
          <span class="cut" title=${field}>${titleOf(field)}</span>
          <button class="quiet" aria-label=${`Pin ${field}`} aria-pressed=${pins.value.has(field)} onClick=${() => pin(field)}>Pin</button>
          <button class="quiet" aria-label=${`Move ${field} up`} disabled=${i === 0} onClick=${() => shift(i, -1)}>↑</button>
          <button class="quiet" aria-label=${`Move ${field} down`} disabled=${i === chosen.value.length - 1} onClick=${() => shift(i, 1)}>↓</button>
          <button class="quiet" aria-label=${`Remove ${field}`} onClick=${() => change(chosen.value.filter((one) => one !== field))}>✕</button>
        </li>`)}</ol>
      </section>
      <section aria-label="More"><h3>More</h3>
        <input type="text" aria-label="Find a field" placeholder="Find a field" value=${text} autofocus spellcheck=${false}
          onInput=${(/** @type {any} */ event) => { text.value = event.currentTarget.value; }} />
        <ul>${rest.map((one) => html`<li key=${one.name}>
          <button class="quiet" aria-label=${`Add ${one.name}`} onClick=${() => change([...chosen.value, one.name])}>
            <span class="cut">${trendOf(one.name) !== null ? titleOf(one.name) : one.name}</span><span class="dim">${one.note}</span></button>
        </li>`)}</ul>
        ${rest.length === 0 && html`<p class="dim">No other field has this in its name.</p>`}
      </section>
    </div>
  <//>`;
}

/**
 * The fields whose names hold a text: those of every run, then those that runs have.
 * @param {string} text
 */
async function offered(text) {
  const part = text.toLowerCase();
  const has = (/** @type {string} */ name) => name.toLowerCase().includes(part);
  const own = Object.keys(FIELDS).filter((name) => name !== "name" && (has(name) || has(/** @type {string} */ (FIELDS[name]))));
  // The server searches by the beginning of a name; here any part of it counts, of the most frequent ones.
  const lists = await Promise.all([known("params.", MOST), known("metrics.", MOST), part ? known(text, MOST) : [], part ? known(`params.${text}`, MOST) : [], part ? known(`metrics.${text}`, MOST) : []]);
  const fields = new Map(lists.flat().filter((one) => has(one.name) || /^metrics\./.test(one.name) && has(one.name)).map((one) => [one.name, one]));
  const found = [];
  for (const one of fields.values()) {
    if (one.name in FIELDS) continue;
    found.push({ name: one.name, note: `${one.kind} · ${count(one.runs)} runs` });
    if (!one.name.startsWith("metrics.")) continue;
    found.push({ name: `${TREND}${one.name.slice("metrics.".length)}`, note: "a small line" });
    if (fields.size <= 12 || part) STATS.filter((stat) => stat !== "last").forEach((stat) => found.push({ name: `${one.name}.${stat}`, note: "number" }));
  }
  // What was recorded comes first: what every run has is known by heart soon.
  return [...found, ...own.map((name) => ({ name, note: "" }))].slice(0, MOST);
}
