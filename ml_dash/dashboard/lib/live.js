/**
 * What changes, as it does: one stream of server-sent events (`GET /changes`) for the whole page.
 *
 * The stream says which experiments have how many events, and nothing else; who shows them asks for what they show.
 * A page that is not seen listens to nothing: a browser has six connections to a server, and tabs share them.
 */
import { address, reachable } from "./api.js";
import { computed, effect, signal } from "./ui.js";

/** @typedef {{changed: Map<string, number>, removed: string[], all: boolean}} News  `all`: anything may have changed */
/** @typedef {{ids: string[]|null, run: (news: News) => (void|Promise<unknown>)}} Subscriber */

const BEHIND_MS = 1500;
const AGAIN_MS = 2000;
const FIRST_LOOK_MS = 5000;

/** @type {Set<Subscriber>} */
const subscribers = new Set();
const connected = signal(false);
const late = signal(false);

/** "live", "behind" (there is news that is not on the page yet) or "offline". */
export const connection = computed(() => {
  if (!connected.value || !reachable.value) return "offline";
  return late.value ? "behind" : "live";
});

/** @type {EventSource|null} */
let source = null;
let listening = "";
/** @type {ReturnType<typeof setTimeout>|undefined} */
let timer;
let first = true;

/**
 * Calls `run` with what has changed, of these experiments or of all (null), until the function that comes back is
 * called. A promise that `run` returns is waited for: while one is pending for long, the page is "behind".
 * @param {string[]|null} ids
 * @param {(news: News) => (void|Promise<unknown>)} run
 */
export function subscribe(ids, run) {
  const one = { ids, run };
  subscribers.add(one);
  soon(50);
  return () => {
    subscribers.delete(one);
    soon(50);
  };
}

/** @param {number} ms */
function soon(ms) {
  clearTimeout(timer);
  timer = setTimeout(connect, ms);
}

/** Opens the stream that the subscribers need, if it is another than the one there is. */
function connect() {
  const wanted = document.visibilityState === "hidden" || subscribers.size === 0 ? "" : address("/changes", asked());
  if (wanted === listening && source?.readyState !== EventSource.CLOSED) return;
  source?.close();
  source = null;
  listening = wanted;
  if (!wanted) return;
  const opened = new EventSource(wanted);
  source = opened;
  opened.onopen = () => {
    connected.value = true;
    reachable.value = true;
    // What changed before the stream was open is not told by it. At the first time that is the moment in which the page
    // asks for everything anyway, so that look again may wait until it has drawn.
    setTimeout(() => tell({ changed: new Map(), removed: [], all: true }), first ? FIRST_LOOK_MS : 0);
    first = false;
  };
  opened.onerror = () => {
    connected.value = false;
    // The browser tries again by itself after a cut, and not after an answer that is an error.
    if (opened.readyState === EventSource.CLOSED) soon(AGAIN_MS);
  };
  opened.addEventListener("change", (event) => {
    const { experiments } = JSON.parse(event.data);
    tell({ changed: new Map(Object.entries(experiments)), removed: [], all: false });
  });
  opened.addEventListener("removed", (event) => {
    tell({ changed: new Map(), removed: JSON.parse(event.data).experiments, all: false });
  });
}

/** A few experiments are asked for by name, many as all. */
function asked() {
  /** @type {Set<string>} */
  const ids = new Set();
  for (const one of subscribers) {
    if (one.ids === null) return {};
    one.ids.forEach((id) => ids.add(id));
  }
  return ids.size > 50 ? {} : { experiment: [...ids].sort() };
}

/** @param {News} news */
function tell(news) {
  for (const one of [...subscribers]) {
    const mine = one.ids === null ? news : only(news, new Set(one.ids));
    if (mine.all || mine.changed.size || mine.removed.length) watched(one.run(mine));
  }
}

/**
 * @param {News} news
 * @param {Set<string>} ids
 * @returns {News}
 */
function only(news, ids) {
  return {
    changed: new Map([...news.changed].filter(([id]) => ids.has(id))),
    removed: news.removed.filter((id) => ids.has(id)),
    all: news.all,
  };
}

let pending = 0;

/** @param {void|Promise<unknown>} work */
async function watched(work) {
  if (!(work instanceof Promise)) return;
  let counted = false;
  const slow = setTimeout(() => {
    counted = true;
    pending += 1;
    late.value = true;
  }, BEHIND_MS);
  try {
    await work;
  } catch {
    // Who asked shows the error; here only the time counts.
  } finally {
    clearTimeout(slow);
    if (counted) pending -= 1;
    late.value = pending > 0;
  }
}

/** Starts to follow whether the page is seen. */
export function followVisibility() {
  document.addEventListener("visibilitychange", () => {
    // A glance at another tab is no reason to connect anew.
    soon(document.visibilityState === "hidden" ? 5000 : 0);
  });
}

/**
 * Calls `run` at most once in `ms`: at once, and again after it for what came meanwhile. Never twice at a time.
 * @template A
 * @param {number} ms
 * @param {(last: A) => (void|Promise<unknown>)} run
 * @returns {(value: A) => Promise<void>}  settles when what was asked for is done
 */
export function throttled(ms, run) {
  let nextAt = 0;
  /** @type {Promise<void>|null} */
  let waiting = null;
  /** @type {Promise<unknown>} */
  let running = Promise.resolve();
  /** @type {A} */
  let last;
  return (value) => {
    last = value;
    waiting ??= (async () => {
      await running.catch(() => {});
      const wait = nextAt - performance.now();
      if (wait > 0) await new Promise((done) => setTimeout(done, wait));
      waiting = null;
      nextAt = performance.now() + ms;
      running = Promise.resolve(run(last));
      await running;
    })();
    return waiting;
  };
}

// A request that succeeds while the stream waits to try again is a reason to try now.
effect(() => {
  if (reachable.value && source?.readyState === EventSource.CLOSED) soon(0);
});
