/**
 * A list of any length: only the rows in sight are in the page. Rows have one height, but for those that are unfolded.
 *
 * A browser's scroll area ends at some tens of millions of pixels. A longer list scrolls an area of LONGEST_PX: a small
 * move shifts the rows by as much, a large one (the bar is dragged, End is pressed) jumps to the same share of the list.
 */

import { html, useEffect, useLayoutEffect, useRef, useState } from "../lib/ui.js";

const LONGEST_PX = 8_000_000;
const OVERSCAN = 8;
const SMALL_MOVE_PX = 4000;
const IDLE_MS = 150;
const BORDERS_PX = 2;

/**
 * @typedef {object} Handle
 * @property {(index: number, align?: "start" | "center") => void} scrollTo
 * @property {() => void} scrollToEnd
 * @property {(index: number) => void} reveal scrolls no further than a row needs to be in sight
 *
 * @typedef {object} Props
 * @property {number} total rows
 * @property {number} rowHeight in pixels
 * @property {(index: number) => any} row draws one
 * @property {string} label what the list is, for assistive technology
 * @property {boolean} [follow] stay at the end while rows are added
 * @property {(atEnd: boolean) => void} [onFollow] told when scrolling reaches or leaves the end
 * @property {(first: number, end: number) => void} [onRange] told which rows are in sight
 * @property {(handle: Handle) => void} [handle] is given the means to scroll, once
 * @property {boolean} [fit] be no taller than the rows
 * @property {string} [class]
 * @property {string} [role] of the list; rows are its children
 * @property {Record<string, unknown>} [attributes] more of them, for the list
 */

/** @param {Props} props */
export function Virtual(props) {
  const area = useRef(/** @type {HTMLDivElement | null} */ (null));
  const rows = useRef(/** @type {HTMLDivElement | null} */ (null));
  const latest = useRef(props);
  latest.current = props;
  // Heights of unfolded rows, as measured.
  const tall = useRef(/** @type {Map<number, number>} */ (new Map()));
  const place = useRef({ top: 0, scrollTop: 0 });
  const [view, setView] = useState({ top: 0, scrollTop: 0, height: 600 });

  const { total, rowHeight } = props;
  for (const index of tall.current.keys()) if (index >= total) tall.current.delete(index);
  const whole = offsetOf(total, rowHeight, tall.current);
  const spacer = Math.min(whole, LONGEST_PX);
  const top = Math.max(0, Math.min(view.top, whole - view.height));
  const first = Math.max(0, indexAt(top, rowHeight, tall.current) - OVERSCAN);
  const end = Math.min(total, indexAt(top + view.height, rowHeight, tall.current) + 1 + OVERSCAN);
  const shift = offsetOf(first, rowHeight, tall.current) - top + view.scrollTop;

  /** @param {number} wanted */
  const moveTo = (wanted) => {
    const box = area.current;
    if (!box) return;
    const length = offsetOf(latest.current.total, latest.current.rowHeight, tall.current);
    const target = Math.max(0, Math.min(wanted, length - box.clientHeight));
    const scaled = length > LONGEST_PX;
    const scrollable = Math.max(1, Math.min(length, LONGEST_PX) - box.clientHeight);
    box.scrollTop = scaled ? (target / (length - box.clientHeight)) * scrollable : target;
    place.current = { top: target, scrollTop: box.scrollTop };
    setView({ ...place.current, height: box.clientHeight });
  };

  useLayoutEffect(() => {
    latest.current.handle?.({
      scrollTo: (index, align = "start") => {
        const { rowHeight: height } = latest.current;
        const room = align === "center" ? ((area.current?.clientHeight ?? 0) - height) / 2 : 0;
        moveTo(offsetOf(index, height, tall.current) - room);
      },
      scrollToEnd: () => moveTo(Infinity),
      reveal: (index) => {
        const { rowHeight: height } = latest.current;
        const [start, room] = [offsetOf(index, height, tall.current), area.current?.clientHeight ?? 0];
        if (start < place.current.top) moveTo(start);
        else if (start + height > place.current.top + room) moveTo(start + height - room);
      },
    });
    const box = /** @type {HTMLDivElement} */ (area.current);
    const resized = new ResizeObserver(() => {
      setView((was) => ({ ...was, height: box.clientHeight }));
      if (latest.current.follow) moveTo(Infinity);
    });
    resized.observe(box);
    return () => resized.disconnect();
  }, []);

  useLayoutEffect(() => {
    if (props.follow) moveTo(Infinity);
  }, [props.follow, total]);

  useLayoutEffect(() => {
    // Rows in the page are measured after each drawing; only those that differ are kept.
    const found = measured(rows.current, first, rowHeight);
    let changed = false;
    for (let index = first; index < end; index += 1) {
      const height = found.get(index);
      if (height === tall.current.get(index)) continue;
      changed = true;
      if (height === undefined) tall.current.delete(index);
      else tall.current.set(index, height);
    }
    if (changed) setView((was) => ({ ...was }));
  });

  useEffect(() => {
    props.onRange?.(first, end);
  }, [first, end, total]);

  const idle = useRef(0);
  useEffect(() => () => clearTimeout(idle.current), []);

  const onScroll = () => {
    const box = area.current;
    if (!box || box.scrollTop === place.current.scrollTop) return;
    const length = offsetOf(latest.current.total, latest.current.rowHeight, tall.current);
    place.current = { top: moved(place.current, box, length), scrollTop: box.scrollTop };
    setView({ ...place.current, height: box.clientHeight });
    latest.current.onFollow?.(place.current.top >= length - box.clientHeight - 2);
    if (length <= LONGEST_PX) return;
    clearTimeout(idle.current);
    // Once it rests, the bar is put where the rows in sight lie in the list.
    idle.current = setTimeout(() => moveTo(place.current.top), IDLE_MS);
  };

  return html`<div
    ref=${area}
    class=${`virtual ${props.class ?? ""}`}
    tabindex="0"
    role=${props.role ?? "list"}
    aria-label=${props.label}
    style=${props.fit ? { height: `${Math.min(spacer, 100_000) + BORDERS_PX}px` } : undefined}
    onScroll=${onScroll}
    ...${props.attributes ?? {}}
  >
    <div class="virtual-spacer" role="presentation" style=${{ height: `${spacer}px` }}>
      <div ref=${rows} class="virtual-rows" role="presentation" style=${{ transform: `translateY(${shift}px)` }}>
        ${Array.from({ length: Math.max(0, end - first) }, (_, index) => props.row(first + index))}
      </div>
    </div>
  </div>`;
}

/**
 * Where the list is after its area was scrolled.
 * @param {{top: number, scrollTop: number}} was
 * @param {{scrollTop: number, scrollHeight: number, clientHeight: number}} box
 * @param {number} length of the list in pixels
 */
export function moved(was, box, length) {
  if (length <= LONGEST_PX) return box.scrollTop;
  const most = length - box.clientHeight;
  const share = box.scrollTop / Math.max(1, box.scrollHeight - box.clientHeight);
  const move = box.scrollTop - was.scrollTop;
  if (share <= 0 || share >= 1 || Math.abs(move) > SMALL_MOVE_PX) return share * most;
  return Math.max(0, Math.min(most, was.top + move));
}

/**
 * Pixels before a row.
 * @param {number} index
 * @param {number} rowHeight
 * @param {Map<number, number>} tall
 */
export function offsetOf(index, rowHeight, tall) {
  let offset = index * rowHeight;
  for (const [row, height] of tall) if (row < index) offset += height - rowHeight;
  return offset;
}

/**
 * The row at so many pixels from the beginning.
 * @param {number} offset
 * @param {number} rowHeight
 * @param {Map<number, number>} tall
 */
export function indexAt(offset, rowHeight, tall) {
  let before = 0;
  for (const [row, height] of [...tall].sort((a, b) => a[0] - b[0])) {
    const start = row * rowHeight + before;
    if (offset < start) break;
    if (offset < start + height) return row;
    before += height - rowHeight;
  }
  return Math.max(0, Math.floor((offset - before) / rowHeight));
}

/**
 * Heights of the rows in the page that differ from the usual one, by index.
 * @param {HTMLElement | null} parent
 * @param {number} first
 * @param {number} rowHeight
 */
function measured(parent, first, rowHeight) {
  /** @type {Map<number, number>} */
  const found = new Map();
  let index = first;
  for (const child of parent?.children ?? []) {
    const height = /** @type {HTMLElement} */ (child).offsetHeight;
    if (height !== rowHeight) found.set(index, height);
    index += 1;
  }
  return found;
}
