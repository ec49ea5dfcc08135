/** One chart: a metric of one run or of many, with what a person needs to trust it and to take it along. */
import { dark } from "../lib/colors.js";
import { counted, number } from "../lib/format.js";
import { stylesheet } from "../lib/stylesheet.js";
import { classes, html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { placeText } from "./axes.js";
import { drawn, ranges } from "./curves.js";
import { saveCsv, savePng } from "./chartfiles.js";
import { shownOf, zoomed } from "./envelope.js";
import { Plot } from "./plot.js";
import { useSeries } from "./useseries.js";

/** @typedef {import("./chartoptions.js").ChartOptions} ChartOptions */
/** @typedef {import("./plot.js").Drawn} Drawn */
/** @typedef {import("./plot.js").Hit} Hit */
/** @typedef {import("../vendor/preact.js").Child} Child */

/**
 * @typedef {object} ChartProps
 * @property {string} name  of the series
 * @property {string[]} runs  their ids
 * @property {Map<string, string>} names  what runs are called
 * @property {Map<string, string>} [groups]  run → value of the field of which means are drawn
 * @property {ChartOptions} options
 * @property {string | null} asOf
 * @property {number} height  of the whole figure, in CSS pixels
 * @property {import("./cursor.js").CursorGroup} cursor
 * @property {(range: [number, number] | null) => void} onZoom
 * @property {(name: string | null) => void} [onEnlarge]
 * @property {boolean} [enlarged]
 * @property {{x: number, text: string}[]} [marks]
 * @property {(pick: {run: string, metric: string, index: number, x: number}) => Child} [about]  what to do with a point that was clicked
 */

/** The charts that are on the page, by the name of their series. @type {Map<string, () => {runs: import("../types").DrawnRun[]}>} */
const charts = new Map();

/** What the chart of this series has drawn, or undefined if there is none. @param {string} name */
const chartData = (name) => charts.get(name)?.();
window.mlDash = { ...window.mlDash, chart: chartData };

for (const sheet of ["vendor/uplot.css", "charts.css"]) stylesheet(sheet);

const NO_GROUPS = new Map();
/** @type {{x: number, text: string}[]} */
const NO_MARKS = [];
const HEAD = 30;

/** @param {ChartProps} props */
export function Chart({ name, runs, names, groups = NO_GROUPS, options, asOf, height, cursor, onZoom, onEnlarge, enlarged, marks = NO_MARKS, about }) {
  const place = useRef(/** @type {HTMLDivElement | null} */ (null));
  const plot = useRef(/** @type {Plot | null} */ (null));
  const readout = useRef(/** @type {HTMLSpanElement | null} */ (null));
  const width = useWidth(place);
  const [picked, setPicked] = useState(/** @type {Hit | null} */ (null));
  const { answer, error, loading } = useSeries(name, runs, options, asOf, width);

  const { smoothing, mean, spread, split, logX, logY, zoom } = options;
  // Until there are points for another axis, those of the old one are drawn on the old one.
  const x = answer?.x ?? options.x;
  const curves = useMemo(
    () => (answer ? drawn(answer.curves, answer.behind, options, names, groups) : []),
    [answer, smoothing, mean, spread, split, names, groups, dark.value],
  );
  const { xRange, yRange } = useMemo(() => ranges(curves, { ...options, x }), [curves, logX, logY, zoom?.[0], zoom?.[1]]);
  const handlers = useRef({ onZoom });
  handlers.current = { onZoom };

  useLayoutEffect(() => {
    const member = (/** @type {import("./cursor.js").Place | null} */ to) => {
      const hit = plot.current?.point(to) ?? null;
      if (readout.current) readout.current.textContent = hit ? number(hit.curve.line[hit.at], 6) : "";
    };
    const one = new Plot(/** @type {HTMLDivElement} */ (place.current), {
      zoom: (range) => handlers.current.onZoom(range),
      move: (to) => cursor.move(member, to),
      pick: (hit) => setPicked(hit),
    });
    plot.current = one;
    const leave = cursor.join(member);
    return () => {
      leave();
      one.drop();
      plot.current = null;
    };
  }, [cursor]);

  useLayoutEffect(() => {
    if (width && answer) plot.current?.show({ curves, x, logX, logY, xRange, yRange, width, height: height - HEAD, marks });
  }, [curves, x, logX, logY, xRange, yRange, width, height, marks]);

  useEffect(() => plot.current?.recolor(), [dark.value]);

  useEffect(() => {
    // Copied when somebody asks, and once: who waits for a chart asks at each frame.
    /** @type {{runs: import("../types").DrawnRun[]} | null} */
    let known = null;
    const data = () => (known ??= Object.assign(
      { runs: curves.filter((curve) => !curve.faint).map((curve) => dataOf(curve, answer)) },
      { behind: answer?.behind ?? [], x, xRange, yRange, loading },
    ));
    charts.set(name, data);
    return () => {
      if (charts.get(name) === data) charts.delete(name);
    };
  }, [name, curves, xRange, yRange, loading]);

  const keys = (/** @type {KeyboardEvent} */ event) => {
    if (event.target !== event.currentTarget) return;
    if (withKey(event, /** @type {Plot} */ (plot.current), zoom, onZoom, setPicked)) {
      event.preventDefault();
      const tip = /** @type {Plot} */ (plot.current).tip;
      if (readout.current) readout.current.textContent = tip.text();
    }
  };
  const total = answer ? labelOf(answer) : "";
  const notes = answer ? notesOf(answer, name) : [];
  return html`<figure class=${classes("chart", loading && "loading", enlarged && "enlarged")} aria-label=${name} tabindex="0" onKeyDown=${keys}
      style=${{ height: `${height}px` }}>
    <figcaption>
      <span class="chart-name" title=${name}>${name}</span>
      <span class="chart-readout" ref=${readout} aria-live="polite"></span>
      <span class="chart-shown dim" title=${notes.join("\n") || undefined}>${total}</span>
      <span class="chart-tools">
        ${zoom && html`<button type="button" class="quiet" onClick=${() => onZoom(null)}>Reset zoom</button>`}
        <button type="button" class="quiet" title="Save as a picture" aria-label=${`Save ${name} as PNG`} disabled=${!answer}
          onClick=${() => plot.current && savePng(plot.current, name, curves, place.current)}>PNG</button>
        <button type="button" class="quiet" title="Save what is drawn as CSV" aria-label=${`Save ${name} as CSV`} disabled=${!answer}
          onClick=${() => saveCsv(name, x, curves)}>CSV</button>
        ${onEnlarge && html`<button type="button" class="quiet" aria-label=${enlarged ? "Show all charts" : `Enlarge ${name}`}
          title=${enlarged ? "All charts" : "Enlarge"} onClick=${() => onEnlarge(enlarged ? null : name)}>${enlarged ? "✕" : "⤢"}</button>`}
      </span>
    </figcaption>
    <div class="chart-body" ref=${place}></div>
    ${error && html`<p class=${classes("chart-note error", answer && "below")} role="alert">${error.message}</p>`}
    ${!error && answer && !curves.length && html`<p class="chart-note dim">${empty(zoom, runs.length)}</p>`}
    ${picked && about && html`<${Picked} key=${`${picked.curve.key} ${picked.at}`} hit=${picked} x=${x} answer=${answer} metric=${name} about=${about} close=${() => setPicked(null)} />`}
    <${Values} name=${name} curves=${curves} answer=${answer} />
  </figure>`;
}

/**
 * How much of what there is a chart shows, and what else its axis is than was asked for.
 *
 * @param {import("./useseries.js").Answer} answer
 */
function labelOf({ curves, read, x }) {
  const meant = new Set(curves.map(({ xMeant }) => xMeant).filter((one) => one && one !== x));
  return [...[...meant].map((one) => `by ${one}`), shownOf(curves), read !== null && `${Math.floor(read * 100)} % read`].filter(Boolean).join(" · ");
}

/**
 * @param {import("./useseries.js").Answer} answer
 * @param {string} name
 */
function notesOf({ curves, missing }, name) {
  const left = curves.reduce((sum, { superseded }) => sum + (Number(superseded) || 0), 0);
  return [missing.length && `${counted(missing.length, "run")} without ${name}`, left && `${counted(left, "point")} superseded by a rewind`].filter(Boolean);
}

/**
 * @param {[number, number] | null} zoom
 * @param {number} runs
 */
function empty(zoom, runs) {
  if (zoom) return "No points in this range";
  return runs === 1 ? "No points yet" : "None of these runs has such points";
}

/**
 * @param {Drawn} curve
 * @param {import("./useseries.js").Answer | null} answer
 */
function dataOf(curve, answer) {
  const [run, split] = curve.key.split("\n");
  const source = answer?.curves.find((one) => one.experiment === run && (split === undefined || String(one.split) === split));
  return {
    run: curve.run,
    name: curve.name,
    split: source?.split ?? null,
    x: Array.from(curve.x),
    min: Array.from(curve.min),
    max: Array.from(curve.max),
    line: Array.from(curve.line),
    shown: source?.shown ?? curve.x.length,
    total: source?.total ?? curve.x.length,
    nonFinite: curve.nonFinite,
    stretches: curve.stretches,
    color: curve.color,
    dash: curve.dash,
  };
}

/**
 * The keys of a chart: the cursor by arrows, zoom by + - 0, a point by Enter. True if this was one.
 *
 * @param {KeyboardEvent} event
 * @param {Plot} plot
 * @param {[number, number] | null} zoom
 * @param {(range: [number, number] | null) => void} onZoom
 * @param {(hit: Hit | null) => void} pick
 */
function withKey(event, plot, zoom, onZoom, pick) {
  const view = plot.view;
  const over = plot.chart?.over;
  if (!view || !over || event.ctrlKey || event.metaKey || event.altKey) return false;
  const [low, high] = view.xRange;
  const centre = plot.place?.x ?? (view.logX ? Math.sqrt(low * high) : (low + high) / 2);
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) {
    const from = plot.chart?.valToPos(centre, "x") ?? 0;
    const to = Math.min(over.clientWidth, Math.max(0, from + step * (event.shiftKey ? 50 : 5)));
    plot.hover(to, plot.hit?.y ?? over.clientHeight / 2);
  } else if (event.key === "+" || event.key === "=") onZoom(zoomed(view.xRange, centre, 0.5, view.logX));
  else if (event.key === "-" && zoom) onZoom(zoomed(view.xRange, centre, 2, view.logX));
  else if (event.key === "0") onZoom(null);
  else if (event.key === "Enter" && plot.hit) pick(plot.hit);
  else if (event.key === "Escape") {
    pick(null);
    plot.left();
  } else return false;
  return true;
}

/**
 * A point that was clicked, and where one can go from there.
 *
 * @param {{hit: Hit, x: string, answer: import("./useseries.js").Answer | null, metric: string, about: NonNullable<ChartProps["about"]>, close: () => void}} props
 */
function Picked({ hit, x, answer, metric, about, close }) {
  const source = answer?.curves.find((one) => hit.curve.key.split("\n")[0] === one.experiment);
  const index = source ? source.index[hit.at] : -1;
  const { min, max, name } = hit.curve;
  const value = min[hit.at] === max[hit.at] ? number(min[hit.at], 6) : `${number(min[hit.at], 6)} … ${number(max[hit.at], 6)}`;
  return html`<div class="chart-pick" role="group" aria-label="Chosen point">
    <button type="button" class="quiet" aria-label="Close" onClick=${close}>✕</button>
    <p><b>${name}</b></p>
    <p>${placeText(x, hit.x)} · ${value}</p>
    ${source && about({ run: source.experiment, metric, index, x: hit.x })}
  </div>`;
}

/**
 * The same for who cannot see it: where each curve ends, and between what it lies.
 *
 * @param {{name: string, curves: Drawn[], answer: import("./useseries.js").Answer | null}} props
 */
function Values({ name, curves, answer }) {
  const plain = curves.filter((curve) => !curve.faint);
  if (!plain.length || !answer) return null;
  return html`<div class="hidden"><table>
    <caption>${name}: ${shownOf(answer.curves)}</caption>
    <thead><tr><th scope="col">Curve</th><th scope="col">Last</th><th scope="col">Least</th><th scope="col">Greatest</th></tr></thead>
    <tbody>${plain.map((curve) => html`<tr key=${curve.key}><th scope="row">${curve.name}</th>${ends(curve).map((end) => html`<td>${end}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}

/** @param {Drawn} curve */
function ends({ min, max, stretches }) {
  let low = Infinity;
  let high = -Infinity;
  for (let i = 0; i < min.length; i++) {
    if (min[i] < low) low = min[i];
    if (max[i] > high) high = max[i];
  }
  const last = (stretches.at(-1)?.[1] ?? 0) - 1;
  return last < 0 ? ["", "", ""] : [max[last], low, high].map((value) => number(value, 6));
}

/**
 * How wide an element is, in CSS pixels; 0 before it is known.
 *
 * @param {{current: HTMLElement | null}} at
 */
function useWidth(at) {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const element = /** @type {HTMLElement} */ (at.current);
    const observer = new ResizeObserver(() => setWidth(element.clientWidth));
    observer.observe(element);
    setWidth(element.clientWidth);
    return () => observer.disconnect();
  }, []);
  return width;
}
