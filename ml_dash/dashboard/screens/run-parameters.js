/** The parameters of a run: nested by their dots, searchable, with when they were changed and by whom. */
import { address, ApiError, experimentPath } from "../lib/api.js";
import { CopyButton } from "../lib/clipboard.js";
import { ago, counted, time } from "../lib/format.js";
import { jsonText, parseExactly, valueText } from "../lib/json.js";
import { useKeys } from "../lib/keys.js";
import { html, useEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { link } from "../lib/url.js";
import { visible } from "../parts/loglines.js";
import { Empty, Failure, Loading } from "../parts/states.js";
import { Virtual } from "../parts/virtual.js";
import { allMarks, changesByKey } from "./run-history.js";

/**
 * @typedef {{kind: "group", name: string, prefix: string, depth: number, size: number, open: boolean} |
 *   {kind: "value", key: string, name: string, depth: number, value: unknown}} Row
 * @typedef {{[part: string]: Branch | {value: unknown, key: string}}} Branch
 */

const ROW_PX = 28;

/** @param {import("./run-tabs.js").TabProps} props */
export default function Parameters({ id, record, asOf }) {
  const { data, error, again } = useParameters(id, asOf, record);
  const changes = useChanges(id, asOf, record);
  const [words, setWords] = useState("");
  const [closed, setClosed] = useState(/** @returns {ReadonlySet<string>} */ () => new Set());
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  useKeys([["/", "find a parameter", () => input.current?.focus()]]);
  const found = useMemo(() => (data ? matching(data, words) : {}), [data, words]);
  const rows = useMemo(() => rowsOf(found, words ? new Set() : closed), [found, closed, words]);
  if (error && !data) return html`<${Failure} error=${error} retry=${again} />`;
  if (!data) return html`<${Loading} what="Loading the parameters" />`;
  if (!Object.keys(data).length) {
    return html`<${Empty} title="No parameters" command="experiment.parameters().set(lr=0.01)" />`;
  }
  /** @param {string} prefix */
  const toggle = (prefix) =>
    setClosed((was) => {
      const next = new Set(was);
      if (!next.delete(prefix)) next.add(prefix);
      return next;
    });
  return html`<section class="parameters" aria-label="Parameters">
    <div class="parameters-controls">
      <input ref=${input} type="search" aria-label="Find a parameter" placeholder="Find a name or a value" spellcheck=${false}
        value=${words} onInput=${(/** @type {any} */ event) => setWords(event.currentTarget.value)} />
      <span class="dim">${counted(Object.keys(found).length, "parameter")}</span>
      <span class="space"></span>
      <${CopyButton} text=${() => jsonText(found)} label="Copy as JSON" />
    </div>
    <div role="table" aria-label="Parameters" aria-rowcount=${rows.length + 1} class="parameters-table">
      <div role="row" class="parameter-row header">
        <span role="columnheader">Name</span><span role="columnheader">Value</span><span role="columnheader">Changed</span>
      </div>
      <${Virtual}
        total=${rows.length}
        rowHeight=${ROW_PX}
        label="Parameters"
        role="rowgroup"
        class="parameter-rows"
        fit
        row=${(/** @type {number} */ index) => drawn(rows[index], changes, toggle, `/runs/${encodeURIComponent(id)}`)}
      />
    </div>
  </section>`;
}

/**
 * @param {Row} row
 * @param {Map<string, {time: string, event: number, host: string | null, times: number}>} changes
 * @param {(prefix: string) => void} toggle
 * @param {string} path
 */
function drawn(row, changes, toggle, path) {
  const indent = { paddingLeft: `${8 + row.depth * 16}px` };
  if (row.kind === "group") {
    return html`<div role="row" class="parameter-row group" key=${`group ${row.prefix}`}>
      <span role="cell" style=${indent}>
        <button class="fold" aria-expanded=${row.open} onClick=${() => toggle(row.prefix)}>
          <span aria-hidden="true">${row.open ? "▾" : "▸"}</span> ${visible(row.name)}
        </button>
      </span>
      <span role="cell" class="dim">${row.open ? "" : counted(row.size, "parameter")}</span><span role="cell"></span>
    </div>`;
  }
  const change = changes.get(row.key);
  const text = valueText(row.value);
  return html`<div role="row" class="parameter-row" key=${`value ${row.key}`}>
    <span role="cell" class="mono" style=${indent} title=${row.key}>${visible(row.name)}</span>
    <span role="cell" class=${`mono value-${typeof row.value}`} title=${text}>${visible(text.slice(0, 1000))}</span>
    <span role="cell" class="dim">${
      change && change.times > 1
        ? html`<a href=${link(path, { tab: "timeline", asOf: change.event })} title=${`${time(change.time)}${change.host ? ` on ${change.host}` : ""}`}>
            ${ago(change.time)}${change.times > 2 ? ` · ${change.times - 1} times` : ""}</a>`
        : ""
    }</span>
  </div>`;
}

/**
 * The parameters, whole numbers beyond 2^53 as BigInt.
 * @param {string} id
 * @param {string | null} asOf
 * @param {import("../types").ExperimentRecord} record
 */
function useParameters(id, asOf, record) {
  const [known, setKnown] = useState(/** @type {{data: Record<string, unknown> | null, error: any}} */ ({ data: null, error: null }));
  const [attempt, setAttempt] = useState(0);
  const changed = asOf ? "" : `${record.counts.parameters} ${record.counts.events - (record.counts.points ?? 0) - (record.counts.logs ?? 0)}`;
  useEffect(() => {
    const stop = new AbortController();
    exactly(address(experimentPath(id, "parameters"), { asOf }), stop.signal).then(
      (answer) => setKnown({ data: answer.data, error: null }),
      (error) => stop.signal.aborted || setKnown((was) => ({ ...was, error })),
    );
    return () => stop.abort();
  }, [id, asOf, changed, attempt]);
  return { ...known, again: () => setAttempt(attempt + 1) };
}

/**
 * @param {string} url
 * @param {AbortSignal} signal
 */
async function exactly(url, signal) {
  const answer = await fetch(url, { signal });
  const text = await answer.text();
  if (!answer.ok) throw new ApiError(answer.status, "http", JSON.parse(text).error?.message ?? answer.statusText);
  return parseExactly(text);
}

/**
 * The marks of changed parameters, by key.
 * @param {string} id
 * @param {string | null} asOf
 * @param {import("../types").ExperimentRecord} record
 */
function useChanges(id, asOf, record) {
  const [changes, setChanges] = useState(/** @type {ReturnType<typeof changesByKey>} */ (new Map()));
  useEffect(() => {
    const stop = new AbortController();
    allMarks(id, stop.signal, ["parameter"]).then(
      (history) => setChanges(changesByKey(history.marks, asOf)),
      // The values are here; who changed them is told when the server says so.
      () => stop.signal.aborted || setChanges(new Map()),
    );
    return () => stop.abort();
  }, [id, asOf, record.counts.parameters]);
  return changes;
}

/**
 * The parameters whose name or value has all the words.
 * @param {Record<string, unknown>} data
 * @param {string} words
 */
function matching(data, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  if (!wanted.length) return data;
  const entries = Object.entries(data).filter(([key, value]) => {
    const text = `${key} ${valueText(value)}`.toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
  return Object.fromEntries(entries);
}

/**
 * The rows of a table: those of one prefix below a row of its own, where there is more than one.
 * @param {Record<string, unknown>} data
 * @param {ReadonlySet<string>} closed prefixes
 * @returns {Row[]}
 */
export function rowsOf(data, closed) {
  /** @type {Map<string, any>} */
  const root = new Map();
  for (const [key, value] of Object.entries(data)) {
    let branch = root;
    const parts = key.split(".");
    for (const part of parts.slice(0, -1)) {
      const next = branch.get(`${part}.`) ?? new Map();
      branch.set(`${part}.`, next);
      branch = next;
    }
    branch.set(/** @type {string} */ (parts.at(-1)), { key, value });
  }
  return branchRows(root, "", 0, closed);
}

/**
 * @param {Map<string, any>} branch
 * @param {string} prefix
 * @param {number} depth
 * @param {ReadonlySet<string>} closed
 * @returns {Row[]}
 */
function branchRows(branch, prefix, depth, closed) {
  /** @type {Row[]} */
  const rows = [];
  for (const [part, inner] of branch) {
    if (!(inner instanceof Map)) {
      rows.push({ kind: "value", key: inner.key, name: part, depth, value: inner.value });
      continue;
    }
    const whole = prefix + part;
    const size = sizeOf(inner);
    if (size === 1) {
      // A lone value needs no row above it.
      const [only] = branchRows(inner, whole, depth, new Set());
      rows.push(/** @type {Row} */ ({ ...only, name: part + only.name }));
      continue;
    }
    const open = !closed.has(whole);
    rows.push({ kind: "group", name: part.slice(0, -1), prefix: whole, depth, size, open });
    if (open) for (const row of branchRows(inner, whole, depth + 1, closed)) rows.push(row);
  }
  return rows;
}

/**
 * @param {Map<string, any>} branch
 * @returns {number}
 */
function sizeOf(branch) {
  let size = 0;
  for (const inner of branch.values()) size += inner instanceof Map ? sizeOf(inner) : 1;
  return size;
}
