"""List uploads in folders and object stores, without opening a file.

Built for 100,000 files per listing: a local entry costs one ``stat`` and no path objects.
"""

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from siglip_pipeline.records import Refused, Upload
from siglip_pipeline.uploads.names import unusable

# A stable logger name, which users filter by.
logger = logging.getLogger("siglip_pipeline.uploads.upload_store")

TEMPORARY_SUFFIXES: Final = frozenset(
    {".part", ".partial", ".tmp", ".temp", ".crdownload", ".download", ".swp", ".filepart"}
)
"""Suffixes that browsers, copying tools and editors give to files they have not finished."""

SIDECAR_SUFFIXES: Final = frozenset(
    {".txt", ".md", ".srt", ".vtt", ".ass", ".json", ".xml", ".nfo", ".csv", ".md5", ".sha256"}
)
"""Sidecar files: text that accompanies videos."""


def local_uploads(
    folder: Path, *, settle_seconds: float, shard: str | None = None
) -> Iterator[Upload | Refused]:
    """Yield files below a folder that are ready, or refused, in no particular order.

    Symlinks are followed if they stay inside; a folder is walked once, preferably by its real path.

    Args:
        folder: where to look.
        settle_seconds: files that changed more recently are left for a later listing.
        shard: a folder below it that limits the walk; paths stay relative to ``folder``.

    Raises:
        OSError: the folder itself cannot be read.
    """
    walk = _Walk(folder, settle_seconds, f"{shard}/" if shard else "")
    yield from walk.uploads()


class _Walk:
    """One walk over a folder."""

    def __init__(self, folder: Path, settle_seconds: float, start: str) -> None:
        self._root = folder
        self._real_root = os.path.realpath(folder)
        self._settle_seconds = settle_seconds
        self._start = start
        # Folders as (device, inode): a symlink to a parent would make the walk endless.
        self._seen: set[tuple[int, int]] = set()
        self._folders: deque[tuple[str, str]] = deque([(os.fspath(folder / start), start)])
        self._linked_folders: deque[tuple[str, str]] = deque()

    def uploads(self) -> Iterator[Upload | Refused]:
        while self._folders or self._linked_folders:
            # Links last, so that a folder is listed under its real name.
            folder, prefix = (self._folders or self._linked_folders).popleft()
            try:
                listed = self._entries(folder)
            except OSError as error:
                if prefix == self._start:
                    raise
                reason = f"this folder cannot be read: {error.strerror}"
                yield Refused(path=prefix.rstrip("/"), reason=reason)
                continue
            for entry in listed:
                if (upload := self._look_at(entry, prefix + entry.name)) is not None:
                    yield upload

    def _entries(self, folder: str) -> list["os.DirEntry[str]"]:
        """Return what a folder holds; nothing the second time."""
        status = Path(folder).stat()
        if (identity := (status.st_dev, status.st_ino)) in self._seen:
            return []
        self._seen.add(identity)
        with os.scandir(folder) as entries:
            return [*entries]

    def _look_at(self, entry: "os.DirEntry[str]", path: str) -> Upload | Refused | None:
        """Return a directory entry as an upload; queue it if it is a folder."""
        try:
            is_folder = entry.is_dir()
            if (reason := reason_to_ignore(entry.name, is_folder=is_folder)) is not None:
                logger.debug("uploads: %r ignored: %s", path, reason)
                return None
            if (reason := self._refusal(entry, path, is_folder=is_folder)) is not None:
                return Refused(path=path, reason=reason)
            if is_folder:
                later = self._linked_folders if entry.is_symlink() else self._folders
                later.append((entry.path, path + "/"))
                return None
            status = entry.stat()
        except OSError:  # deleted since the folder was read
            return None
        # ctime too: a copy that keeps the source's mtime may still grow. Ignore a future time:
        # the file is from a clock that is ahead, or this clock was set back.
        now = time.time()
        past = [t for t in (status.st_mtime, status.st_ctime) if t <= now]
        age_seconds = now - max(past, default=-math.inf)
        if age_seconds < self._settle_seconds:
            logger.debug("uploads: %r left for later: changed %.1f s ago", path, age_seconds)
            return None
        return local_upload(path, status)

    def _refusal(self, entry: "os.DirEntry[str]", path: str, *, is_folder: bool) -> str | None:
        """Return why an entry cannot be an upload; None if it can."""
        if entry.is_symlink() and not self._is_inside(entry.path):
            return f"a symlink that leaves {self._root}; put the file itself there"
        if not is_folder and not entry.is_file():
            return "a symlink to nothing" if entry.is_symlink() else "not a regular file"
        return unusable(path)

    def _is_inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return os.path.commonpath([real, self._real_root]) == self._real_root


def remote_uploads(
    found: Mapping[str, dict[str, Any]],
    root: str,
    *,
    settle_seconds: float,
    unusable: Callable[[str], str | None] = unusable,
) -> Iterator[Upload | Refused]:
    """Yield the uploads, and what is refused, among the entries of an fsspec file system.

    Args:
        found: entry by full name.
        root: full name of the folder or prefix.
        settle_seconds: files that changed more recently are left; 0 where files appear whole.
        unusable: returns why this storage cannot hold such a path; None if it can.
    """
    prefix = root.rstrip("/") + "/"
    ignored_folders: dict[str, str | None] = {"": None}
    for name, entry in found.items():
        path = name.removeprefix(prefix)
        if entry.get("type", "file") != "file" or path == name or not path.strip("/"):
            continue
        if (refusal := unusable(path)) is not None:
            yield Refused(path=path, reason=refusal)
            continue
        folder, _, last = path.rpartition("/")
        if folder not in ignored_folders:
            reasons = (reason_to_ignore(part, is_folder=True) for part in folder.split("/"))
            ignored_folders[folder] = next((reason for reason in reasons if reason), None)
        reason = reason_to_ignore(last, is_folder=False) or ignored_folders[folder]
        if reason is not None:
            logger.debug("uploads: %r ignored: %s", path, reason)
            continue
        upload = remote_upload(path, entry)
        age_seconds = time.time() - (upload.modified_at or 0)
        if 0 <= age_seconds < settle_seconds:
            logger.debug("uploads: %r left for later: changed %.1f s ago", path, age_seconds)
        else:
            yield upload


def reason_to_ignore(name: str, *, is_folder: bool) -> str | None:
    """Return why a name is no upload; None if it may be one."""
    if name.startswith("."):
        return "hidden"
    if is_folder:
        return None
    _, dot, ending = name.rpartition(".")
    suffix = dot + ending.lower()
    if suffix in TEMPORARY_SUFFIXES or name.endswith("~") or name.startswith("~$"):
        return "temporary"
    if suffix in SIDECAR_SUFFIXES:
        return f"{suffix} is text that travels with videos"
    return None


def local_upload(path: str, status: os.stat_result) -> Upload:
    """Return the upload that a local file is."""
    return Upload(
        path=path,
        size_bytes=status.st_size,
        modified_at=status.st_mtime,
        changed_at=status.st_ctime,
        inode=status.st_ino,
    )


def remote_upload(path: str, entry: Mapping[str, Any]) -> Upload:
    """Return the upload that an fsspec entry describes; storages name its fields differently."""
    names = ("LastModified", "mtime", "updated", "last_modified", "created")
    modified = next((entry[name] for name in names if entry.get(name) is not None), None)
    if isinstance(modified, str):
        try:
            modified = datetime.fromisoformat(modified)
        except ValueError:
            modified = None
    if isinstance(modified, datetime):
        aware = modified if modified.tzinfo else modified.replace(tzinfo=UTC)
        modified = aware.timestamp()
    etag = entry.get("ETag") or entry.get("etag")
    return Upload(
        path=path,
        size_bytes=int(entry.get("size") or 0),
        modified_at=modified,
        etag=None if etag is None else str(etag).strip('"'),
    )
