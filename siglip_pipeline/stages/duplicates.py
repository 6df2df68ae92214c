"""Process equal content once: renamed, moved and copied uploads."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from siglip_pipeline.cpu import available_cores
from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import Upload
from siglip_pipeline.store.failed_contents import FailedContent, FailedContents
from siglip_pipeline.store.videos import VideoRow, VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.hashes import TooLongError, sha256_many

SMALL_BYTES: Final = 2**30
"""Uploads up to this size are hashed in one batch, larger ones in one batch per size."""

Item = TypeVar("Item")


class Duplicates(Generic[Item]):
    """Videos by content: the first of each content is canonical, the others are its duplicates."""

    def __init__(self) -> None:
        self._canonical: dict[str, str] = {}
        self._duplicates: dict[str, list[Item]] = {}

    def add(self, content: str, video: str, item: Item) -> bool:
        """Return whether the video is the first of its content; else keep ``item`` for later."""
        if content not in self._canonical:
            self._canonical[content] = video
            return True
        self._duplicates.setdefault(self._canonical[content], []).append(item)
        return False

    def of(self, canonical: str) -> list[Item]:
        """Return the duplicates of a canonical video."""
        return self._duplicates.get(canonical, [])


@dataclass(slots=True)
class FramesPlan:
    """Which uploads are decoded, and which reuse the frames of another one."""

    decode: list[Upload] = field(default_factory=list)
    """The canonical upload of each content."""
    stored: list[tuple[Upload, VideoRow]] = field(default_factory=list)
    """Uploads whose frames are stored already, for the video of the row; it may be the upload."""
    duplicates: Duplicates[Upload] = field(default_factory=Duplicates)
    """Uploads that reuse the frames of one in ``decode``."""
    failed: list[tuple[Upload, VideoError]] = field(default_factory=list)
    """Uploads that cannot be hashed in time."""
    failed_before: list[tuple[Upload, FailedContent]] = field(default_factory=list)
    """Uploads that changed, but whose content is what failed before."""


def plan_frames(
    waiting: Sequence[Upload],
    *,
    uploads: UploadStore,
    records: VideoStore,
    failed_contents: FailedContents,
    sampling: str,
    options: DecodeOptions,
    workers: int,
) -> Iterator[FramesPlan]:
    """Find uploads of equal content. Hash only those that share their size with another video, and
    those that changed and kept their size.

    Plans are made one at a time, each when the caller is done with the one before, so that slow
    or failing hashes delay no other upload.

    Args:
        waiting: uploads whose frames are to be stored.
        uploads: the store that holds them.
        records: the videos known so far.
        failed_contents: what could not be decoded so far.
        sampling: the recipe by which frames are sampled.
        options: how much time hashing may take.
        workers: uploads hashed at once; 0 for one per CPU core.

    Yields:
        Uploads of a unique size first, then those that share a size, the largest last.
    """
    stored = records.decoded_contents({upload.size_bytes for upload in waiting}, sampling)
    failed = failed_contents.of_changed(waiting)
    uploads_of_size = Counter(upload.size_bytes for upload in waiting)
    unique: list[Upload] = []
    batches: dict[int, list[Upload]] = {}
    for upload in waiting:
        rows = stored.get(upload.size_bytes, {}).values()
        known = any(_may_share_frames(row, upload) for row in rows)
        if known or upload.path in failed or uploads_of_size[upload.size_bytes] > 1:
            batches.setdefault(max(upload.size_bytes, SMALL_BYTES), []).append(upload)
        else:
            unique.append(upload)
    if unique:
        yield FramesPlan(decode=unique)
    for _, batch in sorted(batches.items()):
        hashes = sha256_many(batch, uploads, options=options, workers=workers or available_cores())
        yield _plan_batch(in_order(batch, hashes), stored, failed)


def _plan_batch(
    hashes: Iterable[tuple[Upload, str | VideoError]],
    stored: Mapping[int, Mapping[str, VideoRow]],
    failed: Mapping[str, FailedContent],
) -> FramesPlan:
    """Plan hashed uploads.

    Args:
        hashes: the hash of each upload, or why there is none.
        stored: videos with frames, by size and hash.
        failed: what failed before, by path.
    """
    plan = FramesPlan()
    for upload, sha256 in hashes:
        if isinstance(sha256, TooLongError):
            plan.failed.append((upload, sha256))
        elif isinstance(sha256, VideoError):  # decoding it reports the reason
            plan.decode.append(upload)
        elif (
            row := stored.get(upload.size_bytes, {}).get(sha256)
        ) is not None and _may_share_frames(row, upload):
            plan.stored.append((upload, row))
        elif (failure := failed.get(upload.path)) is not None and failure.sha256 == sha256:
            plan.failed_before.append((upload, failure))
        elif plan.duplicates.add(sha256, upload.path, upload):
            plan.decode.append(upload)
    return plan


def _may_share_frames(row: VideoRow, upload: Upload) -> bool:
    """Return whether an upload may be of the content whose frames are stored for a video.

    The video may be the upload itself, written again with the same content. If its file is
    unchanged, the upload waits because its own frames cannot be used.
    """
    return row.video != upload.path or not upload.has_fingerprint(row.source_fingerprint)


def in_order(
    batch: Sequence[Upload], outcomes: Iterable[tuple[Upload, str | VideoError]]
) -> list[tuple[Upload, str | VideoError]]:
    """Return the outcomes in the order of the uploads."""
    found = {upload.path: outcome for upload, outcome in outcomes}
    return [(upload, found[upload.path]) for upload in batch]
