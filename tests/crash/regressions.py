"""Trials that once found a bug: run again for ever. Each line names the row, the seed, the trial, and what was wrong.

`python -m tests.crash --row ROW --seed SEED --only TRIAL` repeats one, also on the code of that time.
"""

from __future__ import annotations

from typing import Final

REGRESSIONS: Final[tuple[tuple[str, str, int, str], ...]] = (
    ("W8", "1", 75800, "a whole frame that lay across the reader's buffer was passed over"),
    ("W8", "1", 58800, "the reader stopped behind a damaged large frame, without a word"),
    ("W7", "1", 100, "one flipped bit in a header cost all frames of the segment"),
    ("W19", "1", 569, "of processes that ran together some were killed, and the status was completed"),
    ("W24", "1", 154, "parameters gave bytes back as bytes, not as base64 text"),
    ("W27", "1", 606, "the folder of a killed run was taken to be <store>/<store>/project/name"),
    ("P2", "1", 0, "a file that was deleted while the checkpoint was lost stayed in the folder"),
    ("P2", "1", 1752, "an added file that was edited without a change of its size was not told by verify"),
    ("P3", "1", 19, "the checkpoint of another experiment was taken for our own"),
    ("P3", "1", 59, "a checkpoint that was ahead of its journal was trusted"),
    ("P4", "1", 0, "the damage of a header cost the segment"),
    ("P9", "1", 2959, "a hostile journal chose the folder that was written"),
)
