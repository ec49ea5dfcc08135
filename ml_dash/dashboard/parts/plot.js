// The drawing of one chart: axes by uPlot, curves and cursor by our own hand on its canvas.
//
// uPlot wants one list of x values for all curves of a chart. A hundred runs rarely share theirs, and joining them makes a
// table of mostly nothing. So uPlot has the axes, the scales and the selection, and the curves are drawn here, each from
// its own arrays. What moves with the cursor is on a canvas of its own: the curves are not drawn again for it.

import uPlot from "../vendor/uplot.js";
import { number } from "../lib/format.js";
import { SECONDS, clock, logMarks, placeText, short, span } from "./axes.js";
import { nearest, scaler } from "./envelope.js";

/**
 * A curve as it is drawn.
 *
 * @typedef {object} Drawn
 * @property {string} key
 * @property {string} run
 * @property {string} name
 * @property {string} color
 * @property {number[]} dash
 * @property {ArrayLike<number>} x
 * @property {boolean} inOrder
 * @property {ArrayLike<number>} line  what the line follows
 * @property {ArrayLike<number> | null} raw  the line before smoothing
 * @property {boolean} own  the line has values of its own, smoothed or means: not just the middle of min and max
 * @property {ArrayLike<number>} min
 * @property {ArrayLike<number>} max
 * @property {[number, number][]} stretches
 * @property {{x: number, value: string}[]} nonFinite
 * @property {boolean} faint  superseded points, and other things in the background
 */

/**
 * @typedef {object} View
 * @property {Drawn[]} curves
 * @property {string} x  what the x axis is
 * @property {boolean} logX
 * @property {boolean} logY
 * @property {[number, number]} xRange
 * @property {[number, number]} yRange
 * @property {number} width
 * @property {number} height
 * @property {{x: number, text: string}[]} marks  moments to mark
 */

/**
 * @typedef {object} Handlers
 * @property {(range: [number, number] | null) => void} zoom  null: everything
 * @property {(place: import("./cursor.js").Place | null) => void} move
 * @property {(hit: Hit, x: number) => void} pick  a click
 */

/** @typedef {{curve: Drawn, at: number, x: number, y: number, away: number}} Hit */

/** The most curves named beside the cursor. */
const ROWS = 12;
/** How far, in CSS pixels, a curve's end may be from the cursor to be named. */
const REACH = 16;
const BAND = 0.2;

export class Plot {
  /**
   * @param {HTMLElement} target
   * @param {Handlers} handlers
   */
  constructor(target, handlers) {
    this.target = target;
    this.handlers = handlers;
    /** @type {View | null} */
    this.view = null;
    /** @type {uPlot | null} */
    this.chart = null;
    this.overlay = document.createElement("canvas");
    this.overlay.className = "chart-overlay";
    this.tip = new Tip();
    /** @type {Hit | null} */
    this.hit = null;
    /** @type {import("./cursor.js").Place | null} */
    this.place = null;
    /** Where the cursor is, if it is over this chart. @type {[number, number] | null} */
    this.over = null;
    this.colors = palette(target);
  }

  /**
   * Draw this.
   *
   * @param {View} view
   */
  show(view) {
    const before = this.view;
    this.view = view;
    const same = before && this.chart && ["x", "logX", "logY"].every((name) => at(before, name) === at(view, name));
    if (!same) {
      this.drop();
      this.make(view);
    } else if (this.chart) {
      if (before.width !== view.width || before.height !== view.height) {
        this.chart.setSize({ width: view.width, height: view.height });
      }
      this.chart.setData(frame(view));
    }
    if (this.over) this.hover(...this.over);
    else if (this.place) this.point(this.place);
  }

  /** Colours have changed: light or dark. */
  recolor() {
    this.colors = palette(this.target);
    this.chart?.redraw(false, true);
  }

  drop() {
    this.overlay.remove();
    this.tip.root.remove();
    this.chart?.destroy();
    this.chart = null;
  }

  /** @param {View} view */
  make(view) {
    const axis = { stroke: () => this.colors.text, font: this.colors.font, gap: 4 };
    const grid = { stroke: () => this.colors.grid, width: 1 };
    const ticks = { stroke: () => this.colors.grid, width: 1, size: 4 };
    const timed = view.x === "wall" || view.x === "relative";
    const chart = new uPlot(
      {
        width: view.width,
        height: view.height,
        legend: { show: false },
        cursor: {
          x: false,
          y: false,
          points: { show: false },
          drag: { x: true, y: false, setScale: false, dist: 4 },
          bind: { dblclick: () => () => (this.handlers.zoom(null), null) },
        },
        scales: {
          x: { time: false, distr: view.logX ? 3 : 1, range: () => this.view?.xRange ?? [0, 1] },
          y: { distr: view.logY ? 3 : 1, range: () => this.view?.yRange ?? [0, 1] },
        },
        axes: [
          {
            ...axis,
            grid,
            ticks,
            space: timed ? 80 : 56,
            ...(view.logX ? { splits: (u, _, low, high) => logMarks(low, high, u.width / 56), filter: (_, splits) => splits } : {}),
            size: view.x === "wall" ? 38 : 24,
            ...(timed && !view.logX ? { incrs: SECONDS } : {}),
            values: (_, splits, __, ___, apart) => marksOf(view.x, view.logX, splits, apart),
          },
          {
            ...axis,
            grid,
            ticks,
            space: 32,
            ...(view.logY ? { splits: (u, _, low, high) => logMarks(low, high, u.height / 32), filter: (_, splits) => splits } : {}),
            size: (_, values) => 14 + 6.4 * Math.max(3, ...(values ?? []).map((text) => String(text ?? "").length)),
            values: (_, splits, __, ___, apart) => marksOf("y", view.logY, splits, apart),
          },
        ],
        series: [{}, { paths: () => null, points: { show: false } }],
        padding: [8, 10, 0, 0],
        hooks: {
          draw: [(u) => this.draw(u)],
          setSelect: [(u) => this.selected(u)],
        },
      },
      frame(view),
      this.target,
    );
    this.chart = chart;
    chart.over.append(this.overlay);
    this.target.append(this.tip.root);
    chart.over.addEventListener("pointermove", (event) => this.moved(event));
    chart.over.addEventListener("pointerleave", () => this.left());
    chart.over.addEventListener("click", (event) => {
      if (this.hit && Math.hypot(event.clientX - this.down[0], event.clientY - this.down[1]) < 4) {
        this.handlers.pick(this.hit, this.hit.x);
      }
    });
    chart.over.addEventListener("pointerdown", (event) => (this.down = [event.clientX, event.clientY]));
  }

  /** Where the button went down: a drag is no click. */
  down = [0, 0];

  /** The overlay covers what the curves are drawn in, pixel by pixel. */
  fit() {
    const over = this.chart?.over;
    if (!over) return;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [Math.round(over.clientWidth * ratio), Math.round(over.clientHeight * ratio)];
    if (this.overlay.width !== width || this.overlay.height !== height) {
      this.overlay.width = width;
      this.overlay.height = height;
    }
  }

  /** @param {uPlot} u */
  selected(u) {
    const { left, width } = u.select;
    if (width < 4) return;
    const range = /** @type {[number, number]} */ ([u.posToVal(left, "x"), u.posToVal(left + width, "x")]);
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.handlers.zoom(range);
  }

  /** @param {uPlot} u */
  draw(u) {
    const view = this.view;
    if (!view) return;
    // Only now uPlot has laid out what the overlay covers.
    this.fit();
    const { ctx, bbox } = u;
    const ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const pen = new Pen(ctx, view, bbox, ratio);
    for (const curve of view.curves) if (curve.faint) pen.line(curve, curve.line, 0.35, 1);
    // Bands first, so that no band hides a line.
    const opacity = Math.max(0.04, BAND / Math.sqrt(view.curves.length));
    for (const curve of view.curves) if (!curve.faint) pen.band(curve, opacity);
    for (const curve of view.curves) if (curve.raw) pen.line(curve, curve.raw, 0.3, 1);
    const width = view.curves.length > 30 ? 1 : 1.5;
    for (const curve of view.curves) if (!curve.faint) pen.line(curve, curve.line, 1, width);
    for (const curve of view.curves) pen.marks(curve);
    pen.moments(view.marks, this.colors);
    ctx.restore();
  }

  /** @param {PointerEvent} event */
  moved(event) {
    const chart = this.chart;
    if (!chart || !this.view) return;
    const box = chart.over.getBoundingClientRect();
    this.hover(event.clientX - box.left, event.clientY - box.top);
  }

  /**
   * The cursor is at this place of the plotting area, in CSS pixels.
   *
   * @param {number} left
   * @param {number} top
   */
  hover(left, top) {
    const chart = this.chart;
    if (!chart || !this.view) return;
    const x = chart.posToVal(left, "x");
    const hits = this.hits(x);
    this.over = [left, top];
    this.hit = null;
    for (const hit of hits) {
      hit.away = Math.abs(hit.y - top);
      if (!this.hit || hit.away < this.hit.away) this.hit = hit;
    }
    this.place = { x, curve: this.hit?.curve.key ?? null };
    this.pointer(hits, this.hit, left);
    this.tip.show(this.view, hits, this.hit, x, left, top, chart.over, this.near(x));
    this.handlers.move(this.place);
  }

  left() {
    this.hit = null;
    this.over = null;
    this.point(null);
    this.tip.hide();
    this.handlers.move(null);
  }

  /**
   * Draw the cursor where another chart has it.
   *
   * @param {import("./cursor.js").Place | null} place
   * @returns {Hit | null} the curve that stands out, at that x
   */
  point(place) {
    const chart = this.chart;
    this.place = place;
    this.tip.hide();
    if (!chart || !this.view) return null;
    if (!place) {
      this.overlay.getContext("2d")?.clearRect(0, 0, this.overlay.width, this.overlay.height);
      return null;
    }
    if (Number.isNaN(place.x)) {
      this.emphasise(this.view.curves.filter((curve) => curve.run === place.curve && !curve.faint));
      return null;
    }
    const hits = this.hits(place.x);
    const hit = hits.find(({ curve }) => curve.key === place.curve) ?? (hits.length === 1 ? hits[0] : null);
    this.pointer(hits, hit, chart.valToPos(place.x, "x"));
    return hit;
  }

  /**
   * What each curve has next to x: its entry and where that is, in CSS pixels of the plotting area.
   *
   * @param {number} x
   * @returns {Hit[]}
   */
  hits(x) {
    const view = /** @type {View} */ (this.view);
    const over = /** @type {uPlot} */ (this.chart).over;
    const toX = scaler(...view.xRange, view.logX, 0, over.clientWidth);
    const toY = scaler(...view.yRange, view.logY, over.clientHeight, -over.clientHeight);
    const left = toX(x);
    /** @type {Hit[]} */
    const found = [];
    for (const curve of view.curves) {
      if (curve.faint) continue;
      const i = nearest(curve.x, x, curve.inOrder);
      if (i < 0 || Number.isNaN(curve.line[i])) continue;
      const place = toX(curve.x[i]);
      const outside = i === 0 ? place - left : i === curve.x.length - 1 ? left - place : 0;
      if (curve.inOrder && outside > REACH) continue;
      found.push({ curve, at: i, x: curve.x[i], y: toY(curve.line[i]), away: 0 });
    }
    return found;
  }

  /**
   * The marks of values that are not finite next to x.
   *
   * @param {number} x
   */
  near(x) {
    const view = /** @type {View} */ (this.view);
    const over = /** @type {uPlot} */ (this.chart).over;
    const toX = scaler(...view.xRange, view.logX, 0, over.clientWidth);
    return view.curves
      .flatMap((curve) => curve.nonFinite.map((mark) => ({ curve, ...mark })))
      .filter((mark) => Math.abs(toX(mark.x) - toX(x)) < 5)
      .slice(0, 3);
  }

  /**
   * Draw these curves over the others, without a cursor.
   *
   * @param {Drawn[]} curves
   */
  emphasise(curves) {
    const ctx = this.overlay.getContext("2d");
    const view = this.view;
    if (!ctx || !view) return;
    const { width, height } = this.overlay;
    ctx.clearRect(0, 0, width, height);
    const pen = new Pen(ctx, view, { left: 0, top: 0, width, height }, devicePixelRatio || 1);
    for (const curve of curves) pen.line(curve, curve.line, 1, 3);
  }

  /**
   * @param {Hit[]} hits
   * @param {Hit | null} hit
   * @param {number} left
   */
  pointer(hits, hit, left) {
    const ctx = this.overlay.getContext("2d");
    const view = this.view;
    if (!ctx || !view) return;
    const ratio = devicePixelRatio || 1;
    const { width, height } = this.overlay;
    ctx.clearRect(0, 0, width, height);
    ctx.strokeStyle = this.colors.cursor;
    ctx.lineWidth = ratio;
    ctx.beginPath();
    const place = Math.round(left * ratio) + 0.5;
    ctx.moveTo(place, 0);
    ctx.lineTo(place, height);
    ctx.stroke();
    if (hit && hits.length > 1) {
      const pen = new Pen(ctx, view, { left: 0, top: 0, width, height }, ratio);
      pen.line(hit.curve, hit.curve.line, 1, 3);
    }
    // Many dots on one another say nothing: of many curves only that which stands out has one.
    for (const one of hits.length > ROWS ? (hit ? [hit] : []) : hits) {
      ctx.beginPath();
      ctx.fillStyle = one.curve.color;
      const [x, y] = [scaler(...view.xRange, view.logX, 0, width)(one.x), one.y * ratio];
      ctx.arc(x, y, (one === hit ? 4 : 3) * ratio, 0, 2 * Math.PI);
      ctx.fill();
    }
  }

  /** @returns {HTMLCanvasElement | null} what is drawn, without the cursor */
  canvas() {
    return this.chart?.ctx.canvas ?? null;
  }
}

/** Draws curves into one area of a canvas. */
class Pen {
  /**
   * @param {CanvasRenderingContext2D} ctx
   * @param {View} view
   * @param {{left: number, top: number, width: number, height: number}} box  in pixels of the canvas
   * @param {number} ratio
   */
  constructor(ctx, view, box, ratio) {
    this.ctx = ctx;
    this.box = box;
    this.ratio = ratio;
    this.toX = scaler(...view.xRange, view.logX, box.left, box.width);
    this.toY = scaler(...view.yRange, view.logY, box.top + box.height, -box.height);
    // Coordinates far outside slow the canvas down, and very far ones are drawn wrongly.
    this.far = 10 * box.height;
  }

  /**
   * A value's height; what a log axis cannot show is at its foot.
   *
   * @param {number} value
   */
  y(value) {
    const y = this.toY(value);
    const { top, height } = this.box;
    if (Number.isNaN(y)) return top + height + this.far;
    return Math.min(top + height + this.far, Math.max(top - this.far, y));
  }

  /**
   * @param {Drawn} curve
   * @param {number} opacity
   */
  band({ x, min, max, stretches, color }, opacity) {
    const { ctx } = this;
    ctx.fillStyle = color;
    ctx.strokeStyle = color;
    ctx.globalAlpha = opacity;
    ctx.lineWidth = 2 * this.ratio;
    for (const [start, end] of stretches) {
      let wide = false;
      for (let i = start; i < end && !wide; i++) wide = min[i] < max[i];
      if (!wide) continue;
      ctx.beginPath();
      ctx.moveTo(this.toX(x[start]), this.y(max[start]));
      for (let i = start + 1; i < end; i++) ctx.lineTo(this.toX(x[i]), this.y(max[i]));
      for (let i = end - 1; i >= start; i--) ctx.lineTo(this.toX(x[i]), this.y(min[i]));
      // One entry is no area: a stroke from its least to its greatest.
      if (end - start === 1) ctx.stroke();
      else ctx.fill();
    }
    ctx.globalAlpha = 1;
  }

  /**
   * @param {Drawn} curve
   * @param {ArrayLike<number>} values
   * @param {number} opacity
   * @param {number} width
   */
  line({ x, stretches, color, dash }, values, opacity, width) {
    const { ctx, ratio } = this;
    // Where a line goes up and down at each pixel, short dashes are lost in it.
    const stretch = (x.length * ratio) / this.box.width > 0.4 ? 2.5 : 1;
    ctx.globalAlpha = opacity;
    ctx.strokeStyle = color;
    ctx.fillStyle = color;
    ctx.lineWidth = width * ratio;
    ctx.lineJoin = "round";
    ctx.setLineDash(dash.map((length) => length * ratio * stretch));
    ctx.beginPath();
    for (const [start, end] of stretches) {
      ctx.moveTo(this.toX(x[start]), this.y(values[start]));
      for (let i = start + 1; i < end; i++) ctx.lineTo(this.toX(x[i]), this.y(values[i]));
    }
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.beginPath();
    const radius = Math.max(1.5, width) * ratio;
    for (const [start, end] of stretches) if (end - start === 1) this.dot(x[start], values[start], radius);
    ctx.fill();
    ctx.globalAlpha = 1;
  }

  /**
   * @param {number} x
   * @param {number} value
   * @param {number} radius
   */
  dot(x, value, radius) {
    const [left, top] = [this.toX(x), this.y(value)];
    this.ctx.moveTo(left + radius, top);
    this.ctx.arc(left, top, radius, 0, 2 * Math.PI);
  }

  /**
   * NaN and infinities: at the edge where they would be, each with a sign of its own.
   *
   * @param {Drawn} curve
   */
  marks({ nonFinite, color }) {
    const { ctx, box, ratio } = this;
    const size = 4 * ratio;
    ctx.fillStyle = color;
    ctx.strokeStyle = color;
    ctx.lineWidth = 1.5 * ratio;
    for (const { x, value } of nonFinite) {
      const left = this.toX(x);
      const up = value === "Infinity" || value === "inf";
      const edge = up ? box.top + size + ratio : box.top + box.height - size - ratio;
      ctx.beginPath();
      if (value === "NaN" || value === "nan") {
        ctx.moveTo(left - size, edge - size);
        ctx.lineTo(left + size, edge + size);
        ctx.moveTo(left - size, edge + size);
        ctx.lineTo(left + size, edge - size);
        ctx.stroke();
        continue;
      }
      const tip = up ? -size : size;
      ctx.moveTo(left, edge + tip);
      ctx.lineTo(left - size, edge - tip);
      ctx.lineTo(left + size, edge - tip);
      ctx.fill();
    }
  }

  /**
   * @param {{x: number, text: string}[]} moments
   * @param {{cursor: string, text: string, font: string}} colors
   */
  moments(moments, colors) {
    const { ctx, box, ratio } = this;
    for (const { x, text } of moments) {
      const left = Math.round(this.toX(x)) + 0.5;
      ctx.strokeStyle = colors.cursor;
      ctx.lineWidth = ratio;
      ctx.setLineDash([4 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(left, box.top);
      ctx.lineTo(left, box.top + box.height);
      ctx.stroke();
      ctx.setLineDash([]);
      ctx.fillStyle = colors.text;
      // The axes' font in pixels of the canvas.
      ctx.font = colors.font.replace(/(\d+)px/, (_, size) => `${Number(size) * ratio}px`);
      ctx.fillText(text, left + 4 * ratio, box.top + 12 * ratio);
    }
  }
}

/** What stands beside the cursor. Its rows are made once. */
class Tip {
  constructor() {
    this.root = document.createElement("div");
    this.root.className = "chart-tip";
    this.root.hidden = true;
    this.head = this.root.appendChild(document.createElement("div"));
    this.head.className = "chart-tip-head";
    this.rows = Array.from({ length: ROWS }, () => new TipRow(this.root));
    this.more = this.root.appendChild(document.createElement("div"));
    this.more.className = "chart-tip-more";
  }

  hide() {
    this.root.hidden = true;
  }

  /** What stands here, for who hears it. */
  text() {
    if (this.root.hidden) return "";
    const rows = this.rows.filter((row) => !row.root.hidden);
    const row = rows.find((one) => one.root.classList.contains("strong")) ?? rows[0];
    return `${this.head.textContent}: ${row?.value.textContent ?? ""}`;
  }

  /**
   * @param {View} view
   * @param {Hit[]} hits
   * @param {Hit | null} hit
   * @param {number} x
   * @param {number} left
   * @param {number} top
   * @param {HTMLElement} over
   * @param {{curve: Drawn, x: number, value: string}[]} marks
   */
  show(view, hits, hit, x, left, top, over, marks) {
    if (!hits.length && !marks.length) return this.hide();
    // Named are those next to the cursor; they stand in the order of their lines.
    const named = hits.length > ROWS ? hits.toSorted((a, b) => a.away - b.away).slice(0, ROWS) : hits.slice();
    named.sort((a, b) => a.y - b.y);
    this.head.textContent = placeText(view.x, hit ? hit.x : (marks[0]?.x ?? x));
    this.rows.forEach((row, i) => row.show(named[i], named[i] === hit && hits.length > 1));
    const notes = marks.map(({ curve, x: at, value }) => `${value} at ${placeText(view.x, at)} · ${curve.name}`);
    if (hits.length > named.length) notes.push(`and ${hits.length - named.length} more`);
    this.more.textContent = notes.join("\n");
    this.more.hidden = !notes.length;
    this.root.hidden = false;
    // To the side where there is room, and never out of the chart.
    const start = over.offsetLeft + left;
    const wide = this.root.offsetWidth;
    const room = (this.root.parentElement?.clientWidth ?? 0) - wide;
    const place = left > over.clientWidth / 2 ? start - 14 - wide : start + 14;
    this.root.style.left = `${Math.max(0, Math.min(place, room))}px`;
    this.root.style.top = `${Math.max(0, Math.min(top, over.clientHeight - 40))}px`;
  }
}

class TipRow {
  /** @param {HTMLElement} parent */
  constructor(parent) {
    this.root = parent.appendChild(document.createElement("div"));
    this.root.className = "chart-tip-row";
    this.swatch = this.root.appendChild(document.createElement("i"));
    this.name = this.root.appendChild(document.createElement("span"));
    this.value = this.root.appendChild(document.createElement("b"));
  }

  /**
   * @param {Hit | undefined} hit
   * @param {boolean} strong
   */
  show(hit, strong) {
    this.root.hidden = !hit;
    if (!hit) return;
    const { curve, at } = hit;
    this.root.classList.toggle("strong", strong);
    this.swatch.style.background = curve.color;
    this.name.textContent = curve.name;
    const whole = curve.min[at] < curve.max[at] ? `${number(curve.min[at], 6)} … ${number(curve.max[at], 6)}` : number(curve.min[at], 6);
    this.value.textContent = curve.own ? `${number(curve.line[at], 6)} (${whole})` : whole;
  }
}

/**
 * @param {View} view
 * @returns {uPlot.AlignedData}
 */
function frame(view) {
  return [view.xRange.slice(), view.yRange.slice()];
}

/**
 * @param {View} view
 * @param {string} name
 */
function at(view, name) {
  return /** @type {Record<string, unknown>} */ (/** @type {unknown} */ (view))[name];
}

/**
 * @param {string} x
 * @param {boolean} log
 * @param {(number | null)[]} splits
 * @param {number} apart
 * @returns {(string | null)[]}
 */
function marksOf(x, log, splits, apart) {
  const places = /** @type {number[]} */ (splits);
  if (log) return places.map((value) => short(value, value / 100));
  if (x === "wall") return clock(places, apart);
  if (x === "relative") return places.map(span);
  return places.map((value) => short(value, apart));
}

/** @param {HTMLElement} element */
function palette(element) {
  const style = getComputedStyle(element);
  const of = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
  return {
    text: of("--chart-text"),
    grid: of("--chart-grid"),
    cursor: of("--chart-cursor"),
    font: `11px ${style.fontFamily}`,
  };
}
