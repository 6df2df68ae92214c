"""Store sampled frames: one Parquet file per video, in a folder or bucket.

Files are written under a temporary name and moved, so readers see complete files only. Files have
the permissions of the store's folder; a folder that is created here is open only to its user.
"""

import contextlib
import hashlib
import os
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import fsspec
import numpy as np
import pyarrow as pa

from siglip_pipeline.errors import (
    NO_ROOM,
    DamagedFramesError,
    FrameStoreError,
    StorageFullError,
)
from siglip_pipeline.files.flushing import to_disk
from siglip_pipeline.records import FrameBatch, VideoInfo
from siglip_pipeline.text.secret import SecretUrl
from siglip_pipeline.uploads.names import percent_encoded, unusable
from siglip_pipeline.uploads.upload_store import BUCKET_PROTOCOLS
from siglip_pipeline.video.contact_sheet import contact_sheet, evenly_spaced
from siglip_pipeline.video.frame_file import (
    FrameFile,
    FrameFileMetadata,
    FrameFileWriter,
    FrameRow,
    StoredFrame,
    is_being_written,
    new_file,
    no_room,
)

__all__ = ["FrameFileMetadata", "FrameStore", "StoredFrame"]

SUFFIX: Final = ".frames.parquet"

# fsspec reads *?[] as patterns, and some storages read # as a fragment. A folder must not have the
# name of another video's frame file.
_UNSAFE: Final = re.compile(r"[*?\[\]#]|\.(?=frames\.parquet/)")

# File systems allow 255 bytes for a name; object stores allow 1,024 for all of a key.
_LONGEST_PART, _LONGEST_PATH = 240, 600


class FrameStore:
    """Frame files below a folder or fsspec URL, one per video.

    Args:
        url: folder, or any URL that fsspec understands.
        storage_options: passed to the fsspec file system.

    Raises:
        FrameStoreError: no file system is installed for this kind of URL.
    """

    def __init__(
        self, url: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None
    ) -> None:
        self._url = SecretUrl.of(url)
        try:
            self._fs, root = fsspec.core.url_to_fs(self._url.reveal(), **(storage_options or {}))
        except Exception as error:  # each storage raises its own exceptions
            raise FrameStoreError(
                f"SIGLIP_FRAME_STORE={self._url}: {self._url.masked(error)}; use a folder or an "
                "fsspec URL"
            ) from self._url.masked_error(error)
        self._root = root.rstrip("/")
        protocol = self._fs.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self._local = "file" in self._protocols

    def __repr__(self) -> str:
        return f"FrameStore({str(self._url)!r})"

    @property
    def url(self) -> SecretUrl:
        """The folder or URL as it was given."""
        return self._url

    def address(self, video: str) -> str:
        """Return the URL of the file of a video's frames, without credentials."""
        return self._url.masked(self._fs.unstrip_protocol(self._path(video)))

    def write(
        self,
        video: str,
        info: VideoInfo,
        frames: Iterable[StoredFrame],
        *,
        source_sha256: str,
        sampling: str,
        decoder_version: str,
    ) -> FrameFileMetadata:
        """Store the frames of a video, replacing what was stored before."""
        draft = self.new_draft()
        try:
            with new_file(draft) as file:
                writer = FrameFileWriter(file, folder=draft.parent)
                try:
                    for frame in frames:
                        writer.add(frame)
                    metadata = writer.close(
                        info,
                        source_sha256=source_sha256,
                        sampling=sampling,
                        decoder_version=decoder_version,
                    )
                except BaseException:
                    writer.abort()
                    raise
            self.publish(video, draft)
        finally:
            draft.unlink(missing_ok=True)
        return metadata

    def new_draft(self) -> Path:
        """Return a new local file name to write to; in the store's folder if that is local.

        Raises:
            FrameStoreError: the folder cannot be made.
        """
        try:
            folder = self._drafts
            if self._local:
                self._make_folder(folder)
        except OSError as error:
            raise self.refused(Path(self._root), error) from error
        return folder / f"{uuid.uuid4().hex}.parquet"

    def refused(self, folder: Path, error: OSError) -> FrameStoreError:
        """Return the error to raise when the system refuses a draft."""
        if error.errno in NO_ROOM:
            return StorageFullError(no_room(folder, error))
        return FrameStoreError(
            f"SIGLIP_FRAME_STORE={self._url}: {error}; give a folder that can be written"
        )

    @property
    def _drafts(self) -> Path:
        if self._local:
            return Path(self._root) / ".drafts"
        return _temporary_drafts()

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of the store, and those above it, durably."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        root = Path(self._root)
        with contextlib.suppress(FileExistsError):  # another process was faster
            folder.mkdir(mode=0o700)
            if folder.is_relative_to(root) and folder != root:
                folder.chmod(stat.S_IMODE(root.stat().st_mode))
        to_disk(folder.parent)

    def remove_abandoned_drafts(self, *, older_than_seconds: float) -> int:
        """Remove drafts of processes that were killed; return their number.

        Args:
            older_than_seconds: time since the last write; drafts being written always stay.
        """
        removed = 0
        for draft in self._drafts.glob("*.parquet"):
            with contextlib.suppress(FileNotFoundError):
                # After the clock was set forward, a draft that is being written looks old.
                old = time.time() - draft.stat().st_mtime > older_than_seconds
                if old and not is_being_written(draft):
                    draft.unlink()
                    removed += 1
        return removed

    def publish(self, video: str, draft: Path) -> None:
        """Move a complete draft to its place. A reader sees the old file or the new one.

        Raises:
            FrameStoreError: the storage failed.
        """
        target = self._path(video)
        try:
            if self._local:
                folder = Path(target).parent
                self._make_folder(folder)
                draft.chmod(Path(self._root).stat().st_mode & 0o666)
                to_disk(draft)
                draft.replace(target)
                to_disk(folder)
            elif self._protocols & BUCKET_PROTOCOLS:
                # A put is atomic; a move would copy the file once more.
                self._fs.put_file(str(draft), target)
            else:
                temporary = f"{target}.{uuid.uuid4().hex}.tmp"
                self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(draft), temporary)
                self._fs.mv(temporary, target)
        except Exception as error:  # each storage raises its own exceptions
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise StorageFullError(no_room(Path(str(self._url)), error)) from error
            raise FrameStoreError(
                f"{video}: frames cannot be written to {self._url}: {self._url.masked(error)}; "
                "check its space and permissions"
            ) from self._url.masked_error(error)

    def copy(self, source: str, target: str) -> None:
        """Give a video the stored frames of another one with the same content.

        Raises:
            FrameStoreError: none are stored, or the storage failed.
        """
        try:
            if self._local:
                draft = self.new_draft()
                try:
                    # Frame files are replaced, never changed, so two names may share one.
                    os.link(self._path(source), draft)
                    self.publish(target, draft)
                finally:
                    draft.unlink(missing_ok=True)
            else:
                self._fs.cp_file(self._path(source), self._path(target))
        except FrameStoreError:
            raise
        except Exception as error:  # each storage raises its own exceptions
            raise FrameStoreError(
                f"the frames of {source} in {self._url} cannot be given to {target}: "
                f"{self._url.masked(error)}"
            ) from self._url.masked_error(error)

    def exists(self, video: str) -> bool:
        """Return whether frames of this video are stored.

        Raises:
            FrameStoreError: the storage does not answer.
        """
        path = self._path(video)
        try:
            if not self._local:
                self._fs.invalidate_cache()
            return bool(self._fs.exists(path))
        except Exception as error:  # each storage raises its own exceptions
            raise FrameStoreError(
                f"{video}: its frames cannot be looked up in {self._url}: "
                f"{self._url.masked(error)}; try again"
            ) from self._url.masked_error(error)

    def metadata(self, video: str) -> FrameFileMetadata:
        """Return the metadata in the file's footer, without reading pictures.

        Raises:
            FrameStoreError: no frames are stored, the file is damaged or too new.
        """
        with self._open(video) as file:
            return file.metadata

    def read(self, video: str, *, batch_size: int = 64) -> Iterator[FrameBatch]:
        """Yield the frames in time order, ``batch_size`` at a time, with one row group in memory.

        Raises:
            FrameStoreError: no frames are stored, the file is damaged or too new.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; it must be at least 1")
        with self._open(video) as file:
            pending: list[FrameRow] = []
            for row in file.rows():
                pending.append(row)
                if len(pending) == batch_size:
                    yield _batch(video, pending)
                    pending = []
            if pending:
                yield _batch(video, pending)

    def verify(self, video: str) -> FrameFileMetadata:
        """Read the whole file of a video, verify its checksums, and return its metadata.

        Raises:
            FrameStoreError: no frames are stored, or the file is too new.
            DamagedFramesError: its content differs from what was written.
        """
        with self._open(video) as file:
            for _ in file.rows():
                pass
            return file.metadata

    def thumbnail(self, video: str, frame_index: int) -> bytes:
        """Return the JPEG of one stored frame; reads the footer and one row group.

        Raises:
            FrameStoreError: no such video or frame is stored.
        """
        with self._open(video) as file:
            return file.jpeg(frame_index)

    def contact_sheet(
        self, video: str, *, max_thumbnails: int = 12, max_bytes: int = 60_000
    ) -> bytes:
        """Return at most ``max_thumbnails`` frames, evenly spaced, as one JPEG.

        Raises:
            FrameStoreError: no frames are stored, the file is damaged or too new.
        """
        with self._open(video) as file:
            chosen = evenly_spaced(file.frame_index_N, max_thumbnails)
            return contact_sheet([file.jpeg(index) for index in chosen], max_bytes=max_bytes)

    def delete(self, video: str) -> None:
        """Remove the frames of a video, if there are any.

        Raises:
            FrameStoreError: the storage failed.
        """
        path = self._path(video)
        try:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(path)
        except Exception as error:  # each storage raises its own exceptions
            raise FrameStoreError(
                f"{video}: its frames cannot be removed from {self._url}: "
                f"{self._url.masked(error)}; try again"
            ) from self._url.masked_error(error)

    def _path(self, video: str) -> str:
        """Return the path of a video's frame file, unique for every name.

        Raises:
            FrameStoreError: the name cannot be the path of a video.
        """
        if (reason := unusable(video)) is not None:
            raise FrameStoreError(f"{video!r} is not the path of a video below UPLOADS: {reason}")
        path = percent_encoded(video, _UNSAFE) + SUFFIX
        parts = [os.fsencode(part) for part in path.split("/")]
        if sum(map(len, parts)) > _LONGEST_PATH or len(max(parts, key=len)) > _LONGEST_PART:
            # No other path begins with this: any other % is followed by two hexadecimal digits.
            path = f"%long/{hashlib.sha256(video.encode()).hexdigest()}{SUFFIX}"
        return f"{self._root}/{path}"

    @contextlib.contextmanager
    def _open(self, video: str) -> Iterator["FrameFile"]:
        path = self._path(video)
        try:
            handle = self._fs.open(path, "rb", **({} if self._local else {"cache_type": "none"}))
        except FileNotFoundError as error:
            raise FrameStoreError(
                f"{video}: no frames are stored in {self._url}; materialize video_frames first"
            ) from self._url.masked_error(error)
        except Exception as error:  # each storage raises its own exceptions
            raise FrameStoreError(
                f"{video}: its frames cannot be opened in {self._url}: {self._url.masked(error)}; "
                "try again"
            ) from self._url.masked_error(error)
        with handle:
            try:
                file = FrameFile(video, _Stored(video, handle, self._url))
                yield file
            except (pa.ArrowException, OSError) as error:
                raise DamagedFramesError(
                    f"{video}: its frame file {self._url.masked(path)} is damaged "
                    f"({self._url.masked(error)}); materialize video_frames again"
                ) from self._url.masked_error(error)


class _Stored:
    """A file in the storage whose read errors are kept apart from damage of its content."""

    def __init__(self, video: str, file: Any, url: SecretUrl) -> None:
        self._video, self._file, self._url = video, file, url

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._file.read(size))
        except Exception as error:  # each storage raises its own exceptions
            raise FrameStoreError(
                f"{self._video}: its frames cannot be read from {self._url}: "
                f"{self._url.masked(error)}; try again"
            ) from self._url.masked_error(error)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def close(self) -> None:
        self._file.close()


def _temporary_drafts() -> Path:
    """Return this user's folder of drafts below the system's temporary folder.

    Its name is fixed, so that drafts of killed processes are found again. A folder that another
    user has created is refused.

    Raises:
        FrameStoreError: it is a link, belongs to another user, or is open to others.
    """
    folder = Path(tempfile.gettempdir()) / f"siglip-frames-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not is_ours or status.st_mode & 0o022:
        raise FrameStoreError(
            f"{folder} is no folder of this user alone: another user may have made it; remove it, "
            "or set TMPDIR to a folder of your own"
        )
    folder.chmod(0o700)  # earlier versions let others read it
    return folder


def _batch(video: str, rows: list[FrameRow]) -> FrameBatch:
    indices, pts, seconds, jpegs = zip(*rows, strict=True)
    return FrameBatch(
        video=video,
        frame_index_N=np.array(indices, np.int64),
        pts_N=np.array(pts, np.int64),
        time_seconds_N=np.array(seconds, np.float64),
        jpegs=tuple(jpegs),
    )
