"""Every mutant of X4 still applies; `python -m tests.crash.mutants` shows that every one of them is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.table import ROWS as E2E_ROWS
from tests.faults.harness import ROOT

from .mutant_table import MUTANTS, Mutant
from .table import ROWS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_mutant_still_applies(mutant: Mutant, tmp_path: Path) -> None:
    source = ROOT / "ml_dash" / mutant.file
    target = tmp_path / "ml_dash" / mutant.file
    target.parent.mkdir(parents=True)
    shutil.copy(source, target)
    mutant.apply(tmp_path)
    assert target.read_text() != source.read_text()
    compile(target.read_text(), str(target), "exec")


def test_there_are_enough_mutants_and_each_has_a_row_that_must_notice() -> None:
    assert len(MUTANTS) >= 15
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert {row for mutant in MUTANTS for row, _ in mutant.rows} <= set(ROWS) | set(E2E_ROWS)
