"""Queries have the same answers on every database as on folders; what differs is what a database may do by itself."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from ml_dash.server.engine.services import Server
from ml_dash.server.settings import ServerSettings
from tests.crash.rows_queries import compare
from tests.faults.harness import Trial

# Read before the fixtures clear the environment.
SEED = os.environ["ML_DASH_TEST_SEED"]


@pytest.mark.both_ends
def test_random_queries_have_the_same_answers_on_each_database(pair: ServerSettings, tmp_path: Path) -> None:
    trial = Trial("V2", 0, SEED, tmp_path, None, Counter())
    with closing(Server(tmp_path / "data", pair)) as server:
        compare(trial, server)
    assert trial.problems == [], f"seed {SEED}"
    assert trial.counts["queries"] > 10
