/** The marks of a run's history, and what can be told from them. */
import { experimentPath, get } from "../lib/api.js";
import { valueText } from "../lib/json.js";

/**
 * @typedef {import("../types").Mark} Mark
 * @typedef {import("../types").History} History
 */

const PAGE = 1000;
const MOST = 20_000;
const SHOWN_KEYS = 5;

/** What marks are called, in the order in which a list of kinds has them. @type {Record<string, string>} */
export const KINDS = {
  opened: "Opened",
  resumed: "Resumed",
  joined: "Writer joined",
  rewound: "Rewound",
  crashed: "Crashed",
  failed: "Failed",
  interrupted: "Interrupted",
  completed: "Completed",
  merged: "Late data merged",
  lost: "Data lost",
  parameter: "Parameters",
  file: "File added",
  fileDeleted: "File deleted",
  updated: "Updated",
};

/**
 * The marks of a run from the first on, of these kinds or of all; at most MOST.
 * @param {string} id
 * @param {AbortSignal} signal
 * @param {string[]} [kinds]
 * @returns {Promise<History>}
 */
export async function allMarks(id, signal, kinds) {
  /** @type {Mark[]} */
  const marks = [];
  /** @type {History} */
  let page;
  do {
    page = await get(experimentPath(id, "history"), { startIndex: marks.length, limit: PAGE }, { signal });
    for (const mark of page.marks) marks.push(mark);
  } while (page.marks.length && marks.length < Math.min(MOST, page.total));
  return { ...page, marks: kinds ? marks.filter((mark) => kinds.includes(mark.kind)) : marks };
}

/**
 * For each parameter: when it was set last (as of a moment), where, and how often.
 * @param {Mark[]} marks in order
 * @param {string | null} asOf
 * @returns {Map<string, {time: string, event: number, host: string | null, times: number}>}
 */
export function changesByKey(marks, asOf) {
  const end = asOf !== null && /^\d+$/.test(asOf) ? Number(asOf) : Infinity;
  const changes = new Map();
  for (const { event, time, kind, host, data } of marks) {
    if (kind !== "parameter" || event > end) continue;
    for (const key of keysOf(data)) {
      changes.set(key, { time, event, host, times: (changes.get(key)?.times ?? 0) + 1 });
    }
  }
  return changes;
}

/**
 * What a mark says beside its kind: of parameters what they were and what they are.
 * @param {Mark} mark
 */
export function textOf({ kind, text, data }) {
  const values = /** @type {Record<string, unknown> | undefined} */ (kind === "parameter" ? data?.values : undefined);
  // A whole number beyond 2^53 is right in the text, and has lost its last digits as a number.
  if (!values || Object.values(values).some((value) => Number.isInteger(value) && !Number.isSafeInteger(value))) {
    return text.startsWith(kind) ? text.slice(kind.length).replace(/^[: ]+/, "") : text;
  }
  const before = /** @type {Record<string, unknown>} */ (data?.before ?? {});
  const changes = Object.entries(values).map(([key, value]) =>
    Object.hasOwn(before, key) ? `${key} ${valueText(before[key])} → ${valueText(value)}` : `${key} = ${valueText(value)}`,
  );
  return changes.slice(0, SHOWN_KEYS).join(", ") + (changes.length > SHOWN_KEYS ? ` and ${changes.length - SHOWN_KEYS} more` : "");
}

/**
 * The parameters that a mark is about.
 * @param {Record<string, unknown> | null} data
 * @returns {string[]}
 */
export function keysOf(data) {
  if (Array.isArray(data?.keys)) return data.keys;
  return typeof data?.values === "object" && data.values !== null ? Object.keys(data.values) : [];
}
