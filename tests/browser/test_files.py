"""The files of a run: a tree, what each is, what it holds; and nothing of them that runs."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ml_dash import Experiment
from tests.browser.accessibility import serious
from tests.browser.hosts import Shown
from tests.browser.recording import HTML, SVG
from tests.browser.shared import shown_by
from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page, Response

LARGE_BYTES: Final = 100_000_000
LINE: Final = "{:09d} ünïcödé line of a long text\n"
HOSTILE: Final = "<img src=x onerror=alert(1)>.txt"


def png(width: int, height: int) -> bytes:
    """A picture in one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\x20\x80\xc0" * width) * height
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def large() -> bytes:
    lines = LARGE_BYTES // len(LINE.format(0).encode())
    return "".join(LINE.format(number) for number in range(lines)).encode()


CONTENTS: Final[dict[str, tuple[str, bytes]]] = {
    "picture.png": ("/plots", png(64, 48)),
    "drawing.svg": ("/plots/svg", SVG.replace(b"<svg ", b'<svg width="30" height="20" ')),
    "page.html": ("/", HTML),
    "config.json": ("/configs", json.dumps({"seed": 2**60 + 1, "model": {"layers": [1, 2]}}).encode()),
    "table.csv": ("/tables", b'id,says\n1,"a ""b"", c"\n2,<b>bold</b>\n'),
    "notes.md": ("/", b"# Title\n\nSome *text*. <script>window.stolen=1</script>\n"),
    "escapes.log": ("/", b"\x1b[31mred\x1b[0m\nsecond\n"),
    "weights.bin": ("/models", bytes(range(256)) * 40),
    HOSTILE: ("/", b"harmless"),
    "empty.txt": ("/", b""),
}


@pytest.fixture(scope="module")
def ids() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, ids: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("files")
    contents = {**CONTENTS, "large.log": ("/", large())}
    with Experiment(name="files", project="files", local_path=str(folder / "store")) as experiment:
        for name, (prefix, content) in contents.items():
            (folder / name).write_bytes(content)
            experiment.file(str(folder / name), prefix=prefix, metadata={"kind": name[-3:]}).save()
        ids["files"] = str(experiment.id)
    (folder / "large.log").unlink()
    return folder / "store"


@pytest.fixture(scope="module", params=["server", "ui"])
def host(request: pytest.FixtureRequest, store: Path, team_server: Server) -> Iterator[Shown]:
    with shown_by(request.param, store, team_server, f"test-files-{request.param}") as shown:
        yield shown


@pytest.fixture
def files(browser_page: Page, host: Shown, ids: dict[str, str]) -> Page:
    """The tree of files."""
    host.open(browser_page, f"/runs/{ids['files']}?tab=files")
    browser_page.get_by_role("tree", name="Files").wait_for()
    return browser_page


def choose(page: Page, name: str) -> None:
    page.get_by_role("tree", name="Files").get_by_text(name, exact=True).click()
    page.get_by_role("heading", level=2, name=name, exact=True).wait_for()


def test_files_lie_in_their_folders_and_are_found_by_words(files: Page) -> None:
    tree = files.get_by_role("tree", name="Files")
    names = tree.locator(".tree-label").all_inner_texts()
    assert names[:2] == ["configs", "config.json"]
    assert set(CONTENTS) <= set(names)
    files.get_by_role("searchbox").fill("plots svg")
    files.get_by_text("1 file,", exact=False).wait_for()
    assert tree.locator(".tree-label").all_inner_texts() == ["plots", "svg", "drawing.svg"]


def test_a_file_says_its_size_and_checksum_and_has_an_address(files: Page, host: Shown) -> None:
    choose(files, "weights.bin")
    content = CONTENTS["weights.bin"][1]
    files.get_by_text(hashlib.sha256(content).hexdigest()).wait_for()
    files.get_by_text("10.0 KiB").first.wait_for()
    files.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=host.url)
    files.get_by_role("button", name="Copy the SHA-256").click()
    files.get_by_role("button", name="Copied").wait_for()
    assert files.evaluate("navigator.clipboard.readText()") == hashlib.sha256(content).hexdigest()
    files.reload()
    files.get_by_role("heading", level=2, name="weights.bin").wait_for()
    files.go_back()
    files.get_by_text("Choose a file").wait_for()


def test_images_are_shown(files: Page) -> None:
    for name, size in (("picture.png", (64, 48)), ("drawing.svg", (30, 20))):
        choose(files, name)
        files.get_by_text(" \N{MULTIPLICATION SIGN} ".join(map(str, size)), exact=True).wait_for()
    # The drawing comes as data, so that opened by itself it belongs to no origin.
    assert (files.locator("figure img").get_attribute("src") or "").startswith("data:image/svg+xml")
    assert files.evaluate("window.stolen") is None


def test_json_is_a_tree_with_exact_numbers(files: Page) -> None:
    choose(files, "config.json")
    tree = files.get_by_role("tree", name="Values of config.json")
    tree.get_by_text(str(2**60 + 1), exact=True).wait_for()
    tree.get_by_text("model", exact=True).click()
    tree.get_by_text("layers", exact=True).click()
    assert tree.get_by_role("treeitem").count() == 5


def test_a_table_has_its_cells(files: Page) -> None:
    choose(files, "table.csv")
    table = files.get_by_role("table", name="Table of table.csv")
    table.get_by_role("cell", name='a "b", c').wait_for()
    assert table.get_by_role("columnheader").all_inner_texts() == ["id", "says"]
    table.get_by_role("cell", name="<b>bold</b>").wait_for()


def test_markdown_is_a_page_without_its_scripts(files: Page) -> None:
    choose(files, "notes.md")
    files.get_by_role("heading", name="Title").wait_for()
    assert files.locator(".markdown em").inner_text() == "text"
    assert files.locator("main script").count() == 0
    files.get_by_role("button", name="Text", exact=True).click()
    files.get_by_text("# Title", exact=True).wait_for()


def test_text_shows_its_escapes_and_bytes_are_bytes(files: Page) -> None:
    choose(files, "escapes.log")
    files.get_by_text("⟨ESC⟩[31mred⟨ESC⟩[0m", exact=True).wait_for()
    choose(files, "weights.bin")
    assert files.get_by_label("Bytes of weights.bin").inner_text().startswith("00000000  00 01 02 03")
    choose(files, "empty.txt")
    files.get_by_text("The file is empty.").wait_for()
    choose(files, HOSTILE)
    files.get_by_text("harmless").wait_for()


def test_an_uploaded_page_is_text_and_never_a_page_of_this_origin(files: Page, host: Shown) -> None:
    choose(files, "page.html")
    files.get_by_text("<h1>page</h1>", exact=False).wait_for()
    assert files.locator("main iframe, main script, main object, main embed").count() == 0
    fetched = "performance.getEntriesByType('resource').map((one) => one.name)"
    content = files.evaluate(f"{fetched}.find((one) => one.includes('/content'))")
    answer = files.context.request.get(content)
    headers = answer.headers
    assert "sandbox" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert not headers["content-type"].startswith("text/html")
    # Opened by itself it is text, too: nothing of it runs.
    asked: list[str] = []
    files.on("request", lambda request: asked.append(request.url))
    files.goto(content)
    assert files.evaluate("window.stolen") is None
    assert not any(url.endswith("/me") for url in asked)


def test_a_large_text_shows_its_first_page_at_once_and_any_other(files: Page) -> None:
    received: list[int] = []

    def note(answer: Response) -> None:
        if "/content" in answer.url:
            received.append(int(answer.headers["content-length"]))

    files.on("response", note)
    choose(files, "large.log")
    files.get_by_text(LINE.format(0).strip(), exact=True).wait_for()
    files.get_by_role("button", name="Last").click()
    last = LARGE_BYTES // len(LINE.format(0).encode()) - 1
    files.get_by_role("list", name="Text of large.log").evaluate("(area) => { area.scrollTop = area.scrollHeight; }")
    files.get_by_text(LINE.format(last).strip(), exact=True).wait_for()
    assert sum(received) < 2_000_000


def test_a_file_is_downloaded_whole(files: Page) -> None:
    choose(files, "table.csv")
    with files.expect_download() as started:
        files.get_by_role("link", name="Download").click()
    assert started.value.suggested_filename == "table.csv"
    assert started.value.path().read_bytes() == CONTENTS["table.csv"][1]


def test_the_tree_works_by_keys_alone(files: Page) -> None:
    files.get_by_role("searchbox").press("Tab")
    assert files.evaluate("document.activeElement.getAttribute('role')") == "tree"
    files.keyboard.press("ArrowLeft")
    assert files.get_by_role("treeitem", name=re.compile("configs")).get_attribute("aria-expanded") == "false"
    files.keyboard.press("ArrowRight")
    files.keyboard.press("ArrowDown")
    files.keyboard.press("Enter")
    files.get_by_role("heading", level=2, name="config.json").wait_for()


@pytest.mark.parametrize("name", ["table.csv", "config.json", "notes.md", "weights.bin", "picture.png"])
def test_previews_are_accessible(files: Page, name: str) -> None:
    choose(files, name)
    files.locator(".preview > :nth-child(2)").wait_for()
    assert serious(files) == []


def test_a_narrow_page_shows_the_tree_or_a_file(files: Page) -> None:
    files.set_viewport_size({"width": 400, "height": 800})
    choose(files, "table.csv")
    files.get_by_role("tree", name="Files").wait_for(state="hidden")
    assert files.evaluate("document.documentElement.scrollWidth") <= 400
    files.get_by_role("button", name="All files").click()
    files.get_by_role("tree", name="Files").wait_for()
