"""A sweep that is killed at each of its steps has freed only garbage, and the next one ends its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ml_dash.server.engine.contents import object_key
from ml_dash.server.engine.services import Server
from ml_dash.server.operate.sweep import Sweep, Swept
from ml_dash.server.settings import ServerSettings
from ml_dash.server.stores.wiring import open_stores
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, held, identity_of, send, send_blob

STEPS = ("pages", "pages-gone", "row", "row-gone", "lost", "object", "object-gone")


def victim(data: Path) -> None:
    stores = open_stores(ServerSettings(data))
    Sweep(stores, older_s=0, now_ns=lambda: 1 << 62).run()
    stores.close()


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_sweep_has_freed_only_garbage(tmp_path: Path, step: str) -> None:
    core = Server(tmp_path)
    sheet = SegmentBytes().opens().logs(40)
    kept, gone, lost = (sheet.adds_file(text, text.decode()) for text in (b"kept", b"gone", b"lost"))
    send(core, sheet)
    for name, content in ((kept, b"kept"), (gone, b"gone"), (lost, b"lost")):
        send_blob(core, sheet, name, content)
    with core.documents.view() as view:
        rows = {row.name: row for row in view.blobs(NS, EXPERIMENT)}
    sheet.deletes_file(gone)
    send(core, sheet)
    core.objects.put_contents([(rows[gone].key, b"gone"), (object_key(NS, EXPERIMENT, "a1"), b"garbage")])
    core.documents.put_blobs(NS, [rows[gone]])
    core.objects.delete(rows[lost].key)
    with core.documents._writing() as tx:  # type: ignore[attr-defined]
        tx.put_pages(NS, EXPERIMENT, [("1.7.1", b"left over")])
    before = held(core)
    core.close()

    command = [sys.executable, "-m", "tests.server.operate.test_sweep_killed", str(tmp_path)]
    environment = {**os.environ, "ML_DASH_FAIL": f"sweep-{step}:1:kill"}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == -signal.SIGKILL

    core = Server(tmp_path)
    assert held(core) == before
    assert b"".join(core.open_file(NS, EXPERIMENT, identity_of(kept), 0, None)[1]) == b"kept"
    assert core.journal(NS, sheet.journal)["missing"] == [lost]
    victim(tmp_path)
    assert Sweep(core.stores, older_s=0, now_ns=lambda: 1 << 62).run() == Swept()
    assert set(core.objects.list("")) == {rows[kept].key}
    send_blob(core, sheet, lost, b"lost")
    assert core.journal(NS, sheet.journal)["missing"] == []
    core.close()


if __name__ == "__main__":
    victim(Path(sys.argv[1]))
