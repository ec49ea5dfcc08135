"""What every implementation of the uploads seam must do: pieces in, one verified object out, whichever server takes
which piece and whatever is killed between.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ml_dash.server.stores import Gap, Objects, StoreTrouble, Uploads
from ml_dash.server.stores.disk_uploads import DiskUploads
from ml_dash.server.stores.s3_uploads import PART_BYTES
from tests.contracts.places import DiskPlace, Place, S3Place, opened, s3_place
from tests.services import running
from tests.services.fixtures import started

ROOT = Path(__file__).parents[2]
NAME = "0123abcd-" * 10
KEY = "files/alice/cv/4711/12/model.pt"
SMALL = b"weights" * 1000
LARGE = random.Random(7).randbytes(2 * PART_BYTES + 12_345)
CONTENTS = [b"", b"w", SMALL, LARGE[: PART_BYTES - 1], LARGE[:PART_BYTES], LARGE[: PART_BYTES + 1], LARGE]


@pytest.fixture
def uploads(place: Place) -> Uploads:
    return place.uploads()


@pytest.fixture
def objects(place: Place) -> Objects:
    return place.objects()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def send(servers: list[Uploads], content: bytes, size: int, start: int = 0) -> None:
    """Send a content in pieces of `size`, each to the next server."""
    for number, offset in enumerate(range(start, len(content), size)):
        piece = content[offset : offset + size]
        assert servers[number % len(servers)].append(NAME, offset, piece) == offset + len(piece)


def finished(uploads: Uploads, content: bytes) -> bool:
    return uploads.finish(NAME, len(content), sha(content), KEY)


def stored(objects: Objects) -> bytes:
    return b"".join(objects.open(KEY))


# -- one content ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_what_was_sent_becomes_the_object(place: Place, uploads: Uploads, objects: Objects, content: bytes) -> None:
    send([uploads], content, 3_000_000)
    assert uploads.length(NAME) == len(content)
    assert objects.size(KEY) is None
    assert finished(uploads, content)
    assert stored(objects) == content
    assert uploads.length(NAME) == 0
    assert place.left() == []


@pytest.mark.parametrize("size", [1 << 20, 5 << 20, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
def test_pieces_may_have_any_size(uploads: Uploads, objects: Objects, size: int) -> None:
    send([uploads], LARGE, size)
    assert finished(uploads, LARGE)
    assert stored(objects) == LARGE


def test_an_unknown_upload_has_nothing(uploads: Uploads) -> None:
    assert uploads.length(NAME) == 0
    uploads.drop(NAME)
    with pytest.raises(Gap) as gap:
        uploads.append(NAME, 1, b"x")
    assert gap.value.length == 0
    with pytest.raises(Gap) as gap:
        uploads.finish(NAME, 1, sha(b"x"), KEY)
    assert gap.value.length == 0


def test_a_piece_behind_a_gap_is_refused_and_one_that_overlaps_is_taken(uploads: Uploads, objects: Objects) -> None:
    assert uploads.append(NAME, 0, SMALL[:100]) == 100
    with pytest.raises(Gap) as gap:
        uploads.append(NAME, 101, SMALL[101:])
    assert gap.value.length == 100
    assert uploads.append(NAME, 40, SMALL[40:150]) == 150
    assert uploads.append(NAME, 0, SMALL[:20]) == 150
    assert uploads.append(NAME, 150, b"") == 150
    with pytest.raises(Gap):
        finished(uploads, SMALL)
    assert uploads.append(NAME, 20, SMALL[20:]) == len(SMALL)
    assert finished(uploads, SMALL)
    assert stored(objects) == SMALL


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=len)
def test_a_wrong_content_is_dropped_and_the_object_stays_as_it_was(
    place: Place, uploads: Uploads, objects: Objects, content: bytes
) -> None:
    objects.put_bytes(KEY, b"before")
    send([uploads], content, 5_000_000)
    assert not uploads.finish(NAME, len(content), sha(b"another"), KEY)
    assert stored(objects) == b"before"
    assert uploads.length(NAME) == 0
    assert place.left() == []
    send([uploads], content, 5_000_000)
    assert finished(uploads, content)
    assert stored(objects) == content


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=len)
def test_more_than_the_size_is_dropped(place: Place, uploads: Uploads, content: bytes) -> None:
    send([uploads], content, len(content))
    assert not uploads.finish(NAME, len(content) - 1, sha(content[:-1]), KEY)
    assert place.left() == []


@pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=len)
def test_finished_once_more_it_is_still_true(uploads: Uploads, objects: Objects, content: bytes) -> None:
    send([uploads], content, 5_000_000)
    assert finished(uploads, content)
    assert finished(uploads, content)
    assert stored(objects) == content


def test_an_object_of_another_content_is_not_taken_for_it(uploads: Uploads, objects: Objects) -> None:
    objects.put_bytes(KEY, bytes(len(SMALL)))
    with pytest.raises(Gap):
        finished(uploads, SMALL)


def test_dropped_it_begins_anew(place: Place, uploads: Uploads) -> None:
    send([uploads], LARGE, 5_000_000)
    uploads.drop(NAME)
    assert uploads.length(NAME) == 0
    assert place.left() == []


def test_names_that_begin_alike_are_not_mixed(uploads: Uploads) -> None:
    uploads.append("ab", 0, LARGE)
    uploads.append("ab-0", 0, b"x")
    assert (uploads.length("ab"), uploads.length("ab-0"), uploads.length("a")) == (len(LARGE), 1, 0)
    uploads.drop("ab")
    assert (uploads.length("ab"), uploads.length("ab-0")) == (0, 1)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "x" * 4, "a" * 201, "a\n", "a.b"])
def test_a_name_is_hex_digits_and_dashes(uploads: Uploads, name: str) -> None:
    for call in (uploads.length, uploads.drop, lambda name: uploads.append(name, 0, b"x")):
        with pytest.raises(ValueError, match="name of an upload"):
            call(name)


def test_the_longest_name_is_good(uploads: Uploads, objects: Objects) -> None:
    assert uploads.append("a" * 200, 0, LARGE) == len(LARGE)
    assert uploads.finish("a" * 200, len(LARGE), sha(LARGE), KEY)
    assert stored(objects) == LARGE


# -- several servers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3_000_000, PART_BYTES])
def test_pieces_alternate_between_two_servers(place: Place, objects: Objects, size: int) -> None:
    servers = [place.uploads(), place.uploads()]
    send(servers, LARGE, size)
    assert [server.length(NAME) for server in servers] == [len(LARGE)] * 2
    assert finished(servers[0], LARGE)
    assert finished(servers[1], LARGE)
    assert stored(objects) == LARGE
    assert place.left() == []


def test_the_same_pieces_sent_to_two_servers_at_once_are_one_content(place: Place, objects: Objects, rng: Any) -> None:
    """Each sender cuts differently, goes on where its server says, and finishes as soon as all is there."""
    failures: list[BaseException] = []

    def work(server: Uploads, sizes: random.Random) -> None:
        try:
            at = 0
            while True:
                try:
                    while at < len(LARGE):
                        at = server.append(NAME, at, LARGE[at : at + sizes.randrange(1, 9_000_000)])
                    assert finished(server, LARGE)
                    return
                except Gap as gap:
                    # The other one may have finished it, and then there is nothing to send.
                    if objects.size(KEY) == len(LARGE):
                        return
                    at = gap.length
        except BaseException as error:  # noqa: BLE001  # told by the main thread
            failures.append(error)

    seeds = [rng.random() for _ in range(3)]
    threads = [threading.Thread(target=work, args=(place.uploads(), random.Random(seed))) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert stored(objects) == LARGE


# -- time -------------------------------------------------------------------------------------------------------------


def test_what_was_not_continued_is_swept(place: Place, uploads: Uploads, objects: Objects) -> None:
    objects.put_bytes(KEY, b"object")
    uploads.append("aa", 0, SMALL)
    uploads.append("bb", 0, LARGE)
    uploads.append("cc", 0, LARGE[:PART_BYTES])
    assert uploads.sweep(time.time() - 3600) == 0
    assert uploads.length("bb") == len(LARGE)
    assert uploads.sweep(time.time() + 3600) == 3
    assert [uploads.length(name) for name in ("aa", "bb", "cc")] == [0, 0, 0]
    assert place.left() == []
    assert stored(objects) == b"object"


def test_what_a_killed_server_left_of_a_large_object_is_swept(s3_service: Any, s3_bucket: str) -> None:
    place = s3_place(s3_service, s3_bucket)
    uploads = place.uploads()
    place.client.create_multipart_upload(Bucket=s3_bucket, Key="objects/files/x")
    assert uploads.sweep(time.time() - 3600) == 0
    assert uploads.sweep(time.time() + 3600) == 1
    assert not place.client.list_multipart_uploads(Bucket=s3_bucket).get("Uploads")
    place.close()


# -- kills ------------------------------------------------------------------------------------------------------------

DISK_POINTS = ["upload-written:1", "upload-synced:2", "upload-verified:1", "upload-placed:1"]
S3_SMALL_POINTS = ["upload-piece:1", "upload-piece:3", "upload-placed:1", "upload-dropped:1"]
S3_POINTS = [
    *("upload-piece:1", "upload-begun:1", "upload-part:1", "upload-part:2", "upload-cleared:1", "upload-piece:5"),
    *("upload-last:1", "upload-completed:1", "upload-verified:1", "upload-placed:1", "upload-dropped:1"),
]
ROWS = (
    [("disk", len(content), point) for content in (SMALL, LARGE) for point in DISK_POINTS]
    + [("s3", len(SMALL), point) for point in S3_SMALL_POINTS]
    + [("s3", len(LARGE), point) for point in S3_POINTS]
)


def victim(size: int, address: list[str]) -> None:
    """Send a content from where the place is, in five pieces or so, and finish; tell each acknowledged length."""
    content, (_, uploads) = {len(SMALL): SMALL, len(LARGE): LARGE}[size], opened(address)
    at = uploads.length(NAME)
    while at < size:
        at = uploads.append(NAME, at, content[at : at + max(2000, 3_000_000 * size // len(LARGE))])
        os.write(1, b"%d\n" % at)
    assert finished(uploads, content)
    os.write(1, b"done\n")


@pytest.mark.parametrize(("place", "size", "point"), ROWS, indirect=["place"])
def test_killed_at_any_step_another_server_goes_on(place: Place, objects: Objects, size: int, point: str) -> None:
    content = {len(SMALL): SMALL, len(LARGE): LARGE}[size]
    command = [sys.executable, "-m", "tests.contracts.test_uploads", str(size), *place.address()]
    environment = {**os.environ, "ML_DASH_FAIL": f"{point}:kill"}
    ended = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    told = ended.stdout.decode().split()
    acknowledged = int(told[-1]) if told else 0
    assert "done" not in told
    uploads = place.uploads()
    length = uploads.length(NAME)
    if objects.size(KEY) is None:
        assert length >= acknowledged
    elif stored(objects) == content:
        # All was done but the answer: the next `finish` has nothing to send for.
        assert finished(uploads, content)
    send([uploads, place.uploads()], content, 4_000_000, start=uploads.length(NAME))
    assert finished(uploads, content)
    assert stored(objects) == content
    assert place.left() == []


@pytest.mark.parametrize("point", ["upload-completed:1", "upload-placed:1"])
def test_killed_while_finishing_the_next_finish_alone_is_enough(s3_service: Any, s3_bucket: str, point: str) -> None:
    place = s3_place(s3_service, s3_bucket)
    command = [sys.executable, "-m", "tests.contracts.test_uploads", str(len(LARGE)), *place.address()]
    environment = {**os.environ, "ML_DASH_FAIL": f"{point}:kill"}
    ended = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert finished(place.uploads(), LARGE)
    assert stored(place.objects()) == LARGE
    assert place.left() == []
    place.close()


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_service_that_dies_acknowledges_nothing_and_keeps_what_it_had(tmp_path: Path) -> None:
    service = started(running.s3, tmp_path / "service")
    client = running.s3_client(service)
    place = S3Place(s3_place(service, running.bucket(client)).settings)
    uploads, objects = place.uploads(), place.objects()
    send([uploads], LARGE[:10_000_000], 3_000_000)
    service.kill()
    for call in (
        lambda: uploads.append(NAME, 10_000_000, b"x"),
        lambda: uploads.length(NAME),
        lambda: uploads.sweep(0),
        lambda: finished(uploads, LARGE),
        lambda: objects.size(KEY),
        lambda: objects.open(KEY),
        lambda: objects.put_bytes(KEY, b"x"),
        objects.check,
    ):
        with pytest.raises(StoreTrouble) as told:
            call()
        assert running.SECRET_KEY not in f"{told.value} {told.value!r}"
    service.start()
    objects.check()
    assert uploads.length(NAME) == 10_000_000
    send([uploads], LARGE, 5_000_000, start=10_000_000)
    assert finished(uploads, LARGE)
    assert stored(objects) == LARGE
    place.close()
    client.close()
    service.end()


def test_a_disk_that_refuses_acknowledges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: DiskUploads = DiskPlace(tmp_path).uploads()
    uploads.append(NAME, 0, SMALL[:100])

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", refuse)
        with pytest.raises(StoreTrouble, match="No space left"):
            uploads.append(NAME, 100, SMALL[100:])
    assert uploads.length(NAME) == 100
    send([uploads], SMALL, 9999, start=100)
    assert finished(uploads, SMALL)


if __name__ == "__main__":
    victim(int(sys.argv[1]), sys.argv[2:])
