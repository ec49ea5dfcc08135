/** The projects at the side of the runs, with how many runs each has, and how many run now. */
import { classes, html, useLayoutEffect, useSignal } from "../lib/ui.js";
import { get } from "../lib/api.js";
import { conditionOn, withCondition } from "../lib/fields.js";
import { count } from "../lib/format.js";
import { subscribe, throttled } from "../lib/live.js";

/** @typedef {import("../types").Project} Project */

const REFRESH_MS = 2000;

/**
 * `where`: the filter, of which a project may be a part; `ready`: what is more urgent is there.
 * @param {{where: string, ready: boolean, onChoose: (where: string) => void}} props
 */
export function Projects({ where, ready, onChoose }) {
  const projects = useSignal(/** @type {Project[]} */ ([]));
  useLayoutEffect(() => {
    if (!ready) return undefined;
    const look = throttled(REFRESH_MS, async () => {
      // What is wrong with the server, the list of runs says.
      projects.value = await get("/projects").then((answer) => answer.projects, () => projects.peek());
    });
    look(null);
    return subscribe(null, () => look(null));
  }, [ready]);
  const here = conditionOn(where, "project");
  const running = projects.value.reduce((sum, one) => sum + (one.running ?? 0), 0);
  const all = projects.value.reduce((sum, one) => sum + one.experiments, 0);
  const isRunning = conditionOn(where, "status") === "running" && where.trim() === "status = running";
  const choose = (/** @type {string|undefined} */ name) => onChoose(withCondition(where, "project", name));
  return html`<nav class="projects" aria-label="Projects">
    <ul>
      <${Entry} text="All runs" number=${all} here=${where === ""} run=${() => onChoose("")} />
      ${(running > 0 || isRunning) && html`<${Entry} text="Running now" number=${running} here=${isRunning} lively=${running > 0} run=${() => onChoose("status = running")} />`}
    </ul>
    <h2 class="dim">Projects</h2>
    <ul>${projects.value.map((one) => html`<${Entry} key=${one.name} text=${one.name} number=${one.experiments} here=${here === one.name}
      run=${() => choose(here === one.name ? undefined : one.name)} />`)}</ul>
    <label class="inline"><span class="hidden">Project</span><select value=${here ?? ""} onChange=${(/** @type {any} */ event) => choose(event.currentTarget.value || undefined)}>
      <option value="">All projects</option>
      ${projects.value.map((one) => html`<option value=${one.name}>${one.name} (${count(one.experiments)})</option>`)}
    </select></label>
  </nav>`;
}

/** @param {{text: string, number: number, here: boolean, lively?: boolean, run: () => void}} props */
function Entry({ text, number, here, lively, run }) {
  return html`<li><button class="quiet" aria-pressed=${here} onClick=${run} title=${text}>
    ${lively && html`<span class="dot" aria-hidden="true"></span>`}<span class="cut">${text}</span><span class=${classes("number", "dim")}>${count(number)}</span></button></li>`;
}
