"""Equal content is worked on once: renamed, moved and duplicate uploads."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import Upload
from siglip_pipeline.store.videos import VideoRow, VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.extract import available_cpus
from siglip_pipeline.video.hashes import TooLongError, sha256_many

SMALL_BYTES: Final = 2**30
"""Uploads up to this size are compared all at once, larger ones size by size."""


@dataclass(slots=True)
class FramesPlan:
    """Which uploads are decoded, and which take over the frames of another one."""

    decode: list[Upload] = field(default_factory=list)
    """One upload of each content."""
    stored: list[tuple[Upload, VideoRow]] = field(default_factory=list)
    """Uploads whose frames are stored already, for another video."""
    followers: dict[str, list[Upload]] = field(default_factory=dict)
    """By the path of an upload that is decoded: others of the same content."""
    failed: list[tuple[Upload, VideoError]] = field(default_factory=list)


def plan_frames(
    waiting: Sequence[Upload],
    *,
    uploads: UploadStore,
    records: VideoStore,
    sampling: str,
    options: DecodeOptions,
    workers: int = 0,
) -> Iterator[FramesPlan]:
    """Find uploads of equal content. Only those of equal size are read to be compared.

    Plans come one by one, each made when the one before is done with: at first uploads that are
    like no other, then those of equal size, and large ones last, size by size. What holds up or
    fails while it is hashed holds up nothing else.

    Args:
        waiting: uploads whose frames are to be stored.
        uploads: where they lie.
        records: what is known of all videos.
        sampling: the recipe by which frames are sampled.
        options: how much time hashing may take.
        workers: uploads hashed at once; 0 for one per CPU core.
    """
    contents = records.decoded_contents({upload.size_bytes for upload in waiting}, sampling)
    alike = Counter(upload.size_bytes for upload in waiting)
    alone: list[Upload] = []
    by_size: dict[int, list[Upload]] = {}
    for upload in waiting:
        known = any(
            row.video != upload.path for row in contents.get(upload.size_bytes, {}).values()
        )
        if known or alike[upload.size_bytes] > 1:
            by_size.setdefault(max(upload.size_bytes, SMALL_BYTES), []).append(upload)
        else:
            alone.append(upload)
    if alone:
        yield FramesPlan(decode=alone)
    for _, batch in sorted(by_size.items()):
        plan = FramesPlan()
        leaders: dict[str, Upload] = {}
        hashes = sha256_many(batch, uploads, options=options, workers=workers or available_cpus())
        for upload, sha256 in in_order(batch, hashes):
            known_rows = contents.get(upload.size_bytes, {})
            if isinstance(sha256, TooLongError):
                plan.failed.append((upload, sha256))
            elif isinstance(sha256, VideoError):  # decoding it will say why
                plan.decode.append(upload)
            elif sha256 in known_rows and known_rows[sha256].video != upload.path:
                plan.stored.append((upload, known_rows[sha256]))
            elif sha256 in leaders:
                plan.followers.setdefault(leaders[sha256].path, []).append(upload)
            else:
                leaders[sha256] = upload
                plan.decode.append(upload)
        yield plan


def in_order(
    batch: Sequence[Upload], outcomes: Iterable[tuple[Upload, str | VideoError]]
) -> list[tuple[Upload, str | VideoError]]:
    """Outcomes in the order of the uploads, whichever was ready first."""
    found = {upload.path: outcome for upload, outcome in outcomes}
    return [(upload, found[upload.path]) for upload in batch]
