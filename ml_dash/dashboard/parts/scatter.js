/** Runs as dots: a parameter along, a metric up. */
import { html, useRef } from "../lib/ui.js";
import { link } from "../lib/url.js";
import { axisOf, textOf } from "./planeaxis.js";

/** @typedef {{id: string, name: string, color: string, x: unknown, y: unknown}} Dot */

const HEIGHT = 420;
const EDGE = { left: 64, right: 20, top: 28, bottom: 46 };

/**
 * @param {{dots: Dot[], width: number, xName: string, yName: string, logX: boolean, logY: boolean}} props
 */
export function Scatter({ dots, width, xName, yName, logX, logY }) {
  const at = useRef(/** @type {HTMLElement | null} */ (null));
  const xAxis = axisOf(dots.map(({ x }) => x), logX);
  const yAxis = axisOf(dots.map(({ y }) => y), logY);
  const inner = { width: width - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom };
  // A little room, so that no dot stands on the edge.
  const left = (/** @type {number} */ part) => EDGE.left + (0.03 + part * 0.94) * inner.width;
  const top = (/** @type {number} */ part) => EDGE.top + (0.97 - part * 0.94) * inner.height;
  const placed = dots.flatMap((dot) => {
    const [x, y] = [xAxis.place(dot.x), yAxis.place(dot.y)];
    return x === null || y === null ? [] : [{ ...dot, left: left(x), top: top(y) }];
  });
  const away = dots.length - placed.length;
  return html`<figure class="plane" aria-label=${`${yName} by ${xName}`} ref=${at}>
    <svg viewBox=${`0 0 ${width} ${HEIGHT}`} height=${HEIGHT} role="group" aria-label=${`${placed.length} runs`}>
      ${xAxis.ticks.map((tick) => html`<g key=${`x${tick.text}`}>
        <line class="grid" x1=${left(tick.at)} x2=${left(tick.at)} y1=${EDGE.top} y2=${EDGE.top + inner.height} />
        <text x=${left(tick.at)} y=${HEIGHT - 28} text-anchor="middle">${tick.text.slice(0, 18)}</text></g>`)}
      ${yAxis.ticks.map((tick) => html`<g key=${`y${tick.text}`}>
        <line class="grid" x1=${EDGE.left} x2=${EDGE.left + inner.width} y1=${top(tick.at)} y2=${top(tick.at)} />
        <text x=${EDGE.left - 6} y=${top(tick.at) + 4} text-anchor="end">${tick.text.slice(0, 9)}</text></g>`)}
      <text class="title" x=${EDGE.left + inner.width / 2} y=${HEIGHT - 8} text-anchor="middle">${xName}</text>
      <text class="title" x="10" y="17">${yName}</text>
      ${placed.map((dot) => html`<a key=${dot.id} href=${link(`/runs/${dot.id}`)} aria-label=${dot.name}>
        <circle class="dot" cx=${dot.left} cy=${dot.top} r="5.5" fill=${dot.color}>
          <title>${`${dot.name}\n${xName} ${textOf(dot.x)}\n${yName} ${textOf(dot.y)}`}</title></circle></a>`)}
    </svg>
    ${away > 0 && html`<p class="chart-note-below dim">${away === 1 ? "1 run has" : `${away} runs have`} no place here: without ${xName} or ${yName}, or with a value that this axis cannot show.</p>`}
  </figure>`;
}
