"""Row V3: whatever names, texts, values and files a run has, every screen shows them as text and runs none of it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from ml_dash import Experiment
from ml_dash.errors import InvalidInput
from tests.browser.conftest import FLAGS, WIDE
from tests.browser.hosts import UiServer, by_ui, chromium_program
from tests.faults.harness import Row, Trial, Unavailable

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

_TIMEOUT_S: Final = 30.0
# What each of them would do if it were run.
_DOES: Final = ("alert(1)", "window.stolen=1", "parent.stolen=1", "top.stolen=1", "fetch('http://192.0.2.1/')")
_MARKUP: Final = (
    "<script>{0}</script>", "<img src=x onerror={0}>", "<svg/onload={0}>", "<iframe src=javascript:{0}>",
    "<b onmouseover={0}>", "<style>@import'http://192.0.2.1/'</style>",
    "<link rel=stylesheet href=http://192.0.2.1/>", "<base href=http://192.0.2.1/>",
    "<meta http-equiv=refresh content='0;url=http://192.0.2.1/'>", "<form action=javascript:{0}><button autofocus>",
    "<details open ontoggle={0}>", "<img src=http://192.0.2.1/p.png>",
    "<math><mtext><style><img src=x onerror={0}>", "</textarea></title></style><script>{0}</script>",
    '"\'><script>{0}</script>', "' onfocus={0} autofocus='", "javascript:{0}",
    "data:text/html,<script>{0}</script>", "[x](javascript:{0})", "![x](http://192.0.2.1/p.png)",
    "[x]: javascript:{0}", "<javascript:{0}>", "`<img src=x onerror={0}>`", "```html\n<script>{0}</script>\n```",
    "${{{0}}}", "{{{{{0}}}}}", "<!--", "]]>", "&lt;script&gt;{0}&lt;/script&gt;", "\\u003cscript\\u003e{0}",
)  # fmt: skip
_ODD: Final = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x1b]8;;javascript:alert(1)\x07here\x1b]8;;\x07", "\r\n\r\n", "\t",
    "\u202egnp.exe", "\u2066\u2069", "\u200b", "\ufeff", "\u2028\u2029", "a\u0301" * 40,
    "\U0001f469\u200d\U0001f680", "%2e%2e%2f", "../../etc/passwd", "__proto__", "constructor", "toString",
    "hasOwnProperty", "NaN", "null", "undefined", "-0", "1e999", "日本語", "%s%n%x", "'; DROP TABLE runs; --", "\\",
    '"', "'", "`", "|", "# ", "> ", "x" * 3000, "\x7f", "\x85", "&amp;", "=1+1", "@sum(1)",
)  # fmt: skip
_MADE: Final = ", ".join(
    f"main {one}"
    for one in ("script", "base", "meta", "link", "form", "img[src='x']", "img[src^='http:']", "iframe:not([sandbox])")
)


def _text(rng: random.Random) -> str:
    """A text that wants to be more than text."""
    parts = [
        rng.choice(_MARKUP).format(rng.choice(_DOES)) if rng.random() < 0.6 else rng.choice(_ODD)
        for _ in range(rng.randint(1, 4))
    ]
    return rng.choice(("", " ", "\n", "/")).join(parts)


def _value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(5 if depth < 2 else 3)
    if kind == 3:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 4:
        return {_text(rng)[:60]: _value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice((_text(rng), float("nan"), float("inf"), -0.0, 2**63 - 1, True, None, 1e-320))


def _files(rng: random.Random) -> dict[str, bytes]:
    """Contents by the ends of their names: of what a page shows as more than text."""
    text, does = _text(rng), rng.choice(_DOES)
    return {
        ".html": f"<!doctype html><script>{does}</script>{text}".encode(),
        ".svg": f'<svg xmlns="http://www.w3.org/2000/svg" onload="{does}"><script>{does}</script><image href="http://192.0.2.1/p.png"/></svg>'.encode(),
        ".md": f"{text}\n\n{_text(rng)}\n\n| a |\n|---|\n| {_text(rng)} |\n".encode(),
        ".csv": f'a,b\n"{text}",{_text(rng)}\n'.encode(),
        ".json": json.dumps({text: [_text(rng), {"__proto__": {"stolen": 1}}]}).encode(),
        ".txt": text.encode(errors="surrogatepass"),
        ".png": b"\x89PNG\r\n\x1a\n" + rng.randbytes(50),
        ".jsonl": b'{"a": 1}\n' + text.encode(errors="surrogatepass") + b"\n\xff\xfe",
    }


@dataclass
class Looking:
    """A page of `ml-dash ui` over a store, and what was seen in it that must not be."""

    store: Path
    ui: UiServer
    context: BrowserContext
    seen: list[str]


@contextmanager
def looking(workdir: Path) -> Iterator[Looking]:
    """`ml-dash ui` over a store, and a browser that is logged in there."""
    program = chromium_program()
    if program is None:
        raise Unavailable("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    (workdir / "store").mkdir(exist_ok=True)
    ui = UiServer(workdir / "store").start(environment={"XDG_CACHE_HOME": str(workdir / "cache")})
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
            context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]  # a mapping of these keys
            by_ui(ui).open(context.new_page())
            found = Looking(workdir / "store", ui, context, [])
            context.on("request", lambda asked: _note(found, asked.url))
            context.on("console", lambda said: _said(found, said.text, said.type))
            context.on("weberror", lambda error: found.seen.append(f"error: {error.error}"))
            context.on("dialog", lambda dialog: (found.seen.append(f"dialog: {dialog.message}"), dialog.dismiss()))
            yield found
            browser.close()
    finally:
        ui.end()


def _note(found: Looking, url: str) -> None:
    if not url.startswith((f"{found.ui.url}/", "data:", "blob:", "about:")):
        found.seen.append(f"request: {url[:200]}")


def _said(found: Looking, text: str, kind: str) -> None:
    # A wrong query, and a run that is not there, are answered so.
    if kind == "error" and not text.startswith("Failed to load resource"):
        found.seen.append(f"console: {text[:300]}")


def _given(trial: Trial, make: Any) -> None:
    """Calls what records a text, which may be refused: then it is counted."""
    try:
        make()
        trial.counts["texts recorded"] += 1
    except InvalidInput:
        trial.counts["texts refused"] += 1


def _recorded(trial: Trial, store: Path) -> tuple[str, list[str]]:
    """Records a run whose every text is hostile; its id, and the names of its files."""
    rng = trial.rng
    project, name = f"p{trial.index}", f"r{trial.index}"
    for text in (_text(rng)[:60] for _ in range(3)):
        with suppress(InvalidInput, OSError), Experiment(name=text, project=project, local_path=str(store)):
            name = text
            break
    files = []
    with Experiment(name=name, project=project, local_path=str(store)) as experiment:
        for label in ("title", "notes", "description", "folder"):
            _given(trial, lambda label=label: experiment.update(**{label: _text(rng)}))
        _given(trial, lambda: experiment.update(tags=[_text(rng)[:80] for _ in range(3)]))
        for _ in range(5):
            _given(trial, lambda: experiment.parameters().set({_text(rng)[:80]: _value(rng)}))
            level = rng.choice(("info", "warn", "error"))
            _given(trial, lambda level=level: experiment.log(_text(rng), level=level, x=_value(rng)))
        for metric in (_text(rng)[:80], "loss"):
            values = [rng.choice((0.5, 1e308, float("nan"), float("-inf"))) for _ in range(5)]
            points = [{"value": value, "step": step, "where": _text(rng)} for step, value in enumerate(values)]
            _given(trial, lambda metric=metric, points=points: experiment.metric(metric).append_batch(points))
        for end, content in _files(rng).items():
            path = trial.folder / f"f{end}"
            path.write_bytes(content)
            for called in (f"{_text(rng)[:60]}{end}".replace("/", "_"), f"plain{end}"):
                with suppress(InvalidInput, OSError, ValueError):
                    other = trial.folder / called
                    path.rename(other)
                    path = other
                    experiment.file(str(other), metadata={"why": _text(rng)}).save()
                    files.append(called)
                    break
        return str(experiment.id), files


def _ready(page: Page) -> None:
    """Waits until the page shows what was asked for, or says why not."""
    page.locator("main > *").first.wait_for()
    deadline = monotonic() + _TIMEOUT_S
    while page.locator("main [aria-busy=true]").count():
        if monotonic() > deadline:
            busy = page.locator("main [aria-busy=true]").first.evaluate("(busy) => busy.parentElement.outerHTML")
            raise TimeoutError(f"still loading: {page.url[:200]}: {busy[:200]}")
        page.wait_for_load_state()


def hostile_texts(trial: Trial) -> None:
    """Records a run of hostile texts, goes to every screen, and chooses every file."""
    at: Looking = trial.shared
    at.seen.clear()
    run, files = _recorded(trial, at.store)
    text = quote(_text(trial.rng), safe="")
    tabs = ("charts", "logs", "files", "parameters", "timeline")
    screens = [f"/runs/{run}?tab={tab}" for tab in tabs] + [
        f"/runs?project=p{trial.index}", f"/runs?group=params.x&project=p{trial.index}",
        f"/compare?runs={run}", "/storage", f"/runs/{run}?tab=charts&asOf=4", f"/runs?where={text}",
        f"/runs?sort={text}", f"/runs?group={text}", f"/runs/{text}", f"/runs/{run}?tab={text}",
        f"/runs/{run}?tab=charts&asOf={text}", f"/runs/{run}?tab=logs&q={text}", f"/runs/{run}?tab=files&file={text}",
        f"/compare?runs={run},{text}",
    ]  # fmt: skip
    page = at.context.new_page()
    page.set_default_timeout(_TIMEOUT_S * 1000)
    try:
        for screen in screens:
            page.goto(at.ui.url + screen)
            _look(trial, at, page, screen)
        page.goto(f"{at.ui.url}/runs/{run}?tab=files")
        labels = page.get_by_role("tree", name="Files").locator(".tree-label")
        labels.first.wait_for()
        for number in range(labels.count()):
            labels.nth(number).click()
            _look(trial, at, page, f"file {number}")
        trial.counts["files chosen"] += len(files)
    finally:
        page.close()
        shutil.rmtree(at.store / f"p{trial.index}", ignore_errors=True)


def _look(trial: Trial, at: Looking, page: Page, what: str) -> None:
    _ready(page)
    trial.counts["looks"] += 1
    stolen = page.evaluate("[window.stolen, ({}).stolen]")
    trial.check(stolen == [None, None], f"{what}: a script ran: {stolen}")
    trial.check(page.locator(_MADE).count() == 0, f"{what}: markup became elements")
    trial.check(not at.seen, f"{what}: {at.seen[:3]}")
    at.seen.clear()


ROWS: Final = (Row("V3", "hostile texts and files on every screen", 500, 2, hostile_texts, looking),)
