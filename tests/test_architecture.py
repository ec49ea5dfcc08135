"""Imports point down: the code against the layer map that docs/internals.md draws."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ml_dash"
DAEMON = ROOT / "daemon" / "ml_dash_syncd"
MAP = ROOT / "docs" / "internals.md"

NOT_AT_IMPORT = (
    "asyncio", "boto3", "click", "concurrent", "filelock", "http", "httpx", "jwt", "lark", "ml_dash_syncd",
    "msgspec", "multiprocessing",
    "numpy", "pymongo", "requests", "rich", "socket", "ssl", "starlette", "subprocess", "tempfile", "torch",
    "urllib.error", "urllib.request", "uvicorn", "watchdog", "ml_dash.cli", "ml_dash.demo", "ml_dash.projection",
    "ml_dash.sync.remote", "ml_dash.server",
)  # fmt: skip
LIBRARY_BELOW_THE_API = ("sync", "reading", "projection", "journal", "disk", "core")
POSIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog")
IMPURE = (
    "asyncio", "fcntl", "io", "logging", "multiprocessing", "os", "random", "secrets", "shutil", "signal",
    "socket", "subprocess", "tempfile", "threading", "time", "urllib",
)  # fmt: skip
HARMLESS = ("os.PathLike", "os.fspath", "time.gmtime")  # arithmetic and types


def layers() -> list[tuple[str, list[str]]]:
    """(layer, its modules in the order in which they may import each other), the highest first."""
    text = MAP.read_text(encoding="utf-8")
    block = text.split("<!-- layer map -->")[1].split("```")[1].removeprefix("text").strip()
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        name, *modules = line.split()
        if line.startswith(" "):
            found[-1][1].extend([name, *modules])
        else:
            found.append((name, list(modules)))
    return found


def order() -> list[str]:
    """All entries of the map, from the lowest layer up; a module may import what stands before it."""
    return [entry for _, entries in reversed(layers()) for entry in entries]


def entry_of(module: str) -> str | None:
    """The entry of the map that `module` belongs to: the longest that is it or holds it."""
    fitting = [e for e in order() if module == f"ml_dash.{e}" or module.startswith(f"ml_dash.{e}.")]
    if module == "ml_dash":
        fitting = ["__init__"]
    return max(fitting, key=len, default=None)


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str, path: Path) -> set[str]:
    """Every module that `path` imports anywhere in its text, inside functions and for types too, by absolute name."""
    names: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")
            base = base[: len(base) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                if inner != "ml_dash.__version__":  # the first line of the package, there before all else
                    names.add(inner if inner in known else source)
    return names


def test_every_module_has_its_place_in_the_map() -> None:
    homeless = [module for module in modules() if entry_of(module) is None]
    assert not homeless, f"docs/internals.md does not place {homeless}"


def test_the_map_names_no_module_that_does_not_exist() -> None:
    known = {entry_of(module) for module in modules()}
    assert [entry for entry in order() if entry not in known] == []


def test_no_module_imports_upward() -> None:
    """Not for types either."""
    place = {entry: number for number, entry in enumerate(order())}
    wrong = []
    for module, path in modules().items():
        mine = entry_of(module)
        assert mine is not None
        for other in imported(module, path):
            theirs = entry_of(other) if other.split(".")[0] == "ml_dash" else None
            if theirs is not None and place[theirs] > place[mine]:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not within an entry of the map, and not for types."""
    left = {module: imported(module, path) - {module} for module, path in modules().items()}
    while free := [module for module, others in left.items() if others.isdisjoint(left)]:
        for module in free:
            del left[module]
    assert left == {}


def test_the_top_level_holds_what_users_import_and_nothing_else() -> None:
    """A new module belongs into one of the packages; if none fits, the map is extended first."""
    public = {"client", "decorator", "errors", "experiment", "files", "log", "metric", "notebook", "parameters"}
    assert {path.stem for path in PACKAGE.glob("*.py")} == public | {"__init__", "__main__"}


def test_the_library_never_imports_the_daemon() -> None:
    """It starts it, as a program."""
    naming = [m for m, path in modules().items() if any(o.startswith("ml_dash_syncd") for o in imported(m, path))]
    assert naming == []


def test_the_daemon_knows_journals_and_http_but_neither_the_api_nor_the_server() -> None:
    allowed = dict(layers())
    below = {entry for layer in LIBRARY_BELOW_THE_API for entry in allowed[layer]}
    wrong = []
    for path in sorted(DAEMON.glob("*.py")):
        for other in imported(f"ml_dash_syncd.{path.stem}", path):
            if other.split(".")[0] == "ml_dash" and other != "ml_dash" and entry_of(other) not in below:
                wrong.append(f"{path.name} imports {other}")
    assert wrong == []


def test_pure_modules_touch_no_file_clock_or_thread() -> None:
    pure = dict(layers())["core"]
    wrong = []
    for module, path in modules().items():
        if entry_of(module) not in pure:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for other in imported(module, path):
            top = other.split(".")[0]
            if top not in sys.stdlib_module_names and top not in ("ml_dash", "msgpack"):
                wrong.append(f"{module} imports {other}")
        wrong += [f"{module} uses {name}" for name in _impure_uses(tree)]
    assert not wrong


def _impure_uses(tree: ast.Module) -> list[str]:
    """Names of impure modules, the clock and open(), as far as `tree` uses them; HARMLESS are left out."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(source), level=0) if source.split(".")[0] in IMPURE:
                found += [f"{source}.{alias.name}" for alias in node.names]
            case ast.Attribute(value=ast.Name(id=source), attr=name) if source in IMPURE:
                found.append(f"{source}.{name}")
            case (
                ast.Call(func=ast.Attribute(attr="now" | "today" as name)) | ast.Call(func=ast.Name(id="open" as name))
            ):
                found.append(f"{name}()")
    return [name for name in found if name not in HARMLESS]


def test_every_module_says_its_job_in_its_first_line() -> None:
    silent = [
        module
        for module, path in modules().items()
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    ]
    assert not silent


def test_posix_only_modules_are_never_needed_at_import() -> None:
    """At the top of a module they may only stand in a `try`, or under a check of the platform."""
    wrong = []
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                wrong += [f"{module} imports {a.name}" for a in node.names if a.name in POSIX_ONLY]
            elif isinstance(node, ast.ImportFrom) and node.module in POSIX_ONLY:
                wrong.append(f"{module} imports from {node.module}")
    assert not wrong


@pytest.mark.parametrize("statement", ["import ml_dash", "from ml_dash import *"])
def test_importing_the_library_asks_for_nothing_heavy(statement: str) -> None:
    """Asked for, not only loaded: a `try: import requests` counts where requests is missing too."""
    asked = _asked_for(statement)
    heavy = sorted(n for n in asked if any(n == h or n.startswith(h + ".") for h in NOT_AT_IMPORT))
    assert not heavy


def _asked_for(statement: str) -> set[str]:
    program = f"""
import sys

class Witness:
    asked = []
    def find_spec(self, name, path=None, target=None):
        self.asked.append(name)

before = set(sys.modules)
sys.meta_path.insert(0, Witness())
{statement}
print(chr(10).join(sorted(set(Witness.asked) | (set(sys.modules) - before))))
"""
    # -S: what site-packages loads at start is not the library's doing, so its path is given by hand.
    paths = [str(ROOT), *(p for p in sys.path if p.endswith("site-packages"))]
    start = f"import sys; sys.path[:0] = {paths!r}\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", start + program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())
