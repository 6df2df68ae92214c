"""Forgetting videos whose uploads are gone."""

from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.video.frame_store import FrameStore


def forget_video(database: Database, frame_store: FrameStore, video: str) -> None:
    """Delete a video's vectors, under every model, its row, and its frames, in this order.

    Search stops to find it at once; what an interruption leaves of the rest is found by
    :func:`~siglip_pipeline.stages.reconcile.reconcile`.

    Raises:
        FrameStoreError: the frame store refused; the vectors are gone.
    """
    VideoStore(database).delete(video)
    frame_store.delete(video)
