"""Cut clips out of uploads, each in a child process. Parents import this, so it imports no av."""

from pathlib import Path

from siglip_pipeline.errors import UploadError, VideoError
from siglip_pipeline.files.replacing import replacing
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.child_jobs import CutJob, Limits
from siglip_pipeline.video.children import Child, JobError
from siglip_pipeline.video.cut_report import CutReport
from siglip_pipeline.video.decode_options import DecodeOptions, Progress
from siglip_pipeline.video.handing import hand

SECONDS_PER_SECOND = 30.0
"""Time limit per second of clip."""
MAX_CLIP_BYTES = 16 * 2**30


def cut_clip(
    uploads: UploadStore,
    video: str,
    start_seconds: float,
    end_seconds: float,
    target: Path,
    *,
    longest_side: int | None = None,
    max_bytes: int = MAX_CLIP_BYTES,
    options: DecodeOptions | None = None,
    on_progress: Progress = lambda permille: None,
    polite: bool = False,
) -> CutReport:
    """Write a section of an upload to an MP4 file; return what it holds.

    Args:
        uploads: where the video is.
        video: path below UPLOADS.
        start_seconds: the first frame is the one on screen at this time.
        end_seconds: the last frame is the last one before this time.
        target: path of the MP4 file; complete when this returns, absent when it raises.
        longest_side: shrink the picture to this, in pixels; None keeps the size.
        max_bytes: a clip that would be larger is given up.
        options: limits of time and memory.
        on_progress: called with the thousandths that are done.
        polite: lower the priority of the process.

    Raises:
        VideoError: the upload is gone, or cannot be decoded, with the reason.
    """
    options = options or DecodeOptions()
    limits = Limits(
        stall_seconds=options.stall_seconds,
        total_seconds=options.stall_seconds + SECONDS_PER_SECOND * (end_seconds - start_seconds),
        memory_mib=options.memory_mib,
        file_bytes=max_bytes,
    )
    try:
        upload = hand(uploads, uploads.get(video), options)
    except UploadError as error:
        raise VideoError(video, str(error)) from error
    child = Child()
    child.on_progress = on_progress
    try:
        if polite:
            child.yield_to_others()
        with replacing(target) as clip:
            job = CutJob(
                video=video,
                fed_bytes=upload.fed_bytes,
                start_seconds=start_seconds,
                end_seconds=end_seconds,
                longest_side=longest_side,
            )
            return CutReport(**child.run(job, limits, [upload.descriptor, clip.fileno()]))
    except JobError as error:
        raise VideoError(video, error.reason) from error
    finally:
        child.end()
        upload.close()
