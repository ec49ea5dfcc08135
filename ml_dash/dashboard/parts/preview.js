/**
 * A file's content on the page: images, pages of text, values of JSON, tables, Markdown, bytes. Never as a document.
 *
 * Content is data here: text goes into text nodes, an image into <img>. A file is read in pages by range requests, so
 * that one of any size shows its beginning at once.
 */

import { ApiError } from "../lib/api.js";
import { bytes as sizeText } from "../lib/format.js";
import { parseExactly } from "../lib/json.js";
import { html, useEffect, useMemo, useState } from "../lib/ui.js";
import { visible } from "./loglines.js";
import { Markdown } from "./markdown.js";
import { Failure, Loading } from "./states.js";
import { Tree, valueNodes } from "./tree.js";
import { Virtual } from "./virtual.js";

const PAGE_BYTES = 256 << 10;
const HEX_BYTES = 4 << 10;
// Larger ones are shown as text, in pages.
const WHOLE_BYTES = 4 << 20;
const LINE_PX = 20;
const LONGEST_LINE = 5000;
const MOST_COLUMNS = 200;
const MOST_CHARACTERS = 40;
const IMAGES = /^image\/(png|jpeg|gif|webp|avif|bmp|x-icon|vnd\.microsoft\.icon)$/;

/**
 * @typedef {{filename: string, contentType: string, sizeBytes: number}} Previewed
 * @typedef {"image" | "svg" | "json" | "table" | "markdown" | "text" | "bytes"} Kind
 */

/**
 * How a file is shown first. Its name says more than its type: most files come as `application/octet-stream`.
 * @param {Previewed} file
 * @returns {Kind}
 */
export function kindOf({ filename, contentType, sizeBytes }) {
  const type = contentType.split(";")[0].trim().toLowerCase();
  const ending = /\.([a-z0-9]+)$/i.exec(filename)?.[1].toLowerCase() ?? "";
  if (IMAGES.test(type) || /^(png|jpe?g|gif|webp|avif|bmp|ico)$/.test(ending)) return "image";
  const whole = sizeBytes <= WHOLE_BYTES;
  if (type === "image/svg+xml" || ending === "svg") return whole ? "svg" : "text";
  if ((type === "application/json" || /^(json|ipynb|geojson)$/.test(ending)) && whole) return "json";
  if (/^text\/(csv|tab-separated-values)$/.test(type) || /^(csv|tsv)$/.test(ending)) return "table";
  if ((type === "text/markdown" || /^(md|markdown)$/.test(ending)) && whole) return "markdown";
  if (/^(pt|pth|ckpt|safetensors|npy|npz|zip|gz|xz|zst|tar|h5|hdf5|onnx|bin|pkl|parquet|so|mp4|wav|mp3|pdf)$/.test(ending)) return "bytes";
  return "text";
}

/** What else a kind can be shown as. @type {Record<Kind, Kind[]>} */
const WAYS = {
  image: ["image", "bytes"],
  svg: ["svg", "text"],
  json: ["json", "text"],
  table: ["table", "text"],
  markdown: ["markdown", "text"],
  text: ["text", "bytes"],
  bytes: ["bytes", "text"],
};
const NAMES = { image: "Image", svg: "Image", json: "Tree", table: "Table", markdown: "Page", text: "Text", bytes: "Bytes" };

/**
 * @param {{file: Previewed, url: string}} props `url` is the address of the content
 */
export function Preview({ file, url }) {
  const kind = kindOf(file);
  const [way, setWay] = useState(kind);
  const Shown = SHOWN[way];
  if (!file.sizeBytes) return html`<p class="dim">The file is empty.</p>`;
  return html`<div class="preview">
    <div class="segmented" role="group" aria-label="Show as">
      ${WAYS[kind].map(
        (one) => html`<button aria-pressed=${one === way} onClick=${() => setWay(one)}>${NAMES[one]}</button>`,
      )}
    </div>
    <${Shown} key=${`${way} ${url}`} file=${file} url=${url} />
  </div>`;
}

/** @typedef {{file: Previewed, url: string}} Props */

/** @param {Props} props */
function Image({ file, url }) {
  const [failed, setFailed] = useState(false);
  const [size, setSize] = useState("");
  if (failed) return html`<p class="dim">The browser cannot show this as an image. Look at its bytes, or download it.</p>`;
  return html`<figure class="preview-image">
    <img
      src=${url}
      alt=${file.filename}
      onError=${() => setFailed(true)}
      onLoad=${(/** @type {Event} */ event) => {
        const image = /** @type {HTMLImageElement} */ (event.currentTarget);
        setSize(`${image.naturalWidth} × ${image.naturalHeight}`);
      }}
    />
    <figcaption class="dim">${size}</figcaption>
  </figure>`;
}

/** An SVG from a data URL: no script of it runs in <img>, and opened by itself it has no origin. @param {Props} props */
function Svg({ file, url }) {
  const content = useContent(url, 0, file.sizeBytes);
  const source = useMemo(() => (content.data ? dataUrl(content.data, "image/svg+xml") : ""), [content.data]);
  return content.state ?? html`<${Image} file=${file} url=${source} />`;
}

/**
 * @param {Uint8Array} data
 * @param {string} type
 */
export function dataUrl(data, type) {
  let text = "";
  for (let at = 0; at < data.length; at += 8192) text += String.fromCharCode(...data.subarray(at, at + 8192));
  return `data:${type};base64,${btoa(text)}`;
}

/** @param {Props} props */
function Json({ file, url }) {
  const content = useContent(url, 0, file.sizeBytes);
  const parsed = useMemo(() => (content.data ? parse(decoded(content.data)) : null), [content.data]);
  if (content.state || !parsed) return content.state;
  if ("error" in parsed) return html`<p class="dim">Not JSON: ${parsed.error}</p><${Text} file=${file} url=${url} />`;
  return html`<${Tree} nodes=${parsed.nodes} label=${`Values of ${file.filename}`} />`;
}

/**
 * @param {string} text
 * @returns {{nodes: import("./tree.js").Node[]} | {error: string}}
 */
function parse(text) {
  try {
    return { nodes: valueNodes(parseExactly(text)) };
  } catch (error) {
    if (error instanceof SyntaxError) return { error: error.message };
    throw error;
  }
}

/** @param {Props} props */
function Page({ file, url }) {
  const content = useContent(url, 0, file.sizeBytes);
  return content.state ?? html`<${Markdown} text=${decoded(/** @type {Uint8Array} */ (content.data))} />`;
}

/** @param {Props} props */
function Text({ file, url }) {
  const [start, setStart] = useState(0);
  const content = useContent(url, start, Math.min(file.sizeBytes, start + PAGE_BYTES + 3));
  const lines = useMemo(() => (content.data ? linesOf(pageText(content.data, start)) : []), [content.data]);
  const body =
    content.state ??
    html`<${Virtual}
      key=${start}
      total=${lines.length}
      rowHeight=${LINE_PX}
      label=${`Text of ${file.filename}`}
      class="preview-text"
      fit
      row=${(/** @type {number} */ index) => html`<div class="preview-line" role="listitem" key=${index}>
        ${start ? null : html`<span class="preview-number" aria-hidden="true">${index + 1}</span>`}
        <span>${lines[index]}</span>
      </div>`}
    />`;
  return html`<${Pages} size=${file.sizeBytes} start=${start} page=${PAGE_BYTES} onStart=${setStart} />${body}`;
}

/**
 * The text of a page: from the first whole character, up to the one that the page's last byte belongs to.
 * @param {Uint8Array} data the page, and up to three bytes behind it
 * @param {number} start of the page in the file
 */
export function pageText(data, start) {
  const continues = (/** @type {number} */ index) => index < data.length && (data[index] & 0xc0) === 0x80;
  let from = 0;
  while (start && from < 3 && continues(from)) from += 1;
  let end = Math.min(data.length, PAGE_BYTES);
  while (end < PAGE_BYTES + 3 && continues(end)) end += 1;
  return decoded(data.subarray(from, end));
}

/** @param {Uint8Array} data */
function decoded(data) {
  return new TextDecoder().decode(data);
}

/**
 * Lines as they are shown; longer ones than LONGEST_LINE characters are cut, and say so.
 * @param {string} text
 */
export function linesOf(text) {
  const lines = text.replace(/\r?\n$/, "").split(/\r?\n/);
  return lines.map((line) => {
    const shown = visible(line.slice(0, LONGEST_LINE));
    return line.length > LONGEST_LINE ? `${shown} … ${(line.length - LONGEST_LINE).toLocaleString("en")} more characters` : shown;
  });
}

/** @param {Props} props */
function Table({ file, url }) {
  const [start, setStart] = useState(0);
  const end = Math.min(file.sizeBytes, start + PAGE_BYTES + 3);
  const content = useContent(url, start, end);
  const separator = /\.tsv$/i.test(file.filename) || file.contentType.startsWith("text/tab") ? "\t" : ",";
  const rows = useMemo(() => {
    const found = content.data ? parseTable(pageText(content.data, start), separator) : [];
    // A page ends, and begins, within a row.
    return found.slice(start ? 1 : 0, end < file.sizeBytes && found.length > 1 ? -1 : undefined);
  }, [content.data]);
  const [header, ...rest] = start ? [[], ...rows] : rows;
  const widths = useMemo(() => columnWidths(rows), [rows]);
  const columns = { gridTemplateColumns: widths.map((width) => `${width}ch`).join(" ") };
  /** @param {string[]} cells @param {string} role */
  const drawn = (cells, role) =>
    widths.map((_, index) => html`<span role=${role} title=${cells[index]}>${visible(cells[index] ?? "")}</span>`);
  const body =
    content.state ??
    html`<div class="preview-table" role="table" aria-label=${`Table of ${file.filename}`} aria-rowcount=${rest.length + 1}>
      ${header?.length ? html`<div role="row" class="preview-row preview-header" style=${columns}>${drawn(header, "columnheader")}</div>` : null}
      <${Virtual}
        key=${start}
        total=${rest.length}
        rowHeight=${LINE_PX + 4}
        label=${`Rows of ${file.filename}`}
        role="rowgroup"
        fit
        row=${(/** @type {number} */ index) =>
          html`<div role="row" class="preview-row" key=${index} style=${columns}>${drawn(rest[index], "cell")}</div>`}
      />
    </div>`;
  return html`<${Pages} size=${file.sizeBytes} start=${start} page=${PAGE_BYTES} onStart=${setStart} />${body}`;
}

/**
 * The widths of columns in characters, by their first rows. Columns beyond MOST_COLUMNS are left out.
 * @param {string[][]} rows
 * @returns {number[]}
 */
function columnWidths(rows) {
  /** @type {number[]} */
  const widths = [];
  for (const row of rows.slice(0, 100)) {
    row.slice(0, MOST_COLUMNS).forEach((cell, index) => {
      widths[index] = Math.max(widths[index] ?? 6, Math.min(MOST_CHARACTERS, cell.length + 4));
    });
  }
  return widths;
}

/**
 * The rows of a CSV or TSV text (RFC 4180): quotes may hold separators, newlines and doubled quotes.
 * @param {string} text
 * @param {string} separator
 */
export function parseTable(text, separator) {
  /** @type {string[][]} */
  const rows = [];
  /** @type {string[]} */
  let row = [];
  let at = 0;
  while (at < text.length) {
    const [cell, next] = text[at] === '"' ? quoted(text, at) : plain(text, at, separator);
    row.push(cell);
    at = next;
    if (text[at] === separator) {
      at += 1;
      if (at === text.length) row.push("");
      continue;
    }
    if (text[at] === "\r") at += 1;
    if (text[at] === "\n") at += 1;
    rows.push(row);
    row = [];
  }
  if (row.length) rows.push(row);
  return rows;
}

/**
 * @param {string} text
 * @param {number} at
 * @returns {[string, number]}
 */
function quoted(text, at) {
  let end = text.indexOf('"', at + 1);
  while (end >= 0 && text[end + 1] === '"') end = text.indexOf('"', end + 2);
  const stop = end < 0 ? text.length : end;
  const cell = text.slice(at + 1, stop).replaceAll('""', '"');
  let next = Math.min(text.length, stop + 1);
  // What stands behind the closing quote, in files that are not quite CSV, is dropped up to the next separator.
  while (next < text.length && !/[,\t\r\n]/.test(text[next])) next += 1;
  return [cell, next];
}

/**
 * @param {string} text
 * @param {number} at
 * @param {string} separator
 * @returns {[string, number]}
 */
function plain(text, at, separator) {
  let end = at;
  while (end < text.length && text[end] !== separator && text[end] !== "\n" && text[end] !== "\r") end += 1;
  return [text.slice(at, end), end];
}

/** @param {Props} props */
function Bytes({ file, url }) {
  const [start, setStart] = useState(0);
  const content = useContent(url, start, Math.min(file.sizeBytes, start + HEX_BYTES));
  const text = useMemo(() => (content.data ? hexDump(content.data, start) : ""), [content.data]);
  return html`<${Pages} size=${file.sizeBytes} start=${start} page=${HEX_BYTES} onStart=${setStart} />
    ${content.state ?? html`<pre class="preview-hex" tabindex="0" aria-label=${`Bytes of ${file.filename}`}>${text}</pre>`}`;
}

/**
 * @param {Uint8Array} data
 * @param {number} start
 */
export function hexDump(data, start) {
  const lines = [];
  for (let at = 0; at < data.length; at += 16) {
    const row = [...data.subarray(at, at + 16)];
    const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const text = row.map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${(start + at).toString(16).padStart(8, "0")}  ${hex.padEnd(47)}  ${text}`);
  }
  return lines.join("\n");
}

/**
 * Which part of a file is shown, and the way to others. Nothing for a file of one page.
 * @param {{size: number, start: number, page: number, onStart: (start: number) => void}} props
 */
function Pages({ size, start, page, onStart }) {
  if (size <= page) return null;
  const last = Math.floor((size - 1) / page) * page;
  return html`<div class="preview-pages" role="group" aria-label="Part of the file">
    <button disabled=${start === 0} onClick=${() => onStart(0)}>First</button>
    <button disabled=${start === 0} onClick=${() => onStart(start - page)}>Previous</button>
    <span>${sizeText(start)} – ${sizeText(Math.min(size, start + page))} of ${sizeText(size)}</span>
    <button disabled=${start === last} onClick=${() => onStart(start + page)}>Next</button>
    <button disabled=${start === last} onClick=${() => onStart(last)}>Last</button>
  </div>`;
}

/** @type {Record<Kind, (props: Props) => any>} */
const SHOWN = { image: Image, svg: Svg, json: Json, table: Table, markdown: Page, text: Text, bytes: Bytes };

/**
 * Bytes [start, end) of a content. `state` is what to show instead while they are not there.
 * @param {string} url
 * @param {number} start
 * @param {number} end
 * @returns {{data: Uint8Array | null, state: any}}
 */
function useContent(url, start, end) {
  const [answer, setAnswer] = useState(/** @type {{key: string, data?: Uint8Array, error?: Error}} */ ({ key: "" }));
  const key = `${start} ${end} ${url}`;
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    range(url, start, end, stop.signal).then(
      (data) => setAnswer({ key, data }),
      (error) => stop.signal.aborted || setAnswer({ key, error }),
    );
    return () => stop.abort();
  }, [key, attempt]);
  if (answer.key !== key) return { data: null, state: html`<${Loading} what="the file" />` };
  if (answer.error) return { data: null, state: html`<${Failure} error=${answer.error} again=${() => setAttempt(attempt + 1)} />` };
  return { data: answer.data ?? null, state: null };
}

/**
 * @param {string} url
 * @param {number} start
 * @param {number} end
 * @param {AbortSignal} signal
 */
export async function range(url, start, end, signal) {
  const answer = await fetch(url, { headers: { Range: `bytes=${start}-${end - 1}` }, signal });
  if (!answer.ok) throw new ApiError(answer.status, "content", `the file's content was not given (${answer.status})`);
  const data = new Uint8Array(await answer.arrayBuffer());
  // Without a range the whole content comes.
  return answer.status === 206 ? data : data.subarray(start, end);
}
