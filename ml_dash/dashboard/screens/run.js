/** One run: what it is and how it ended, and its charts, logs, files, parameters and timeline, also as of a moment. */
import { experimentPath, get, me } from "../lib/api.js";
import { colorOf } from "../lib/colors.js";
import { ago, count, counted, duration, time } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { subscribe, throttled } from "../lib/live.js";
import { pref } from "../lib/prefs.js";
import { stylesheet } from "../lib/stylesheet.js";
import { html, useEffect, useMemo, useState } from "../lib/ui.js";
import { link, navigate, route, setParams } from "../lib/url.js";
import { Markdown } from "../parts/markdown.js";
import { Menu } from "../parts/menu.js";
import { Empty, Failure, Loading } from "../parts/states.js";
import { Status, reasonOf } from "../parts/status.js";
import { Tabs } from "../parts/tabs.js";
import { visible } from "../parts/loglines.js";
import { changeArchived, editRun, removeRun } from "./run-edit.js";
import { preload, Tab, TABS } from "./run-tabs.js";

/** @typedef {import("../types").ExperimentRecord} ExperimentRecord */

const RELOAD_MS = 500;
// An acknowledgement is no event of the run, so it is asked for.
const UPLOAD_MS = 3000;
const notesOpen = pref("run.notes", true);
// What a narrow page leaves out.
const LESS = new Set(["Versions", "Writers"]);

/** @param {import("../types").ScreenProps} props */
export default function RunScreen({ parts, params }) {
  const id = parts[1];
  // Another run is another screen: nothing of the one before may stay.
  return html`<${Run} key=${id} id=${id} asOf=${params.asOf || null} tab=${params.tab || "charts"} />`;
}

/** @param {{id: string, asOf: string | null, tab: string}} props */
function Run({ id, asOf, tab }) {
  const styled = stylesheet("run.css").value;
  useMemo(() => preload(tab), []);
  const { record, error, removed, again } = useRecord(id, asOf);
  useKeys(TABS.map(({ name, text }, index) => [String(index + 1), text, () => navigate(route.peek().path, { tab: name, asOf })]));
  useEffect(() => {
    if (record) document.title = `${nameOf(record)} · ml-dash`;
  }, [record?.title, record?.name]);
  if (removed) return html`<${Empty} title="This run was removed"><a href=${link("/runs")}>All runs</a><//>`;
  if (error && !(record && error.status === 0)) return html`<${Failure} error=${error} retry=${again} />`;
  if (styled instanceof Error) return html`<${Failure} error=${styled} retry=${() => location.reload()} />`;
  // Without its styles a list has no end in sight: it would draw, and ask for, all of its rows.
  if (!record || !styled) return html`<${Loading} what="Loading the run" />`;
  return html`<article class="run">
    <${Header} record=${record} asOf=${asOf} onChange=${again} />
    ${asOf ? html`<${AsOf} record=${record} asOf=${asOf} />` : null}
    <${Tabs}
      label="Parts of the run"
      chosen=${TABS.some((one) => one.name === tab) ? tab : "charts"}
      tabs=${TABS.map((one) => ({ name: one.name, text: one.text, count: tabCount(record, one.counted) }))}
      onChoose=${(/** @type {string} */ name) => navigate(route.peek().path, { tab: name, asOf })}
    >
      <${Tab} name=${tab} id=${id} record=${record} asOf=${asOf} />
    <//>
  </article>`;
}

/**
 * @param {ExperimentRecord} record
 * @param {string | null} name
 */
function tabCount(record, name) {
  const number = name === null ? undefined : record.counts[name];
  return number === undefined ? undefined : count(number);
}

/**
 * The record of a run, as of a moment or as it is now; then it follows each change.
 * @param {string} id
 * @param {string | null} asOf
 */
function useRecord(id, asOf) {
  const [known, setKnown] = useState(
    /** @type {{record: ExperimentRecord | null, error: any, removed: boolean}} */ ({ record: null, error: null, removed: false }),
  );
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    let timer = 0;
    const load = async () => {
      try {
        /** @type {ExperimentRecord} */
        const record = await get(experimentPath(id), { asOf }, { signal: stop.signal });
        setKnown({ record, error: null, removed: false });
        clearTimeout(timer);
        if (record.uploads?.some((upload) => !upload.complete)) timer = setTimeout(load, UPLOAD_MS);
      } catch (error) {
        if (!stop.signal.aborted) setKnown((was) => ({ ...was, error }));
      }
    };
    load();
    const soon = throttled(RELOAD_MS, load);
    const leave = subscribe([id], (news) => {
      // What was stays as it was.
      if (!news.removed.includes(id)) return asOf ? undefined : soon(null);
      // One that never was is told by the answer to the request.
      setKnown((was) => (was.record ? { record: null, error: null, removed: true } : was));
    });
    return () => {
      leave();
      stop.abort();
      clearTimeout(timer);
    };
  }, [id, asOf, attempt]);
  return { ...known, again: () => setAttempt((number) => number + 1) };
}

/** @param {ExperimentRecord} record */
const nameOf = (record) => record.title ?? record.name;

/** @param {{record: ExperimentRecord, asOf: string | null, onChange: () => void}} props */
function Header({ record, asOf, onChange }) {
  const can = me.value?.can;
  const may = { edit: !asOf && (can?.edit ?? false), archive: !asOf && (can?.archive ?? false), remove: !asOf && (can?.remove ?? false) };
  const items = [
    may.edit && { text: "Edit…", run: () => editRun(record, onChange) },
    may.archive && { text: record.archived ? "Take out of the archive" : "Archive", run: () => changeArchived(record, onChange) },
    may.remove && { text: "Delete…", danger: true, run: () => removeRun(record) },
  ].filter(Boolean);
  return html`<header class="run-header">
    <div class="run-title">
      <span class="run-color" style=${{ background: colorOf(record.id) }} aria-hidden="true"></span>
      <h1 class="name">${visible(nameOf(record))}</h1>
      <span role="status" aria-label="Status of the run">
        <${Status} status=${record.status} reason=${reasonOf(record)} short=${Boolean(record.error)} />
      </span>
      ${record.archived ? html`<span class="tag">archived</span>` : null}
      <span class="space"></span>
      <span class="run-actions">
        <a href=${link("/compare", { runs: record.id })}>Compare</a>
        ${items.length ? html`<${Menu} label="Change" name="Change this run" items=${items} right />` : null}
      </span>
    </div>
    <p class="run-place dim">
      <a href=${link("/runs", { project: record.project })}>${visible(record.project)}</a>
      ${record.folder ? html` · ${visible(record.folder)}` : null}
      ${record.title ? html` · recorded as <span class="name">${visible(record.name)}</span>` : null}
      ${(record.tags ?? []).map((tag) => html` <a class="tag" href=${link("/runs", { where: `tag:${quoted(tag)}` })}>${visible(tag)}</a>`)}
    </p>
    ${record.description ? html`<p class="run-description">${visible(record.description)}</p>` : null}
    <${Facts} record=${record} asOf=${asOf} />
    <${Problem} record=${record} />
    ${record.notes ? html`<${Notes} text=${record.notes} />` : null}
  </header>`;
}

/** A text as a query has it: in quotes unless it is a plain word. @param {string} text */
const quoted = (text) => (/^[\w.-]+$/.test(text) ? text : JSON.stringify(text));

/** @param {{record: ExperimentRecord, asOf: string | null}} props */
function Facts({ record, asOf }) {
  const { last, hosts } = useMemo(() => placeOf(record), [record]);
  const commit = /** @type {string | undefined} */ (last?.gitCommit);
  const branch = /** @type {string | undefined} */ (last?.gitBranch);
  const sessions = record.writersTotal ?? record.writers.length;
  /** @type {[string, any][]} */
  const facts = [
    ["Started", record.createdAt && html`<time datetime=${record.createdAt} title=${record.createdAt}>${time(record.createdAt)}</time>`],
    ["Duration", record.createdAt && html`<${Lasting} record=${record} asOf=${asOf} />`],
    ["Host", hosts.length ? html`<span title=${hosts.join("\n")}>${visible(hosts[0])}${hosts.length > 1 ? ` +${hosts.length - 1}` : ""}</span>` : null],
    ["Commit", commit && html`<span class="mono" title=${commit}>${commit.slice(0, 10)}</span>${branch ? ` on ${visible(branch)}` : ""}`],
    ["Command", last?.script && html`<code title=${last.script}>python ${visible(String(last.script))}</code>`],
    ["Versions", last?.python && `Python ${visible(String(last.python))}, ml-dash ${visible(String(last.mlDash ?? "?"))}`],
    ["Writers", sessions > 1 && `${count(sessions)} processes`],
    ["Safe", html`<${Proof} record=${record} />`],
  ];
  return html`<dl class="facts">${facts.map(
    ([name, shown]) => shown && html`<div key=${name} class=${LESS.has(name) ? "less" : ""}><dt>${name}</dt><dd>${shown}</dd></div>`,
  )}</dl>`;
}

/**
 * The process that began last, and the hosts of all that are known, the newest first.
 * @param {ExperimentRecord} record
 */
function placeOf(record) {
  const newest = [...record.writers].reverse();
  const hosts = [...new Set(newest.map((writer) => writer.host).filter((host) => host !== undefined))];
  return { last: newest.find((writer) => !writer.child) ?? newest[0], hosts };
}

/** How long it lasts; of a running one it ticks. @param {{record: ExperimentRecord, asOf: string | null}} props */
function Lasting({ record, asOf }) {
  const [now, setNow] = useState(Date.now());
  const running = record.status === "running" && !asOf;
  useEffect(() => {
    if (!running) return;
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [running]);
  const end = record.endedAt ? Date.parse(record.endedAt) : running ? Math.max(now, Date.parse(record.updatedAt)) : Date.parse(record.updatedAt);
  return html`<span title=${record.endedAt ? `ended ${time(record.endedAt)}` : undefined}>
    ${duration(Math.max(0, end - Date.parse(record.createdAt)) / 1000)}
  </span>`;
}

/** What is stored, where, and since when nothing was heard. @param {{record: ExperimentRecord}} props */
function Proof({ record }) {
  const events = counted(record.counts.events, "event");
  const lost = record.counts.lost ?? 0;
  const missing = record.writers.reduce((sum, writer) => sum + missingOf(writer), 0);
  const place = me.value?.mode === "local" ? "in the journal on this machine" : "stored on the server";
  const heard = record.heardAt ?? record.updatedAt;
  return html`<span>${events} ${place}${heard ? html`, <span title=${heard}>last heard ${ago(heard)}</span>` : null}</span>
    ${missing ? html`<span class="warn"> · ${counted(missing, "event")} not here yet</span>` : null}
    ${lost ? html`<span class="warn"> · ${counted(lost, "event")} lost</span>` : null}
    ${(record.uploads ?? []).map((upload) => html`<${Acknowledged} key=${`${upload.remote} ${upload.user}`} upload=${upload} />`)}`;
}

/** What a server has of a run on this machine, as the uploader knows it. @param {{upload: import("../types").Upload}} props */
function Acknowledged({ upload }) {
  const { remote, complete, acknowledged, waitingFiles, reason } = upload;
  const files = waitingFiles ? `, ${counted(waitingFiles, "file")} to send` : "";
  const what = `${complete ? "all" : count(acknowledged)} acknowledged by ${remote.replace(/^https?:\/\//, "")}${files}`;
  return html`<span title="As the uploader was told. To compare digests: ml-dash sync status"> · ${visible(what)}</span>
    ${reason ? html`<span class="warn"> · ${visible(reason)}</span>` : null}`;
}

/** Events of a writer that others say there are, and that are not here. @param {import("../types").Writer} writer */
function missingOf(writer) {
  const ranges = /** @type {[number, number][] | undefined} */ (writer.missing) ?? [];
  return ranges.reduce((sum, [first, end]) => sum + end - first + 1, 0);
}

/** What ended it: the exception in a line, its traceback on demand. @param {{record: ExperimentRecord}} props */
function Problem({ record }) {
  const error = /** @type {{type?: string, message?: string, traceback?: string} | null} */ (record.error);
  if (!error) return null;
  const line = [error.type, error.message].filter(Boolean).join(": ");
  if (!error.traceback) return html`<p class="run-error"><b>${visible(line)}</b></p>`;
  return html`<details class="run-error">
    <summary><b>${visible(line.slice(0, 500))}</b></summary>
    <pre tabindex="0" aria-label="Traceback">${visible(error.traceback)}</pre>
  </details>`;
}

/** @param {{text: string}} props */
function Notes({ text }) {
  const toggled = (/** @type {Event} */ event) => {
    notesOpen.value = /** @type {HTMLDetailsElement} */ (event.currentTarget).open;
  };
  return html`<details class="run-notes" open=${notesOpen.value} onToggle=${toggled}>
    <summary>Notes</summary>
    <div class="run-notes-text" tabindex="0" role="region" aria-label="Notes"><${Markdown} text=${text} /></div>
  </details>`;
}

/** @param {{record: ExperimentRecord, asOf: string}} props */
function AsOf({ record, asOf }) {
  const moment = /^\d+$/.test(asOf) ? `event ${count(Number(asOf))}` : asOf;
  return html`<p class="as-of">
    As of ${moment}${record.updatedAt ? html` · ${time(record.updatedAt)}` : null} · ${counted(record.counts.events, "event")}
    <button onClick=${() => setParams({ asOf: null })}>Back to now</button>
  </p>`;
}
