/** The dialog of saved views: a name for what the URL of a screen holds, kept in this browser. */
import { html, useSignal } from "../lib/ui.js";
import { removeView, saveView, views } from "../lib/prefs.js";
import { link, route } from "../lib/url.js";
import { Dialog, open } from "../parts/dialog.js";

export function showViews() {
  open((close) => html`<${Views} onClose=${close} />`);
}

/** @param {{onClose: () => void}} props */
function Views({ onClose }) {
  const name = useSignal("");
  const { path, params } = route.value;
  const { selected, ...kept } = params;
  const mine = views.value.filter((view) => view.path === path);
  const save = (/** @type {Event} */ event) => {
    event.preventDefault();
    saveView({ name: name.value.trim(), path, params: kept });
    name.value = "";
  };
  return html`<${Dialog} title="Saved views" onClose=${onClose}>
    ${mine.length === 0 && html`<p class="dim">Filter, columns, order and grouping as they are now can be kept under a name. The address of the page holds them too: to show them to others, send that.</p>`}
    <ul class="plain">${mine.map((view) => html`<li key=${view.name}>
      <a class="cut" href=${link(view.path, view.params)} onClick=${() => setTimeout(onClose)}>${view.name}</a>
      <button class="quiet" aria-label=${`Forget ${view.name}`} onClick=${() => removeView(view)}>✕</button></li>`)}</ul>
    <form class="inline" onSubmit=${save}>
      <input aria-label="Name of the view" placeholder="Name of this view" required value=${name} onInput=${(/** @type {any} */ event) => { name.value = event.currentTarget.value; }} />
      <button class="primary">Save</button>
    </form>
  <//>`;
}
