/** The REST calls: answers as types.d.ts has them, errors as ApiError. */
import { signal } from "./ui.js";
import { route } from "./url.js";

/** @typedef {import("../types").Me} Me */
/** @typedef {import("../types").SeriesAnswer} SeriesAnswer */
/** @typedef {Record<string, string|number|boolean|null|undefined|(string|number)[]>} Query */

const BINARY = "application/vnd.ml-dash.series";

// A page of another site can send a form here, with the cookie even; it cannot send this header.
const CHANGES = { "X-ML-Dash-Protocol": "1" };

/** Who is asking, and what they may do; null until the server has said. @type {import("../vendor/preact.js").Signal<Me|null>} */
export const me = signal(/** @type {Me|null} */ (null));

/** True while the server answers. A request that did not reach it makes this false; the next that does, true. */
export const reachable = signal(true);

/** An answer that is an error, or none: `status` is 0 where the server was not reached. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} message
   * @param {number|null} [at]  column of a wrong query, from 0
   * @param {string|null} [hint]  what would be right
   */
  constructor(status, code, message, at = null, hint = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.at = at;
    this.hint = hint;
  }
}

/**
 * The address of a call. Lists repeat their name; null and undefined are left out.
 * @param {string} path
 * @param {Query} [query]
 */
export function address(path, query = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value === null || value === undefined) continue;
    for (const one of Array.isArray(value) ? value : [value]) search.append(name, String(one));
  }
  const namespace = route.peek().params.namespace;
  if (namespace && !search.has("namespace")) search.set("namespace", namespace);
  const text = search.toString();
  return text ? `${path}?${text}` : path;
}

/**
 * The path of an experiment's call: experimentPath(id, "files", name).
 * @param {string} id
 * @param {...string} parts
 */
export const experimentPath = (id, ...parts) => ["/experiments", ...[id, ...parts].map(encodeURIComponent)].join("/");

/**
 * @param {string} path
 * @param {Query} [query]
 * @param {{signal?: AbortSignal}} [options]
 * @returns {Promise<any>}
 */
export async function get(path, query, { signal } = {}) {
  return (await asked(address(path, query), { signal, headers: { Accept: "application/json" } })).json();
}

/**
 * Points of a metric of many runs (`GET /series`), as typed arrays.
 * @param {Query} query
 * @param {{signal?: AbortSignal}} [options]
 * @returns {Promise<SeriesAnswer>}
 */
export async function series(query, { signal } = {}) {
  const answer = await asked(address("/series", query), { signal, headers: { Accept: `${BINARY}, application/json;q=0.1` } });
  if (!answer.headers.get("content-type")?.startsWith(BINARY)) return answer.json();
  return decodedSeries(await answer.arrayBuffer());
}

/**
 * The binary form: length of the head (u32, little-endian), the head as JSON, the arrays as float64.
 * @param {ArrayBuffer} bytes
 * @returns {SeriesAnswer}
 */
export function decodedSeries(bytes) {
  const length = new DataView(bytes).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  // Float64Array wants its bytes at a multiple of eight, and the head ends anywhere.
  const body = bytes.slice(4 + length);
  for (const one of head.series) {
    for (const name of ["index", "x", "min", "max"]) {
      const { offset, count } = one[name];
      one[name] = new Float64Array(body, offset * 8, count);
    }
  }
  return head;
}

/**
 * Changes something; the answer is the new record.
 * @param {string} path
 * @param {object} body
 */
export async function patch(path, body) {
  const headers = { ...CHANGES, "Content-Type": "application/json" };
  return (await asked(address(path), { method: "PATCH", headers, body: JSON.stringify(body) })).json();
}

/** @param {string} path */
export async function del(path) {
  return (await asked(address(path), { method: "DELETE", headers: CHANGES })).json();
}

/**
 * Logs this browser in; raises ApiError.
 * @param {FormData} form  with `token` or `user`
 */
export async function login(form) {
  const body = new URLSearchParams(/** @type {any} */ (form));
  await asked("/login", { method: "POST", body, headers: { Accept: "application/json" } });
}

/** Asks who is asking; raises ApiError. */
export async function loadMe() {
  me.value = await get("/me");
}

/**
 * @param {string} url
 * @param {RequestInit} options
 * @returns {Promise<Response>}
 */
async function asked(url, options) {
  let answer;
  try {
    answer = await fetch(url, { ...options, credentials: "same-origin" });
  } catch (error) {
    if (/** @type {Error} */ (error).name === "AbortError") throw error;
    reachable.value = false;
    throw new ApiError(0, "offline", "The server does not answer.");
  }
  reachable.value = true;
  if (answer.ok) return answer;
  throw await failure(answer);
}

/** @param {Response} answer */
async function failure(answer) {
  let body;
  try {
    body = await answer.json();
  } catch {
    // A proxy in between answers with a page of its own.
    return new ApiError(answer.status, "http", `The server answered ${answer.status} ${answer.statusText}`);
  }
  const { code = "http", message = answer.statusText, at, hint } = { ...body, ...body.error };
  return new ApiError(answer.status, code, message, at ?? null, hint ?? null);
}
