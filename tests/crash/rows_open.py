"""Row W34: `open()` in a place that can never work is told at once; one that fails later costs nothing."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.harness import NotHere, Row, Trial, has_mounts

from .oracle import ear
from .recovery import ended, hear_or_tell, recovered
from .setups import zygote
from .victims import NAME, PROJECT
from .victims_disk import mount, unmount

_NOBODY: Final = 65534
_RDONLY, _REMOUNT, _BIND = 1, 32, 4096
_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10


@dataclass
class Place:
    """Where a trial records: `runs` lies in `top`, and both belong to the user without rights."""

    trial: Trial
    top: Path
    runs: Path
    undo: ExitStack = field(default_factory=ExitStack)

    @property
    def home(self) -> Path:
        """The experiment's folder."""
        return self.runs / PROJECT / NAME

    def record(self) -> None:
        """An experiment that is there already."""
        victim = self.trial.shared.start("victims_disk:record", self.trial.folder, where=str(self.runs))
        if victim.wait():
            raise RuntimeError(victim.told())

    def folder(self, path: Path) -> Path:
        """A folder of the user without rights, and those above it."""
        for each in (*reversed([p for p in path.parents if p.is_relative_to(self.top)]), path):
            each.mkdir(exist_ok=True)
            own(each)
        return path

    def mode(self, path: Path, mode: int) -> None:
        """Change what the user without rights may do there, until the trial is over."""
        path.chmod(mode)
        self.undo.callback(path.chmod, 0o755)

    def mounted(self) -> None:
        """A file system of its own at `runs`."""
        self.folder(self.runs)
        mount("tmpfs", self.runs, 0, "size=4m")
        self.undo.callback(unmount, self.runs, lazy=True)
        own(self.runs)

    def read_only(self) -> None:
        """What is mounted at `runs` becomes read-only."""
        mount("tmpfs", self.runs, _REMOUNT | _RDONLY, "size=4m")


def own(path: Path) -> None:
    """Root hands a folder to the user without rights."""
    if os.geteuid() == 0:
        os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)


# -- places that can never work: each makes one, and says what to give as `local_path` ---------------------------------


def _above(place: Place) -> Path:
    place.mode(place.top, 0o555)
    return place.runs


def _without_search(place: Place) -> Path:
    place.mode(place.folder(place.runs), 0o000)
    return place.runs


def _store(place: Place) -> Path:
    place.mode(place.folder(place.runs), 0o555)
    return place.runs


def _project(place: Place) -> Path:
    place.mode(place.folder(place.home.parent), 0o555)
    return place.runs


def _experiment(place: Place) -> Path:
    place.mode(place.folder(place.home), 0o555)
    return place.runs


def _journal_forbidden(place: Place) -> Path:
    place.record()
    place.mode(place.home / ".journal", 0o000)
    return place.runs


def _segments(place: Place) -> Path:
    place.record()
    place.mode(place.home / ".journal" / "segments", 0o555)
    return place.runs


def _of_another(place: Place) -> Path:
    # Nobody but root may make a folder beside the system's own.
    return Path("/ml-dash-of-another") / place.top.name


def _file_above(place: Place) -> Path:
    (place.top / "file").write_text("mine")
    return place.top / "file" / "runs"


def _file(place: Place) -> Path:
    place.runs.write_text("mine")
    return place.runs


def _device_above(_: Place) -> Path:
    return Path("/dev/null/runs")


def _loop(place: Place) -> Path:
    place.runs.symlink_to(place.runs)
    return place.runs


def _dangling(place: Place) -> Path:
    # As ~/runs -> /mnt/store/runs, where the store is not mounted.
    place.runs.symlink_to(place.top / "mnt" / "store" / "runs")
    return place.runs


def _segments_are_a_link(place: Place) -> Path:
    place.record()
    segments = place.home / ".journal" / "segments"
    segments.rename(place.top / "elsewhere")
    segments.symlink_to(place.top / "elsewhere")
    return place.runs


def _too_long(place: Place) -> Path:
    return place.top / ("x" * 300)


def _of_the_kernel(_: Place) -> Path:
    if not Path("/proc/self").exists():
        raise NotHere("no /proc is mounted")
    return Path("/proc/runs")


def _immutable(place: Place) -> Path:
    place.folder(place.runs)
    _set_flag(place.runs, _IMMUTABLE, True)
    place.undo.callback(_set_flag, place.runs, _IMMUTABLE, False)
    return place.runs


def _immutable_journal(place: Place) -> Path:
    place.record()
    segments = place.home / ".journal" / "segments"
    _set_flag(segments, _IMMUTABLE, True)
    place.undo.callback(_set_flag, segments, _IMMUTABLE, False)
    return place.runs


def _set_flag(path: Path, flag: int, on: bool) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(fd, _GET_FLAGS, bytes(ctypes.sizeof(ctypes.c_long))))
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("l", flags | flag if on else flags & ~flag))
    except OSError as error:
        raise NotHere(f"no file can be made immutable here: {error.strerror}") from error
    finally:
        os.close(fd)


def _mounted_read_only(place: Place) -> Path:
    _needs_mounts()
    place.mounted()
    place.read_only()
    return place.runs


def _read_only_with_the_experiment(place: Place) -> Path:
    _needs_mounts()
    place.mounted()
    place.record()
    place.read_only()
    return place.runs


def _bound_read_only(place: Place) -> Path:
    _needs_mounts()
    place.folder(place.runs)
    place.record()
    _cover_read_only(place)
    place.undo.callback(unmount, place.runs, lazy=True)
    return place.runs


def _cover_read_only(place: Place) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    where = str(place.runs).encode()
    for flags in (_BIND, _BIND | _REMOUNT | _RDONLY):
        if libc.mount(where, where, None, flags, None):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place.runs))


def _not_mounted(place: Place) -> Path:
    _needs_mounts()
    place.mounted()
    place.record()
    unmount(place.runs, lazy=True)
    # What a mount point is without its file system: an empty folder of root.
    os.chown(place.runs, 0, 0)
    return place.runs


def _needs_mounts() -> None:
    if not has_mounts():
        raise NotHere("only root may mount")


NEVER: Final[dict[str, Callable[[Place], Path]]] = {
    "the folder above may not be written": _above,
    "store without search": _without_search,
    "store read-only": _store,
    "project read-only": _project,
    "experiment read-only": _experiment,
    "journal forbidden": _journal_forbidden,
    "segments read-only": _segments,
    "a folder of root": _of_another,
    "a file above": _file_above,
    "a file in its place": _file,
    "a device above": _device_above,
    "a link to itself": _loop,
    "a link to a store that is not mounted": _dangling,
    "segments are a link": _segments_are_a_link,
    "a name that is too long": _too_long,
    "a folder of the kernel": _of_the_kernel,
    "immutable": _immutable,
    "an immutable journal": _immutable_journal,
    "an empty read-only mount": _mounted_read_only,
    "a read-only mount with the experiment": _read_only_with_the_experiment,
    "a read-only bind mount": _bound_read_only,
    "a mount point without its file system": _not_mounted,
}


# Only this one experiment cannot be recorded there, or only its project.
_UNDER_THE_STORE: Final = frozenset((
    "project read-only", "experiment read-only", "journal forbidden", "segments read-only", "segments are a link",
    "an immutable journal",
))  # fmt: skip


# -- places that fail after `open()`: each breaks one, and mends it ----------------------------------------------------


@contextmanager
def _forbidden(place: Place, mode: int) -> Iterator[None]:
    segments = place.home / ".journal" / "segments"
    for path in (segments, segments.parent, place.home):
        path.chmod(mode)
    yield
    for path in (place.home, segments.parent, segments):
        path.chmod(0o755)


@contextmanager
def _full(place: Place) -> Iterator[None]:
    ballast = place.runs / "ballast"
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(fd, bytes(4096))
    except OSError:
        yield
    finally:
        os.close(fd)
        ballast.unlink()


@contextmanager
def _covered(place: Place) -> Iterator[None]:
    _cover_read_only(place)
    yield
    unmount(place.runs, lazy=True)


# How it breaks, and whether that needs a mount.
LATER: Final[dict[str, tuple[Callable[[Place], object], bool]]] = {
    "later read-only": (lambda place: _forbidden(place, 0o555), False),
    "later forbidden": (lambda place: _forbidden(place, 0o000), False),
    "later full": (_full, True),
    "later covered by a read-only mount": (_covered, True),
}


def open_somewhere(trial: Trial) -> None:
    """W34. Either `open()` raises and leaves nothing, or nothing is lost."""
    names = [*NEVER, *LATER]
    kind = names[trial.index % len(names)]
    top = trial.folder / "top"
    top.mkdir()
    # Root's folders are passed through, not written to.
    trial.folder.chmod(0o755)
    own(top)
    place = Place(trial, top, (top if kind in NEVER else trial.folder) / "store")
    with place.undo:
        if kind in NEVER:
            _never(trial, place, kind)
        else:
            _later(trial, place, kind)
    trial.counts[kind] += 1


def _never(trial: Trial, place: Place, kind: str) -> None:
    where = NEVER[kind](place)
    before = _listing(place.top)
    settings = {
        "strict": trial.rng.random() < 0.3,
        "durability": trial.rng.choice(("interval", "always", "os")),
        "resume": trial.rng.choice(("allow", "allow", "new")),
    }
    if kind in _UNDER_THE_STORE:
        # Under another name there would be room.
        settings["resume"] = "allow"
    ways = ["argument", "environment"]
    if kind not in _UNDER_THE_STORE:
        # Given as the root, the store lies in it, beside its projects.
        ways.append("prefix")
    victim = trial.shared.start(
        "victims_disk:open_in_vain",
        trial.folder,
        where=str(where),
        how=trial.rng.choice(ways),
        settings=settings,
    )
    status = victim.wait()
    told = victim.told()
    trial.check(status == 0, f"{kind}: the victim ended with {status}: {told}")
    raised = re.findall(r"^raised (\w+): (.*)$", told, re.MULTILINE)
    if trial.check(raised, f"{kind}, {settings}: open() did not raise: {told}"):
        (name, text), *more = raised
        trial.check(name == "StorageError" and not more, f"{kind}: raised {raised}")
        trial.check("local_path=" in text and "ML_DASH_LOCAL_PATH" in text, f"{kind}: {text!r} names no way out")
        trial.check(not re.search(r"\b(kept|are in)\b", told), f"{kind}: speaks of data: {told}")
        trial.check(len(told.splitlines()) == 1, f"{kind}: more was told: {told}")
    left = sorted(set(_listing(place.top)) ^ set(before))
    trial.check(not left, f"{kind}, {settings}: half made: {left}")


def _listing(top: Path) -> list[str]:
    found = []
    for path, folders, files in os.walk(top):
        for name in (*folders, *files):
            state = (Path(path) / name).lstat()
            found.append(f"{path}/{name} {state.st_mode:o} {state.st_size}")
    return found


def _later(trial: Trial, place: Place, kind: str) -> None:
    spoil, needs_mounts = LATER[kind]
    if needs_mounts:
        _needs_mounts()
        place.mounted()
    else:
        place.folder(place.runs)
    with ear() as listener:
        victim = trial.shared.start(
            "victims_disk:paced",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            unprivileged=True,
            wait_written=True,
        )
        listener.started()
        hear_or_tell(listener, victim, "waiting", 1)
        with spoil(place):  # type: ignore[attr-defined]
            (trial.folder / "break").touch()
            hear_or_tell(listener, victim, "waiting", 2)
        (trial.folder / "mend").touch()
        ended(trial, listener, victim)
        trial.check("closed" in listener.ledger.values, f"{kind}: the victim did not come to its end")
        trial.check("storage-error" not in listener.ledger.values, f"{kind}: close() raised: {victim.told()}")
        recovered(trial, listener.ledger)


_KINDS: Final = len(NEVER) + len(LATER)
ROWS = (Row("W34", "opened where it can never work", _KINDS, _KINDS, open_somewhere, zygote, mounts="root"),)
