// What the screens of a run compute, run by node.
import assert from "node:assert/strict";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

// What modules look at when they are loaded.
globalThis.location = { pathname: "/", search: "" };
globalThis.matchMedia = () => ({ matches: false, addEventListener() {} });
globalThis.EventSource = class { static CLOSED = 2; };
// The working folder has the dashboard in it, as modules.
const dashboard = pathToFileURL(`${process.cwd()}/dashboard/`);
const { blocks, spans } = await import(new URL("parts/markdown.js", dashboard));
const { moved, offsetOf, indexAt } = await import(new URL("parts/virtual.js", dashboard));
const { visible, folded, pieces, finder } = await import(new URL("parts/loglines.js", dashboard));
const { kindOf, pageText, linesOf, parseTable, hexDump } = await import(new URL("parts/preview.js", dashboard));
const { rowsOf: treeRows, fileNodes, foldersOf, valueNodes } = await import(new URL("parts/tree.js", dashboard));
const { columns } = await import(new URL("parts/slider.js", dashboard));
const { jsonText } = await import(new URL("lib/json.js", dashboard));
const { changesByKey, textOf } = await import(new URL("screens/run-history.js", dashboard));
const { rowsOf } = await import(new URL("screens/run-parameters.js", dashboard));
const { lastAt } = await import(new URL("screens/run-timeline.js", dashboard));
const { reasonOf, reasonText } = await import(new URL("parts/status.js", dashboard));
const { changed } = await import(new URL("screens/run-edit.js", dashboard));

const text = (value) => ({ kind: "text", text: value });

test("markdown has headings, paragraphs, code, rules, quotes", () => {
  const found = blocks("# One\n\ntwo\nlines\n\n```py\n# no heading\n```\n---\n> said\n> so");
  assert.deepEqual(found.map((block) => block.kind), ["heading", "paragraph", "code", "rule", "quote"]);
  assert.deepEqual(found[0], { kind: "heading", level: 1, inner: [text("One")] });
  assert.deepEqual(found[2], { kind: "code", text: "# no heading", language: "py" });
});

test("lists nest, go on after blank lines, and have boxes", () => {
  const [list] = blocks("- a\n  - b\n\n- [x] c\n  more\n1. other");
  assert.equal(list.items.length, 2);
  assert.equal(list.items[0].inner[1].items[0].inner[0].inner[0].text, "b");
  assert.equal(list.items[1].checked, true);
  assert.equal(list.items[0].checked, null);
});

test("a table has cells for each heading, whatever its rows have", () => {
  const [table] = blocks("| a | b |\n|---|:-:|\n| 1 |\n| 1 | 2 | 3 |");
  assert.deepEqual(table.rows.map((row) => row.length), [2, 2]);
});

test("only addresses that a browser opens become links", () => {
  assert.deepEqual(spans("[a](https://b.example/c)"), [{ kind: "link", href: "https://b.example/c", inner: [text("a")] }]);
  for (const target of ["javascript:alert(1)", "data:text/html,x", "//host/x", "JaVaScRiPt:x", "vbscript:x", "/runs"]) {
    assert.ok(spans(`[a](${target})`).every((span) => span.kind === "text"), target);
  }
  assert.equal(spans("see https://b.example/c.")[1].href, "https://b.example/c");
  assert.ok(spans("<img src=x onerror=alert(1)>").every((span) => span.kind === "text"));
});

test("an image is a link, and asks nobody for anything", () => {
  assert.equal(spans("![plot](https://b.example/p.png)")[0].kind, "link");
});

test("underscores within names are no emphasis", () => {
  assert.equal(spans("a_b_c").map((span) => span.text).join(""), "a_b_c");
  assert.equal(spans("_b_")[0].kind, "em");
  assert.equal(spans("**b**")[0].kind, "strong");
});

test("markdown takes time in proportion to its text, whatever that is", () => {
  for (const piece of ["**", "[", "`", "> ", "- ", "_a", "~~a", "| ", "<https://"]) {
    const began = performance.now();
    blocks(piece.repeat(20_000));
    assert.ok(performance.now() - began < 3000, piece);
  }
});

test("control characters and turned text can be seen", () => {
  assert.equal(visible("\x1b[31mred\x07\u202egnp.exe"), "⟨ESC⟩[31mred⟨U+0007⟩⟨U+202E⟩gnp.exe");
  assert.equal(visible("tab\tand ünïcödé 漢字 🎉"), "tab\tand ünïcödé 漢字 🎉");
});

test("a folded line says what it leaves out", () => {
  assert.deepEqual(folded("one\ntwo\nthree\n"), { text: "one", lines: 2, characters: 0 });
  assert.equal(folded("x".repeat(5000)).characters, 4000);
});

test("what a search has found is marked, also what looks like an expression", () => {
  const marked = (line, q, regex) => pieces(line, finder(q, regex)).filter((piece) => piece.marked).map((piece) => piece.text);
  assert.deepEqual(marked("a.b A.B axb", "a.b", false), ["a.b", "A.B"]);
  assert.deepEqual(marked("a1 b22", "[0-9]+", true), ["1", "22"]);
  assert.equal(finder("(?P<x>a)", true), null);
  assert.deepEqual(pieces("abc", finder("x*", true)).map((piece) => piece.text).join(""), "abc");
});

test("rows and pixels correspond, with unfolded rows between", () => {
  const tall = new Map([[5, 100], [2, 50]]);
  for (let index = 0; index < 10; index += 1) assert.equal(indexAt(offsetOf(index, 20, tall), 20, tall), index);
  assert.equal(offsetOf(10, 20, tall), 200 + 80 + 30);
  assert.equal(indexAt(offsetOf(5, 20, tall) + 99, 20, tall), 5);
});

test("a list longer than a browser's scroll area is reached to its last row", () => {
  const length = 10_000_000 * 22;
  const box = { scrollHeight: 8_000_000, clientHeight: 600, scrollTop: 8_000_000 - 600 };
  assert.equal(moved({ top: 0, scrollTop: 0 }, box, length), length - 600);
  assert.equal(moved({ top: 5000, scrollTop: 100 }, { ...box, scrollTop: 160 }, length), 5060);
  assert.equal(moved({ top: 5000, scrollTop: 100 }, { ...box, scrollTop: 0 }, length), 0);
  const half = moved({ top: 0, scrollTop: 0 }, { ...box, scrollTop: (8_000_000 - 600) / 2 }, length);
  assert.ok(Math.abs(half - (length - 600) / 2) < 1);
});

test("a file is shown by its name, and a page of another site never as one", () => {
  const kind = (filename, contentType = "application/octet-stream", sizeBytes = 100) => kindOf({ filename, contentType, sizeBytes });
  assert.equal(kind("a.PNG"), "image");
  assert.equal(kind("a.svg"), "svg");
  assert.equal(kind("a.html", "text/html"), "text");
  assert.equal(kind("a.json"), "json");
  assert.equal(kind("a.json", "application/json", 1e9), "text");
  assert.equal(kind("a.csv", "text/csv", 1e9), "table");
  assert.equal(kind("model.pt"), "bytes");
});

test("pages of a text join without a character lost or doubled", () => {
  const page = 256 << 10;
  const bytes = new TextEncoder().encode("aé漢🎉".repeat(80_000));
  let joined = "";
  for (let start = 0; start < bytes.length; start += page) joined += pageText(bytes.subarray(start, start + page + 3), start);
  assert.equal(joined, new TextDecoder().decode(bytes));
});

test("lines are cut where nobody reads on, and say so", () => {
  const [line, last] = linesOf(`${"x".repeat(6000)}\r\nlast\n`);
  assert.ok(line.endsWith("1,000 more characters"));
  assert.equal(last, "last");
});

test("cells may hold separators, quotes and newlines", () => {
  assert.deepEqual(parseTable('a,b\n"1,2","say ""x""\nthen"\n,\n', ","), [["a", "b"], ["1,2", 'say "x"\nthen'], ["", ""]]);
  assert.deepEqual(parseTable("a\tb,c\r\nd", "\t"), [["a", "b,c"], ["d"]]);
  assert.deepEqual(parseTable('"never closed', ","), [["never closed"]]);
});

test("bytes are shown with their place", () => {
  assert.equal(hexDump(new Uint8Array([0x41, 0, 0xff]), 16), `00000010  41 00 ff${" ".repeat(39)}  A··`);
});

test("files are a tree of their folders", () => {
  const files = [{ id: "1", prefix: "/b/c/", filename: "z" }, { id: "2", prefix: "/", filename: "a" }, { id: "3", prefix: "/b/", filename: "y" }];
  const nodes = fileNodes(files, () => "");
  const open = new Set(files.flatMap(foldersOf));
  assert.deepEqual(treeRows(nodes, open).map((row) => [row.depth, row.node.label]), [[0, "b"], [1, "c"], [2, "z"], [1, "y"], [0, "a"]]);
  assert.equal(nodes[0].detail, "2");
});

test("values are a tree, and open only where it is opened", () => {
  const nodes = valueNodes({ a: [1, 2], b: {}, c: null });
  assert.deepEqual(treeRows(nodes, new Set()).map((row) => row.node.label), ["a", "b", "c"]);
  assert.deepEqual(treeRows(nodes, new Set(["$.a"])).map((row) => row.node.label), ["a", "0", "1", "b", "c"]);
  assert.equal(nodes[1].children, null);
});

test("thousands of marks are as many ticks as there are pixels", () => {
  const ticks = Array.from({ length: 5000 }, (_, event) => ({ event, kind: event % 2 ? "resumed" : "crashed" }));
  assert.ok(columns(ticks, 5000, 300).length <= 600);
  assert.deepEqual(columns([{ event: 10, kind: "opened" }], 10, 101), [{ x: 100, kind: "opened" }]);
});

test("whole numbers are written as they are", () => {
  assert.equal(jsonText({ seed: 9223372036854775783n, x: 1.5 }), '{\n  "seed": 9223372036854775783,\n  "x": 1.5\n}');
  assert.equal(jsonText({ text: "\u00000" }), JSON.stringify({ text: "\u00000" }, null, 2));
});

test("parameters of one prefix stand together, and a lone one by itself", () => {
  const rows = rowsOf({ lr: 1, "model.width": 2, "model.block.kind": 3, "data.name": 4, model: 5 }, new Set());
  assert.deepEqual(rows.map((row) => [row.kind, row.depth, row.name]), [
    ["value", 0, "lr"], ["group", 0, "model"], ["value", 1, "width"], ["value", 1, "block.kind"], ["value", 0, "data.name"], ["value", 0, "model"],
  ]);
  assert.equal(rowsOf({ "a.b": 1, "a.c": 2 }, new Set(["a."])).length, 1);
});

test("a change counts up to the moment that is looked at", () => {
  const mark = (event, keys) => ({ event, time: `t${event}`, kind: "parameter", host: "h", writer: null, text: "", data: { keys } });
  const marks = [mark(1, ["lr", "seed"]), mark(5, ["lr"])];
  assert.deepEqual(changesByKey(marks, null).get("lr"), { time: "t5", event: 5, host: "h", times: 2 });
  assert.deepEqual(changesByKey(marks, "4").get("lr"), { time: "t1", event: 1, host: "h", times: 1 });
});

test("the mark before a moment is found", () => {
  const marks = [{ event: 1 }, { event: 5 }, { event: 5 }, { event: 9 }];
  assert.equal(lastAt(marks, 0), undefined);
  assert.equal(lastAt(marks, 5), marks[2]);
  assert.equal(lastAt(marks, 100), marks[3]);
});

test("a form changes what it says otherwise", () => {
  const record = { name: "a", title: null, description: "d", tags: ["x"], folder: null, notes: null };
  const form = new FormData();
  for (const [name, value] of Object.entries({ title: "a", description: "e", tags: "x, y, x", folder: "", notes: "" })) form.set(name, value);
  assert.deepEqual(changed(record, form), { description: "e", tags: ["x", "y"] });
});

test("a mark says what parameters were, and nothing twice", () => {
  const data = { keys: ["lr", "n"], values: { lr: 0.001, n: 2 }, before: { lr: 0.1 } };
  assert.equal(textOf({ kind: "parameter", text: "set lr = 0.001, n = 2", data }), "lr 0.1 → 0.001, n = 2");
  assert.equal(textOf({ kind: "resumed", text: "resumed by process 1 on a", data: {} }), "by process 1 on a");
  assert.equal(textOf({ kind: "failed", text: "failed: ValueError: x", data: {} }), "ValueError: x");
  const large = { values: { seed: Number("9223372036854775783") } };
  assert.equal(textOf({ kind: "parameter", text: "set seed = 9223372036854775783", data: large }), "set seed = 9223372036854775783");
  assert.equal(textOf({ kind: "file", text: "added a.txt", data: {} }), "added a.txt");
});

test("a running run says since when it is silent, once that is five minutes", () => {
  const now = Date.parse("2026-01-01T10:00:00Z");
  const run = { status: "running", reason: null, heardAt: "2026-01-01T09:56:00Z" };
  assert.equal(reasonOf(run, now), null);
  assert.deepEqual(reasonOf({ ...run, heardAt: "2026-01-01T09:54:00Z" }, now), { kind: "silent", at: "2026-01-01T09:54:00Z" });
  assert.equal(reasonOf({ ...run, status: "completed", heardAt: "2026-01-01T09:54:00Z" }, now), null);
  assert.equal(reasonText({ kind: "signal", signal: "SIGKILL" }), "SIGKILL");
});
