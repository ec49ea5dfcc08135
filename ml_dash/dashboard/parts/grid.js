/**
 * A table of any size, of which only the rows that are seen exist.
 *
 *     head   sticks to the top: titles that sort, move and resize their columns
 *     body   as high as all rows; the rows that are seen, each at its place
 *
 * All rows have one height, so a row's place is its number. Beyond 8 million pixels browsers lose places: then the
 * scroll bar covers the rows in proportion.
 *
 * A row is drawn again when its data, the columns, its being chosen or `stamp` are others than before: so `cell` may use
 * nothing else, and while one scrolls only the rows that come into view cost anything.
 */
import { classes, html, useEffect, useLayoutEffect, useMemo, useRef, useSignal } from "../lib/ui.js";

/** @typedef {import("../vendor/preact.js").Child} Child */
/**
 * @typedef {object} Column
 * @property {string} id
 * @property {string} title
 * @property {number} width  pixels
 * @property {boolean} [right]  numbers
 * @property {boolean} [pinned]  stays at the left; pinned columns come first
 * @property {boolean} [fixed]  cannot be moved
 * @property {boolean} [sorts]
 * @property {string} [hint]
 */
/**
 * @template R
 * @typedef {object} GridProps
 * @property {string} label
 * @property {number} total
 * @property {number} rowHeight
 * @property {Column[]} columns
 * @property {(index: number) => R|undefined} row  undefined: not here yet
 * @property {(row: R, column: Column) => Child} cell
 * @property {(row: R) => boolean} [chosen]
 * @property {number} focus  the row that the keyboard is at; -1 for none
 * @property {(index: number) => void} onFocus
 * @property {(row: R) => void} onOpen
 * @property {(start: number, end: number) => void} onRange  these rows are seen
 * @property {number} [stamp]  another number draws all rows again
 * @property {{id: string, descending: boolean}|null} [sort]
 * @property {(id: string) => void} [onSort]
 * @property {(id: string, before: string) => void} [onMove]
 * @property {(id: string, width: number) => void} [onResize]
 */

/**
 * A row as it was drawn, and of what.
 * @typedef {{data: any, columns: Column[], stamp: number|undefined, place: number, focused: boolean, chosen: boolean, row: Child}} Drawn
 */

const EXTRA_ROWS = 8;
const HEAD_PX = 32;
const HIGHEST_PX = 8_000_000;
const NARROWEST_PX = 48;

/**
 * @template R
 * @param {GridProps<R>} props
 */
export function Grid(props) {
  const { label, total, rowHeight, columns, row, focus, onRange, chosen, stamp } = props;
  // What a row that was drawn earlier calls, is what is there now.
  const latest = useRef(props);
  latest.current = props;
  const cache = useRef(/** @type {Map<number, Drawn>} */ (new Map()));
  const at = useRef(/** @type {HTMLElement|null} */ (null));
  const following = useRef(false);
  const seen = useSignal({ top: 0, height: 600 });
  const height = Math.min(total * rowHeight, HIGHEST_PX);
  // How far the first row is above the view, per pixel of the scroll bar: 1 unless there are very many rows.
  const view = Math.max(1, seen.value.height - HEAD_PX);
  const scale = height < total * rowHeight ? (total * rowHeight - view) / (height - view) : 1;
  const top = seen.value.top * scale;
  const first = Math.max(0, Math.floor(top / rowHeight) - EXTRA_ROWS);
  const end = Math.min(total, Math.ceil((top + view) / rowHeight) + EXTRA_ROWS);
  // Where a row stands: at its number, less what the scroll bar has gone too little.
  const shift = Math.round(seen.value.top - top);

  useLayoutEffect(() => {
    const element = /** @type {HTMLElement} */ (at.current);
    const look = () => {
      const { top: before, height: had } = seen.peek();
      const now = element.scrollTop;
      // Between two rows nothing has to be drawn.
      const moved = scale !== 1 || Math.abs(now - before) >= rowHeight * (EXTRA_ROWS / 2);
      if (moved || element.clientHeight !== had) seen.value = { top: now, height: element.clientHeight };
    };
    const resized = new ResizeObserver(look);
    resized.observe(element);
    element.addEventListener("scroll", look, { passive: true });
    look();
    return () => {
      resized.disconnect();
      element.removeEventListener("scroll", look);
    };
  }, [rowHeight, scale]);

  useEffect(() => {
    onRange(first, end);
  }, [first, end, onRange]);

  useEffect(() => {
    const element = at.current;
    if (!element || focus < 0) return;
    const place = focus * rowHeight;
    if (place < element.scrollTop * scale) element.scrollTop = place / scale;
    else if (place + rowHeight > element.scrollTop * scale + view) element.scrollTop = (place + rowHeight - view) / scale;
    const inside = document.activeElement?.closest("[role=row]");
    if (inside || document.activeElement === document.body) {
      // This follows the number. If the number followed this, two keys in one frame would chase each other for ever.
      following.current = true;
      /** @type {HTMLElement|null} */ (element.querySelector(`[aria-rowindex="${focus + 1}"]`))?.focus({ preventScroll: true });
      following.current = false;
    }
  }, [focus]);

  const lefts = useMemo(() => offsets(columns), [columns]);
  const keys = (/** @type {KeyboardEvent} */ event) => gridKey(event, props, Math.max(1, Math.floor(view / rowHeight)));
  const before = cache.current;
  cache.current = new Map();
  for (let i = first; i < end; i++) {
    const data = row(i);
    const now = { data, columns, stamp, place: i * rowHeight + shift, focused: i === focus, chosen: data !== undefined && Boolean(chosen?.(data)) };
    const old = before.get(i);
    const same = old && old.data === data && old.columns === columns && old.stamp === stamp && old.place === now.place && old.focused === now.focused && old.chosen === now.chosen;
    cache.current.set(i, same ? old : { ...now, row: drawnRow(latest, i, now, lefts, following) });
  }
  const template = columns.map((column) => `${column.width}px`).join(" ");
  return html`<div class="grid" role="grid" aria-label=${label} aria-rowcount=${total} aria-colcount=${columns.length}
      ref=${at} onKeyDown=${keys} tabindex=${total === 0 || focus < 0 ? 0 : -1} style=${{ "--columns": `${template} minmax(0, 1fr)`, "--height": `${rowHeight}px` }}>
    <div role="rowgroup" class="head"><div role="row" class="row">
      ${columns.map((column, i) => html`<${Head} key=${column.id} column=${column} left=${lefts[i]} ...${props} />`)}
    </div></div>
    <div role="rowgroup" class="body" style=${{ height: `${height}px`, minWidth: `${columns.reduce((sum, column) => sum + column.width, 0)}px` }}>
      ${[...cache.current.values()].map((one) => one.row)}
    </div>
  </div>`;
}

/**
 * @param {{current: GridProps<any>}} latest
 * @param {number} i
 * @param {Omit<Drawn, "row">} now
 * @param {(number|undefined)[]} lefts
 * @param {{current: boolean}} following
 */
function drawnRow(latest, i, { data, columns, place, focused, chosen }, lefts, following) {
  const { cell } = latest.current;
  const open = (/** @type {MouseEvent} */ event) => {
    const inner = /** @type {Element} */ (event.target).closest("a, button, input, label");
    if (!inner && data !== undefined) latest.current.onOpen(data);
  };
  return html`<div role="row" key=${i} class=${classes("row", chosen && "chosen")} aria-rowindex=${i + 1} aria-selected=${latest.current.chosen ? chosen : undefined}
      style=${{ top: `${place}px` }} tabindex=${focused ? 0 : -1} onFocusIn=${() => following.current || latest.current.onFocus(i)} onDblClick=${open}>
    ${columns.map((column, c) => html`<div role="gridcell" key=${column.id} class=${classes(column.right && "number", column.pinned && "pinned")}
      style=${column.pinned ? { left: `${lefts[c]}px` } : undefined}>${data === undefined ? (c === 0 ? html`<span class="dim">…</span>` : null) : cell(data, column)}</div>`)}
  </div>`;
}

/**
 * Where each pinned column sticks, in pixels from the left.
 * @param {Column[]} columns
 */
function offsets(columns) {
  let left = 0;
  return columns.map((column) => {
    if (!column.pinned) return undefined;
    left += column.width;
    return left - column.width;
  });
}

/** The keys of a grid that has the focus. @param {KeyboardEvent} event @param {GridProps<any>} props @param {number} page */
function gridKey(event, { total, focus, row, onFocus, onOpen }, page) {
  if (event.target instanceof HTMLInputElement || event.ctrlKey || event.metaKey || event.altKey) return;
  const to = {
    ArrowDown: focus + 1, ArrowUp: focus - 1, PageDown: focus + page, PageUp: focus - page, Home: 0, End: total - 1,
  }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    onFocus(Math.max(0, Math.min(total - 1, to)));
  } else if (event.key === "Enter" && /** @type {Element} */ (event.target).getAttribute("role") === "row") {
    const data = row(focus);
    if (data === undefined) return;
    event.preventDefault();
    onOpen(data);
  }
}

/** @param {{column: Column, left: number|undefined} & GridProps<any>} props */
function Head({ column, left, sort, onSort, onMove, onResize }) {
  const over = useSignal(false);
  const sorted = sort?.id === column.id ? (sort.descending ? "descending" : "ascending") : undefined;
  const movable = Boolean(onMove) && !column.fixed;
  const drag = {
    draggable: movable,
    onDragStart: (/** @type {DragEvent} */ event) => {
      event.dataTransfer?.setData("text/x-ml-dash-column", column.id);
    },
    onDragOver: (/** @type {DragEvent} */ event) => {
      if (!movable || !event.dataTransfer?.types.includes("text/x-ml-dash-column")) return;
      event.preventDefault();
      over.value = true;
    },
    onDragLeave: () => { over.value = false; },
    onDrop: (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      over.value = false;
      const id = event.dataTransfer?.getData("text/x-ml-dash-column");
      if (id && id !== column.id) onMove?.(id, column.id);
    },
  };
  return html`<div role="columnheader" aria-sort=${sorted} title=${column.hint} ...${drag}
      class=${classes(column.right && "number", column.pinned && "pinned", over.value && "over")} style=${column.pinned ? { left: `${left}px` } : undefined}>
    ${column.sorts && onSort
      ? html`<button type="button" class="sort cut" onClick=${() => onSort(column.id)}>${column.title}${sorted && html`<span aria-hidden="true"> ${sort?.descending ? "↓" : "↑"}</span>`}</button>`
      : html`<span class="cut">${column.title}</span>`}
    ${onResize && html`<span class="resize" aria-hidden="true" onPointerDown=${(/** @type {PointerEvent} */ event) => resize(event, column, onResize)}></span>`}
  </div>`;
}

/** @param {PointerEvent} event @param {Column} column @param {(id: string, width: number) => void} onResize */
function resize(event, column, onResize) {
  event.preventDefault();
  const handle = /** @type {HTMLElement} */ (event.currentTarget);
  const from = event.clientX - column.width;
  handle.setPointerCapture(event.pointerId);
  const move = (/** @type {PointerEvent} */ moved) => onResize(column.id, Math.max(NARROWEST_PX, Math.round(moved.clientX - from)));
  handle.addEventListener("pointermove", move);
  handle.addEventListener("pointerup", () => handle.removeEventListener("pointermove", move), { once: true });
}
