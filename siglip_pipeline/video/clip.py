"""Sample the frames of a clip that is used as a query. Imports no av: servers import this."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from siglip_pipeline.errors import QueryError, UploadError, VideoError
from siglip_pipeline.records import FrameBatch
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.contact_sheet import evenly_spaced
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.extract import extract_frames
from siglip_pipeline.video.frame_store import FrameStore

CLIP_SAMPLING: Final = "fps:2"
"""Denser than for uploads, because a clip is short and its frames fall between theirs."""
MAX_FRAMES: Final = 120
MAX_SECONDS: Final = 120.0
"""Time limit of the decoding, for which a person waits."""


def sample_clip(clip: Path, options: DecodeOptions) -> FrameBatch:
    """Return frames of a video file: two per second, and at most 120, evenly spaced.

    They are decoded like uploads: in a child process, upright, tone-mapped, as JPEG.

    Args:
        clip: a local file.
        options: how to decode.

    Raises:
        QueryError: the file is missing or cannot be decoded, with the reason.
    """
    uploads = UploadStore(clip.parent, settle_seconds=0)
    with tempfile.TemporaryDirectory(prefix="siglip-clip-") as folder:
        store = FrameStore(folder)
        try:
            upload = uploads.get(clip.name)
            options = replace(options, total_seconds=MAX_SECONDS)
            extract_frames(upload, uploads, store, sampling=CLIP_SAMPLING, options=options)
        except VideoError as error:
            raise QueryError(f"{clip} cannot be searched with: {error.reason}") from error
        except UploadError as error:
            raise QueryError(f"{clip}: no such file") from error
        batches = list(store.read(clip.name))
    indices = np.concatenate([batch.frame_index_N for batch in batches])
    kept = evenly_spaced(np.arange(len(indices)), MAX_FRAMES)
    jpegs = [jpeg for batch in batches for jpeg in batch.jpegs]
    return FrameBatch(
        video=str(clip),
        frame_index_N=indices[kept],
        pts_N=np.concatenate([batch.pts_N for batch in batches])[kept],
        time_seconds_N=np.concatenate([batch.time_seconds_N for batch in batches])[kept],
        jpegs=tuple(jpegs[position] for position in kept),
    )
