"""What a person waits for, measured in a browser: Chromium without a window, `ml-dash ui` and `ml-dash server`.

Times are the page's own clock: from the start of its navigation, or from the event that a hand caused, until what was
waited for is in the document or in a chart's data (`window.mlDash.chart`). The screen is refreshed 60 times a second,
so a figure of less than 17 ms is one frame.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any, Final

from ml_dash import Experiment
from ml_dash.projection.projector import catch_up
from ml_dash.reading import read
from ml_dash.server.http.assets import FOLDER, Assets

from ..browser.conftest import FLAGS, WIDE
from ..browser.hosts import Shown, UiServer, by_server, by_ui
from ..running import Server
from .rows import Figures, row

if TYPE_CHECKING:
    from playwright.sync_api import Page

_FIRST_ROW: Final = "() => document.querySelector('[role=grid] [role=row] a') ? performance.now() : false"
_FRAMES: Final = """
async (scroll) => {
    const grid = document.querySelector('[role=grid]');
    const times = [];
    let last = await new Promise(requestAnimationFrame);
    for (let frame = 0; frame < 120; frame += 1) {
        grid.scrollTop += scroll;
        const now = await new Promise(requestAnimationFrame);
        times.push(now - last);
        last = now;
    }
    return times;
}"""
_FILTER: Final = """
async ([text, total]) => {
    const box = document.querySelector('input[type=search]');
    const grid = () => document.querySelector('[role=grid]')?.getAttribute('aria-rowcount');
    box.focus();
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(box, text);
    const begun = performance.now();
    box.dispatchEvent(new InputEvent('input', {bubbles: true}));
    box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true}));
    while (grid() !== String(total)) {
        await new Promise(requestAnimationFrame);
        if (performance.now() - begun > 20000) throw new Error(`${grid()} rows, and not ${total}`);
    }
    return performance.now() - begun;
}"""
_DRAWN: Final = """
([name, runs, least, most]) => {
    const found = window.mlDash?.chart(name);
    const there = found && !found.loading
        && found.runs.filter((run) => run.shown > 0 && run.total >= least && run.total <= most);
    return there && there.length >= runs ? performance.now() : false;
}"""
_MOVES: Final = """
async (name) => {
    const over = document.querySelector(`figure[aria-label="${name}"] .u-over`);
    const {left, top, width, height} = over.getBoundingClientRect();
    const times = [];
    for (let step = 0; step < 100; step += 1) {
        const at = {clientX: left + width * (0.1 + 0.008 * step), clientY: top + height / 2, bubbles: true};
        await new Promise(requestAnimationFrame);
        const begun = performance.now();
        over.dispatchEvent(new MouseEvent('mousemove', at));
        // What a frame does with it is done in the next one, before this message.
        await new Promise((done) => requestAnimationFrame(() => { const c = new MessageChannel();
            c.port1.onmessage = done; c.port2.postMessage(0); }));
        times.push(performance.now() - begun);
    }
    return times;
}"""
_LIVE: Final = """
(name) => {
    window.seen = [];
    const look = () => {
        const total = window.mlDash?.chart(name)?.runs[0]?.total ?? 0;
        if (total && total !== window.seen.at(-1)?.[0]) window.seen.push([total, Date.now() / 1000]);
        requestAnimationFrame(look);
    };
    look();
}"""
_SEARCHED: Final = """
async ([text, count]) => {
    const box = document.querySelector('input[type=search]');
    box.focus();
    const times = [];
    for (const key of text) {
        const begun = performance.now();
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(box, box.value + key);
        box.dispatchEvent(new InputEvent('input', {bubbles: true}));
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        times.push(performance.now() - begun);
    }
    return times;
}"""


@contextlib.contextmanager
def page_of(*flags: str) -> Iterator[Page]:
    """A page of a browser that has loaded nothing yet; the browser is started with more flags if any are given."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS, *flags])
        page = browser.new_context(viewport=WIDE).new_page()  # type: ignore[arg-type]  # a mapping of these keys
        page.set_default_timeout(300_000)
        yield page
        browser.close()


@contextlib.contextmanager
def both(folder: Path) -> Iterator[list[Shown]]:
    """The store of a folder, by `ml-dash ui`, and sent to a server."""
    _own(folder)
    server, ui = Server(folder / "server" / "data"), UiServer(folder / "store")
    (folder / "server").mkdir()
    server.start()
    try:
        yield [by_ui(ui.start()), by_server(server, "alice", folder / "store")]
    finally:
        ui.end()
        server.end()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[Shown]:
    """The store of a folder, by `ml-dash ui`."""
    _own(folder)
    ui = UiServer(folder / "store")
    try:
        yield by_ui(ui.start())
    finally:
        ui.end()


def _own(folder: Path) -> None:
    """Settings, state and caches of this measurement alone."""
    names = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")
    os.environ.update({name: str(folder / name.lower()) for name in names}, ML_DASH_AUTOSYNC="0")


def value_of(page: Page, expression: str, argument: Any = None) -> float:
    """The number that an expression of the page comes to, asked at each frame."""
    return float(page.wait_for_function(expression, arg=argument, polling="raf").json_value())


def opened_ms(shown: Shown, page: Page, path: str, until: str, argument: Any = None, times: int = 5) -> list[float]:
    """Milliseconds from the start of a navigation until `until`: the first time, and the median of the others."""
    shown.log_in(page)
    found = []
    for _ in range(times):
        page.goto("about:blank")
        page.goto(shown.url + path, wait_until="commit")
        found.append(value_of(page, until, argument))
    return [found[0], median(found[1:] or found)]


def _all_ms(shown: Shown, page: Page, path: str, runs: int, count: int) -> dict[str, float]:
    """Milliseconds until the chart `loss` has something of all runs, until it has all points, and the same again."""
    shown.log_in(page)
    page.goto(shown.url + path, wait_until="commit")
    some = value_of(page, _DRAWN, ["loss", runs, 1, count])
    everything = value_of(page, _DRAWN, ["loss", runs, count, count])
    _until_idle()
    _, again = opened_ms(shown, page, path, _DRAWN, ["loss", runs, count, count])
    return {
        f"{shown.name} first time, something drawn ms": some, f"{shown.name} first time, all ms": everything,
        f"{shown.name} again ms": again,
    }  # fmt: skip


def _until_idle() -> None:
    """Waits until the hosts have nothing to do: less than 0.15 s of CPU in a second."""
    import psutil

    while True:
        hosts = [one for one in psutil.Process().children() if "ml_dash" in " ".join(one.cmdline())]
        before = [sum(one.cpu_times()[:2]) for one in hosts]
        sleep(1)
        if sum(sum(one.cpu_times()[:2]) for one in hosts) - sum(before) < 0.15:
            return


def _sweep(folder: Path, count: int) -> None:
    """Records that many short runs, in two processes."""
    program = """
import sys
from ml_dash import Experiment
for number in range(int(sys.argv[2]), int(sys.argv[3]), 2):
    with Experiment(name=f"run-{number:05}", project="sweep", local_path=sys.argv[1], durability="os") as experiment:
        experiment.parameters().set(lr=10.0 ** -(number % 5), seed=number, model=("small", "large")[number % 2])
        points = [{"value": (number % 97 + 1) / step, "step": step} for step in range(1, 6)]
        experiment.metric("loss").append_batch(points)
"""
    store = str(folder / "store")
    started = [subprocess.Popen([sys.executable, "-c", program, store, str(first), str(count)]) for first in (0, 1)]
    assert [one.wait() for one in started] == [0, 0]


def curve(folder: Path, name: str, count: int, seed: int = 0, metric: str = "loss") -> str:
    """Records a run of so many points of one metric; its id."""
    draw = random.Random(seed)
    with Experiment(name=name, project="bench", local_path=str(folder / "store"), durability="os") as experiment:
        for start in range(0, count, 10_000):
            stop = min(start + 10_000, count)
            experiment.metric(metric).append_batch(
                [{"value": draw.random() + 1000 / (step + 1000), "step": step} for step in range(start, stop)]
            )
        return str(experiment.id)


@row("10,000 runs: first rows ≤ 300 ms; a filter ≤ 200 ms; no frame over 50 ms")
def browser_list(folder: Path, scale: float) -> Figures:
    count = int(10_000 * scale)
    _sweep(folder, count)
    figures: Figures = {}
    with both(folder) as hosts:
        for shown in hosts:
            with page_of() as page:
                first, _ = opened_ms(shown, page, "/runs", _FIRST_ROW, times=1)
                # Until all runs are known.
                _until_idle()
                _, again = opened_ms(shown, page, "/runs", _FIRST_ROW, times=9)
                figures[f"{shown.name} first rows ms, first time"] = first
                figures[f"{shown.name} first rows ms"] = again
                value_of(page, "(n) => document.querySelector('[role=grid]')?.ariaRowCount == n", count)
                asked = [("params.lr = 1", count / 5), ("metrics.loss.min < 1 and params.model = large", None)]
                figures[f"{shown.name} filter ms"] = page.evaluate(_FILTER, [asked[0][0], int(asked[0][1] or 0)])
                figures[f"{shown.name} filter away ms"] = page.evaluate(_FILTER, ["", count])
                frames = sorted(page.evaluate(_FRAMES, 400))
                figures[f"{shown.name} scroll frame p95 ms"] = frames[int(len(frames) * 0.95)]
                figures[f"{shown.name} scroll longest frame ms"] = frames[-1]
    return figures


@row("10,000,000 points: drawn ≤ 500 ms, zoom to 1 % ≤ 200 ms; from folders at first ≤ 1 s per million")
def browser_chart(folder: Path, scale: float) -> Figures:
    count = int(10_000_000 * scale)
    identity = curve(folder, "long", count)
    # A recording process keeps its folder up to date, but not at ten million points in ten seconds.
    for located in read.find(folder / "store"):
        catch_up(located)
    figures: Figures = {}
    with both(folder) as hosts:
        for shown in hosts:
            with page_of() as page:
                figures |= _all_ms(shown, page, f"/compare?runs={identity}&metrics=loss", 1, count)
                over = page.locator('figure[aria-label="loss"] .u-over')
                box = over.bounding_box()
                assert box is not None
                begin = box["x"] + box["width"] * 0.5
                page.mouse.move(begin, box["y"] + 50)
                page.mouse.down()
                page.mouse.move(begin + box["width"] * 0.01, box["y"] + 50, steps=3)
                page.evaluate("addEventListener('mouseup', () => { window.begun = performance.now() }, true)")
                page.mouse.up()
                done = value_of(page, _DRAWN, ["loss", 1, 1, int(count * 0.1)])
                figures[f"{shown.name} zoom ms"] = done - page.evaluate("window.begun")
    return figures


@row("100 runs of 100,000 points: drawn ≤ 1 s; cursor ≤ 16 ms")
def browser_overlay(folder: Path, scale: float) -> Figures:
    count = int(100_000 * scale)
    runs = [curve(folder, f"run-{number}", count, number) for number in range(100)]
    figures: Figures = {}
    with both(folder) as hosts:
        for shown in hosts:
            with page_of() as page:
                path = f"/compare?runs={','.join(runs)}&metrics=loss"
                figures |= _all_ms(shown, page, path, 100, count)
                moves = sorted(page.evaluate(_MOVES, "loss"))
                figures[f"{shown.name} cursor ms, with the frame it waits for"] = median(moves)
                figures[f"{shown.name} cursor p95 ms"] = moves[94]
    return figures


@row("a run of 5,000 metrics: opened ≤ 500 ms; ≤ 50 ms per key of a search")
def browser_wide(folder: Path, scale: float) -> Figures:
    count = int(5000 * scale)
    with Experiment(name="wide", project="bench", local_path=str(folder / "store"), durability="os") as experiment:
        for number in range(count):
            metric = experiment.metric(f"layer{number // 50}/unit{number % 50}/norm")
            metric.append_batch([{"value": number / (step + 1), "step": step} for step in range(5)])
        identity = str(experiment.id)
    figures: Figures = {}
    with both(folder) as hosts:
        for shown in hosts:
            with page_of() as page:
                figure = "() => document.querySelector('figure[aria-label]') ? performance.now() : false"
                first, again = opened_ms(shown, page, f"/runs/{identity}?tab=charts", figure)
                keys = page.evaluate(_SEARCHED, ["layer7/unit3", 1])
                figures[f"{shown.name} opened ms, first time"] = first
                figures[f"{shown.name} opened ms"] = again
                figures[f"{shown.name} key ms, the longest"] = max(keys)
    return figures


@row("append -> on screen: p50 ≤ 0.5 s, p95 ≤ 1 s")
def browser_live(folder: Path, scale: float) -> Figures:
    figures: Figures = {}
    count, draw = max(10, int(60 * scale)), random.Random(0)
    with alone(folder) as shown, page_of() as page:
        with Experiment(name="live", project="bench", local_path=str(folder / "store")) as experiment:
            experiment.metric("loss").append(value=1.0, step=0)
            shown.open(page, f"/compare?runs={experiment.id}&metrics=loss")
            value_of(page, _DRAWN, ["loss", 1, 1, 10**9])
            page.evaluate(_LIVE, "loss")
            appended = []
            for step in range(1, count + 1):
                experiment.metric("loss").append(value=1 / step, step=step)
                appended.append(time())
                sleep(draw.uniform(0.2, 1.0))
            value_of(page, f"() => window.seen.at(-1)?.[0] > {count} && 1")
        seen = page.evaluate("window.seen")
    waits = sorted(next(at for total, at in seen if total > step) - begun for step, begun in enumerate(appended, 1))
    figures["s p50"] = waits[len(waits) // 2]
    figures["s p95"] = waits[int(len(waits) * 0.95)]
    return figures


@row("all JavaScript and CSS ≤ 150 KB of gzip; first page ≤ 25 requests")
def browser_size(folder: Path, scale: float) -> Figures:
    paths = [path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.suffix in (".js", ".css")]
    sent = [asset for asset in map(Assets().find, paths) if asset is not None]
    curve(folder, "one", 100)
    asked: list[str] = []
    with alone(folder) as shown, page_of() as page:
        shown.log_in(page)
        page.goto("about:blank")
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{shown.url}/runs", wait_until="commit")
        value_of(page, _FIRST_ROW)
        sleep(2)  # whatever it asks for later
    return {
        "KB gzip": sum(len(asset.packed or asset.content) for asset in sent) / 1000,
        "files": len(sent),
        "requests of the first page": len(asked),
    }


@row("an hour of a live run at 60 times the speed: memory flat")
def browser_memory(folder: Path, scale: float) -> Figures:
    seconds, figures = 60 * scale, Figures()
    with alone(folder) as shown, page_of() as page:
        devtools = page.context.new_cdp_session(page)

        def used_mb() -> float:
            devtools.send("HeapProfiler.collectGarbage")
            return float(page.evaluate("performance.memory.usedJSHeapSize")) / 2**20

        with Experiment(name="live", project="bench", local_path=str(folder / "store")) as experiment:
            experiment.metric("loss").append(value=1.0, step=0)
            shown.open(page, f"/runs/{experiment.id}?tab=charts")
            value_of(page, _DRAWN, ["loss", 1, 1, 10**9])
            begun, step, measured = monotonic(), 0, []
            while (spent := monotonic() - begun) < seconds:
                # A point a second, a log entry every ten: sixty times as fast.
                for _ in range(6):
                    step += 1
                    experiment.metric("loss").append(value=1 / step, step=step)
                experiment.log(f"step {step}")
                sleep(0.1)
                if spent > len(measured) * seconds / 6:
                    measured.append(used_mb())
            measured.append(used_mb())
    figures["MB after a sixth"] = measured[1]
    figures["MB in the middle"] = measured[len(measured) // 2]
    figures["MB at the end"] = measured[-1]
    return figures
