/** What the list shows, all of it, as a file for a spreadsheet. */
import { get } from "../lib/api.js";
import { listText, valueOf } from "../lib/fields.js";
import { count } from "../lib/format.js";

const PAGE = 1000;

/**
 * Fetches all rows and offers them as a download.
 * @param {{where: string, sort: string}} question
 * @param {string[]} columns
 * @param {(text: string) => void} progress  an empty text at the end
 */
export async function downloadCsv({ where, sort }, columns, progress) {
  const lines = [columns.map(cell).join(",")];
  try {
    for (let start = 0, total = 1; start < total; start += PAGE) {
      const page = await get("/experiments", { where: where || null, sort, columns: listText(columns.filter((one) => one !== "name")) || null, startIndex: start, limit: PAGE });
      total = page.total;
      for (const run of page.experiments) lines.push(columns.map((field) => cell(valueOf(run, field))).join(","));
      progress(`${count(Math.min(start + PAGE, total))}…`);
    }
  } finally {
    progress("");
  }
  const url = URL.createObjectURL(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv;charset=utf-8" }));
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = "runs.csv";
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** @param {unknown} v */
export function cell(v) {
  if (v === undefined || v === null) return "";
  if (typeof v === "number" || typeof v === "boolean") return String(v);
  const text = Array.isArray(v) ? v.join(" ") : typeof v === "object" ? JSON.stringify(v) : String(v);
  // A spreadsheet would take a text that begins so for a formula, and a run's name may come from anybody.
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
