/** A tree of which only the rows in sight are drawn: folders with files, values in values. Arrow keys move in it. */

import { html, useMemo, useRef, useState } from "../lib/ui.js";
import { Virtual } from "./virtual.js";

/**
 * @typedef {object} Node
 * @property {string} id
 * @property {string} label
 * @property {any} detail drawn after the label
 * @property {(() => Node[]) | null} children null for a leaf
 *
 * @typedef {{node: Node, depth: number, open: boolean}} Row
 */

const ROW_PX = 28;
let trees = 0;

/**
 * The rows of a tree of which some nodes are open, in order.
 * @param {Node[]} nodes
 * @param {ReadonlySet<string>} open
 * @param {number} [depth]
 * @returns {Row[]}
 */
export function rowsOf(nodes, open, depth = 0) {
  /** @type {Row[]} */
  const rows = [];
  for (const node of nodes) {
    const isOpen = node.children !== null && open.has(node.id);
    rows.push({ node, depth, open: isOpen });
    // One by one: a node may have more children than a call may have arguments.
    if (isOpen && node.children) for (const row of rowsOf(node.children(), open, depth + 1)) rows.push(row);
  }
  return rows;
}

/**
 * @param {{nodes: Node[], label: string, selected?: string | null, onSelect?: (node: Node) => void,
 *   initiallyOpen?: string[]}} props
 */
export function Tree({ nodes, label, selected = null, onSelect, initiallyOpen = [] }) {
  const [open, setOpen] = useState(/** @returns {ReadonlySet<string>} */ () => new Set(initiallyOpen));
  const [active, setActive] = useState(0);
  const name = useRef("");
  name.current ||= `tree-${(trees += 1)}`;
  const handle = useRef(/** @type {import("./virtual.js").Handle | null} */ (null));
  const rows = useMemo(() => rowsOf(nodes, open), [nodes, open]);
  const at = Math.min(active, rows.length - 1);

  /** @param {Node} node */
  const toggle = (node) =>
    setOpen((was) => {
      const next = new Set(was);
      if (!next.delete(node.id)) next.add(node.id);
      return next;
    });
  /** @param {Node} node */
  const choose = (node) => (node.children ? toggle(node) : onSelect?.(node));

  /** @param {number} index */
  const moveTo = (index) => {
    const next = Math.max(0, Math.min(rows.length - 1, index));
    setActive(next);
    handle.current?.reveal(next);
  };
  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    const row = rows[at];
    if (!row || event.altKey || event.ctrlKey || event.metaKey) return;
    /** @type {Record<string, () => void>} */
    const actions = {
      ArrowDown: () => moveTo(at + 1),
      ArrowUp: () => moveTo(at - 1),
      Home: () => moveTo(0),
      End: () => moveTo(rows.length - 1),
      ArrowRight: () => (row.node.children && !row.open ? toggle(row.node) : moveTo(at + 1)),
      ArrowLeft: () => (row.open ? toggle(row.node) : moveTo(parentOf(rows, at))),
      Enter: () => choose(row.node),
      " ": () => choose(row.node),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  };

  return html`<${Virtual}
    total=${rows.length}
    rowHeight=${ROW_PX}
    label=${label}
    role="tree"
    class="tree"
    fit
    attributes=${{ onKeyDown, "aria-activedescendant": rows.length ? `${name.current}-${at}` : undefined }}
    handle=${(/** @type {import("./virtual.js").Handle} */ given) => (handle.current = given)}
    row=${(/** @type {number} */ index) => {
      const { node, depth, open: isOpen } = rows[index];
      return html`<div
        key=${node.id}
        id=${`${name.current}-${index}`}
        role="treeitem"
        aria-level=${depth + 1}
        aria-expanded=${node.children ? isOpen : undefined}
        aria-selected=${node.id === selected}
        class=${`tree-row${index === at ? " active" : ""}${node.id === selected ? " selected" : ""}`}
        style=${{ paddingLeft: `${8 + depth * 16}px` }}
        onClick=${() => {
          setActive(index);
          choose(node);
        }}
      >
        <span class="tree-fold" aria-hidden="true">${node.children ? (isOpen ? "▾" : "▸") : ""}</span>
        <span class="tree-label" title=${node.label}>${node.label}</span>
        <span class="tree-detail">${node.detail}</span>
      </div>`;
    }}
  />`;
}

/**
 * @param {Row[]} rows
 * @param {number} at
 */
function parentOf(rows, at) {
  let index = at - 1;
  while (index > 0 && rows[index].depth >= rows[at].depth) index -= 1;
  return Math.max(0, index);
}

/**
 * A value of JSON as nodes: one for each key, those with values in them can be opened.
 * @param {unknown} value
 * @param {string} [path]
 * @returns {Node[]}
 */
export function valueNodes(value, path = "$") {
  if (typeof value !== "object" || value === null) return [valueNode("", value, path)];
  const entries = Array.isArray(value) ? value.map((item, index) => [String(index), item]) : Object.entries(value);
  return entries.map(([key, item]) => valueNode(key, item, `${path}.${key}`));
}

/**
 * @param {string} label
 * @param {unknown} value
 * @param {string} id
 * @returns {Node}
 */
function valueNode(label, value, id) {
  if (typeof value === "object" && value !== null) {
    const size = Array.isArray(value) ? value.length : Object.keys(value).length;
    const detail = Array.isArray(value) ? `[${size}]` : `{${size}}`;
    /** @type {Node[] | null} */
    let made = null;
    return { id, label, detail, children: size ? () => (made ??= valueNodes(value, id)) : null };
  }
  const text = typeof value === "string" ? JSON.stringify(value) : String(value);
  return { id, label, detail: html`<code class=${`value-${typeof value}`}>${text.slice(0, 2000)}</code>`, children: null };
}

/**
 * Files as nodes: folders by their prefixes, sorted by name, folders first. A leaf's id is that of the file.
 * @param {{id: string, prefix: string, filename: string}[]} files
 * @param {(file: any) => any} detail what stands after a file's name
 * @returns {Node[]}
 */
export function fileNodes(files, detail) {
  /** @typedef {{folders: Map<string, Folder>, leaves: Node[]}} Folder */
  /** @returns {Folder} */
  const empty = () => ({ folders: new Map(), leaves: [] });
  const root = empty();
  for (const file of files) {
    let folder = root;
    for (const part of file.prefix.split("/").filter(Boolean)) {
      let next = folder.folders.get(part);
      if (!next) folder.folders.set(part, (next = empty()));
      folder = next;
    }
    folder.leaves.push({ id: file.id, label: file.filename, detail: detail(file), children: null });
  }
  /** @param {Node} a @param {Node} b */
  const byLabel = (a, b) => (a.label < b.label ? -1 : a.label > b.label ? 1 : 0);
  /** @param {Folder} folder @param {string} path @returns {Node[]} */
  const nodesOf = (folder, path) => {
    const folders = [...folder.folders].map(([label, inner]) => {
      const id = `${path}${label}/`;
      const inside = nodesOf(inner, id);
      return { id, label, detail: `${countOf(inner)}`, children: () => inside };
    });
    return [...folders.sort(byLabel), ...folder.leaves.sort(byLabel)];
  };
  /** @param {Folder} folder @returns {number} */
  const countOf = (folder) => [...folder.folders.values()].reduce((sum, inner) => sum + countOf(inner), folder.leaves.length);
  return nodesOf(root, "/");
}

/**
 * The ids of all folders above a file.
 * @param {{prefix: string}} file
 */
export function foldersOf(file) {
  const parts = file.prefix.split("/").filter(Boolean);
  return parts.map((_, index) => `/${parts.slice(0, index + 1).join("/")}/`);
}
