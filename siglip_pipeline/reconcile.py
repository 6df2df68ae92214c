"""The count check: uploads, partitions, frames, vectors and the index must agree.

Everything else in this project reacts to changes. This looks at all there is, so that whatever a
reaction missed is found within a day.
"""

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Literal

from siglip_pipeline.errors import (
    DamagedFramesError,
    FrameStoreError,
    FrameStoreVersionError,
)
from siglip_pipeline.names import shown
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.live_index import live_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoRow, VideoStore
from siglip_pipeline.uploads import UploadStore, is_in_part
from siglip_pipeline.video.frame_store import FrameFileMetadata, FrameStore

ABANDONED_SECONDS = 86_400.0
"""A draft of frames that nobody has written to for so long belongs to a process that was killed."""

Repair = Literal["taken up again", "partition removed", "reported"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two places that do not agree about one video."""

    video: str
    """Path below UPLOADS; empty where the whole collection is meant."""
    problem: str
    repair: Repair
    """What was done about it, or is to be done by the caller (``partition removed``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """What there is in each place, and where they differ."""

    uploads: int
    partitions: int
    videos: int
    frames: int
    """Stored frames, as the database knows them."""
    vectors: int
    """Of the active model."""
    indexed: int
    """Frames that the live index answers for."""
    differences: tuple[Difference, ...]


def reconcile(
    *,
    uploads: UploadStore,
    frame_store: FrameStore,
    database: Database,
    partitions: Iterable[str],
    busy: Set[str],
    part: str | None = None,
    verify_frames: bool = False,
) -> Reconciliation:
    """Compare all places; have what is missing made again.

    Args:
        uploads: the files.
        frame_store: the stored frames.
        database: what is known of each video, and its vectors.
        partitions: paths that Dagster has a partition for.
        busy: paths that a run is working on, or waits to; they are left alone.
        part: the part of the collection that is looked at; the index is one for all parts.
        verify_frames: read every stored picture against its checksum, not only the footers.

    Raises:
        UploadsUnavailableError: the uploads cannot be listed.
    """
    records = VideoStore(database)
    model = ModelStore(database).active()
    model_id = model.model_id if model else None
    listing, refused = uploads.survey()
    listed = {upload.path for upload in listing}
    keyed = set(partitions)
    rows = {
        row.video: row for row in records.list(model_id=model_id) if is_in_part(row.video, part)
    }
    damaged: list[str] = []

    def footer_of(video: str) -> FrameFileMetadata:
        try:
            return frame_store.verify(video) if verify_frames else frame_store.metadata(video)
        except DamagedFramesError:
            damaged.append(video)
            raise

    found = [
        difference
        for video in sorted({*listed, *keyed, *rows} - busy)
        if (
            difference := _compare(
                video, rows.get(video), footer_of, listed=video in listed, keyed=video in keyed
            )
        )
    ]
    for video in damaged:
        records.frames_are_damaged(video)
    found += [
        Difference(video=shown(file.path), problem=file.reason, repair="reported")
        for file in refused
    ]
    if model_id is not None:
        found += _compare_vectors(VectorStore(database), model_id, rows, busy)
    frame_store.remove_abandoned_drafts(older_than_seconds=ABANDONED_SECONDS)
    AnnouncedUploads(database).announce_again(
        d.video for d in found if d.repair == "taken up again"
    )
    counts = records.counts(model_id)
    index = live_index(database, model_id) if model_id is not None else None
    if index is not None and index.frames != counts.vectors:
        found.append(
            Difference(
                video="",
                problem=f"the index answers for {index.frames} of {counts.vectors} vectors",
                repair="reported",
            )
        )
    return Reconciliation(
        uploads=len(listed),
        partitions=len(keyed),
        videos=len(rows),
        frames=counts.frames,
        vectors=counts.vectors,
        indexed=index.frames if index else 0,
        differences=tuple(found),
    )


def _compare(
    video: str,
    row: VideoRow | None,
    footer_of: Callable[[str], FrameFileMetadata],
    *,
    listed: bool,
    keyed: bool,
) -> Difference | None:
    """The first thing that is wrong with a video, seen from its upload and its frames."""

    def again(problem: str) -> Difference:
        return Difference(video=video, problem=problem, repair="taken up again")

    if row is None and not listed:
        return Difference(
            video=video,
            problem="a partition without upload and without any result",
            repair="partition removed",
        )
    if row is None or not listed:
        return None  # a new upload, or one that was deleted: the sensors' everyday work
    if not keyed:
        return again("known, but Dagster has no partition for it")
    if row.state == "pending":
        return again("announced, but neither sampled nor failed")
    if row.sha256 is None:
        return None  # it failed, with a reason
    try:
        stored = footer_of(video)
    except FrameStoreVersionError as error:
        return Difference(video=video, problem=str(error), repair="reported")
    except FrameStoreError as error:
        return again(str(error))
    if (stored.frames, stored.source_sha256) != (row.frames, row.sha256):
        return again(
            f"the frame store holds {stored.frames} frames of {stored.source_sha256[:8]}, the "
            f"database knows of {row.frames} of {row.sha256[:8]}"
        )
    return None


def _compare_vectors(
    vectors: VectorStore, model_id: int, rows: dict[str, VideoRow], busy: Set[str]
) -> list[Difference]:
    """Videos whose vectors are not as many as they were recorded to be, or are missing."""
    problems = {
        video: f"{stored} vectors are stored, {recorded} were recorded"
        for video, (stored, recorded) in vectors.miscounted(model_id).items()
        if video in rows
    }
    vectors.mark_outdated(model_id, list(problems.keys() - busy))
    for video, row in rows.items():
        if row.state == "frames":
            problems.setdefault(video, "sampled, but never embedded")
    return [
        Difference(video=video, problem=problem, repair="taken up again")
        for video, problem in problems.items()
        if video not in busy
    ]
