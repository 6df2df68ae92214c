"""Equal content is worked on once: renamed, moved and duplicate uploads."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from siglip_pipeline.errors import UploadError
from siglip_pipeline.records import Upload
from siglip_pipeline.store.videos import VideoRow, VideoStore
from siglip_pipeline.uploads import UploadStore


@dataclass(slots=True)
class FramesPlan:
    """Which uploads are decoded, and which take over the frames of another one."""

    decode: list[Upload] = field(default_factory=list)
    """One upload of each content."""
    stored: list[tuple[Upload, VideoRow]] = field(default_factory=list)
    """Uploads whose frames are stored already, for another video."""
    followers: dict[str, list[Upload]] = field(default_factory=dict)
    """By the path of an upload that is decoded: others of the same content."""


def plan_frames(
    waiting: Sequence[Upload], *, uploads: UploadStore, records: VideoStore, sampling: str
) -> FramesPlan:
    """Find uploads of equal content. Only those of equal size are read to be compared.

    Args:
        waiting: uploads whose frames are to be stored.
        uploads: where they lie.
        records: what is known of all videos.
        sampling: the recipe by which frames are sampled.
    """
    plan = FramesPlan()
    contents = records.decoded_contents({upload.size_bytes for upload in waiting}, sampling)
    alike = Counter(upload.size_bytes for upload in waiting)
    leaders: dict[str, Upload] = {}
    for upload in waiting:
        known = {
            sha256: row
            for sha256, row in contents.get(upload.size_bytes, {}).items()
            if row.video != upload.path
        }
        if not known and alike[upload.size_bytes] == 1:
            plan.decode.append(upload)
            continue
        try:
            sha256 = uploads.sha256(upload.path)
        except UploadError:  # decoding it will say why
            plan.decode.append(upload)
            continue
        if sha256 in known:
            plan.stored.append((upload, known[sha256]))
        elif sha256 in leaders:
            plan.followers.setdefault(leaders[sha256].path, []).append(upload)
        else:
            leaders[sha256] = upload
            plan.decode.append(upload)
    return plan
