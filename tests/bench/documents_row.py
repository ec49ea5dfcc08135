"""The measurement of the documents of a server: SQLite, and MongoDB as FerretDB stands for it here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter_ns

from ml_dash.server.stores import Commit, Documents, Lease
from tests.contracts.document_places import ID, NS, experiment, open_documents
from tests.services import running
from tests.services.build import Unavailable

from .rows import Figures, row

_PAGES = 6
_READ = 3
_KEPT = 60


@row("one lease and commit of 6 pages of 4 KB, one read of a head and 3 pages; for comparison")
def documents(folder: Path, scale: float) -> Figures:
    places = {"sqlite": str(folder / "server.sqlite")}
    with contextlib.ExitStack() as stack:
        try:
            service = running.mongo(folder / "mongo").start()
        except Unavailable:
            pass
        else:
            stack.callback(service.end)
            places["mongo"] = f"{running.mongodb_uri(service)} bench"
        opened = {
            kind: stack.enter_context(contextlib.closing(open_documents(kind, where))) for kind, where in places.items()
        }
        # In turns, so that what else the machine does meets both.
        steps = {kind: _steps(one) for kind, one in opened.items()}
        times: dict[str, list[int]] = {}
        for _ in range(int(300 * scale)):
            for kind, acts in steps.items():
                for name, act in acts.items():
                    begun = perf_counter_ns()
                    act()
                    times.setdefault(f"{kind} {name} ms", []).append(perf_counter_ns() - begun)
        return {name: median(found) / 1e6 for name, found in times.items()}


def _steps(documents: Documents) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name, to be called one after the other."""
    held: list[Lease] = []
    names: list[str] = []

    def lease() -> None:
        held[:] = [documents.lease(NS, ID)]

    def commit() -> None:
        version, epoch = held[0].version, held[0].epoch
        new = [(f"{version}-{epoch}-{number}", os.urandom(4096)) for number in range(_PAGES)]
        old, names[:] = names[:-_KEPT], [*names[-_KEPT:], *(name for name, _ in new)]
        row = replace(experiment(state=os.urandom(2000)), version=version, epoch=epoch)
        documents.commit(held[0], Commit(row, new, old))

    def read() -> None:
        with documents.view() as view:
            assert view.experiment(NS, ID) is not None
            assert len(view.pages(NS, ID, names[-_READ:])) == _READ

    return {"lease": lease, "commit": commit, "read": read}
