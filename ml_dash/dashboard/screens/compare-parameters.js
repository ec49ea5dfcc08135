/** Parameters of several runs side by side. What all have in common is hidden unless asked for. */
import { value as text } from "../lib/format.js";
import { link, setParams } from "../lib/url.js";
import { classes, html, useMemo } from "../lib/ui.js";
import { equal } from "../parts/planeaxis.js";
import { Empty } from "../parts/states.js";

/** @typedef {import("./compare.js").Compared} Compared */

/**
 * @param {{experiments: Compared[], names: Map<string, string>, styles: Map<string, {color: string}>, params: Record<string, string>}} props
 */
export function CompareParameters({ experiments, names, styles, params }) {
  const rows = useMemo(() => rowsOf(experiments), [experiments]);
  const all = params.equal === "1";
  const shown = rows.filter((row) => all || row.differs);
  const same = rows.length - rows.filter((row) => row.differs).length;
  return html`<section aria-label="Parameters side by side">
    <div class="compare-options">
      <label><input type="checkbox" checked=${all} onChange=${() => setParams({ equal: all ? null : "1" })} />
        Show ${same} equal ${same === 1 ? "row" : "rows"}</label>
    </div>
    ${shown.length
      ? html`<div class="compare-table" tabindex="0" role="region" aria-label="Table of parameters"><table>
          <thead><${RunsHead} experiments=${experiments} names=${names} styles=${styles} first="Parameter" /></thead>
          <tbody>${shown.map((row) => html`<tr key=${row.key} class=${classes(row.differs && "differs")}>
            <th scope="row" title=${row.key}>${row.key}</th>
            ${row.values.map((one, i) => html`<td key=${experiments[i].id} title=${one === undefined ? undefined : text(one)}
              class=${classes(one === undefined && "absent", row.differs && equal(one, row.usual) && "most")}>${one === undefined ? "—" : text(one)}</td>`)}
          </tr>`)}</tbody></table></div>
          <p class="dim">Shaded: the value that most of these runs have, where there is one.</p>`
      : html`<${Empty} title=${rows.length ? "All parameters are equal" : "None of these runs has parameters"} />`}
  </section>`;
}

/**
 * The row with the runs' names.
 *
 * @param {{experiments: Compared[], names: Map<string, string>, styles: Map<string, {color: string}>, first: string}} props
 */
export function RunsHead({ experiments, names, styles, first }) {
  return html`<tr><th scope="col">${first}</th>${experiments.map(({ id }) => html`<th scope="col" key=${id} title=${names.get(id)}>
    <span class="rule" style=${{ background: styles.get(id)?.color }}></span><a href=${link(`/runs/${id}`)}>${names.get(id)}</a></th>`)}</tr>`;
}

/** What stands above the parameters. @type {[string, (run: Compared) => unknown][]} */
const FACTS = [
  ["project", ({ project }) => project],
  ["status", ({ status }) => status],
  ["folder", ({ folder }) => folder ?? undefined],
  ["tags", ({ tags }) => (tags?.length ? tags.join(", ") : undefined)],
];

/**
 * @param {Compared[]} experiments
 * @returns {{key: string, values: unknown[], differs: boolean, usual: unknown}[]}
 */
function rowsOf(experiments) {
  const keys = [...new Set(experiments.flatMap(({ params }) => Object.keys(params)))].sort();
  const rows = [
    ...FACTS.map(([key, of]) => ({ key, values: experiments.map(of) })),
    ...keys.map((key) => ({ key, values: experiments.map(({ params }) => params[key]) })),
  ].filter(({ values }) => values.some((one) => one !== undefined));
  return rows.map((row) => ({ ...row, ...spreadOf(row.values) }));
}

/**
 * Whether values differ, and which is the most frequent; undefined if none is more so than others.
 *
 * @param {unknown[]} values
 */
function spreadOf(values) {
  /** @type {Map<string, {one: unknown, times: number}>} */
  const kinds = new Map();
  for (const one of values) {
    const key = one === undefined ? "" : JSON.stringify(one);
    const kind = kinds.get(key);
    if (kind) kind.times += 1;
    else kinds.set(key, { one, times: 1 });
  }
  const [most, next] = [...kinds.values()].sort((a, b) => b.times - a.times);
  return { differs: kinds.size > 1, usual: next && most.times > next.times ? most.one : NOTHING };
}

/** Equal to no value. */
const NOTHING = Symbol("nothing");
