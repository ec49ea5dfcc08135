"""How soon the curves of 100 runs are there: ml-dash and other trackers, the same data, the same browser, one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from subprocess import SubprocessError
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from .browser_rows import both, curve, page_of
from .peers import PEERS, recorded, served, why
from .rows import row

if TYPE_CHECKING:
    from playwright.sync_api import Page

LOOPBACK_ONLY: Final = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
_OPENS: Final = 3
_PATIENCE_S: Final = (60.0, 120.0, 240.0)
_QUIET_MS: Final = 3000
# Looks 40 times a second at a small copy of each canvas, and at the number and length of the paths of all drawings:
# `picture` is when any of it changed last, `runs` is when all runs were there first, both in milliseconds of the page.
_WATCH: Final = """
(() => {
    const small = Object.assign(document.createElement('canvas'), {width: 64, height: 64});
    const pen = small.getContext('2d', {willReadFrequently: true});
    const seen = window.seen = {picture: 0, runs: 0, sign: '', found: 0};
    const look = () => {
        let sign = '';
        for (const canvas of document.querySelectorAll('canvas')) {
            if (canvas.clientWidth < 100 || canvas.clientHeight < 100 || !canvas.width || !canvas.height) continue;
            pen.clearRect(0, 0, 64, 64);
            pen.drawImage(canvas, 0, 0, 64, 64);
            let hash = 0;
            for (const value of new Uint32Array(pen.getImageData(0, 0, 64, 64).data.buffer))
                hash = (hash * 31 + value) | 0;
            sign += `${hash} `;
        }
        let length = 0;
        const paths = document.querySelectorAll('svg path');
        for (const path of paths) length += path.getAttribute('d')?.length ?? 0;
        sign += `${paths.length} ${length}`;
        if (sign !== seen.sign) { seen.sign = sign; seen.picture = performance.now(); }
        seen.found = DRAWN;
        if (!seen.runs && seen.found >= RUNS) seen.runs = performance.now();
    };
    setInterval(look, 25);
})()
"""
_DONE: Final = """
(quiet) => {
    const {picture, runs} = window.seen;
    const last = Math.max(picture, runs);
    return runs && performance.now() - last > quiet ? [runs, last] : false;
}"""
_OURS: Final = "(window.mlDash?.chart('loss')?.runs ?? []).filter((run) => run.shown > 0).length"


@row("opens 100 runs x 10,000 points in a third of the time that each of the others takes")
def browser_peers(folder: Path, scale: float) -> Mapping[str, float | str]:
    from playwright.sync_api import Error as BrowserError

    runs, points = max(2, int(100 * scale)), int(10_000 * min(1.0, scale * 10))
    ours = [curve(folder, f"run-{number}", points, number) for number in range(runs)]
    figures: dict[str, float | str] = {}
    times = {}
    with both(folder) as hosts:
        for shown in hosts:
            with page_of(LOOPBACK_ONLY) as page:
                shown.log_in(page)
                name = f"ml-dash {shown.name}"
                address = f"{shown.url}/compare?runs={','.join(ours)}&metrics=loss"
                first, times[name], _ = _opened(page, address, _OURS, runs)
                figures[f"{name} ms"] = times[name]
                figures[f"{name} ms, coarse"] = first
    for peer in PEERS:
        try:
            recording = recorded(peer, runs, points)
            with served(peer, recording) as url, page_of(LOOPBACK_ONLY) as page:
                _, took, elsewhere = _opened(page, url + recording.page, peer.drawn, runs, peer.prepares)
        except (SubprocessError, OSError, AssertionError, BrowserError) as error:
            figures[f"{peer.title}: not measured"] = why(error)
            continue
        figures[f"{peer.title} ms"] = took
        figures |= {f"{peer.title} / {name}": took / mine for name, mine in times.items()}
        figures[f"{peer.title} recorded, CPU s"] = recording.cpu_seconds
        figures[f"{peer.title} asks elsewhere, hosts"] = elsewhere
    return figures


def _opened(page: Page, address: str, drawn: str, runs: int, prepares: str = "true") -> tuple[float, float, float]:
    """Medians of some openings, after one that fills caches, and how many other hosts the page asks.

    The medians are of the milliseconds until all runs are in the chart, and until its picture changes no more.

    Errors: AssertionError if the runs are not all there after the last of the patient openings.
    """
    from playwright.sync_api import TimeoutError as TooLong

    hosts: set[str] = set()
    page.on("request", lambda asked: hosts.add(urlsplit(asked.url).hostname or "127.0.0.1"))
    page.add_init_script(_WATCH.replace("DRAWN", f"({drawn})").replace("RUNS", str(runs)))
    page.goto(address, wait_until="commit")
    page.wait_for_function(prepares, timeout=_PATIENCE_S[0] * 1000)
    # Some servers are still reading what was recorded, and their page does not look again by itself.
    patience = iter(_PATIENCE_S)
    most_s = next(patience)
    times: list[tuple[float, float]] = []
    while len(times) < 1 + _OPENS:
        page.goto("about:blank")
        page.goto(address, wait_until="commit")
        try:
            times.append(_waited(page, most_s))
        except TooLong:
            found, tried_s = page.evaluate("window.seen.found"), most_s
            most_s = next(patience, 0.0)
            assert most_s, f"its chart has {found} of {runs} runs {tried_s:.0f} s after it was opened"
    there, last_change = (median(one) for one in zip(*times[1:], strict=True))
    return there, last_change, float(len(hosts - {"127.0.0.1", "localhost"}))


def _waited(page: Page, most_s: float) -> tuple[float, float]:
    found = page.wait_for_function(_DONE, arg=_QUIET_MS, polling=200, timeout=most_s * 1000)
    first, last = found.json_value()
    return float(first), float(last)
