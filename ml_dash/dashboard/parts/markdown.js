/**
 * Markdown to elements: headings, lists, emphasis, code, quotes, tables, links. Text never becomes markup.
 *
 * `blocks` and `spans` are pure and make plain trees; `Markdown` draws them. An image is shown as a link, so that no
 * text can make the page ask another server for something.
 */

import { html, useMemo } from "../lib/ui.js";

/**
 * @typedef {{kind: "text" | "code", text: string} | {kind: "strong" | "em" | "del", inner: Span[]} |
 *   {kind: "link", href: string, inner: Span[]} | {kind: "break"}} Span
 * @typedef {{kind: "heading", level: number, inner: Span[]} | {kind: "paragraph", inner: Span[]} |
 *   {kind: "code", text: string, language: string} | {kind: "rule"} | {kind: "quote", inner: Block[]} |
 *   {kind: "list", ordered: boolean, start: number, items: Item[]} |
 *   {kind: "table", head: Span[][], rows: Span[][][]}} Block
 * @typedef {{checked: boolean | null, inner: Block[]}} Item
 */

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*).*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:\s+(.*)|)$/;
const QUOTE = /^ {0,3}> ?/;
const DIVIDER = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEPEST = 12;

/**
 * The blocks of a text. Quotes and lists deeper than 12 levels stay plain text.
 * @param {string} text
 * @param {number} [depth]
 * @returns {Block[]}
 */
export function blocks(text, depth = 0) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n");
  /** @type {Block[]} */
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const [block, next] = lines[at].trim() ? blockAt(lines, at, depth) : [null, at + 1];
    if (block) found.push(block);
    at = next;
  }
  return found;
}

/**
 * The block that begins at a line that is not blank, and the number of the line after it.
 * @param {string[]} lines
 * @param {number} at
 * @param {number} depth
 * @returns {[Block, number]}
 */
function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return codeAt(lines, at, fence[1], fence[2]);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, inner: spans(heading[2]) }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) {
    const end = runEnd(lines, at, (next) => QUOTE.test(next));
    const inner = lines.slice(at, end).map((next) => next.replace(QUOTE, "")).join("\n");
    return [{ kind: "quote", inner: blocks(inner, depth + 1) }, end];
  }
  if (depth < DEEPEST && ITEM.test(line)) return listAt(lines, at, depth);
  if (line.includes("|") && at + 1 < lines.length && DIVIDER.test(lines[at + 1])) return tableAt(lines, at);
  const end = runEnd(lines, at, (next, index) => index === at || (next.trim() !== "" && !interrupts(next)));
  return [{ kind: "paragraph", inner: spans(lines.slice(at, end).map((next) => next.trimStart()).join("\n")) }, end];
}

/**
 * The number of the first line from `at` on that does not belong.
 * @param {string[]} lines
 * @param {number} at
 * @param {(line: string, index: number) => boolean} belongs
 */
function runEnd(lines, at, belongs) {
  let end = at;
  while (end < lines.length && belongs(lines[end], end)) end += 1;
  return end;
}

/** @param {string} line */
function interrupts(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

/**
 * @param {string[]} lines
 * @param {number} at
 * @param {string} fence
 * @param {string} language
 * @returns {[Block, number]}
 */
function codeAt(lines, at, fence, language) {
  const end = runEnd(lines, at + 1, (line) => !(line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "")));
  return [{ kind: "code", text: lines.slice(at + 1, end).join("\n"), language }, end + 1];
}

/**
 * @param {string[]} lines
 * @param {number} at
 * @param {number} depth
 * @returns {[Block, number]}
 */
function listAt(lines, at, depth) {
  const first = /** @type {RegExpExecArray} */ (ITEM.exec(lines[at]));
  const ordered = /\d/.test(first[2]);
  const indent = first[1].length;
  /** @type {Item[]} */
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[1].length > indent + 1 || item[1].length < indent || /\d/.test(item[2]) !== ordered) break;
    const hang = indent + item[2].length + 1;
    const start = end + 1;
    end = runEnd(lines, start, (line, index) => belongsToItem(lines, index, indent));
    while (end > start && !lines[end - 1].trim()) end -= 1;
    const rest = lines.slice(start, end).map((line) => line.slice(Math.min(hang, line.search(/\S|$/))));
    const task = /^\[([ xX])\]\s+(.*)$/.exec(item[3] ?? "");
    const text = [task ? task[2] : (item[3] ?? ""), ...rest].join("\n");
    items.push({ checked: task ? task[1] !== " " : null, inner: blocks(text, depth + 1) });
    const blank = runEnd(lines, end, (line) => !line.trim());
    if (blank < lines.length && ITEM.test(lines[blank])) end = blank;
  }
  return [{ kind: "list", ordered, start: ordered ? parseInt(first[2], 10) : 1, items }, end];
}

/**
 * True for a line of an item's inside: it is indented, or goes on a paragraph, or is blank before one of these.
 * @param {string[]} lines
 * @param {number} index
 * @param {number} indent
 */
function belongsToItem(lines, index, indent) {
  const line = lines[index];
  if (line.trim()) return line.search(/\S/) > indent + 1 || (!interrupts(line) && lines[index - 1].trim() !== "");
  const next = lines[index + 1];
  return next !== undefined && next.trim() !== "" && next.search(/\S/) > indent + 1;
}

/**
 * @param {string[]} lines
 * @param {number} at
 * @returns {[Block, number]}
 */
function tableAt(lines, at) {
  const end = runEnd(lines, at + 2, (line) => line.includes("|") && line.trim() !== "");
  const head = cells(lines[at]);
  const rows = lines.slice(at + 2, end).map(cells);
  return [{ kind: "table", head, rows: rows.map((row) => head.map((_, index) => row[index] ?? [])) }, end];
}

/** @param {string} line */
function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => spans(cell.trim()));
}

// What may begin a span. Each alternative is tried at its place only, so the time grows with the text and no faster.
const SPAN =
  /\\([!-/:-@[-`{-~])|(`+)([^`]|[^`][\s\S]{0,2000}?[^`])\2(?!`)|!?\[([^[\]\n]{0,500})\]\(\s*<?([^\s<>()]{1,2000})>?[^()\n]{0,200}\)|<?(https?:\/\/[^\s<>"'`]{1,2000})>?|(\*\*|__)(?=\S)([^\n]{0,2000}?\S)\7|(\*|_)(?=\S)([^*_\n]{1,1000})\9|~~(?=\S)([^~\n]{1,1000})~~| {2,}\n|\n/;

/**
 * The spans of a text.
 * @param {string} text
 * @param {number} [depth]
 * @returns {Span[]}
 */
export function spans(text, depth = 0) {
  /** @type {Span[]} */
  const found = [];
  let rest = text;
  while (rest) {
    const match = depth > DEEPEST ? null : SPAN.exec(rest);
    if (!match) break;
    if (match.index) found.push({ kind: "text", text: rest.slice(0, match.index) });
    const before = match.index ? rest[match.index - 1] : "";
    found.push(span(match, before, depth));
    rest = rest.slice(match.index + match[0].length);
  }
  if (rest) found.push({ kind: "text", text: rest });
  return found;
}

/**
 * @param {RegExpExecArray} match
 * @param {string} before the character before it
 * @param {number} depth
 * @returns {Span}
 */
function span(match, before, depth) {
  const [all, escaped, , code, label, target, address, double, strong, single, emphasis, deleted] = match;
  if (escaped) return { kind: "text", text: escaped };
  if (code) return { kind: "code", text: code };
  if (label !== undefined) return link(target, label ? spans(label, depth + 1) : [{ kind: "text", text: target }], all);
  if (address) {
    // Punctuation after an address is the sentence's, and no part of the target.
    return link(address.replace(/[.,;:!?)\]]+$/, ""), [{ kind: "text", text: address }], all);
  }
  // `a_b_c` is a name and no emphasis.
  if ((double === "__" || single === "_") && /\w/.test(before)) return { kind: "text", text: all };
  if (strong) return { kind: "strong", inner: spans(strong, depth + 1) };
  if (emphasis) return { kind: "em", inner: spans(emphasis, depth + 1) };
  if (deleted) return { kind: "del", inner: spans(deleted, depth + 1) };
  return all === "\n" ? { kind: "text", text: "\n" } : { kind: "break" };
}

/**
 * A link, or the text as it was written where its target is not one that a browser only opens.
 * @param {string} target
 * @param {Span[]} inner
 * @param {string} written
 * @returns {Span}
 */
function link(target, inner, written) {
  return /^(https?:\/\/|mailto:)/i.test(target) ? { kind: "link", href: target, inner } : { kind: "text", text: written };
}

/**
 * A text in Markdown, as elements.
 * @param {{text: string}} props
 */
export function Markdown({ text }) {
  const tree = useMemo(() => blocks(text), [text]);
  return html`<div class="markdown">${tree.map(drawBlock)}</div>`;
}

/**
 * @param {Block} block
 * @returns {any}
 */
function drawBlock(block) {
  switch (block.kind) {
    case "heading":
      // The page's own headings come first in the outline.
      return html`<p role="heading" aria-level=${Math.min(6, block.level + 2)} class=${`h h${block.level}`}>
        ${block.inner.map(drawSpan)}
      </p>`;
    case "paragraph":
      return html`<p>${block.inner.map(drawSpan)}</p>`;
    case "code":
      return html`<pre tabindex="0"><code>${block.text}</code></pre>`;
    case "rule":
      return html`<hr />`;
    case "quote":
      return html`<blockquote>${block.inner.map(drawBlock)}</blockquote>`;
    case "list": {
      const items = block.items.map(drawItem);
      return block.ordered ? html`<ol start=${block.start}>${items}</ol>` : html`<ul>${items}</ul>`;
    }
    case "table":
      return html`<div class="table-scroll" tabindex="0"><table>
        <thead><tr>${block.head.map((cell) => html`<th scope="col">${cell.map(drawSpan)}</th>`)}</tr></thead>
        <tbody>${block.rows.map((row) => html`<tr>${row.map((cell) => html`<td>${cell.map(drawSpan)}</td>`)}</tr>`)}</tbody>
      </table></div>`;
  }
}

/** @param {Item} item */
function drawItem(item) {
  const box = item.checked === null ? null : html`<span aria-hidden="true">${item.checked ? "☑" : "☐"} </span>`;
  // A lone paragraph is shown without its margins.
  const inner =
    item.inner.length && item.inner[0].kind === "paragraph"
      ? [item.inner[0].inner.map(drawSpan), ...item.inner.slice(1).map(drawBlock)]
      : item.inner.map(drawBlock);
  return html`<li>${box}${inner}</li>`;
}

/**
 * @param {Span} part
 * @returns {any}
 */
function drawSpan(part) {
  switch (part.kind) {
    case "text":
      return part.text;
    case "code":
      return html`<code>${part.text}</code>`;
    case "strong":
      return html`<strong>${part.inner.map(drawSpan)}</strong>`;
    case "em":
      return html`<em>${part.inner.map(drawSpan)}</em>`;
    case "del":
      return html`<del>${part.inner.map(drawSpan)}</del>`;
    case "break":
      return html`<br />`;
    case "link":
      return html`<a href=${part.href} target="_blank" rel="noopener noreferrer nofollow">${part.inner.map(drawSpan)}</a>`;
  }
}
