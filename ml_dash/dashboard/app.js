/** The application: its frame, and the screen that the URL names. */
import { Fragment, classes, computed, effect, html, render, signal, useEffect, useErrorBoundary, useSignal } from "./lib/ui.js";
import { get, loadMe, me } from "./lib/api.js";
import { followKeys, key } from "./lib/keys.js";
import { connection, followVisibility, subscribe, throttled } from "./lib/live.js";
import { followHistory, link, navigate, route } from "./lib/url.js";
import { Empty, Failure, Loading } from "./parts/states.js";

/** @typedef {import("./types").ScreenProps} ScreenProps */
/** @typedef {import("./vendor/preact.js").Component<ScreenProps>} Screen */

/** What the list of runs is made of; the lists of other screens are in lib/ahead.js, which this one does not wait for. */
const RUNS = [
  "lib/colors.js", "lib/fields.js", "lib/format.js", "lib/prefs.js", "parts/grid.js", "parts/querybox.js", "parts/status.js",
  "screens/projects.js", "screens/runs-state.js",
];

/**
 * The screens, by the first part of the path and whether one follows. `menu` is the word in the bar above.
 * @type {{path: string, one?: boolean, menu?: string, title: string, load: () => Promise<{default: Screen}>}[]}
 */
const SCREENS = [
  { path: "runs", menu: "Runs", title: "Runs", load: () => (ahead(RUNS), import("./screens/runs.js")) },
  { path: "runs", one: true, title: "Run", load: () => (ask("RUN", "CHARTS"), import("./screens/run.js")) },
  { path: "compare", menu: "Compare", title: "Compare", load: () => (ask("CHARTS", "COMPARE"), import("./screens/compare.js")) },
  { path: "storage", menu: "Storage", title: "Storage", load: () => import("./screens/storage.js") },
  { path: "login", title: "Log in", load: () => import("./screens/login.js") },
];

/** Asks for the modules of a screen at once. @param {("RUN"|"CHARTS"|"COMPARE")[]} lists */
async function ask(...lists) {
  const found = await import("./lib/ahead.js");
  ahead(lists.flatMap((list) => found[list]));
}

/** @param {string[]} modules  relative to the dashboard */
function ahead(modules) {
  for (const module of modules) {
    const link = document.createElement("link");
    link.rel = "modulepreload";
    link.href = new URL(module, import.meta.url).href;
    document.head.append(link);
  }
}

window.mlDash ??= { chart: () => undefined };

/** The screen that is shown: its module, or why there is none. @type {import("./vendor/preact.js").Signal<{name: string, Screen?: Screen, error?: Error}>} */
const shown = signal({ name: "" });
const failed = signal(/** @type {Error|null} */ (null));

/** @param {string[]} parts */
const screenOf = (parts) => SCREENS.find((one) => one.path === (parts[0] ?? "runs") && Boolean(one.one) === parts.length > 1);

/** @param {typeof SCREENS[0]|undefined} screen */
const nameOf = (screen) => (screen ? `${screen.path}${screen.one ? "/" : ""}` : "");

const latest = computed(() => route.value.parts[0] === "latest");

/** Loads the module of a screen. @param {string[]} parts */
async function show(parts) {
  const screen = screenOf(parts);
  const name = nameOf(screen);
  document.title = screen ? `${screen.title} · ml-dash` : "ml-dash";
  if (!screen) {
    shown.value = { name };
    return;
  }
  if (shown.peek().name === name && shown.peek().Screen) return;
  try {
    const { default: Screen } = await screen.load();
    // The user may have gone on meanwhile.
    if (screenOf(partsNow()) === screen) shown.value = { name, Screen };
  } catch (error) {
    shown.value = { name, error: /** @type {Error} */ (error) };
  }
}

/** The parts of the path, where /latest stands for the newest run. */
function partsNow() {
  const { parts } = route.value;
  return parts[0] === "latest" ? (newest.value ? ["runs", newest.value] : []) : parts;
}

/** The id of the newest run, while /latest is shown; an empty text: there is none. */
const newest = signal(/** @type {string|null} */ (null));

/** Follows the newest run. Renders nothing. */
function Newest() {
  useEffect(() => {
    const look = throttled(1000, async () => {
      try {
        const { experiments } = await get("/experiments", { sort: "created:desc", limit: 1 });
        newest.value = experiments[0]?.id ?? "";
        failed.value = null;
      } catch (error) {
        failed.value = /** @type {Error} */ (error);
      }
    });
    look(null);
    return subscribe(null, () => look(null));
  }, []);
  return null;
}

function App() {
  const { parts, params } = route.value;
  const login = parts[0] === "login";
  return html`<${Fragment}>
    <a class="skip" href="#main">Skip to content</a>
    <${Bar} bare=${login} />
    ${latest.value && html`<${Newest} />`}
    <main id="main" tabindex="-1">
      <${Shown} key=${route.value.path} params=${params} />
    </main>
  <//>`;
}

/** @param {{params: Record<string, string>}} props */
function Shown({ params }) {
  const [broken] = useErrorBoundary((error) => console.error(error));
  if (broken) return html`<${Failure} error=${broken} retry=${() => location.reload()} />`;
  const { Screen, error, name } = shown.value;
  if (failed.value) return html`<${Failure} error=${failed.value} retry=${() => location.reload()} />`;
  if (latest.value && newest.value === "") return html`<${Empty} title="No runs yet" command="ml-dash demo" />`;
  if (error) return html`<${Failure} error=${error} retry=${() => location.reload()} />`;
  // While another is loaded, the one before would be given an address that is not its own.
  if (Screen && name === nameOf(screenOf(partsNow()))) return html`<${Screen} key=${name} parts=${partsNow()} params=${params} />`;
  if (latest.value || screenOf(partsNow())) return html`<${Loading} />`;
  return html`<${Empty} title="There is nothing at this address"><a href=${link("/runs")}>All runs</a><//>`;
}

/** @param {{bare: boolean}} props  `bare`: nobody is logged in */
function Bar({ bare }) {
  const { parts, params } = route.value;
  const here = parts[0] ?? "runs";
  return html`<header class="bar">
    <a class="brand" href=${link("/runs")}>ml-dash</a>
    ${!bare && html`<nav aria-label="Screens">
      ${SCREENS.filter((one) => one.menu).map((one) => html`
        <a href=${link(`/${one.path}`, one.path === "compare" && params.selected ? { runs: params.selected } : {})}
          aria-current=${here === one.path ? "page" : undefined}>${one.menu}</a>`)}
    </nav>`}
    <span class="space"></span>
    ${!bare && html`<${Connection} />`}
    ${!bare && html`<${User} />`}
  </header>`;
}

const MEANING = {
  live: "Changes show as they happen",
  behind: "There is news that is still being fetched",
  offline: "The server does not answer; what is shown may be old. It is tried again all the time.",
};

function Connection() {
  const state = connection.value;
  // At the start nothing is wrong, and nothing is known yet.
  const settled = useSignal(false);
  useEffect(() => {
    const timer = setTimeout(() => { settled.value = true; }, 1500);
    return () => clearTimeout(timer);
  }, []);
  const word = state === "offline" && !settled.value ? "connecting" : state;
  return html`<span role="status" aria-label="Connection" class=${classes("connection", word)} title=${MEANING[state]}>
    <span class="dot" aria-hidden="true"></span>${word}</span>`;
}

function User() {
  const who = me.value;
  if (!who) return null;
  if (who.mode === "local") {
    return html`<span class="user dim" title=${(who.stores ?? []).join("\n")}>local</span>`;
  }
  const namespaces = who.namespaces ?? [];
  return html`<span class="user">
    ${namespaces.length > 1
      ? html`<select aria-label="Namespace" value=${who.namespace} onChange=${(/** @type {any} */ event) => {
          location.href = `/runs?namespace=${encodeURIComponent(event.currentTarget.value)}`;
        }}>${namespaces.map((name) => html`<option value=${name}>${name}</option>`)}</select>`
      : html`<span class="dim">${who.namespace === who.user ? who.user : `${who.user} · ${who.namespace}`}</span>`}
    <form method="post" action="/logout"><button class="quiet">Log out</button></form>
  </span>`;
}

/** Loads who is asking; somebody who is nobody is sent to log in. */
async function begin() {
  try {
    await loadMe();
    failed.value = null;
  } catch (error) {
    const { status } = /** @type {import("./lib/api.js").ApiError} */ (error);
    if (status === 401) navigate("/login", { next: location.pathname + location.search }, { replace: true });
    else failed.value = /** @type {Error} */ (error);
  }
}

followHistory();
followKeys();
followVisibility();
key("?", "this list of keys", async () => (await import("./parts/keyhelp.js")).showKeys());
if (route.value.parts[0] !== "login") begin();
effect(() => {
  const parts = partsNow();
  if (route.value.path === "/") navigate("/runs", route.value.params, { replace: true });
  else show(parts);
});
render(html`<${App} />`, /** @type {Element} */ (document.getElementById("app")));
