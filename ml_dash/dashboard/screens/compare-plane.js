/** Parameters against a metric: as a scatter plot or as parallel coordinates. */
import { dark, stylesOf } from "../lib/colors.js";
import { counted } from "../lib/format.js";
import { setParams } from "../lib/url.js";
import { html, useLayoutEffect, useRef, useState } from "../lib/ui.js";
import { Parallel, brushText, brushesOf, isWithin } from "../parts/parallel.js";
import { axisOf, differing, rampCss, spansMagnitudes } from "../parts/planeaxis.js";
import { Scatter } from "../parts/scatter.js";
import { Empty } from "../parts/states.js";

/** @typedef {import("./compare.js").Comparison} Comparison */

const STATISTICS = ["last", "min", "max", "mean", "first"];
/** More axes than this cannot be told apart. */
const AXES = 10;

/**
 * @param {{kind: string, comparison: Comparison, names: Map<string, string>, params: Record<string, string>}} props
 */
export function ComparePlane({ kind, comparison, names, params }) {
  const { experiments, metrics } = comparison;
  const at = useRef(/** @type {HTMLDivElement | null} */ (null));
  const width = useWidth(at);
  const keys = differing(experiments);
  const [series, statistic] = metricOf(params.metric, metrics);
  const column = series ? `metrics.${series}.${statistic}` : "";
  useLayoutEffect(() => {
    // The address says what is shown, also where nobody chose it.
    if (column && params.metric !== column) setParams({ metric: column }, { replace: true });
  }, [column, params.metric]);
  if (!series) return html`<${Empty} title="None of these runs has metrics" />`;
  if (!keys.length) return html`<${Empty} title="These runs have the same parameters">There is nothing to draw a metric against.<//>`;
  const set = (/** @type {Record<string, string | null>} */ changes) => setParams(changes, { replace: true });
  const flipped = new Set((params.logs ?? "").split(",").filter(Boolean));
  const logs = logsOf(comparison, keys, column, flipped);
  const flip = (/** @type {string} */ name) => {
    const next = flipped.has(name) ? [...flipped].filter((one) => one !== name) : [...flipped, name];
    set({ logs: next.join(",") || null });
  };
  const param = params.param && keys.includes(params.param) ? params.param : keys[0];
  const log = (/** @type {string} */ name, /** @type {string} */ word) => html`<label><input type="checkbox" checked=${logs.has(name)} onChange=${() => flip(name)} /> log ${word}</label>`;
  return html`<section aria-label=${kind === "scatter" ? "Scatter plot" : "Parallel coordinates of parameters"}>
    <div class="compare-options">
      <label>Metric <select value=${series} onChange=${(/** @type {any} */ event) => set({ metric: `metrics.${event.currentTarget.value}.${statistic}` })}>
        ${metrics.slice(0, 500).map(({ name }) => html`<option value=${name}>${name}</option>`)}</select></label>
      <label>Value <select value=${statistic} onChange=${(/** @type {any} */ event) => set({ metric: `metrics.${series}.${event.currentTarget.value}` })}>
        ${STATISTICS.map((name) => html`<option value=${name}>${name}</option>`)}</select></label>
      ${log(column, "metric")}
      ${kind === "scatter" && html`<label>Parameter <select value=${param} onChange=${(/** @type {any} */ event) => set({ param: event.currentTarget.value })}>
        ${keys.map((key) => html`<option value=${key}>${key}</option>`)}</select></label>
        ${log(`params.${param}`, "parameter")}`}
      ${kind === "parallel" && html`<span class="dim">${statistic} of ${series}: low <span class="ramp" style=${{ background: rampCss(dark.value) }}></span> high</span>`}
    </div>
    <div ref=${at}>
      ${width > 0 && (kind === "scatter"
        ? html`<${Scatter} width=${width} xName=${param} yName=${`${series} (${statistic})`} logX=${logs.has(`params.${param}`)} logY=${logs.has(column)}
            dots=${dotsOf(comparison, names, param, column)} />`
        : html`<${Lines} comparison=${comparison} names=${names} keys=${keys.slice(0, AXES)} column=${column} logs=${logs} width=${width} params=${params} />`)}
    </div>
  </section>`;
}

/**
 * @param {{comparison: Comparison, names: Map<string, string>, keys: string[], column: string, logs: Set<string>, width: number, params: Record<string, string>}} props
 */
function Lines({ comparison, names, keys, column, logs, width, params }) {
  const brushes = brushesOf(params.brush);
  const axes = [...keys.map((key) => `params.${key}`), column];
  const lines = comparison.experiments.map((run) => ({
    id: run.id,
    name: names.get(run.id) ?? run.name,
    values: [...keys.map((key) => run.params[key]), run.values[column]],
  }));
  const scales = axes.map((name, i) => axisOf(lines.map(({ values }) => values[i]), logs.has(name)));
  const within = lines.filter(({ values }) => isWithin(values.map((value, i) => scales[i].place(value)), axes, brushes));
  const some = within.length < lines.length;
  return html`<${Parallel} lines=${lines} axes=${axes} logs=${logs} width=${width - 2} brushes=${brushes}
      onBrush=${(/** @type {import("../parts/parallel.js").Brushes} */ next) => setParams({ brush: brushText(next) || null })} />
    <p class="dim">${some ? `${within.length} of ${counted(lines.length, "run")} chosen` : "Drag along an axis to choose runs; a click on it takes the choice away."}
      ${some && within.length > 0 && html` <button type="button" onClick=${() => setParams({ runs: within.map(({ id }) => id).join(","), brush: null })}>Keep these</button>`}
      ${some && html` <button type="button" onClick=${() => setParams({ brush: null })}>Show all</button>`}</p>`;
}

/**
 * The axes that are logarithmic: parameters over several magnitudes, unless somebody said otherwise.
 *
 * @param {Comparison} comparison
 * @param {string[]} keys
 * @param {string} column
 * @param {Set<string>} flipped  those that are not as they are at first
 */
function logsOf({ experiments }, keys, column, flipped) {
  const wide = keys.filter((key) => spansMagnitudes(experiments.map(({ params }) => params[key]))).map((key) => `params.${key}`);
  const all = [...keys.map((key) => `params.${key}`), column];
  return new Set(all.filter((name) => wide.includes(name) !== flipped.has(name)));
}

/**
 * @param {Comparison} comparison
 * @param {Map<string, string>} names
 * @param {string} param
 * @param {string} column
 */
function dotsOf({ experiments }, names, param, column) {
  const styles = stylesOf(experiments.map(({ id }) => id));
  return experiments.map((run) => ({
    id: run.id,
    name: names.get(run.id) ?? run.name,
    color: styles.get(run.id)?.color ?? "#888888",
    x: run.params[param],
    y: run.values[column],
  }));
}

/**
 * The series and the statistic of a column, or of the metric that most runs have.
 *
 * @param {string | undefined} column  metrics.SERIES.STATISTIC
 * @param {{name: string}[]} metrics
 * @returns {[string | undefined, string]}
 */
function metricOf(column, metrics) {
  const match = /^metrics\.(.+)\.(last|min|max|mean|first)$/.exec(column ?? "");
  if (match && metrics.some(({ name }) => name === match[1])) return [match[1], match[2]];
  return [metrics[0]?.name, "last"];
}

/** @param {{current: HTMLElement | null}} at */
function useWidth(at) {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const element = at.current;
    if (!element) return undefined;
    const observer = new ResizeObserver(() => setWidth(element.clientWidth));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  return width;
}
