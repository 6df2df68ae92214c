"""The work on each video, free of Dagster: upload to stored frames, frames to stored vectors.

Owns both stages, and what keeps their results in order: duplicates, freshness, reconciliation,
removal, status. The stages take paths, skip what is current, reuse the results of another video of
the same content, continue after a failure, and record the outcome of each video in the database.
Imports `store` and the rooms below it.
"""

from siglip_pipeline.stages.frame_embedding import VectorsStored, embed_videos
from siglip_pipeline.stages.frame_sampling import (
    FramesOptions,
    FramesOutcome,
    FramesStored,
    sample_videos,
)
from siglip_pipeline.stages.stage_results import NoFrames

__all__ = [
    "FramesOptions",
    "FramesOutcome",
    "FramesStored",
    "NoFrames",
    "VectorsStored",
    "embed_videos",
    "sample_videos",
]
