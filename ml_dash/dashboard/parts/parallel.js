/** Runs as lines across parameters and a metric. Dragging on an axis picks the runs that cross it there. */
import { dark } from "../lib/colors.js";
import { html, useRef, useState } from "../lib/ui.js";
import { navigate, link } from "../lib/url.js";
import { decoded } from "./chartoptions.js";
import { axisOf, rampColor, textOf } from "./planeaxis.js";

/** @typedef {{id: string, name: string, values: unknown[]}} Line */
/** @typedef {Record<string, [number, number]>} Brushes  name of an axis → parts of it, 0 to 1 */

const HEIGHT = 420;
const EDGE = { side: 70, top: 44, bottom: 22 };
const INNER = HEIGHT - EDGE.top - EDGE.bottom;

/**
 * @param {{lines: Line[], axes: string[], logs: Set<string>, width: number, brushes: Brushes, onBrush: (brushes: Brushes) => void}} props
 *   the last axis gives the colours
 */
export function Parallel({ lines, axes, logs, width, brushes, onBrush }) {
  const scales = axes.map((name, i) => axisOf(lines.map(({ values }) => values[i]), logs.has(name)));
  const wide = Math.max(width, axes.length * 90 + 2 * EDGE.side - 90);
  const left = (/** @type {number} */ i) => (axes.length > 1 ? EDGE.side + (i * (wide - 2 * EDGE.side)) / (axes.length - 1) : wide / 2);
  const drawn = lines.map((line) => {
    const places = line.values.map((value, i) => scales[i].place(value));
    return { ...line, places, within: isWithin(places, axes, brushes), part: places.at(-1) ?? null };
  });
  // Those that are picked lie over the others.
  drawn.sort((a, b) => Number(a.within) - Number(b.within));
  return html`<figure class="plane" tabindex="0" aria-label="Parallel coordinates" style=${{ overflowX: "auto" }}>
    <svg viewBox=${`0 0 ${wide} ${HEIGHT}`} style=${{ width: `${wide}px` }} height=${HEIGHT} role="group" aria-label=${`${lines.length} runs`}>
      ${drawn.map((line) => html`<path key=${line.id} class=${line.within ? "run" : "run out"} data-run=${line.id} d=${pathOf(line.places, left)}
        style=${line.within ? { stroke: line.part === null ? "var(--dim)" : rampColor(line.part, dark.value) } : {}}
        onClick=${() => navigate(`/runs/${line.id}`)}><title>${[line.name, ...axes.map((name, i) => `${name} ${line.values[i] === undefined ? "—" : textOf(line.values[i])}`)].join("\n")}</title></path>`)}
      ${axes.map((name, i) => html`<${Axis} key=${name} name=${name} scale=${scales[i]} x=${left(i)} brush=${brushes[name]} below=${i % 2 === 1 && axes.length > 6}
        onBrush=${(/** @type {[number, number] | null} */ range) => onBrush(changed(brushes, name, range))} />`)}
    </svg>
    <ul class="hidden">${drawn.filter((line) => line.within).map((line) => html`<li key=${line.id}><a href=${link(`/runs/${line.id}`)} tabindex="-1">${line.name}</a></li>`)}</ul>
  </figure>`;
}

/**
 * @param {{name: string, scale: import("./planeaxis.js").PlaneAxis, x: number, below: boolean, brush: [number, number] | undefined,
 *   onBrush: (range: [number, number] | null) => void}} props
 */
function Axis({ name, scale, x, brush, below, onBrush }) {
  const from = useRef(/** @type {number | null} */ (null));
  const [drag, setDrag] = useState(/** @type {[number, number] | null} */ (null));
  const at = (/** @type {PointerEvent} */ event) => {
    const svg = /** @type {Element} */ (event.currentTarget).closest("svg");
    const box = /** @type {Element} */ (svg).getBoundingClientRect();
    return Math.min(1, Math.max(0, 1 - (event.clientY - box.top - EDGE.top) / INNER));
  };
  const down = (/** @type {PointerEvent} */ event) => {
    /** @type {Element} */ (event.currentTarget).setPointerCapture(event.pointerId);
    from.current = at(event);
    setDrag(null);
  };
  const move = (/** @type {PointerEvent} */ event) => {
    if (from.current === null) return;
    const to = at(event);
    setDrag([Math.min(from.current, to), Math.max(from.current, to)]);
  };
  const up = () => {
    from.current = null;
    // A click takes the choice away.
    onBrush(drag && drag[1] - drag[0] > 0.01 ? drag : null);
    setDrag(null);
  };
  const shown = drag ?? brush;
  const top = (/** @type {number} */ part) => EDGE.top + (1 - part) * INNER;
  const short = name.replace(/^(params|metrics)\./, "");
  return html`<g>
    <line class="axis" x1=${x} x2=${x} y1=${EDGE.top} y2=${EDGE.top + INNER} />
    <text class="title" x=${x} y=${below ? 34 : 18} text-anchor="middle">${short.length > 22 ? `${short.slice(0, 21)}…` : short}<title>${name}</title></text>
    ${scale.ticks.map((tick) => html`<text key=${tick.text} x=${x + 6} y=${top(tick.at) + 4}>${tick.text.slice(0, 14)}</text>`)}
    ${shown && html`<rect class="brush" x=${x - 7} width="14" y=${top(shown[1])} height=${Math.max(1, top(shown[0]) - top(shown[1]))} />`}
    <rect class="reach" data-axis=${name} x=${x - 14} width="28" y=${EDGE.top - 6} height=${INNER + 12} onPointerDown=${down} onPointerMove=${move} onPointerUp=${up} />
  </g>`;
}

/**
 * @param {(number | null)[]} places
 * @param {(i: number) => number} left
 */
function pathOf(places, left) {
  let path = "";
  let joined = false;
  places.forEach((place, i) => {
    if (place !== null) path += `${joined ? "L" : "M"}${left(i).toFixed(1)} ${(EDGE.top + (1 - place) * INNER).toFixed(1)}`;
    joined = place !== null;
  });
  return path;
}

/**
 * True if a run crosses every axis within its brush.
 *
 * @param {(number | null)[]} places
 * @param {string[]} axes
 * @param {Brushes} brushes
 */
export function isWithin(places, axes, brushes) {
  return axes.every((name, i) => {
    const brush = brushes[name];
    if (!brush) return true;
    const place = places[i];
    return place !== null && place >= brush[0] && place <= brush[1];
  });
}

/**
 * @param {Brushes} brushes
 * @param {string} name
 * @param {[number, number] | null} range
 * @returns {Brushes}
 */
function changed(brushes, name, range) {
  const { [name]: _, ...others } = brushes;
  return range ? { ...others, [name]: range } : others;
}

/**
 * The parameter `brush`: NAME:FROM..TO, several with ";".
 *
 * @param {string | undefined} text
 * @returns {Brushes}
 */
export function brushesOf(text) {
  /** @type {Brushes} */
  const brushes = {};
  for (const part of (text ?? "").split(";")) {
    const match = /^(.+):(\d*\.?\d+)\.\.(\d*\.?\d+)$/.exec(part);
    if (match) brushes[decoded(match[1])] = [Number(match[2]), Number(match[3])];
  }
  return brushes;
}

/** @param {Brushes} brushes */
export const brushText = (brushes) =>
  Object.entries(brushes).map(([name, [from, to]]) => `${encodeURIComponent(name)}:${from.toFixed(3)}..${to.toFixed(3)}`).join(";");
