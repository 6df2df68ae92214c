"""Copy files into UPLOADS atomically."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, Literal

import fsspec

from siglip_pipeline.errors import UploadNotFoundError, UploadsUnavailableError
from siglip_pipeline.files.opening import make_folder, open_file, open_named
from siglip_pipeline.files.private_files import make_folders, usual_mode
from siglip_pipeline.records import Upload
from siglip_pipeline.uploads.names import unusable
from siglip_pipeline.uploads.upload_store import UploadStore, sha256_of

Outcome = Literal["copied", "present", "conflict", "missing", "refused"]

COPY_BYTES: Final = 4 * 2**20
NO_FILE: Final = {errno.ENOENT, errno.EINVAL, errno.ENXIO}
# A link that leads out of a folder or in a circle, a file where a folder has to be, or a folder.
NO_PLACE: Final = {errno.EXDEV, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """The outcome of one file."""

    source: str
    video: str
    """Path below UPLOADS."""
    outcome: Outcome
    """``conflict``: another file of that name exists, and stays; ``missing``: no such source;
    ``refused``: its name is unusable, or its path leads out of UPLOADS."""

    @property
    def is_upload(self) -> bool:
        """Return whether the video lies in UPLOADS now."""
        return self.outcome in ("copied", "present")


def bring_in(
    paths: Iterable[Path],
    uploads: UploadStore,
    *,
    shard: str | None = None,
    replace: bool = False,
) -> Iterator[Ingested]:
    """Copy files, and all files below folders, into UPLOADS; existing files stay.

    A file keeps its name; a file in a folder keeps its path below that folder; both below the
    shard, if there is one. A copy appears under its name only when it is complete.

    Args:
        paths: files and folders of this machine.
        uploads: where they go.
        shard: the folder below UPLOADS that they go into; None: UPLOADS itself.
        replace: overwrite a different file of the same name instead of reporting a conflict.

    Yields:
        One outcome per file.
    """
    for path in paths:
        for source, name, opener in _files(path):
            video = f"{shard}/{name}" if shard else name
            outcome, video = _bring_in_file(source, video, uploads, opener, replace=replace)
            yield Ingested(source=str(source), video=video, outcome=outcome)


def _files(path: Path) -> Iterator[tuple[Path, str, Callable[[], BinaryIO]]]:
    """Yield files, their names below UPLOADS, and how each is opened."""
    if path.is_dir():
        ready, refused = UploadStore(path, settle_seconds=0).survey()
        for name in [*(file.path for file in ready), *(file.path for file in refused)]:
            # A folder may be untrusted: links in it must not lead out of it.
            yield path / name, name, partial(open_file, path, name)
    else:
        yield path, path.name, partial(open_named, path)


def _bring_in_file(
    source: Path,
    video: str,
    uploads: UploadStore,
    opener: Callable[[], BinaryIO],
    *,
    replace: bool,
) -> tuple[Outcome, str]:
    """Copy a file; return the outcome and its path below UPLOADS."""
    if unusable(video) is not None:
        return "refused", video
    try:
        file = opener()
    except OSError as error:
        if error.errno not in NO_FILE | NO_PLACE:
            raise
        return ("refused" if error.errno in NO_PLACE else "missing"), video
    with file:
        folder = uploads.folder
        if folder is not None and source.resolve().is_relative_to(folder.resolve()):
            return "present", source.resolve().relative_to(folder.resolve()).as_posix()
        there = _existing(uploads, video)
        if there is not None:
            same_size = there.size_bytes == os.fstat(file.fileno()).st_size
            if same_size and sha256_of(file) == uploads.sha256(video):
                return "present", video
            if not replace:
                return "conflict", video
            file.seek(0)
        try:
            _copy(file, uploads, video)
        except OSError as error:
            if error.errno not in NO_PLACE:
                raise
            return "refused", video
        return "copied", video


def _existing(uploads: UploadStore, video: str) -> Upload | None:
    try:
        return uploads.get(video)
    except UploadNotFoundError:
        return None


def _copy(file: BinaryIO, uploads: UploadStore, video: str) -> None:
    url = uploads.url
    if uploads.folder is None:
        try:
            fs, root = fsspec.core.url_to_fs(url.reveal())
            fs.put_file(f"/dev/fd/{file.fileno()}", f"{root.rstrip('/')}/{video}")
        except Exception as error:  # each storage has exceptions of its own
            raise UploadsUnavailableError(
                f"{video}: cannot be written to {url}: {url.masked(error)}; check that it exists "
                "and that the credentials allow writing"
            ) from url.masked_error(error)
        return
    make_folders(uploads.folder)
    above, _, name = video.rpartition("/")
    folder = make_folder(uploads.folder, above, usual_mode(0o777))
    # Hidden names are not uploads, so the sensor ignores the copy until it is complete. The
    # file's own name may leave no room for a suffix.
    draft = f".{uuid.uuid4().hex}.part"
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as copy:
            shutil.copyfileobj(file, copy, COPY_BYTES)
            os.fchmod(copy.fileno(), usual_mode(0o666))
        os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)
        os.close(folder)
