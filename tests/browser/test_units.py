"""What the dashboard computes, run by node without a browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import ml_dash

UNITS = Path(__file__).parent / "unit"


def test_numbers_behind_the_charts_are_right(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        assert not os.environ.get("CI"), "node is needed for the unit tests of the dashboard"
        pytest.skip("node is not installed")
    shutil.copytree(Path(ml_dash.__file__).parent / "dashboard", tmp_path / "dashboard")
    shutil.copytree(UNITS, tmp_path / "unit")
    # The dashboard is served as modules, and has no package that says so to node.
    (tmp_path / "package.json").write_text('{"type": "module"}')
    tests = sorted(str(path) for path in (tmp_path / "unit").glob("*.test.js"))
    command = [node, "--test", *tests]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert tests
    assert done.returncode == 0, done.stdout + done.stderr
