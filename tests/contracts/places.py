"""Places for objects and uploads, of each technology: made anew, opened twice, and reached from another process."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_dash.server.settings import S3Settings
from ml_dash.server.stores import Objects, Uploads
from ml_dash.server.stores.disk import DiskObjects
from ml_dash.server.stores.disk_uploads import DiskUploads
from ml_dash.server.stores.s3 import S3Objects
from ml_dash.server.stores.s3_uploads import S3Uploads
from tests.services import running
from tests.services.running import Service


@dataclass
class DiskPlace:
    """A folder."""

    folder: Path

    def objects(self) -> DiskObjects:
        """One more server's objects in this place."""
        return DiskObjects(self.folder / "objects")

    def uploads(self) -> DiskUploads:
        """One more server's uploads in this place."""
        return DiskUploads(self.folder / "staging", self.objects())

    def elsewhere(self) -> DiskObjects:
        """Objects in a place that is empty."""
        return DiskObjects(self.folder / uuid.uuid4().hex)

    def left(self) -> list[str]:
        """What is stored beside the objects."""
        return [path.name for path in (self.folder / "staging").glob("*.part")]

    def address(self) -> list[str]:
        """What another process needs to open it, see `opened`."""
        return ["disk", str(self.folder)]

    def close(self) -> None:
        """Let go of what was opened."""


@dataclass
class S3Place:
    """A bucket."""

    settings: S3Settings
    opened: list[S3Objects] = field(default_factory=list)

    def objects(self) -> S3Objects:
        """One more server's objects in this place."""
        return self._opened("")

    def uploads(self) -> S3Uploads:
        """One more server's uploads in this place."""
        return S3Uploads(self.objects())

    def elsewhere(self) -> S3Objects:
        """Objects in a place that is empty."""
        return self._opened(f"{uuid.uuid4().hex}/")

    def left(self) -> list[str]:
        """What is stored beside the objects, uploads in parts included."""
        client, name = self.client, self.settings.bucket
        stored = [found["Key"] for found in client.list_objects_v2(Bucket=name).get("Contents", ())]
        parts = [found["Key"] for found in client.list_multipart_uploads(Bucket=name).get("Uploads", ())]
        return [key for key in (*stored, *parts) if not key.startswith("objects/")]

    @property
    def client(self) -> Any:
        """The library's client, to look and to disturb."""
        return (self.opened[0] if self.opened else self.objects()).bucket.client

    def address(self) -> list[str]:
        """What another process needs to open it, see `opened`."""
        return ["s3", str(self.settings.endpoint), self.settings.bucket]

    def close(self) -> None:
        """Let go of what was opened."""
        for objects in self.opened:
            objects.close()

    def _opened(self, prefix: str) -> S3Objects:
        self.opened.append(S3Objects(self.settings, prefix))
        return self.opened[-1]


Place = DiskPlace | S3Place


def s3_place(service: Service, bucket: str) -> S3Place:
    """A bucket of a running service."""
    return S3Place(s3_settings(f"http://{service.address}", bucket))


def s3_settings(endpoint: str, bucket: str) -> S3Settings:
    """How to reach a bucket of the service that tests run."""
    return S3Settings(
        bucket, endpoint, running.REGION, path_style=True, access_key=running.ACCESS_KEY,
        secret_key=running.SECRET_KEY, public_url=endpoint,
    )  # fmt: skip


def opened(address: list[str]) -> tuple[Objects, Uploads]:
    """The same place in another process."""
    kind, where, *bucket = address
    place = DiskPlace(Path(where)) if kind == "disk" else S3Place(s3_settings(where, *bucket))
    uploads = place.uploads()
    return place.objects(), uploads
