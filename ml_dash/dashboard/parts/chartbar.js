/** The controls above charts: the axis, smoothing, and what else the URL says of them. */
import { count } from "../lib/format.js";
import { removeView, saveView, views } from "../lib/prefs.js";
import { setParams } from "../lib/url.js";
import { classes, html, useEffect, useId, useRef, useState } from "../lib/ui.js";
import { AXES, logText } from "./chartoptions.js";
import { FormDialog, open } from "./dialog.js";
import { Menu } from "./menu.js";

/** @typedef {import("./chartoptions.js").ChartOptions} ChartOptions */
/** @typedef {import("../vendor/preact.js").Child} Child */

/** What of the URL belongs to a saved view of charts; which runs they are of does not. */
const KEPT = ["x", "log", "smooth", "split", "superseded", "mean", "spread", "size", "q", "groups", "metrics"];

/**
 * @param {{options: ChartOptions, params: Record<string, string>, metrics: string[], screen: string, several?: boolean,
 *   meanFields?: string[], children?: Child}} props
 *   `screen`: saved views are for one; `metrics`: what the x axis may be besides
 */
export function ChartBar({ options, params, metrics, screen, several, meanFields = [], children }) {
  const set = (/** @type {Record<string, string | null>} */ changes) => setParams(changes, { replace: true });
  const { x, logX, logY, smoothing, split, superseded, mean, spread, size, zoom } = options;
  const [shown, show] = useState(false);
  return html`<div class=${classes("chart-bar", shown && "open")} role="group" aria-label="Chart options">
    ${children}
    <button type="button" class="narrow" aria-expanded=${shown} onClick=${() => show(!shown)}>Options</button>
    <span class="chart-more">
      <${XAxis} x=${x} metrics=${metrics} onChoose=${(/** @type {string} */ to) => set({ x: to === "step" ? null : to, zoom: null })} />
      <span class="field" role="group" aria-label="Logarithmic axes">
        <span class="dim">Log</span>
        ${toggle("x", logX, () => set({ log: logText(!logX, logY) }))}
        ${toggle("y", logY, () => set({ log: logText(logX, !logY) }))}
      </span>
      <${Smooth} smoothing=${smoothing} onChoose=${(/** @type {number} */ to) => set({ smooth: to ? String(to) : null })} />
      <${SplitBy} split=${split} onChoose=${(/** @type {string} */ to) => set({ split: to || null })} />
      ${several && html`<label class="field"><span class="dim">Mean over</span>
        <select aria-label="Mean over" value=${mean} onChange=${(/** @type {any} */ event) => set({ mean: event.currentTarget.value || null })}>
          <option value="">each run</option>
          ${mean && !meanFields.includes(mean) && html`<option value=${mean}>${mean}</option>`}
          ${meanFields.map((field) => html`<option value=${field}>same ${field.replace(/^params\./, "")}</option>`)}
        </select></label>`}
      ${several && mean && html`<label class="field"><span class="dim">Band</span>
        <select aria-label="Band" value=${spread} onChange=${(/** @type {any} */ event) => set({ spread: event.currentTarget.value === "sd" ? null : "range" })}>
          <option value="sd">± standard deviation</option><option value="range">least to greatest</option>
        </select></label>`}
      <span class="field">${toggle("Superseded", superseded, () => set({ superseded: superseded ? null : "1" }), "Points that a rewind left behind, faint")}</span>
      <span class="field" role="group" aria-label="Size of charts">
        ${(/** @type {const} */ (["s", "m", "l"])).map((one) => toggle(one.toUpperCase(), size === one, () => set({ size: one === "m" ? null : one })))}
      </span>
      ${zoom && html`<button type="button" onClick=${() => setParams({ zoom: null })}>Reset zoom</button>`}
      <${Views} screen=${screen} params=${params} />
    </span>
  </div>`;
}

/**
 * @param {string} text
 * @param {boolean} on
 * @param {() => void} flip
 * @param {string} [title]
 */
const toggle = (text, on, flip, title) => html`<button type="button" class="toggle" aria-pressed=${on} title=${title} onClick=${flip}>${text}</button>`;

/** @param {{x: string, metrics: string[], onChoose: (x: string) => void}} props */
function XAxis({ x, metrics, onChoose }) {
  const id = useId();
  const [asked, ask] = useState(false);
  const metric = x.startsWith("metric:") ? x.slice("metric:".length) : "";
  const chosen = (/** @type {any} */ event) => {
    const to = event.currentTarget.value;
    ask(to === "metric");
    if (to !== "metric") onChoose(to);
  };
  return html`<span class="field"><label class="field"><span class="dim">x</span>
      <select aria-label="x axis" value=${metric || asked ? "metric" : x} onChange=${chosen}>
        ${AXES.map(([name, text]) => html`<option value=${name}>${text}</option>`)}
        <option value="metric">Another metric</option>
      </select></label>
    ${(metric || asked) && html`<input list=${id} aria-label="Metric of the x axis" placeholder="metric" value=${metric} spellcheck=${false}
      onChange=${(/** @type {any} */ event) => onChoose(event.currentTarget.value ? `metric:${event.currentTarget.value}` : "step")} />
      <datalist id=${id}>${metrics.slice(0, 200).map((name) => html`<option value=${name} />`)}</datalist>`}
  </span>`;
}

/** An address may be changed twenty times a second at most: browsers drop what comes faster. */
const OFTEN_MS = 80;

/** @param {{smoothing: number, onChoose: (smoothing: number) => void}} props */
function Smooth({ smoothing, onChoose }) {
  const [dragged, drag] = useState(/** @type {number | null} */ (null));
  const timer = useRef(0);
  const to = useRef(0);
  const moved = (/** @type {any} */ event) => {
    to.current = Number(event.currentTarget.value);
    drag(to.current);
    timer.current ||= setTimeout(() => {
      timer.current = 0;
      drag(null);
      onChoose(to.current);
    }, OFTEN_MS);
  };
  useEffect(() => () => clearTimeout(timer.current), []);
  const shown = dragged ?? smoothing;
  return html`<label class="field"><span class="dim">Smooth</span>
    <input type="range" min="0" max="0.99" step="0.01" value=${shown} aria-valuetext=${shown.toFixed(2)} onInput=${moved} />
    <span class="number weight">${shown.toFixed(2)}</span></label>`;
}

/** @param {{split: string, onChoose: (split: string) => void}} props */
function SplitBy({ split, onChoose }) {
  return html`<label class="field"><span class="dim">Split by</span>
    <input class="short" placeholder="field" value=${split} spellcheck=${false} title="One curve for each value of a field of the points, such as rank"
      onChange=${(/** @type {any} */ event) => onChoose(event.currentTarget.value.trim())} /></label>`;
}

/** @param {{screen: string, params: Record<string, string>}} props */
function Views({ screen, params }) {
  const mine = views.value.filter((view) => view.path === screen);
  const kept = () => Object.fromEntries(KEPT.filter((name) => params[name]).map((name) => [name, params[name]]));
  const ask = () => open((close) => html`<${FormDialog} title="Save this view" action="Save" onClose=${close}
    save=${(/** @type {FormData} */ form) => saveView({ name: String(form.get("name")).trim() || "View", path: screen, params: kept() })}>
    <label>Name <input name="name" autocomplete="off" required value=${params.q || "My view"} /></label>
    <p class="dim">Axes, smoothing, size and search are kept in this browser. The address of the page says the same to others.</p><//>`);
  const apply = (/** @type {Record<string, string>} */ kept) => setParams({ ...Object.fromEntries(KEPT.map((name) => [name, null])), ...kept });
  return html`<${Menu} label="Views" right items=${[
    ...mine.map((view) => ({ text: view.name, run: () => apply(view.params) })),
    { text: "Save this view…", run: ask },
    ...mine.map((view) => ({ text: `Remove “${view.name}”`, run: () => removeView(view) })),
  ]} />`;
}

/**
 * How many charts there are, of how many.
 *
 * @param {number} some
 * @param {number} all
 */
export const chartsOf = (some, all) => (some === all ? `${count(all)} ${all === 1 ? "chart" : "charts"}` : `${count(some)} of ${count(all)} charts`);
