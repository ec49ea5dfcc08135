"""Damage to what a server has stored in its data folder."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ml_dash.server.engine.contents import Reader, object_key
from ml_dash.server.stores.disk import DiskObjects
from ml_dash.server.stores.sqlite import SqliteDocuments


def flip_raw_bit(data: Path, writer: str, where: int) -> None:
    """Change a bit of the byte at an offset of the only segment of a writer; negative: from its end. No server runs."""
    documents, objects = SqliteDocuments(data / "server.sqlite"), DiskObjects(data / "objects")
    try:
        with documents.view() as view:
            query = "SELECT ns, id, experiment FROM segments WHERE writer = ?"
            ns, segment, experiment = view.connection.execute(query, (writer,)).fetchone()
            row, claim = view.experiment(ns, experiment), view.segment(ns, segment)
            assert row is not None
            assert claim is not None
            contents = Reader(objects).contents(view, ns, row)
            stored = contents.segment(claim.journal, claim.file)
            assert stored is not None
            where = where if where >= 0 else stored.length + where
            entry = next(
                entry for entry in contents.raw(segment, where, where + 1) if where < entry.start + entry.length
            )
    finally:
        documents.close()
    at = where - entry.start
    if not entry.page:
        path = objects._path(object_key(ns, experiment, entry.object))
        changed = bytearray(path.read_bytes())
        changed[entry.offset + at] ^= 4
        path.write_bytes(changed)
        return
    place = "ns=? AND experiment=? AND id=?", (ns, experiment, entry.page)
    with sqlite3.connect(data / "server.sqlite") as database:
        (content,) = database.execute(f"SELECT content FROM pages WHERE {place[0]}", place[1]).fetchone()
        changed = bytearray(content)
        changed[at] ^= 4
        database.execute(f"UPDATE pages SET content=? WHERE {place[0]}", (bytes(changed), *place[1]))
    database.close()
