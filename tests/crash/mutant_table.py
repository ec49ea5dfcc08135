"""The mutants of X4: each breaks one rule of the design by a substitution in one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class Mutant:
    """One rule broken: what is replaced by what in one file, and which rows (with how many trials) must notice."""

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, int], ...]

    def apply(self, tree: Path) -> None:
        """Break the rule in a copy of the tree. Raises LookupError if a text is not there exactly once."""
        path = tree / "ml_dash" / self.file
        text = path.read_text(encoding="utf-8")
        for old, new in self.changes:
            if text.count(old) != 1:
                raise LookupError(f"mutant {self.name!r}: {old!r} stands {text.count(old)} times in {self.file}")
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


WRITER: Final = "journal/writer.py"
SEGMENT_FILE: Final = "journal/segment_file.py"
DEGRADED: Final = "journal/degraded.py"
PROJECT: Final = "projection/projector.py"
MERGE: Final = "journal/merge.py"
FOLDER: Final = "projection/folder.py"
REWINDS: Final = "core/rewinds.py"


def _one(name: str, file: str, old: str, new: str, *rows: tuple[str, int]) -> Mutant:
    return Mutant(name, file, ((old, new),), rows)


_SAFETY: Final = (
    _one("skip the fsync", "disk/durable.py", "        os.fdatasync(fd)\n", "        pass\n", ("W4", 160)),
    _one(
        "do not sync the names of new segments",
        "journal/segment.py",
        "        if self._fd >= 0:\n            os.fsync(self._fd)\n",
        "",
        ("W4", 400),
    ),
    _one(
        "do not sync the folders above",
        "journal/segment.py",
        "                sync_folder(folder)\n",
        "                pass\n",
        ("W4", 160),
    ),
    _one(
        "trust a sync that is tried again",
        WRITER,
        "            self._write_again(fd, unsynced, failure)\n            return False\n",
        "            del failure\n            data_sync(fd)\n",
        ("W13", 30),
    ),
    _one(
        "count as synced what was written since",
        WRITER,
        "self._synced = max(self._synced, written)",
        "self._synced = self._file.seq",
        ("W4", 800),
    ),
    _one(
        "no sync at the end",
        WRITER,
        'synced = self.durability == "os" or self.sync() or self.sync()',
        "synced = True",
        ("W4", 400),
    ),
    _one(
        "do not sync a file's content",
        "journal/blobs.py",
        "            self._copy_and_hash()\n            os.fsync(self._writing)\n",
        "            self._copy_and_hash()\n",
        ("W4", 400),
    ),
    _one(
        "do not sync a large body",
        SEGMENT_FILE,
        "                os.fsync(file.fileno())\n",
        "                pass\n",
        ("W4", 400),
    ),
    Mutant(
        "event before its blob",
        WRITER,
        (
            ("            placed = place(seq)\n", ""),
            ("            return seq, placed\n", "            return seq, place(seq)\n"),
        ),
        (("W4", 800),),
    ),
    _one("release a file before that is synced", PROJECT, "        replay.sync()\n", "", ("W4", 800)),
)

_FRAMES: Final = (
    _one(
        "reuse a number after trouble",
        SEGMENT_FILE,
        "        self.size += written\n        self.seq += 1\n",
        "        self.size += written\n",
        ("W12", 80),
    ),
    _one(
        "write behind a partial frame",
        SEGMENT_FILE,
        "            if error.errno in STORAGE_TROUBLE:\n                self.retire()\n            raise\n",
        "            raise\n",
        ("W11", 40),
    ),
    _one(
        "forget the event that the disk refused",
        DEGRADED,
        "        self.backlog.push(payload)\n",
        "",
        ("W12", 60),
    ),
    _one(
        "raise into training",
        DEGRADED,
        "        if self._strict:\n            self.backlog.refuse(seq)\n",
        "        if True:\n            self.backlog.refuse(seq)\n",
        ("W12", 40),
    ),
    _one(
        "no word of what was lost",
        WRITER,
        "        if lost:\n            rest = ",
        "        if lost < 0:\n            rest = ",
        ("W12", 60),
    ),
    _one(
        "no checksum on the length",
        "core/frames.py",
        'crc = crc32(length.to_bytes(4, "little"), self.header_crc)',
        "crc = self.header_crc",
        ("W1", 5),
    ),
    _one(
        "do not check checksums",
        "core/frames.py",
        "            if crc32(payload, crcs[length]) != crc:\n                break\n",
        "",
        ("W7", 1_000),
    ),
    _one(
        "stop at the first damage",
        "journal/reader.py",
        "            offset = find_frame(buffer, offset + 1, segment.crcs, decode_event)\n",
        "            return\n            offset = -1\n",
        ("W7", 1_000),
    ),
    _one(
        "frames of any size",
        "core/frames.py",
        "MAX_PAYLOAD: Final = 1 << 20",
        "MAX_PAYLOAD: Final = 1 << 26",
        ("W26", 40),
    ),
    _one(
        "time may go back",
        WRITER,
        "            if now < file.last_ns:\n",
        "            if now < 0:\n",
        ("W22", 16),
    ),
    _one(
        "cut a live tail",
        MERGE,
        "                    torn = item.start\n",
        "                    torn = item.start\n                    segment.path.open('r+b').truncate(item.start)\n",
        ("P1", 60),
    ),
    _one(
        "a torn tail is damage",
        "reading/verify.py",
        '            self.add("torn", segment.path.name, what)\n',
        '            self.add("damaged", segment.path.name, what)\n',
        ("W11", 40),
    ),
)

_OTHERS: Final = (
    _one(
        "hard-link the user's file",
        "journal/blobs.py",
        "        digest, size = _copy_to(reading, temporary)\n",
        "        os.link(source, temporary)\n        digest, size = digest_of(temporary), found.st_size\n",
        ("W29", 40),
    ),
    _one(
        "no lock is held",
        SEGMENT_FILE,
        "            self._lock = hold(",
        "            self._lock = None and hold(",
        ("W21", 4),
    ),
    _one(
        "the living are taken for dead",
        "disk/lock.py",
        "    except BlockingIOError:\n        return Liveness.ALIVE\n",
        "    except BlockingIOError:\n        return Liveness.GONE\n",
        ("W21", 4),
    ),
    _one(
        "a child goes on with its parent's writer",
        "recording/run.py",
        "process.in_child.append(registry.after_fork)\n",
        "",
        ("W17", 14),
    ),
    _one(
        "no event is known again",
        "core/fold.py",
        "            if not admitted:\n                continue\n",
        "",
        ("W13", 20),
        ("P8", 20),
    ),
    _one(
        "the last to arrive wins",
        "core/state.py",
        "        if stamp > self.stamp:\n",
        "        if True:\n",
        ("P8", 40),
    ),
    _one(
        "fold before the order is recorded",
        MERGE,
        "        if order is None:\n            yield record, segment, stretch\n",
        "        if True:\n            yield record, segment, stretch\n",
        ("P2", 30),
    ),
    _one(
        "checkpoint before the documents",
        PROJECT,
        "        folder.write_documents(replay.state, edits)\n",
        "        checkpoints.save(self.journal, replay.at)\n        folder.write_documents(replay.state, edits)\n",
        ("P1", 60),
    ),
    _one(
        "lines go to the end, not to their place",
        FOLDER,
        "        write_all(fd, data, offset)\n",
        "        write_all(fd, data, size)\n",
        ("P1", 60),
    ),
    _one(
        "documents are written in place",
        "disk/durable.py",
        "        os.replace(temporary, path)\n",
        "        path.write_bytes(data)\n        temporary.unlink()\n",
        ("P6", 4),
        ("P1", 100),
    ),
    _one(
        "a checkpoint needs no checksum",
        "projection/checkpoint.py",
        '    if content[:8] != _MAGIC or content[8:12] != crc32(body).to_bytes(4, "little"):\n',
        "    if content[:8] != _MAGIC:\n",
        ("P3", 400),
    ),
    _one(
        "a checkpoint is trusted after a power cut",
        "projection/trust.py",
        "(checkpoint.boot == boot_id() or _survived(checkpoint, folder))",
        "True",
        ("W4", 400),
    ),
    Mutant(
        "a checkpoint that is ahead of its journal will do",
        MERGE,
        (
            (
                "            if self._strict and settled is not None and (size or 0) < settled:\n",
                "            if False:\n",
            ),
            ("        if self._strict and covered and covered[-1][1] > size:\n", "        if False:\n"),
        ),
        (("P3", 400),),
    ),
    _one(
        "write our credentials",
        "recording/ending.py",
        '            text = text.replace(secret, "***")\n',
        "            pass\n",
        ("W31", 12),
    ),
    _one(
        "a journal says where its folder is",
        "reading/located.py",
        "        return folder if is_new or points_back(folder, journal) else home\n",
        "        return folder\n",
        ("P9", 400),
    ),
    _one(
        "names are paths as they are",
        "core/names.py",
        "def metric_path(",
        "def metric_path(name: str, fold_case: bool = False) -> str:\n    return name\n\n\ndef _unused_path(",
        ("W25", 4),
    ),
)

LOGIN: Final = "sync/login.py"
_IDENTITIES: Final = (
    _one(
        "a refused token is followed by the stored login",
        LOGIN,
        "            yield lambda: str(brought)\n        return\n",
        "            yield lambda: str(brought)\n",
        ("D20", 6),
    ),
    _one(
        "a user name stands for whoever is logged in",
        LOGIN,
        " and name in (None, stored.user):\n",
        ":\n",
        ("D20", 20),
    ),
    _one(
        "a journal inherits the registration of the one that was at its path",
        "sync/registrations.py",
        "    return known is None or journal is None or known == journal\n",
        "    return True\n",
        ("D20", 20),
    ),
    _one(
        "whoever logs in next inherits what nobody claimed",
        "sync/registrations.py",
        "return self.user is not None or self.login is not None\n",
        "return True\n",
        ("D20", 6),
    ),
    _one(
        "the login goes by what it is now, not by what it was",
        "sync/registrations.py",
        "        return Registration(where, remote, stored.user, None, itself)\n",
        "        return Registration(where, remote, None, None, itself)\n",
        ("D20", 6),
    ),
    _one(
        "whoever is logged in takes over what is continued",
        "sync/registrations.py",
        "        if candidates:\n            present",
        "        if candidates is None:\n            present",
        ("D20", 6),
    ),
)

_REWINDS: Final = (
    _one(
        "ranks take from each other what they have recorded since they went back",
        REWINDS,
        "state.writers[other.writer].last_ns > began_ns",
        "state.writers[other.writer].last_ns < 0",
        ("W32", 24),
    ),
    _one(
        "whoever went back to the same step before ran beside",
        REWINDS,
        "state.writers[other.writer].last_ns > began_ns",
        "state.writers[other.writer].last_ns > 0",
        ("W32", 24),
    ),
    Mutant(
        "the step itself stays",
        REWINDS,
        (("step is None or step < limit for", "step is None or step <= limit for"),),
        (("W32", 24),),
    ),
    _one(
        "what comes late is not judged",
        REWINDS,
        "        if state.rewinds and any(",
        "        if not state.rewinds and any(",
        ("W32", 60),
    ),
    _one(
        "spans that are joined forget the older one's reach",
        REWINDS,
        "[Span(b.end, _joined(a.reach, b.reach), b.series)]",
        "[Span(b.end, b.reach, b.series)]",
        ("W32", 40),
    ),
    _one(
        "counting anew begins with the statistics of now",
        REWINDS,
        "_copied(spans[-1].series)) if spans else (0, {})",
        "_copied(metric.series)) if spans else (0, {})",
        ("W32", 24),
    ),
    _one(
        "charts show what is superseded",
        "server/engine/queries.py",
        "            without = () if superseded else folded.superseded\n",
        "            without = ()\n",
        ("W32", 24),
    ),
)

MONGO: Final = "server/stores/mongo.py"
_SERVERS: Final = (
    _one(
        "the last head wins, not the first",
        MONGO,
        '        if self._put_once(self.heads, head)["nonce"] != head["nonce"]:\n            raise stale\n',
        '        self.heads.replace_one({"_id": head["_id"]}, {**head, "nonce": "x"}, upsert=True)\n',
        ("B10", 12),
    ),
    _one(
        "superseded pages go before the head comes",
        MONGO,
        '                fail_point("commit-pages")\n',
        '                self._delete_pages(key, commit.superseded)\n                fail_point("commit-pages")\n',
        ("B11", 27),
    ),
    _one(
        "a content is stored, whatever became of its file meanwhile",
        "server/engine/uploads.py",
        "        if row.experiment:\n            self._check_wanted(ns, journal, [row])\n",
        "",
        ("B10", 24),
    ),
)

MUTANTS: Final[tuple[Mutant, ...]] = (*_SAFETY, *_FRAMES, *_OTHERS, *_IDENTITIES, *_REWINDS, *_SERVERS)
