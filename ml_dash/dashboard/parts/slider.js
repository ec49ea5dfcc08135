/** A slider over the events of a run, with a tick for each mark. Ticks are painted, so that thousands cost nothing. */

import { html, useEffect, useRef } from "../lib/ui.js";

/**
 * @typedef {{event: number, kind: string}} Tick
 */

/**
 * A slider from event 0 to `events`. `onInput` is told each place while it moves, `onChange` where it was let go.
 * @param {{events: number, value: number, ticks: Tick[], text: string, onInput: (event: number) => void,
 *   onChange: (event: number) => void}} props
 */
export function Slider({ events, value, ticks, text, onInput, onChange }) {
  const canvas = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  useEffect(() => {
    const element = /** @type {HTMLCanvasElement} */ (canvas.current);
    const draw = () => paint(element, ticks, events);
    const resized = new ResizeObserver(draw);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    resized.observe(element);
    scheme.addEventListener("change", draw);
    return () => {
      resized.disconnect();
      scheme.removeEventListener("change", draw);
    };
  }, [ticks, events]);
  /** @param {Event} event */
  const numberOf = (event) => Number(/** @type {HTMLInputElement} */ (event.currentTarget).value);
  return html`<div class="slider">
    <canvas ref=${canvas} height="18" aria-hidden="true"></canvas>
    <input
      type="range"
      min="0"
      max=${events}
      step="1"
      value=${value}
      aria-label="Event"
      aria-valuetext=${text}
      onInput=${(/** @type {Event} */ event) => onInput(numberOf(event))}
      onChange=${(/** @type {Event} */ event) => onChange(numberOf(event))}
    />
  </div>`;
}

/**
 * The ticks in pixels: one for each column and kind, however many marks fall on it.
 * @param {Tick[]} ticks
 * @param {number} events
 * @param {number} width
 * @returns {{x: number, kind: string}[]}
 */
export function columns(ticks, events, width) {
  const seen = new Set();
  const found = [];
  for (const { event, kind } of ticks) {
    const x = Math.round((event / Math.max(1, events)) * (width - 1));
    const key = `${x} ${kind}`;
    if (seen.has(key)) continue;
    seen.add(key);
    found.push({ x, kind });
  }
  return found;
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Tick[]} ticks
 * @param {number} events
 */
function paint(canvas, ticks, events) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const context = canvas.getContext("2d");
  if (!context) return;
  const style = getComputedStyle(canvas);
  context.scale(ratio, ratio);
  for (const { x, kind } of columns(ticks, events, width)) {
    context.fillStyle = style.getPropertyValue(`--mark-${kind}`).trim() || style.color;
    context.fillRect(Math.min(x, width - 2), 0, 2, height);
  }
}
