"""Files: added by content, listed, fetched, replaced, deleted; and helpers for content."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .errors import ChecksumMismatch, InvalidInput, InvalidValue, NotFound, StorageError, UnsupportedType
from .events import FILE, FILE_DELETE, FILE_UPDATE, file_added
from .names import check_filename, check_prefix, shown
from .values import utc_text

if TYPE_CHECKING:
    from typing_extensions import Self

    from .blobs import Stored
    from .experiment import Experiment
    from .records import DeletedFile, FileRecord
    from .run import Run
    from .view import View

PathText = str | os.PathLike[str]
_ARGUMENTS = frozenset(("file_path", "file_prefix", "file_id", "dest_path", "description", "tags", "metadata"))
_DEFAULT_TYPE = "application/octet-stream"


def compute_sha256(path: PathText) -> str:
    """SHA-256 of a file's content, in lower-case hex; memory stays flat."""
    from .blobs import digest_of

    return digest_of(Path(path))


def get_mime_type(path: PathText) -> str:
    """The MIME type that a file's name suggests; `application/octet-stream` where it suggests none."""
    import mimetypes

    return mimetypes.guess_type(os.fspath(path), strict=False)[0] or _DEFAULT_TYPE


def verify_checksum(path: PathText, hex_digest: str) -> bool:
    """Does the file's content have this SHA-256 (in hex, any case)?"""
    return compute_sha256(path) == hex_digest.lower()


class FileEntry(dict[str, Any]):
    """A file's record: `{id, experimentId, path, prefix, filename, description, tags, contentType, sizeBytes,
    checksum, metadata, uploadedAt, updatedAt, deletedAt}`.
    """

    def save(self) -> Self:
        """Itself: the file was added when the record was made."""
        return self


def file_builder(
    handle: Experiment, source: PathText | None, prefix: str | None, arguments: dict[str, Any]
) -> FileEntry | FileBuilder:
    """What `experiment.file(...)` returns: a record when a path was given by position, else a builder."""
    unknown = arguments.keys() - _ARGUMENTS
    if unknown:
        raise UnsupportedType(f"file() has no argument {sorted(unknown)[0]!r}", hint=f"it has {sorted(_ARGUMENTS)}")
    second = arguments.pop("file_prefix", None)
    if prefix is not None and second is not None and prefix != second:
        raise InvalidValue(f"prefix is {prefix!r} and file_prefix is {second!r}", hint="they are one argument: give one")
    named = arguments.pop("file_path", None)
    if source is not None and named is not None:
        raise InvalidValue(f"two sources were given: {source!r} and file_path={named!r}", hint="give one")
    builder = FileBuilder(handle, source if source is not None else named, prefix if prefix is not None else second, **arguments)
    return builder.save() if source is not None else builder


class FileBuilder:
    """Adds, lists, fetches, changes or deletes files of one experiment."""

    def __init__(
        self,
        handle: Experiment,
        source: PathText | None,
        prefix: str | None,
        *,
        file_id: str | None = None,
        dest_path: PathText | None = None,
        description: str | None = None,
        tags: list[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._handle = handle
        self._source = source
        self._prefix = prefix
        self._file_id = file_id
        self._dest_path = dest_path
        self._tags = tags
        self._given = handle._checked_given(description, tags, None, metadata)

    # -- add ---------------------------------------------------------------------------------------------------------

    def save(self) -> FileEntry:
        """Add the file: its content is copied, hashed and synced, then recorded. Returns its record.

        A live file with the same prefix and name is replaced. Raises InvalidValue for no source, no such file, no
        regular file, over 5 GB, `..` in the prefix or a path that is another file's folder; WriteProtected. When the
        disk refuses, the file counts as lost: a warning now, StorageError at close (with `strict` at once).
        """
        run = self._handle._changeable_run()
        if self._source is None:
            raise InvalidValue("no file was named", hint='use experiment.file("model.pth", prefix="/models")')
        source = _source_path(self._source)
        path = "/" if self._prefix is None else self._prefix
        prefix, filename = check_prefix(path), check_filename(source.name)
        with self._handle._looking() as view:
            _refuse_clash(view, prefix, filename)
        from . import blobs

        try:
            stored = blobs.store(source, run.located.journal, run.writer.id)
        except OSError as error:
            if isinstance(error, InvalidInput):
                raise
            return self._not_stored(run, path, filename, error)
        try:
            return self._record(run, stored, path, prefix, filename)
        except OSError as error:
            return self._not_stored(run, path, filename, error)
        finally:
            blobs.discard(stored)

    def _record(self, run: Run, stored: Stored, path: str, prefix: str, filename: str) -> FileEntry:
        from .blobs import publish
        from .names import file_id

        body = file_added(
            path=path,
            prefix=prefix,
            filename=filename,
            size_bytes=stored.size_bytes,
            checksum=stored.digest,
            content_type=get_mime_type(filename),
            given=self._given,
        )
        writer = run.writer
        seq, _ = writer.append_with_blob(FILE, body, lambda seq: publish(stored, run.located.journal, writer.id, seq))
        identity = file_id(bytes.fromhex(writer.id), seq)
        with self._handle._looking() as view:
            return FileEntry(_find(view, identity, deleted=True))

    def _not_stored(self, run: Run, path: str, filename: str, error: OSError) -> FileEntry:
        """The disk refused: in strict mode raise, else tell, count, and let training go on."""
        reason = error.strerror or str(error)
        if self._handle._strict:
            raise StorageError(
                f"could not store file {shown(filename)} in {run.located.journal}: {reason}; nothing was recorded",
                hint="free space or mend the disk, then add it again",
            ) from error
        run.writer.count_lost()
        from .run import log

        log.warning(
            "ml-dash: file %s was NOT recorded: %s. Training goes on; add it again once the disk takes it.", filename, reason
        )
        now = utc_text(run.writer.created_ns)
        return FileEntry(
            id="", experimentId=self._handle.id, path=path, prefix=path.rstrip("/") + "/", filename=filename,
            description=self._given.get("description"), tags=self._given.get("tags"), contentType=get_mime_type(filename),
            sizeBytes=0, checksum="", metadata=self._given.get("metadata"), uploadedAt=now, updatedAt=now, deletedAt=now,
            lost=True,
        )  # fmt: skip

    # -- the rest ----------------------------------------------------------------------------------------------------

    def list(self) -> list[FileRecord]:
        """Records of files that are not deleted, oldest first; of a prefix (whole path parts), with any of the tags."""
        prefix = check_prefix(self._prefix) if self._prefix is not None else ""
        with self._handle._looking() as view:
            return view.files(prefix=prefix, tags=_tag_list(self._tags))

    def download(self) -> str:
        """Copy the content to `dest_path` (default: its name in the working directory); the path of the copy.

        SHA-256 is checked; a bad copy is removed and ChecksumMismatch raised. NotFound for an unknown or deleted file.
        """
        with self._handle._looking() as view:
            record = _find(view, self._wanted_id())
            file = view.state.files[record["id"]]
        target = Path(self._dest_path).expanduser() if self._dest_path is not None else Path(record["filename"])
        if target.is_dir():
            target = target / record["filename"]
        run, reading = self._handle._run, self._handle._reading
        located = run.located if run is not None else reading
        assert located is not None
        from .journal.segment import BLOBS

        _copy_checked(located.journal / BLOBS / file.blob, target, record["checksum"])
        return str(target)

    def delete(self) -> DeletedFile:
        """Delete the file: `{id, deletedAt}`. NotFound for an unknown or deleted one; WriteProtected."""
        run = self._handle._changeable_run()
        with self._handle._looking() as view:
            identity = _find(view, self._wanted_id())["id"]
        run.writer.append(FILE_DELETE, {"id": identity})
        with self._handle._looking() as view:
            record = _find(view, identity, deleted=True)
        return cast("DeletedFile", {"id": identity, "deletedAt": record["deletedAt"]})

    def update(self) -> FileRecord:
        """Change description, tags or metadata; what is not given stays. The new record."""
        run = self._handle._changeable_run()
        with self._handle._looking() as view:
            identity = _find(view, self._wanted_id())["id"]
        if self._given:
            run.writer.append(FILE_UPDATE, {"id": identity, **self._given})
        with self._handle._looking() as view:
            return _find(view, identity)

    def _wanted_id(self) -> str:
        if not isinstance(self._file_id, str) or not self._file_id:
            raise InvalidValue(f"file_id is {self._file_id!r}", hint="use the id of a record, as file_id=record['id']")
        return self._file_id


def _tag_list(tags: Any) -> list[str] | None:
    return [tags] if isinstance(tags, str) else tags


def _source_path(source: object) -> Path:
    if not isinstance(source, (str, os.PathLike)):
        raise UnsupportedType(f"the file is {type(source).__name__}, expected a path")
    text = os.fspath(source)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidValue(f"file {text!r} is not a path")
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        raise InvalidValue(f"file {text!r} is a folder", hint="add the files in it one by one")
    return path


def _find(view: View, identity: str, *, deleted: bool = False) -> FileRecord:
    from .records import file_record

    file = view.state.files.get(identity)
    if file is None or (not file.live and not deleted):
        state = "was deleted or replaced" if file is not None else "is unknown"
        raise NotFound(f"file {identity} {state} in {view.state.project}/{view.state.name}", hint="see file().list()")
    return file_record(view.state, file)


def _refuse_clash(view: View, prefix: str, filename: str) -> None:
    place = f"{prefix}/{filename}" if prefix else filename
    for file in view.state.files.values():
        if file.live and (file.place.startswith(place + "/") or place.startswith(file.place + "/")):
            raise InvalidValue(
                f"file {shown(place)} clashes with {shown(file.place)}: one would be the folder of the other",
                hint="use another prefix",
            )


def _copy_checked(blob: Path, target: Path, checksum: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name[:200]}.{os.getpid():x}.part")
    try:
        shutil.copyfile(blob, temporary)
        found = compute_sha256(temporary)
        if found != checksum:
            raise ChecksumMismatch(
                f"the content of {shown(target.name)} has SHA-256 {found}, recorded was {checksum}; the copy was removed",
                hint="run: ml-dash verify",
            )
        os.replace(temporary, target)
    except FileNotFoundError as error:
        if blob.exists():
            raise
        raise NotFound(f"the content of {shown(target.name)} is not in the journal", hint="run: ml-dash verify") from error
    finally:
        temporary.unlink(missing_ok=True)
