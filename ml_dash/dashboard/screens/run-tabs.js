/** The tabs of a run: each loads its module when it is first shown, and keeps it. */
import { html, useEffect, useState } from "../lib/ui.js";
import { Failure, Loading } from "../parts/states.js";

/**
 * What each tab is given: `record` is the run as of `asOf`.
 * @typedef {{id: string, record: import("../types").ExperimentRecord, asOf: string | null}} TabProps
 */

/**
 * In the order in which they stand. `counted` is what of the record's counts stands beside the name.
 * @type {{name: string, text: string, counted: string | null, load: () => Promise<{default: any}>}[]}
 */
export const TABS = [
  { name: "charts", text: "Charts", counted: "metrics", load: () => import("./run-charts.js") },
  { name: "logs", text: "Logs", counted: "logs", load: () => import("./run-logs.js") },
  { name: "files", text: "Files", counted: "files", load: () => import("./run-files.js") },
  { name: "parameters", text: "Parameters", counted: "parameters", load: () => import("./run-parameters.js") },
  { name: "timeline", text: "Timeline", counted: null, load: () => import("./run-timeline.js") },
];

/** @type {Map<string, any>} */
const loaded = new Map();

/** @param {string} name */
const tabOf = (name) => TABS.find((one) => one.name === name) ?? TABS[0];

/** Begins to load a tab that will be shown. @param {string} name */
export function preload(name) {
  const tab = tabOf(name);
  // A failure is told where the tab is shown, which asks again.
  tab.load().then((module) => loaded.set(tab.name, module.default), () => {});
}

/** @param {TabProps & {name: string}} props */
export function Tab({ name, id, record, asOf }) {
  const tab = tabOf(name);
  const [, setDrawn] = useState(0);
  const [error, setError] = useState(/** @type {Error | null} */ (null));
  const Shown = loaded.get(tab.name);
  useEffect(() => {
    // Not whether it is loaded by now: it may have come since this was drawn.
    if (Shown) return;
    let left = false;
    setError(null);
    tab.load().then(
      (module) => {
        loaded.set(tab.name, module.default);
        if (!left) setDrawn((number) => number + 1);
      },
      (failure) => left || setError(failure),
    );
    return () => {
      left = true;
    };
  }, [tab.name]);
  if (error) return html`<${Failure} error=${error} retry=${() => location.reload()} />`;
  return Shown ? html`<${Shown} key=${`${tab.name} ${id}`} id=${id} record=${record} asOf=${asOf} />` : html`<${Loading} />`;
}
