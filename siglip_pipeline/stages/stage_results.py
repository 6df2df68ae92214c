"""What both stages share: the version of stored frames, and the record of a failure."""

from dataclasses import dataclass
from typing import Final

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import Stage, Upload
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.names import unusable
from siglip_pipeline.video.frame_store import FrameFileMetadata

WITHOUT_FRAMES: Final = "no-frames"
"""The version of the frames of a video that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoFrames:
    """The file of a video gives no frames: it cannot be decoded, or is gone."""

    video: str
    reason: str
    kept: FrameFileMetadata | None
    """Stored frames of an earlier file of that name, which stay until a good one replaces them."""

    @property
    def data_version(self) -> str:
        """Return the version of what is stored, which has not changed."""
        return version_of(self.kept) if self.kept else WITHOUT_FRAMES


def version_of(stored: FrameFileMetadata) -> str:
    """Return a version of stored frames that is equal for equal content and sampling."""
    return f"{stored.source_sha256[:16]}-{stored.sampling.replace(' ', '-')}"


def note_failure(
    records: VideoStore, error: VideoError, stage: Stage, upload: Upload | None = None
) -> VideoError:
    """Record that a stage of a video failed; return the error."""
    if unusable(error.video) is None:  # else the database cannot hold its name
        records.record_failure(error.video, stage=stage, reason=error.reason, upload=upload)
    return error
