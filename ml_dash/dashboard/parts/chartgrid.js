/** Charts in groups by prefix, of which only those in view exist: five thousand cost what twenty do. */
import { count } from "../lib/format.js";
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { SIZES, byPrefix } from "./chartoptions.js";
import { columnsOf, layout, within } from "./gridlayout.js";

/** What is kept above and below the window, in CSS pixels. */
const MARGIN = 200;
/** Up to so many charts all groups are open at first. */
const OPEN = 200;

/**
 * @param {{names: string[], size: import("./chartoptions.js").Size, toggled: string[], onToggle: (prefix: string) => void,
 *   chart: (name: string, height: number) => import("../vendor/preact.js").Child}} props
 *   `toggled`: prefixes of groups that are not as they are at first
 */
export function ChartGrid({ names, size, toggled, onToggle, chart }) {
  const at = useRef(/** @type {HTMLDivElement | null} */ (null));
  const [width, setWidth] = useState(0);
  const [view, setView] = useState({ from: 0, to: 0 });
  const groups = useMemo(() => byPrefix(names), [names]);
  const { width: least, height } = SIZES[size];
  const columns = columnsOf(width, Math.min(least, width || least));
  const first = groups[0]?.prefix;
  const plan = useMemo(() => {
    const wide = names.length > OPEN;
    const others = new Set(toggled);
    return layout(groups, (prefix) => others.has(prefix) !== (!wide || prefix === first), columns, height);
  }, [groups, toggled.join("\n"), columns, height]);

  useLayoutEffect(() => {
    const element = /** @type {HTMLDivElement} */ (at.current);
    const look = () => {
      setWidth(element.clientWidth);
      const top = -element.getBoundingClientRect().top;
      // In steps, so that not every pixel of scrolling renders.
      const from = Math.floor((top - MARGIN) / 50) * 50;
      const to = Math.ceil((top + innerHeight + MARGIN) / 50) * 50;
      setView((before) => (before.from === from && before.to === to ? before : { from, to }));
    };
    look();
    const observer = new ResizeObserver(look);
    observer.observe(element);
    addEventListener("scroll", look, { capture: true, passive: true });
    addEventListener("resize", look);
    return () => {
      observer.disconnect();
      removeEventListener("scroll", look, { capture: true });
      removeEventListener("resize", look);
    };
  }, []);

  const bands = width ? within(plan.bands, view.from, view.to) : [];
  return html`<div class="chart-grid" ref=${at} style=${{ height: `${plan.height}px` }}>
    ${bands.map((band) => (band.head
      ? html`<h3 key=${band.key} class="chart-group" style=${{ top: `${band.top}px` }}>
          <button type="button" class="quiet" aria-expanded=${band.open} onClick=${() => onToggle(band.prefix)}>
            <span class="twist" aria-hidden="true">${band.open ? "▾" : "▸"}</span>
            ${band.prefix || "General"} <span class="count">${count(band.count)}</span></button></h3>`
      : html`<div key=${band.key} class="chart-row" style=${{ top: `${band.top}px`, gridTemplateColumns: `repeat(${columns}, minmax(0, 1fr))` }}>
          ${band.names.map((name) => html`<div key=${name}>${chart(name, height)}</div>`)}</div>`))}
  </div>`;
}

/**
 * What a search field shows and what is searched for: typing is never held up by what it filters.
 *
 * @param {string} given  by the URL
 * @param {(text: string) => void} onSettled  when typing pauses
 * @returns {[string, (text: string) => void]}
 */
export function useTyped(given, onSettled) {
  const [text, setText] = useState(given);
  const said = useRef(given);
  const settle = useRef(onSettled);
  settle.current = onSettled;
  useEffect(() => {
    // Back and forward change the URL without anybody typing.
    if (given !== said.current) {
      said.current = given;
      setText(given);
    }
  }, [given]);
  useEffect(() => {
    if (text === said.current) return undefined;
    const timer = setTimeout(() => {
      said.current = text;
      settle.current(text);
    }, 250);
    return () => clearTimeout(timer);
  }, [text]);
  return [text, setText];
}
