"""Cut clips out of uploads, each in a watched child process. No av here: parents import it."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

from siglip_pipeline.errors import UploadError, VideoError
from siglip_pipeline.uploads import UploadStore
from siglip_pipeline.video.source import MediaSource

SECONDS_PER_SECOND = 30.0
"""A second of clip may take so long before its decoder is taken for hung."""


def cut_clip(
    uploads: UploadStore,
    video: str,
    start_seconds: float,
    end_seconds: float,
    target: Path,
    *,
    stall_seconds: float = 60.0,
) -> int:
    """Write a stretch of an upload to an MP4 file, without sound; how many frames it has.

    Args:
        uploads: where the video is.
        video: path below UPLOADS.
        start_seconds: from the frame on screen at this time.
        end_seconds: to the last frame before this time.
        target: where to; complete when this returns, absent when it raises.
        stall_seconds: the least time that the child process gets.

    Raises:
        VideoError: the upload is gone, or cannot be decoded, with the reason.
    """
    spawn = multiprocessing.get_context("spawn")  # not a fork: the parent may hold threads
    ours, theirs = spawn.Pipe(duplex=False)
    part = target.with_name(f".{target.name}.part")
    process = spawn.Process(
        target=_cut, args=(theirs, uploads, video, start_seconds, end_seconds, part), daemon=True
    )
    process.start()
    theirs.close()
    patience = stall_seconds + SECONDS_PER_SECOND * (end_seconds - start_seconds)
    try:
        if not ours.poll(patience):
            raise VideoError(video, f"cutting it took more than {patience:.0f} s and was ended")
        outcome = ours.recv()
        if isinstance(outcome, str):
            raise VideoError(video, outcome)
        part.replace(target)
        return int(outcome)
    except EOFError as error:
        raise VideoError(video, "the decoder crashed; the file is damaged") from error
    finally:
        process.kill()
        process.join()
        ours.close()
        part.unlink(missing_ok=True)


def _cut(
    answer: Connection, uploads: UploadStore, video: str, start: float, end: float, target: Path
) -> None:
    """In the child: a number of frames, or the reason why there are none."""
    from siglip_pipeline.video.cut import cut

    try:
        path = uploads.local_path(video)
        if path is not None:
            uploads.get(video)  # says so when it is gone
            source = MediaSource(video, path=path)
        else:
            source = MediaSource(video, opener=lambda: uploads.open(video))
        answer.send(cut(source, start, end, target))
    except VideoError as error:
        answer.send(error.reason)
    except (UploadError, OSError) as error:
        answer.send(str(error))
