"""The server's core killed by SIGKILL at each named step: what it acknowledged is there, all else is done again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ml_dash.server.engine.services import Server
from tests.server.sending import (
    EXPERIMENT,
    NS,
    SegmentBytes,
    assert_refolds,
    folded,
    held,
    identity_of,
    send,
    send_blob,
)

STEPS = 12
CONTENT = b"weights" * 1000


def script(number: int) -> tuple[SegmentBytes, str, list[int]]:
    """A segment, a blob in it, and where its requests end."""
    sheet = SegmentBytes(number).opens()
    name = ""
    for step in range(STEPS):
        sheet.log(f"line {step}").point(value=float(step))
        if step == STEPS // 2:
            name = sheet.adds_file(CONTENT)
    return sheet, name, sheet.ends[1::3] + sheet.ends[-1:]


def victim(data: Path) -> None:
    """Send all, from where the server is; say on stdout what was acknowledged."""
    core = Server(data)
    sheet, name, cuts = script(1)
    for cut in cuts:
        answer = send(core, sheet, 0, cut)
        os.write(1, b"bytes %d\n" % answer["length"])
    if send_blob(core, sheet, name, CONTENT, piece=3000)["complete"]:
        os.write(1, b"blob 1\n")


@pytest.mark.parametrize(
    "point",
    [f"ingest-{side}-commit:{nth}" for side in ("before", "after") for nth in (1, 2, 5)]
    + ["blob-staged:1", "blob-stored:1"],
)
def test_what_was_acknowledged_is_there(tmp_path: Path, point: str) -> None:
    environment = {**os.environ, "ML_DASH_FAIL": f"{point}:kill"}
    command = [sys.executable, "-m", "tests.server.test_killed", str(tmp_path / "data")]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    told = [line.split() for line in ended.stdout.decode().splitlines()]
    acknowledged = max((int(value) for kind, value in told if kind == "bytes"), default=0)
    sheet, name, cuts = script(1)
    core = Server(tmp_path / "data")
    if acknowledged:
        assert core.journal(NS, sheet.journal)["segments"][sheet.id]["length"] >= acknowledged
        length = core.journal(NS, sheet.journal)["segments"][sheet.id]["length"]
        assert held(core) == folded((sheet, sheet.events[: sheet.ends.index(length)]))
    send(core, sheet)
    length = core.blob_state(NS, sheet.journal, name)["length"]
    state = core.append_blob(NS, sheet.journal, name, length, len(CONTENT), CONTENT[length:], body=False)
    assert state["complete"]
    assert b"".join(core.open_file(NS, EXPERIMENT, identity_of(name), 0, None)[1]) == CONTENT
    assert held(core) == folded((sheet, sheet.events))
    assert_refolds(core)
    assert cuts[-1] == len(sheet.data)
    core.close()


if __name__ == "__main__":
    victim(Path(sys.argv[1]))
