"""What both stages share: the version of stored frames, and the record of a failure."""

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import Stage, Upload
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.names import unusable
from siglip_pipeline.video.frame_store import FrameFileMetadata


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
