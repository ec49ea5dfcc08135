/** The history of a run: a slider over its events, its marks, and the run as it was at the chosen one. */
import { experimentPath, get } from "../lib/api.js";
import { ago, count, counted, time } from "../lib/format.js";
import { subscribe, throttled } from "../lib/live.js";
import { html, useEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { route, setParams } from "../lib/url.js";
import { visible } from "../parts/loglines.js";
import { Slider } from "../parts/slider.js";
import { Failure, Loading } from "../parts/states.js";
import { Virtual } from "../parts/virtual.js";
import { allMarks, KINDS, textOf } from "./run-history.js";
import { Tab } from "./run-tabs.js";

/**
 * @typedef {import("../types").Mark} Mark
 * @typedef {import("../types").History} History
 */

const ROW_PX = 30;
const RELOAD_MS = 1000;
const FRAMES = 40;
const FRAME_MS = 600;
const SHOWN = [
  { name: "charts", text: "Charts" },
  { name: "parameters", text: "Parameters" },
  { name: "files", text: "Files" },
];

/** @param {import("./run-tabs.js").TabProps} props */
export default function Timeline({ id, record, asOf }) {
  const { history, error, again } = useHistory(id, record.counts.events, asOf);
  const { params } = route.value;
  const kinds = useMemo(() => new Set((params.kinds ?? "").split(",").filter(Boolean)), [params.kinds]);
  const chosen = useMemo(() => {
    const marks = history?.marks ?? [];
    return kinds.size ? marks.filter((mark) => kinds.has(mark.kind)) : marks;
  }, [history, kinds]);
  if (error && !history) return html`<${Failure} error=${error} retry=${again} />`;
  if (!history) return html`<${Loading} what="Loading the history" />`;
  const shown = SHOWN.some((one) => one.name === params.show) ? params.show : "charts";
  const at = asOf === null ? history.events : eventOf(asOf, record);
  return html`<section class="timeline" aria-label="Timeline">
    <${Controls} history=${history} at=${at} asOf=${asOf} moment=${record.updatedAt} marks=${chosen} />
    <div class="timeline-parts">
      <div class="timeline-marks">
        <${Kinds} marks=${history.marks} kinds=${kinds} />
        <${Marks} marks=${chosen} at=${at} asOf=${asOf} />
      </div>
      <div class="timeline-shown">
        <div class="segmented" role="group" aria-label="As of that moment">
          ${SHOWN.map(
            ({ name, text }) => html`<button aria-pressed=${name === shown} onClick=${() => setParams({ show: name })}>${text}</button>`,
          )}
        </div>
        <${Tab} name=${shown} id=${id} record=${record} asOf=${asOf} />
      </div>
    </div>
  </section>`;
}

/**
 * All marks; new ones are added as they come.
 * @param {string} id
 * @param {number} events that the record knows
 * @param {string | null} asOf
 */
function useHistory(id, events, asOf) {
  const [known, setKnown] = useState(/** @type {{history: History | null, error: any}} */ ({ history: null, error: null }));
  const [attempt, setAttempt] = useState(0);
  const now = useRef(/** @type {History | null} */ (null));
  useEffect(() => {
    const stop = new AbortController();
    const load = async () => {
      try {
        now.current = await newer(id, now.current, stop.signal);
        setKnown({ history: now.current, error: null });
      } catch (error) {
        if (!stop.signal.aborted) setKnown((was) => ({ ...was, error }));
      }
    };
    load();
    const soon = throttled(RELOAD_MS, load);
    const leave = subscribe([id], () => soon(null));
    return () => {
      leave();
      stop.abort();
    };
  }, [id, attempt]);
  return { ...known, again: () => setAttempt(attempt + 1) };
}

/**
 * The history with what came since. Data that came late moves the marks behind it: then all of it is read anew.
 * @param {string} id
 * @param {History | null} known
 * @param {AbortSignal} signal
 * @returns {Promise<History>}
 */
async function newer(id, known, signal) {
  if (!known) return allMarks(id, signal);
  const page = await get(experimentPath(id, "history"), { startIndex: Math.max(0, known.marks.length - 1), limit: 1000 }, { signal });
  const last = known.marks.at(-1);
  const [same, ...added] = page.marks;
  const grown = last ? added : page.marks;
  const fits = page.total === known.marks.length + grown.length && (!last || (same?.event === last.event && same.kind === last.kind));
  return fits ? { ...page, marks: grown.length ? [...known.marks, ...grown] : known.marks } : allMarks(id, signal);
}

/**
 * The event that a moment stands for: its number, or, of a time, that of the last event up to it.
 * @param {string} asOf
 * @param {import("../types").ExperimentRecord} record as of then
 */
const eventOf = (asOf, record) => (/^\d+$/.test(asOf) ? Number(asOf) : record.counts.events);

/** @param {number | null} event */
const goTo = (event, replace = false) => setParams({ asOf: event }, { replace });

/** @param {{history: History, at: number, asOf: string | null, moment: string, marks: Mark[]}} props */
function Controls({ history, at, asOf, moment, marks }) {
  const [dragged, setDragged] = useState(/** @type {number | null} */ (null));
  const [playing, setPlaying] = useState(false);
  const shown = dragged ?? at;
  const near = lastAt(history.marks, shown);
  const after = near ? `${KINDS[near.kind] ?? near.kind} ${textOf(near)}` : "";
  const text = `Event ${count(shown)} of ${count(history.events)}${after && `, after: ${after}`}`;
  /** @param {number} event */
  const settle = (event) => {
    setDragged(null);
    // The way back leads to where one began, not through each step.
    goTo(event >= history.events ? null : event, asOf !== null);
  };
  useEffect(() => {
    if (!playing) return;
    const timer = setInterval(() => {
      const next = Math.min(history.events, at + Math.max(1, Math.ceil(history.events / FRAMES)));
      if (next >= history.events) setPlaying(false);
      goTo(next >= history.events ? null : next, true);
    }, FRAME_MS);
    return () => clearInterval(timer);
  }, [playing, at, history.events]);
  const play = () => {
    if (!playing && !asOf) goTo(1, true);
    setPlaying(!playing);
  };
  const before = [...marks].reverse().find((mark) => mark.event < at);
  const next = marks.find((mark) => mark.event > at);
  return html`<div class="timeline-controls">
    <${Slider}
      events=${history.events}
      value=${shown}
      ticks=${marks}
      text=${text}
      onInput=${setDragged}
      onChange=${settle}
    />
    <div class="timeline-line">
      <button aria-label="Mark before" title="Mark before" disabled=${!before} onClick=${() => before && settle(before.event)}>◀</button>
      <button aria-pressed=${playing} onClick=${play}>${playing ? "Stop" : "Play"}</button>
      <button aria-label="Mark after" title="Mark after" disabled=${!next} onClick=${() => next && settle(next.event)}>▶</button>
      <button disabled=${!asOf} onClick=${() => goTo(null)}>Now</button>
      <span class="timeline-text">
        <b>Event ${count(shown)}</b> of ${count(history.events)}${asOf && dragged === null ? html` · ${time(moment)}` : null}
        ${after ? html`<span class="dim"> · after: ${visible(after).slice(0, 200)}</span>` : null}
      </span>
    </div>
  </div>`;
}

/**
 * The last mark up to an event, of marks in order.
 * @param {Mark[]} marks
 * @param {number} event
 */
export function lastAt(marks, event) {
  let [low, high] = [0, marks.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (marks[middle].event <= event) low = middle + 1;
    else high = middle;
  }
  return low ? marks[low - 1] : undefined;
}

/** @param {{marks: Mark[], kinds: Set<string>}} props */
function Kinds({ marks, kinds }) {
  const numbers = useMemo(() => {
    /** @type {Map<string, number>} */
    const found = new Map();
    for (const { kind } of marks) found.set(kind, (found.get(kind) ?? 0) + 1);
    return found;
  }, [marks]);
  const order = [...Object.keys(KINDS), ...[...numbers.keys()].filter((kind) => !(kind in KINDS))];
  /** @param {string} kind */
  const toggle = (kind) => {
    const next = new Set(kinds);
    if (!next.delete(kind)) next.add(kind);
    setParams({ kinds: [...next].join(",") });
  };
  return html`<div class="timeline-kinds" role="group" aria-label="Kinds of marks">
    ${order
      .filter((kind) => numbers.has(kind))
      .map(
        (kind) => html`<button class=${`chip kind-${kind}`} aria-pressed=${kinds.has(kind)} onClick=${() => toggle(kind)}>
          <span class="kind-dot" aria-hidden="true"></span>${KINDS[kind] ?? kind} <span class="count">${count(numbers.get(kind) ?? 0)}</span>
        </button>`,
      )}
  </div>`;
}

/** @param {{marks: Mark[], at: number, asOf: string | null}} props */
function Marks({ marks, at, asOf }) {
  const handle = useRef(/** @type {import("../parts/virtual.js").Handle | null} */ (null));
  const current = useMemo(() => {
    const near = lastAt(marks, at);
    return near ? marks.indexOf(near) : -1;
  }, [marks, at]);
  useEffect(() => {
    if (asOf && current >= 0) handle.current?.reveal(current);
  }, [current, asOf]);
  return html`<p class="dim">${counted(marks.length, "mark")}</p>
    <${Virtual}
      total=${marks.length}
      rowHeight=${ROW_PX}
      label="Marks"
      class="marks"
      follow=${!asOf}
      handle=${(/** @type {import("../parts/virtual.js").Handle} */ given) => (handle.current = given)}
      row=${(/** @type {number} */ index) => drawn(marks[index], index, index === current && asOf !== null)}
    />`;
}

/**
 * @param {Mark} mark
 * @param {number} index
 * @param {boolean} current
 */
function drawn(mark, index, current) {
  const where = [mark.host, mark.writer].filter(Boolean).join(", ");
  return html`<div role="listitem" key=${index} class=${`mark kind-${mark.kind}${current ? " current" : ""}`}>
    <button onClick=${() => goTo(mark.event)} aria-current=${current ? "step" : undefined} title=${`${mark.text}\n${time(mark.time)}${where ? `\n${where}` : ""}`}>
      <span class="kind-dot" aria-hidden="true"></span>
      <span class="mark-kind">${KINDS[mark.kind] ?? mark.kind}</span>
      <span class="mark-text">${visible(textOf(mark)).slice(0, 300)}</span>
      <span class="mark-host dim">${mark.host && !mark.text.includes(mark.host) ? visible(mark.host) : ""}</span>
      <time class="dim" datetime=${mark.time}>${ago(mark.time)}</time>
    </button>
  </div>`;
}
