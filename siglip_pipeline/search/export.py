"""Hits as files: a thumbnail each, or the moment cut out of its video."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from siglip_pipeline.errors import FrameStoreError, QueryError, VideoError
from siglip_pipeline.files.replacing import replacing
from siglip_pipeline.hits import Hit
from siglip_pipeline.text.json_form import Rounded3
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.clips import cut_clip
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.frame_store import FrameStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What became of one hit."""

    video: str
    time_seconds: Rounded3
    path: Path | None
    """The file; None when it could not be made."""
    reason: str | None
    """Why there is none."""


def export_hits(
    hits: Iterable[Hit],
    folder: Path,
    *,
    frames: FrameStore,
    uploads: UploadStore,
    clips: bool = False,
    decode: DecodeOptions | None = None,
) -> list[Exported]:
    """Write hits to a folder, numbered in their order; a hit that fails does not stop the others.

    Args:
        hits: best first.
        folder: made if missing; files of the same name are replaced.
        frames: where stored frames are.
        uploads: where the videos are that clips are cut from.
        clips: cut the moments out of the uploads (MP4, no sound), instead of thumbnails (JPEG).
        decode: how clips are cut; None: as the settings have it by default.

    Raises:
        QueryError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QueryError(f"{folder} cannot be made: {error.strerror}; name a folder") from error
    done = []
    for number, hit in enumerate(hits, 1):
        suffix = "mp4" if clips else "jpg"
        path = folder / f"{number:03d}-{_plain(hit.video)}-{hit.time_seconds:.1f}s.{suffix}"
        try:
            if clips:
                cut_clip(
                    uploads,
                    hit.video,
                    hit.start_seconds,
                    hit.end_seconds,
                    path,
                    options=decode,
                )
            else:
                thumbnail = frames.thumbnail(hit.video, hit.frame_index)
                with replacing(path) as file:
                    file.write(thumbnail)
            made, reason = path, None
        except (VideoError, FrameStoreError) as error:
            made, reason = None, str(error)
        except OSError as error:
            raise QueryError(f"{path} cannot be written: {error.strerror}") from error
        done.append(
            Exported(video=hit.video, time_seconds=hit.time_seconds, path=made, reason=reason)
        )
    return done


def _plain(video: str) -> str:
    """A video's path as part of a file name, on any system."""
    return re.sub(r"[^\w.-]+", "_", video, flags=re.ASCII)[-80:].strip("._-") or "video"
