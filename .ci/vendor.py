"""Refreshes the libraries of the dashboard from npm, and checks those that are there.

    python .ci/vendor.py            download the versions below, write vendor/ and vendor/VENDOR.json (needs npm)
    python .ci/vendor.py --check    compare the files with the SHA-256 in VENDOR.json; exit code 1 if one differs

What is written is what a browser loads; nothing is built when ml-dash is packaged or installed. Preact, its hooks, the
signals and htm are five small modules that import each other, and become one file, so that a page asks once and not
five times. uPlot is its own minified file with an export behind it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).parent.parent / "ml_dash" / "dashboard" / "vendor"
PACKAGES = {
    "preact": "11.2.0",
    "@preact/signals-core": "1.14.5",
    "@preact/signals": "2.11.4",
    "htm": "3.1.1",
    "uplot": "1.6.32",
}
BUNDLER = "esbuild@0.25.12"
BUNDLE = """
export {h, render, Fragment, Component, createContext, options} from "preact";
export {useState, useReducer, useEffect, useLayoutEffect, useRef, useMemo, useCallback, useContext, useErrorBoundary,
  useId}
  from "preact/hooks";
export {signal, computed, effect, batch, untracked, Signal, useSignal, useComputed, useSignalEffect}
  from "@preact/signals";
export {default as htm} from "htm";
"""


def refresh() -> None:
    """Write the files anew."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        wanted = [f"{package}@{version}" for package, version in PACKAGES.items()]
        (scratch / "package.json").write_text("{}")
        _npm(scratch, "install", "--ignore-scripts", "--no-audit", "--no-fund", *wanted)
        modules = scratch / "node_modules"
        (scratch / "entry.js").write_text(BUNDLE)
        out = VENDOR / "preact.js"
        arguments = ["--bundle", "--format=esm", "--minify", "--legal-comments=none", f"--outfile={out}"]
        _npm(scratch, "exec", "--yes", BUNDLER, "--", "entry.js", *arguments)
        plot = (modules / "uplot/dist/uPlot.iife.min.js").read_text()
        (VENDOR / "uplot.js").write_text(f"{plot.strip()}\nexport default uPlot;\n")
        (VENDOR / "uplot.css").write_text((modules / "uplot/dist/uPlot.min.css").read_text())
        (VENDOR / "uplot.d.ts").write_text((modules / "uplot/dist/uPlot.d.ts").read_text())
        (VENDOR / "LICENSES.txt").write_text(_licences(modules, scratch))
        packages = [_described(modules, package, scratch) for package in PACKAGES]
    files = {path.name: _sha256(path.read_bytes()) for path in sorted(VENDOR.glob("*")) if path.name in WRITTEN}
    (VENDOR / "VENDOR.json").write_text(json.dumps({"packages": packages, "files": files}, indent=2) + "\n")


WRITTEN = ("preact.js", "uplot.js", "uplot.css", "uplot.d.ts", "LICENSES.txt")


def check() -> list[str]:
    """Return what differs from VENDOR.json, one sentence each."""
    noted = json.loads((VENDOR / "VENDOR.json").read_text())["files"]
    return [
        f"{name} is not what VENDOR.json says"
        for name, digest in noted.items()
        if _sha256((VENDOR / name).read_bytes()) != digest
    ]


def _npm(folder: Path, *arguments: str) -> None:
    subprocess.run(["npm", "--loglevel=error", *arguments], cwd=folder, check=True)


def _described(modules: Path, package: str, scratch: Path) -> dict[str, str]:
    """Return what VENDOR.json says of a package; the SHA-256 is of the archive at npm."""
    described = json.loads((modules / package / "package.json").read_text())
    return {
        "name": package,
        "version": described["version"],
        "licence": described["license"],
        "sha256": _sha256(_archive(scratch, f"{package}@{described['version']}").read_bytes()),
    }


def _archive(scratch: Path, wanted: str) -> Path:
    """Return the archive of a package, downloaded once."""
    name = wanted.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"
    if not (scratch / name).exists():
        _npm(scratch, "pack", "--silent", wanted)
    return scratch / name


def _licences(modules: Path, scratch: Path) -> str:
    """Return the licences of all packages, as one text."""
    return "\n".join(
        f"{package} {version}\n{'=' * 40}\n\n{_licence(modules / package, scratch, f'{package}@{version}')}\n"
        for package, version in PACKAGES.items()
    )


def _licence(folder: Path, scratch: Path, wanted: str) -> str:
    """Return the text of a package's licence: its file of that name, or what its archive has."""
    for path in sorted(folder.glob("LICEN[CS]E*")):
        return path.read_text()
    with tarfile.open(_archive(scratch, wanted)) as archive:
        for member in archive.getmembers():
            if "LICENSE" in member.name.upper() and (file := archive.extractfile(member)):
                return file.read().decode()
    # htm's archive carries none: its package.json names the licence.
    described = json.loads((folder / "package.json").read_text())
    return f"{described['license']}; {described.get('author') or described.get('repository')}\n"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(check()) or 0)
    refresh()
