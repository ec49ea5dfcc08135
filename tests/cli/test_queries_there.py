"""Lists, comparisons and exports of what a server has: the same queries, orders and columns as here."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ml_dash import RemoteClient
from ml_dash.cli.codes import USAGE
from tests import running

if TYPE_CHECKING:
    from tests.cli.conftest import Dash


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with three runs of `ann`."""
    running.prepare_to_drain()
    serving = running.Server(tmp_path_factory.mktemp("queries") / "data").start()
    with RemoteClient(serving.url, user_name="ann") as client:
        for name, lr, losses, status in [("a", 0.1, (3.0, 1.0), "completed"), ("b", 0.01, (3.0, 0.5), "completed"),
                                         ("c", "auto", (2.0, 2.0), "failed")]:  # fmt: skip
            made = client.create_experiment("cv", name, tags=["base"] if name == "a" else None, folder=f"f/{name}")
            identity = made["experiment"]["id"]
            client.set_parameters(identity, {"lr": lr, "seed": 1})
            client.append_batch(identity, "loss", [{"value": loss, "step": step} for step, loss in enumerate(losses)])
            client.add_logs(identity, [{"message": f"from {name}"}])
            client.create_experiment("cv", name, status=status)
    yield serving.url
    serving.end()


@pytest.fixture(autouse=True)
def _user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ML_DASH_USER_NAME", "ann")


def _names(dash: Dash, url: str, *options: str) -> list[str]:
    return [entry["name"] for entry in dash("ls", "--remote", url, "--json", *options).json]


def test_a_server_lists_what_matches_in_the_order_that_is_asked_for(dash: Dash, url: str) -> None:
    assert sorted(_names(dash, url)) == ["a", "b", "c"]
    assert _names(dash, url, "--where", "params.lr >= 0.01", "--sort", "params.lr") == ["b", "a"]
    assert _names(dash, url, "--sort", "metrics.loss.min:desc", "--limit", "2") == ["c", "a"]
    assert _names(dash, url, "--status", "failed") == ["c"]
    assert _names(dash, url, "--tag", "base", "--project", "cv", "--folder", "/f/", "--since", "1h") == ["a"]
    assert _names(dash, url, "--folder", "f/b") == ["b"]
    assert _names(dash, url, "--project", "nlp") == []
    assert "no experiments there with this --project" in dash("ls", "--remote", url, "--project", "nlp").err


def test_tables_of_a_server_are_like_those_of_folders(dash: Dash, url: str) -> None:
    header, first, *_ = dash("ls", "--remote", url, "--sort", "name").lines
    assert header.split() == ["experiment", "status", "points", "logs", "files", "updated", "(UTC)", "tags"]
    assert first.split()[:5] == ["cv/a", "completed", "2", "1", "0"]
    lines = dash("ls", "--remote", url, "--sort", "metrics.loss.min", "--columns", "params.lr").lines
    assert [line.split() for line in lines] == [
        ["experiment", "params.lr", "metrics.loss.min"], ["cv/b", "0.01", "0.5"], ["cv/a", "0.1", "1"],
        ["cv/c", "auto", "2"],
    ]  # fmt: skip
    entry = dash("ls", "--remote", url, "--where", "name = a", "--columns", "params.lr", "--json").json[0]
    assert (entry["path"], entry["values"], entry["tags"]) == (None, {"params.lr": 0.1}, ["base"])
    assert (entry["counts"]["points"], entry["counts"]["parameters"]) == (2, 2)


def test_what_a_server_has_is_compared(dash: Dash, url: str) -> None:
    shown = dash("diff", "--remote", url, "--where", "status = completed", "--sort", "name", "--json").json
    assert (shown["a"]["name"], shown["b"]["name"]) == ("a", "b")
    assert shown["parameters"] == {"lr": {"a": 0.1, "b": 0.01}}
    assert shown["metrics"] == {"loss": {"a": 1.0, "b": 0.5}}
    fields = dash("diff", "cv/a", "cv/c", "--remote", url, "--columns", "status,params.lr,params.seed", "--json").json
    assert fields["fields"] == {"status": {"a": "completed", "b": "failed"}, "params.lr": {"a": 0.1, "b": "auto"}}
    assert "no experiments match" in dash("diff", "--remote", url, "--where", "tag:none").err
    refused = dash("diff", "cv/a", "cv/b", "--remote", url, "--columns", "status", "--as-of", "1", code=USAGE)
    assert "of now" in refused.err


def test_what_a_server_has_is_exported(dash: Dash, url: str) -> None:
    out = dash("export", "--remote", url, "--where", "status = completed", "--sort", "name").out
    rows = [(row["experiment"], row["value"]) for row in csv.DictReader(io.StringIO(out))]
    assert rows == [("cv/a", "3.0"), ("cv/a", "1.0"), ("cv/b", "3.0"), ("cv/b", "0.5")]
    lines = dash("export", "--remote", url, "--what", "experiments", "--sort", "name", "--json").json_lines
    assert [(line["name"], line["parameters"]["seed"], line["metrics"]["loss"]) for line in lines] == [
        ("a", 1, 1.0), ("b", 1, 0.5), ("c", 1, 2.0),
    ]  # fmt: skip
    columns = dash("export", "--remote", url, "--what", "experiments", "--where", "name = c", "--columns", "params.lr")
    assert columns.lines == ["project,name,params.lr", "cv,c,auto"]


def test_a_wrong_query_is_refused_before_the_server_is_asked(dash: Dash) -> None:
    assert "did you mean" in dash("ls", "--remote", "http://127.0.0.1:9", "--where", "lr > 1", code=USAGE).err
