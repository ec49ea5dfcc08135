/** The list of runs: filtered, sorted, grouped, chosen, and always up to date. */
import { html, signal, useEffect, useLayoutEffect, useMemo, useSignal } from "../lib/ui.js";
import { me } from "../lib/api.js";
import { colorOf } from "../lib/colors.js";
import {
  FIELDS, familyOf, fieldText, fieldsOf, fullValue, listText, shownValue, titleOf, trendOf, valueOf, withCondition,
} from "../lib/fields.js";
import { ago, count, counted } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { subscribe } from "../lib/live.js";
import { pref } from "../lib/prefs.js";
import { link, navigate, route, setParam, setParams } from "../lib/url.js";
import { Grid } from "../parts/grid.js";
import { QueryBox, isNumber, known } from "../parts/querybox.js";
import { Empty, Failure, Loading } from "../parts/states.js";
import { Status, reasonOf } from "../parts/status.js";
import { Projects } from "./projects.js";
import { runsList } from "./runs-state.js";

/** @typedef {import("../types").Run} Run */
/** @typedef {import("../types").ScreenProps} ScreenProps */
/** @typedef {import("../parts/grid.js").Column} Column */

export const DEFAULT_SORT = "created:desc";
const OWN_COLUMNS = ["status", "created", "duration", "tags"];
const GROUP_FIELDS = ["project", "folder", "tags", "status", "host", "user", "commit"];
const WIDTHS = /** @type {Record<string, number>} */ ({
  status: 190, created: 92, updated: 92, ended: 92, duration: 84, tags: 150, project: 130, folder: 130, description: 220,
  notes: 220, host: 110, user: 90, commit: 92, points: 88, size: 88, "files.count": 64,
});
const RIGHT = new Set(["created", "updated", "ended", "duration", "points", "size", "files.count"]);
const UNSORTED = new Set(["tags", "notes", "description"]);
const TICK_MS = 15_000;
const MOST_SELECTED = 100;
/** For how long the first rows wait until it is known which metrics and parameters there are. */
const COLUMNS_WAIT_MS = 250;

const widths = pref("runs.widths", /** @type {Record<string, number>} */ ({}));
const lastColumns = pref("runs.columns", /** @type {string|null} */ (null));

const small = matchMedia("(max-width: 640px)");
/** True where there is room for a name and little more. */
const narrow = signal(small.matches);
small.addEventListener("change", () => { narrow.value = small.matches; });

/** The columns of who has not chosen any; null until the fields are known for the first time in this browser. */
const automatic = pref("runs.automatic", /** @type {string[]|null} */ (null));

/** Chooses a few metrics and parameters that most runs have. */
async function chooseColumns() {
  const names = (await known("", 100)).filter((one) => one.name.startsWith("metrics.") || one.kind !== "time").map((one) => one.name);
  const metrics = names.filter((name) => name.startsWith("metrics."));
  const telling = metrics.filter((name) => /loss|acc|score|reward|f1|auc|perplexity|error/i.test(name));
  const params = names.filter((name) => name.startsWith("params."));
  automatic.value = [...OWN_COLUMNS, ...(telling.length ? telling : metrics).slice(0, 3), ...params.slice(0, 4)];
}

/** The state that the URL has. @param {Record<string, string>} params */
function stateOf(params) {
  const sort = params.sort || DEFAULT_SORT;
  const chosen = params.columns ?? lastColumns.value;
  return {
    where: params.where ?? "",
    sort: { id: fieldsOf(sort.replace(/:(asc|desc)$/, ""))[0] ?? "created", descending: sort.endsWith(":desc") },
    sortText: sort,
    columns: chosen !== null && chosen !== undefined ? fieldsOf(chosen) : automatic.value,
    pinned: new Set(fieldsOf(params.pin ?? "")),
    group: params.group || null,
    selected: (params.selected ?? "").split(",").filter(Boolean),
  };
}

/** @param {ScreenProps} props */
export default function Runs({ params }) {
  const list = useMemo(runsList, []);
  const focus = useSignal(-1);
  const state = stateOf(params);
  const { where, sortText, columns, group, selected } = state;
  const asked = columns && listText(columns.filter((field) => trendOf(field) === null && field !== "name"));

  useEffect(() => {
    // Links name a project; the filter shows it, and can be changed there.
    const { project, ...rest } = route.peek().params;
    if (project) navigate("/runs", { ...rest, where: withCondition(where, "project", project) }, { replace: true });
  }, [params.project]);
  // What is asked for does not wait until something is painted.
  useLayoutEffect(() => {
    if (columns && columns !== automatic.peek()) return undefined;
    chooseColumns();
    const wait = setTimeout(() => { automatic.value ??= OWN_COLUMNS; }, COLUMNS_WAIT_MS);
    return () => clearTimeout(wait);
  }, []);
  useLayoutEffect(() => {
    if (asked !== null && !group && !params.project) list.ask({ where, sort: sortText, columns: asked });
  }, [where, sortText, asked, group, params.project]);
  useLayoutEffect(() => {
    focus.value = -1;
  }, [where, sortText, group]);
  useEffect(() => {
    const unsubscribe = subscribe(null, () => list.refresh());
    const tick = setInterval(() => { list.ticks.value += 1; }, TICK_MS);
    return () => {
      unsubscribe();
      clearInterval(tick);
    };
  }, []);

  const select = (/** @type {string[]} */ ids) => setParam("selected", [...new Set(ids)].slice(0, MOST_SELECTED).join(","), { replace: true });
  const toggle = (/** @type {string} */ id) => select(selected.includes(id) ? selected.filter((one) => one !== id) : [...selected, id]);
  const open = (/** @type {Run} */ run) => navigate(`/runs/${encodeURIComponent(run.id)}`);
  const move = (/** @type {number} */ step) => {
    focus.value = Math.max(0, Math.min((list.total.peek() ?? 1) - 1, focus.peek() + step));
  };
  const compare = () => {
    const ids = selected.length ? selected : [list.row(focus.peek())?.id].filter(Boolean);
    if (ids.length) navigate("/compare", { runs: ids.join(",") });
  };
  useKeys([
    ["/", "filter", () => /** @type {HTMLElement|null} */ (document.querySelector("input[type=search]"))?.focus()],
    ["j", "next run", () => move(1)],
    ["k", "run before", () => move(-1)],
    ["x", "select the run", () => {
      const run = list.row(focus.peek());
      if (run) toggle(run.id);
    }],
    ["Enter", "open the run", () => {
      const run = list.row(focus.peek());
      if (run) open(run);
    }],
    ["c", "compare what is selected", compare],
    ["Escape", "select nothing", () => select([])],
  ]);

  const wrong = list.error.value?.code === "query" ? list.error.value : null;
  return html`<div class="runs fill">
    <${Projects} ready=${Boolean(group || list.error.value) || list.total.value !== null} where=${where} onChoose=${(/** @type {string} */ query) => setParam("where", query)} />
    <section aria-label="Runs">
      <div class="tools">
        <${QueryBox} value=${where} error=${wrong} onQuery=${(/** @type {string} */ text, /** @type {boolean} */ done) => {
          if (text !== where) setParam("where", text, { replace: !done });
        }} />
        <${Tools} state=${state} list=${list} />
      </div>
      ${(!group || selected.length > 0) && html`<${Line} list=${list} selected=${selected} select=${select} compare=${compare} />`}
      ${group
        ? html`<${Lazy} load=${groups} by=${group} where=${where} columns=${columns ?? OWN_COLUMNS} />`
        : html`<${List} list=${list} state=${state} focus=${focus} toggle=${toggle} select=${select} open=${open} />`}
    </section>
  </div>`;
}

const groups = () => import("./runs-groups.js");

/**
 * A part that is loaded when it is needed.
 * @param {{load: () => Promise<{default: import("../vendor/preact.js").Component}>} & Record<string, any>} props
 */
function Lazy({ load, ...props }) {
  const loaded = useSignal(/** @type {{Part: import("../vendor/preact.js").Component}|null} */ (null));
  useEffect(() => {
    load().then((module) => { loaded.value = { Part: module.default }; });
  }, [load]);
  return loaded.value ? html`<${loaded.value.Part} ...${props} />` : null;
}

/** Above the list: what it shows, and what of it. @param {{state: ReturnType<typeof stateOf>, list: import("./runs-state.js").RunsList}} props */
function Tools({ state, list }) {
  const busy = useSignal("");
  const columns = state.columns ?? OWN_COLUMNS;
  const choose = async () => (await import("./runs-columns.js")).chooseColumns(columns, state.pinned, setColumns);
  const saved = async () => (await import("./runs-views.js")).showViews();
  const csv = async () => {
    const { downloadCsv } = await import("./runs-csv.js");
    const question = { where: state.where, sort: state.sortText };
    await downloadCsv(question, ["name", ...columns.filter((field) => trendOf(field) === null)], (text) => { busy.value = text; });
  };
  const fields = useSignal(/** @type {string[]} */ ([]));
  const more = async () => {
    fields.value = (await known("params.", 200)).map((one) => one.name);
  };
  const options = [...new Set([...GROUP_FIELDS, ...fields.value, ...(state.group ? [state.group] : [])])];
  return html`<span class="buttons">
    <button onClick=${choose}>Columns</button>
    <label class="inline"><span class="hidden">Group by</span><select value=${state.group ?? ""} onFocus=${more} onMouseEnter=${more}
        onChange=${(/** @type {any} */ event) => setParam("group", event.currentTarget.value)}>
      <option value="">Group by…</option>
      ${options.map((field) => html`<option value=${field}>${FIELDS[field] ?? field}</option>`)}
    </select></label>
    <button onClick=${saved}>Views</button>
    <button onClick=${csv} disabled=${busy.value !== "" || !list.total.value}>${busy.value || "CSV"}</button>
  </span>`;
}

/** @param {string[]} columns @param {Iterable<string>} pinned */
function setColumns(columns, pinned) {
  const text = listText(columns);
  lastColumns.value = text;
  setParams({ columns: text, pin: listText([...pinned].filter((field) => columns.includes(field))) }, { replace: true });
}

/**
 * How many there are, or what to do with those that are selected.
 * @param {{list: import("./runs-state.js").RunsList, selected: string[], select: (ids: string[]) => void, compare: () => void}} props
 */
function Line({ list, selected, select, compare }) {
  const total = list.total.value;
  const { done = 0, total: all = 0 } = list.indexing.value ?? {};
  const text = total === null ? "" : counted(total, "run");
  const few = total !== null && total <= MOST_SELECTED && selected.length < total;
  const can = me.value?.can;
  /** @param {string} action */
  const act = async (action) => {
    const { actOn } = await import("./runs-actions.js");
    await actOn(action, selected, list, () => select([]));
  };
  return html`<div class="line">
    <span role="status" aria-label="Runs that match">${text}</span>
    ${all > 0 && html`<span class="dim">reading ${count(done)} of ${count(all)}</span>`}
    ${selected.length > 0 && html`<span class="selection">
      <b>${count(selected.length)} selected</b>
      <button class="primary" onClick=${compare}>Compare</button>
      ${can?.edit && html`<button onClick=${() => act("tag")}>Tag</button>`}
      ${can?.edit && selected.length === 1 && html`<button onClick=${() => act("rename")}>Rename</button>
        <button onClick=${() => act("describe")}>Describe</button>`}
      ${can?.archive && html`<button onClick=${() => act("archive")}>Archive</button>`}
      ${can?.remove && html`<button class="danger" onClick=${() => act("delete")}>Delete</button>`}
      ${few && html`<button class="quiet" onClick=${() => select(list.rows().map((run) => run.id))}>Select all</button>`}
      <button class="quiet" onClick=${() => select([])}>Clear</button>
    </span>`}
  </div>`;
}

/**
 * @param {{list: import("./runs-state.js").RunsList, state: ReturnType<typeof stateOf>, focus: import("../vendor/preact.js").Signal<number>,
 *   toggle: (id: string) => void, select: (ids: string[]) => void, open: (run: Run) => void}} props
 */
function List({ list, state, focus, toggle, select, open }) {
  const { where, sort, selected } = state;
  const anchor = useMemo(() => ({ index: -1 }), []);
  const fields = listText(state.columns ?? OWN_COLUMNS);
  const pins = listText([...state.pinned]);
  const columns = useMemo(() => gridColumns(fieldsOf(fields), new Set(fieldsOf(pins))), [fields, pins, narrow.value, widths.value, automatic.value]);
  const chosen = useMemo(() => new Set(selected), [selected.join(",")]);
  // Rows stay as they were drawn; what they call is what is there then.
  const now = useMemo(() => ({ chosen, check: (/** @type {Run} */ _run, /** @type {MouseEvent} */ _event) => {} }), []);
  now.chosen = chosen;
  const cell = useMemo(() => (/** @type {Run} */ run, /** @type {Column} */ column) => cellOf(run, column, now), []);
  // Reading it draws this list again with each change of the rows.
  void list.version.value;
  const total = list.total.value;
  const error = list.error.value;
  if (total === null) return error ? (error.code === "query" ? null : html`<${Failure} error=${error} retry=${list.again} />`) : html`<${Loading} />`;
  if (total === 0 && !list.indexing.value) return html`<${Nothing} where=${where} />`;
  const check = (/** @type {Run} */ run, /** @type {MouseEvent} */ event) => {
    const index = list.rows().findIndex((one) => one.id === run.id);
    if (event.shiftKey && anchor.index >= 0) {
      const [from, to] = [anchor.index, index].sort((a, b) => a - b);
      select([...selected, ...list.rows().slice(from, /** @type {number} */ (to) + 1).map((one) => one.id)]);
    } else toggle(run.id);
    anchor.index = index;
  };
  now.check = check;
  return html`<${Grid} label="Runs" total=${total} rowHeight=${narrow.value ? 48 : 30} columns=${columns} row=${list.row} cell=${cell} stamp=${list.ticks.value}
    chosen=${(/** @type {Run} */ run) => chosen.has(run.id)} focus=${focus.value} onFocus=${(/** @type {number} */ i) => { focus.value = i; }}
    onOpen=${open} onRange=${list.see} sort=${sort} onSort=${(/** @type {string} */ id) => setParam("sort", nextSort(sort, id))}
    onMove=${(/** @type {string} */ id, /** @type {string} */ before) => setColumns(moved(columns.map((one) => one.id).filter((one) => one !== "name"), id, before), state.pinned)}
    onResize=${(/** @type {string} */ id, /** @type {number} */ width) => { widths.value = { ...widths.peek(), [id]: width }; }} />`;
}

/** @param {{where: string}} props */
function Nothing({ where }) {
  if (where) {
    return html`<${Empty} title="No run matches">
      <span>Archived runs are left out unless the filter names them: <code>archived = true</code>. </span>
      <a href=${link("/runs")}>Show all runs</a>
    <//>`;
  }
  const local = me.value?.mode === "local";
  return html`<${Empty} title="No runs yet" command=${local ? "ml-dash demo" : `ml-dash demo --remote ${location.origin}`}>
    ${local ? "Runs that are recorded in these folders show here as soon as they begin." : "Runs that are recorded with this server as their remote show here as soon as they begin."}
  <//>`;
}

const nameOf = (/** @type {Run} */ run) => run.title ?? run.name;

/** @param {string[]} columns @param {Set<string>} pinned @returns {Column[]} */
function gridColumns(columns, pinned) {
  // There the name has them below it.
  const leave = narrow.value ? new Set(["status", "created"]) : new Set();
  const fields = columns.filter((field) => field !== "name" && !leave.has(field));
  const isPinned = (/** @type {string} */ field) => pinned.has(field) && !narrow.value;
  const ordered = [...fields.filter(isPinned), ...fields.filter((field) => !isPinned(field))];
  const name = { id: "name", title: "Name", width: widths.value.name ?? (narrow.value ? Math.min(260, innerWidth * 0.62) : 300), pinned: true, fixed: true, sorts: true };
  return [name, ...ordered.map((field) => columnOf(field, isPinned(field)))];
}

/** @param {string} field @param {boolean} pinned @returns {Column} */
function columnOf(field, pinned) {
  const family = familyOf(field);
  const title = titleOf(field);
  const width = widths.value[field] ?? WIDTHS[field] ?? Math.max(88, Math.min(160, title.length * 7 + 26));
  return {
    id: field, title, pinned, width: family === "trend" ? Math.max(width, 110) : width,
    right: family === "metrics" || RIGHT.has(field) || isNumber(field), sorts: family !== "trend" && !UNSORTED.has(field), hint: field,
  };
}

/**
 * @param {Run} run
 * @param {Column} column
 * @param {{chosen: Set<string>, check: (run: Run, event: MouseEvent) => void}} now
 */
function cellOf(run, column, now) {
  const field = column.id;
  if (field === "name") {
    const name = nameOf(run);
    return html`<label class="check"><input type="checkbox" checked=${now.chosen.has(run.id)} aria-label=${`Select ${name}`} tabindex="-1"
        onClick=${(/** @type {MouseEvent} */ event) => now.check(run, event)} /></label>
      <span class="swatch" aria-hidden="true" style=${{ background: colorOf(run.id) }}></span>
      <span class="two"><a class="cut" href=${link(`/runs/${encodeURIComponent(run.id)}`)} title=${`${run.project}/${run.name}`}>${name}</a>
        ${narrow.value && html`<span class="second"><${Status} status=${run.status} short /> <span class="dim">${ago(run.createdAt)}</span></span>`}</span>
      ${run.archived && html`<span class="tag">archived</span>`}`;
  }
  if (field === "status") return html`<${Status} status=${run.status} reason=${reasonOf(run)} />`;
  if (field === "tags") return (run.tags ?? []).map((tag) => html`<span class="tag" key=${tag} title=${tag}>${tag}</span>`);
  const trend = trendOf(field);
  if (trend !== null) return html`<${Trend} run=${run} metric=${trend} />`;
  const v = valueOf(run, field);
  return html`<span class="cut" title=${fullValue(field, v)}>${shownValue(field, v)}</span>`;
}

/** Loads the module of small lines when the first is drawn. @param {{run: Run, metric: string}} props */
function Trend({ run, metric }) {
  return html`<${Lazy} load=${trends} run=${run} metric=${metric} />`;
}

const trends = () => import("../parts/sparkline.js");

/** @param {{id: string, descending: boolean}} sort @param {string} id */
function nextSort(sort, id) {
  // Texts begin at A; of numbers and times, the greatest is asked for more often.
  const descendsFirst = RIGHT.has(id) || familyOf(id) !== "own";
  if (sort.id !== id) return `${fieldText(id)}${descendsFirst ? ":desc" : ""}`;
  if (sort.descending === descendsFirst) return `${fieldText(id)}${descendsFirst ? "" : ":desc"}`;
  return null;
}

/** @param {string[]} columns @param {string} id @param {string} before */
function moved(columns, id, before) {
  const rest = columns.filter((one) => one !== id);
  const at = columns.indexOf(id) < columns.indexOf(before) ? rest.indexOf(before) + 1 : Math.max(0, rest.indexOf(before));
  return [...rest.slice(0, at), id, ...rest.slice(at)];
}
