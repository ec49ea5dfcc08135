/** The filter: a query that is applied as it is typed, with what may stand next, and what is wrong with it. */
import { classes, html, useEffect, useId, useRef, useSignal } from "../lib/ui.js";
import { get } from "../lib/api.js";
import { count } from "../lib/format.js";
import { FIELDS, STATS, fieldText, quoted, valueText } from "../lib/fields.js";
import { WrongQuery } from "./states.js";

/** @typedef {import("../types").Field} Field */
/** @typedef {{text: string, note?: string, more?: boolean}} Suggestion  `more`: what is typed goes on behind it */

const PAUSE_MS = 100;
// An unfinished condition is wrong while it is typed; it is said when the typing stops.
const SAY_WRONG_MS = 900;
const MOST = 12;
const STATUSES = ["running", "completed", "failed", "interrupted"];
const WORD = /(?:[^\s"'()[\],=!<>~&|]|"(?:[^"\\]|\\.)*")*$|"(?:[^"\\]|\\.)*$/;
const FIELD = String.raw`((?:[^\s"'()\[\],=!<>~&|:]|"(?:[^"\\]|\\.)*")+)`;
const BEFORE_VALUE = new RegExp(`${FIELD}\\s*(?:=|!=|<=|>=|<|>|~)\\s*$`);
const IN_LIST = new RegExp(`${FIELD}\\s+(?:not\\s+)?in\\s*\\([^()]*$`, "i");
// A text that ends so is no query yet, whatever comes before.
const UNFINISHED = /(?:[=<>~!(,:]|(?:^|\s)(?:and|or|not|in))\s*$|^[^"]*(?:"[^"]*"[^"]*)*"[^"]*$/i;
const HINTS = /** @type {Record<string, string>} */ ({
  status: "running, completed, failed, interrupted", created: "-7d, 2026-11-01", updated: "-7d, 2026-11-01", ended: "-7d, 2026-11-01",
  duration: "90s, 2h", size: "10MB", tags: "tag:baseline", points: "10k", notes: "a part of them: notes ~ diverged",
});
const AFTER_CONDITION = /(?:[=<>~]\s*(?:"(?:[^"\\]|\\.)*"|[^\s()"]+)|\)|tags?:\S+)\s+$/i;

/**
 * @param {{value: string, error: import("../lib/api.js").ApiError|null, onQuery: (text: string, done: boolean) => void}} props
 *   `done`: Enter was pressed, or a suggestion ended the condition
 */
export function QueryBox({ value, error, onQuery }) {
  const text = useSignal(value);
  const options = useSignal(/** @type {Suggestion[]} */ ([]));
  const active = useSignal(-1);
  const quiet = useSignal(true);
  const input = useRef(/** @type {HTMLInputElement|null} */ (null));
  const timer = useRef(/** @type {ReturnType<typeof setTimeout>|undefined} */ (undefined));
  const last = useRef(value);
  const id = useId();

  // A query from elsewhere (a project that was chosen, the back button) takes the place of what stands here.
  useEffect(() => {
    if (value !== last.current) text.value = value;
    last.current = value;
  }, [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  useEffect(() => {
    quiet.value = false;
    const say = setTimeout(() => { quiet.value = true; }, SAY_WRONG_MS);
    return () => clearTimeout(say);
  }, [text.value]);

  const asked = useRef(0);
  const suggest = async () => {
    const mine = ++asked.current;
    const { value: all, selectionStart } = /** @type {HTMLInputElement} */ (input.current);
    const found = await suggestions(all.slice(0, selectionStart ?? all.length));
    if (mine !== asked.current || document.activeElement !== input.current) return;
    // Who has gone to one with the arrows meanwhile stays at it.
    const chosen = options.value[active.value]?.text;
    options.value = found;
    active.value = found.findIndex((one) => one.text === chosen);
  };
  const apply = (/** @type {boolean} */ done) => {
    clearTimeout(timer.current);
    last.current = text.value.trim();
    onQuery(last.current, done);
  };
  // What is plainly unfinished waits for its rest; Enter asks all the same, and is told what is missing.
  const soon = () => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => apply(false), isUnfinished(text.value) ? SAY_WRONG_MS : PAUSE_MS);
  };
  const typed = (/** @type {any} */ event) => {
    text.value = event.currentTarget.value;
    soon();
    suggest();
  };
  const close = () => {
    asked.current += 1;
    options.value = [];
  };
  const take = (/** @type {Suggestion} */ option) => {
    const element = /** @type {HTMLInputElement} */ (input.current);
    const cursor = element.selectionStart ?? element.value.length;
    const start = wordStart(element.value.slice(0, cursor));
    const put = option.text + (option.more ? "" : " ");
    text.value = element.value.slice(0, start) + put + element.value.slice(cursor).trimStart();
    element.value = text.value;
    element.setSelectionRange(start + put.length, start + put.length);
    element.focus();
    active.value = -1;
    soon();
    suggest();
  };
  const keys = (/** @type {KeyboardEvent} */ event) => {
    const shown = options.value.length;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && shown) active.value = (active.value + step + shown + (active.value < 0 && step < 0 ? 1 : 0)) % shown;
    else if (step === 1) suggest();
    else if (shown && active.value >= 0 && (event.key === "Enter" || event.key === "Tab")) take(/** @type {Suggestion} */ (options.value[active.value]));
    else if (event.key === "Enter") {
      close();
      quiet.value = true;
      apply(true);
    } else if (event.key === "Escape") {
      if (shown) close();
      else input.current?.blur();
    } else return;
    event.preventDefault();
  };
  const wrong = error && error.code === "query" && quiet.value ? error : null;
  return html`<div class="query">
    <input type="search" ref=${input} value=${text} aria-label="Filter" placeholder='Filter: status = failed and params.lr > 1e-3' autocomplete="off" spellcheck=${false}
      autocapitalize="off" enterkeyhint="search" aria-autocomplete="list" aria-controls=${options.value.length ? id : undefined} aria-invalid=${wrong ? "true" : undefined}
      aria-activedescendant=${active.value >= 0 ? `${id}-${active.value}` : undefined} aria-describedby=${wrong ? `${id}-error` : undefined}
      onInput=${typed} onKeyDown=${keys} onFocus=${suggest} onClick=${suggest} onBlur=${close} />
    ${options.value.length > 0 && html`<ul role="listbox" id=${id} aria-label="What may stand here" class="suggestions">
      ${options.value.map((option, i) => html`<li role="option" key=${option.text} id=${`${id}-${i}`} aria-selected=${i === active.value}
        class=${classes(i === active.value && "active")} onMouseDown=${(/** @type {Event} */ event) => {
          event.preventDefault();
          take(option);
        }}><span class="mono cut">${option.text}</span>${option.note && html`<span class="dim">${option.note}</span>`}</li>`)}
    </ul>`}
    ${wrong && html`<${WrongQuery} error=${wrong} id=${`${id}-error`} />`}
  </div>`;
}

/** @param {string} text */
function isUnfinished(text) {
  const word = /** @type {string} */ (/[^\s()"]*\s*$/.exec(text)?.[0]).trim().toLowerCase();
  const state = /\bstatus\s*!?=\s*$/.test(text.slice(0, text.length - word.length));
  return UNFINISHED.test(text) || /^(params|metrics|trend)\./.test(word) || (state ? !STATUSES.includes(word) : word in FIELDS);
}

/** Where the word begins that ends here. @param {string} before */
function wordStart(before) {
  const start = before.length - (WORD.exec(before)?.[0].length ?? 0);
  return start + (/^tags?:/i.exec(before.slice(start))?.[0].length ?? 0);
}

/**
 * What may stand at the end of a text, instead of the word that is begun there.
 * @param {string} before
 * @returns {Promise<Suggestion[]>}
 */
async function suggestions(before) {
  const start = wordStart(before);
  const begun = before.slice(start).toLowerCase();
  const rest = before.slice(0, start);
  if (/\btags?:$/i.test(rest)) return values("tags", begun);
  const field = BEFORE_VALUE.exec(rest)?.[1] ?? IN_LIST.exec(rest)?.[1];
  if (field) return values(field, begun);
  if (AFTER_CONDITION.test(rest)) return begun ? matching(["and", "or"], begun) : [{ text: "and" }, { text: "or" }];
  const name = new RegExp(`${FIELD}\\s+$`).exec(rest)?.[1];
  if (name && !["and", "or", "not"].includes(name.toLowerCase()) && (name in FIELDS || /^(params|metrics)\./.test(name))) return operators(name);
  return fields(begun);
}

/** @param {string[]} texts @param {string} begun @returns {Suggestion[]} */
const matching = (texts, begun) => texts.filter((text) => text.startsWith(begun) && text !== begun).map((text) => ({ text }));

/** @param {string} name @returns {Suggestion[]} */
function operators(name) {
  const all = /** @type {[string, string][]} */ ([["=", "equals"], ["!=", "differs"], ["<", "less"], ["<=", ""], [">", "more"], [">=", ""], ["~", "matches a regular expression"], ["in", "one of ( , )"]]);
  const texts = new Set(["name", "project", "folder", "status", "tags", "description", "notes", "host", "user", "commit"]);
  return all.filter(([sign]) => !texts.has(name) || !/[<>]/.test(sign)).map(([text, note]) => ({ text, note }));
}

/** @param {string} begun @returns {Promise<Suggestion[]>} */
async function fields(begun) {
  const own = Object.keys(FIELDS).filter((name) => name.startsWith(begun));
  const found = await known(begun);
  const names = new Map(found.map((one) => [one.name, one]));
  const series = [...names.keys()].filter((name) => name.startsWith("metrics.") && name.toLowerCase() === begun.replace(/\.\w*$/, ""));
  /** @type {Suggestion[]} */
  const list = own.map((text) => ({ text, note: HINTS[text] ?? "" }));
  for (const one of found) {
    if (!(one.name in FIELDS)) list.push({ text: fieldText(one.name), note: `${one.kind} · ${count(one.runs)}` });
  }
  for (const name of series) STATS.forEach((stat) => list.push({ text: `${fieldText(name)}.${stat}`, note: "number" }));
  if (!begun) {
    // A word that names a family is a way to all of it, however many there are.
    list.splice(4, 0, { text: "params.", note: "parameters", more: true }, { text: "metrics.", note: "metrics", more: true });
    list.push({ text: "tag:", more: true }, { text: "not" });
  } else {
    for (const text of ["params.", "metrics.", "tag:"]) if (text.startsWith(begun) && text !== begun) list.push({ text, more: true });
    list.push(...matching(["not"], begun));
  }
  return list.filter((one) => one.text.toLowerCase() !== begun).slice(0, MOST);
}

/** @param {string} field @param {string} begun @returns {Promise<Suggestion[]>} */
async function values(field, begun) {
  const bare = begun.replace(/^"|"$/g, "");
  if (["created", "updated", "ended"].includes(field)) {
    return ["-1h", "-1d", "-7d", "-30d", "today"].filter((text) => text.startsWith(bare)).map((text) => ({ text }));
  }
  const found = field === "status" ? STATUSES : (await known(field)).find((one) => fieldText(one.name) === field || one.name === field)?.values ?? [];
  return found
    .filter((one) => one.toLowerCase().includes(bare))
    .map((one) => ({ text: begun.startsWith('"') ? quoted(one) : valueText(one) }))
    .filter((one) => one.text.toLowerCase() !== begun)
    .slice(0, MOST);
}

/** The kinds of the fields that have been heard of. @type {Map<string, string>} */
const kinds = new Map();

/** @param {string} field */
export const isNumber = (field) => kinds.get(field) === "number";

/** @type {Map<string, {at: number, fields: Promise<Field[]>}>} */
const cache = new Map();
const FRESH_MS = 30_000;

/** The fields that begin so; none where the server cannot say. @param {string} prefix @returns {Promise<Field[]>} */
export function known(prefix, limit = 40) {
  const key = `${limit} ${prefix}`;
  const had = cache.get(key);
  if (had && performance.now() - had.at < FRESH_MS) return had.fields;
  const fields = get("/fields", { prefix, limit }).then((answer) => {
    for (const one of answer.fields) kinds.set(one.name, one.kind);
    return answer.fields;
  }, () => {
    cache.delete(key);
    return [];
  });
  if (cache.size > 200) cache.clear();
  cache.set(key, { at: performance.now(), fields });
  return fields;
}
