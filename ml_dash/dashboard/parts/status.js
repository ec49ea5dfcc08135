/** The status of a run, with its reason. */
import { classes, html } from "../lib/ui.js";
import { ago } from "../lib/format.js";

/** @typedef {import("../types").Reason} Reason */

/** A running run of which nothing was heard for so many milliseconds says so. */
const SILENT_MS = 300_000;

/**
 * Why a run ended, or since when a running one is silent.
 * @param {{status: string, reason?: Reason|null, heardAt?: string|null, updatedAt?: string|null}} run
 * @param {number} [now]
 * @returns {Reason|null}
 */
export function reasonOf(run, now = Date.now()) {
  const at = run.heardAt ?? run.updatedAt;
  const silent = run.status === "running" && at && now - Date.parse(at) > SILENT_MS;
  return run.reason ?? (silent ? { kind: "silent", at } : null);
}

/**
 * Why, in a few words: "ValueError: shape mismatch", "SIGKILL", "exit code 3", "silent since 4 h ago".
 * @param {Reason|null|undefined} reason
 */
export function reasonText(reason) {
  if (!reason) return "";
  switch (reason.kind) {
    case "exception": return reason.text?.startsWith(reason.type ?? "") ? reason.text : [reason.type, reason.text].filter(Boolean).join(": ");
    case "signal": return reason.signal ?? reason.text ?? "ended by a signal";
    case "exit": return reason.text ?? `exit code ${reason.code}`;
    case "silent": return reason.at ? `silent since ${ago(reason.at)}` : "silent";
    default: return reason.text ?? reason.kind;
  }
}

/** @param {{status: string, reason?: Reason|null, short?: boolean}} props */
export function Status({ status, reason, short }) {
  const why = reasonText(reason);
  return html`<span class=${classes("run-status", status)} title=${why || undefined}>
    <span class="dot" aria-hidden="true"></span>${status}${why && !short && html`<span class="why">${why}</span>`}</span>`;
}
