"""Data of the first server: brought into pages beside the running server, from raw bytes and arrivals."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ml_dash.server.engine.services import Server
from tests.server.sending import NS, assert_refolds
from tests.server.test_contents import code

GOLDEN = Path(__file__).parent.parent / "golden" / "server1"


@pytest.fixture
def answers() -> dict[str, Any]:
    """What the first server answered to readers."""
    found: dict[str, Any] = json.loads(gzip.decompress((GOLDEN / "answers.json.gz").read_bytes()))
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Its data folder."""
    with tarfile.open(GOLDEN / "data.tar.gz") as archive:
        archive.extractall(tmp_path / "data", filter="data")
    return tmp_path / "data"


def now(core: Server, ids: dict[str, Any]) -> dict[str, Any]:
    """The same questions."""
    found = {
        "experiment": core.experiment(NS, ids["experiment"]), "order": core.order(NS, ids["experiment"], 0, 1000),
        "listed": core.experiments(NS), "bob": core.experiments("bob"),
        "logs": core.logs(NS, ids["experiment"], 0, 1000),
        "loss": core.metric_page(NS, ids["experiment"], "loss", 0, 2000).decode(),
        "acc": core.metric_page(NS, ids["experiment"], "acc/top1", 0, 2000).decode(),
        "series": core.series(NS, ids["experiment"], "loss", points=50).decode(),
        "files": json.loads(core.list_files(NS, ids["experiment"]))["files"],
        "journal": core.journal(NS, ids["journal"]),
        "parameters": core.get_parameters(NS, ids["experiment"])["data"],
        "rest": core.get_parameters("bob", ids["rest"])["data"],
        "rest_loss": core.metric_page("bob", ids["rest"], "loss", 0, 99).decode(),
        "digests": core.digests(NS, ids["journal"], {ids["segment"]: 1 << 40}),
        "gone": core.journal(NS, ids["gone_journal"]),
    }  # fmt: skip
    again: dict[str, Any] = json.loads(json.dumps(found))
    return again


def as_then(found: Any, answer: Any) -> Any:
    """What was found without the keys of mappings that later servers have added."""
    if isinstance(found, dict) and isinstance(answer, dict):
        return {key: as_then(found[key], answer[key]) for key in found if key in answer}
    if isinstance(found, list) and isinstance(answer, list) and len(found) == len(answer):
        return [as_then(*pair) for pair in zip(found, answer, strict=True)]
    return found


def assert_equal(core: Server, answers: dict[str, Any]) -> None:
    expected = {name: answer for name, answer in answers.items() if name not in ("ids", "token")}
    assert as_then(now(core, answers["ids"]), expected) == expected
    assert core.find_token(answers["token"]) is not None


def test_everything_is_as_the_first_server_answered_it(data: Path, answers: dict[str, Any]) -> None:
    core = Server(data)
    ids = answers["ids"]
    # Lists are there at once, and what an experiment holds once its turn has come.
    assert as_then(core.experiments(NS), answers["listed"]) == answers["listed"]
    assert code(lambda: core.experiment(NS, ids["experiment"])) == "unavailable"
    assert code(lambda: core.append_points("bob", ids["rest"], "loss", [{"value": 1.0}])) == "unavailable"
    assert core.bring_up_to_date() == 3
    assert_equal(core, answers)
    assert_refolds(core, ids["experiment"])
    assert core.append_points("bob", ids["rest"], "loss", [{"value": 1.0}])["startIndex"] == 30
    core.close()
    with sqlite3.connect(data / "server.sqlite") as database:
        assert database.execute("SELECT name FROM sqlite_master WHERE name LIKE 'old_%'").fetchall() == []
    database.close()
    core = Server(data)
    assert core.bring_up_to_date() == 0
    core.close()


PROGRAM = """
import sys
from pathlib import Path
from ml_dash.server.engine import refold
from ml_dash.server.engine.services import Server
refold._COMMIT_BYTES = 20_000
core = Server(Path(sys.argv[1]))
core.bring_up_to_date()
"""


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("point", ["ingest-before-commit", "ingest-after-commit"])
def test_it_may_die_at_any_commit(data: Path, answers: dict[str, Any], point: str, nth: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(data)]
    killed = subprocess.run(command, env={**os.environ, "ML_DASH_FAIL": f"{point}:{nth}:kill"}, check=False)
    assert killed.returncode == -9
    core = Server(data)
    core.bring_up_to_date()
    assert_equal(core, answers)
    core.close()
