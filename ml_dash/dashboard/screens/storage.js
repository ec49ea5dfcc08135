/** What is stored, what could be freed, and what is in the way: of this store or server. */
import { get, me } from "../lib/api.js";
import { ago, bytes, count, counted, time } from "../lib/format.js";
import { subscribe, throttled } from "../lib/live.js";
import { stylesheet } from "../lib/stylesheet.js";
import { html, useEffect, useState } from "../lib/ui.js";
import { link } from "../lib/url.js";
import { visible } from "../parts/loglines.js";
import { Command, Empty, Failure, Loading } from "../parts/states.js";

/** @typedef {import("../types").Storage} Stored */

const RELOAD_MS = 10_000;

export default function StorageScreen() {
  stylesheet("run.css");
  const [known, setKnown] = useState(/** @type {{storage: Stored | null, error: any}} */ ({ storage: null, error: null }));
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    const load = async () => {
      try {
        setKnown({ storage: await get("/storage", {}, { signal: stop.signal }), error: null });
      } catch (error) {
        if (!stop.signal.aborted) setKnown((was) => ({ ...was, error }));
      }
    };
    load();
    const soon = throttled(RELOAD_MS, load);
    const leave = subscribe(null, () => {
      // Nobody waits for it: a page that shows sizes of some seconds ago is not behind.
      soon(null);
    });
    return () => {
      leave();
      stop.abort();
    };
  }, [attempt]);
  const { storage, error } = known;
  if (error && !storage) return html`<${Failure} error=${error} retry=${() => setAttempt(attempt + 1)} />`;
  if (!storage) return html`<${Loading} what="Counting what is stored" />`;
  const freeable = storage.projects.reduce((sum, project) => sum + project.freeableBytes, 0);
  const local = me.value?.mode === "local";
  return html`<article class="storage">
    <h1>Storage</h1>
    <dl class="facts">
      <div><dt>Kept</dt><dd>${bytes(storage.totalBytes)}</dd></div>
      <div><dt>Safe to free</dt><dd>${bytes(freeable)}</dd></div>
      <div><dt>Quota</dt><dd>${storage.quota ? html`<${Quota} ...${storage.quota} />` : "none"}</dd></div>
      <div><dt>Last check</dt><dd>${
        storage.lastVerify ? html`<span title=${time(storage.lastVerify.at)}>${visible(storage.lastVerify.result)}, ${ago(storage.lastVerify.at)}</span>` : "never"
      }</dd></div>
      <div><dt>Uploader</dt><dd>${storage.uploader ? `${storage.uploader.state}: ${visible(storage.uploader.text)}` : "none here"}</dd></div>
    </dl>
    ${local && freeable ? html`<p>What the server has as well can be freed here:</p><${Command} text="ml-dash gc" />` : null}
    ${local && !storage.lastVerify ? html`<p>To check that all of it can be read:</p><${Command} text="ml-dash verify" />` : null}
    <${Parked} parked=${storage.parked} />
    <${Projects} projects=${storage.projects} total=${storage.totalBytes} />
  </article>`;
}

/** @param {{used: number, limit: number}} props */
function Quota({ used, limit }) {
  const share = Math.min(1, used / Math.max(1, limit));
  return html`<span>${bytes(used)} of ${bytes(limit)}
    <meter min="0" max="1" high="0.9" value=${share} aria-label="Share of the quota">${Math.round(share * 100)} %</meter></span>`;
}

/** @param {{parked: Stored["parked"]}} props */
function Parked({ parked }) {
  if (!parked.length) return null;
  return html`<section aria-label="Parked data" class="parked">
    <h2>${counted(parked.length, "parked part")}</h2>
    <p>The server has refused these. They are kept on this machine, and tried again:</p>
    <ul>${parked.map(
      (one) => html`<li><a href=${link(`/runs/${encodeURIComponent(one.experiment)}`)}>${visible(one.experiment)}</a>
        <span class="warn"> ${visible(one.reason)}</span> <span class="dim">since ${ago(one.since)}</span></li>`,
    )}</ul>
    <${Command} text="ml-dash push" />
  </section>`;
}

/** @param {{projects: Stored["projects"], total: number}} props */
function Projects({ projects, total }) {
  if (!projects.length) return html`<${Empty} title="Nothing is stored yet" command="ml-dash demo" />`;
  const largest = [...projects].sort((a, b) => b.bytes - a.bytes);
  return html`<div class="table-scroll" tabindex="0" role="region" aria-label="Projects by size"><table>
    <thead><tr><th scope="col">Project</th><th scope="col" class="number">Runs</th><th scope="col" class="number">Kept</th>
      <th scope="col" class="number">Share</th><th scope="col" class="number">Safe to free</th></tr></thead>
    <tbody>${largest.map(
      (project) => html`<tr key=${project.name}>
        <th scope="row"><a href=${link("/runs", { project: project.name })}>${visible(project.name)}</a></th>
        <td class="number">${count(project.experiments)}</td>
        <td class="number">${bytes(project.bytes)}</td>
        <td class="number">${total ? `${((project.bytes / total) * 100).toFixed(1)} %` : ""}</td>
        <td class="number">${bytes(project.freeableBytes)}</td>
      </tr>`,
    )}</tbody>
  </table></div>`;
}
