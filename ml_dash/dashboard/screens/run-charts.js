/** The Charts tab of a run: all its metrics in groups, searchable, with one cursor and one zoom. */
import { experimentPath, get, series } from "../lib/api.js";
import { time } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { subscribe, throttled } from "../lib/live.js";
import { link, route, setParams } from "../lib/url.js";
import { html, useEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { Chart } from "../parts/chart.js";
import { ChartBar, chartsOf } from "../parts/chartbar.js";
import { ChartGrid, useTyped } from "../parts/chartgrid.js";
import { flippedGroups, found, groupsOf, optionsOf, zoomText } from "../parts/chartoptions.js";
import { CursorGroup } from "../parts/cursor.js";
import { nearest } from "../parts/envelope.js";
import { Empty, Failure, Loading } from "../parts/states.js";

const PAGE = 1000;

/**
 * @param {{id: string, record?: {name: string, title?: string | null}, asOf?: string | null}} props
 */
export default function RunCharts({ id, record, asOf = null }) {
  const name = record?.title ?? record?.name ?? "";
  const { params: given } = route.value;
  // A moment has its place on an axis of times alone.
  const params = given.at && !given.x ? { ...given, x: "wall" } : given;
  const { names, total, error, retry } = useMetricNames(id, asOf);
  const options = optionsOf(params);
  const cursor = useMemo(() => new CursorGroup(), [id]);
  const called = useMemo(() => new Map([[id, name || id.slice(0, 8)]]), [id, name]);
  const runs = useMemo(() => [id], [id]);
  const marks = useMemo(() => momentMarks(params.at, options.x), [params.at, options.x]);
  const field = useRef(/** @type {HTMLInputElement | null} */ (null));
  const [search, setSearch] = useTyped(params.q ?? "", (text) => setParams({ q: text || null }, { replace: true }));
  const some = useMemo(() => (names ? found(names, search) : []), [names, search]);
  useKeys([["/", "search the charts", () => field.current?.focus()]]);
  // What is known stays while the server is away.
  if (error && !names) return html`<${Failure} error=${error} retry=${retry} />`;
  if (!names) return html`<${Loading} what="Loading metrics" />`;
  if (!names.length) return html`<${Empty} title="No metrics yet">Charts appear with the first point:
    <code>experiment.metric("loss").append(value=0.31, step=1)</code><//>`;

  const onZoom = (/** @type {[number, number] | null} */ range) => setParams({ zoom: zoomText(range) || null });
  const about = (/** @type {{run: string, metric: string, index: number}} */ pick) => html`<p><${LogsThen} id=${id} ...${pick} asOf=${asOf} /></p>`;
  const chart = (/** @type {string} */ metric, /** @type {number} */ height) => html`<${Chart} name=${metric} runs=${runs} names=${called}
    options=${options} asOf=${asOf} height=${height} cursor=${cursor} onZoom=${onZoom} marks=${marks} about=${about}
    enlarged=${params.chart === metric} onEnlarge=${(/** @type {string | null} */ to) => setParams({ chart: to })} />`;
  const toggled = groupsOf(params.groups);
  return html`<section class="charts" aria-label="Charts">
    <${ChartBar} options=${options} params=${params} metrics=${names} screen="/runs/*">
      <input type="search" ref=${field} class="chart-search" placeholder="Search charts  /" aria-label="Search charts" value=${search} spellcheck=${false}
        onInput=${(/** @type {any} */ event) => setSearch(event.currentTarget.value)} />
      <span class="dim number">${chartsOf(some.length, Math.max(total, names.length))}</span>
    <//>
    ${params.at && html`<p class="chart-moment">Marked: ${time(params.at)}
      <a href=${link(`/runs/${id}`, { tab: "logs", at: params.at, asOf })}>Logs at this moment</a>
      <button type="button" class="quiet" onClick=${() => setParams({ at: null })}>Remove the mark</button></p>`}
    ${params.chart && names.includes(params.chart)
      ? chart(params.chart, Math.max(320, Math.round(innerHeight * 0.6)))
      : html`<${ChartGrid} names=${some} size=${options.size} toggled=${toggled} chart=${chart}
          onToggle=${(/** @type {string} */ prefix) => setParams({ groups: flippedGroups(toggled, prefix) }, { replace: true })} />`}
    ${!some.length && html`<${Empty} title="No chart has this name"><button type="button" onClick=${() => setSearch("")}>Show all</button><//>`}
  </section>`;
}

/**
 * The names of all series of a run. The first page is shown while the others come; new metrics appear by themselves.
 *
 * @param {string} id
 * @param {string | null} asOf
 */
function useMetricNames(id, asOf) {
  const [names, setNames] = useState(/** @type {string[] | null} */ (null));
  const [total, setTotal] = useState(0);
  const [error, setError] = useState(/** @type {Error | null} */ (null));
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const abort = new AbortController();
    const load = async () => {
      try {
        /** @type {string[]} */
        let all = [];
        for (let start = 0; ; start += PAGE) {
          const query = { startIndex: start, limit: PAGE, asOf };
          const page = await get(experimentPath(id, "metrics"), query, { signal: abort.signal });
          all = all.concat(namesOf(page));
          setTotal(Math.max(page.total ?? 0, all.length));
          // While it grows what is there stays: a list that shrinks for a moment loses the place one looks at.
          setNames((before) => (before && (before.length > all.length || same(before, all)) ? before : all));
          if (start + PAGE >= (page.total ?? 0)) break;
        }
        setNames((before) => (before && same(before, all) ? before : all));
        setError(null);
      } catch (failed) {
        if (!abort.signal.aborted) setError(/** @type {Error} */ (failed));
      }
    };
    const again = throttled(2000, load);
    load();
    const leave = asOf === null ? subscribe([id], again) : () => {};
    return () => {
      leave();
      abort.abort();
    };
  }, [id, asOf, turn]);
  return { names, total, error, retry: () => setTurn(turn + 1) };
}

/**
 * @param {string[]} a
 * @param {string[]} b
 */
const same = (a, b) => a.length === b.length && a.every((name, i) => name === b[i]);

/**
 * The names of the series on a page of metrics: one for each field of numbers.
 *
 * @param {{metrics: {series: Record<string, unknown>}[]}} page
 * @returns {string[]}
 */
function namesOf(page) {
  return page.metrics.flatMap((metric) => Object.keys(metric.series));
}

/**
 * A link from a point to the logs of that moment.
 *
 * @param {{id: string, metric: string, index: number, asOf: string | null}} props
 */
function LogsThen({ id, metric, index, asOf }) {
  const [at, setAt] = useState(/** @type {string | null} */ (null));
  useEffect(() => {
    const abort = new AbortController();
    const ask = async () => {
      const { series: [one] } = await series({ experiment: id, metric, x: "wall", points: 2000, asOf }, { signal: abort.signal });
      const place = one ? nearest(one.index, index, true) : -1;
      if (place >= 0 && !abort.signal.aborted) setAt(new Date(one.x[place] * 1000).toISOString());
    };
    // Without an answer there is no link; the chart itself says that the server is away.
    ask().catch(() => {});
    return () => abort.abort();
  }, [id, metric, index]);
  return at && html`<a href=${link(`/runs/${id}`, { tab: "logs", at, asOf })}>Logs at this moment</a>`;
}

/**
 * The moment that the URL names, on an axis of times.
 *
 * @param {string | undefined} at
 * @param {string} x
 */
function momentMarks(at, x) {
  const seconds = Date.parse(at ?? "") / 1000;
  return x === "wall" && Number.isFinite(seconds) ? [{ x: seconds, text: time(seconds * 1000).slice(11) }] : [];
}
