"""Uploads: what lies below UPLOADS, and how to read it.

A listing asks the storage for names, sizes and times and never opens a file. Any fsspec URL
works (``s3://``, ``gs://``, ``http://``, ``memory://``); local folders are walked directly, since
only there are symlinks and half-written files a concern.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from siglip_pipeline.errors import (
    UploadError,
    UploadNotFoundError,
    UploadsUnavailableError,
    UploadsUrlError,
)
from siglip_pipeline.files.opening import open_file, stat_file
from siglip_pipeline.records import Refused, Upload
from siglip_pipeline.text.secret import SecretUrl
from siglip_pipeline.uploads.listing import (
    local_upload,
    local_uploads,
    remote_upload,
    remote_uploads,
)
from siglip_pipeline.uploads.names import same_name, unusable

BUCKET_PROTOCOLS: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az"})
"""Storages without folders: a prefix exists only with the first file below it."""

WHOLE_FILE_PROTOCOLS: Final = BUCKET_PROTOCOLS | {"http", "https", "memory"}
"""Storages in which a file appears whole: nothing is ever seen half written."""

S3_VERSION: Final = "?versionId="
"""Text at which s3fs splits a name."""

# Errors of the system for a link that leads out or in a circle, a folder, or a pipe.
_NO_UPLOAD: Final = {errno.EXDEV, errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENXIO}

READ_BLOCK_BYTES: Final = 4 * 2**20
"""Size of one read from remote storage: large enough to hide a round trip."""


class UploadStore:
    """A folder or bucket that uploads arrive in.

    Picklable, so that another process can list the same uploads.

    Args:
        url: folder, or any URL that fsspec understands.
        shard: a folder below it; nothing outside it is listed or found. Paths stay
            relative to the URL. None: everything.
        settle_seconds: a file that changed more recently is left for a later listing. It has no
            effect on object stores, where a file appears whole.
        storage_options: passed to the fsspec file system.

    Raises:
        UploadsUrlError: no file system is installed for this kind of URL.
        UploadsUnavailableError: its file system could not be opened.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        shard: str | None = None,
        settle_seconds: float = 10.0,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self._url = SecretUrl.of(url)
        self._shard = shard
        self._settle_seconds = settle_seconds
        self._storage_options = storage_options or {}
        self._fs: Any = None
        self._root = ""
        self._protocols: set[str] = set()
        self._folder = self._url.folder and self._url.folder.expanduser().absolute()
        if self._folder is None:
            self._open_storage()

    def _open_storage(self) -> None:
        import fsspec  # takes hundredths of a second, which a local folder does without

        try:
            self._fs, self._root = fsspec.core.url_to_fs(
                self._url.reveal(), **self._storage_options
            )
        except Exception as error:  # each storage has exceptions of its own
            unknown = isinstance(error, (ValueError, ImportError))
            raise (UploadsUrlError if unknown else UploadsUnavailableError)(
                f"SIGLIP_UPLOADS={self._url}: {self._url.masked(error)}; use a folder or "
                "an fsspec URL such as s3://bucket/videos (pip install 'siglip-pipeline[s3]')"
            ) from self._url.masked_error(error)
        protocol = self._fs.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        if "file" in self._protocols:
            self._folder = Path(self._root)

    def __repr__(self) -> str:
        shard = f", shard={self._shard!r}" if self._shard else ""
        return f"UploadStore({str(self._url)!r}{shard})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._url, self._shard, self._settle_seconds, self._storage_options)

    @property
    def url(self) -> SecretUrl:
        """Return the folder or URL as it was given."""
        return self._url

    @property
    def folder(self) -> Path | None:
        """Return the local folder; None if uploads are remote."""
        return self._folder

    def sha256(self, video: str) -> str:
        """Return the SHA-256 of an upload's content, in hexadecimal; reads all of it.

        Raises:
            UploadError: it is missing or cannot be read.
        """
        with self.open(video) as file:
            try:
                return sha256_of(file)
            except Exception as error:  # each storage has exceptions of its own
                raise UploadError(
                    f"{video}: the storage failed while it was read: "
                    f"{self._url.masked(error)}; try again later"
                ) from self._url.masked_error(error)

    def list(self) -> Iterator[Upload]:
        """Yield every upload that is ready, sorted by path; see :meth:`scan`."""
        return iter(sorted(self.scan(), key=attrgetter("path")))

    def survey(self) -> tuple[Sequence[Upload], Sequence[Refused]]:
        """Return every upload that is ready, and every refused file; each sorted by path."""
        refused: MutableSequence[Refused] = []
        ready = sorted(self.scan(refused), key=attrgetter("path"))
        return ready, sorted(refused, key=attrgetter("path"))

    def scan(self, refused: MutableSequence[Refused] | None = None) -> Iterator[Upload]:
        """Yield every upload that is ready, in no particular order. Opens and downloads nothing.

        Hidden, temporary and sidecar files, and those that have not settled, are left out, each
        with a debug line.

        Args:
            refused: receives files that cannot be uploads: unusable names, symlinks that lead out
                of the folder, and what is not a regular file.

        Raises:
            UploadsUnavailableError: the folder or bucket is missing or does not answer.
        """
        for file in self._list_folder(self._folder) if self._folder else self._list_remote():
            if isinstance(file, Upload):
                yield file
            elif refused is not None:
                refused.append(file)

    def check_name(self, path: str) -> None:
        """Refuse a path that cannot be an upload's name, without looking it up.

        Raises:
            UploadNotFoundError: with the reason.
        """
        if (reason := self._unusable(path)) is not None:
            raise UploadNotFoundError(
                f"{path!r} is not a path below UPLOADS: {reason}; give it relative to {self._url}"
            )

    def get(self, path: str) -> Upload:
        """Return one upload as a listing would show it, settled or not.

        Raises:
            UploadNotFoundError: there is no such file below UPLOADS.
            UploadsUnavailableError: the storage does not answer.
        """
        self.check_name(path)
        self._check_shard(path)
        if self._folder is not None:
            try:
                return local_upload(path, stat_file(self._folder, path))
            except OSError as error:
                raise UploadNotFoundError(self._missing(path)) from self._url.masked_error(error)
        try:
            self._fs.invalidate_cache()
            entry = self._fs.info(self._full(path))
        except FileNotFoundError as error:
            raise UploadNotFoundError(self._missing(path)) from self._url.masked_error(error)
        except Exception as error:  # each storage has exceptions of its own
            raise self._unavailable(error) from self._url.masked_error(error)
        if entry.get("type") != "file":
            raise UploadNotFoundError(self._missing(path))
        return remote_upload(path, entry)

    def find(self, names: Iterable[str]) -> Sequence[Upload]:
        """Return uploads by names in any Unicode form; a file of exactly that name is preferred.

        Raises:
            UploadNotFoundError: no upload has a name.
            QueryError: several have it, all in other forms.
            UploadsUnavailableError: the storage does not answer.
        """
        found: list[Upload] = []
        listed: list[str] | None = None
        for name in names:
            try:
                found.append(self.get(name))
            except UploadNotFoundError:
                listed = [upload.path for upload in self.scan()] if listed is None else listed
                if (path := same_name(name, listed)) is None:
                    raise
                found.append(self.get(path))
        return found

    def check_mounted(self) -> None:
        """Refuse to take uploads for deleted while the local folder is gone or empty.

        Raises:
            UploadsUnavailableError: it is; its storage is taken for not mounted.
        """
        if self._folder is None:
            return
        try:
            if any(self._folder.iterdir()):
                return
        except OSError as error:
            raise self._unavailable(error) from self._url.masked_error(error)
        raise self._unavailable(FileNotFoundError("nothing is there, as if it were not mounted"))

    def open(self, path: str) -> BinaryIO:
        """Open the upload as a seekable binary file; remote ones are read block by block.

        A local one is a regular file beneath the folder, even if its name is exchanged meanwhile;
        its ``fileno()`` can be passed to another process.

        Raises:
            UploadNotFoundError: there is no such file.
            UploadError: it cannot be opened.
        """
        self.check_name(path)
        try:
            if self._folder is not None:
                return open_file(self._folder, path)
            file = self._fs.open(
                self._full(path), "rb", block_size=READ_BLOCK_BYTES, cache_type="readahead"
            )
        except FileNotFoundError as error:
            raise UploadNotFoundError(self._missing(path)) from self._url.masked_error(error)
        except Exception as error:  # each storage has exceptions of its own
            if isinstance(error, OSError) and error.errno in _NO_UPLOAD:
                raise UploadNotFoundError(self._missing(path)) from self._url.masked_error(error)
            raise UploadError(
                f"{path}: cannot be opened: {self._url.masked(error)}; try again later"
            ) from self._url.masked_error(error)
        return cast(BinaryIO, file)

    def open_and_look(self, path: str) -> tuple[Upload, BinaryIO]:
        """Return the upload as :meth:`get` does, and its file, open; locally both are one file.

        Raises:
            UploadNotFoundError: there is no such file.
            UploadError: it cannot be opened.
            UploadsUnavailableError: the storage does not answer.
        """
        if self._folder is None:
            return self.get(path), self.open(path)
        self._check_shard(path)
        file = self.open(path)
        return local_upload(path, os.fstat(file.fileno())), file

    def _check_shard(self, path: str) -> None:
        if not is_in_shard(path, self._shard):
            raise UploadNotFoundError(
                f"{path}: not in SIGLIP_PART={self._shard}; name what lies below that folder, or "
                "leave SIGLIP_PART unset where the collection is not divided"
            )

    def _unusable(self, path: str) -> str | None:
        if S3_VERSION in path and "s3" in self._protocols:
            return f"{S3_VERSION} in its name is taken for a version of another file; rename it"
        return unusable(path)

    def _full(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def _container(self) -> str:
        """Return what must exist before the first upload: the bucket, or else the folder."""
        return str(self._root.split("/")[0] if self._protocols & BUCKET_PROTOCOLS else self._root)

    def _missing(self, path: str) -> str:
        return f"{path}: no such file below {self._url}; check the name, or put the file there"

    def _unavailable(self, error: Exception) -> UploadsUnavailableError:
        return UploadsUnavailableError(
            f"SIGLIP_UPLOADS={self._url} cannot be read: {type(error).__name__}: "
            f"{self._url.masked(error)}; check that it exists and "
            "that the credentials allow listing"
        )

    def _is_inside(self, file: Path) -> bool:
        assert self._folder is not None
        return file.resolve().is_relative_to(self._folder.resolve())

    def _list_folder(self, folder: Path) -> Iterator[Upload | Refused]:
        start = folder / (self._shard or "")
        if not start.is_dir():
            raise self._unavailable(FileNotFoundError(f"no such folder: {start}"))
        try:
            yield from local_uploads(folder, settle_seconds=self._settle_seconds, shard=self._shard)
        except OSError as error:
            raise self._unavailable(error) from self._url.masked_error(error)

    def _list_remote(self) -> Iterator[Upload | Refused]:
        try:
            self._fs.invalidate_cache()
            start = self._full(self._shard) if self._shard else self._root
            found: dict[str, dict[str, Any]] = self._fs.find(start, detail=True)
            if not found and not self._fs.exists(self._container()):
                raise FileNotFoundError(f"no such bucket or folder: {self._container()}")
        except Exception as error:  # each storage has exceptions of its own
            raise self._unavailable(error) from self._url.masked_error(error)
        appear_whole = bool(self._protocols & WHOLE_FILE_PROTOCOLS)
        settle_seconds = 0.0 if appear_whole else self._settle_seconds
        yield from remote_uploads(
            found, self._root, settle_seconds=settle_seconds, unusable=self._unusable
        )


def is_in_shard(path: str, shard: str | None) -> bool:
    """Return whether a path below UPLOADS lies in a shard of the collection; None is all of it."""
    return shard is None or path.startswith(f"{shard}/")


def sha256_of(file: BinaryIO) -> str:
    """Return the SHA-256 of the rest of a file, in hexadecimal."""
    return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def _reopen(
    url: SecretUrl, shard: str | None, settle_seconds: float, storage_options: dict[str, Any]
) -> UploadStore:
    return UploadStore(
        url, shard=shard, settle_seconds=settle_seconds, storage_options=storage_options
    )
