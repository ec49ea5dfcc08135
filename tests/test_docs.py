"""The documentation is true: examples run and are well typed, outputs are the real ones, links hold.

How a page is read:
- all ```python blocks of a page are one program, run from top to bottom in an empty folder;
  `<!-- fresh -->` before a block starts a new program in a new folder;
- a block after `<!-- prints -->` is what the block before it prints (`...` stands for anything);
- lines `$ ...` of a ```console block are run in that folder once the program has ended, if they only read;
- a page that speaks of http://localhost:3000 gets a real server in its place, and the daemon that its program starts
  is ended with it.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import pytest

from ml_dash.core import frames, protocol
from ml_dash.disk import places

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

_FENCE = re.compile(r"(?ms)^(?P<ticks>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=ticks)\s*?$")
_READING = ("cat ", "find ", "head ", "ls ", "ml-dash ", "tail ", "wc ")
_NOT_RUN = {
    "ml-dash demo": "trains and kills for 15 seconds; tests/cli runs it",
    "ml-dash logs -f": "follows until interrupted",
}
# What serves until it is ended, asks for a token, or moves experiments to and from places that are not there.
_NOT_RUN_WITH = re.compile(r"ml-dash (ui|server|login|logout|push|pull|rm --remote)\b|example\.org")
_ASKS_A_SERVER = re.compile(r"ml-dash (sync|gc|whoami)\b")
_SERVER = "http://localhost:3000"
_BETWEEN = "\x1e"
# An example that warns is a bad example; but from Python 3.12 on, every fork beside a thread warns.
_WARNINGS = "error,ignore:This process:DeprecationWarning"


@dataclass
class Cell:
    """One block of code, and what it is said to print."""

    kind: str
    text: str
    line: int
    prints: str | None = None


@dataclass
class Program:
    """The blocks of a page that share one folder."""

    page: Path
    cells: list[Cell] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.page.stem}:{self.cells[0].line}"

    @property
    def source(self) -> str:
        return "\n".join(cell.text for cell in self.cells if cell.kind == "python")

    @property
    def remote(self) -> bool:
        """Does it send to a server?"""
        return _SERVER in self.source


def programs(page: Path) -> list[Program]:
    text = page.read_text(encoding="utf-8")
    found = [Program(page)]
    for match in _FENCE.finditer(text):
        before = text[: match.start()].rstrip().rpartition("\n")[2].strip()
        info = match["info"].strip()
        if before == "<!-- prints -->":
            found[-1].cells[-1].prints = match["body"]
            if info != "console":
                continue
        if info not in ("python", "console"):
            continue
        if before == "<!-- fresh -->" and found[-1].cells:
            found.append(Program(page))
        line = text.count("\n", 0, match.start()) + 2
        found[-1].cells.append(Cell(info, match["body"], line))
    return [program for program in found if program.source]


PROGRAMS = [program for page in PAGES if page.exists() for program in programs(page)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of our own, with the development login."""
    data = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "ml_dash", "server", "--dev", "--port", "0", "--data", str(data)]
    with (data / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=data, stdout=subprocess.PIPE, stderr=log, text=True)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    assert process.stdout is not None
    said, found = "", None
    while found is None and (line := process.stdout.readline()):
        said += line
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
    watchdog.cancel()
    assert found is not None, f"the server did not say where it listens:\n{said}"
    yield found[0]
    process.terminate()
    process.wait(timeout=30)
    process.stdout.close()


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A state and a login of the program's own; the daemon that it starts in the background ends with the test."""
    home = tmp_path_factory.mktemp("sending")
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(home / variable.lower()))
    monkeypatch.delenv("ML_DASH_AUTOSYNC", raising=False)
    monkeypatch.setenv("ML_DASH_EXIT_WAIT", "60")  # the commands of a page ask about all that its program recorded
    yield
    status = places.state_folder() / "syncd.json"
    if status.exists():
        _end(int(json.loads(status.read_bytes())["pid"]))


def _end(pid: int) -> None:
    """Asks a process that is no child of ours to end, and waits for that."""
    deadline = time.monotonic() + 15
    try:
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.02)  # there is nothing to wait on for a process that is not a child
    except ProcessLookupError:
        return
    pytest.fail(f"the daemon, process {pid}, did not end within 15 s")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_examples_do_what_the_page_says(program: Program, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = _SERVER
    if program.remote:
        request.getfixturevalue("sending")
        url = request.getfixturevalue("server")
    cells = [cell for cell in program.cells if cell.kind == "python"]
    between = f"\nprint({_BETWEEN!r}, end='', flush=True)\n"
    script = tmp_path / "train.py"
    script.write_text(between.join(cell.text for cell in cells).replace(_SERVER, url), encoding="utf-8")
    printed = _run([sys.executable, script.name], tmp_path).replace(url, _SERVER).split(_BETWEEN)
    assert len(printed) == len(cells)
    for cell, output in zip(cells, printed, strict=True):
        if cell.prints is not None:
            _same(cell.prints, output, f"{program.page.name}:{cell.line}")
    for cell in program.cells:
        if cell.kind == "console":
            _run_console(cell, tmp_path, f"{program.page.name}:{cell.line}", url if program.remote else None)


def _run_console(cell: Cell, folder: Path, where: str, url: str | None) -> None:
    for command, expected in _commands(cell.text):
        if not command.startswith(_READING) or command in _NOT_RUN or _NOT_RUN_WITH.search(command):
            continue
        if url is None and _ASKS_A_SERVER.match(command):
            continue
        output = _run(["/bin/sh", "-c", command.replace(_SERVER, url or _SERVER)], folder)
        if expected:
            _same(expected, output, where)


def _commands(text: str) -> list[tuple[str, str]]:
    """(command, the lines shown below it) of a console block."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:].split("  #")[0].strip(), ""))
        elif found:
            command, shown = found[-1]
            found[-1] = (command, shown + line + "\n")
    return found


def _run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONWARNINGS": _WARNINGS}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command[-1]} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _same(expected: str, actual: str, where: str) -> None:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    example = doctest.Example("", expected)
    checker = doctest.OutputChecker()
    if not checker.check_output(expected, actual, options):
        pytest.fail(f"{where}: {checker.output_difference(example, actual, options)}")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every program of the documentation as a file of its own."""
    folder = tmp_path_factory.mktemp("examples")
    for program in PROGRAMS:
        name = re.sub(r"\W", "_", program.name)
        (folder / f"{name}.py").write_text(program.source, encoding="utf-8")
    return folder


def test_examples_pass_mypy_strict(sources: Path) -> None:
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    command = [
        sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"),
        "--cache-dir", str(sources / ".cache"), *map(str, sorted(sources.glob("*.py"))),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=sources, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_examples_pass_pyright(sources: Path) -> None:
    settings = {"include": ["*.py"], "extraPaths": [str(ROOT)], "pythonVersion": "3.10"}
    (sources / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--project", str(sources)]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_and_ci_name_the_same_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tests = "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/pytest"
    demo = "python3 -m venv .venv && .venv/bin/pip install -e '.[server]' && .venv/bin/ml-dash demo"
    assert tests in readme
    assert demo in readme
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_relative_link_leads_somewhere() -> None:
    broken = []
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
            if not re.match(r"[a-z]+:|#", target) and not (page.parent / target.split("#")[0]).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = {line.strip() for block in _FENCE.finditer(index) for line in block["body"].splitlines()}
    assert [page.stem for page in DOCS.glob("*.md") if page.stem != "index" and page.stem not in listed] == []


def test_every_test_named_in_the_safety_page_exists() -> None:
    """`tests/x.py` and `tests/x.py::test_y` in the text are files and functions that are there."""
    missing = []
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for name, function in re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
            path = ROOT / name
            if not path.exists() or (function and f"def {function}" not in path.read_text(encoding="utf-8")):
                missing.append(f"{page.name}: {name}::{function}" if function else f"{page.name}: {name}")
    assert not missing


def test_the_safety_page_names_the_rows_that_there_are() -> None:
    """Every row of the fault matrix that can be run is on the page; every row on the page is in some test."""
    page = (DOCS / "safety.md").read_text(encoding="utf-8").split("| promise | rows |")[1]
    named = set(re.findall(r"\b[WPX]\d+\b", page))
    command = [sys.executable, "-m", "tests.crash", "--list"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert set(re.findall(r"^([WPX]\d+) ", listed, re.MULTILINE)) - named == set()
    texts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*/**/*.py"))
    assert [row for row in sorted(named) if not re.search(rf"\b{row}\b", texts)] == []


def test_the_guarantees_page_names_the_rows_that_there_are() -> None:
    """Every row with a server is on the page (or on that of one machine), and every row on the page can be run."""
    page = (DOCS / "guarantees.md").read_text(encoding="utf-8").split("| promise | rows |")[1].split("\n## ")[0]
    elsewhere = (DOCS / "safety.md").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "tests.e2e", "--list"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    rows = set(re.findall(r"^([A-Z]\d+) ", listed, re.MULTILINE))
    named = set(re.findall(r"\b[A-Z]\d+\b", page))
    assert named - rows == set()
    assert [row for row in sorted(rows - named) if not re.search(rf"\b{row}\b", elsewhere)] == []


def test_the_protocol_page_has_every_code_and_the_shapes_of_the_code() -> None:
    """Both ends import `protocol`; the page must not say something else."""
    page = (DOCS / "protocol.md").read_text(encoding="utf-8")
    codes = {value for name, value in vars(protocol).items() if name.isupper() and isinstance(value, str)}
    codes -= {protocol.PREFIX, protocol.PROTOCOL_HEADER, protocol.DEVELOPMENT_SECRET}
    assert sorted(code for code in codes if f"`{code}`" not in page) == []
    assert f"`{protocol.PREFIX}`" in page
    assert f"{protocol.PROTOCOL_HEADER}: {protocol.PROTOCOL}\n" in page
    assert f"at most {protocol.MAX_BATCH_BYTES >> 20} MiB" in page
    shown = [json.loads(cell) for cell in re.findall(r"^```json\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)]
    shapes = (protocol.JournalState, protocol.Appended)
    for shape in shapes:
        assert any(set(example) == set(shape.__annotations__) for example in shown), shape.__name__
    (state,) = (example for example in shown if "tombstone" in example)
    (segment,) = state["segments"].values()
    assert set(segment) == set(protocol.SegmentState.__annotations__)
    (digest,) = next(e for e in reversed(shown) if "segments" in e and "journal" not in e)["segments"].values()
    assert set(digest) == set(protocol.Digest.__annotations__)
    assert any(set(example) == set(protocol.BlobState.__annotations__) for example in shown)
    (death,) = next(example for example in shown if list(example) == ["deaths"])["deaths"]
    assert set(death) == set(protocol.DeathNote.__annotations__)


def test_every_environment_variable_of_the_code_is_documented() -> None:
    page = (DOCS / "environment.md").read_text(encoding="utf-8")
    used: set[str] = set()
    for path in (*(ROOT / "ml_dash").rglob("*.py"), *(ROOT / "daemon").rglob("*.py")):
        used |= set(re.findall(r"\bML_DASH_[A-Z_]+[A-Z]\b", path.read_text(encoding="utf-8")))
    assert sorted(name for name in used if f"`{name}`" not in page) == []


def _format_example() -> tuple[bytes, list[object]]:
    """The bytes of the hex dump in docs/format.md, and the values it is said to hold."""
    page = (DOCS / "format.md").read_text(encoding="utf-8")
    dump = page.split("<!-- hex example -->")[1].split("```")[1]
    digits = "".join(re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)", dump, re.MULTILINE))
    shown = page.split("<!-- hex example, decoded -->")[1].split("```")[1].removeprefix("json")
    return bytes.fromhex(digits), json.loads(shown)


def test_the_hex_example_of_the_format_page_decodes_with_the_library() -> None:
    data, shown = _format_example()
    header, size, crc = frames.decode_header(data)
    events: list[list[object]] = []
    end = frames.walk(data, size, frames.LengthCrcs(crc), msgpack.unpackb, events)
    assert end == len(data)
    identity = [
        header.journal.hex(), header.segment.hex(), header.writer.hex(), header.n, header.first_seq,
        header.created_ns, header.project, header.name,
    ]  # fmt: skip
    assert [identity, *events] == shown


def test_the_hex_example_of_the_format_page_decodes_by_the_text_alone() -> None:
    """A second reader, written from the page and nothing else of ours."""
    data, shown = _format_example()
    assert data[:8] == b"\x89MLDASH\n"
    version, length = struct.unpack("<HH", data[8:12])
    assert version == 1
    fields = msgpack.unpackb(data[12 : 12 + length])
    (crc,) = struct.unpack("<I", data[12 + length : 16 + length])
    assert crc == zlib.crc32(data[: 12 + length])
    position, found = 16 + length, [[f.hex() if isinstance(f, bytes) else f for f in fields]]
    while position < len(data):
        size, check = struct.unpack("<II", data[position : position + 8])
        payload = data[position + 8 : position + 8 + size]
        assert check == zlib.crc32(data[position : position + 4] + payload, crc)
        found.append(msgpack.unpackb(payload))
        position += 8 + size
    assert found == shown
