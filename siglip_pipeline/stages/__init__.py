"""The work on each video, free of Dagster: upload to stored frames, frames to stored vectors.

Owns both stages, and what keeps their results in order: duplicates, freshness, reconciliation,
removal, status. The stages take paths, skip what is current, take over what another video of the
same content has, go on after a failure, and record in the database what became of each video.
Imports `store` and the rooms below it.
"""

from siglip_pipeline.stages.frame_embedding import VectorsStored, embed_videos
from siglip_pipeline.stages.frame_sampling import FramesOptions, FramesStored, sample_videos

__all__ = [
    "FramesOptions",
    "FramesStored",
    "VectorsStored",
    "embed_videos",
    "sample_videos",
]
