/** Changes of one run, each in a dialog: its name and words, its place in the archive, its removal. */
import { del, experimentPath, patch } from "../lib/api.js";
import { html } from "../lib/ui.js";
import { navigate } from "../lib/url.js";
import { FormDialog, open } from "../parts/dialog.js";

/** @typedef {import("../types").ExperimentRecord} ExperimentRecord */

/**
 * @param {ExperimentRecord} record
 * @param {() => void} onChange
 */
export function editRun(record, onChange) {
  const save = async (/** @type {FormData} */ form) => {
    const changes = changed(record, form);
    if (Object.keys(changes).length) await patch(experimentPath(record.id), changes);
    onChange();
  };
  open(
    (close) => html`<${FormDialog} title="Edit the run" action="Save" onClose=${close} save=${save}>
      <label>Name <input name="title" autocomplete="off" value=${record.title ?? record.name} required /></label>
      <label>Description <input name="description" autocomplete="off" value=${record.description ?? ""} /></label>
      <label>Tags, with commas between <input name="tags" autocomplete="off" value=${(record.tags ?? []).join(", ")} /></label>
      <label>Folder <input name="folder" autocomplete="off" value=${record.folder ?? ""} /></label>
      <label>Notes, in Markdown <textarea name="notes" rows="8">${record.notes ?? ""}</textarea></label>
    <//>`,
  );
}

/**
 * What the form says otherwise than the record.
 * @param {ExperimentRecord} record
 * @param {FormData} form
 */
export function changed(record, form) {
  const text = (/** @type {string} */ name) => String(form.get(name) ?? "");
  const tags = [...new Set(text("tags").split(",").map((tag) => tag.trim()).filter(Boolean))];
  /** @type {Record<string, unknown>} */
  const changes = {};
  if (text("title").trim() !== (record.title ?? record.name)) changes.title = text("title").trim();
  if (text("description") !== (record.description ?? "")) changes.description = text("description");
  if (text("folder") !== (record.folder ?? "")) changes.folder = text("folder");
  if (text("notes") !== (record.notes ?? "")) changes.notes = text("notes");
  if (tags.join("\n") !== (record.tags ?? []).join("\n")) changes.tags = tags;
  return changes;
}

/**
 * @param {ExperimentRecord} record
 * @param {() => void} onChange
 */
export function changeArchived(record, onChange) {
  const save = async () => {
    await patch(experimentPath(record.id), { archived: !record.archived });
    onChange();
  };
  const [title, action] = record.archived ? ["Take this run out of the archive", "Take out"] : ["Archive this run", "Archive"];
  open(
    (close) => html`<${FormDialog} title=${title} action=${action} onClose=${close} save=${save}>
      <p>${record.archived ? "Lists show it again." : "Nothing is removed. Lists leave it out, unless a query names archived."}</p>
    <//>`,
  );
}

/** @param {ExperimentRecord} record */
export function removeRun(record) {
  const save = async () => {
    await del(experimentPath(record.id));
    navigate("/runs");
  };
  open(
    (close) => html`<${FormDialog} title="Delete this run" action="Delete" danger typed=${record.title ?? record.name} onClose=${close} save=${save}>
      <p>Its points, logs, parameters and files are removed. This cannot be undone.</p>
    <//>`,
  );
}
