"""The dashboard's page and files over HTTP, and how a browser logs in: a real process, no browser."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ml_dash
from ml_dash.server.http.assets import Assets
from tests.server.conftest import Web

FOLDER = Path(ml_dash.__file__).parent / "dashboard"
NAVIGATION = "text/html,application/xhtml+xml,*/*;q=0.8"


@pytest.fixture
def stranger(web: Web) -> Iterator[Web]:
    """Somebody without a login."""
    made = Web(web.url, None)
    yield made
    made.session.close()


@pytest.mark.parametrize("path", ["/", "/runs", "/runs/123", "/compare?runs=1,2", "/storage", "/latest", "/login"])
def test_every_path_of_the_application_is_its_page(stranger: Web, path: str) -> None:
    found = stranger.ask("GET", path, headers={"Accept": NAVIGATION})
    assert re.sub(rb"/assets/@[0-9a-f]{32}/", b"/assets/", found.content) == (FOLDER / "index.html").read_bytes()
    assert found.headers["Content-Type"] == "text/html; charset=utf-8"
    assert found.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_runs_nothing_but_its_own_scripts(stranger: Web) -> None:
    found = stranger.ask("GET", "/runs").headers["Content-Security-Policy"]
    policy = {name: rest for name, _, rest in (part.strip().partition(" ") for part in found.split(";"))}
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["form-action"] == "'self'"
    assert policy["base-uri"] == "'none'"
    assert "unsafe" not in found
    assert "*" not in found


def test_a_file_is_sent_once_and_compressed(stranger: Web) -> None:
    plain = stranger.ask("GET", "/assets/index.html", headers={"Accept-Encoding": "identity"})
    assert plain.content == (FOLDER / "index.html").read_bytes()
    assert "Content-Encoding" not in plain.headers
    packed = stranger.ask("GET", "/assets/index.html", headers={"Accept-Encoding": "gzip, br"}, stream=True)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.raw.read(decode_content=False)) == plain.content
    assert plain.headers["ETag"] != packed.headers["ETag"]
    assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    for found, encoding in ((plain, "identity"), (packed, "gzip")):
        known = {"If-None-Match": f'"other", W/{found.headers["ETag"]}', "Accept-Encoding": encoding}
        again = stranger.ask("GET", "/assets/index.html", 304, headers=known)
        assert (again.content, again.headers["ETag"]) == (b"", found.headers["ETag"])
    refusing = stranger.ask("GET", "/assets/index.html", headers={"Accept-Encoding": "gzip;q=0, br"})
    assert "Content-Encoding" not in refusing.headers


def test_what_the_page_names_by_its_version_is_kept(stranger: Web) -> None:
    page = stranger.ask("GET", "/runs", headers={"Accept": NAVIGATION})
    assert page.headers["Cache-Control"] == "no-cache"
    app = re.search(r'"(/assets/@[0-9a-f]{32}/)app\.js"', page.text)
    assert app is not None
    found = stranger.ask("GET", f"{app[1]}lib/ui.js")
    assert found.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    for other in (f"/assets/@{'0' * 32}/lib/ui.js", "/assets/lib/ui.js"):
        same = stranger.ask("GET", other)
        assert (same.content, same.headers["Cache-Control"]) == (found.content, "no-cache")
    stranger.refused("GET", f"{app[1]}..%2Fapp.js", 404, "unknown")
    stranger.refused("GET", f"{app[1]}{app[1].removeprefix('/assets/')}app.js", 404, "unknown")


def test_the_version_of_the_page_is_that_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(b'<link href="/assets/a.css">')
    (tmp_path / "a.css").write_bytes(b"a{}")
    assets = Assets(tmp_path)
    first = assets.page()
    assert first is not None
    assert assets.page() is first
    version = first.content.split(b"@")[1].split(b"/")[0].decode()
    assert assets.is_current(version)
    assert Assets(tmp_path).is_current(version)
    (tmp_path / "a.css").write_bytes(b"a{b:c}")
    second = assets.page()
    assert second is not None
    assert second.content != first.content
    assert not assets.is_current(version)


@pytest.mark.parametrize(
    "path", ["..%2F__init__.py", "../__init__.py", ".hidden.js", "no.js", "types.d.ts", "a//b.js", "%00.js", "x" * 3000]
)
def test_what_is_no_file_of_the_dashboard_is_not_sent(stranger: Web, path: str) -> None:
    stranger.refused("GET", f"/assets/{path}", 404, "unknown")


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    assets = Assets(tmp_path)
    file = tmp_path / "lib" / "a.js"
    file.parent.mkdir()
    file.write_bytes(b"1")
    first = assets.find("lib/a.js")
    assert first is not None
    assert assets.find("lib/a.js") is first
    file.write_bytes(b"22")
    second = assets.find("lib/a.js")
    assert second is not None
    assert (second.content, second.digest == first.digest) == (b"22", False)
    file.unlink()
    assert assets.find("lib/a.js") is None
    assert assets.find("lib") is None


@pytest.mark.parametrize(("token", "status"), [("mld_wrong", 401), ("", 400), ("x" * 5000, 400), ("größe", 400)])
def test_a_wrong_token_is_refused_and_sets_no_cookie(stranger: Web, token: str, status: int) -> None:
    code = "unauthorised" if status == 401 else "malformed"
    stranger.refused("POST", "/login", status, code, data={"token": token})
    assert not stranger.session.cookies


def test_a_browser_logs_in_and_out(stranger: Web) -> None:
    assert stranger.get("/login/ways") == {"token": True, "name": True, "mode": "server"}
    stranger.refused("GET", "/whoami", 401, "unauthorised")
    done = stranger.ask("POST", "/login", data={"user": "alice"}, headers={"Accept": "application/json"})
    assert (done.json()["userName"], done.headers["Cache-Control"]) == ("alice", "no-store")
    attributes = done.headers["Set-Cookie"].lower()
    assert "httponly" in attributes
    assert "samesite=strict" in attributes
    assert stranger.get("/whoami")["userName"] == "alice"
    # What a foreign page can make a browser send: the cookie, and no header of ours.
    stranger.refused("POST", "/projects/page/experiments", 401, "unauthorised", json={"name": "x"})
    assert stranger.ask("POST", "/logout", headers={"Accept": "application/json"}).json() == {}
    stranger.refused("GET", "/whoami", 401, "unauthorised")


def test_a_form_without_scripts_goes_back_to_the_page(stranger: Web) -> None:
    browser = {"Accept": NAVIGATION}
    assert stranger.ask("POST", "/login", 303, data={"user": "alice"}, headers=browser).headers["Location"] == "/"
    assert stranger.ask("POST", "/logout", 303, headers=browser).headers["Location"] == "/"


def test_comments_are_not_sent_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    source = b"""/** What it is.
 * @param {string} text
 */
const a = /** @type {any} */ (1); // told at the end of a line
  // why
/** @type {HTMLElement} */ (b).focus();
  const url = "https://host/*"; /* kept */ const c = 2;
"""
    sent = b"""


const a = (1); // told at the end of a line

(b).focus();
const url = "https://host/*"; /* kept */ const c = 2;
"""
    (tmp_path / "some.js").write_bytes(source)
    (tmp_path / "some.css").write_bytes(b"/* The ground */\na { color: red; } /* why */\n")
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "some.js").write_bytes(source)
    assets = Assets(tmp_path)
    assert assets.find("some.js").content == sent  # type: ignore[union-attr]  # it is there
    assert assets.find("some.css").content == b"\na { color: red; } /* why */\n"  # type: ignore[union-attr]
    assert assets.find("vendor/some.js").content == source  # type: ignore[union-attr]


def test_the_whole_application_is_small() -> None:
    assets = Assets()
    paths = [path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.suffix in (".js", ".css")]
    found = [asset for path in paths if (asset := assets.find(path)) is not None]
    assert len(found) == len(paths) > 50
    assert sum(len(asset.packed or asset.content) for asset in found) <= 150_000
