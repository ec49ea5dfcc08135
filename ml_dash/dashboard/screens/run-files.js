/** The files of a run: a tree, and what one of them is and holds. */
import { address, experimentPath, get } from "../lib/api.js";
import { CopyButton } from "../lib/clipboard.js";
import { ago, bytes, counted, time } from "../lib/format.js";
import { useKeys } from "../lib/keys.js";
import { html, useEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { route, setParams } from "../lib/url.js";
import { visible } from "../parts/loglines.js";
import { Preview } from "../parts/preview.js";
import { Empty, Failure, Loading } from "../parts/states.js";
import { fileNodes, foldersOf, Tree, valueNodes } from "../parts/tree.js";

/**
 * @typedef {{id: string, prefix: string, filename: string, description: string | null, tags: string[] | null,
 *   contentType: string, sizeBytes: number, checksum: string, metadata: Record<string, unknown> | null,
 *   uploadedAt: string, updatedAt: string}} FileRecord
 */

/** @param {import("./run-tabs.js").TabProps} props */
export default function Files({ id, record, asOf }) {
  const { files, error, again } = useFiles(id, asOf, record.counts.files ?? 0, record.updatedAt);
  const [words, setWords] = useState("");
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  useKeys([["/", "find a file", () => input.current?.focus()]]);
  const chosen = route.value.params.file ?? "";
  const file = useMemo(() => files?.find((one) => one.id === chosen) ?? null, [files, chosen]);
  const found = useMemo(() => (files ? matching(files, words) : []), [files, words]);
  const nodes = useMemo(() => fileNodes(found, (/** @type {FileRecord} */ one) => bytes(one.sizeBytes)), [found]);
  if (error && !files) return html`<${Failure} error=${error} retry=${again} />`;
  if (!files) return html`<${Loading} what="Loading the files" />`;
  if (!files.length) return html`<${Empty} title="No files" command='experiment.file(file_path="model.pt", prefix="/models").save()' />`;
  const size = found.reduce((sum, one) => sum + one.sizeBytes, 0);
  const folders = file ? foldersOf(file) : [];
  return html`<section class=${`files${file ? " chosen" : ""}`} aria-label="Files">
    <div class="files-list">
      <input ref=${input} type="search" aria-label="Find a file" placeholder="Find a file" spellcheck=${false} value=${words}
        onInput=${(/** @type {any} */ event) => setWords(event.currentTarget.value)} />
      <${Tree}
        key=${words ? "found" : "all"}
        nodes=${nodes}
        label="Files"
        selected=${chosen}
        onSelect=${(/** @type {{id: string}} */ node) => setParams({ file: node.id })}
        initiallyOpen=${words || files.length <= 200 ? allFolders(found) : folders}
      />
      <p class="dim">${counted(found.length, "file")}, ${bytes(size)}</p>
    </div>
    <div class="files-one">
      ${file ? html`<${One} key=${file.id} id=${id} file=${file} asOf=${asOf} />` : html`<p class="dim files-hint">Choose a file to look into it.</p>`}
    </div>
  </section>`;
}

/**
 * @param {string} id
 * @param {string | null} asOf
 * @param {number} number of files; another one, or another time of change, is a reason to ask again
 * @param {string} updatedAt
 */
function useFiles(id, asOf, number, updatedAt) {
  const [known, setKnown] = useState(/** @type {{files: FileRecord[] | null, error: any}} */ ({ files: null, error: null }));
  const [attempt, setAttempt] = useState(0);
  // Points come all the time, and files rarely: only a change of their number is followed.
  useEffect(() => {
    const stop = new AbortController();
    get(experimentPath(id, "files"), { asOf }, { signal: stop.signal }).then(
      (answer) => setKnown({ files: answer.files, error: null }),
      (error) => stop.signal.aborted || setKnown((was) => ({ ...was, error })),
    );
    return () => stop.abort();
  }, [id, asOf, number, attempt, asOf ? "" : updatedAt.slice(0, 16)]);
  return { ...known, again: () => setAttempt(attempt + 1) };
}

/**
 * The files whose path, tags or description have all the words.
 * @param {FileRecord[]} files
 * @param {string} words
 */
function matching(files, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  if (!wanted.length) return files;
  return files.filter((file) => {
    const text = [file.prefix, file.filename, file.description ?? "", ...(file.tags ?? [])].join(" ").toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
}

/** @param {FileRecord[]} files */
const allFolders = (files) => [...new Set(files.flatMap(foldersOf))];

/** @param {{id: string, file: FileRecord, asOf: string | null}} props */
function One({ id, file, asOf }) {
  const heading = useRef(/** @type {HTMLElement | null} */ (null));
  const content = address(experimentPath(id, "files", file.id, "content"), { asOf });
  const download = address(experimentPath(id, "files", file.id, "download"), { asOf });
  const metadata = file.metadata && Object.keys(file.metadata).length ? file.metadata : null;
  const nodes = useMemo(() => (metadata ? valueNodes(metadata) : []), [file.metadata]);
  return html`<header class="file-header">
      <button class="quiet files-back" onClick=${() => setParams({ file: null })}>All files</button>
      <h2 class="name" ref=${heading} tabindex="-1">${visible(file.filename)}</h2>
      <span class="space"></span>
      <a class="button" href=${download} download=${file.filename}>Download</a>
    </header>
    ${file.description ? html`<p>${visible(file.description)}</p>` : null}
    <dl class="facts">
      <div><dt>Folder</dt><dd class="mono">${visible(file.prefix)}</dd></div>
      <div><dt>Size</dt><dd title=${`${file.sizeBytes.toLocaleString("en")} bytes`}>${bytes(file.sizeBytes)}</dd></div>
      <div><dt>Type</dt><dd>${visible(file.contentType)}</dd></div>
      <div><dt>Added</dt><dd title=${time(file.uploadedAt)}>${ago(file.uploadedAt)}</dd></div>
      ${file.tags?.length ? html`<div><dt>Tags</dt><dd>${file.tags.map((tag) => html`<span class="tag">${visible(tag)}</span> `)}</dd></div>` : null}
      <div class="wide"><dt>SHA-256</dt><dd><span class="mono checksum">${file.checksum}</span>
        <${CopyButton} text=${file.checksum} label="Copy" name="Copy the SHA-256" /></dd></div>
    </dl>
    ${metadata ? html`<details class="file-metadata"><summary>Metadata</summary><${Tree} nodes=${nodes} label="Metadata" /></details>` : null}
    <${Preview} file=${file} url=${content} />`;
}
