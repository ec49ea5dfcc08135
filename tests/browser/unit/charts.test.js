// The numbers behind charts, run by node.
import assert from "node:assert/strict";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

// The working folder has the dashboard in it, as modules.
const parts = pathToFileURL(`${process.cwd()}/dashboard/parts/`);
const { usualStep, smoothed } = await import(new URL("smoothing.js", parts));
const { nearest, rising, stretches, middles, extent, padded, shownOf, scaler, zoomed } = await import(new URL("envelope.js", parts));
const { commonGrid, resampled, meanOf } = await import(new URL("means.js", parts));
const { short, span, clock, logMarks } = await import(new URL("axes.js", parts));
const { byPrefix, found, optionsOf, zoomOf, zoomText, flippedGroups, groupsOf } = await import(new URL("chartoptions.js", parts));
const { layout, within, columnsOf } = await import(new URL("gridlayout.js", parts));
const { axisOf, differing } = await import(new URL("planeaxis.js", parts));
const { cell, csvOf } = await import(new URL("chartfiles.js", parts));

const curve = (x, min, max = min, more = {}) => ({ experiment: "r", x, min, max, shown: x.length, total: x.length, breaks: [], nonFinite: [], ...more });
const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-9, `${a} is not ${b}`);

test("smoothing leaves a constant as it is, from its first point on", () => {
  for (const value of smoothed([0, 1, 2, 3], [5, 5, 5, 5], 0.9)) near(value, 5);
});

test("smoothing by nothing changes nothing", () => {
  assert.deepEqual([...smoothed([0, 1], [1, 9], 0)], [1, 9]);
});

test("a smoothed value is the debiased average of what came before", () => {
  const [, second, third] = smoothed([0, 1, 2], [1, 2, 4], 0.5);
  near(second, (0.5 * 1 + 2) / 1.5);
  near(third, (0.25 * 1 + 0.5 * 2 + 4) / 1.75);
});

test("a point far behind counts less than a neighbour", () => {
  const values = [0, 0, 0, 10];
  assert.ok(smoothed([0, 1, 2, 30], values, 0.9)[3] > smoothed([0, 1, 2, 3], values, 0.9)[3]);
});

test("NaN stays where it is and spoils nothing behind it", () => {
  const result = smoothed([0, 1, 2], [1, NaN, 1], 0.9);
  assert.ok(Number.isNaN(result[1]));
  near(result[2], 1);
});

test("the usual step is the median, whatever single gaps there are", () => {
  assert.equal(usualStep([0, 10, 20, 500, 510]), 10);
  assert.equal(usualStep([]), 1);
});

test("the nearest entry is the same by halving and by looking at each", () => {
  const xs = [0, 1, 1, 4, 9];
  for (let x = -1; x < 11; x += 0.25) near(Math.abs(xs[nearest(xs, x, true)] - x), Math.abs(xs[nearest(xs, x, false)] - x));
  assert.equal(nearest([], 3, true), -1);
  assert.ok(rising(xs) && !rising([1, 0]));
});

test("lines are broken at breaks and at entries without a value, and nowhere else", () => {
  assert.deepEqual(stretches(curve([0, 1, 2, 3, 4], [1, 1, NaN, 1, 1], undefined, { breaks: [4] })), [[0, 2], [3, 4], [4, 5]]);
  assert.deepEqual(stretches(curve([0, 1], [1, 2])), [[0, 2]]);
  assert.deepEqual(stretches(curve([], [])), []);
});

test("the line lies in the middle of the envelope, also where a sum would overflow", () => {
  assert.deepEqual([...middles({ min: [1, 2], max: [3, 2] })], [2, 2]);
  assert.ok(Number.isFinite(middles({ min: [1.7e308], max: [1.6e308] })[0]));
});

test("an extent takes finite numbers, on a log axis positive ones", () => {
  assert.deepEqual(extent([[1, NaN, Infinity, -2]], false), [-2, 1]);
  assert.deepEqual(extent([[1, 0, -2, 8]], true), [1, 8]);
  assert.equal(extent([[NaN]], false), null);
});

test("an axis is never empty", () => {
  for (const log of [true, false]) {
    for (const range of [null, [3, 3], [1e-300, 1e-300]]) {
      const [low, high] = padded(range, log, 0.05);
      assert.ok(low < high, `${range}`);
    }
  }
  assert.deepEqual(padded([0, 0], false, 0.05), [-1, 1]);
});

test("a chart says how many of its points it shows", () => {
  assert.equal(shownOf([{ shown: 2000, total: 1204000 }]), "2,000 of 1,204,000 points");
  assert.equal(shownOf([{ shown: 1, total: 1 }]), "1 point");
});

test("a log axis has no place for zero", () => {
  const place = scaler(1, 100, true, 0, 100);
  near(place(10), 50);
  assert.ok(Number.isNaN(place(0)));
  near(scaler(0, 10, false, 100, -100)(2.5), 75);
});

test("zooming keeps its centre", () => {
  assert.deepEqual(zoomed([0, 100], 50, 0.5, false), [25, 75]);
  const [low, high] = zoomed([1, 10000], 100, 0.5, true);
  near(low, 10);
  near(high, 1000);
});

test("few x values are compared as they are, many on a common grid", () => {
  assert.deepEqual([...commonGrid([curve([0, 2], [1, 1]), curve([1, 2], [1, 1])])], [0, 1, 2]);
  assert.deepEqual([...commonGrid([curve([0, 1, 2, 3, 8], [1, 1, 1, 1, 1])], 3)], [0, 4, 8]);
});

test("a run has no value before, after and within its gaps", () => {
  const values = resampled(curve([1, 2, 5, 6], [10, 20, 50, 60], undefined, { breaks: [2] }), [0, 1, 1.5, 3, 5.5, 7]);
  assert.deepEqual([...values], [NaN, 10, 15, NaN, 55, NaN]);
});

test("the mean of seeds has the deviation of a sample as its band, or their range", () => {
  const runs = [curve([0, 1], [1, 5]), curve([0, 1], [3, 5]), curve([0], [8])];
  const sd = meanOf(runs, "sd");
  near(sd.mean[0], 4);
  near(sd.max[0] - sd.mean[0], Math.sqrt(13));
  assert.deepEqual([...sd.runs], [3, 2]);
  near(sd.min[1], 5);
  const range = meanOf(runs, "range");
  assert.deepEqual([range.min[0], range.max[0]], [1, 8]);
});

test("a mean is broken where no run has a value", () => {
  const { x, breaks } = meanOf([curve([0, 1, 3, 4], [1, 1, 1, 1], undefined, { breaks: [2] }), curve([2], [NaN])], "sd");
  assert.deepEqual([...x], [0, 1, 3, 4]);
  assert.deepEqual(breaks, [2]);
});

test("marks of an axis are short and differ", () => {
  assert.equal(short(20000, 20000), "20k");
  assert.equal(short(1500, 500), "1500");
  assert.equal(short(2.5e6, 5e5), "2.5M");
  assert.equal(short(0.00001, 0.00001), "1e-5");
  assert.notEqual(short(1.0001, 0.0001), short(1.0002, 0.0001));
  assert.deepEqual([0.25, 0.5, 0.75].map((value) => short(value, 0.25)), ["0.25", "0.5", "0.75"]);
  assert.equal(short(12500, 2500), "12.5k");
  assert.equal(short(0), "0");
});

test("marks of a log axis lie within it, in order, and fit", () => {
  for (const [low, high] of [[1, 1e6], [0.105, 0.9], [0.99, 1.01], [3e-7, 2], [1e-300, 1e300], [5, 5.0001]]) {
    const marks = logMarks(low, high, 6);
    assert.ok(marks.length >= 2 && marks.length <= 13, `${low}..${high}: ${marks}`);
    marks.forEach((mark, i) => assert.ok(mark >= low * (1 - 1e-9) && mark <= high * (1 + 1e-9) && (!i || mark > marks[i - 1])));
  }
});

test("durations and times say what matters", () => {
  assert.equal(span(4210), "1h 10m");
  assert.equal(span(-0.5), "-0.5s");
  assert.match(clock([1.79e9, 1.79e9 + 3600], 3600)[0], /\n/);
  assert.doesNotMatch(clock([1.79e9, 1.79e9 + 60], 60)[1], /\n/);
});

test("metrics stand in groups by prefix, numbers in their order", () => {
  assert.deepEqual(byPrefix(["b/w10", "b/w2", "loss", "a.x"]), [
    { prefix: "", names: ["loss"] }, { prefix: "a", names: ["a.x"] }, { prefix: "b", names: ["b/w2", "b/w10"] },
  ]);
});

test("a search finds all words in any case, and regular expressions", () => {
  const names = ["train/Loss", "val/loss", "val/acc"];
  assert.deepEqual(found(names, "LOSS val"), ["val/loss"]);
  assert.deepEqual(found(names, "/^val.*c$/"), ["val/acc"]);
  assert.deepEqual(found(names, "/(/"), []);
  assert.equal(found(names, " "), names);
});

test("five thousand names are searched within a key's time", () => {
  const names = Array.from({ length: 5000 }, (_, i) => `layer/${i % 50}/weight_${i}`);
  const begun = process.cpuUsage().user;
  byPrefix(found(names, "weight 12"));
  assert.ok(process.cpuUsage(undefined).user - begun < 50_000);
});

test("options of the URL are read within their limits", () => {
  const options = optionsOf({ smooth: "7", log: "xy", x: "metric:val.acc", zoom: "10..2", size: "huge" });
  assert.deepEqual([options.smoothing, options.logX, options.logY, options.x, options.zoom, options.size], [0.999, true, true, "metric:val.acc", null, "m"]);
  assert.equal(optionsOf({ x: "<b>" }).x, "step");
  assert.deepEqual(zoomOf(zoomText([-1.5, 1234567.25])), [-1.5, 1234567.25]);
  assert.deepEqual(groupsOf(flippedGroups(["a,b"], "c d")), ["a,b", "c d"]);
  assert.deepEqual(groupsOf("%E0"), ["%E0"]);
});

test("only charts in view exist", () => {
  const groups = byPrefix(Array.from({ length: 5000 }, (_, i) => `g${i % 10}/m${i}`));
  const { bands, height } = layout(groups, () => true, 4, 200);
  const inView = within(bands, height / 2, height / 2 + 900);
  assert.ok(inView.length <= 6 && inView[0].top <= height / 2 && inView.at(-1).top + inView.at(-1).height >= height / 2 + 900);
  assert.equal(bands.filter(({ head }) => !head).flatMap(({ names }) => names).length, 5000);
  assert.equal(layout(groups, () => false, 4, 200).bands.length, 10);
  assert.equal(columnsOf(390, 380), 1);
});

test("numbers stand by size and everything else by name", () => {
  const axis = axisOf([1, 10, 100, undefined], true);
  near(axis.place(10), 0.5);
  assert.equal(axis.place(0), null);
  const names = axisOf(["adam", 3, "sgd"], false);
  assert.ok(!names.numeric && names.place("adam") !== names.place(3));
  assert.equal(axisOf([7, 7], false).place(7), 0.5);
  assert.equal(axisOf([], false).place(1), null);
});

test("parameters differ by value, not by identity", () => {
  assert.deepEqual(differing([{ params: { a: [1], b: 1, c: 1 } }, { params: { a: [1], b: 2 } }]), ["b", "c"]);
});

test("a cell of a table is quoted, and never a formula", () => {
  assert.equal(cell('a "b", c'), '"a ""b"", c"');
  assert.equal(cell("=1+1"), "'=1+1");
  const lines = csvOf("step", [{ run: "r", name: "n", x: [1], min: [2], max: [3], line: [2.5], raw: null, faint: false }]).split("\n");
  assert.deepEqual(lines, ["run,name,step,min,max", "r,n,1,2,3", ""]);
});
