"""Local folders as a source: found as they appear, live, and right whatever happens to folders and caches."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.core.envelope import as_json
from ml_dash.errors import InvalidValue, NotFound
from ml_dash.reading import charts, indexing, runs
from ml_dash.reading.local import LocalSource
from ml_dash.reading.places import Places
from ml_dash.reading.runs import Runs
from ml_dash.reading.source import SeriesRequest, decoded
from tests.journals import JournalFixture


@contextmanager
def source(*paths: Path, cache: Path, **how) -> Iterator[LocalSource]:
    made = LocalSource(paths, cache=cache, **how)
    try:
        yield made
    finally:
        made.close()


def record(store: Path, name: str, points: int = 3, project: str = "cv") -> None:
    with Experiment(name, project, local_path=str(store)) as experiment:
        experiment.parameters().set(lr=0.1)
        for step in range(points):
            experiment.metric("loss").append(value=1 / (step + 1), step=step)


def names(of: LocalSource, **how) -> list[str]:
    return [one["name"] for one in decoded(of.experiments(**how))["experiments"]]


def only(of: LocalSource) -> str:
    (one,) = decoded(of.experiments())["experiments"]
    return one["id"]


def test_stores_that_appear_later_and_experiments_that_go_are_seen(tmp_path):
    with source(tmp_path / "a", tmp_path, cache=tmp_path / "cache") as of:
        assert names(of) == []
        record(tmp_path / "a" / ".ml-dash", "one")
        of._runs.refresh(now=True)
        assert names(of) == ["one"]
        record(tmp_path / "b" / ".ml-dash", "two")
        of._runs.refresh(now=True)
        assert sorted(names(of)) == ["one", "two"]
        shutil.rmtree(tmp_path / "a" / ".ml-dash" / "cv" / "one")
        of._runs.refresh(now=True)
        assert names(of) == ["two"]


def test_where_a_look_at_all_takes_long_what_was_known_is_shown_meanwhile(tmp_path, monkeypatch):
    record(tmp_path / "store", "one")
    record(tmp_path / "store", "two")
    with source(tmp_path / "store", cache=tmp_path / "cache") as of:
        assert sorted(names(of)) == ["one", "two"]
    record(tmp_path / "store", "three")
    gate = threading.Event()
    look = Places.all

    def slowly(self, **how):
        assert gate.wait(20)
        return look(self, **how)

    monkeypatch.setattr(runs, "_MANY", 1)
    monkeypatch.setattr(Places, "all", slowly)
    with source(tmp_path / "store", cache=tmp_path / "cache", patience_s=20) as of:
        first = decoded(of.experiments())
        assert sorted(one["name"] for one in first["experiments"]) == ["one", "two"]
        assert all(one["id"].isdecimal() for one in first["experiments"])
        assert first["indexing"] == {"done": 2, "total": 2}
        gate.set()
        then = _until(lambda: decoded(of.experiments()), lambda answer: "indexing" not in answer)
        assert sorted(one["name"] for one in then["experiments"]) == ["one", "three", "two"]


def test_experiments_of_one_name_in_two_stores_are_told_apart(tmp_path):
    record(tmp_path / "a", "same", points=1)
    record(tmp_path / "b", "same", points=2)
    with source(tmp_path / "a", tmp_path / "b", cache=tmp_path / "cache") as of:
        listed = decoded(of.experiments())["experiments"]
        assert len({one["id"] for one in listed}) == 2
        assert all(one["id"].isdecimal() for one in listed)
        counts = {one["id"]: one["counts"]["points"] for one in listed}
        found = {one: decoded(of.metric_stats(one, "loss"))["totalDataPoints"] for one in counts}
        assert found == counts
        assert decoded(of.experiment(listed[0]["id"]))["id"] == listed[0]["id"]


class Recording:
    """A process that records what it is told to, and can be killed."""

    def __init__(self, script: str, store: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()

    def say(self, line: str) -> None:
        """Returns once it has answered."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        while "done" not in (said := self.process.stdout.readline()):
            assert said, "the process has ended"

    def kill(self) -> None:
        """SIGKILL, and its end."""
        self.process.kill()
        self.process.wait()


def test_what_a_run_appends_is_seen_at_once_and_a_kill_makes_it_interrupted(tmp_path):
    script = (
        "import sys, ml_dash\n"
        "e = ml_dash.Experiment('live', 'cv', local_path=sys.argv[1]); e.open()\n"
        "for line in sys.stdin:\n"
        "    e.metric('loss').append(value=float(line), step=0); print('done', flush=True)\n"
    )
    with source(tmp_path / "store", cache=tmp_path / "cache") as of, Recording(script, tmp_path / "store") as run:
        run.say("1.5")
        of._runs.refresh(now=True)
        one = only(of)
        assert decoded(of.experiment(one))["status"] == "running"
        before = of.events([one])[one]
        run.say("2.5")
        after = _until(lambda: of.events([one])[one], lambda events: events > before)
        assert [point["data"]["value"] for point in decoded(of.metric_page(one, "loss"))["data"]] == [1.5, 2.5]
        run.kill()
        _until(lambda: of.events([one])[one], lambda events: events > after)
        assert decoded(of.experiment(one))["status"] == "interrupted"
        of._runs.refresh(now=True)
        assert names(of, where="status = interrupted") == ["live"]


def _until(ask, good, timeout_s: float = 10.0):
    end = time.monotonic() + timeout_s
    while not good(found := ask()):
        assert time.monotonic() < end, f"still {found!r}"
        threading.Event().wait(0.02)
    return found


def test_the_next_process_begins_with_what_the_last_one_knew(tmp_path, monkeypatch):
    record(tmp_path / "store", "one")
    with source(tmp_path / "store", cache=tmp_path / "cache") as of:
        assert names(of) == ["one"]

    def never(*_):
        raise AssertionError("nothing has changed, so nothing is folded")

    monkeypatch.setattr("ml_dash.reading.runs.view_of", never)
    with source(tmp_path / "store", cache=tmp_path / "cache") as of:
        assert names(of, where="params.lr = 0.1", columns=["metrics.loss.min"]) == ["one"]


def test_a_folder_that_was_edited_is_read_from_the_journal(tmp_path):
    record(tmp_path / "store", "one", points=2000)
    folder = tmp_path / "store" / "cv" / "one"
    with source(tmp_path / "store", cache=tmp_path / "cache") as of:
        one = only(of)
        request = SeriesRequest((one,), "loss", points=5000)
        before = as_json(of.compare_series(request)), of.metric_page(one, "loss", start=-5)
        lines = (folder / "metrics" / "loss" / "data.jsonl").read_bytes().splitlines(keepends=True)
        lines[1990], lines[1999] = lines[1999], lines[1990]
        (folder / "metrics" / "loss" / "data.jsonl").write_bytes(b"".join(lines))
        assert as_json(of.compare_series(request)) == before[0]
        (folder / "metrics" / "loss" / "data.jsonl").unlink()
        assert (as_json(of.compare_series(request)), of.metric_page(one, "loss", start=-5)) == before


def test_the_folder_of_a_run_that_was_killed_far_ahead_of_it_is_brought_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr("ml_dash.reading.live._FAR_BYTES", 1000)
    desk = JournalFixture(tmp_path / "store")
    pen = desk.pen()
    pen.points(value=[float(at) for at in range(500)], step=list(range(500)))
    lines = desk.folder / "metrics" / "loss" / "data.jsonl"
    with source(tmp_path / "store", cache=tmp_path / "cache") as of:
        one = only(of)
        assert not lines.exists()
        pen.die()
        of._runs.refresh(now=True)
        assert decoded(of.experiment(one))["status"] == "interrupted"
    with source(tmp_path / "store", cache=tmp_path / "other cache") as of:
        assert of.compare_series(SeriesRequest((only(of),), "loss")).series[0].total == 500
        assert len(lines.read_bytes().splitlines()) == 500


def test_a_chart_is_usable_while_its_index_is_being_made(tmp_path, monkeypatch):
    record(tmp_path / "store", "one", points=12_000)
    gate = threading.Event()
    piece = indexing._piece
    calls = []

    def slowly(work):
        if isinstance(getattr(work, "__self__", None), Runs):
            return piece(work)
        calls.append(work)
        if len(calls) > 3:
            assert gate.wait(20)
        return piece(work)

    monkeypatch.setattr(charts.stretches, "BATCH", 1000)
    monkeypatch.setattr(indexing, "_piece", slowly)
    with source(tmp_path / "store", cache=tmp_path / "cache", patience_s=0.2) as of:
        _until(lambda: names(of), bool)
        request = SeriesRequest((only(of),), "loss", points=100)
        first = of.compare_series(request)
        done, total = first.indexed or (0, 0)
        assert 0 < done < total == 12_000
        assert first.series[0].total == done
        gate.set()
        whole = _until(lambda: of.compare_series(request), lambda page: page.indexed is None)
        assert whole.series[0].total == 12_000


@pytest.mark.parametrize("seed", range(6))
def test_logs_are_found_by_level_text_expression_and_time_as_the_slow_way_finds_them(tmp_path, seed):
    choice = random.Random(seed)
    desk = JournalFixture(tmp_path / "store")
    pen = desk.pen()
    words = ["alpha", 'a "quoted" word', "line\nend", "Stra\u00dfe", "back\\slash", "GAMMA", "\x1b[31mred"]
    levels = ["debug", "info", "info", "info", "warn", "error"]
    said = [(choice.choice(levels), f"{choice.choice(words)} {at}") for at in range(choice.choice([30, 2300, 7100]))]
    for level, message in said:
        pen.log(message, level=level)
    if choice.random() < 0.7:
        desk.catch_up()
        pen.log("after the folder", level="warn")
        said.append(("warn", "after the folder"))
    with source(tmp_path / "store", cache=tmp_path / "cache") as of:
        one = only(of)
        for levels_, q, regex in [
            ((), None, None), (("error",), None, None), (("warn", "error"), None, None), ((), "STRASSE", None),
            ((), "quoted", None), (("info",), "line\nend 1", None), ((), "\x1b[31", None), ((), None, r"^back.*7$"),
            (("debug",), "gamma", "1"), ((), "nowhere", None),
        ]:  # fmt: skip
            wanted = [at for at, (level, message) in enumerate(said) if _wanted(level, message, levels_, q, regex)]
            how = {"levels": levels_, "q": q, "regex": regex}
            assert _all(of, one, 37, **how) == wanted
            last = decoded(of.logs(one, start=-10, limit=10, **how))
            assert [entry["sequenceNumber"] for entry in last["logs"]] == wanted[-10:]
            if levels_ and not q and not regex:
                assert last["matching"] == len(wanted)
        page = decoded(of.logs(one, limit=1))["logs"]
        later = decoded(of.logs(one, start=len(said) // 2, limit=1))["logs"][0]
        assert decoded(of.logs(one, at=later["timestamp"], limit=1))["logs"] == [later]
        assert decoded(of.logs(one, at="2020-01-01", limit=1))["logs"] == page
    desk.let_go()


def _wanted(level, message, levels, q, regex) -> bool:
    return (
        (not levels or level in levels)
        and (q is None or q.casefold() in message.casefold())
        and (regex is None or re.search(regex, message) is not None)
    )


def _all(of: LocalSource, one: str, limit: int, **how) -> list[int]:
    """The numbers of all entries that match, page by page."""
    found, start, more = [], 0, True
    while more:
        page = decoded(of.logs(one, start=start, limit=limit, **how))
        found += [entry["sequenceNumber"] for entry in page["logs"]]
        start, more = page["endIndex"] + 1, page["hasMore"]
    return found


def test_what_is_not_there_is_not_found_and_what_makes_no_sense_is_refused(tmp_path):
    record(tmp_path / "store", "one")
    with source(tmp_path / "store", cache=tmp_path / "cache") as of:
        one = only(of)
        for ask in (
            lambda: of.experiment("123"), lambda: of.file(one, "123"), lambda: of.metric_stats(one, "nothing"),
            lambda: of.open_file(one, "123"),
        ):  # fmt: skip
            with pytest.raises(NotFound):
                ask()
        for ask in (
            lambda: of.experiments(where="status ="), lambda: of.logs(one, regex="("), lambda: of.logs(one, limit=0),
            lambda: of.compare_series(SeriesRequest((one,), "loss", x="nothing")),
        ):  # fmt: skip
            with pytest.raises(InvalidValue):
                ask()
        assert of.compare_series(SeriesRequest((one, "123"), "nothing")).missing == [one, "123"]


def test_many_threads_may_ask_while_a_run_goes_on(tmp_path):
    experiment = Experiment("live", "cv", local_path=str(tmp_path / "store")).open()
    experiment.metric("loss").append(value=0.0, step=0)
    with source(tmp_path / "store", cache=tmp_path / "cache", patience_s=0.1) as of:
        one = _until(lambda: decoded(of.experiments())["experiments"], bool)[0]["id"]
        troubles, stop = [], threading.Event()

        def look() -> None:
            seen = 0
            while not stop.is_set():
                try:
                    (drawn,) = of.compare_series(SeriesRequest((one,), "loss", points=10_000)).series
                    of.events([one])
                    decoded(of.experiments(where="points > 0"))
                    page = decoded(of.metric_page(one, "loss", start=-3))
                    logs = decoded(of.logs(one, levels=["error"], start=-2, limit=2))
                    assert drawn.total >= seen
                    assert drawn.low == [float(step) for step in range(drawn.total)]
                    assert page["totalDataPoints"] >= drawn.total
                    assert len(logs["logs"]) <= 2
                    seen = drawn.total
                except Exception as error:  # noqa: BLE001 - whatever it is, the test has to hear of it
                    troubles.append(error)
                    return

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for step in range(1, 6000):
            experiment.metric("loss").append(value=float(step), step=step)
            if step % 100 == 0:
                experiment.log(f"step {step}", level="error" if step % 300 == 0 else "info")
        _until(lambda: of.compare_series(SeriesRequest((one,), "loss")).series[0].total, lambda total: total == 6000)
        stop.set()
        for thread in threads:
            thread.join()
        assert not troubles, troubles[0]
    experiment.close()


def test_what_nobody_has_used_for_months_is_removed_from_the_cache(tmp_path):
    record(tmp_path / "store", "one", points=7000)
    with source(tmp_path / "store", cache=tmp_path / "cache") as of:
        of.compare_series(SeriesRequest((only(of),), "loss"))
    used, old = {path for path in (tmp_path / "cache").rglob("*") if path.is_file()}, tmp_path / "cache" / "series"
    (old / "00").mkdir()
    (old / "00" / "gone.sqlite").write_bytes(b"")
    os.utime(old / "00" / "gone.sqlite", (1e9, 1e9))
    with source(tmp_path / "store", cache=tmp_path / "cache", patience_s=0.1):
        _until(lambda: (old / "00" / "gone.sqlite").exists(), lambda there: not there)
    assert used <= {path for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path):
    record(tmp_path / "store", "one", points=7000)
    (tmp_path / "file").write_text("not a folder")
    with source(tmp_path / "store", cache=tmp_path / "file") as of:
        assert names(of) == ["one"]
        assert of.compare_series(SeriesRequest((only(of),), "loss")).series[0].total == 7000


def test_experiments_are_compared_by_what_is_known_of_them(tmp_path):
    store = tmp_path / ".ml-dash"
    record(store, "one")
    record(store, "two")
    with Experiment("three", "cv", local_path=str(store)) as experiment:
        experiment.metric("acc").append(value=float("inf"), step=0)
        experiment.parameters().set({"lr": float("nan"), "deep.er": [1]})
        experiment.update(archived=True)
    with source(tmp_path, cache=tmp_path / "cache") as of:
        everything = decoded(of.experiments(where="archived = true or archived = false"))["experiments"]
        ids = {one["name"]: one["id"] for one in everything}
        asked = [ids["three"], "1" * 20, ids["one"]]
        answer = decoded(of.comparison(asked, columns=["metrics.loss.min", "params.lr"]))
    three, one = answer["experiments"]
    assert (three["name"], three["archived"], three["params"]) == ("three", True, {"lr": "NaN", "deep.er": [1]})
    assert (one["params"], one["values"]) == ({"lr": 0.1}, {"metrics.loss.min": 1 / 3, "params.lr": 0.1})
    assert answer["metrics"] == [{"name": "acc", "runs": 1}, {"name": "loss", "runs": 1}]
    assert answer["missing"] == ["1" * 20]
