// Where each chart of a page stands, so that only those in view need to exist.

export const GAP = 12;
export const HEADER = 34;

/** @typedef {{key: string, top: number, height: number, prefix: string, names: string[], head: boolean, open: boolean, count: number}} Band */

/**
 * Headers and rows of charts from top to bottom.
 *
 * @param {{prefix: string, names: string[]}[]} groups
 * @param {(prefix: string) => boolean} open
 * @param {number} columns
 * @param {number} height  of a chart, in CSS pixels
 * @returns {{bands: Band[], height: number}}
 */
export function layout(groups, open, columns, height) {
  /** @type {Band[]} */
  const bands = [];
  let top = 0;
  // One group needs no name.
  const headed = groups.length > 1;
  for (const { prefix, names } of groups) {
    const shown = !headed || open(prefix);
    if (headed) {
      bands.push({ key: `head ${prefix}`, top, height: HEADER, prefix, names: [], head: true, open: shown, count: names.length });
      top += HEADER;
    }
    if (!shown) continue;
    for (let i = 0; i < names.length; i += columns) {
      const row = names.slice(i, i + columns);
      bands.push({ key: `row ${prefix} ${i}`, top, height: height + GAP, prefix, names: row, head: false, open: true, count: row.length });
      top += height + GAP;
    }
  }
  return { bands, height: top };
}

/**
 * The bands that touch [from, to).
 *
 * @param {Band[]} bands
 * @param {number} from
 * @param {number} to
 * @returns {Band[]}
 */
export function within(bands, from, to) {
  let low = 0;
  let high = bands.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (bands[middle].top + bands[middle].height <= from) low = middle + 1;
    else high = middle;
  }
  let end = low;
  while (end < bands.length && bands[end].top < to) end++;
  return bands.slice(low, end);
}

/**
 * How many charts of at least `least` pixels stand side by side.
 *
 * @param {number} width
 * @param {number} least
 */
export const columnsOf = (width, least) => Math.max(1, Math.floor((width + GAP) / (least + GAP)));
