"""Another server, as a process of its own, that does one thing to the documents at a place and says how it went."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

from ml_dash.server.stores import Busy, Commit, Documents, JournalClaim, Stale

from .document_places import ID, NS, experiment, open_documents, put, second_version


def change(documents: Documents) -> None:
    """Commit the second version."""
    second_version(documents)
    print("committed")


def hold(documents: Documents) -> None:
    """Take the lease, and commit under it once told to."""
    lease = documents.lease(NS, ID)
    print("leased", flush=True)
    sys.stdin.readline()
    row = replace(lease.row or experiment(), version=lease.version, epoch=lease.epoch, name="late")
    try:
        documents.commit(lease, Commit(row, [("late", b"late")]))
    except Stale:
        print("stale")
    else:
        print("committed")


def claim(documents: Documents, mine: str) -> None:
    """Claim a hundred journals once told to, and say who has each."""
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(100):
        print(documents.claim_journal(NS, JournalClaim(f"{number:032x}", mine, "cv", "run")).experiment)


def count(documents: Documents, times: str) -> None:
    """Add one to the number in the state, so many times."""
    print("ready", flush=True)
    sys.stdin.readline()
    count_up(documents, int(times), said=True)


def count_up(documents: Documents, times: int, *, said: bool = False) -> None:
    """Add one to the number in the state and in the page that the root names, so many times, and say each if asked."""
    done = 0
    while done < times:
        try:
            lease = documents.lease(NS, ID)
        except Busy:
            threading.Event().wait(0.002)
            continue
        number = int(lease.row.state) if lease.row is not None else 0
        if lease.row is not None:
            with documents.view() as view:
                (content,) = view.pages(NS, ID, [lease.row.root.decode()]).values()
            assert int(content) == number
        page, old = f"{lease.version}-{lease.epoch}", lease.row.root.decode() if lease.row is not None else ""
        row = experiment(version=lease.version, epoch=lease.epoch, state=b"%d" % (number + 1), root=page.encode())
        documents.commit(lease, Commit(row, [(page, b"%d" % (number + 1))], (old,) if old else ()))
        done += 1
        if said:
            print(number + 1, flush=True)


def put_many(documents: Documents, start: str, end: str) -> None:
    """Commit many experiments."""
    for number in range(int(start), int(end)):
        put(documents, experiment(number))


if __name__ == "__main__":
    kind, where, act, *arguments = sys.argv[1:]
    opened = open_documents(kind, where)
    {"change": change, "hold": hold, "claim": claim, "count": count, "put": put_many}[act](opened, *arguments)
    opened.close()
