/** The runs, as a list that is always up to date. */
import { html, useEffect, useSignal } from "../lib/ui.js";
import { get } from "../lib/api.js";
import { ago } from "../lib/format.js";
import { subscribe, throttled } from "../lib/live.js";
import { link } from "../lib/url.js";
import { Failure, Loading } from "../parts/states.js";
import { Status } from "../parts/status.js";

export default function Runs() {
  const page = useSignal(/** @type {import("../types").RunsPage|null} */ (null));
  const error = useSignal(/** @type {Error|null} */ (null));
  useEffect(() => {
    const look = throttled(1000, async () => {
      try {
        page.value = await get("/experiments", { limit: 100 });
        error.value = null;
      } catch (failed) {
        error.value = /** @type {Error} */ (failed);
      }
    });
    look(null);
    return subscribe(null, () => look(null));
  }, []);
  if (error.value) return html`<${Failure} error=${error.value} />`;
  if (!page.value) return html`<${Loading} />`;
  return html`<ul>${page.value.experiments.map((run) => html`<li key=${run.id}>
    <a href=${link(`/runs/${encodeURIComponent(run.id)}`)}>${run.name}</a> <${Status} status=${run.status} reason=${run.reason} />
    ${" "}<span class="dim">${ago(run.updatedAt)}</span></li>`)}</ul>`;
}
