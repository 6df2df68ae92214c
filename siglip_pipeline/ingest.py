"""Bring files into UPLOADS, whole or not at all."""

import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import fsspec

from siglip_pipeline.errors import UploadNotFoundError, UploadsUnavailableError
from siglip_pipeline.names import unusable
from siglip_pipeline.uploads import UploadStore, sha256_of

Outcome = Literal["copied", "present", "conflict", "missing", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What became of one file that was to be brought in."""

    source: str
    video: str
    """Path below UPLOADS."""
    outcome: Outcome
    """``conflict``: another file of that name is there, and stays; ``missing``: no such source;
    ``refused``: its name cannot be kept."""

    @property
    def is_upload(self) -> bool:
        """Whether the video lies in UPLOADS now."""
        return self.outcome in ("copied", "present")


def bring_in(
    paths: Iterable[Path],
    uploads: UploadStore,
    *,
    part: str | None = None,
    replace: bool = False,
) -> Iterator[Ingested]:
    """Copy files, and all files below folders, into UPLOADS; what is there already stays.

    A file keeps its name; a file in a folder keeps its path below that folder; both below the
    part, if there is one. A copy appears under its name only when it is complete.

    Args:
        paths: files and folders of this machine.
        uploads: where they go.
        part: the folder below UPLOADS that they go into; None: UPLOADS itself.
        replace: overwrite a different file of the same name instead of reporting a conflict.

    Yields:
        One outcome per file.
    """
    for path in paths:
        for source, name in _files(path):
            video = f"{part}/{name}" if part else name
            yield _bring_in_file(source, video, uploads, replace=replace)


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    if path.is_dir():
        ready, refused = UploadStore(path, settle_seconds=0).survey()
        for name in [*(file.path for file in ready), *(file.path for file in refused)]:
            yield path / name, name
    else:
        yield path, path.name


def _bring_in_file(source: Path, video: str, uploads: UploadStore, *, replace: bool) -> Ingested:
    def ingested(outcome: Outcome, video: str = video) -> Ingested:
        return Ingested(source=str(source), video=video, outcome=outcome)

    if unusable(video) is not None:
        return ingested("refused")
    if not source.is_file():
        return ingested("missing")
    folder = uploads.url.folder
    if folder is not None and source.resolve().is_relative_to(folder):
        return ingested("present", source.resolve().relative_to(folder).as_posix())
    try:
        there = uploads.get(video)
    except UploadNotFoundError:
        pass
    else:
        if there.size_bytes == source.stat().st_size and _sha256(source) == uploads.sha256(video):
            return ingested("present")
        if not replace:
            return ingested("conflict")
    _copy(source, uploads, video)
    return ingested("copied")


def _copy(source: Path, uploads: UploadStore, video: str) -> None:
    url = uploads.url
    if url.folder is None:
        try:
            fs, root = fsspec.core.url_to_fs(url.reveal())
            fs.put_file(str(source), f"{root.rstrip('/')}/{video}")
        except Exception as error:  # each storage has exceptions of its own
            raise UploadsUnavailableError(
                f"{video}: cannot be written to {url}: {url.masked(error)}; check that it exists "
                "and that the credentials allow writing"
            ) from url.masked_error(error)
        return
    target = url.folder / video
    target.parent.mkdir(parents=True, exist_ok=True)
    # Hidden names are no uploads, so the sensor does not see the copy before it is complete. The
    # file's own name may leave no room for a suffix.
    draft = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        shutil.copyfile(source, draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file)
