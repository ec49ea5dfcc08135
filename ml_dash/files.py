"""Files of an experiment: added by content, listed, fetched, replaced, deleted; and helpers for content."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, cast

from .core.events import FILE, FILE_DELETE, FILE_UPDATE, file_added
from .core.names import check_filename, check_prefix, file_id, shown
from .core.times import utc_text
from .errors import ChecksumMismatch, InvalidValue, NotFound, StorageError, UnsupportedType, WriterGone
from .recording.lifecycle import checked_given, checked_tags

if TYPE_CHECKING:
    from typing_extensions import Self

    from .core.records import DeletedFile, FileRecord
    from .journal.blobs import Stored
    from .reading.view import View
    from .recording.lifecycle import Handle
    from .recording.run import Run

log = logging.getLogger("ml_dash")

PathText = str | os.PathLike[str]
_DEFAULT_TYPE: Final = "application/octet-stream"
_SEPARATORS: Final = ("/", os.sep)


def compute_sha256(path: PathText) -> str:
    """Return the SHA-256 of a file's content, in lower-case hex; the file is read in blocks."""
    from .journal.blobs import digest_of

    return digest_of(Path(path))


def get_mime_type(path: PathText) -> str:
    """Return the MIME type that a file's name suggests; `application/octet-stream` if it suggests none."""
    import mimetypes

    return mimetypes.guess_type(os.fspath(path), strict=False)[0] or _DEFAULT_TYPE


def verify_checksum(path: PathText, hex_digest: str) -> bool:
    """True if the file's content has this SHA-256 (in hex, upper or lower case)."""
    return compute_sha256(path) == hex_digest.lower()


class FileEntry(dict[str, Any]):
    """A file's record: `{id, experimentId, path, prefix, filename, description, tags, contentType, sizeBytes,
    checksum, metadata, uploadedAt, updatedAt, deletedAt}`.
    """

    def save(self) -> Self:
        """Return the record itself: the file was added when the record was made."""
        return self


def one_source(
    source: PathText | None, file_path: PathText | None, file_prefix: PathText | None, file_id: str | None
) -> PathText | None:
    """Return the path of the file, from whichever argument has it; None if none has, or `file_id` is given.

    Raises InvalidValue, naming the arguments, if there is more than one.
    """
    what = source if source is not None else file_path
    if callable(getattr(what, "savefig", None)):
        message = "the source is a figure, expected the path of a file"
        raise UnsupportedType(message, hint="save it first: figure.savefig('a.png'), then file('a.png')")
    paths = {"a path": source, "file_path": file_path, "file_prefix": file_prefix}
    given = {name: value for name, value in (*paths.items(), ("file_id", file_id)) if value is not None}
    if len(given) > 1:
        shown_all = " and ".join(f"{name} ({value!r:.80})" for name, value in given.items())
        raise InvalidValue(f"more than one source was given: {shown_all}", hint="give one of them")
    return next((value for value in paths.values() if value is not None), None)


class FileBuilder:
    """Adds, lists, fetches, changes or deletes files of one experiment."""

    def __init__(
        self,
        handle: Handle,
        source: PathText | None,
        prefix: PathText | None,
        file_id: str | None,
        dest_path: PathText | None,
        description: str | None,
        tags: list[str] | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        self._handle = handle
        self._source = source
        self._prefix = os.fspath(prefix) if isinstance(prefix, os.PathLike) else prefix
        self._file_id = file_id
        self._dest_path = dest_path
        self._tags = checked_tags(tags)
        self._given = checked_given(description, tags, None, metadata, handle.warn)

    # -- add ---------------------------------------------------------------------------------------------------------

    def save(self) -> FileEntry:
        """Add the file, and return its record: the content is copied, hashed and synced, then the event is recorded.

        A current file with the same prefix and name is replaced. Raises InvalidValue for no source, a file that is
        absent, not regular or over 5 GB, `..` in the prefix, or a path that is another file's folder; WriteProtected.
        If the disk refuses, the file counts as lost: a warning now, StorageError at close (at once with `strict`).
        """
        run = self._handle.session.changeable()
        if self._source is None:
            raise InvalidValue("no file was named", hint='use experiment.file("model.pth", prefix="/models")')
        source = _path("the file", self._source)
        path = "/" if self._prefix is None else self._prefix
        prefix, filename = check_prefix(path), check_filename(source.name)
        from .journal import blobs

        try:
            with self._handle.session.looking() as view:
                _refuse_clash(view, prefix, filename)
            stored = blobs.store(source, run.located.journal, run.writer.id)
        except OSError as error:
            return self._not_stored(run, path, filename, error)
        try:
            return self._record(run, stored, path, prefix, filename)
        except OSError as error:
            return self._not_stored(run, path, filename, error)
        except WriterGone:
            self._handle.session.refuse()
        finally:
            blobs.discard(stored)

    def _record(self, run: Run, stored: Stored, path: str, prefix: str, filename: str) -> FileEntry:
        from .journal.blobs import publish

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
        try:
            with self._handle.session.looking() as view:
                return FileEntry(_find(view, identity, deleted=True))
        except NotFound:
            # The disk refused the event: it waits in memory, while its content is stored.
            return self._entry(run, path, filename, id=identity, sizeBytes=stored.size_bytes, checksum=stored.digest)

    def _not_stored(self, run: Run, path: str, filename: str, error: OSError) -> FileEntry:
        """Raise StorageError in strict mode; else log a warning, count the file as lost, and return a record for it."""
        reason = error.strerror or str(error)
        if self._handle.arguments.strict:
            raise StorageError.of(
                error,
                f"could not store file {shown(filename)} in {run.located.journal}: {reason}; nothing was recorded",
                hint="free space or mend the disk, then add it again",
            ) from error
        run.writer.count_lost()
        log.warning(
            "ml-dash: file %s was NOT recorded: %s. Training goes on; add it again once the disk takes it.",
            shown(filename), reason,
        )  # fmt: skip
        return self._entry(run, path, filename, id="", sizeBytes=0, checksum="", lost=True)

    def _entry(self, run: Run, path: str, filename: str, **known: Any) -> FileEntry:
        """Return a record of a file that is not in the journal, or not yet."""
        now = utc_text(time_ns())
        given: dict[str, Any] = dict.fromkeys(("description", "tags", "metadata")) | self._given
        return FileEntry(
            id=known.pop("id"),
            experimentId=self._handle.id,
            path=path,
            prefix=path.rstrip("/") + "/",
            filename=filename,
            contentType=get_mime_type(filename),
            uploadedAt=now,
            updatedAt=now,
            deletedAt=now if "lost" in known else None,
            **given,
            **known,
        )

    # -- the rest ----------------------------------------------------------------------------------------------------

    def list(self) -> list[FileRecord]:
        """Return records of current files, oldest first; of a prefix (whole path parts), with any of the tags."""
        prefix = check_prefix(self._prefix) if self._prefix is not None else ""
        with self._handle.session.looking() as view:
            return view.files(prefix=prefix, tags=self._tags)

    def download(self) -> str:
        """Copy the content to `dest_path` (default: its name in the working directory); return the path of the copy.

        Raises ChecksumMismatch for a wrong SHA-256, and removes the copy; NotFound for an unknown or deleted file;
        ReleasedData if only a server has the content.
        """
        from .journal.segment import BLOBS

        identity = self._wanted_id()
        with self._handle.session.looking() as view:
            record = _find(view, identity)
            name = view.state.files[identity].blob
            blob = self._handle.session.located().journal / BLOBS / name
            if not blob.exists() and (away := view.released(name, record["filename"])) is not None:
                raise away
        target = _path("dest_path", self._dest_path) if self._dest_path is not None else Path(record["filename"])
        if target.is_dir() or (self._dest_path is not None and os.fspath(self._dest_path).endswith(_SEPARATORS)):
            target = target / record["filename"]
        _copy_checked(blob, target, record["checksum"])
        return str(target)

    def delete(self) -> DeletedFile:
        """Delete the file, and return `{id, deletedAt}`. Raises NotFound if there is none; WriteProtected."""
        self._change(FILE_DELETE, {})
        with self._handle.session.looking() as view:
            record = _find(view, self._wanted_id(), deleted=True)
        return {"id": record["id"], "deletedAt": record["deletedAt"] or utc_text(time_ns())}

    def update(self) -> FileRecord:
        """Change description, tags or metadata, those that are given; return the new record."""
        run = self._handle.session.changeable()
        self._change(FILE_UPDATE, self._given)
        with self._handle.session.looking() as view:
            record = _find(view, self._wanted_id())
        if run.writer.waiting:
            # The change waits in memory for the disk: the view does not have it.
            return cast("FileRecord", {**record, **self._given})
        return record

    def _change(self, kind: int, change: dict[str, Any]) -> None:
        self._handle.session.changeable()
        identity = self._wanted_id()
        with self._handle.session.looking() as view:
            _find(view, identity)
        if change or kind == FILE_DELETE:
            self._handle.record(kind, {"id": identity, **change})

    def _wanted_id(self) -> str:
        if not isinstance(self._file_id, str) or not self._file_id:
            raise InvalidValue(f"file_id is {self._file_id!r}", hint="use the id of a record, as file_id=record['id']")
        return self._file_id


def _path(argument: str, value: object) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise UnsupportedType(
            f"{argument} is {type(value).__name__}, expected a path",
            hint='write it to a file first, then: experiment.file("plot.png", prefix="/plots")',
        )
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidValue(f"{argument} is {text[:80]!a}, which is no path", hint="give the path of a file")
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises where there is no home


def _find(view: View, identity: str, *, deleted: bool = False) -> FileRecord:
    from .core.records import file_record

    file = view.state.files.get(identity)
    if file is None or (not file.live and not deleted):
        state = "was deleted or replaced" if file is not None else "is unknown"
        raise NotFound(f"file {identity} {state} in {view.state.project}/{view.state.name}", hint="see file().list()")
    return file_record(view.state, file)


def _refuse_clash(view: View, prefix: str, filename: str) -> None:
    file = view.clashing(prefix, filename)
    if file is not None:
        place = f"{prefix}/{filename}" if prefix else filename
        raise InvalidValue(
            f"file {shown(place)} clashes with {shown(file.place)}: one would be the folder of the other",
            hint="use another prefix",
        )


def _copy_checked(blob: Path, target: Path, checksum: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.urandom(8).hex()}.part")
    try:
        import shutil  # 2 ms that only a copy needs

        shutil.copyfile(blob, temporary)
        digest = compute_sha256(temporary)
        if digest != checksum:
            raise ChecksumMismatch(
                f"the content of {shown(target.name)} has SHA-256 {digest}, recorded was {checksum}; the copy was "
                "removed",
                hint="run: ml-dash verify",
            )
        os.replace(temporary, target)
    except FileNotFoundError as error:
        if blob.exists():
            raise
        what = f"the content of {shown(target.name)} is not in the journal"
        raise NotFound(what, hint="run: ml-dash verify") from error
    finally:
        temporary.unlink(missing_ok=True)
