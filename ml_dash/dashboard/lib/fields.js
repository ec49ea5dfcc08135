/** Fields of runs: how a query names them, what a column of them is called, and how their values read. */
import { ago, bytes, count, duration, number, time, value } from "./format.js";

/** @typedef {import("../types").Run} Run */

/**
 * The same entries and no others: a name such as `constructor` finds nothing that was not given.
 * @template T
 * @param {Record<string, T>} entries
 * @returns {Record<string, T>}
 */
export const bare = (entries) => Object.assign(Object.create(null), entries);

/** What every run has, and its title as a column. */
export const FIELDS = bare(/** @type {Record<string, string>} */ ({
  name: "Name", status: "Status", project: "Project", folder: "Folder", tags: "Tags", description: "Description",
  notes: "Notes", created: "Created", updated: "Updated", ended: "Ended", duration: "Duration", host: "Host", user: "User",
  commit: "Commit", points: "Points", size: "Size", "files.count": "Files",
}));

/** Statistics of a series; the last value is meant without one. */
export const STATS = ["last", "min", "max", "mean", "first", "count", "step"];

const TIMES = new Set(["created", "updated", "ended"]);

/** A column that draws a series small. It is the page's own: the server has no such field. */
export const TREND = "trend.";

/** The series that a column of `TREND` draws; null for another. @param {string} field */
export const trendOf = (field) => (field.startsWith(TREND) ? field.slice(TREND.length) : null);

// What ends a name in a query.
const SPECIAL = /[\s"'()[\],=!<>~:&|]/;

/** @param {string} text */
export const quoted = (text) => `"${text.replace(/[\\"]/g, "\\$&")}"`;

/**
 * A field as a query or a list of columns has it: quoted where its name needs that.
 * @param {string} name
 */
export function fieldText(name) {
  if (!SPECIAL.test(name)) return name;
  const prefix = /^(params|metrics|trend)\./.exec(name)?.[0] ?? "";
  return prefix + quoted(name.slice(prefix.length));
}

/** A value as a query has it. @param {unknown} v */
export const valueText = (v) => (typeof v === "string" ? (/^[\p{L}_][\p{L}\d_./-]*$/u.test(v) && !WORDS.has(v.toLowerCase()) ? v : quoted(v)) : String(v));

const WORDS = new Set(["and", "or", "not", "in", "true", "false", "null", "now", "today", "yesterday", "nan", "inf", "infinity"]);

/**
 * The fields of a list like `params.lr,params."a,b"`.
 * @param {string} text
 */
export const fieldsOf = (text) =>
  [...new Set((text.match(/(?:"(?:[^"\\]|\\.)*"|[^,"])+/g) ?? []).map((one) => unquoted(one.trim())).filter(Boolean))];

/** @param {string} text */
const unquoted = (text) => text.replace(/"((?:[^"\\]|\\.)*)"/g, (_, inner) => inner.replace(/\\(.)/g, "$1"));

/** @param {string[]} fields */
export const listText = (fields) => fields.map(fieldText).join(",");

/** What a column is called. @param {string} field */
export function titleOf(field) {
  const trend = trendOf(field);
  if (trend !== null) return `${trend} ∿`;
  return FIELDS[field] ?? field.replace(/^(params|metrics)\./, "");
}

/** What kind of column: for its place and its width. @param {string} field */
export function familyOf(field) {
  if (field.startsWith("params.")) return "params";
  if (field.startsWith("metrics.")) return "metrics";
  return trendOf(field) !== null ? "trend" : "own";
}

/**
 * The value of a column; undefined where the run has none.
 * @param {Run} run
 * @param {string} field
 * @returns {unknown}
 */
export function valueOf(run, field) {
  switch (field) {
    case "name": return run.title ?? run.name;
    case "status": case "project": case "folder": case "tags": case "description": case "notes": return run[field] ?? undefined;
    case "created": return run.createdAt;
    case "updated": return run.updatedAt;
    case "ended": return run.endedAt ?? undefined;
    case "points": return run.counts.points;
    default: return run.values[field] ?? undefined;
  }
}

/**
 * A value as its column shows it.
 * @param {string} field
 * @param {unknown} v
 * @returns {string}
 */
export function shownValue(field, v) {
  if (v === undefined) return "";
  if (field === "tags" && Array.isArray(v)) return v.join(", ");
  if (TIMES.has(field)) return ago(/** @type {string} */ (v));
  if (typeof v !== "number") return field === "commit" ? String(v).slice(0, 9) : value(v);
  if (field === "duration") return duration(v);
  if (field === "size") return bytes(v);
  if (field === "points" || field === "files.count" || /^metrics\..*\.(count|step)$/.test(field)) return count(v);
  return number(v, 4);
}

/** The same in full, for a tooltip. @param {string} field @param {unknown} v */
export function fullValue(field, v) {
  if (TIMES.has(field) && v) return `${time(/** @type {string} */ (v))}`;
  if (typeof v === "number" && field === "size") return `${count(v)} bytes`;
  return v === undefined ? "" : typeof v === "number" ? String(v) : shownValue(field, v);
}

/**
 * A query that also demands `field = value`; a condition on that field that stands by itself is replaced.
 * @param {string} where
 * @param {string} field
 * @param {unknown} v  undefined: only take the condition away
 */
export function withCondition(where, field, v) {
  const rest = withoutCondition(where, field);
  if (v === undefined) return rest;
  const condition = `${fieldText(field)} = ${valueText(v)}`;
  if (!rest) return condition;
  return `${condition} and ${/\bor\b/i.test(rest) ? `(${rest})` : rest}`;
}

/**
 * The text that a query demands of a field by a condition that stands first; null if none does.
 * @param {string} where
 * @param {string} field
 */
export function conditionOn(where, field) {
  const found = first(field).exec(where);
  return found ? unquoted((found[1] ?? "").trim()) : null;
}

/** @param {string} where @param {string} field */
function withoutCondition(where, field) {
  const found = first(field).exec(where);
  if (!found) return where.trim();
  const rest = where.slice(found[0].length).trim();
  // The parentheses that were put around what came behind.
  return /^\([^()]*\)$/.test(rest) ? rest.slice(1, -1) : rest;
}

/** @param {string} field */
const first = (field) =>
  new RegExp(`^\\s*${fieldText(field).replace(/[.*+?^\${}()|[\]\\]/g, "\\$&")}\\s*=\\s*("(?:[^"\\\\]|\\\\.)*"|[^\\s()"]+)(?:\\s+and\\s+|\\s*$)`, "i");
