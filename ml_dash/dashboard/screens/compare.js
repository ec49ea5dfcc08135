/** Several runs beside each other: their curves, parameters and files. */
import { get } from "../lib/api.js";
import { bare } from "../lib/fields.js";
import { stylesOf } from "../lib/colors.js";
import { counted } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { subscribe, throttled } from "../lib/live.js";
import { link, setParams } from "../lib/url.js";
import { html, useEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { Chart } from "../parts/chart.js";
import { ChartBar, chartsOf } from "../parts/chartbar.js";
import { ChartGrid, useTyped } from "../parts/chartgrid.js";
import { flippedGroups, found, groupsOf, optionsOf, zoomText } from "../parts/chartoptions.js";
import { CursorGroup } from "../parts/cursor.js";
import { differing, textOf } from "../parts/planeaxis.js";
import { Empty, Failure, Loading } from "../parts/states.js";
import { Tabs } from "../parts/tabs.js";
import { CompareFiles } from "./compare-files.js";
import { CompareParameters } from "./compare-parameters.js";
import { ComparePlane } from "./compare-plane.js";

/**
 * @typedef {import("../types").Run & {params: Record<string, unknown>}} Compared
 * @typedef {{experiments: Compared[], metrics: {name: string, runs: number}[], missing: string[], indexing?: {done: number, total: number}}} Comparison
 */

/** As many as the server answers for at once. */
const MOST = 100;

const TABS = [
  { name: "charts", text: "Charts" },
  { name: "parameters", text: "Parameters" },
  { name: "scatter", text: "Scatter" },
  { name: "parallel", text: "Parallel" },
  { name: "files", text: "Files" },
];

/** @param {import("../types").ScreenProps} props */
export default function Compare({ params }) {
  const all = [...new Set((params.runs ?? "").split(",").filter(Boolean))];
  const ids = all.slice(0, MOST);
  const { comparison, error, retry } = useComparison(ids, columnsOf(params));
  if (!ids.length) {
    return html`<${Empty} title="No runs to compare">Choose some in the list of <a href=${link("/runs")}>runs</a>
      with <kbd>x</kbd>, then press <kbd>c</kbd>.<//>`;
  }
  // What is known stays while the server is away.
  if (error && !comparison) return html`<${Failure} error=${error} retry=${retry} />`;
  if (!comparison || (comparison.indexing && !comparison.experiments.length)) return html`<${Loading} what="Loading runs" />`;
  if (!comparison.experiments.length) return html`<${Empty} title="None of these runs is here"><a href=${link("/runs")}>All runs</a><//>`;
  return html`<${Several} comparison=${comparison} beyond=${all.length - ids.length} params=${params} />`;
}

/**
 * @param {{comparison: Comparison, beyond: number, params: Record<string, string>}} props
 */
function Several({ comparison, beyond, params }) {
  const { experiments, missing } = comparison;
  const known = experiments.map(({ id }) => id).join();
  const runs = useMemo(() => experiments.map(({ id }) => id), [known]);
  const called = experiments.map(({ id, name, title }) => `${id} ${title ?? name}`).join("\n");
  const names = useMemo(() => namesOf(experiments), [called]);
  const styles = stylesOf(runs);
  const cursor = useMemo(() => new CursorGroup(), []);
  const stress = (/** @type {string | null} */ run) => cursor.move(null, run === null ? null : { x: NaN, curve: run });
  const tab = TABS.some(({ name }) => name === params.tab) ? params.tab : "charts";
  const without = (/** @type {string} */ id) => setParams({ runs: runs.filter((one) => one !== id).join(",") || null });
  const note = [comparison.indexing && missing.length ? `${counted(missing.length, "run")} still to be read` : missing.length && `${counted(missing.length, "run")} of the address ${missing.length === 1 ? "is" : "are"} not here (any more)`,
    beyond > 0 && `only the first ${MOST} runs are compared`].filter(Boolean).join(" · ");
  return html`<div class="compare">
    <header><h1>Compare ${counted(runs.length, "run")}</h1>${note && html`<span class="dim">${note}</span>`}</header>
    <ul class="compare-runs" aria-label="Compared runs">${experiments.map((run) => html`<li key=${run.id}
        onMouseEnter=${() => stress(run.id)} onMouseLeave=${() => stress(null)} onFocusIn=${() => stress(run.id)} onFocusOut=${() => stress(null)}>
      <span aria-hidden="true" style=${{ borderColor: styles.get(run.id)?.color, borderTopStyle: styles.get(run.id)?.dash.length ? "dashed" : "solid" }}></span>
      <a href=${link(`/runs/${run.id}`)} title=${`${run.project} · ${run.status}`}>${names.get(run.id)}</a>
      <button type="button" class="quiet" aria-label=${`Leave ${names.get(run.id)} out`} onClick=${() => without(run.id)}>✕</button></li>`)}</ul>
    <${Tabs} tabs=${TABS} chosen=${tab} label="Compare" onChoose=${(/** @type {string} */ to) => setParams({ tab: to === "charts" ? null : to })}>
      ${tab === "charts" && html`<${CompareCharts} comparison=${comparison} runs=${runs} names=${names} params=${params} cursor=${cursor} />`}
      ${tab === "parameters" && html`<${CompareParameters} experiments=${experiments} names=${names} styles=${styles} params=${params} />`}
      ${(tab === "scatter" || tab === "parallel") && html`<${ComparePlane} kind=${tab} comparison=${comparison} names=${names} params=${params} />`}
      ${tab === "files" && html`<${CompareFiles} experiments=${experiments} names=${names} styles=${styles} params=${params} />`}
    <//>
  </div>`;
}

/**
 * @param {{comparison: Comparison, runs: string[], names: Map<string, string>, params: Record<string, string>, cursor: CursorGroup}} props
 */
function CompareCharts({ comparison, runs, names, params, cursor }) {
  const { experiments, metrics } = comparison;
  const options = optionsOf(params);
  const field = useRef(/** @type {HTMLInputElement | null} */ (null));
  const [search, setSearch] = useTyped(params.q ?? "", (text) => setParams({ q: text || null }, { replace: true }));
  useKeys([["/", "search the charts", () => field.current?.focus()]]);
  const wanted = new Set((params.metrics ?? "").split(",").filter(Boolean));
  const series = metrics.map(({ name }) => name).join("\n");
  const all = useMemo(() => metrics.map(({ name }) => name).filter((name) => !wanted.size || wanted.has(name)), [series, params.metrics]);
  const some = useMemo(() => found(all, search), [all, search]);
  const fields = useMemo(() => differing(experiments).map((key) => `params.${key}`), [experiments]);
  const groups = useMemo(() => valuesOf(experiments, options.mean), [experiments, options.mean]);
  if (!metrics.length) return html`<${Empty} title="None of these runs has metrics" />`;
  const toggled = groupsOf(params.groups);
  const onZoom = (/** @type {[number, number] | null} */ range) => setParams({ zoom: zoomText(range) || null });
  const about = (/** @type {{run: string}} */ { run }) => html`<p><a href=${link(`/runs/${run}`)}>Open ${names.get(run)}</a></p>`;
  const chart = (/** @type {string} */ metric, /** @type {number} */ height) => html`<${Chart} name=${metric} runs=${runs} names=${names} groups=${groups}
    options=${options} asOf=${null} height=${height} cursor=${cursor} onZoom=${onZoom} about=${about}
    enlarged=${params.chart === metric} onEnlarge=${(/** @type {string | null} */ to) => setParams({ chart: to })} />`;
  return html`<section aria-label="Charts">
    <${ChartBar} options=${options} params=${params} metrics=${all} screen="/compare" several meanFields=${fields}>
      <input type="search" ref=${field} class="chart-search" placeholder="Search charts  /" aria-label="Search charts" value=${search} spellcheck=${false}
        onInput=${(/** @type {any} */ event) => setSearch(event.currentTarget.value)} />
      <span class="dim number">${chartsOf(some.length, all.length)}</span>
    <//>
    ${params.chart && all.includes(params.chart)
      ? chart(params.chart, Math.max(320, Math.round(innerHeight * 0.6)))
      : html`<${ChartGrid} names=${some} size=${options.size} toggled=${toggled} chart=${chart}
          onToggle=${(/** @type {string} */ prefix) => setParams({ groups: flippedGroups(toggled, prefix) }, { replace: true })} />`}
    ${!some.length && html`<${Empty} title="No chart has this name"><button type="button" onClick=${() => setSearch("")}>Show all</button><//>`}
  </section>`;
}

/**
 * The runs with their parameters, again when they change.
 *
 * @param {string[]} ids
 * @param {string[]} columns
 */
function useComparison(ids, columns) {
  const [comparison, setComparison] = useState(/** @type {Comparison | null} */ (null));
  const [error, setError] = useState(/** @type {Error | null} */ (null));
  const [turn, setTurn] = useState(0);
  const key = `${ids.join()} ${columns.join()}`;
  useEffect(() => {
    if (!ids.length) return undefined;
    const abort = new AbortController();
    const load = async () => {
      try {
        const answer = await get("/comparison", { experiment: ids, columns: columns.join(",") || null }, { signal: abort.signal });
        if (abort.signal.aborted) return;
        setComparison({ ...answer, experiments: answer.experiments.map((/** @type {Comparison["experiments"][0]} */ run) => ({ ...run, params: bare(run.params) })) });
        setError(null);
        // Those that seem to be missing may not have been read yet.
        if (answer.indexing && answer.missing.length) again(null);
      } catch (failed) {
        if (!abort.signal.aborted) setError(/** @type {Error} */ (failed));
      }
    };
    const again = throttled(2000, load);
    again(null);
    const leave = subscribe(ids, again);
    return () => {
      leave();
      abort.abort();
    };
  }, [key, turn]);
  return { comparison, error, retry: () => setTurn(turn + 1) };
}

/**
 * The columns that the chosen tab needs beside the parameters.
 *
 * @param {Record<string, string>} params
 */
function columnsOf({ tab, metric }) {
  return (tab === "scatter" || tab === "parallel") && metric ? [metric] : [];
}

/**
 * What runs are called: their titles, and where two have the same also the project or the id.
 *
 * @param {Compared[]} experiments
 * @returns {Map<string, string>}
 */
function namesOf(experiments) {
  const plain = experiments.map(({ id, name, title }) => ({ id, text: title ?? name }));
  const times = new Map();
  for (const { text } of plain) times.set(text, (times.get(text) ?? 0) + 1);
  return new Map(plain.map(({ id, text }) => [id, times.get(text) > 1 ? `${text} (${id.slice(0, 6)})` : text]));
}

/**
 * Run → value of a field, in words.
 *
 * @param {Compared[]} experiments
 * @param {string} field  params.KEY
 * @returns {Map<string, string>}
 */
function valuesOf(experiments, field) {
  const key = field.replace(/^params\./, "");
  return new Map(experiments.map(({ id, params }) => [id, params[key] === undefined ? "none" : textOf(params[key])]));
}
