"""Export hits as files: a thumbnail each, or the moment as a clip."""

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
    """The outcome for one hit."""

    video: str
    time_seconds: Rounded3
    media_time_seconds: Rounded3
    """What a player of the upload shows there; in the file's name, too."""
    path: Path | None
    """The file; None if it could not be written."""
    reason: str | None
    """Why there is no file, or why a clip has no sound although the upload has."""


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
        hits: the hits, best first.
        folder: created if missing; files of the same name are replaced.
        frames: the stored frames, for thumbnails.
        uploads: the uploads, for clips.
        clips: write the moments as clips (MP4) instead of thumbnails (JPEG).
        decode: how clips are cut; None for the defaults of the settings.

    Raises:
        QueryError: the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QueryError(f"{folder} cannot be made: {error.strerror}; name a folder") from error
    done = []
    for number, hit in enumerate(hits, 1):
        name = f"{number:03d}-{plain_name(hit.video)}-{hit.media_time_seconds:.1f}s"
        path = folder / f"{name}.{'mp4' if clips else 'jpg'}"
        made: Path | None = path
        reason: str | None = None
        try:
            if clips:
                reason = _write_clip(hit, path, uploads, decode)
            else:
                _write_thumbnail(hit, path, frames)
        except (VideoError, FrameStoreError) as error:
            made, reason = None, str(error)
        except OSError as error:
            raise QueryError(f"{path} cannot be written: {error.strerror}") from error
        done.append(
            Exported(
                video=hit.video,
                time_seconds=hit.time_seconds,
                media_time_seconds=hit.media_time_seconds,
                path=made,
                reason=reason,
            )
        )
    return done


def _write_clip(
    hit: Hit, path: Path, uploads: UploadStore, decode: DecodeOptions | None
) -> str | None:
    """Write the moment as an MP4; return why it has no sound although the upload has."""
    start, end = hit.start_seconds, hit.end_seconds
    return cut_clip(uploads, hit.video, start, end, path, options=decode).silent_because


def _write_thumbnail(hit: Hit, path: Path, frames: FrameStore) -> None:
    thumbnail = frames.thumbnail(hit.video, hit.frame_index)
    with replacing(path) as file:
        file.write(thumbnail)


def plain_name(video: str) -> str:
    """Return a video's path as a part of a file name that is valid on any system."""
    return re.sub(r"[^\w.-]+", "_", video, flags=re.ASCII)[-80:].strip("._-") or "video"
