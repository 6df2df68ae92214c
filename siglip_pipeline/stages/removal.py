"""Delete the results of videos whose uploads are gone."""

from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.video.frame_store import FrameStore


def forget_video(database: Database, frame_store: FrameStore, video: str) -> None:
    """Delete a video's vectors under every model, then its row, then its frames.

    Search no longer finds it from the first step on. Where a failure interrupts the rest,
    :func:`~siglip_pipeline.stages.reconcile.reconcile` finds what is left.

    Raises:
        FrameStoreError: the frames cannot be deleted; the vectors and the row are gone.
    """
    VideoStore(database).delete(video)
    frame_store.delete(video)
