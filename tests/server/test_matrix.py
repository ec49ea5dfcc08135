"""Every call there is, asked by everybody who may not: made from the tables that the server answers by."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash.server.http.app import ROUTES
from ml_dash.server.http.calls import OPEN, READ, WRITE, Route
from ml_dash.sync.login import development_token
from tests.running import Server
from tests.server.conftest import Web

OPEN_PATHS = {
    "/", "/runs", "/runs/{run}", "/compare", "/latest", "/assets/{path...}", "/login", "/login/ways",
    "/logout", "/health", "/-/ready", "/openapi.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(server: Server) -> dict[str, str]:
    """One of everything, of alice's."""
    alice = Web(server.url, development_token("alice"))
    identity = alice.experiment("matrix", "matrix")
    path = f"/experiments/{identity}"
    alice.post(f"{path}/metrics/loss/append", {"data": {"value": 1.0}})
    record = alice.ask("POST", f"{path}/files", files={"file": ("x.bin", b"x" * 10)}).json()
    found = alice.get("/sync/v1/experiments", project="matrix", name="matrix")
    [journal] = found["journals"]
    segments = alice.get(f"/sync/v1/journals/{journal}")["segments"]
    [[segment, state]] = segments.items()
    [blob] = alice.get(f"/sync/v1/journals/{journal}")["blobs"]
    alice.session.close()
    return {
        "project": "matrix", "experiment": identity, "metric": "loss", "file": record["id"], "journal": journal,
        "segment": segment, "blob": blob, "segmentfile": state["file"],
    }  # fmt: skip


def address(route: Route, data: dict[str, str]) -> str:
    names = data if "/segments/{file}" not in route.path else {**data, "file": data["segmentfile"]}
    path = re.sub(r"\{([a-z]+)(?:\.\.\.)?\}", lambda match: names[match[1]], route.path)
    query = {
        "append_segment": "offset=0", "append_blob": "offset=0&size=10",
        "find_experiment": "project=matrix&name=matrix", "groups": "by=status",
        "compare": f"metric=loss&experiment={data['experiment']}", "changes": f"experiment={data['experiment']}",
    }.get(getattr(route.handler, "__name__", ""))  # fmt: skip
    return f"{path}?{query}" if query else path


def token(server: Server, user: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ml_dash", "server", "token", "create", user, "--data", str(server.data), "--json",
         *options],
        env=os.environ.copy(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return str(json.loads(done.stdout)["token"])


@pytest.fixture(scope="module")
def people(server: Server) -> Iterator[dict[str, Web]]:
    found = {
        "nobody": Web(server.url, None),
        "wrong": Web(server.url, "mld_" + "x" * 43),
        "mallory": Web(server.url, development_token("mallory")),
        "looker": Web(server.url, token(server, "alice", "--read-only")),
        "auditor": Web(server.url, token(server, "carol", "--read-all")),
    }
    yield found
    for web in found.values():
        web.session.close()


def named(routes: list[Route]) -> Any:
    return pytest.mark.parametrize("route", routes, ids=[f"{route.method} {route.path}" for route in routes])


# Two streams, and one that is asked by POST: the tests of these are elsewhere.
_ELSEWHERE = ("/events", "/changes", "/digests")
GUARDED = [route for route in ROUTES if route.access != OPEN]


def test_what_is_open_is_only_this() -> None:
    assert {route.path for route in ROUTES if route.access == OPEN} == OPEN_PATHS
    assert all(route.access in (READ, WRITE) for route in GUARDED)
    # Nothing but GET and POST of digests, which only compares, is called reading; and the state of a blob links.
    others = {route.path for route in GUARDED if route.access == READ and route.method != "GET"}
    assert others == {"/sync/v1/journals/{journal}/digests"}


@named(GUARDED)
def test_nothing_is_answered_without_a_login(route: Route, data: dict[str, str], people: dict[str, Web]) -> None:
    for who in ("nobody", "wrong"):
        found = people[who].ask(route.method, address(route, data), 401)
        assert found.json()["error"]["code"] == "unauthorised"
        assert found.headers["WWW-Authenticate"].startswith("Bearer")


@named([route for route in GUARDED if route.access == WRITE])
def test_who_only_reads_changes_nothing(route: Route, data: dict[str, str], people: dict[str, Web]) -> None:
    people["looker"].refused(route.method, address(route, data), 403, "forbidden")
    path = address(route, data)
    elsewhere = path + ("&" if "?" in path else "?") + "namespace=alice"
    people["auditor"].refused(route.method, elsewhere, 403, "forbidden")


@named([route for route in GUARDED if "{" in route.path and route.path != "/projects/{project}/experiments"])
def test_another_namespace_has_nothing_to_see(route: Route, data: dict[str, str], people: dict[str, Web]) -> None:
    mallory, path = people["mallory"], address(route, data)
    if route.path.endswith("/digests"):
        assert mallory.post(path, {"segments": {data["segment"]: 10}}) == {"segments": {}}
    elif route.path.endswith("/state"):
        assert mallory.get(path) == {"length": 0, "size": None, "complete": False}
    elif route.path.endswith("/segments/{file}"):
        # What is sent goes to the sender's own namespace: an empty piece of nothing is refused there.
        assert mallory.session.post(mallory.url + path, timeout=30).status_code in (400, 409, 422)
    elif route.path.endswith("/blobs/{blob}") and route.method == "PUT":
        mallory.refused("PUT", path, 409, "no_event", data=b"x" * 10)
    else:
        body: dict[str, Any] = {
            "/logs": {"logs": [{"message": "m"}]}, "/parameters": {"data": {"a": 1}}, "/append": {"data": {"v": 1}},
            "/append-batch": {"dataPoints": [{"v": 1}]}, "/deaths": {"deaths": []},
        }.get(re.sub(r".*(/[a-z-]+)$", r"\1", route.path), {})  # fmt: skip
        mallory.refused(route.method, path, 404, "unknown", json=body if route.method in ("POST", "PATCH") else None)
    for who in ("mallory", "looker"):
        elsewhere = path + ("&" if "?" in path else "?") + "namespace=" + ("alice" if who == "mallory" else "bob")
        if route.access == READ:
            people[who].refused(route.method, elsewhere, 404, "unknown")


@named([route for route in GUARDED if route.access == READ and not route.path.endswith(_ELSEWHERE)])
def test_who_may_read_reads(route: Route, data: dict[str, str], people: dict[str, Web]) -> None:
    path = address(route, data)
    people["looker"].ask(route.method, path)
    elsewhere = path + ("&" if "?" in path else "?") + "namespace=alice"
    people["auditor"].ask(route.method, elsewhere)


def test_looking_at_tokens_begins_no_server(tmp_path: Path) -> None:
    for arguments in (("list",), ("revoke", "x")):
        done = subprocess.run(
            [sys.executable, "-m", "ml_dash", "server", "token", *arguments, "--data", str(tmp_path / "none")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "there is no server's data in" in done.stderr
    assert list(tmp_path.iterdir()) == []
