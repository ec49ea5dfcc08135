/** The rows of the list of runs: fetched by the page, as they are seen, and kept up to date. */
import { batch, signal } from "../lib/ui.js";
import { get } from "../lib/api.js";
import { throttled } from "../lib/live.js";

/** @typedef {import("../types").Run} Run */
/** @typedef {import("../lib/api.js").ApiError} ApiError */
/** @typedef {{where: string, sort: string, columns: string}} Question */
/** @typedef {{rows: Run[], stale: boolean}} Page */

export const PAGE = 100;
const REFRESH_MS = 1000;
const INDEXING_MS = 500;

/** Makes an empty list of runs. */
export function runsList() {
  /** How many match; null until it is known. @type {import("../vendor/preact.js").Signal<number|null>} */
  const total = signal(/** @type {number|null} */ (null));
  const error = signal(/** @type {ApiError|null} */ (null));
  /** Grows with each change of the rows, so that who draws them draws again. */
  const version = signal(0);
  /** Grows as time goes by: "3 s ago" is read again. */
  const ticks = signal(0);
  /** How far the server is with reading the runs for the first time. */
  const indexing = signal(/** @type {{done: number, total: number}|null} */ (null));
  const loading = signal(false);

  /** @type {Map<number, Page>} */
  let pages = new Map();
  /** @type {Map<number, AbortController>} */
  let asked = new Map();
  /** @type {Question|null} */
  let question = null;
  let range = { start: 0, end: PAGE };
  // The rows of the last question stay until the first of the new ones are here.
  let fresh = true;

  /** @param {number} number @returns {Promise<void>} */
  async function fetchPage(number) {
    const abort = new AbortController();
    asked.set(number, abort);
    loading.value = true;
    const { where, sort, columns } = /** @type {Question} */ (question);
    try {
      const query = { where: where || null, sort, columns: columns || null, startIndex: number * PAGE, limit: PAGE };
      const answer = await get("/experiments", query, { signal: abort.signal });
      batch(() => {
        if (!fresh) pages = new Map();
        fresh = true;
        pages.set(number, { rows: kept(pages.get(number)?.rows ?? [], answer.experiments), stale: false });
        total.value = answer.total;
        error.value = null;
        indexing.value = answer.indexing ?? null;
        version.value += 1;
      });
      if (answer.indexing) setTimeout(refresh, INDEXING_MS);
    } catch (failed) {
      if (!abort.signal.aborted) error.value = /** @type {ApiError} */ (failed);
    } finally {
      if (asked.get(number) === abort) asked.delete(number);
      loading.value = asked.size > 0;
    }
  }

  /** Fetches what is seen and is not here, or is old. */
  function fetchSeen() {
    if (!question) return Promise.resolve();
    const work = [];
    const last = Math.floor(Math.max(range.start, Math.min(range.end, total.peek() ?? PAGE) - 1) / PAGE);
    for (let number = Math.floor(range.start / PAGE); number <= last; number++) {
      const page = fresh ? pages.get(number) : undefined;
      if ((!page || page.stale) && !asked.has(number)) work.push(fetchPage(number));
    }
    return Promise.all(work);
  }

  /** Everything that is here may be old. */
  const refresh = throttled(REFRESH_MS, async () => {
    for (const page of pages.values()) page.stale = true;
    await fetchSeen();
  });

  /** @type {ReturnType<typeof setTimeout>|undefined} */
  let waiting;
  return {
    total, error, version, ticks, indexing, loading,
    /** Asks another question. @param {Question} now */
    ask(now) {
      question = now;
      fresh = false;
      for (const abort of asked.values()) abort.abort();
      asked = new Map();
      fetchSeen();
    },
    /** These rows are seen. @param {number} start @param {number} end */
    see(start, end) {
      range = { start, end };
      clearTimeout(waiting);
      // Who drags the scroll bar past ten thousand rows wants none of those between.
      if (asked.size > 2) waiting = setTimeout(fetchSeen, 60);
      else fetchSeen();
    },
    /** @param {number} index */
    row: (index) => pages.get(Math.floor(index / PAGE))?.rows[index % PAGE],
    /** All rows that are here. */
    rows: () => [...pages.values()].flatMap((page) => page.rows),
    refresh: () => refresh(null),
    /** Notes the new record of a run before the server lists it. @param {Partial<Run> & {id: string}} changed */
    put(changed) {
      for (const page of pages.values()) page.rows = page.rows.map((run) => (run.id === changed.id ? { ...run, ...changed, values: run.values } : run));
      version.value += 1;
    },
    again: fetchSeen,
  };
}

/**
 * The new rows, where those that are as before are the same objects: they are not drawn again.
 * @param {Run[]} before
 * @param {Run[]} now
 */
function kept(before, now) {
  const known = new Map(before.map((run) => [run.id, run]));
  return now.map((run) => {
    const old = known.get(run.id);
    return old && JSON.stringify(old) === JSON.stringify(run) ? old : run;
  });
}

/** @typedef {ReturnType<typeof runsList>} RunsList */
