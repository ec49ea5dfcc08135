"""Row X3: random programs, on the library and on a model of a hundred lines."""

from __future__ import annotations

from tests.faults.harness import Row, Trial

from . import oracle_reader as disk
from .compare import check_folder, tree, tree_difference
from .model import Program, clash_is_refused
from .victims import experiment, journal_of, located


def random_program(trial: Trial) -> None:
    """X3. What the library reads, live, reopened, from the folder and from a rebuilt folder, is what the model says."""
    from ml_dash.projection.project import rebuild

    program = Program(trial.folder, trial.rng)
    program.run(trial.rng.randrange(5, 60))
    trial.counts["calls"] += program.count
    with experiment(trial.folder, read_only=True) as reader:
        program.compare(reader)
    journal = disk.read_journal(journal_of(trial.folder))
    trial.fail(*journal.problems)
    place = located(trial.folder)
    trial.fail(*check_folder(place.folder, journal))
    if trial.index % 4 == 0:
        kept = tree(place.folder)
        rebuild(place)
        trial.fail(*(f"rebuilt: {text}" for text in tree_difference(kept, tree(place.folder))))
        with experiment(trial.folder, read_only=True) as reader:
            program.compare(reader)
    if trial.index % 16 == 1:
        source = trial.folder / "source"
        source.write_bytes(b"x")
        with experiment(trial.folder) as target:
            trial.check(clash_is_refused(target, source), "a file may lie below another file")


ROWS = (Row("X3", "random programs against a model", 50_000, 60, random_program),)
