/**
 * The logs of a run: any page of millions, the newest as they come, and what a filter finds.
 *
 * Without a filter the list has a row for each entry, and loads the pages in sight. With one it has a row for each entry
 * found so far: the server examines the entries from the first on, in steps, and the list shows how far it is.
 */
import { experimentPath, get } from "../lib/api.js";
import { count, counted, duration, time } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { throttled } from "../lib/live.js";
import { pref } from "../lib/prefs.js";
import { html, useEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { link, route, setParams } from "../lib/url.js";
import { finder, LogLine } from "../parts/loglines.js";
import { Empty, Failure } from "../parts/states.js";
import { Virtual } from "../parts/virtual.js";

/**
 * @typedef {import("../parts/loglines.js").Entry} Entry
 * @typedef {import("../parts/virtual.js").Handle} Handle
 * @typedef {{levels: string[], q: string, regex: boolean}} Filter
 * @typedef {{entries: Entry[], examined: number, done: boolean, error: any}} Found `examined`: entries from the first on
 */

const LEVELS = ["debug", "info", "warn", "error", "fatal"];
const PAGE = 200;
const KEPT_PAGES = 60;
const FOUND_AT_ONCE = 500;
const FOUND_MOST = 50_000;
const ROW_PX = 22;
const TYPING_MS = 250;
const LIVE_MS = 400;
const AGAIN_MS = 2000;
const FOLLOWING = "following the newest";

const relative = pref("logs.relative", false);

/** @param {import("./run-tabs.js").TabProps} props */
export default function Logs({ id, record, asOf }) {
  const { params } = route.value;
  const filter = useMemo(() => filterOf(params), [params.level, params.q, params.regex]);
  const active = filter.levels.length > 0 || filter.q !== "";
  const total = record.counts.logs ?? 0;
  if (!total) {
    return html`<${Empty} title="No log entries" command=${asOf ? undefined : 'experiment.log("training starts")'} />`;
  }
  const props = { id, asOf, total, params, start: record.createdAt, running: record.status === "running" && !asOf };
  return html`<section class="logs" aria-label="Logs">
    <${Controls} filter=${filter} />
    ${active
      ? html`<${Matches} key=${JSON.stringify([filter, asOf])} ...${props} filter=${filter} />`
      : html`<${All} key=${asOf ?? ""} ...${props} />`}
  </section>`;
}

/**
 * @param {Record<string, string>} params
 * @returns {Filter}
 */
function filterOf({ level, q, regex }) {
  return { levels: (level ?? "").split(",").filter((one) => LEVELS.includes(one)), q: q ?? "", regex: regex === "true" };
}

/** @param {{filter: Filter}} props */
function Controls({ filter }) {
  const [text, setText] = useState(filter.q);
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  useEffect(() => setText(filter.q), [filter.q]);
  useEffect(() => {
    if (text === filter.q) return;
    // A search per word, not per letter.
    const timer = setTimeout(() => setParams({ q: text, line: null, at: null }, { replace: true }), TYPING_MS);
    return () => clearTimeout(timer);
  }, [text]);
  useKeys([["/", "search the logs", () => input.current?.focus()]]);
  /** @param {string} level */
  const toggle = (level) => {
    const levels = filter.levels.includes(level) ? filter.levels.filter((one) => one !== level) : [...filter.levels, level];
    const ordered = LEVELS.filter((one) => levels.includes(one));
    setParams({ level: ordered.length === LEVELS.length ? null : ordered.join(","), line: null, at: null });
  };
  return html`<div class="logs-controls">
    <input
      ref=${input}
      type="search"
      aria-label="Search the logs"
      placeholder=${filter.regex ? "Regular expression" : "Text"}
      spellcheck=${false}
      value=${text}
      onInput=${(/** @type {any} */ event) => setText(event.currentTarget.value)}
      onKeyDown=${(/** @type {KeyboardEvent} */ event) => event.key === "Enter" && setParams({ q: text, line: null, at: null })}
    />
    <button
      aria-pressed=${filter.regex}
      aria-label="Regular expression"
      title="Regular expression"
      class="mono"
      onClick=${() => setParams({ regex: filter.regex ? null : "true", q: text })}
    >.*</button>
    <span class="segmented" role="group" aria-label="Levels">
      ${LEVELS.map(
        (level) => html`<button class=${`level-${level}`} aria-pressed=${filter.levels.includes(level)} onClick=${() => toggle(level)}>
          ${level}
        </button>`,
      )}
    </span>
    <span class="space"></span>
    <button aria-pressed=${relative.value} aria-label="Relative times" title="Times since the run began"
      onClick=${() => (relative.value = !relative.value)}>Relative</button>
  </div>`;
}

/**
 * @typedef {{id: string, asOf: string | null, total: number, start: string, params: Record<string, string>, running: boolean}} ListProps
 */

/** All entries. @param {ListProps} props */
function All({ id, asOf, total, start, params, running }) {
  const handle = useRef(/** @type {Handle | null} */ (null));
  const [follow, setFollow] = useState(!asOf && !params.line && !params.at);
  const [current, setCurrent] = useState(-1);
  const [at, setAt] = useState(/** @type {any} */ (null));
  const pages = usePages(id, asOf, total);
  // A line or a moment in the URL: there.
  useEffect(() => {
    if (!params.line && !params.at) return;
    const stop = new AbortController();
    lineOf(id, asOf, params, stop.signal).then(
      (line) => {
        const shown = Math.max(0, Math.min(total - 1, line));
        setFollow(false);
        setCurrent(shown);
        handle.current?.scrollTo(shown, "center");
      },
      (error) => stop.signal.aborted || setAt(error),
    );
    return () => stop.abort();
  }, [params.line, params.at]);
  const error = at ?? pages.error;
  if (error && !pages.any) return html`<${Failure} error=${error} retry=${pages.again} />`;
  return html`<${Lines}
      total=${total}
      label="Log entries"
      entryAt=${pages.entryAt}
      follow=${follow}
      onFollow=${(/** @type {boolean} */ end) => setFollow(end && !asOf)}
      onRange=${pages.need}
      handle=${(/** @type {Handle} */ given) => (handle.current = given)}
      ...${{ id, asOf, start, current, found: null, context: false }}
    />
    <${Foot} text=${counted(total, "entry", "entries")} status=${follow && running ? FOLLOWING : null} onEnd=${() => (asOf ? handle.current?.scrollToEnd() : setFollow(true))} />`;
}

/**
 * The number of the entry that the URL means.
 * @param {string} id
 * @param {string | null} asOf
 * @param {Record<string, string>} params
 * @param {AbortSignal} signal
 */
async function lineOf(id, asOf, params, signal) {
  if (params.line) return Number(params.line);
  const page = await get(experimentPath(id, "logs"), { at: params.at, limit: 1, asOf }, { signal });
  return page.startIndex;
}

/**
 * Pages of the entries: `entryAt` gives one that is here, `need` fetches those in sight.
 * @param {string} id
 * @param {string | null} asOf
 * @param {number} total
 */
function usePages(id, asOf, total) {
  const [, redraw] = useState(0);
  const [error, setError] = useState(/** @type {any} */ (null));
  const kept = useRef(/** @type {Map<number, Entry[]>} */ (new Map()));
  const asked = useRef(/** @type {Map<number, AbortController>} */ (new Map()));
  const sight = useRef([0, 0]);
  const size = useRef(total);
  size.current = total;
  const later = useRef(0);
  const leave = () => {
    clearTimeout(later.current);
    asked.current.forEach((one) => one.abort());
  };
  useEffect(() => leave, []);

  /** @param {number} page */
  const isWhole = (page) => (kept.current.get(page)?.length ?? 0) >= Math.min(PAGE, size.current - page * PAGE);

  /** @param {number} page */
  const fetchPage = async (page) => {
    const stop = new AbortController();
    asked.current.set(page, stop);
    try {
      const [first, end] = [page * PAGE, (page + 1) * PAGE];
      /** @type {Entry[]} */
      const entries = [];
      let more = true;
      // An answer has less than was asked for where entries are long, and begins later where some are not here.
      for (let next = first; more && next < end; ) {
        const answer = await get(experimentPath(id, "logs"), { startIndex: next, limit: end - next, asOf }, { signal: stop.signal });
        next = answer.startIndex;
        for (const entry of answer.logs) entries[next++ - first] = entry;
        more = answer.hasMore && answer.logs.length > 0;
      }
      kept.current.delete(page);
      kept.current.set(page, entries);
      // The one that was fetched longest ago goes first.
      for (const old of kept.current.keys()) if (kept.current.size > KEPT_PAGES) kept.current.delete(old);
      setError(null);
    } catch (failure) {
      if (!stop.signal.aborted) {
        setError(failure);
        clearTimeout(later.current);
        // Nobody else asks again for what is in sight, until it is scrolled.
        later.current = setTimeout(look, AGAIN_MS);
      }
    } finally {
      if (asked.current.get(page) === stop) asked.current.delete(page);
    }
    redraw((number) => number + 1);
  };

  const look = () => {
    const [first, end] = sight.current;
    const [from, to] = [Math.floor(first / PAGE), Math.floor(Math.max(first, end - 1) / PAGE)];
    for (const [page, stop] of asked.current) if (page < from - 1 || page > to + 1) stop.abort();
    for (let page = from; page <= to; page += 1) if (!isWhole(page) && !asked.current.has(page)) fetchPage(page);
  };
  const soon = useMemo(() => throttled(60, async () => look()), []);
  return {
    error,
    any: kept.current.size > 0,
    again: () => look(),
    /** @param {number} index */
    entryAt: (index) => kept.current.get(Math.floor(index / PAGE))?.[index % PAGE],
    /** @param {number} first @param {number} end */
    need: (first, end) => {
      sight.current = [first, end];
      soon(null);
    },
  };
}

/** What a filter finds. @param {ListProps & {filter: Filter}} props */
function Matches({ id, asOf, total, start, params, filter, running }) {
  const found = useSearch(id, asOf, total, filter);
  const handle = useRef(/** @type {Handle | null} */ (null));
  const [follow, setFollow] = useState(!asOf && !params.at);
  const marks = useMemo(() => finder(filter.q, filter.regex), [filter]);
  const { entries, examined, done, error } = found.state;
  if (error && !entries.length) return html`<${Failure} error=${error} retry=${found.go} />`;
  if (done && !entries.length) {
    return html`<${Empty} title="No entry matches">${counted(examined, "entry", "entries")} examined.<//>`;
  }
  const full = entries.length >= FOUND_MOST;
  const progress = done ? null : full ? "the first are shown: narrow the filter" : `${count(examined)} of ${count(total)} examined`;
  return html`<${Lines}
      total=${entries.length}
      label="Log entries that match"
      entryAt=${(/** @type {number} */ index) => entries[index]}
      follow=${follow}
      onFollow=${(/** @type {boolean} */ end) => setFollow(end && !asOf)}
      handle=${(/** @type {Handle} */ given) => (handle.current = given)}
      ...${{ id, asOf, start, current: -1, found: marks, context: true }}
    />
    <${Foot}
      text=${`${counted(entries.length, "match", "matches")}`}
      status=${progress ?? (follow && running ? FOLLOWING : null)}
      onEnd=${() => (asOf ? handle.current?.scrollToEnd() : setFollow(true))}
    />`;
}

/**
 * Searches from the first entry to the last, and on as entries come.
 * @param {string} id
 * @param {string | null} asOf
 * @param {number} total
 * @param {Filter} filter
 */
function useSearch(id, asOf, total, filter) {
  const [state, setState] = useState(/** @type {Found} */ ({ entries: [], examined: 0, done: false, error: null }));
  const now = useRef(state);
  const running = useRef(false);
  const stop = useRef(/** @type {AbortController | null} */ (null));
  const size = useRef(total);
  size.current = total;

  /** @param {Partial<Found>} change */
  const set = (change) => {
    now.current = { ...now.current, ...change };
    setState(now.current);
  };
  const go = async () => {
    if (running.current || !stop.current) return;
    running.current = true;
    const { signal } = stop.current;
    try {
      while (now.current.examined < size.current && now.current.entries.length < FOUND_MOST) {
        // The first few are to be seen at once; then larger steps cost less.
        const limit = now.current.entries.length ? FOUND_AT_ONCE : 100;
        const query = { startIndex: now.current.examined, limit, level: filter.levels.join(",") || null, asOf, ...words(filter) };
        const page = await get(experimentPath(id, "logs"), query, { signal });
        const examined = Math.max(now.current.examined, page.endIndex + 1);
        set({ entries: now.current.entries.concat(page.logs), examined, done: !page.hasMore, error: null });
        // The answer may be of a version with fewer entries than the page has heard of.
        if (!page.hasMore) break;
      }
    } catch (error) {
      if (!signal.aborted) set({ error });
    } finally {
      running.current = false;
    }
  };
  useEffect(() => {
    stop.current = new AbortController();
    return () => stop.current?.abort();
  }, []);
  const soon = useMemo(() => throttled(LIVE_MS, go), []);
  useEffect(() => {
    soon(null);
  }, [total]);
  return { state, go };
}

/** @param {Filter} filter */
function words({ q, regex }) {
  return q ? (regex ? { regex: q } : { q }) : {};
}

/**
 * The rows in sight.
 * @param {{total: number, label: string, entryAt: (index: number) => Entry | undefined, follow: boolean,
 *   onFollow: (atEnd: boolean) => void, onRange?: (first: number, end: number) => void, handle: (handle: Handle) => void,
 *   id: string, asOf: string | null, start: string, current: number, found: RegExp | null, context: boolean}} props
 */
function Lines({ total, label, entryAt, follow, onFollow, onRange, handle, id, asOf, start, current, found, context }) {
  const [open, setOpen] = useState(/** @returns {ReadonlySet<number>} */ () => new Set());
  const [copied, setCopied] = useState("");
  const path = `/runs/${encodeURIComponent(id)}`;
  const showTime = timeText(start);
  /** @param {number} number */
  const toggle = (number) =>
    setOpen((was) => {
      const next = new Set(was);
      if (!next.delete(number)) next.add(number);
      return next;
    });
  /** @param {string} text */
  const copy = async (text) => {
    await navigator.clipboard.writeText(text);
    setCopied(`Copied ${counted(text.length, "character")}`);
  };
  return html`<${Virtual}
      ...${{ total, label, follow, onFollow, onRange, handle }}
      rowHeight=${ROW_PX}
      class="log-lines"
      row=${(/** @type {number} */ index) => {
        const entry = entryAt(index);
        if (!entry) return html`<div class="log-line loading" role="listitem" key=${`row ${index}`}><div class="log-row"> </div></div>`;
        const number = entry.sequenceNumber;
        return html`<${LogLine}
          key=${number}
          ...${{ entry, total, found, onCopy: copy }}
          time=${showTime(entry.timestamp)}
          chartsHref=${link(path, { tab: "charts", x: "wall", at: entry.timestamp, asOf })}
          contextHref=${context ? link(path, { tab: "logs", line: number, asOf }) : null}
          open=${open.has(number)}
          current=${index === current}
          onToggle=${() => toggle(number)}
        />`;
      }}
    />
    <span class="hidden" role="status" aria-label="Clipboard">${copied}</span>`;
}

/**
 * How times of entries are shown: since the run began, or as the clock here had it.
 * @param {string} start
 * @returns {(timestamp: string) => string}
 */
function timeText(start) {
  const began = Date.parse(start);
  if (relative.value) return (timestamp) => `+${duration(Math.max(0, Date.parse(timestamp) - began) / 1000)}`;
  const day = time(start).slice(0, 10);
  return (timestamp) => {
    const text = time(timestamp);
    const fraction = /\.(\d{3})/.exec(timestamp)?.[1] ?? "000";
    return `${text.startsWith(day) ? text.slice(11) : text.slice(5)}.${fraction}`;
  };
}

/** @param {{text: string, status: string | null, onEnd: () => void}} props */
function Foot({ text, status, onEnd }) {
  return html`<div class="logs-foot dim">
    <span>${text}</span>
    <span>${status ?? ""}</span>
    <span class="space"></span>
    <button onClick=${onEnd}>Newest</button>
  </div>`;
}
