/** Runs by the values of a field, with mean and spread of each column. */
import { html, useEffect, useMemo, useSignal } from "../lib/ui.js";
import { get } from "../lib/api.js";
import { FIELDS, familyOf, fieldText, listText, shownValue, titleOf, withCondition } from "../lib/fields.js";
import { count, counted } from "../lib/format.js";
import { subscribe, throttled } from "../lib/live.js";
import { link, navigate, setParam } from "../lib/url.js";
import { Grid } from "../parts/grid.js";
import { Empty, Failure, Loading, WrongQuery } from "../parts/states.js";

/** @typedef {import("../types").Group} Group */
/** @typedef {import("../parts/grid.js").Column} Column */

const REFRESH_MS = 2000;
const NUMBERS = new Set(["duration", "points", "size", "files.count"]);

/** @param {{by: string, where: string, columns: string[]}} props */
export default function Groups(props) {
  // Groups by another field are no answer while those by this one are looked for.
  return html`<${GroupsBy} key=${props.by} ...${props} />`;
}

/** @param {{by: string, where: string, columns: string[]}} props */
function GroupsBy({ by, where, columns }) {
  const groups = useSignal(/** @type {Group[]|null} */ (null));
  const error = useSignal(/** @type {import("../lib/api.js").ApiError|null} */ (null));
  const sort = useSignal({ id: "value", descending: false });
  const focus = useSignal(-1);
  const fields = columns.filter((field) => field !== by && (NUMBERS.has(field) || ["metrics", "params"].includes(familyOf(field))));
  const asked = listText(fields);
  useEffect(() => {
    const look = throttled(REFRESH_MS, async () => {
      try {
        groups.value = (await get("/groups", { by: fieldText(by), where: where || null, columns: asked || null })).groups;
        error.value = null;
      } catch (failed) {
        error.value = /** @type {import("../lib/api.js").ApiError} */ (failed);
      }
    });
    look(null);
    return subscribe(null, () => look(null));
  }, [by, where, asked]);
  const rows = useMemo(() => sorted(groups.value ?? [], sort.value), [groups.value, sort.value]);

  const all = useMemo(() => /** @type {Column[]} */ ([
    { id: "value", title: FIELDS[by] ?? by, width: Math.min(260, innerWidth * 0.4), pinned: true, fixed: true, sorts: true },
    { id: "runs", title: "Runs", width: 72, right: true, fixed: true, sorts: true },
    ...fields.map((field) => ({ id: field, title: titleOf(field), width: 150, right: true, sorts: true, fixed: true, hint: `${field}: mean ± standard deviation` })),
  ]), [by, asked]);

  if (error.value && error.value.code !== "query") return html`<${Failure} error=${error.value} />`;
  const wrong = error.value && html`<${WrongQuery} error=${error.value} />`;
  const single = html`<button class="quiet" onClick=${() => setParam("group", null)}>Show single runs</button>`;
  if (!groups.value) return wrong ? html`<div class="groups">${wrong}<p>${single}</p></div>` : html`<${Loading} />`;
  if (!rows.length) return html`<div class="groups">${wrong}<${Empty} title="No run matches" /></div>`;
  // A field that is missing fulfils no condition, so no query finds the runs without it.
  const isSet = (/** @type {Group} */ group) => group.value !== null && group.value !== undefined;
  const singles = (/** @type {Group} */ group) => ({ where: withCondition(where, by, group.value), columns: listText(columns) });
  const cell = (/** @type {Group} */ group, /** @type {Column} */ column) => {
    if (column.id === "value") {
      if (!isSet(group)) return html`<span class="dim">not set</span>`;
      const text = shownValue(by, Array.isArray(group.value) ? group.value.join(", ") : group.value);
      return html`<a class="cut" href=${link("/runs", singles(group))}>${text || "(empty)"}</a>`;
    }
    if (column.id === "runs") return count(group.runs);
    const spread = group.values[column.id];
    if (!spread) return null;
    return html`<span title=${`${spread.count} runs, from ${shownValue(column.id, spread.min)} to ${shownValue(column.id, spread.max)}`}>
      ${shownValue(column.id, spread.mean)}${spread.count > 1 && html` <span class="dim">± ${shownValue(column.id, spread.sd)}</span>`}</span>`;
  };
  return html`<div class="groups"><p class="line dim"><span role="status" aria-label="Groups">${counted(rows.length, "group")}</span>
      ${single}</p>${wrong}
    <${Grid} label=${`Runs by ${by}`} total=${rows.length} rowHeight=${30} columns=${all} row=${(/** @type {number} */ i) => rows[i]}
      cell=${cell} focus=${focus.value} onFocus=${(/** @type {number} */ i) => { focus.value = i; }}
      onOpen=${(/** @type {Group} */ group) => isSet(group) && navigate("/runs", singles(group))} onRange=${nothing}
      sort=${sort.value} onSort=${(/** @type {string} */ id) => {
        sort.value = { id, descending: sort.value.id === id ? !sort.value.descending : id !== "value" };
      }} /></div>`;
}

const nothing = () => {};

/** @param {Group[]} groups @param {{id: string, descending: boolean}} by */
function sorted(groups, { id, descending }) {
  const key = (/** @type {Group} */ group) => (id === "value" ? group.value : id === "runs" ? group.runs : group.values[id]?.mean);
  const order = (/** @type {Group} */ a, /** @type {Group} */ b) => {
    const [x, y] = [key(a), key(b)];
    // What is missing comes last, whichever way the rest goes.
    if (x === null || x === undefined || y === null || y === undefined) return Number(x === null || x === undefined) - Number(y === null || y === undefined);
    const less = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return descending ? -less : less;
  };
  return [...groups].sort(order);
}
