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


def _one(name: str, file: str, old: str, new: str, *rows: tuple[str, int]) -> Mutant:
    return Mutant(name, file, ((old, new),), rows)


MUTANTS: Final[tuple[Mutant, ...]] = (
    # -- what is safe, and when
    _one("skip the fsync", "durable.py", "        os.fdatasync(fd)\n", "        pass\n", ("W4", 120)),
    _one(
        "do not sync the folder of a new segment",
        "journal/writer.py",
        "                self._folder.sync()\n",
        "                pass\n",
        ("W4", 160),
    ),
    _one(
        "trust a sync that is tried again",
        "journal/writer.py",
        "        except OSError as failure:\n            self._write_again(fd, kept, failure)\n            return False\n",
        "        except OSError:\n            data_sync(fd)\n",
        ("W13", 20),
    ),
    _one(
        "count as synced what was written since",
        "journal/writer.py",
        "self._synced = max(self._synced, written)",
        "self._synced = self._seq",
        ("W4", 200),
        ("W13", 20),
    ),
    _one(
        "no sync at the end",
        "journal/writer.py",
        "        if fd >= 0:\n            good = self._sync_one(fd, kept) and good\n",
        "",
        ("W4", 120),
    ),
    _one(
        "do not sync a file's content",
        "blobs.py",
        "            self._copy_and_hash()\n            os.fsync(self._writing)\n",
        "            self._copy_and_hash()\n",
        ("W4", 400),
    ),
    # -- numbers and frames
    _one(
        "reuse a number after trouble",
        "journal/resilient.py",
        "        self._size += written\n        self._seq += 1\n",
        "        self._size += written\n",
        ("W12", 80),
    ),
    _one(
        "write behind a partial frame",
        "journal/resilient.py",
        "            self._retire()\n            return self._give_up(payload, error, tally, count)\n",
        "            return self._give_up(payload, error, tally, count)\n",
        ("W11", 40),
        ("W12", 80),
    ),
    _one(
        "give up the event that the disk refused",
        "journal/resilient.py",
        "        self._backlog.push(payload)\n",
        "",
        ("W12", 60),
    ),
    _one(
        "raise into training",
        "journal/resilient.py",
        "        if self.strict:\n            self._backlog.refuse(seq)\n",
        "        if True:\n            self._backlog.refuse(seq)\n",
        ("W12", 40),
    ),
    _one(
        "no word of what was lost",
        "journal/closing.py",
        "        if lost:\n",
        "        if lost and False:\n",
        ("W12", 60),
    ),
    _one(
        "no checksum on the length",
        "frames.py",
        'crc = crc32(length.to_bytes(4, "little"), self.header_crc)',
        "crc = self.header_crc",
        ("W1", 5),
    ),
    _one(
        "do not check checksums",
        "frames.py",
        "            if crc32(payload, crcs[length]) != crc:\n                break\n",
        "",
        ("W7", 400),
    ),
    _one(
        "no resynchronisation",
        "journal/reader.py",
        "            found = find_frame(buffer, offset + 1, segment.crcs, decode_event)\n",
        "            found = -1\n            return\n",
        ("W7", 400),
    ),
    _one(
        "time may go back",
        "journal/writer.py",
        "            if now < self._last_ns:\n",
        "            if now < 0:\n",
        ("W22", 12),
    ),
    _one(
        "frames of any size", "frames.py", "MAX_PAYLOAD: Final = 1 << 20", "MAX_PAYLOAD: Final = 1 << 26", ("W26", 19)
    ),
    # -- blobs
    Mutant(
        "event before its blob",
        "journal/writer.py",
        (
            ("            placed = place(seq)\n", ""),
            ("            return seq, placed\n", "            return seq, place(seq)\n"),
        ),
        (("W4", 400),),
    ),
    _one(
        "hard-link the user's file",
        "blobs.py",
        "        digest, size = _copy_to(reading, temporary)\n",
        "        os.link(source, temporary)\n        digest, size = digest_of(temporary), found.st_size\n",
        ("W29", 28),
    ),
    # -- processes
    _one(
        "no lock is held",
        "journal/output.py",
        "            self._lock = hold(",
        "            self._lock = None and hold(",
        ("W21", 4),
    ),
    _one(
        "a child goes on with its parent's writer",
        "run.py",
        "    os.register_at_fork(after_in_child=registry.after_fork)\n",
        "    pass\n",
        ("W17", 14),
    ),
    # -- folding
    _one(
        "no event is known again",
        "fold.py",
        "            if not admitted:\n                continue\n",
        "",
        ("W13", 20),
        ("P8", 20),
    ),
    _one("the last to arrive wins", "state.py", "        if stamp > self.stamp:\n", "        if True:\n", ("P8", 40)),
    # -- names and secrets
    _one(
        "write our credentials",
        "ending.py",
        '            text = text.replace(secret, "***")\n',
        "            pass\n",
        ("W31", 12),
    ),
)
