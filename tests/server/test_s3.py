"""What is S3's alone: large objects in parts, links for browsers, names of objects, and a service that misbehaves."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_dash.server.stores import Gap, StoreTrouble, s3, s3_keys
from ml_dash.server.stores.disk import DiskObjects
from ml_dash.server.stores.s3 import S3Objects
from ml_dash.server.stores.s3_uploads import PART_BYTES, S3Uploads
from tests.contracts.places import S3Place, s3_place
from tests.e2e.proxy import ANSWER, CUT_RESPONSE, Fault, Proxy, Script, answer
from tests.services import Service, running
from tests.services.fixtures import started

KEY = "files/alice/model.pt"


@pytest.fixture
def place(s3_service: Service, s3_bucket: str) -> Iterator[S3Place]:
    made = s3_place(s3_service, s3_bucket)
    yield made
    made.close()


@pytest.fixture
def objects(place: S3Place) -> S3Objects:
    return place.objects()


# -- large ------------------------------------------------------------------------------------------------------------


def test_a_large_file_goes_in_parts_and_is_copied_in_parts(
    place: S3Place, objects: S3Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("_PARTS_FROM", 12), ("_PART_BYTES", 5), ("_COPY_PARTS_FROM", 12), ("_COPY_PART_BYTES", 6)):
        monkeypatch.setattr(s3, name, size << 20)
    whole = os.urandom(17 << 20)
    path = tmp_path / "large"
    path.write_bytes(whole)
    objects.put(KEY, path)
    objects.copy(KEY, "copy")
    assert not path.exists()
    assert b"".join(objects.open("copy", 1)) == whole[1:]
    # The tag of an object that was put together ends in the number of its parts.
    for key, parts in ((KEY, 4), ("copy", 3)):
        tag = place.client.head_object(Bucket=place.settings.bucket, Key=f"objects/{key}")["ETag"]
        assert tag.strip('"').endswith(f"-{parts}")


# -- links ------------------------------------------------------------------------------------------------------------


def test_a_link_downloads_under_a_name_of_any_kind(objects: S3Objects) -> None:
    objects.put_bytes(KEY, b"<script>alert(1)</script>")
    url = objects.presigned(KEY, 'me"; é\n\ud800.html', 60)
    assert url is not None
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
    assert running.SECRET_KEY not in url
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.read() == b"<script>alert(1)</script>"
        disposition = answer.headers["Content-Disposition"]
        assert answer.headers["Content-Type"] == "application/octet-stream"
    assert disposition.startswith("attachment; filename*=UTF-8''")
    assert unquote(disposition.partition("''")[2]) == 'me"; é\n?.html'


def test_a_link_that_was_changed_is_refused(objects: S3Objects) -> None:
    objects.put_bytes(KEY, b"mine")
    objects.put_bytes("files/bob/secret.pt", b"theirs")
    url = str(objects.presigned(KEY, "x", 60))
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url.replace("alice/model.pt", "bob/secret.pt"), timeout=30)
    with refused.value:
        assert refused.value.code == 403


def test_without_a_public_address_there_are_no_links(place: S3Place, tmp_path: Path) -> None:
    closed = S3Objects(replace(place.settings, public_url=None))
    assert closed.presigned(KEY, "x", 60) is None
    assert DiskObjects(tmp_path / "objects").presigned(KEY, "x", 60) is None
    closed.close()


def test_links_lead_to_the_public_address(place: S3Place) -> None:
    other = S3Objects(replace(place.settings, public_url="https://files.example.org"))
    assert str(other.presigned(KEY, "x", 60)).startswith("https://files.example.org/")
    other.close()


# -- names ------------------------------------------------------------------------------------------------------------

_text = st.text(min_size=1, max_size=400).filter(lambda text: all(text.split("/")))


@given(key=_text, room=st.integers(200, 1024), size=st.integers(0, 400))
def test_every_key_has_a_legal_name(key: str, room: int, size: int) -> None:
    name = s3_keys.name_of(key, room)
    assert len(name.encode()) <= room
    for part in name.split("/"):
        assert part not in ("", ".", "..")
        assert len(part.encode()) <= 255
        assert part.isprintable() or not any(ord(character) < 32 or ord(character) == 127 for character in part)
    if s3_keys.long_digest(name) is None:
        assert s3_keys.key_of(name) == key
    else:
        assert s3_keys.long_digest(name) == s3_keys.digest_of(key)
    beginning = s3_keys.beginning_of(key[:size], room)
    assert beginning is not None
    assert name.startswith(beginning)


@given(st.text(max_size=50))
def test_a_name_of_a_key_that_looks_cut_is_not_taken_for_one(text: str) -> None:
    key = f"x{text}%~".replace("/", "") + "0" * 64
    name = s3_keys.name_of(key, 1024)
    assert s3_keys.long_digest(name) is None
    assert s3_keys.key_of(name) == key


def test_of_a_long_key_nothing_is_left(place: S3Place, objects: S3Objects) -> None:
    key = "files/" + "\u4e2d" * 400
    objects.put_bytes(key, b"x")
    assert len(place.left()) == 1
    objects.delete(key)
    assert place.left() == []


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_missing_bucket_is_trouble_and_not_a_missing_object(place: S3Place) -> None:
    missing = S3Objects(replace(place.settings, bucket="never-made"))
    for call in (
        missing.check,
        lambda: missing.size(KEY),
        lambda: missing.open(KEY),
        lambda: list(missing.list("")),
        lambda: missing.put_bytes(KEY, b"x"),
        lambda: missing.delete(KEY),
    ):
        with pytest.raises(StoreTrouble, match=r"never-made|NoSuchBucket"):
            call()
    missing.close()


def test_a_wrong_secret_is_trouble_that_does_not_show_it(place: S3Place, tmp_path: Path) -> None:
    wrong = S3Objects(replace(place.settings, secret_key="my-wrong-secret"))
    path = tmp_path / "file"
    path.write_bytes(b"x")
    for call in (wrong.check, lambda: wrong.size(KEY), lambda: wrong.put(KEY, path), lambda: wrong.copy(KEY, "b")):
        with pytest.raises(StoreTrouble) as told:
            call()
        assert "my-wrong-secret" not in f"{told.value} {told.value!r} {wrong!r} {place.settings!r}"
    assert path.read_bytes() == b"x"
    wrong.close()


def test_without_any_credentials_the_message_says_so(place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bare = S3Objects(replace(place.settings, access_key=None, secret_key=None))
    with pytest.raises(StoreTrouble, match="Unable to locate credentials"):
        bare.check()
    bare.close()


def test_a_service_that_hangs_is_told_soon_by_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_CONNECT_S", 1)
    monkeypatch.setattr(s3, "_READ_S", 1)
    service = started(running.s3, tmp_path / "service")
    client = running.s3_client(service)
    place = s3_place(service, running.bucket(client))
    objects = place.objects()
    objects.check()
    service.pause()
    for call in (objects.check, lambda: objects.size(KEY)):
        with pytest.raises(StoreTrouble, match="timeout"):
            call()
    service.resume()
    objects.check()
    place.close()
    client.close()
    service.end()


@pytest.fixture
def proxied(place: S3Place, s3_service: Service) -> Iterator[tuple[Proxy, S3Place]]:
    """A network between this process and the service, and the same place as seen through it."""
    with Proxy(("127.0.0.1", s3_service.port)) as proxy:
        through = S3Place(replace(place.settings, endpoint=proxy.url))
        yield proxy, through
        through.close()


def faults(proxy: Proxy, method: str, *several: Fault) -> Script:
    """Let these befall the next requests of a method."""
    script = Script(several, matches=lambda request: request.method == method)
    proxy.plan = script
    return script


def test_reading_goes_on_where_a_connection_broke(objects: S3Objects, proxied: tuple[Proxy, S3Place]) -> None:
    proxy, through = proxied
    whole = os.urandom(5 << 20)
    objects.put_bytes(KEY, whole)
    there = through.objects()
    script = faults(proxy, "GET", Fault(CUT_RESPONSE, at=3_000_000), Fault(CUT_RESPONSE, at=1_500_000))
    assert b"".join(there.open(KEY, 7, len(whole) - 7)) == whole[7:-7]
    assert script.left == 0


def test_reading_does_not_go_on_in_another_content(objects: S3Objects, proxied: tuple[Proxy, S3Place]) -> None:
    proxy, through = proxied
    objects.put_bytes(KEY, bytes(5 << 20))
    # Not by a reset, which may take away what has arrived, and so come before the first piece.
    faults(proxy, "GET", Fault(CUT_RESPONSE, at=3_000_000, reset=False))
    reading = through.objects().open(KEY)
    next(reading)
    objects.put_bytes(KEY, b"\1" * (5 << 20))
    with pytest.raises(StoreTrouble, match="PreconditionFailed"):
        list(reading)


def test_reading_that_never_gets_on_is_given_up(objects: S3Objects, proxied: tuple[Proxy, S3Place]) -> None:
    proxy, through = proxied
    objects.put_bytes(KEY, bytes(5 << 20))
    faults(proxy, "GET", Fault(CUT_RESPONSE, at=3_000_000, reset=False), *[Fault(CUT_RESPONSE, at=0)] * 100)
    reading = through.objects().open(KEY)
    assert next(reading) == bytes(1 << 20)
    with pytest.raises(StoreTrouble):
        list(reading)


BUSY = answer(
    503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
    kind="application/xml",
)  # fmt: skip


@pytest.mark.parametrize("fault", [Fault(ANSWER, answer=BUSY), Fault(CUT_RESPONSE, at=10)], ids=["busy", "lost"])
def test_a_put_is_tried_again(objects: S3Objects, proxied: tuple[Proxy, S3Place], fault: Fault) -> None:
    proxy, through = proxied
    script = faults(proxy, "PUT", fault, fault)
    through.objects().put_bytes(KEY, b"weights")
    assert script.left == 0
    assert b"".join(objects.open(KEY)) == b"weights"


def test_a_service_that_stays_busy_is_trouble(proxied: tuple[Proxy, S3Place]) -> None:
    proxy, through = proxied
    there = through.objects()
    faults(proxy, "PUT", *[Fault(ANSWER, answer=BUSY)] * 100)
    with pytest.raises(StoreTrouble, match=r"SlowDown \(HTTP status 503\)"):
        there.put_bytes(KEY, b"weights")
    assert there.size(KEY) is None


LOST = [
    r"POST .*\?uploads", r"PUT .*partNumber=1", r"POST .*uploadId=", r"POST .*\?delete", r"PUT .*/0000008388608-",
    r"PUT .*/files/x",
]  # fmt: skip


@pytest.mark.parametrize("lost", LOST)
def test_an_upload_is_finished_though_an_answer_gets_lost(
    place: S3Place, objects: S3Objects, proxied: tuple[Proxy, S3Place], lost: str
) -> None:
    """The service has done what was asked, and the same request comes once more."""
    proxy, through = proxied
    whole, uploads = os.urandom(PART_BYTES + 5), through.uploads()
    script = Script(
        [Fault(CUT_RESPONSE, at=10)],
        matches=lambda request: re.match(lost, f"{request.method} {request.target}") is not None,
    )
    proxy.plan = script
    assert uploads.append("ab", 0, whole) == len(whole)
    assert finished(uploads, whole)
    assert script.left == 0
    assert b"".join(objects.open("files/x")) == whole
    assert place.left() == []


# -- two servers, one upload ------------------------------------------------------------------------------------------


def finished(uploads: S3Uploads, whole: bytes) -> bool:
    return uploads.finish("ab", len(whole), hashlib.sha256(whole).hexdigest(), "files/x")


@pytest.mark.parametrize("longer", [0, 1])
def test_of_two_that_were_begun_the_one_with_more_parts_goes_on(
    place: S3Place, objects: S3Objects, longer: int
) -> None:
    whole, uploads = os.urandom(2 * PART_BYTES + 5), place.uploads()
    what = {"Bucket": place.settings.bucket, "Key": "uploads/ab/whole"}
    both = sorted(place.client.create_multipart_upload(**what)["UploadId"] for _ in range(2))
    assert uploads.length("ab") == 0
    place.client.upload_part(**what, UploadId=both[longer], PartNumber=1, Body=whole[:PART_BYTES])
    assert uploads.length("ab") == PART_BYTES
    assert uploads.append("ab", PART_BYTES, whole[PART_BYTES:]) == len(whole)
    assert finished(uploads, whole)
    assert b"".join(objects.open("files/x")) == whole
    assert place.left() == []


def test_dropped_by_another_server_meanwhile_it_begins_anew(place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, one, other = os.urandom(2 * PART_BYTES), place.uploads(), place.uploads()
    one.append("ab", 0, whole[:PART_BYTES])
    put_part = one._put_part

    def dropped_first(*arguments: Any) -> str:
        other.drop("ab")
        return put_part(*arguments)

    monkeypatch.setattr(one, "_put_part", dropped_first)
    with pytest.raises(Gap) as gap:
        one.append("ab", PART_BYTES, whole[PART_BYTES:])
    assert gap.value.length == 0
    assert place.left() == []


@pytest.mark.parametrize("step", ["_complete", "copy_name"])
def test_finished_by_another_server_meanwhile_it_is_finished(
    place: S3Place, objects: S3Objects, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole, one, other = os.urandom(PART_BYTES + 5), place.uploads(), place.uploads()
    one.append("ab", 0, whole)
    owner: Any = one if step == "_complete" else one._objects
    go_on = getattr(owner, step)

    def after_the_other(*arguments: Any) -> None:
        assert finished(other, whole)
        go_on(*arguments)

    monkeypatch.setattr(owner, step, after_the_other)
    assert finished(one, whole)
    assert b"".join(objects.open("files/x")) == whole
    assert place.left() == []
