"""The shim's own tests: each fault must really happen, where it was asked for, and nowhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from . import shim
from .harness import ROOT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def library() -> Path:
    try:
        return shim.build()
    except shim.ShimUnavailable as reason:
        if os.environ.get("CI") and sys.platform.startswith("linux"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))


def run(library: Path, program: str, body: str, root: Path) -> Any:
    """What a script prints (as JSON) that follows the program; `attempt` gives a result or an errno."""
    script = (
        "import ctypes, fcntl, json, os, sys, time\nfrom pathlib import Path\nr = Path(sys.argv[1])\n"
        "def attempt(function, *arguments):\n    try: return function(*arguments)\n"
        "    except OSError as e: return -e.errno\n"
        f"{body}\nprint(json.dumps(out))"
    )
    environment = {**os.environ, "LD_PRELOAD": str(library), "ML_DASH_TEST_SHIM": program, "PYTHONPATH": str(ROOT)}
    made = subprocess.run([sys.executable, "-c", script, str(root)], env=environment, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()
    return json.loads(made.stdout)


OPEN = "fd = os.open(r / 'f', os.O_CREAT | os.O_RDWR | os.O_APPEND)\n"


def test_the_nth_write_fails_once(library: Path, root: Path) -> None:
    program = shim.program(root, shim.rule("write", nth=2, errno=5))
    assert run(library, program, OPEN + "out = [attempt(os.write, fd, b'ab') for _ in range(4)]", root) == [2, -5, 2, 2]
    assert (root / "f").read_bytes() == b"ababab"


def test_a_write_without_the_interpreters_lock_fails_too(library: Path, root: Path) -> None:
    program = shim.program(root, shim.rule("write", nth=1, count=0, errno=28))
    assert run(library, program, OPEN + "out = ctypes.PyDLL(None).write(fd, b'ab', 2)", root) == -1


def test_a_write_takes_only_a_part(library: Path, root: Path) -> None:
    program = shim.program(root, shim.rule("write", short=3))
    assert run(library, program, OPEN + "out = [os.write(fd, b'abcdef'), os.write(fd, b'xyzabc')]", root) == [3, 6]


def test_files_elsewhere_are_left_alone(library: Path, root: Path, tmp_path: Path) -> None:
    program = shim.program(root / "sub", shim.rule("write", count=0, errno=5), shim.rule("fsync", count=0, errno=5))
    assert run(library, program, OPEN + "out = [attempt(os.write, fd, b'ab'), attempt(os.fsync, fd)]", root) == [
        2,
        None,
    ]


def test_only_matching_paths_are_concerned(library: Path, root: Path) -> None:
    program = shim.program(root, shim.rule("write", match="/segments/", count=0, errno=5))
    assert run(library, program, OPEN + "out = attempt(os.write, fd, b'ab')", root) == 2


def test_a_sync_fails_and_the_next_one_succeeds(library: Path, root: Path) -> None:
    program = shim.program(root, shim.rule("fdatasync", errno=5), shim.rule("fsync", nth=2, errno=28))
    body = (
        OPEN
        + "out = [attempt(os.fdatasync, fd), attempt(os.fdatasync, fd), attempt(os.fsync, fd), attempt(os.fsync, fd)]"
    )
    assert run(library, program, body, root) == [-5, None, None, -28]


def test_names_fail(library: Path, root: Path) -> None:
    rules = [shim.rule(op, count=0, errno=30) for op in ("rename", "mkdir", "unlink", "link", "create")]
    body = (
        "os.environ and (r / '..' / 'outside').resolve().touch()\n"
        "out = [attempt(os.rename, r / 'a', r / 'b'), attempt(os.mkdir, r / 'd'), attempt(os.unlink, r / 'a'),\n"
        "       attempt(os.link, r / 'a', r / 'b'), attempt(os.open, r / 'new', os.O_CREAT | os.O_WRONLY)]"
    )
    (root / "a").touch()
    assert run(library, shim.program(root, *rules), body, root) == [-30] * 5


def test_a_disk_has_room_for_so_many_bytes(library: Path, root: Path) -> None:
    body = OPEN + (
        "out = [attempt(os.write, fd, b'x' * 60), attempt(os.write, fd, b'x' * 60), attempt(os.write, fd, b'x')]\n"
        "os.ftruncate(fd, 50)\nout.append(attempt(os.write, fd, b'x' * 60))"
    )
    assert run(library, shim.program(root, "quota=100"), body, root) == [60, 40, -28, 50]


def test_locks_lie(library: Path, root: Path) -> None:
    body = (
        OPEN
        + "other = os.open(r / 'f', os.O_RDWR)\n"
        + "out = [attempt(fcntl.flock, fd, fcntl.LOCK_EX), attempt(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)]"
    )
    assert run(library, shim.program(root, shim.rule("flock", count=0, errno=37)), body, root) == [-37, -37]
    assert run(library, shim.program(root, shim.rule("flock", count=0, always=1)), body, root) == [None, None]
    assert run(library, shim.program(root), body, root) == [None, -11]


def test_a_late_close_fails_only_for_what_was_written(library: Path, root: Path) -> None:
    body = (
        OPEN
        + "os.write(fd, b'x')\nother = os.open(r / 'f', os.O_RDONLY)\n"
        + "out = [attempt(os.close, fd), attempt(os.close, other)]"
    )
    assert run(library, shim.program(root, shim.rule("close", count=0, errno=5)), body, root) == [-5, None]


def test_a_write_hangs_until_it_is_let_go(library: Path, root: Path) -> None:
    program = shim.program(root, shim.rule("write", hang=root / "go"))
    body = OPEN + (
        "import threading\nthread = threading.Thread(target=os.write, args=(fd, b'ab'))\nthread.start()\n"
        "library = ctypes.CDLL(None)\n"
        "while not library.shim_hung(): time.sleep(0.001)\n"
        "before = os.fstat(fd).st_size\n(r / 'go').touch()\nthread.join()\nout = [before, os.fstat(fd).st_size]"
    )
    assert run(library, program, body, root) == [0, 2]


def test_clocks_are_wrong(library: Path, root: Path) -> None:
    now = run(library, shim.program(None), "out = time.time()", root)
    later = run(library, shim.program(None, "clock=shift:3600"), "out = time.time()", root)
    assert 3_590 < later - now < 3_700
    body = (
        "a = time.time_ns()\nb = time.monotonic_ns()\nwhile time.monotonic_ns() - b < 2_000_000: pass\n"
        "out = time.time_ns() - a"
    )
    assert run(library, shim.program(None, "clock=freeze"), body, root) == 0


def test_every_change_is_recorded_in_order(library: Path, root: Path, tmp_path: Path) -> None:
    body = (
        "os.mkdir(r / 'd')\nfd = os.open(r / 'd' / 'f', os.O_CREAT | os.O_WRONLY | os.O_APPEND)\nos.write(fd, b'one')\n"
        "ctypes.PyDLL(None).write(fd, b'two', 3)\nos.pwrite(fd, b'Z', 0) if False else None\nos.fdatasync(fd)\n"
        "d = os.open(r / 'd', os.O_RDONLY)\nos.fsync(d)\nos.rename(r / 'd' / 'f', r / 'd' / 'g')\n"
        "os.link(r / 'd' / 'g', r / 'd' / 'h')\n"
        "g = os.open('g', os.O_RDWR, dir_fd=d)\nos.pwrite(g, b'Z', 1)\nos.ftruncate(g, 4)\nos.unlink(r / 'd' / 'h')\n"
        "ctypes.CDLL(None).shim_mark(b'here')\nout = 0"
    )
    log = tmp_path / "log"
    run(library, shim.program(root, log=log), body, root)
    seen = [(o.kind, Path(o.path).name, Path(o.path2).name, o.offset, o.data) for o in shim.read_log(log)]
    assert seen == [
        (shim.MKDIR, "d", "", 0, b""),
        (shim.CREATE, "f", "", 0, b""),
        (shim.WRITE, "f", "", 0, b"one"),
        (shim.WRITE, "f", "", 3, b"two"),
        (shim.SYNC, "f", "", 0, b""),
        (shim.SYNC, "d", "", 0, b""),
        (shim.RENAME, "f", "g", 0, b""),
        (shim.LINK, "g", "h", 0, b""),
        (shim.WRITE, "g", "", 1, b"Z"),
        (shim.TRUNCATE, "g", "", 4, b""),
        (shim.UNLINK, "h", "", 0, b""),
        (shim.MARK, "", "", 0, b"here"),
    ]
