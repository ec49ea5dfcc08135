/** What is done with selected runs: tags, description, title, archive, deletion. */
import { html } from "../lib/ui.js";
import { del, experimentPath, get, patch } from "../lib/api.js";
import { counted } from "../lib/format.js";
import { FormDialog, open } from "../parts/dialog.js";

/** @typedef {import("../types").Run} Run */
/** @typedef {import("./runs-state.js").RunsList} RunsList */

const AT_ONCE = 6;

/**
 * Shows the dialog of an action.
 * @param {string} action
 * @param {string[]} ids
 * @param {RunsList} list
 * @param {() => void} clear  selects nothing
 */
export async function actOn(action, ids, list, clear) {
  const runs = await Promise.all(ids.map((id) => list.rows().find((run) => run.id === id) ?? get(experimentPath(id))));
  const what = runs.length === 1 ? nameOf(/** @type {Run} */ (runs[0])) : counted(runs.length, "run");
  const dialog = { tag: Tag, rename: Rename, describe: Describe, archive: Archive, delete: Delete }[action];
  if (dialog) open((close) => html`<${dialog} runs=${runs} what=${what} list=${list} clear=${clear} onClose=${close} />`);
}

/** @typedef {{runs: Run[], what: string, list: RunsList, clear: () => void, onClose: () => void}} Props */

/** @param {Run} run */
const nameOf = (run) => run.title ?? run.name;

/**
 * Does something with each run, a few at a time. The first error ends it.
 * @param {Run[]} runs
 * @param {(run: Run) => Promise<void>} work
 */
async function each(runs, work) {
  const rest = [...runs];
  const worker = async () => {
    for (let run = rest.shift(); run; run = rest.shift()) await work(run);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

/** @param {RunsList} list @param {Run} run @param {Partial<Run>} changes */
async function change(list, run, changes) {
  await patch(experimentPath(run.id), changes);
  list.put({ id: run.id, ...changes });
}

/** @param {Props} props */
function Tag({ runs, what, list, onClose }) {
  const common = runs.map((run) => run.tags ?? []).reduce((a, b) => a.filter((tag) => b.includes(tag)));
  const words = (/** @type {FormDataEntryValue|null} */ text) => String(text ?? "").split(",").map((tag) => tag.trim()).filter(Boolean);
  const save = async (/** @type {FormData} */ form) => {
    const now = words(form.get("tags"));
    const gone = common.filter((tag) => !now.includes(tag));
    await each(runs, (run) => change(list, run, { tags: [...new Set([...(run.tags ?? []).filter((tag) => !gone.includes(tag)), ...now])] }));
    await list.refresh();
  };
  return html`<${FormDialog} title=${`Tags of ${what}`} action="Save" onClose=${onClose} save=${save}>
    <label>Tags, with commas between them${runs.length > 1 && html`<span class="dim"> (those that all of them have)</span>`}
      <input name="tags" value=${common.join(", ")} autocomplete="off" autofocus /></label>
  <//>`;
}

/** @param {Props} props */
function Rename({ runs, list, onClose }) {
  const run = /** @type {Run} */ (runs[0]);
  const save = async (/** @type {FormData} */ form) => {
    await change(list, run, { title: String(form.get("title")).trim() || null });
    await list.refresh();
  };
  return html`<${FormDialog} title="Rename" action="Rename" onClose=${onClose} save=${save}>
    <label>New name <input name="title" value=${nameOf(run)} autocomplete="off" autofocus /></label>
    <p class="dim">It was recorded as <span class="name">${run.name}</span>, and that still finds it.</p>
  <//>`;
}

/** @param {Props} props */
function Describe({ runs, what, list, onClose }) {
  const run = /** @type {Run} */ (runs[0]);
  const save = (/** @type {FormData} */ form) =>
    change(list, run, { description: String(form.get("description")).trim() || null, notes: String(form.get("notes")).trim() || null });
  return html`<${FormDialog} title=${`Description of ${what}`} action="Save" onClose=${onClose} save=${save}>
    <label>Description <input name="description" value=${run.description ?? ""} autocomplete="off" autofocus /></label>
    <label>Notes (Markdown) <textarea name="notes" rows="8" value=${run.notes ?? ""}></textarea></label>
  <//>`;
}

/** @param {Props} props */
function Archive({ runs, what, list, clear, onClose }) {
  const back = runs.every((run) => run.archived);
  const save = async () => {
    await each(runs, (run) => change(list, run, { archived: !back }));
    clear();
    await list.refresh();
  };
  return html`<${FormDialog} title=${back ? `Bring ${what} back` : `Archive ${what}`} action=${back ? "Bring back" : "Archive"} onClose=${onClose} save=${save}>
    <p>${back ? "They are listed again." : html`Nothing is deleted. Archived runs are left out of lists; the filter <code>archived = true</code> shows them.`}</p>
  <//>`;
}

/** @param {Props} props */
function Delete({ runs, what, list, clear, onClose }) {
  const save = async () => {
    await each(runs, async (run) => {
      await del(experimentPath(run.id));
    });
    clear();
    await list.refresh();
  };
  return html`<${FormDialog} title=${`Delete ${what}`} action="Delete" danger typed=${runs.length === 1 ? /** @type {Run} */ (runs[0]).name : `delete ${what}`} onClose=${onClose} save=${save}>
    <p>Logs, metrics, parameters and files of ${runs.length === 1 ? "this run" : "these runs"} are deleted. This cannot be undone.</p>
  <//>`;
}
