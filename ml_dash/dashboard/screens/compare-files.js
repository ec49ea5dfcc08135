/** Files of several runs side by side: which have them, how large, and whether they are the same. */
import { experimentPath, get } from "../lib/api.js";
import { bytes } from "../lib/format.js";
import { link, setParams } from "../lib/url.js";
import { classes, html, useEffect, useMemo, useState } from "../lib/ui.js";
import { Empty, Failure, Loading } from "../parts/states.js";
import { RunsHead } from "./compare-parameters.js";

/** @typedef {import("./compare.js").Compared} Compared */
/** @typedef {import("../types").FileEntry} FileEntry */

/** Requests at a time: a browser has six connections, and one is for news. */
const AT_ONCE = 4;

/**
 * @param {{experiments: Compared[], names: Map<string, string>, styles: Map<string, {color: string}>, params: Record<string, string>}} props
 */
export function CompareFiles({ experiments, names, styles, params }) {
  const { files, error, retry } = useFiles(experiments.map(({ id }) => id));
  const rows = useMemo(() => rowsOf(experiments, files), [experiments, files]);
  if (error) return html`<${Failure} error=${error} retry=${retry} />`;
  if (files.size < experiments.length) return html`<${Loading} what=${`Loading files: ${files.size} of ${experiments.length} runs`} />`;
  const all = params.equal === "1";
  const shown = rows.filter((row) => all || row.differs);
  const same = rows.filter((row) => !row.differs).length;
  return html`<section aria-label="Files side by side">
    <div class="compare-options">
      <label><input type="checkbox" checked=${all} onChange=${() => setParams({ equal: all ? null : "1" })} />
        Show ${same} equal ${same === 1 ? "file" : "files"}</label>
    </div>
    ${shown.length
      ? html`<div class="compare-table" tabindex="0" role="region" aria-label="Table of files"><table>
          <thead><${RunsHead} experiments=${experiments} names=${names} styles=${styles} first="File" /></thead>
          <tbody>${shown.map((row) => html`<tr key=${row.path} class=${classes(row.differs && "differs")}>
            <th scope="row" title=${row.path}>${row.path}</th>
            ${row.files.map((file, i) => (file
              ? html`<td key=${experiments[i].id} title=${`SHA-256 ${file.checksum}`} class=${classes(row.differs && file.checksum === row.usual && "most")}>
                  <a href=${link(`/runs/${experiments[i].id}`, { tab: "files", file: row.path })}>${bytes(file.sizeBytes)}</a> <code class="dim">${file.checksum.slice(0, 8)}</code></td>`
              : html`<td key=${experiments[i].id} class="absent">—</td>`))}
          </tr>`)}</tbody></table></div>
          <p class="dim">Size and the beginning of the SHA-256. Shaded: the content that most of these runs have, where there is one.</p>`
      : html`<${Empty} title=${rows.length ? "All files are equal" : "None of these runs has files"} />`}
  </section>`;
}

/**
 * The files of each run, a few requests at a time.
 *
 * @param {string[]} ids
 */
function useFiles(ids) {
  const [files, setFiles] = useState(/** @type {Map<string, FileEntry[]>} */ (new Map()));
  const [error, setError] = useState(/** @type {Error | null} */ (null));
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const abort = new AbortController();
    const waiting = [...ids];
    /** @type {Map<string, FileEntry[]>} */
    const known = new Map();
    const work = async () => {
      for (let id = waiting.shift(); id; id = waiting.shift()) {
        const answer = await get(experimentPath(id, "files"), {}, { signal: abort.signal });
        known.set(id, answer.files);
        if (!abort.signal.aborted) setFiles(new Map(known));
      }
    };
    setError(null);
    Promise.all(Array.from({ length: AT_ONCE }, work)).catch((failed) => {
      if (!abort.signal.aborted) setError(failed);
      abort.abort();
    });
    return () => abort.abort();
  }, [ids.join(), turn]);
  return { files, error, retry: () => setTurn(turn + 1) };
}

/**
 * @param {Compared[]} experiments
 * @param {Map<string, FileEntry[]>} files
 */
function rowsOf(experiments, files) {
  const lists = experiments.map(({ id }) => new Map((files.get(id) ?? []).map((file) => [pathOf(file), file])));
  const paths = [...new Set(lists.flatMap((list) => [...list.keys()]))].sort();
  return paths.map((path) => {
    const row = lists.map((list) => list.get(path));
    const sums = row.map((file) => file?.checksum ?? "");
    const times = (/** @type {string} */ sum) => sums.filter((one) => one === sum).length;
    const [most] = [...new Set(sums)].sort((a, b) => times(b) - times(a));
    return { path, files: row, differs: new Set(sums).size > 1, usual: times(most) > 1 ? most : null };
  });
}

/** @param {FileEntry} file */
const pathOf = ({ path, filename }) => [path.replace(/^\/+|\/+$/g, ""), filename].filter(Boolean).join("/");
