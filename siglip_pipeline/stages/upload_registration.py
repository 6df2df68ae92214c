"""Register uploads with Dagster and the database. No other module does this."""

import math
import time
from collections.abc import Collection, Sequence
from typing import Final, Protocol

from siglip_pipeline.errors import UploadNotFoundError
from siglip_pipeline.records import Stage, Upload
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.uploads.names import partition_key
from siglip_pipeline.uploads.upload_store import UploadStore

UPLOADS_PER_WRITE: Final = 32


class Registry(Protocol):
    """What registration needs of Dagster: a local instance, or one behind a webserver."""

    def add_partitions(self, keys: Sequence[str]) -> None:
        """Add partitions of videos, in this order; existing ones stay."""
        ...

    def report(self, uploads: Sequence[Upload]) -> None:
        """Store an event of the asset `uploads` for each."""
        ...


def register_uploads(
    registry: Registry,
    announced: AnnouncedUploads,
    uploads: Sequence[Upload],
    *,
    until: float = math.inf,
) -> dict[str, str]:
    """Give each upload a partition and an event, then record it as announced.

    The order matters: after an interruption an upload is registered again, and never omitted.

    Args:
        registry: where Dagster keeps partitions and events.
        announced: the record with which the sensor compares a listing.
        uploads: new or changed ones.
        until: no further write begins after this ``time.monotonic()``; the first always does.

    Returns:
        The name of each registered upload's announcement, by path.
    """
    registered: list[Upload] = []
    for start in range(0, len(uploads), UPLOADS_PER_WRITE):
        if registered and time.monotonic() > until:
            break
        chunk = uploads[start : start + UPLOADS_PER_WRITE]
        registry.add_partitions([partition_key(upload.path) for upload in chunk])
        registry.report(chunk)
        registered += chunk
    return announced.register(registered)


def register_videos(
    registry: Registry,
    database: Database,
    uploads: UploadStore,
    videos: Sequence[str],
    *,
    assets: Collection[Stage],
) -> list[str]:
    """Register uploads that a person named, and return their partition keys.

    One that was deleted since gets a partition and no event: its run says that it is gone.

    Args:
        registry: where Dagster keeps partitions and events.
        database: the database of videos.
        uploads: the store that holds them.
        videos: paths below UPLOADS.
        assets: what is to be made of them. Without their frames none is registered: the sensor
            would take the upload for one that is sampled.

    Raises:
        UploadNotFoundError: none of the paths is below UPLOADS; with the reason of the last.
    """
    named: list[Upload] = []
    missing: list[str] = []
    for video in videos:
        try:
            named.append(uploads.get(video))
        except UploadNotFoundError:
            missing.append(video)
            if len(missing) == len(videos):
                raise
    if Stage.FRAMES in assets:
        register_uploads(registry, AnnouncedUploads(database), named)
    gone = [partition_key(video) for video in missing]
    if gone:
        registry.add_partitions(gone)
    return [partition_key(upload.path) for upload in named] + gone
